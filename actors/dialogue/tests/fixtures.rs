//! Every stored row of every format that ever was, as committed bytes. A fixture is never changed and never removed: what was
//! written once must decode for ever.

mod samples;

use bytes::Bytes;
use parlance_actors_dialogue::{DedupeOutcome, DialogueError, Durable, HistoryItem};
use parlance_cluster_protocol::WireError;
use samples::{items, limits, outcomes, session, states};

/// The committed bytes of a fixture.
fn fixture(name: &str) -> Bytes {
    let path = format!("{}/tests/fixtures/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(&String::from_utf8_lossy(pair), 16).expect("fixtures are hexadecimal");
    digits.chunks(2).map(byte).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn decode_state(bytes: &[u8]) -> Result<Durable, DialogueError> {
    Durable::decode(session(), limits(), bytes)
}

#[test]
fn every_state_decodes_and_is_still_written_like_that() {
    for (name, state) in states() {
        let bytes = fixture(name);
        assert_eq!(decode_state(&bytes).as_ref(), Ok(&state), "{name}");
        assert_eq!(hex(&state.encode()), hex(&bytes), "{name}");
    }
}

#[test]
fn every_item_decodes_and_is_still_written_like_that() {
    for (name, item) in items() {
        let bytes = fixture(name);
        assert_eq!(HistoryItem::decode(&bytes).as_ref(), Ok(&item), "{name}");
        assert_eq!(hex(&item.encode()), hex(&bytes), "{name}");
    }
}

#[test]
fn every_dedupe_outcome_decodes_and_is_still_written_like_that() {
    for (name, outcome) in outcomes() {
        let bytes = fixture(name);
        assert_eq!(DedupeOutcome::decode(bytes.clone()).as_ref(), Ok(&outcome), "{name}");
        assert_eq!(hex(&outcome.encode()), hex(&bytes), "{name}");
    }
}

#[test]
fn no_fixture_is_left_untested() {
    let mut names: Vec<_> = states().into_iter().map(|(name, _)| name).collect();
    names.extend(items().into_iter().map(|(name, _)| name));
    names.extend(outcomes().into_iter().map(|(name, _)| name));
    names.sort_unstable();
    let files =
        std::fs::read_dir(format!("{}/tests/fixtures", env!("CARGO_MANIFEST_DIR"))).expect("the fixtures are there");
    let mut found: Vec<_> = files
        .map(|file| file.expect("the directory is readable").path())
        .map(|path| path.file_stem().expect("fixtures have names").to_string_lossy().into_owned())
        .collect();
    found.sort_unstable();
    assert_eq!(found, names);
}

/// The fixture with its first field, the format version, changed.
fn with_format(name: &str, format: u8) -> Bytes {
    let mut bytes = fixture(name).to_vec();
    assert_eq!(bytes[..2], [0x08, 1], "the format version comes first");
    bytes[1] = format;
    bytes.into()
}

/// What the three kinds of row decode to.
fn decode(name: &str, format: u8) -> Result<(), DialogueError> {
    let bytes = with_format(name, format);
    match name.split_once('-') {
        Some(("state", _)) => decode_state(&bytes).map(drop),
        Some(("item", _)) => HistoryItem::decode(&bytes).map(drop),
        _ => DedupeOutcome::decode(bytes).map(drop),
    }
}

const ONE_OF_EACH: [&str; 3] = ["state-busy.v1", "item-reply.v1", "dedupe-replied.v1"];

#[test]
fn a_newer_format_is_refused_with_the_remedy() {
    for name in ONE_OF_EACH {
        let error = decode(name, 2).expect_err("a newer format");
        assert!(matches!(error, DialogueError::Wire(WireError::Newer { found: 2, supported: 1, .. })), "{error:?}");
        assert!(error.to_string().ends_with("upgrade parlance on this node"), "{error}");
    }
}

#[test]
fn a_row_without_a_format_is_malformed() {
    for name in ONE_OF_EACH {
        let error = decode(name, 0).expect_err("no format");
        assert!(matches!(error, DialogueError::Wire(WireError::Malformed { .. })), "{error:?}");
    }
}

#[test]
fn an_item_of_an_unknown_kind_is_refused() {
    // Role and format, and field 99 where the kind would be.
    let error = HistoryItem::decode(&[0x08, 1, 0x10, 2, 0x9a, 0x06, 0]).expect_err("an unknown kind");
    assert_eq!(error, DialogueError::Wire(WireError::UnknownKind { what: "history item" }));
}

#[test]
fn a_row_that_is_damaged_decodes_or_is_refused() {
    for name in ONE_OF_EACH {
        let bytes = fixture(name);
        for at in 0..bytes.len() {
            for flip in [1, 0x80, 0xff] {
                let mut damaged = bytes.to_vec();
                damaged[at] ^= flip;
                // Whatever comes out, nothing panics, and what decodes can be written again.
                match name.split_once('-') {
                    Some(("state", _)) => drop(decode_state(&damaged).map(|state| state.encode())),
                    Some(("item", _)) => drop(HistoryItem::decode(&damaged).map(|item| item.encode())),
                    _ => drop(DedupeOutcome::decode(damaged.into()).map(|outcome| outcome.encode())),
                }
            }
        }
    }
}
