//! Streams of a cluster of real nodes: over Kafka and Cassandra, with the real model, while the nodes that make them die.

use std::{collections::BTreeMap, net::TcpStream, time::Duration};

use futures_util::StreamExt as _;
use parlance_cluster_protocol::{SessionKey, shard_of_slot};
use parlance_cluster_testkit::{Cluster, Plan, Stores};
use serde_json::{Value, json};

/// Where `make services` has them.
const KAFKA: &str = "127.0.0.1:19092";
const CASSANDRA: &str = "127.0.0.1:19042";
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/smollm2-135m-instruct.gguf");
const SHARDS: u16 = 8;
const NODES: [(&str, &str); 3] = [("a", "one"), ("b", "two"), ("c", "three")];

async fn cluster(model: &str) -> Cluster {
    for (name, address) in [("Kafka", KAFKA), ("Cassandra", CASSANDRA)] {
        assert!(TcpStream::connect(address).is_ok(), "{name} does not answer at {address}: make services");
    }
    // Fails where another test of this process has done it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let stores = Stores::fresh(&[KAFKA], &[CASSANDRA]);
    let plan =
        Plan { stores, shards: SHARDS, model: model.to_owned(), ..Plan::new(env!("CARGO_BIN_EXE_parlance"), &NODES) };
    let cluster = Cluster::prepare(plan);
    cluster.start_all().await;
    cluster.wait_settled().await;
    cluster
}

/// A session in a shard of the node's.
async fn session_of(cluster: &Cluster, owner: &str) -> String {
    let owners: BTreeMap<u64, String> = cluster.owners("a").await.expect("the node answers");
    let lives_there = |session: &String| {
        let shard = shard_of_slot(SessionKey::api("default", session.as_str()).slot(), SHARDS);
        owners.get(&u64::from(shard.0)).is_some_and(|name| name == owner)
    };
    (0..1_000).map(|number| format!("chat-{number}")).find(lives_there).expect("some session lives there")
}

/// A client's event stream of one turn.
struct Watched {
    bytes: std::pin::Pin<Box<dyn futures_util::Stream<Item = reqwest::Result<Vec<u8>>>>>,
    buffer: String,
    text: String,
}

impl Watched {
    /// Asks `node` for a long reply that is drawn, by a seed.
    async fn begin(cluster: &Cluster, node: &str, session: &str) -> Self {
        let body = json!({
            "messages": [{ "role": "user", "content": "Tell me a long story about a lighthouse." }],
            "stream": true, "seed": 11, "temperature": 0.9, "max_tokens": 120,
        });
        let request = reqwest::Client::new().post(format!("{}/v1/chat/completions", cluster.url(node)));
        let response = request.header("X-Session-ID", session).json(&body).send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        let bytes = response.bytes_stream().map(|chunk| chunk.map(|chunk| chunk.to_vec()));
        Self { bytes: Box::pin(bytes), buffer: String::new(), text: String::new() }
    }

    /// Reads until there are so many bytes of text, or to `[DONE]`. Whether that has come.
    async fn read(&mut self, bytes: usize) -> bool {
        while self.text.len() < bytes {
            while let Some(end) = self.buffer.find("\n\n") {
                let frame: String = self.buffer.drain(..end + 2).collect();
                let Some(data) = frame.lines().find_map(|line| line.strip_prefix("data: ")) else { continue };
                if data == "[DONE]" {
                    return true;
                }
                let event: Value = serde_json::from_str(data).expect("JSON");
                assert!(event["error"].is_null(), "behind {:?}: {event}", self.text);
                self.text.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
            }
            if self.text.len() >= bytes {
                break;
            }
            let chunk = tokio::time::timeout(Duration::from_secs(60), self.bytes.next()).await.expect("it goes on");
            let chunk = chunk.expect("no end before [DONE]").expect("the connection holds");
            self.buffer.push_str(&String::from_utf8(chunk).expect("whole characters"));
        }
        false
    }
}

/// The last reply of a session, as recorded.
async fn recorded(cluster: &Cluster, node: &str, session: &str) -> String {
    let path = format!("/v1/conversations/{session}/items?order=desc&limit=1");
    let items = cluster.get_json(node, &path).await.expect("items");
    items["data"][0]["content"][0]["text"].as_str().expect("a reply").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_goes_on_token_for_token_when_the_session_s_node_dies() {
    let cluster = cluster(MODEL).await;
    let undisturbed = session_of(&cluster, "c").await;
    let mut whole = Watched::begin(&cluster, "a", &undisturbed).await;
    assert!(whole.read(usize::MAX).await);
    let session = session_of(&cluster, "b").await;
    let mut stream = Watched::begin(&cluster, "a", &session).await;
    assert!(!stream.read(whole.text.len() / 4).await, "it is half way");
    assert!(cluster.kill("b"));
    assert!(stream.read(usize::MAX).await, "the client's stream ends as it should");
    assert_eq!(stream.text, whole.text, "another node has made the same reply");
    assert_eq!(recorded(&cluster, "a", &session).await, whole.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_goes_on_when_its_session_moves() {
    let cluster = cluster("scripted:ttft_ms=20,token_ms=20,tokens=150").await;
    let session = session_of(&cluster, "b").await;
    let mut stream = Watched::begin(&cluster, "a", &session).await;
    assert!(!stream.read(60).await);
    assert_eq!(cluster.stop("b").await, Some(0), "it drains, and no client of another node keeps it");
    assert!(stream.read(usize::MAX).await);
    assert_eq!(recorded(&cluster, "c", &session).await, stream.text);
    let nodes = cluster.nodes("a").await.expect("the node answers");
    let standing = nodes.iter().find(|node| node["name"] == "b").map(|node| node["standing"].clone());
    assert_eq!(standing, Some(json!("left")));
}
