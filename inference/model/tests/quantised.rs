//! Weights in 8 and in 4 bits beside the same weights in f32: what they cost in quality, what they save in memory; and that a sequence's
//! logits do not depend on how it was computed.

mod support;

use parlance_inference_engine::{Lane, LaneInput, TextCodec as _, TokenId, TokenModel};
use parlance_inference_model::{ChatCodec, LoadOptions, LoadedModel, Model, Precision, inspect};

/// Text that the model has not seen: this repository's own.
const TEXT: &str = concat!(
    include_str!("../../../ARCHITECTURE.md"),
    include_str!("../../../docs/adr/2026-11-22-own-segments-for-the-local-log.md"),
    include_str!("../../../docs/adr/2026-11-22-embedded-record-store.md"),
    include_str!("../../../docs/adr/2026-11-22-burn-flex-on-the-cpu.md"),
    include_str!("../../../README.md"),
);
/// Tokens that perplexity is measured over here; `examples/perplexity.rs` does it over as many as it is given.
const PERPLEXITY_TOKENS: usize = 4_096;
const WINDOW: usize = 512;
/// How much more perplexity than f32 they may have.
const MOST_LOSS: f64 = 1.02;

const PROMPTS: usize = 50;
const LANES: usize = 8;
/// How a batch is computed: so many prompts at once, so many tokens of each per step.
const BATCHES: [(usize, usize); 3] = [(2, 32), (4, 128), (8, 512)];
/// Tokens at a prompt's end that are decoded one by one.
const DECODED: usize = 12;

/// The mean negative logarithm of the probability of each token but the first of each window.
fn mean_loss(model: &mut Model, tokens: &[TokenId]) -> f64 {
    let (mut total, mut count) = (0.0, 0_usize);
    for window in tokens.chunks_exact(WINDOW) {
        let input = LaneInput { lane: 0, start: 0, tokens: window, logits: 1 };
        let visit = |_, at: usize, row: &[f32]| {
            let Some(next) = window.get(at + 1) else { return };
            let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|logit| f64::from(logit - top).exp()).sum();
            total += sum.ln() - f64::from(row[*next as usize] - top);
            count += 1;
        };
        model.step_every_position(&[input], visit).expect("the step succeeds");
    }
    total / count as f64
}

fn text(codec: &ChatCodec) -> Vec<TokenId> {
    codec.encode_text(TEXT).expect("encodes")
}

#[test]
fn weights_in_few_bits_take_little_and_lose_next_to_nothing() {
    let LoadedModel { mut model, codec } = support::model(1, WINDOW as u32, Precision::F32);
    let tokens = text(&codec);
    let tokens = &tokens[..PERPLEXITY_TOKENS];
    let (exact, exact_bytes) = (mean_loss(&mut model, tokens), model.weight_bytes());
    drop(model);
    // The file's own weights have 4 bits, but for the table of tokens.
    for (precision, numerics, percent) in [(Precision::Int8, "int8-2", 27), (Precision::Auto, "int4-1", 19)] {
        let LoadedModel { mut model, codec } = support::model(1, WINDOW as u32, precision);
        assert_eq!(codec.info().numerics, numerics);
        let ratio = (mean_loss(&mut model, tokens) - exact).exp();
        assert!(ratio < MOST_LOSS, "{numerics}: perplexity is {ratio} times that of f32");
        assert!((ratio - 1.0).abs() > 1e-6, "{numerics}: 8 bits are not exact: {ratio}");
        let bytes = model.weight_bytes();
        assert!(bytes * 100 <= exact_bytes * percent, "{numerics}: {bytes} bytes against {exact_bytes}");
    }
}

#[test]
fn what_a_model_takes_is_known_before_it_is_loaded() {
    let (lanes, context_tokens) = (2, WINDOW as u32);
    for precision in [Precision::F32, Precision::Int8, Precision::Int4] {
        let options = LoadOptions { lanes, context_tokens, precision, ..LoadOptions::new("m") };
        let told = inspect(&support::path(), &options).expect("it can be read");
        let LoadedModel { model, .. } = support::model(lanes, context_tokens, precision);
        assert_eq!(told.cache, model.cache_bytes() as u64);
        // Norms are counted, and matrices side by side share their last panel: hardly anything.
        let weights = model.weight_bytes() as u64;
        assert!((weights..weights + weights / 100).contains(&told.weights), "{told:?}, not {weights}");
    }
}

