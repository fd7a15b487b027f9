//! Tokenizers of every kind against the ids of independent implementations (`fixtures/families_tokenizers.py`).

use std::path::Path;

use parlance_inference_engine::TokenId;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    gguf::{Gguf, writer::GgufWriter},
    tokenizer::{JsonTokenizer, SpecialTokens, Tokenizer},
};

#[derive(Deserialize)]
struct Fixture {
    texts: Vec<String>,
    chats: Vec<String>,
    gguf: Vec<Listed>,
    json: Vec<Described>,
}

/// A vocabulary as GGUF files list it, and the ids of every text.
#[derive(Deserialize)]
struct Listed {
    name: String,
    model: String,
    pre: String,
    tokens: Vec<String>,
    merges: Vec<String>,
    scores: Vec<f32>,
    types: Vec<i32>,
    ids: Vec<Vec<TokenId>>,
}

/// A `tokenizer.json`, and the ids of every text without and with control tokens.
#[derive(Deserialize)]
struct Described {
    name: String,
    description: Map<String, Value>,
    ids: Vec<Vec<TokenId>>,
    chats: Vec<Vec<TokenId>>,
    decoded: Vec<String>,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("../../fixtures/tokenizers.json")).expect("the fixture is JSON")
}

impl Listed {
    fn writer(&self) -> GgufWriter {
        let texts: Vec<&str> = self.tokens.iter().map(String::as_str).collect();
        let merges: Vec<&str> = self.merges.iter().map(String::as_str).collect();
        let end = texts.iter().position(|text| *text == "</s>").expect("there is an end");
        let writer = GgufWriter::default()
            .string("tokenizer.ggml.model", &self.model)
            .strings("tokenizer.ggml.tokens", &texts)
            .i32s("tokenizer.ggml.token_type", &self.types)
            .u32("tokenizer.ggml.bos_token_id", 1)
            .u32("tokenizer.ggml.eos_token_id", end as u32);
        match self.model.as_str() {
            "llama" => writer.f32s("tokenizer.ggml.scores", &self.scores),
            _ => writer.strings("tokenizer.ggml.merges", &merges).string("tokenizer.ggml.pre", &self.pre),
        }
    }
}

fn from_gguf(writer: GgufWriter) -> Result<Tokenizer, String> {
    let bytes = writer.finish();
    let gguf = Gguf::parse(Path::new("test.gguf"), &bytes).expect("parses");
    Tokenizer::from_metadata(&gguf.metadata).map_err(|error| error.to_string())
}

fn from_json(description: Map<String, Value>) -> Result<Tokenizer, String> {
    let special = SpecialTokens { bos_text: "<s>".to_owned(), eos_text: "</s>".to_owned(), ends: Vec::new() };
    JsonTokenizer::read(description)?.build(special)
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Vec<TokenId> {
    let mut ids = Vec::new();
    tokenizer.encode_text(text, &mut ids).expect("encodes");
    ids
}

fn decode(tokenizer: &Tokenizer, ids: &[TokenId]) -> String {
    let bytes = ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).copied().collect();
    String::from_utf8(bytes).expect("whole texts are UTF-8")
}

