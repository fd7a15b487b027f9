//! Logits and greedy continuations against an independent f32 implementation of the same weights (`fixtures/reference.py`), over
//! 20 prompts of 10 to 1,500 tokens: each alone in one step at every position, and all together in ragged, chunked batches, which
//! must give the same bits.

#![expect(clippy::print_stdout, reason = "how far the logits are apart is part of the result")]

mod support;

use parlance_inference_engine::{LaneInput, TextCodec, TokenId, TokenModel};
use parlance_inference_model::{DeviceChoice, Model, Precision};

/// The largest difference that any logit may have.
const TOLERANCE: f32 = 1e-3;
/// The same where products of f32 round their factors to TF32, as tensor cores do.
#[cfg(feature = "cuda")]
const TF32_TOLERANCE: f32 = 0.2;
/// How many of the prompts must continue token by token as the reference does.
const IDENTICAL: usize = 19;
/// The most tokens of one lane in one step of the batched run; lanes differ, so that every step is ragged.
const CHUNKS: [usize; 4] = [96, 33, 64, 17];

/// What the reference computed for one prompt.
struct Expected {
    tokens: Vec<TokenId>,
    positions: Vec<Position>,
    greedy: Vec<TokenId>,
    whole_rows: Vec<(usize, Vec<f32>)>,
}

struct Position {
    largest: TokenId,
    largest_logit: f32,
    /// The logarithm of the sum of the exponentials of all logits.
    total: f32,
    sampled: Vec<f32>,
}

struct Reference {
    digest: Vec<u8>,
    sampled: Vec<TokenId>,
    prompts: Vec<Expected>,
}

/// Reads `reference.bin`; the layout is described in `reference.py`.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn bytes(&mut self, count: usize) -> &[u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    fn number(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes(4).try_into().expect("four bytes"))
    }

    fn float(&mut self) -> f32 {
        f32::from_bits(self.number())
    }

    fn numbers(&mut self) -> Vec<u32> {
        (0..self.number()).map(|_| self.number()).collect()
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }

    fn prompt(&mut self, sampled: usize, vocabulary: usize) -> Expected {
        let tokens = self.numbers();
        let positions = tokens.iter().map(|_| Position {
            largest: self.number(),
            largest_logit: self.float(),
            total: self.float(),
            sampled: self.floats(sampled),
        });
        let positions = positions.collect();
        let greedy = self.numbers();
        let whole_rows = (0..self.number()).map(|_| (self.number() as usize, self.floats(vocabulary))).collect();
        Expected { tokens, positions, greedy, whole_rows }
    }
}

fn reference(vocabulary: usize) -> Reference {
    let mut reader = Reader(include_bytes!("../fixtures/reference.bin"));
    assert_eq!(reader.bytes(8), b"PLRF\x01\0\0\0");
    let digest = reader.bytes(32).to_vec();
    let sampled = reader.numbers();
    let prompts = (0..reader.number()).map(|_| reader.prompt(sampled.len(), vocabulary)).collect();
    assert!(reader.0.is_empty());
    Reference { digest, sampled, prompts }
}

/// The largest difference between a row of logits and what the reference has of it.
fn difference(row: &[f32], at: usize, expected: &Expected, sampled: &[TokenId]) -> f32 {
    let position = &expected.positions[at];
    let sampled = sampled.iter().zip(&position.sampled).map(|(&id, value)| (row[id as usize] - value).abs());
    let largest = (row[position.largest as usize] - position.largest_logit).abs();
    // Every logit has a part in the total, so an error in one that was not sampled shows there.
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total = f64::from(top) + row.iter().map(|logit| f64::from(logit - top).exp()).sum::<f64>().ln();
    let total = (total - f64::from(position.total)).abs() as f32;
    let whole = expected.whole_rows.iter().filter(|(position, _)| *position == at);
    let whole = whole.flat_map(|(_, values)| row.iter().zip(values).map(|(a, b)| (a - b).abs()));
    sampled.chain([largest, total]).chain(whole).fold(0.0, f32::max)
}

/// A fingerprint of a row of logits, bit for bit.
fn fingerprint(row: &[f32]) -> u64 {
    row.iter().fold(0xcbf2_9ce4_8422_2325, |hash, logit| {
        (hash ^ u64::from(logit.to_bits())).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn largest(row: &[f32]) -> TokenId {
    let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a)));
    best.expect("a row is not empty") as TokenId
}

/// Each prompt in one step of its own; the fingerprints of all rows.
fn run_alone(model: &mut Model, reference: &Reference, tolerance: f32) -> Vec<Vec<u64>> {
    let mut worst = 0.0_f32;
    let prompts = reference.prompts.iter().map(|expected| {
        let input = LaneInput { lane: 0, start: 0, tokens: &expected.tokens, logits: 1 };
        let mut fingerprints = Vec::new();
        let visit = |_, at, row: &[f32]| {
            worst = worst.max(difference(row, at, expected, &reference.sampled));
            fingerprints.push(fingerprint(row));
        };
        model.step_every_position(&[input], visit).expect("the step succeeds");
        fingerprints
    });
    let fingerprints = prompts.collect();
    println!("alone: largest difference {worst:e}");
    assert!(worst <= tolerance, "a logit differs by {worst} from the reference");
    fingerprints
}

