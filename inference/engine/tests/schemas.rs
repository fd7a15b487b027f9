//! A hundred schemas in the style of published ones: whatever a model's logits, a reply that was not cut is valid.
//!
//! The model here knows nothing: its logits are random, so that every branch of a grammar is taken sooner or later. All that it prefers
//! is to close what is open, since its texts would hardly ever end otherwise.

use std::{
    collections::BTreeSet,
    sync::{Arc, mpsc},
};

use parlance_inference_engine::{
    Block, BlockCopy, ChatMessage, Engine, EngineError, EngineOptions, EngineReplica, Finish, GenerateEvent,
    GenerateRequest, Lane, LaneInput, PreparedPrompt, Replica, ReplicaInfo, Sampling, Speculation, TextCodec, TokenId,
    TokenModel,
};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

const CONTEXT: usize = 1_500;
const LANES: usize = 8;
const SEEDS: u64 = 12;
/// The tokens behind the 256 bytes. Some join pieces of JSON, some begin or end inside a character or a keyword.
const PIECES: &[&[u8]] = &[
    b"{\"",
    b"\":",
    b"\": ",
    b"\",",
    b"\", \"",
    b"\"}",
    b"\"]",
    b"},",
    b"},{",
    b"}]",
    b"]}",
    b"[{\"",
    b"[]",
    b"{}",
    b": {",
    b"}}",
    b"]]",
    b"[[",
    b"true",
    b"false",
    b"null",
    b"tr",
    b"ue",
    b"fal",
    b"se,",
    b"nul",
    b"l}",
    b"00",
    b"12",
    b"345",
    b"-1",
    b"0.",
    b".5",
    b"e1",
    b"name",
    b"type",
    b"value",
    b"children",
    b"id",
    b"the ",
    b" and",
    b"ing",
    b"2026",
    b"-11",
    b"T12:",
    b"Z\"",
    b"\n",
    b"\n  ",
    b"  ",
    b" ",
    b"\\\"",
    b"\\n",
    b"\\u00",
    b"\xe2\x9d",
    b"\x84",
    b"\xc3\xa9",
    b"\xd0\xb8",
    b"\xe6\x9d\xb1",
    b"\xe4\xba",
    b"\xac\"",
    b"\xf0\x9f\x98",
    b"\x80",
    b"a",
    b"a",
    b"x-",
    b"@",
    b".com",
    b"http",
    b"://",
];
const END: TokenId = 256 + PIECES.len() as TokenId;
const VOCABULARY: usize = END as usize + 1;

#[derive(Deserialize)]
struct Named {
    name: String,
    schema: Value,
}

fn schemas() -> Vec<Named> {
    serde_json::from_str(include_str!("schemas.json")).expect("the file is JSON")
}

fn bytes(token: TokenId) -> Vec<u8> {
    match u8::try_from(token) {
        Ok(byte) => vec![byte],
        Err(_) => PIECES.get(token as usize - 256).map(|piece| piece.to_vec()).unwrap_or_default(),
    }
}

struct Codec {
    info: ReplicaInfo,
    bytes: Vec<Vec<u8>>,
}

impl TextCodec for Codec {
    fn info(&self) -> &ReplicaInfo {
        &self.info
    }

    fn encode_chat(&self, _messages: &[ChatMessage<'_>]) -> Result<Vec<TokenId>, EngineError> {
        Ok(vec![0])
    }

    fn token_bytes(&self, token: TokenId) -> &[u8] {
        &self.bytes[token as usize]
    }

    fn is_end(&self, token: TokenId) -> bool {
        token == END
    }
}

/// Its logits are a hash of everything in the lane, and a preference for the end. A block of its cache is a whole lane.
struct RandomModel {
    blocks: Vec<Vec<TokenId>>,
    /// By lane.
    places: Vec<Block>,
}

impl TokenModel for RandomModel {
    fn lanes(&self) -> usize {
        self.places.len()
    }

    fn block_tokens(&self) -> usize {
        CONTEXT
    }

    fn blocks(&self) -> usize {
        self.blocks.len()
    }

    fn place(&mut self, lane: Lane, blocks: &[Block]) {
        self.places[lane] = blocks[0];
    }

    fn copy(&mut self, copy: BlockCopy) {
        self.blocks[copy.to as usize] = self.blocks[copy.from as usize][..copy.positions].to_vec();
    }

    fn context_tokens(&self) -> usize {
        CONTEXT
    }

    fn vocabulary(&self) -> usize {
        VOCABULARY
    }

