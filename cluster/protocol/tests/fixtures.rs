//! Every stored payload of every format that ever was, as committed bytes. A fixture is never changed and never removed: what was
//! written once must decode for ever.

mod samples;

use bytes::Bytes;
use parlance_cluster_protocol::{Entry, SessionRecord, WireError};
use samples::{entries, records};

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

#[test]
fn every_entry_decodes_and_is_still_written_like_that() {
    for (name, entry) in entries() {
        let bytes = fixture(name);
        assert_eq!(Entry::decode(bytes.clone()).as_ref(), Ok(&entry), "{name}");
        assert_eq!(hex(&entry.encode()), hex(&bytes), "{name}");
    }
}

#[test]
fn every_record_decodes_and_is_still_written_like_that() {
    for (name, record) in records() {
        let bytes = fixture(name);
        assert_eq!(SessionRecord::decode(bytes.clone()).as_ref(), Ok(&record), "{name}");
        assert_eq!(hex(&record.encode()), hex(&bytes), "{name}");
    }
}

#[test]
fn no_fixture_is_left_untested() {
    let mut names: Vec<_> = entries().into_iter().map(|(name, _)| name).collect();
    names.extend(records().into_iter().map(|(name, _)| name));
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

#[test]
fn a_newer_format_is_refused_with_the_remedy() {
    for (name, _) in entries() {
        let error = Entry::decode(with_format(name, 2)).expect_err("a newer format");
        assert_eq!(error, WireError::Newer { what: "log entry", found: 2, supported: 1 });
        assert!(error.to_string().ends_with("upgrade parlance on this node"), "{error}");
    }
    for (name, _) in records() {
        let error = SessionRecord::decode(with_format(name, 2)).expect_err("a newer format");
        assert_eq!(error, WireError::Newer { what: "session record", found: 2, supported: 1 });
    }
}

#[test]
fn a_payload_without_a_format_is_malformed() {
    assert!(matches!(Entry::decode(with_format("entry-claim.v1", 0)), Err(WireError::Malformed { .. })));
    assert!(matches!(SessionRecord::decode(with_format("record-replied.v1", 0)), Err(WireError::Malformed { .. })));
    assert!(matches!(Entry::decode(Bytes::new()), Err(WireError::Malformed { .. })));
    assert!(matches!(SessionRecord::decode(Bytes::new()), Err(WireError::Malformed { .. })));
}

#[test]
fn an_unknown_kind_is_refused() {
    // Field 99, empty, where the kind would be.
    let entry = Bytes::from_static(&[0x08, 1, 0x9a, 0x06, 0]);
    assert_eq!(Entry::decode(entry), Err(WireError::UnknownKind { what: "log entry" }));
    let mut record = fixture("record-deleted.v1").to_vec();
    let event = record.len() - 3;
    assert_eq!(record[event..], [0x9a, 0x01, 0], "field 19, empty, comes last");
    record[event + 1] = 0x06;
    assert_eq!(SessionRecord::decode(record.into()), Err(WireError::UnknownKind { what: "session record" }));
}

#[test]
fn an_unknown_enumeration_value_is_refused() {
    let mut record = fixture("record-items-added.v1").to_vec();
    // The first item: its role (field 1), then its text (field 2).
    let role =
        record.windows(3).position(|bytes| bytes == [0x08, 4, 0x12]).expect("the first item has the tool's role");
    record[role + 1] = 9;
    assert_eq!(SessionRecord::decode(record.into()), Err(WireError::UnknownKind { what: "Role" }));
}

#[test]
fn a_payload_that_is_cut_short_never_passes_for_whole() {
    for (name, entry) in entries() {
        let bytes = fixture(name);
        for length in 0..bytes.len() {
            assert_ne!(Entry::decode(bytes.slice(..length)).as_ref(), Ok(&entry), "{name} cut to {length}");
        }
    }
    for (name, record) in records() {
        let bytes = fixture(name);
        for length in 0..bytes.len() {
            assert_ne!(SessionRecord::decode(bytes.slice(..length)).as_ref(), Ok(&record), "{name} cut to {length}");
        }
    }
}
