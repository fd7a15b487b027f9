//! Tiny random models of every family against the logits that transformers computes with them (`fixtures/families_reference.py`):
//! as directories alone and in chunked, ragged batches, and once more as GGUF files.
#![expect(clippy::print_stdout, reason = "how far the logits are apart is part of the result")]

use std::{fs, path::PathBuf};

use parlance_inference_engine::{LaneInput, TextCodec as _, TokenId};

use super::{all_rows, options};
use crate::{
    LoadedModel, Model,
    gguf::{dequantise, writer::GgufWriter},
    load,
    rope::Scaling,
    source::{Description, Source},
};

/// The largest difference that a logit may have, in parts of the logit or of 1, whichever is larger.
const TOLERANCE: f32 = 1e-4;
pub(super) const NAMES: [&str; 7] = ["llama2", "llama3", "llama-linear", "qwen2", "qwen2-window", "qwen3", "mistral"];
/// What can be said in a GGUF file, and the architecture that says it.
const AS_GGUF: [(&str, &str); 6] = [
    ("llama2", "llama"),
    ("llama3", "llama"),
    ("llama-linear", "llama"),
    ("mistral", "llama"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
];

/// A prompt and the logits of each of its positions.
pub(super) struct Expected {
    pub(super) tokens: Vec<TokenId>,
    pub(super) rows: Vec<Vec<f32>>,
}

fn fixtures() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/families"))
}

/// The model's own files and the tokenizer that all share, in one directory.
pub(super) fn assembled(name: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let own = fs::read_dir(fixtures().join(name)).expect("the fixture is there");
    let own = own.map(|entry| entry.expect("an entry").path());
    let shared = ["tokenizer.json", "tokenizer_config.json"].map(|name| fixtures().join(name));
    for file in own.chain(shared) {
        fs::copy(&file, directory.path().join(file.file_name().expect("a name"))).expect("copied");
    }
    directory
}

pub(super) fn expected(name: &str) -> Vec<Expected> {
    let bytes = fs::read(fixtures().join(name).join("logits.bin")).expect("the fixture is there");
    let words: Vec<u32> = bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let (mut rest, mut prompts) = (&words[1..], Vec::new());
    for _ in 0..words[0] {
        let (tokens, after) = rest[1..].split_at(rest[0] as usize);
        let (logits, after) = after.split_at(tokens.len() * 64);
        let rows = logits.chunks_exact(64).map(|row| row.iter().map(|bits| f32::from_bits(*bits)).collect());
        prompts.push(Expected { tokens: tokens.to_vec(), rows: rows.collect() });
        rest = after;
    }
    assert!(rest.is_empty() && prompts.len() == 3);
    prompts
}

fn load_directory(directory: &tempfile::TempDir, lanes: usize) -> LoadedModel {
    load(directory.path(), &options(lanes), &|_| {}).unwrap_or_else(|error| panic!("{error}"))
}

/// The largest difference of any logit at any position of any prompt, each alone.
pub(super) fn difference(name: &str, model: &mut Model) -> f32 {
    let mut worst = 0.0_f32;
    for prompt in expected(name) {
        let input = LaneInput { lane: 0, start: 0, tokens: &prompt.tokens, logits: 1 };
        let found = all_rows(model, &[input]);
        assert_eq!(found.len(), prompt.rows.len());
        for (found, exact) in found.iter().flatten().zip(prompt.rows.iter().flatten()) {
            worst = worst.max((found - exact).abs() / exact.abs().max(1.0));
        }
    }
    println!("{name}: largest difference {worst:e}");
    worst
}

#[test]
fn every_family_agrees_with_the_reference() {
    let differences = NAMES.map(|name| (name, difference(name, &mut load_directory(&assembled(name), 1).model)));
    assert!(differences.iter().all(|(_, difference)| *difference <= TOLERANCE), "{differences:?}");
}

#[test]
fn every_family_gives_the_same_bits_in_ragged_batches() {
    for name in NAMES {
        let mut model = load_directory(&assembled(name), 3).model;
        let prompt = &expected(name)[2].tokens;
        let alone = all_rows(&mut model, &[LaneInput { lane: 0, start: 0, tokens: prompt, logits: 1 }]);
        for chunk in [1, 7, 33] {
            let mut rows = Vec::new();
            for (number, tokens) in prompt.chunks(chunk).enumerate() {
                let beside = LaneInput { lane: 2, start: 0, tokens: &prompt[number % 5..][..9], logits: 1 };
                let input = LaneInput { lane: 1, start: number * chunk, tokens, logits: 1 };
                rows.extend(all_rows(&mut model, &[beside, input]).into_iter().skip(9));
            }
            assert_eq!(rows, alone, "{name}, chunks of {chunk}");
        }
    }
}

#[test]
fn every_family_agrees_as_a_gguf_file() {
    let differences = AS_GGUF.map(|(name, architecture)| {
        let directory = assembled(name);
        let source = Source::open(directory.path()).expect("opens");
        let bytes = gguf(&source.describe().expect("is described"), name, architecture).finish();
        let loaded = super::load_bytes(&bytes, &options(1));
        (name, difference(name, &mut loaded.unwrap_or_else(|error| panic!("{error}")).model))
    });
    assert!(differences.iter().all(|(_, difference)| *difference <= TOLERANCE), "{differences:?}");
}

