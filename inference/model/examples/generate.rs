//! Answers one question greedily and prints how fast the model runs.
//!
//! ```sh
//! cargo run --release -p parlance-inference-model --example generate -- models/smollm2-135m-instruct.gguf [PRECISION] [DEVICE]
//! ```
#![expect(clippy::print_stdout, reason = "an example's output is its purpose")]

use std::{
    error::Error,
    path::PathBuf,
    str::FromStr,
    time::{Duration, Instant},
};

use parlance_inference_engine::{ChatMessage, ChatRole, LaneInput, TextCodec, TokenId, TokenModel};
use parlance_inference_model::{LoadOptions, LoadedModel, Model, load};

const QUESTION: &str = "What is the capital of France?";
const DECODE_STEPS: usize = 32;
const DECODE_CONTEXT: usize = 64;
const PREFILL_TOKENS: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).map_or_else(|| "models/smollm2-135m-instruct.gguf".into(), PathBuf::from);
    let begin = Instant::now();
    let options = LoadOptions {
        lanes: 32,
        precision: argument().unwrap_or_default(),
        device: argument().unwrap_or_default(),
        ..LoadOptions::new("smollm2-135m-instruct")
    };
    let LoadedModel { mut model, codec } = load(&path, &options, &|_| {})?;
    println!("loaded and warm in {:.2} s: {:?}", begin.elapsed().as_secs_f64(), codec.info());
    println!("weights: {} MiB", model.weight_bytes() >> 20);
    println!("keys and values: up to {} MiB for {} lanes", model.cache_bytes() >> 20, model.lanes());
    let prompt = codec.encode_chat(&[ChatMessage { role: ChatRole::User, content: QUESTION }])?;
    println!("{QUESTION}\n{}", answer(&mut model, &*codec, &prompt)?);
    for lanes in [1, 2, 4, 8, 16, 32] {
        let step = decode(&mut model, lanes)?;
        println!("decode, {lanes:2} lanes: {:7.1} tok/s, {step:?} per step", lanes as f64 / step.as_secs_f64());
    }
    for count in [64, PREFILL_TOKENS] {
        let tokens = vec![100; count];
        let begin = Instant::now();
        model.step(&[LaneInput { lane: 0, start: 0, tokens: &tokens, logits: 1 }], &mut Vec::new())?;
        println!("prefill of {count} tokens: {:.0} tok/s", count as f64 / begin.elapsed().as_secs_f64());
    }
    Ok(())
}

/// The first argument behind the file that names such a thing.
fn argument<T: FromStr>() -> Option<T> {
    std::env::args().skip(2).find_map(|argument| argument.parse().ok())
}

fn answer(model: &mut Model, codec: &dyn TextCodec, prompt: &[TokenId]) -> Result<String, Box<dyn Error>> {
    let (mut logits, mut bytes) = (Vec::new(), Vec::new());
    model.step(&[LaneInput { lane: 0, start: 0, tokens: prompt, logits: 1 }], &mut logits)?;
    for start in prompt.len()..prompt.len() + 64 {
        let token = largest(&logits);
        if codec.is_end(token) {
            break;
        }
        bytes.extend_from_slice(codec.token_bytes(token));
        model.step(&[LaneInput { lane: 0, start, tokens: &[token], logits: 1 }], &mut logits)?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The mean time of a decode step with this many lanes.
fn decode(model: &mut Model, lanes: usize) -> Result<Duration, Box<dyn Error>> {
    let (prompt, mut logits) = ([100; DECODE_CONTEXT], Vec::new());
    for lane in 0..lanes {
        model.step(&[LaneInput { lane, start: 0, tokens: &prompt, logits: 0 }], &mut logits)?;
    }
    let begin = Instant::now();
    for step in 0..DECODE_STEPS {
        let input = |lane| LaneInput { lane, start: DECODE_CONTEXT + step, tokens: &[200], logits: 1 };
        let inputs: Vec<_> = (0..lanes).map(input).collect();
        model.step(&inputs, &mut logits)?;
    }
    Ok(begin.elapsed() / DECODE_STEPS as u32)
}

fn largest(logits: &[f32]) -> TokenId {
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
    best.unwrap_or_default() as TokenId
}
