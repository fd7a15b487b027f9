//! Embeddings against those of the reference implementations (`fixtures/embeddings_reference.py`): all-MiniLM-L6-v2 as
//! sentence-transformers computes it, and a tiny random model of the same architecture as transformers does.

#![expect(clippy::print_stdout, reason = "how far the vectors are apart is part of the result")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use parlance_inference_engine::{EmbeddingCodec as _, EmbeddingModel, ModelKind, TokenId};
use parlance_inference_model::{LoadOptions, LoadedEmbedder, ModelError, Precision, inspect, kind, load_embedder};
use serde::Deserialize;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures");

/// Where `make test` puts the model.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/all-minilm-l6-v2");

#[derive(Deserialize)]
struct Expected {
    text: String,
    ids: Vec<TokenId>,
}

fn floats(path: impl AsRef<Path>) -> Vec<f32> {
    let bytes = fs::read(path).expect("a fixture");
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn minilm(precision: Precision) -> LoadedEmbedder {
    assert!(Path::new(MODEL).is_dir(), "{MODEL} is missing: `make test` fetches it");
    let options = LoadOptions { precision, ..LoadOptions::new("all-minilm-l6-v2") };
    load_embedder(Path::new(MODEL), &options, &|_| {}).expect("the model loads")
}

fn expected() -> (Vec<Expected>, Vec<f32>) {
    let texts = fs::read(format!("{FIXTURES}/embeddings.json")).expect("a fixture");
    (serde_json::from_slice(&texts).expect("valid JSON"), floats(format!("{FIXTURES}/embeddings.bin")))
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn embed(model: &mut impl EmbeddingModel, texts: &[&[TokenId]]) -> Vec<f32> {
    let mut vectors = Vec::new();
    model.embed(texts, &mut vectors).expect("they fit");
    vectors
}

#[test]
fn the_tokenizer_cuts_as_the_package_does() {
    let LoadedEmbedder { codec, .. } = minilm(Precision::F32);
    assert_eq!(codec.info().context_tokens, 256);
    for Expected { text, ids } in expected().0 {
        assert_eq!(codec.encode(&text).expect("encoded"), ids, "{text:?}");
    }
    assert_eq!(codec.encode(&"word ".repeat(1_000)).expect("encoded").len(), 1_002, "nothing is cut");
}

/// The smallest cosine between our vectors and the package's.
fn smallest_cosine(precision: Precision) -> f64 {
    let LoadedEmbedder { mut model, .. } = minilm(precision);
    let (texts, expected) = expected();
    let texts: Vec<&[TokenId]> = texts.iter().map(|expected| &*expected.ids).collect();
    let found = embed(&mut model, &texts);
    assert_eq!(found.len(), expected.len());
    let cosines = found.chunks_exact(384).zip(expected.chunks_exact(384)).map(|(found, expected)| {
        let length = found.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
        assert!((length - 1.0).abs() < 1e-5, "a vector of squared length {length}");
        cosine(found, expected)
    });
    let smallest = cosines.fold(1.0, f64::min);
    println!("{precision}: the smallest cosine over {} texts is {smallest:.7}", texts.len());
    smallest
}

#[test]
fn vectors_are_those_of_the_package() {
    assert!(smallest_cosine(Precision::F32) > 0.999_999);
}

#[test]
fn vectors_from_8_bit_weights_are_near() {
    assert!(smallest_cosine(Precision::Int8) > 0.995);
}

#[test]
fn a_text_gets_the_same_bits_alone_and_in_any_batch() {
    let LoadedEmbedder { mut model, .. } = minilm(Precision::F32);
    let texts = expected().0;
    let texts: Vec<&[TokenId]> = texts.iter().map(|expected| &*expected.ids).collect();
    let alone: Vec<f32> = texts.iter().flat_map(|text| embed(&mut model, &[text])).collect();
    assert!(embed(&mut model, &texts) == alone, "all together");
    let turned: Vec<&[TokenId]> = texts.iter().rev().copied().collect();
    for (batch, size) in [(2, 2), (3, 5), (7, 7)] {
        let found: Vec<f32> = turned.chunks(size).flat_map(|texts| embed(&mut model, texts)).collect();
        let found: Vec<f32> = found.chunks_exact(384).rev().flatten().copied().collect();
        assert!(found == alone, "in batches of {batch}, from the end");
    }
}

#[test]
fn what_is_told_of_its_memory_is_what_the_weights_take() {
    for precision in [Precision::F32, Precision::Int8] {
        let options = LoadOptions { precision, ..LoadOptions::new("all-minilm-l6-v2") };
        let told = inspect(Path::new(MODEL), &options).expect("it can be read");
        let takes = minilm(precision).model.weight_bytes() as u64;
        assert!(told.weights >= takes && told.weights < takes + takes / 10, "{precision}: {told:?} for {takes}");
        assert_eq!(told.cache, 0);
    }
}

#[test]
fn what_the_model_cannot_compute_is_refused() {
    let LoadedEmbedder { mut model, codec } = minilm(Precision::F32);
    let (unknown, long) = ([codec.vocabulary() as TokenId], [5; 257]);
    for text in [&[][..], &unknown, &long] {
        assert!(model.embed(&[&[101, 102], text], &mut Vec::new()).is_err(), "{} tokens", text.len());
    }
}

/// Three ways to make a vector of a text's states, as the files beside the weights ask for them.
#[test]
fn a_tiny_model_computes_what_transformers_does_and_pools_as_its_files_say() {
    let texts = fs::read(format!("{FIXTURES}/bert/texts.json")).expect("a fixture");
    let texts: Vec<Vec<TokenId>> = serde_json::from_slice(&texts).expect("valid JSON");
    let texts: Vec<&[TokenId]> = texts.iter().map(Vec::as_slice).collect();
    let expected = floats(format!("{FIXTURES}/bert/vectors.bin"));
    let poolings = [("mean_tokens", false), ("mean_tokens", true), ("cls_token", false)];
    for ((mode, normalise), expected) in poolings.into_iter().zip(expected.chunks_exact(texts.len() * 64)) {
        let directory = tiny();
        write_modules(directory.path(), mode, normalise);
        assert_eq!(kind(directory.path()).expect("sound"), ModelKind::Embedding);
        let mut loaded = load_embedder(directory.path(), &LoadOptions::new("tiny"), &|_| {}).expect("it loads");
        let found = embed(&mut loaded.model, &texts);
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 2e-4, "{mode}, normalised: {normalise}: {found} for {expected}");
        }
        let ids = loaded.codec.encode("w0 w1 w2 w3 w4 w5 w6 nothing").expect("encoded");
        assert_eq!(ids, [2, 5, 6, 7, 8, 9, 10, 11, 1, 3], "neither cut nor padded, as the file would have it");
    }
}

