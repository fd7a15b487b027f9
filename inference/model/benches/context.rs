//! What decoding costs as the context grows: a step at 128 tokens and at 1,800, and how much of it is attention itself.
//!
//! `cargo bench -p parlance-inference-model --bench context`; wants the default model in `PARLANCE_MODEL_DIR`. Attention reads every key and
//! value once, so its own work grows with the context whoever does it. It is measured alone, by the same kernel over as much memory, and
//! what the step takes beyond it is all the rest: the products, and the handling of the cache. Fails if that rest grows by more than half,
//! as it would if the cache were copied or moved.
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

mod common;

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use common::load_default_model;
use parlance_inference_engine::{LaneInput, TokenModel};
use parlance_inference_kernels::attention::{HeadCache, Heads, KEY_BLOCK, Row, Span, attend_batch};

/// The shape of SmolLM2-135M.
const LAYERS: usize = 30;
const KV_HEADS: usize = 3;
const GROUP: usize = 3;
const HEAD: usize = 64;
/// Of all query heads of a row.
const WIDTH: usize = KV_HEADS * GROUP * HEAD;

const SHORT: usize = 128;
const LONG: usize = 1_800;
const STEPS: usize = 40;
const MOST_GROWTH: f64 = 1.5;

fn main() {
    let mut worst: f64 = 0.0;
    for lanes in [1, 4, 8] {
        let mut model = load_default_model(lanes).model;
        let cache = Cache::new(lanes);
        let [short, long] = [SHORT, LONG].map(|context| {
            let (step, attention) = (step_at(&mut model, lanes, context), cache.attention_at(context));
            (step, attention, step.saturating_sub(attention))
        });
        for (context, (step, attention, rest)) in [(SHORT, short), (LONG, long)] {
            println!("{lanes} lanes at {context}: step {step:.2?}, attention alone {attention:.2?}, rest {rest:.2?}");
        }
        let ratio = |long: Duration, short: Duration| long.as_secs_f64() / short.as_secs_f64();
        let growth = ratio(long.2, short.2);
        println!("context, {lanes} lanes: step {:.2} times, rest {growth:.2} times as long", ratio(long.0, short.0));
        worst = worst.max(growth);
    }
    assert!(worst <= MOST_GROWTH, "the rest grows {worst:.2} times");
}

/// The median time of a decoding step whose lanes hold `context` tokens.
fn step_at(model: &mut dyn TokenModel, lanes: usize, context: usize) -> Duration {
    let tokens: Vec<u32> = (0..(context + STEPS) as u32).map(|at| 1_000 + at * 7 % 20_000).collect();
    let mut logits = Vec::new();
    for lane in 0..lanes {
        for start in (0..context).step_by(256) {
            let tokens = &tokens[start..context.min(start + 256)];
            model.step(&[LaneInput { lane, start, tokens, logits: 0 }], &mut logits).expect("it computes");
        }
    }
    median((context..context + STEPS).map(|start| {
        let tokens = &tokens[start..=start];
        let inputs: Vec<_> = (0..lanes).map(|lane| LaneInput { lane, start, tokens, logits: 1 }).collect();
        let begun = Instant::now();
        model.step(&inputs, &mut logits).expect("it computes");
        begun.elapsed()
    }))
}

/// As much memory as the model's own keys and values, in blocks one behind the other.
struct Cache {
    lanes: usize,
    /// As keys and as values alike.
    values: Vec<f32>,
    blocks: Vec<u32>,
    queries: Vec<f32>,
}

impl Cache {
    fn new(lanes: usize) -> Self {
        let heads = lanes * LAYERS * KV_HEADS;
        let per_head = LONG.div_ceil(KEY_BLOCK);
        Self {
            lanes,
            values: vec![0.25; 2 * heads * per_head * KEY_BLOCK * HEAD],
            blocks: (0..(heads * per_head) as u32).collect(),
            queries: vec![0.5; lanes * WIDTH],
        }
    }

    /// The median time that attention takes in all layers of one step.
    fn attention_at(&self, context: usize) -> Duration {
        let heads = Heads { count: KV_HEADS, group: GROUP, dimension: HEAD };
        let rows: Vec<Row> = (0..self.lanes).map(|lane| Row { lane, span: Span { first: 0, end: context } }).collect();
        let (keys, values) = self.values.split_at(self.values.len() / 2);
        let per_head = LONG.div_ceil(KEY_BLOCK);
        let mut out = vec![0.0; self.lanes * WIDTH];
        median((0..STEPS).map(|_| {
            let begun = Instant::now();
            for layer in 0..LAYERS {
                let cache = |lane, head| {
                    let at = ((layer * self.lanes + lane) * KV_HEADS + head) * per_head;
                    HeadCache { keys, values, blocks: &self.blocks[at..at + per_head], dimension: HEAD }
                };
                attend_batch((&self.queries, WIDTH), heads, &rows, cache, &mut out);
                black_box(&out);
            }
            begun.elapsed()
        }))
    }
}

fn median(times: impl Iterator<Item = Duration>) -> Duration {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    times[times.len() / 2]
}
