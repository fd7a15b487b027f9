//! What nodes say to each other, as committed bytes: nodes of neighbouring versions work together, so none of these may change.

use bytes::Bytes;
use parlance_cluster_protocol::{
    SessionKey, WireError,
    peer::{
        Accepted, Answer, Answered, Ask, AskRecord, AskSettle, AskTurn, Asked, Bound, CheckTurn, Chunk, Command, Done,
        End, Finished, Generate, Generated, GeneratedKind, Handing, ModelName, More, MoveShard, OwnedShard, Refused,
        Report, ServedModel, Started, Unwatch, Wish, decode,
    },
};
use prost::Message;

/// A message is written as these bytes, and read from them.
fn assert_bytes<M: Message + Default + PartialEq + std::fmt::Debug>(message: &M, hex: &str) {
    let written: String = message.encode_to_vec().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(written, hex, "{message:?}");
    let byte = |pair: &[u8]| u8::from_str_radix(&String::from_utf8_lossy(pair), 16).expect("hexadecimal");
    let bytes: Bytes = hex.as_bytes().chunks(2).map(byte).collect();
    assert_eq!(decode::<M>("message", bytes).as_ref(), Ok(message));
}

fn turn() -> Bytes {
    Bytes::from_static(&[7; 16])
}

fn key() -> Bytes {
    SessionKey::api("t", "c").encode().into()
}

#[test]
fn what_is_asked() {
    let about = AskTurn { session: key(), turn: turn() };
    let record = AskRecord { record: Bytes::from_static(b"record"), create: true, behind: Some(0), prompt_tokens: 300 };
    for (asked, hex) in [
        (Asked::Record(record), "090900000000000000120f0a067265636f72641001180020ac02"),
        (
            Asked::Stop(AskTurn { turn: Bytes::new(), ..about.clone() }),
            "0909000000000000001a110a0f000174000361706900000001630000",
        ),
        (
            Asked::Watch(about),
            "09090000000000000022230a0f000174000361706900000001630000121007070707070707070707070707070707",
        ),
        (Asked::Settle(AskSettle { shard: Some(0) }), "0909000000000000002a020800"),
        (Asked::Settle(AskSettle { shard: None }), "0909000000000000002a00"),
    ] {
        assert_bytes(&Ask { stream: 9, asked: Some(asked) }, hex);
    }
}

#[test]
fn what_is_answered() {
    let refused = Refused { kind: 13, texts: vec!["sessions".into()], number: 1_000 };
    for (answered, hex) in [
        (Answered::Accepted(Accepted { turn: turn(), replayed: true }), "0a140a10070707070707070707070707070707071001"),
        (
            Answered::Bound(Bound { target: key(), turn: turn(), first: true }),
            "12250a0f0001740003617069000000016300001210070707070707070707070707070707071801",
        ),
        (Answered::Done(Done {}), "1a00"),
        (Answered::Stopped(true), "2001"),
        (Answered::Watching(false), "2800"),
        (Answered::Refused(refused), "320f080d120873657373696f6e7318e807"),
        (Answered::NotOwner(Done {}), "3a00"),
    ] {
        assert_bytes(&Answer { answered: Some(answered) }, hex);
    }
}

#[test]
fn what_is_streamed() {
    assert_bytes(&Chunk { stream: 9, text: "so far".into(), end: None }, "0909000000000000001206736f20666172");
    let outcome = Some(End::Outcome(Bytes::from_static(b"record")));
    assert_bytes(&Chunk { stream: 9, text: String::new(), end: outcome }, "0909000000000000001a067265636f7264");
    assert_bytes(
        &Chunk { stream: 9, text: String::new(), end: Some(End::Interrupted(Done {})) },
        "0909000000000000002200",
    );
    assert_bytes(&Unwatch { stream: 9 }, "090900000000000000");
}

#[test]
fn what_is_reported() {
    let report = Report {
        number: 5,
        owned: vec![OwnedShard { shard: 1, claimed_at: 70_000 }],
        warm: vec![2, 300],
        silent: vec!["b@0000000000000001".into()],
        handing: vec![Handing { shard: 1, to: "c@0000000000000002".into() }],
        models: vec![],
    };
    assert_bytes(
        &report,
        "08051206080110f0a2041a0302ac0222126240303030303030303030303030303030312a1608011212634030303030303030303030303030303032",
    );
}

#[test]
fn what_models_are_asked_and_answer() {
    let model = ModelName { name: "small".into(), digest: "d1".into(), numerics: "int4-1".into() };
    let generate = Generate {
        stream: 9,
        turn: Bytes::from_static(b"turn"),
        attempt: 2,
        forced: vec![5, 300],
        forced_model: Some(model.clone()),
        affinity: 7,
        left_ms: 60_000,
    };
    assert_bytes(
        &generate,
        "09090000000000000012047475726e1802220305ac022a130a05736d616c6c120264311a06696e74342d3131070000000000000038e0d403",
    );
    assert_bytes(&CheckTurn { turn: Bytes::from_static(b"turn") }, "0a047475726e");
    assert_bytes(&Answer { answered: Some(Answered::Fits(300)) }, "40ac02");
    let refused = Refused { kind: 20, texts: vec!["no".into()], number: 0 };
    let finished = Finished { by_length: true, prompt: 300, completion: 2, cached: 1 };
    for (kind, hex) in [
        (
            GeneratedKind::Started(Started { model: Some(model), continues: true, prompt_tokens: 300 }),
            "090900000000000000121a0a130a05736d616c6c120264311a06696e74342d31100118ac02",
        ),
        (
            GeneratedKind::More(More { ids: vec![5, 300], text: "so".into() }),
            "0909000000000000001a090a0305ac021202736f",
        ),
        (GeneratedKind::Finished(finished), "0909000000000000002209080110ac0218022001"),
        (GeneratedKind::Failed(refused), "0909000000000000002a06081412026e6f"),
        (GeneratedKind::Died(Done {}), "0909000000000000003200"),
    ] {
        assert_bytes(&Generated { stream: 9, kind: Some(kind) }, hex);
    }
    let served = ServedModel { names: vec!["small".into(), "default".into()], running: 3, waiting: 1 };
    assert_bytes(&Report { models: vec![served], ..Report::default() }, "32140a05736d616c6c0a0764656661756c7410031801");
}

#[test]
fn what_operators_want() {
    assert_bytes(&Command { wish: Some(Wish::Drain(true)) }, "0801");
    let wish = Some(Wish::Move(MoveShard { shard: 3, to: "c".into() }));
    assert_bytes(&Command { wish }, "12050803120163");
}

#[test]
fn what_is_no_message_is_refused_and_what_a_later_version_adds_is_ignored() {
    let broken = decode::<Report>("report", Bytes::from_static(&[0x12, 0xff]));
    assert!(matches!(broken, Err(WireError::Malformed { what: "report", .. })), "{broken:?}");
    // Field 99, with a number.
    let later = Bytes::from_static(&[0x08, 5, 0x98, 0x06, 1]);
    assert_eq!(decode("report", later), Ok(Report { number: 5, ..Report::default() }));
}
