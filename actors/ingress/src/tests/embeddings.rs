//! Embeddings, by a model that counts.

use std::sync::{
    Arc,
    mpsc::{Receiver, Sender, channel},
};

use parlance_actors_runtime::{LoadProgress, ModelSpec};
use parlance_inference_engine::{
    EmbeddingCodec, EmbeddingEngine, EmbeddingModel, EmbeddingOptions, EngineError, ModelReplica, ReplicaInfo, TokenId,
};
use serde_json::json;

use super::{FAST, Face, scripted};
use crate::IngressOptions;

const CONTEXT: u32 = 6;
const VOCABULARY: usize = 50;

struct Letters(ReplicaInfo);

impl EmbeddingCodec for Letters {
    fn info(&self) -> &ReplicaInfo {
        &self.0
    }

    fn vocabulary(&self) -> usize {
        VOCABULARY
    }

    fn encode(&self, text: &str) -> Result<Vec<TokenId>, EngineError> {
        Ok(text.bytes().map(|byte| u32::from(byte) % VOCABULARY as u32).collect())
    }
}

/// Says the length of a text and its first token.
struct Counts {
    gate: Option<Receiver<()>>,
}

impl EmbeddingModel for Counts {
    fn dimensions(&self) -> usize {
        2
    }

    fn embed(&mut self, texts: &[&[TokenId]], vectors: &mut Vec<f32>) -> Result<(), EngineError> {
        if let Some(gate) = &self.gate {
            let _ = gate.recv();
        }
        vectors.clear();
        vectors.extend(texts.iter().flat_map(|text| [text.len() as f32, text[0] as f32]));
        Ok(())
    }
}

fn counts(queue: usize, gate: Option<Receiver<()>>) -> ModelSpec {
    let gate = std::sync::Mutex::new(gate);
    let load = move |_: &(dyn Fn(LoadProgress) + Sync)| {
        let info =
            ReplicaInfo { name: "counts".into(), digest: "d".into(), numerics: "n".into(), context_tokens: CONTEXT };
        let model = Box::new(Counts { gate: gate.lock().expect("no test panicked").take() });
        let options = EmbeddingOptions { queue, step_tokens: 1, ..EmbeddingOptions::default() };
        Ok(ModelReplica::Embedding(Arc::new(EmbeddingEngine::start(model, Arc::new(Letters(info)), options))))
    };
    ModelSpec::new("counts", Arc::new(load))
}

async fn face() -> Face {
    Face::serving(vec![scripted(FAST), counts(64, None)], IngressOptions::local([7; 32])).await
}

fn body(fields: serde_json::Value) -> String {
    let mut body = json!({ "model": "counts" });
    body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    body.to_string()
}

#[tokio::test]
async fn texts_become_vectors_in_their_order() {
    let face = face().await;
    let answer = face.post("/v1/embeddings", &[], body(json!({ "input": ["abc", "d"], "user": "me" }))).await.json();
    let expected = json!({
        "object": "list",
        "data": [
            { "object": "embedding", "index": 0, "embedding": [3.0, 47.0] },
            { "object": "embedding", "index": 1, "embedding": [1.0, 0.0] },
        ],
        "model": "counts",
        "usage": { "prompt_tokens": 4, "total_tokens": 4 },
    });
    assert_eq!(answer, expected);
    let base64 = json!({ "input": [[7, 8], [9]], "encoding_format": "base64", "dimensions": 2 });
    let answer = face.post("/v1/embeddings", &[("x-model-id", "counts")], base64.to_string()).await.json();
    // 2.0 and 7.0, little-endian.
    assert_eq!((&answer["data"][0]["embedding"], &answer["data"][1]["index"]), (&json!("AAAAQAAA4EA="), &json!(1)));
}

#[tokio::test]
async fn what_cannot_be_embedded_is_refused_by_name() {
    let face = face().await;
    let too_many: Vec<TokenId> = vec![1; 300_001];
    for (fields, code, param) in [
        (json!({ "input": "abcdefg" }), "context_length_exceeded", "input"),
        (json!({ "input": ["a", [1, 50]] }), "invalid_value", "input"),
        (json!({ "input": [[1], []] }), "invalid_value", "input"),
        (json!({ "input": too_many }), "invalid_value", "input"),
        (json!({ "input": "a", "dimensions": 1 }), "invalid_value", "dimensions"),
        (json!({ "input": "a", "model": "nobody" }), "model_not_found", "model"),
    ] {
        let answer = face.post("/v1/embeddings", &[], body(fields)).await;
        assert!((400..500).contains(&answer.status.as_u16()), "{}", answer.body);
        let (_, found, named) = answer.error();
        assert_eq!((found.as_str(), named.as_deref()), (code, Some(param)), "{}", answer.body);
    }
}

#[tokio::test]
async fn a_model_is_asked_only_for_what_it_does() {
    let face = face().await;
    let refused = face.post("/v1/embeddings", &[], body(json!({ "input": "a", "model": "scripted" }))).await;
    assert_eq!(refused.error(), (400, "invalid_value".into(), Some("model".into())));
    assert!(refused.body.contains("does not embed texts; models that do: counts"), "{}", refused.body);
    // Without a name it is the default model, which chats.
    assert_eq!(face.post("/v1/embeddings", &[], r#"{"input": "a"}"#).await.error().0, 400);
    let asked = r#"{"model": "counts", "messages": [{"role": "user", "content": "x"}]}"#;
    for headers in [&[][..], &[("x-session-id", "s")], &[("idempotency-key", "k")]] {
        let refused = face.post("/v1/chat/completions", headers, asked).await;
        assert_eq!(refused.error(), (400, "invalid_value".into(), Some("model".into())), "{headers:?}");
        assert!(refused.body.contains("does not answer messages; models that do: scripted"), "{}", refused.body);
    }
    let refused = face.post("/v1/responses", &[], r#"{"model": "counts", "input": "x"}"#).await;
    assert_eq!(refused.error(), (400, "invalid_value".into(), Some("model".into())));
    let models = face.get("/v1/models").await.json();
    let kinds: Vec<_> = models["data"].as_array().expect("models").iter().map(|model| &model["kind"]).collect();
    assert_eq!(kinds, ["embedding", "chat"]);
    assert_eq!(models["data"][0]["dimensions"], 2);
}

#[tokio::test]
async fn a_caller_that_leaves_frees_its_place() {
    let (open, gate): (Sender<()>, _) = channel();
    let face = Arc::new(Face::serving(vec![counts(1, Some(gate))], IngressOptions::local([7; 32])).await);
    let asked = body(json!({ "input": ["a", "b", "c"] }));
    let first = tokio::spawn({
        let (face, asked) = (face.clone(), asked.clone());
        async move { face.post("/v1/embeddings", &[], asked).await.status }
    });
    let waiting = || face.node.models().list()[0].load;
    let busy = async |busy: bool| {
        while (waiting().running + waiting().waiting > 0) != busy {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), busy(true)).await.expect("it begins");
    let refused = face.post("/v1/embeddings", &[], asked.clone()).await;
    assert_eq!((refused.error().0, refused.error().1.as_str()), (429, "queue_full"));
    assert!(refused.header("retry-after").is_some());
    first.abort();
    assert!(first.await.is_err_and(|ended| ended.is_cancelled()));
    // One step ends; the texts that are left are not computed.
    open.send(()).expect("the engine lives");
    tokio::time::timeout(std::time::Duration::from_secs(30), busy(false)).await.expect("its place is free");
    drop(open);
    assert_eq!(face.post("/v1/embeddings", &[], asked).await.status, 200);
}