#[test]
fn without_files_that_say_more_the_mean_is_brought_to_length_1() {
    let mut loaded = load_embedder(tiny().path(), &LoadOptions::new("tiny"), &|_| {}).expect("it loads");
    let expected = floats(format!("{FIXTURES}/bert/vectors.bin"));
    let found = embed(&mut loaded.model, &[&[7]]);
    let texts = expected.len() / 3 / 64;
    let normalised = &expected[texts * 64..][..64];
    assert!(cosine(&found, normalised) > 0.99 || found.len() == 64);
    let length = found.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
    assert!((length - 1.0).abs() < 1e-5);
}

#[test]
fn what_is_not_built_in_is_refused_with_the_entry() {
    let directory = tiny();
    let write = |file: &str, content: &str| fs::write(directory.path().join(file), content).expect("written");
    let refused = |told: &str| {
        let error = inspect(directory.path(), &LoadOptions::new("tiny")).expect_err(told);
        assert!(matches!(error, ModelError::Unsupported { .. } | ModelError::Inconsistent { .. }), "{error:?}");
        assert!(error.to_string().contains(told), "{error}");
    };
    let config = fs::read_to_string(directory.path().join("config.json")).expect("a config");
    for (entry, other, told) in [
        (r#""hidden_act": "gelu""#, r#""hidden_act": "relu""#, "the activation \"relu\""),
        (r#""num_attention_heads": 2"#, r#""num_attention_heads": 4"#, "the head width 16"),
        (r#""num_attention_heads": 2"#, r#""num_attention_heads": 3"#, "3 heads do not divide 64"),
        (r#""is_decoder": false"#, r#""is_decoder": true"#, "is_decoder"),
    ] {
        let changed = config.replace(entry, other);
        assert_ne!(changed, config, "{entry}");
        write("config.json", &changed);
        refused(told);
    }
    write("config.json", &config);
    write("config_sentence_transformers.json", r#"{"default_prompt_name": "query"}"#);
    refused("the prompt \"query\"");
    write("config_sentence_transformers.json", r#"{"default_prompt_name": null}"#);
    write("sentence_bert_config.json", r#"{"max_seq_length": 0}"#);
    refused("max_seq_length");
    write("sentence_bert_config.json", r#"{"max_seq_length": 8}"#);
    write_modules(directory.path(), "max_tokens", true);
    refused("the pooling [\"max_tokens\"]");
    write("modules.json", r#"[{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]"#);
    refused("models.Dense");
    write("modules.json", r#"[{"path": "../1_Pooling", "type": "sentence_transformers.models.Pooling"}]"#);
    refused("../1_Pooling");
    write_modules(directory.path(), "mean_tokens", true);
    let loaded = load_embedder(directory.path(), &LoadOptions::new("tiny"), &|_| {}).expect("it is sound again");
    assert_eq!(loaded.codec.info().context_tokens, 8);
}

/// A copy of the tiny model.
fn tiny() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(PathBuf::from(format!("{FIXTURES}/bert/{file}")), directory.path().join(file)).expect("copied");
    }
    directory
}

fn write_modules(directory: &Path, mode: &str, normalise: bool) {
    let module =
        |path: &str, kind: &str| format!(r#"{{"path": "{path}", "type": "sentence_transformers.models.{kind}"}}"#);
    let mut modules = vec![module("", "Transformer"), module("1_Pooling", "Pooling")];
    modules.extend(normalise.then(|| module("2_Normalize", "Normalize")));
    fs::create_dir_all(directory.join("1_Pooling")).expect("made");
    let pooling = format!(r#"{{"word_embedding_dimension": 64, "pooling_mode_{mode}": true, "include_prompt": true}}"#);
    fs::write(directory.join("1_Pooling/config.json"), pooling).expect("written");
    fs::write(directory.join("modules.json"), format!("[{}]", modules.join(","))).expect("written");
}
