//! Embeddings as JSON.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use parlance_actors_runtime::Embedded;
use serde::Serialize;

use super::request::Encoding;

#[derive(Debug, Serialize)]
pub(super) struct EmbeddingList<'a> {
    object: &'static str,
    data: Vec<EmbeddingObject<'a>>,
    model: &'a str,
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct EmbeddingObject<'a> {
    object: &'static str,
    index: usize,
    embedding: Vector<'a>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Vector<'a> {
    Float(&'a [f32]),
    Base64(String),
}

#[derive(Debug, Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl<'a> EmbeddingList<'a> {
    pub(super) fn new(embedded: &'a Embedded, encoding: Encoding) -> Self {
        let write = |vector: &'a [f32]| match encoding {
            Encoding::Float => Vector::Float(vector),
            Encoding::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                Vector::Base64(BASE64_STANDARD.encode(bytes))
            }
        };
        let object = |(index, vector)| EmbeddingObject { object: "embedding", index, embedding: write(vector) };
        Self {
            object: "list",
            data: embedded.embeddings.vectors().enumerate().map(object).collect(),
            model: &embedded.model.name,
            usage: Usage { prompt_tokens: embedded.tokens, total_tokens: embedded.tokens },
        }
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("finite numbers and strings always serialise")
    }
}