/// Prompts of 20 to 560 tokens, from all over the text.
fn prompts(codec: &ChatCodec) -> Vec<Vec<TokenId>> {
    let tokens = text(codec);
    let prompt = |number: usize| {
        let length = 20 + number * number * 9 / 40;
        let begin = number * 131 % (tokens.len() - length);
        tokens[begin..begin + length].to_vec()
    };
    (0..PROMPTS).map(prompt).collect()
}

fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|logit| logit.to_bits()).collect()
}

/// Computes the rest of each prompt in its own lane, `chunk` tokens of each per step; the logits after each prompt.
fn compute(model: &mut Model, lanes: &[(Lane, usize, &[TokenId])], chunk: usize) -> Vec<Vec<u32>> {
    let mut done: Vec<usize> = lanes.iter().map(|(_, start, _)| *start).collect();
    let mut last = vec![Vec::new(); lanes.len()];
    let mut logits = Vec::new();
    while lanes.iter().zip(&done).any(|((_, _, prompt), done)| *done < prompt.len()) {
        let next = lanes.iter().zip(&done).filter(|((_, _, prompt), done)| **done < prompt.len());
        let inputs: Vec<LaneInput<'_>> = next
            .map(|((lane, _, prompt), &start)| {
                let end = prompt.len().min(start + chunk);
                LaneInput { lane: *lane, start, tokens: &prompt[start..end], logits: usize::from(end == prompt.len()) }
            })
            .collect();
        model.step(&inputs, &mut logits).expect("the step succeeds");
        let mut rows = logits.chunks_exact(model.vocabulary());
        for (at, (_, _, prompt)) in lanes.iter().enumerate() {
            let was = done[at];
            done[at] = prompt.len().min(was + chunk);
            if was < prompt.len() && done[at] == prompt.len() {
                last[at] = bits(rows.next().expect("a row for each that was wanted"));
            }
        }
    }
    last
}

#[test]
fn logits_in_8_bits_do_not_depend_on_how_they_were_computed() {
    logits_do_not_depend_on_how_they_were_computed(Precision::Int8);
}

#[test]
fn logits_in_4_bits_do_not_depend_on_how_they_were_computed() {
    logits_do_not_depend_on_how_they_were_computed(Precision::Int4);
}

fn logits_do_not_depend_on_how_they_were_computed(precision: Precision) {
    let LoadedModel { mut model, codec } = support::model(LANES, 640, precision);
    let prompts = prompts(&codec);
    let alone: Vec<_> =
        prompts.iter().flat_map(|prompt| compute(&mut model, &[(0, 0, prompt)], usize::MAX / 2)).collect();
    for (size, chunk) in BATCHES {
        for (group, alone) in prompts.chunks(size).zip(alone.chunks(size)) {
            let lanes: Vec<_> = group.iter().enumerate().map(|(lane, prompt)| (lane, 0, prompt.as_slice())).collect();
            assert!(compute(&mut model, &lanes, chunk) == alone, "{size} at once, {chunk} tokens per step");
        }
    }
    for (number, (prompt, alone)) in prompts.iter().zip(&alone).enumerate() {
        let (head, _) = prompt.split_at(prompt.len() - DECODED);
        compute(&mut model, &[(0, 0, head)], 256);
        let decoded = compute(&mut model, &[(0, head.len(), prompt)], 1);
        assert!(decoded[0] == *alone, "prompt {number}, its end decoded token by token");
        // The lane still has the whole prompt: another that begins alike goes on from there.
        let reused = compute(&mut model, &[(0, head.len() / 2, prompt)], 64);
        assert!(reused[0] == *alone, "prompt {number}, half of it found in the cache");
    }
}