#[test]
fn every_listed_tokenizer_agrees_with_the_reference() {
    let Fixture { texts, gguf, .. } = fixture();
    assert_eq!((gguf.len(), texts.len() > 120), (6, true));
    let mut wrong = Vec::new();
    for listed in &gguf {
        let tokenizer = from_gguf(listed.writer()).unwrap_or_else(|error| panic!("{error}"));
        for (text, ids) in texts.iter().zip(&listed.ids) {
            if encode(&tokenizer, text) != *ids {
                wrong.push((&listed.name, text));
                continue;
            }
            let decoded = decode(&tokenizer, ids);
            match listed.name.as_str() {
                "llama" if !text.is_empty() => assert_eq!(decoded, format!(" {}", text.replace('\u{2581}', " "))),
                // Characters were composed.
                "qwen2" => assert_eq!(encode(&tokenizer, &decoded), *ids),
                _ => assert_eq!(decoded, *text),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn every_described_tokenizer_agrees_with_the_library() {
    let Fixture { texts, chats, json, .. } = fixture();
    assert_eq!(json.len(), 3);
    for described in json {
        let tokenizer = from_json(described.description).unwrap_or_else(|error| panic!("{error}"));
        for (text, ids) in texts.iter().zip(&described.ids) {
            assert_eq!(&encode(&tokenizer, text), ids, "{}: {text:?}", described.name);
        }
        for ((chat, ids), decoded) in chats.iter().zip(&described.chats).zip(&described.decoded) {
            assert_eq!(&tokenizer.encode_with_control(chat, None).expect("encodes"), ids, "{}: {chat}", described.name);
            assert_eq!(&decode(&tokenizer, ids), decoded, "{}: {chat}", described.name);
        }
    }
}

#[test]
fn content_never_becomes_a_control_token() {
    let Fixture { chats, gguf, json, .. } = fixture();
    let listed = gguf.iter().map(|listed| from_gguf(listed.writer()));
    for tokenizer in listed.chain(json.into_iter().map(|described| from_json(described.description))) {
        let tokenizer = tokenizer.unwrap_or_else(|error| panic!("{error}"));
        let control: Vec<String> = tokenizer.control_texts().map(str::to_owned).collect();
        assert!(control.contains(&"<s>".to_owned()));
        let control: Vec<TokenId> =
            control.iter().flat_map(|text| tokenizer.encode_with_control(text, None).expect("encodes")).collect();
        for chat in &chats {
            assert!(!encode(&tokenizer, chat).iter().any(|id| control.contains(id)), "{chat}");
        }
    }
}

#[test]
fn prompts_begin_as_the_file_says() {
    let Fixture { gguf, .. } = fixture();
    let first = |name: &str, writer: fn(GgufWriter) -> GgufWriter| {
        let listed = gguf.iter().find(|listed| listed.name == name).expect("it is there");
        let tokenizer = from_gguf(writer(listed.writer())).unwrap_or_else(|error| panic!("{error}"));
        tokenizer.encode_with_control("Hi", None).expect("encodes")[0]
    };
    let without = |writer: GgufWriter| writer.entry("tokenizer.ggml.add_bos_token", 7, &[0]);
    assert_eq!((first("llama", |writer| writer), first("llama-bpe", |writer| writer)), (1, 1));
    assert_ne!(first("llama", without), 1);
    assert_ne!(first("qwen2", |writer| writer), 1);
}

#[test]
fn refuses_tokenizers_that_it_cannot_follow() {
    let Fixture { gguf, json, .. } = fixture();
    let refused = |name: &str, writer: fn(GgufWriter) -> GgufWriter| {
        let listed = gguf.iter().find(|listed| listed.name == name).expect("it is there");
        from_gguf(writer(listed.writer())).err().expect("it is refused")
    };
    let short = refused("llama", |_| {
        GgufWriter::default()
            .string("tokenizer.ggml.model", "llama")
            .strings("tokenizer.ggml.tokens", &["a", "b"])
            .i32s("tokenizer.ggml.token_type", &[1, 1])
            .f32s("tokenizer.ggml.scores", &[0.0])
    });
    assert!(short.contains("2 tokens have 1 scores"), "{short}");
    let spaces = refused("llama", |writer| writer.entry("tokenizer.ggml.remove_extra_whitespaces", 7, &[1]));
    assert!(spaces.contains("remove_extra_whitespaces"), "{spaces}");
    let other = from_gguf(GgufWriter::default().string("tokenizer.ggml.model", "bert")).err();
    assert!(other.is_some_and(|error| error.contains("\"tokenizer.ggml.tokens\" is missing")));

    let changed = |change: fn(&mut Map<String, Value>)| {
        let mut description = json[0].description.clone();
        change(&mut description);
        from_json(description).err().expect("it is refused")
    };
    assert!(changed(|d| drop(d.remove("model"))).contains("it has no model"));
    assert!(changed(|d| d["model"]["type"] = json!("Unigram")).contains("\"Unigram\" is not supported"));
    assert!(changed(|d| d["normalizer"] = json!({"type": "Precompiled"})).contains("the normalizer \"Precompiled\""));
    let cut = changed(|d| d["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}]}));
    assert!(cut.contains("the pre_tokenizer \"Whitespace\" is not supported; supported: ByteLevel"), "{cut}");
    assert!(changed(|d| d["decoder"] = json!(null)).contains("its decoder is not supported"));
    assert!(changed(|d| d["added_tokens"][0]["lstrip"] = json!(true)).contains("takes spaces beside it"));
    assert!(changed(|d| d["added_tokens"][0]["id"] = json!(1)).contains("have the same number 1"));
    let merges = changed(|d| d["model"]["merges"] = json!([["q", "zz"]]));
    assert!(merges.contains("zz"), "{merges}");
    assert!(changed(|d| d["added_tokens"] = json!([])).contains("no token ends a reply"));
}
