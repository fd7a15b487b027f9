//! Directories that are damaged, contradictory or hostile.

use std::{fs, sync::LazyLock};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{families::assembled, options};
use crate::{inspect, load};

/// Why the directory `name` is refused once `change` was at it, both by a look and by a load.
fn refusal(name: &str, change: impl Fn(&std::path::Path)) -> String {
    let directory = assembled(name);
    change(directory.path());
    let error = load(directory.path(), &options(1), &|_| {}).err().expect("it is refused");
    chain(&error)
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// Why a changed `config.json` is refused.
fn config(name: &str, change: impl Fn(&mut Value)) -> String {
    refusal(name, |directory| edit(&directory.join("config.json"), &change))
}

fn edit(path: &std::path::Path, change: impl Fn(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).expect("read")).expect("JSON");
    change(&mut value);
    fs::write(path, value.to_string()).expect("written");
}

/// Why a container of weights is refused.
fn container(bytes: &[u8]) -> String {
    refusal("qwen2", |directory| fs::write(directory.join("model.safetensors"), bytes).expect("written"))
}

fn header(header: &Value, data: usize) -> Vec<u8> {
    let text = header.to_string();
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn refuses_incomplete_directories() {
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let error = refusal("qwen2", |directory| fs::remove_file(directory.join(file)).expect("removed"));
        assert!(error.contains(&format!("the file {file:?} is missing")), "{error}");
    }
    let error = refusal("qwen2", |directory| fs::remove_file(directory.join("model.safetensors")).expect("removed"));
    assert!(error.contains("neither \"model.safetensors\" nor \"model.safetensors.index.json\""), "{error}");
    let part = "model-00002-of-00004.safetensors";
    let error = refusal("qwen3", |directory| fs::remove_file(directory.join(part)).expect("removed"));
    assert!(error.contains(&format!("the file {part:?} is missing")), "{error}");
    let error = refusal("qwen2", |directory| fs::write(directory.join("config.json"), "{\"a\":").expect("written"));
    assert!(error.contains("config.json is not the JSON that it should be") && error.contains("line 1"), "{error}");
    let error = refusal("qwen2", |directory| {
        edit(&directory.join("tokenizer_config.json"), |config| config["chat_template"] = Value::Null);
    });
    assert!(error.contains("has no chat template"), "{error}");
}

#[test]
fn refuses_variants_by_their_keys() {
    let cases: [(&str, Value, &str); 12] = [
        ("model_type", json!("mamba"), "the model type \"mamba\" is not supported; supported: llama, mistral, qwen2"),
        ("hidden_act", json!("gelu"), "the activation \"gelu\" (\"hidden_act\")"),
        ("attention_bias", json!(true), "the entry \"attention_bias\" is not supported"),
        ("mlp_bias", json!(true), "the entry \"mlp_bias\" is not supported"),
        ("quantization_config", json!({"bits": 4}), "the entry \"quantization_config\" is not supported"),
        ("partial_rotary_factor", json!(0.5), "a part of each head"),
        ("rope_parameters", json!({"rope_type": "yarn"}), "\"yarn\" (\"rope_parameters.rope_type\") is not supported"),
        ("rope_parameters", json!({"rope_type": "linear"}), "the entry \"rope_parameters.factor\" is missing"),
        ("sliding_window", json!(8), "the entry \"sliding_window\" in a llama model"),
        ("num_hidden_layers", json!(0), "\"num_hidden_layers\" is 0, not from 1 to 1024"),
        ("hidden_size", json!("many"), "the entry \"hidden_size\" is not an integer"),
        ("head_dim", json!(20), "the head width 20 is not supported"),
    ];
    for (key, value, expected) in cases {
        let error = config("llama2", |config| config[key] = value.clone());
        assert!(error.contains(expected), "{key}: {error}");
    }
    let error = config("qwen3", |config| config["head_dim"] = Value::Null);
    assert!(error.contains("the entry \"head_dim\" is missing"), "{error}");
    let error = config("qwen2-window", |config| config["layer_types"] = json!(["full_attention"]));
    assert!(error.contains("\"layer_types\" has 1 layers, not 2"), "{error}");
    let error = config("mistral", |config| config["sliding_window"] = json!(0));
    assert!(error.contains("the sliding window must be positive"), "{error}");
}

