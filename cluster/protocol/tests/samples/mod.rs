//! One value of every kind, with every field set to something of its own.

use std::collections::BTreeMap;

use bytes::Bytes;
use parlance_cluster_protocol::{
    Adopted, AdoptedItem, AdoptedKey, AdoptedTurn, AttemptStarted, Claim, Data, Entry, Epoch, FinishReason,
    GenerationOptions, History, Item, ItemsAdded, KeyBound, ModelTag, Nonce, Offset, Origin, OutputFormat, Progress,
    Release, Replied, Role, Seq, ServiceTier, SessionEvent, SessionKey, SessionOpened, SessionRecord, SessionUpdated,
    SlotId, TimestampMs, TurnAccepted, TurnFailed, TurnId, Usage,
};

const TURN: TurnId = TurnId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);

/// Every kind of log entry, by the name of its fixture.
pub(crate) fn entries() -> Vec<(&'static str, Entry)> {
    let epoch = Epoch { offset: Offset(300), nonce: Nonce(0xfedc_ba98_7654_3210_0123_4567_89ab_cdef) };
    let nonce = Nonce(1 << 127 | 1);
    let claim = Claim { node: "node-1".into(), nonce, prev_epoch: Some(epoch), at: TimestampMs(1_700_000_000_123) };
    let first = Claim { prev_epoch: None, ..claim.clone() };
    let data = Data { epoch, seq: Seq(77), slot: SlotId(16_383), payload: Bytes::from_static(b"payload") };
    let release = Release { epoch, seq: Seq(78), to: "node-2".into() };
    vec![
        ("entry-claim.v1", Entry::Claim(claim)),
        ("entry-claim-first.v1", Entry::Claim(first)),
        ("entry-data.v1", Entry::Data(data)),
        ("entry-release.v1", Entry::Release(release)),
    ]
}

/// Every kind of session event, by the name of its fixture.
pub(crate) fn records() -> Vec<(&'static str, SessionRecord)> {
    let events = vec![
        ("record-opened.v1", SessionEvent::Opened(opened())),
        ("record-updated.v1", SessionEvent::Updated(updated())),
        ("record-items-added.v1", SessionEvent::ItemsAdded(ItemsAdded { items: items() })),
        ("record-key-bound.v1", SessionEvent::KeyBound(key_bound())),
        ("record-turn-accepted.v1", SessionEvent::TurnAccepted(accepted())),
        ("record-turn-accepted-bare.v1", SessionEvent::TurnAccepted(accepted_bare())),
        ("record-turn-accepted-instructed.v1", SessionEvent::TurnAccepted(accepted_instructed())),
        ("record-turn-accepted-json.v1", SessionEvent::TurnAccepted(accepted_in_json())),
        ("record-turn-accepted-schema.v1", SessionEvent::TurnAccepted(accepted_with_schema())),
        ("record-turn-accepted-flex.v1", SessionEvent::TurnAccepted(accepted_flexible())),
        ("record-attempt-started.v1", SessionEvent::AttemptStarted(AttemptStarted { turn: TURN, attempt: 2 })),
        ("record-progress.v1", SessionEvent::Progress(progress())),
        ("record-replied.v1", SessionEvent::Replied(replied())),
        ("record-turn-failed.v1", SessionEvent::TurnFailed(failed())),
        ("record-deleted.v1", SessionEvent::Deleted),
        ("record-adopted.v1", SessionEvent::Adopted(adopted())),
    ];
    events.into_iter().map(|(name, event)| (name, record(event))).collect()
}

fn record(event: SessionEvent) -> SessionRecord {
    SessionRecord {
        session: SessionKey {
            tenant: "tenant".into(),
            channel: "api".into(),
            account: "account".into(),
            chat: "chät".into(),
            thread: "thread".into(),
        },
        user: Some([0xab; 32]),
        key_id: 5,
        at: TimestampMs(1_700_000_000_456),
        event,
    }
}