#[test]
fn reads_how_transformers_4_wrote_it() {
    let directory = assembled("llama3");
    let path = directory.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
    let mut scaling = config["rope_parameters"].take();
    config["rope_theta"] = scaling["rope_theta"].take();
    config["rope_scaling"] = scaling;
    config["torch_dtype"] = config["dtype"].take();
    fs::write(&path, config.to_string()).expect("written");
    assert!(difference("llama3", &mut load_directory(&directory, 1).model) <= TOLERANCE);
}

#[test]
fn directories_have_a_codec_and_a_digest_of_their_own() {
    let (directory, other) = (assembled("qwen3"), assembled("qwen3"));
    let codec = load_directory(&directory, 1).codec;
    let text = "The rain in SEATTLE: 42";
    let tokens = codec.encode_text(text).expect("encodes");
    let bytes: Vec<u8> = tokens.iter().flat_map(|&token| codec.token_bytes(token)).copied().collect();
    assert_eq!(String::from_utf8(bytes).expect("UTF-8"), text);
    assert!(codec.is_end(2) && !codec.is_end(1) && codec.token_bytes(2).is_empty());
    assert_eq!(codec.info().digest, load_directory(&other, 1).codec.info().digest);
    fs::write(other.path().join("chat_template.jinja"), "{{ messages[0].content }}{{ eos_token }}").expect("written");
    let changed = load_directory(&other, 1).codec;
    assert_ne!(codec.info().digest, changed.info().digest);
    let hello =
        parlance_inference_engine::ChatMessage { role: parlance_inference_engine::ChatRole::User, content: "the" };
    let count = |codec: &crate::ChatCodec| codec.encode_chat(&[hello]).expect("encodes").len();
    assert_eq!((count(&changed), codec.encode_text("the").expect("encodes").len()), (3, 2));
    assert!(count(&codec) > 3);
}

/// The model once more as GGUF.
fn gguf(description: &Description<'_>, name: &str, architecture: &str) -> GgufWriter {
    let mut writer = metadata(description, architecture);
    let tensors = &description.tensors;
    let mut add = |part: &str, rows: Option<usize>| {
        let Some(tensor) = tensors.get(part) else { return };
        let mut values = vec![0.0; tensor.shape.iter().product()];
        dequantise(tensor, 0, &mut values);
        if let (Some(head), "llama") = (rows, architecture) {
            values = neighbours(&values, head, tensor.shape[0]);
        }
        let shape: Vec<u64> = tensor.shape.iter().map(|&extent| extent as u64).collect();
        writer = std::mem::take(&mut writer).tensor(part, &shape, &values);
    };
    ["token_embd.weight", "output_norm.weight", "output.weight"].into_iter().for_each(|part| add(part, None));
    for layer in 0..description.config.layers {
        for part in ["attn_norm", "attn_v", "attn_output", "attn_q_norm", "attn_k_norm", "ffn_norm", "ffn_gate"] {
            add(&format!("blk.{layer}.{part}.weight"), None);
        }
        for part in ["ffn_up.weight", "ffn_down.weight", "attn_q.bias", "attn_k.bias", "attn_v.bias"] {
            add(&format!("blk.{layer}.{part}"), None);
        }
        for part in ["attn_q", "attn_k"] {
            add(&format!("blk.{layer}.{part}.weight"), Some(description.config.head));
        }
    }
    match fs::read(fixtures().join(name).join("rope_factors.bin")) {
        Ok(factors) => writer.raw_tensor("rope_freqs.weight", &[factors.len() as u64 / 4], 0, &factors),
        Err(_) => writer,
    }
}

/// Rows of each head in the order that GGUF files of Llama have them: the first of each half, the second of each half, and so on.
fn neighbours(values: &[f32], head: usize, inputs: usize) -> Vec<f32> {
    let rows: Vec<&[f32]> = values.chunks_exact(inputs).collect();
    let heads = rows.chunks_exact(head);
    heads
        .flat_map(|head| head[..head.len() / 2].iter().zip(&head[head.len() / 2..]))
        .flat_map(|(a, b)| [*a, *b])
        .flatten()
        .copied()
        .collect()
}

fn metadata(description: &Description<'_>, architecture: &str) -> GgufWriter {
    let config = &description.config;
    let key = |part: &str| format!("{architecture}.{part}");
    let texts: Vec<String> = (0..config.vocabulary).map(|token| format!("t{token}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let writer = GgufWriter::default()
        .string("general.architecture", architecture)
        .u32(&key("block_count"), config.layers as u32)
        .u32(&key("context_length"), config.context as u32)
        .u32(&key("embedding_length"), config.hidden as u32)
        .u32(&key("feed_forward_length"), config.feed_forward as u32)
        .u32(&key("attention.head_count"), config.heads as u32)
        .u32(&key("attention.head_count_kv"), config.kv_heads as u32)
        .u32(&key("attention.key_length"), config.head as u32)
        .f32(&key("attention.layer_norm_rms_epsilon"), config.rms_epsilon)
        .f32(&key("rope.freq_base"), config.rope.base)
        .string("tokenizer.ggml.model", "gpt2")
        .strings("tokenizer.ggml.tokens", &texts)
        .i32s("tokenizer.ggml.token_type", &vec![1; texts.len()])
        .strings("tokenizer.ggml.merges", &[])
        .u32("tokenizer.ggml.eos_token_id", 2)
        .string("tokenizer.chat_template", "{{ messages[0].content }}");
    let writer = match config.rope.scaling {
        Scaling::Linear(factor) => {
            writer.string(&key("rope.scaling.type"), "linear").f32(&key("rope.scaling.factor"), factor)
        }
        _ => writer,
    };
    match config.windows[0] {
        Some(window) => writer.u32(&key("attention.sliding_window"), window as u32),
        None => writer,
    }
}