#[test]
fn refuses_tensors_that_do_not_fit() {
    let error = config("qwen2", |config| config["intermediate_size"] = json!(64));
    let expected = "the tensor \"model.layers.0.mlp.gate_proj.weight\" has the shape [40, 32], not [64, 32]";
    assert!(error.contains(expected), "{error}");
    let error = config("llama2", |config| config["num_hidden_layers"] = json!(3));
    assert!(error.contains("the tensor \"model.layers.2.input_layernorm.weight\" is missing"), "{error}");
    let error = config("qwen2", |config| config["model_type"] = json!("mistral"));
    assert!(error.contains("_proj.bias\" (6 such tensors) is not supported"), "{error}");
    let error = config("qwen2", |config| config["vocab_size"] = json!(63));
    assert!(error.contains("it has the token 63, but \"vocab_size\" in config.json is 63"), "{error}");
    // Beside an embedding that is also the map to logits, another one is not read.
    let directory = assembled("mistral");
    edit(&directory.path().join("config.json"), |config| config["tie_word_embeddings"] = json!(true));
    assert!(load(directory.path(), &options(1), &|_| {}).is_ok());
}

#[test]
fn refuses_hostile_containers() {
    let huge = u64::MAX.to_le_bytes();
    let info = |kind: &str, shape: Value, begin: u64, end: u64| json!({"dtype": kind, "shape": shape, "data_offsets": [begin, end]});
    let overlapping = json!({"a": info("F32", json!([2]), 0, 8), "b": info("F32", json!([2]), 4, 12)});
    let overflowing = json!({"a": info("F32", json!([u64::MAX, 2]), 0, 8)});
    let (short, long) = (json!({"a": info("F32", json!([2]), 0, 8)}), json!({"a": info("F32", json!([3]), 0, 8)}));
    let cases: [(Vec<u8>, &str); 9] = [
        (Vec::new(), "header too small"),
        (b"GGUF".to_vec(), "header too small"),
        (huge.to_vec(), "header too large"),
        ([&90_000_000u64.to_le_bytes()[..], b"{}"].concat(), "invalid header length"),
        (header(&json!("no object"), 0), "invalid JSON in header"),
        (header(&overlapping, 12), "invalid offset for tensor `b`"),
        (header(&overflowing, 8), "overflow"),
        (header(&short, 7), "file not fully covered"),
        (header(&long, 8), "invalid shape, data type, or offset"),
    ];
    for (bytes, expected) in cases {
        let error = container(&bytes);
        assert!(error.contains("model.safetensors is damaged: the safetensors header"), "{error}");
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let kind = container(&header(&json!({"a": info("I32", json!([2]), 0, 8)}), 8));
    assert!(kind.contains("the type I32 of the tensor \"a\" is not supported; supported: F32, F16, BF16"), "{kind}");
}

#[test]
fn every_truncation_of_a_container_is_refused_at_a_look() {
    let directory = assembled("qwen2");
    let path = directory.path().join("model.safetensors");
    let whole = fs::read(&path).expect("read");
    assert!(inspect(directory.path(), &options(1)).is_ok());
    for length in (0..whole.len()).step_by(97) {
        fs::write(&path, &whole[..length]).expect("written");
        assert!(inspect(directory.path(), &options(1)).is_err(), "{length} bytes");
    }
}

#[test]
fn refuses_an_index_that_leads_elsewhere() {
    let index = |change: fn(&mut Value)| {
        refusal("qwen3", |directory| edit(&directory.join("model.safetensors.index.json"), change))
    };
    for name in ["../model.safetensors", "/etc/passwd", "", ".", "a/b.safetensors"] {
        let error = refusal("qwen3", |directory| {
            edit(&directory.join("model.safetensors.index.json"), |index| {
                index["weight_map"]["lm_head.weight"] = json!(name);
            });
        });
        assert!(error.contains(&format!("names the file {name:?}, which is not one beside it")), "{error}");
    }
    let moved = index(|index| index["weight_map"]["lm_head.weight"] = json!("model-00001-of-00004.safetensors"));
    assert!(moved.contains("\"lm_head.weight\" is not in \"model-00001-of-00004.safetensors\""), "{moved}");
    let shapeless = index(|index| index["weight_map"] = json!(7));
    assert!(shapeless.contains("is not the JSON that it should be"), "{shapeless}");
}

/// The directory that [`damaged_directories_never_panic`] damages and mends.
static DAMAGED: LazyLock<tempfile::TempDir> = LazyLock::new(|| assembled("qwen3"));

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn damaged_directories_never_panic(
        file in prop::sample::select(vec![
            "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json",
            "model-00001-of-00004.safetensors",
        ]),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let path = DAMAGED.path().join(file);
        let whole = fs::read(&path).expect("read");
        let mut bytes = whole.clone();
        // Most of a container is weights; what matters is before them.
        let description = bytes.len().min(3_000);
        for (place, value) in flips {
            bytes[place.index(description)] = value;
        }
        fs::write(&path, &bytes).expect("written");
        let _ = load(DAMAGED.path(), &options(1), &|_| {});
        fs::write(&path, &whole).expect("written");
    }
}