fn adopted() -> Adopted {
    Adopted {
        digest: [0xcd; 32],
        part: 3,
        last: true,
        state: Bytes::from_static(b"state"),
        state_left: 300,
        turns: vec![TURN, TurnId(1)],
        keys: vec![AdoptedKey { event_id: "key".into(), row: Bytes::from_static(b"outcome") }],
        items: vec![AdoptedItem { index: 512, row: Bytes::from_static(b"item") }],
        open: vec![AdoptedTurn { turn: TURN, deadline: TimestampMs(1_700_000_000_789) }],
    }
}

fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([("topic".into(), "tea".into()), ("empty".into(), String::new())])
}

fn items() -> Vec<Item> {
    let item = |role, text: &str| Item { role, text: text.into() };
    vec![
        item(Role::Tool, "{\"rain\":true}"),
        item(Role::System, "Be brief."),
        item(Role::User, "Grüße 👋"),
        item(Role::Assistant, ""),
    ]
}

fn opened() -> SessionOpened {
    SessionOpened { metadata: labels(), system_prompt: Some("Be kind.".into()), items: items() }
}

fn updated() -> SessionUpdated {
    SessionUpdated { metadata: Some(labels()), system_prompt: Some(String::new()) }
}

fn key_bound() -> KeyBound {
    KeyBound {
        body_hash: [0xcd; 32],
        target: SessionKey::api("tenant", "target"),
        turn: TURN,
        expires_at: TimestampMs(1_700_086_400_456),
    }
}

fn accepted() -> TurnAccepted {
    TurnAccepted {
        turn: TURN,
        event_id: "event-9".into(),
        body_hash: Some([0xef; 32]),
        input: items(),
        history: History::Given,
        options: GenerationOptions {
            model: "default".into(),
            max_tokens: Some(0),
            temperature: Some(0.7),
            top_p: Some(0.9),
            top_k: Some(40),
            min_p: Some(0.05),
            repetition_penalty: Some(1.1),
            presence_penalty: Some(-0.5),
            frequency_penalty: Some(2.0),
            stop: vec!["END".into(), "\n\n".into()],
            format: None,
            tier: ServiceTier::Default,
        },
        seed: u64::MAX,
        origin: Origin::Response,
        regenerates: Some(TurnId(1)),
        instructions: None,
        deadline: TimestampMs(1_700_000_300_456),
    }
}

fn accepted_bare() -> TurnAccepted {
    TurnAccepted {
        turn: TURN,
        event_id: String::new(),
        body_hash: None,
        input: Vec::new(),
        history: History::Session,
        options: GenerationOptions::default(),
        seed: 0,
        origin: Origin::WebSocket,
        regenerates: None,
        instructions: None,
        deadline: TimestampMs(0),
    }
}

fn accepted_instructed() -> TurnAccepted {
    TurnAccepted { instructions: Some("Be kind. 👋".into()), ..accepted_bare() }
}

fn accepted_in_json() -> TurnAccepted {
    let options = GenerationOptions { format: Some(OutputFormat::JsonObject), ..GenerationOptions::default() };
    TurnAccepted { options, ..accepted_bare() }
}

fn accepted_with_schema() -> TurnAccepted {
    let format = OutputFormat::JsonSchema { name: "colour".into(), schema: r#"{"enum":["rot"]}"#.into() };
    let options = GenerationOptions { format: Some(format), ..GenerationOptions::default() };
    TurnAccepted { options, ..accepted_bare() }
}

fn accepted_flexible() -> TurnAccepted {
    let options = GenerationOptions { tier: ServiceTier::Flex, ..GenerationOptions::default() };
    TurnAccepted { options, ..accepted_bare() }
}

fn model() -> ModelTag {
    ModelTag { name: "default".into(), digest: "0f".repeat(32), numerics: "cpu-int8".into() }
}

fn progress() -> Progress {
    Progress { turn: TURN, attempt: 2, model: model(), from: 64, tokens: vec![0, 1, 300, u32::MAX] }
}

fn replied() -> Replied {
    Replied {
        turn: TURN,
        attempt: 3,
        text: "Hello.\n👋".into(),
        finish: FinishReason::Length,
        usage: Usage { prompt_tokens: 11, completion_tokens: 22, cached_tokens: 7 },
        model: model(),
    }
}

fn failed() -> TurnFailed {
    TurnFailed { turn: TURN, attempt: 3, code: "model_failed".into(), message: "The model failed.".into() }
}