/// The next chunk of every prompt that is not done, one lane each.
fn next_inputs<'a>(reference: &'a Reference, done: &[usize]) -> Vec<LaneInput<'a>> {
    let lanes = reference.prompts.iter().zip(done).enumerate();
    let inputs =
        lanes.filter(|(_, (expected, done))| **done < expected.tokens.len()).map(|(lane, (expected, &start))| {
            let end = expected.tokens.len().min(start + CHUNKS[lane % CHUNKS.len()]);
            LaneInput { lane, start, tokens: &expected.tokens[start..end], logits: 1 }
        });
    inputs.collect()
}

/// All prompts at once, in chunks, through the interface that the engine uses; the row after each chunk must be as when alone, bit
/// for bit. Returns the last row of each prompt.
fn run_together(model: &mut Model, reference: &Reference, alone: &[Vec<u64>]) -> Vec<Vec<f32>> {
    let mut done = vec![0; reference.prompts.len()];
    let (mut last, mut logits) = (vec![Vec::new(); done.len()], Vec::new());
    loop {
        let inputs = next_inputs(reference, &done);
        if inputs.is_empty() {
            return last;
        }
        model.step(&inputs, &mut logits).expect("the step succeeds");
        assert_eq!(logits.len(), inputs.len() * model.vocabulary());
        for (input, row) in inputs.iter().zip(logits.chunks_exact(model.vocabulary())) {
            let end = input.start + input.tokens.len();
            assert_eq!(fingerprint(row), alone[input.lane][end - 1], "prompt {}, position {}", input.lane, end - 1);
            done[input.lane] = end;
            last[input.lane] = row.to_vec();
        }
    }
}

/// Continues all prompts greedily, one token each per step, through the interface that the engine uses.
fn continue_together(model: &mut Model, reference: &Reference, last: &[Vec<f32>]) -> Vec<Vec<TokenId>> {
    let mut next: Vec<TokenId> = last.iter().map(|row| largest(row)).collect();
    let mut continuations: Vec<Vec<TokenId>> = vec![Vec::new(); next.len()];
    let mut logits = Vec::new();
    for step in 0..reference.prompts[0].greedy.len() {
        let inputs: Vec<_> = next
            .chunks(1)
            .enumerate()
            .map(|(lane, tokens)| {
                let start = reference.prompts[lane].tokens.len() + step;
                LaneInput { lane, start, tokens, logits: 1 }
            })
            .collect();
        model.step(&inputs, &mut logits).expect("the step succeeds");
        for (lane, row) in logits.chunks_exact(model.vocabulary()).enumerate() {
            continuations[lane].push(next[lane]);
            next[lane] = largest(row);
        }
    }
    continuations
}

#[test]
fn agrees_with_the_reference_alone_and_in_ragged_batches() {
    let loaded = support::model(20, 1_664, Precision::F32);
    let mut model = loaded.model;
    let reference = reference(model.vocabulary());
    let digest: String = reference.digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(loaded.codec.info().digest, digest, "the fixture was made from this very file");
    assert_eq!(reference.prompts.len(), 20);

    let alone = run_alone(&mut model, &reference, TOLERANCE);
    let last = run_together(&mut model, &reference, &alone);
    let continuations = continue_together(&mut model, &reference, &last);

    let identical = continuations.iter().zip(&reference.prompts).filter(|(found, expected)| **found == expected.greedy);
    let identical = identical.count();
    println!("greedy: {identical} of 20 identical");
    assert!(identical >= IDENTICAL, "only {identical} of 20 greedy continuations are the reference's");
}

/// The shortest prompts by burn's own operations, as other devices compute them, every position of them within `tolerance`.
fn agrees_by_tensors(device: DeviceChoice, prompts: usize, tolerance: f32) {
    let mut model = support::model_on(device, 1, 128, Precision::F32).model;
    let mut reference = reference(model.vocabulary());
    reference.prompts.sort_by_key(|prompt| prompt.tokens.len());
    reference.prompts.truncate(prompts);
    assert!(reference.prompts.iter().all(|prompt| prompt.tokens.len() < 128 - prompt.greedy.len()));
    run_alone(&mut model, &reference, tolerance);
}

#[test]
fn agrees_with_the_reference_by_tensors() {
    agrees_by_tensors(DeviceChoice::CpuTensors, 5, TOLERANCE);
}

#[cfg(feature = "wgpu")]
#[test]
fn agrees_with_the_reference_on_wgpu() {
    agrees_by_tensors(DeviceChoice::Wgpu, 1, TOLERANCE);
}

#[cfg(feature = "cuda")]
#[test]
fn agrees_with_the_reference_on_cuda() {
    agrees_by_tensors(DeviceChoice::Cuda(0), 5, TF32_TOLERANCE);
}