    fn step(&mut self, inputs: &[LaneInput<'_>], logits: &mut Vec<f32>) -> Result<(), EngineError> {
        logits.clear();
        for input in inputs {
            let lane = &mut self.blocks[self.places[input.lane] as usize];
            lane.truncate(input.start);
            lane.extend_from_slice(input.tokens);
            for length in lane.len() + 1 - input.logits..=lane.len() {
                logits.extend(row(&lane[..length]));
            }
        }
        Ok(())
    }
}

fn row(lane: &[TokenId]) -> impl Iterator<Item = f32> {
    let history: Vec<u8> = lane.iter().flat_map(|token| token.to_le_bytes()).collect();
    let digest = Sha256::digest(&history);
    (0..VOCABULARY).map(move |id| {
        let noise = f32::from(digest[id % 32] ^ (id as u8).wrapping_mul(37)) / 64.0;
        noise + if closes(id as TokenId) { 4.0 } else { 0.0 }
    })
}

fn closes(token: TokenId) -> bool {
    token == END || matches!(bytes(token)[..], [b'"' | b'}' | b']', ..])
}

fn replica() -> EngineReplica {
    replica_with(Speculation::default())
}

fn replica_with(speculation: Speculation) -> EngineReplica {
    let (name, digest, numerics) = ("random".into(), "d".into(), "n".into());
    let info = ReplicaInfo { name, digest, numerics, context_tokens: CONTEXT as u32 };
    let codec = Codec { info, bytes: (0..=END).map(bytes).collect() };
    Engine::start(
        Box::new(RandomModel { blocks: vec![Vec::new(); LANES], places: (0..LANES as Block).collect() }),
        Arc::new(codec),
        EngineOptions { speculation, ..EngineOptions::default() },
    )
}

/// A reply that is on its way.
type Pending = mpsc::Receiver<GenerateEvent>;

fn ask(replica: &EngineReplica, schema: &Value, seed: u64, forced: &[TokenId]) -> Result<Pending, EngineError> {
    let prompt = PreparedPrompt {
        tokens: vec![seed as TokenId],
        token_count: 1,
        last_user_text: String::new(),
        dropped_messages: 0,
    };
    let request = GenerateRequest {
        sampling: Sampling { temperature: 1.0, seed, ..Sampling::default() },
        grammar: Some(replica.compile(&schema.to_string())?),
        forced: forced.to_vec(),
        ..GenerateRequest::greedy("t", prompt, 1_000)
    };
    let (told, events) = mpsc::channel();
    replica.submit(request, Box::new(move |event| told.send(event).is_ok()))?;
    Ok(events)
}

struct Reply {
    ids: Vec<TokenId>,
    text: String,
    finish: Finish,
}

fn wait(events: Pending) -> Reply {
    let (mut ids, mut text) = (Vec::new(), String::new());
    for event in events {
        match event {
            GenerateEvent::Tokens { ids: more, text: next, .. } => {
                ids.extend(more);
                text.push_str(&next);
            }
            GenerateEvent::Finished { finish, .. } => return Reply { ids, text, finish },
            GenerateEvent::Failed(error) => panic!("{error}: {text}"),
        }
    }
    panic!("the engine died: {text}");
}

/// The reply's text, if it was not cut.
fn whole(events: Pending) -> Option<String> {
    let reply = wait(events);
    (reply.finish == Finish::Stop).then_some(reply.text)
}

/// What is wrong with a reply.
fn problem(validator: &jsonschema::Validator, reply: &str) -> Option<String> {
    match serde_json::from_str(reply) {
        Ok(value) => validator.iter_errors(&value).next().map(|error| error.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

#[test]
fn every_reply_that_was_not_cut_is_valid() {
    let (replica, schemas) = (replica(), schemas());
    assert_eq!(schemas.len(), 100);
    let (mut distinct, mut wrong) = (BTreeSet::new(), Vec::new());
    for Named { name, schema } in &schemas {
        let validator = jsonschema::options().should_validate_formats(true).build(schema).expect(name);
        let asked =
            (0..SEEDS).map(|seed| ask(&replica, schema, seed, &[]).unwrap_or_else(|error| panic!("{name}: {error}")));
        let replies: Vec<String> = asked.collect::<Vec<_>>().into_iter().filter_map(whole).collect();
        if replies.is_empty() {
            wrong.push(format!("{name}: every reply was cut"));
        }
        let invalid = |reply: &String| problem(&validator, reply).map(|problem| format!("{name}: {problem}: {reply}"));
        wrong.extend(replies.iter().filter_map(invalid));
        distinct.extend(replies);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Constants have one answer; nearly everything else has as many as there are seeds.
    assert!(distinct.len() as u64 > 60 * SEEDS, "the random model says the same again and again: {}", distinct.len());
}

#[test]
fn guessing_ahead_changes_no_reply() {
    // Where keys and brackets are forced, texts repeat themselves, random as the model is.
    let [plain, guessing] = [Speculation::Off, Speculation::Always].map(replica_with);
    for Named { name, schema } in schemas() {
        let asked =
            |replica| [1, 2].map(|seed| ask(replica, &schema, seed, &[]).unwrap_or_else(|error| panic!("{error}")));
        for (plain, guessed) in asked(&plain).into_iter().zip(asked(&guessing)) {
            assert_eq!(wait(guessed).ids, wait(plain).ids, "{name}");
        }
    }
}

#[test]
fn a_reply_is_continued_where_another_attempt_left_it() {
    let replica = replica();
    let Named { schema, .. } = schemas().into_iter().find(|named| named.name == "order lines").expect("it is there");
    let first = wait(ask(&replica, &schema, 5, &[]).expect("a good schema"));
    assert_eq!(first.finish, Finish::Stop, "{}", first.text);
    for cut in [1, 2, first.ids.len() / 2, first.ids.len() - 1, first.ids.len()] {
        let again = wait(ask(&replica, &schema, 5, &first.ids[..cut]).expect("a good schema"));
        assert_eq!(
            (again.ids, again.text, again.finish),
            (first.ids.clone(), first.text.clone(), Finish::Stop),
            "{cut}"
        );
    }
    // What no reply to this schema begins with is not continued.
    let events = ask(&replica, &schema, 5, &[TokenId::from(b'[')]).expect("a good schema");
    assert!(matches!(events.recv(), Ok(GenerateEvent::Failed(EngineError::ModelFailed(_)))));
}
