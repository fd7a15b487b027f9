//! Perplexity of a model in f32, in 8 bits and in its own 4 bits over the same text, in the same run.
//!
//! ```sh
//! cargo run --release -p parlance-inference-model --example perplexity -- models/smollm2-135m-instruct.gguf FILE…
//! ```
#![expect(clippy::print_stdout, reason = "an example's output is its purpose")]

use std::{error::Error, path::Path, time::Instant};

use parlance_inference_engine::{LaneInput, TokenId};
use parlance_inference_model::{ChatCodec, LoadOptions, LoadedModel, Model, Precision, load};

const WINDOW: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("name a model and text files")?;
    let text = arguments.map(std::fs::read_to_string).collect::<Result<String, _>>()?;
    let mut losses = Vec::new();
    for precision in [Precision::F32, Precision::Int8, Precision::Int4] {
        let LoadedModel { mut model, codec } = loaded(&path, precision)?;
        let tokens = encode(&codec, &text)?;
        let begun = Instant::now();
        let loss = mean_loss(&mut model, &tokens)?;
        let (count, seconds) = (tokens.len() / WINDOW * WINDOW, begun.elapsed().as_secs_f64());
        println!(
            "{precision:?}: perplexity {:.4} over {count} tokens, weights {} MiB, {:.0} tokens/s",
            loss.exp(),
            model.weight_bytes() >> 20,
            count as f64 / seconds
        );
        losses.push(loss);
    }
    let ratio = |loss: f64| (loss - losses[0]).exp();
    println!("against f32: {:.5} in 8 bits, {:.5} in 4 bits", ratio(losses[1]), ratio(losses[2]));
    Ok(())
}

fn loaded(path: &str, precision: Precision) -> Result<LoadedModel, Box<dyn Error>> {
    let options = LoadOptions { lanes: 1, context_tokens: WINDOW as u32, precision, ..LoadOptions::new("model") };
    Ok(load(Path::new(path), &options, &|_| {})?)
}

/// In pieces, as the tokenizer's time grows faster than the text.
fn encode(codec: &ChatCodec, text: &str) -> Result<Vec<TokenId>, Box<dyn Error>> {
    let mut tokens = Vec::new();
    for piece in text.split_inclusive("\n\n") {
        tokens.extend(codec.encode_text(piece)?);
    }
    Ok(tokens)
}

/// The mean negative logarithm of the probability of each token but the first of each window.
fn mean_loss(model: &mut Model, tokens: &[TokenId]) -> Result<f64, Box<dyn Error>> {
    let (mut total, mut count) = (0.0, 0_usize);
    for window in tokens.chunks_exact(WINDOW) {
        let input = LaneInput { lane: 0, start: 0, tokens: window, logits: 1 };
        model.step_every_position(&[input], |_, at, row| {
            let Some(next) = window.get(at + 1) else { return };
            let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|logit| f64::from(logit - top).exp()).sum();
            total += sum.ln() - f64::from(row[*next as usize] - top);
            count += 1;
        })?;
    }
    Ok(total / count as f64)
}
