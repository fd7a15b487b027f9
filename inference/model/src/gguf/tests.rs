use std::path::Path;

use proptest::prelude::*;

use super::{Gguf, writer::GgufWriter};
use crate::ModelError;

fn parse(bytes: &[u8]) -> Result<Gguf<'_>, ModelError> {
    Gguf::parse(Path::new("test.gguf"), bytes)
}

fn small_file() -> GgufWriter {
    GgufWriter::default()
        .string("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .f32("llama.rope.freq_base", 1e4)
        .entry("flag", 7, &[1])
        .entry("negative", 11, &(-5i64).to_le_bytes())
        .strings("tokenizer.ggml.tokens", &["a", "b", "ü"])
        .i32s("tokenizer.ggml.token_type", &[1, 3, -1])
        .tensor("one", &[4, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
        .raw_tensor("two", &[32], 8, &[7; 34])
}

/// The error of a file that must not parse.
fn refusal(writer: GgufWriter) -> String {
    parse(&writer.finish()).expect_err("a hostile file is refused").to_string()
}

#[test]
fn reads_what_was_written() {
    let bytes = small_file().finish();
    let gguf = parse(&bytes).expect("parses");
    let metadata = &gguf.metadata;
    assert_eq!(metadata.string("general.architecture").expect("string"), "llama");
    assert_eq!(metadata.u32("llama.block_count").expect("u32"), 2);
    assert_eq!(metadata.f32_or_none("llama.rope.freq_base").expect("f32"), Some(1e4));
    assert_eq!(metadata.bool_or_none("flag").expect("bool"), Some(true));
    assert_eq!(metadata.strings("tokenizer.ggml.tokens").expect("strings"), ["a", "b", "ü"]);
    assert_eq!(metadata.integers("tokenizer.ggml.token_type").expect("integers"), [1, 3, -1]);
    assert_eq!(metadata.u32_or_none("absent").expect("absent"), None);
    let one = gguf.tensors.get("one").expect("tensor");
    assert_eq!(one.shape, [4, 2]);
    let mut values = [0.0; 8];
    super::dequantise(one, 0, &mut values);
    assert_eq!(values, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    assert_eq!(gguf.tensors.get("two").expect("tensor").data, [7; 34]);
    let mut names: Vec<_> = gguf.tensors.names().collect();
    names.sort_unstable();
    assert_eq!(names, ["one", "two"]);
}

#[test]
fn says_what_is_wrong_with_an_entry() {
    let bytes = small_file().finish();
    let gguf = parse(&bytes).expect("parses");
    let missing = gguf.metadata.string("absent").expect_err("absent").to_string();
    assert!(missing.contains("\"absent\" is missing"), "{missing}");
    let kind = gguf.metadata.u32("general.architecture").expect_err("a string").to_string();
    assert!(kind.contains("\"general.architecture\" is a string, not an integer"), "{kind}");
    let range = gguf.metadata.u32("negative").expect_err("negative").to_string();
    assert!(range.contains("\"negative\" is -5, out of range"), "{range}");
}

#[test]
fn every_truncation_is_an_error_with_its_place() {
    let bytes = small_file().finish();
    for length in 0..bytes.len() {
        let error = parse(&bytes[..length]).expect_err("a truncated file is refused");
        match &error {
            ModelError::NotGguf { .. } => assert!(length < 4, "{length}: {error}"),
            ModelError::Truncated { at, needs, length: found, .. } => {
                assert_eq!(*found, length as u64);
                assert!(at + needs > *found, "{error}");
            }
            other => panic!("{length}: {other}"),
        }
        assert!(error.to_string().contains("test.gguf"));
    }
}

#[test]
fn refuses_what_is_not_gguf() {
    let text = parse(b"#!/bin/sh\necho").expect_err("a script").to_string();
    assert!(text.contains("is not a GGUF file: it begins with \"#!/bin/s\""), "{text}");
    let empty = parse(b"").expect_err("empty").to_string();
    assert!(empty.contains("it is empty"), "{empty}");
    let future = parse(b"GGUF\x04\0\0\0").expect_err("version 4").to_string();
    assert!(future.contains("GGUF version 4 is not supported"), "{future}");
    let big_endian = parse(b"GGUF\0\0\0\x03").expect_err("big-endian").to_string();
    assert!(big_endian.contains("little-endian"), "{big_endian}");
}

#[test]
fn refuses_huge_counts_without_allocating() {
    let header = |tensors: u64, entries: u64| {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(entries.to_le_bytes());
        parse(&bytes).expect_err("a huge count").to_string()
    };
    assert!(header(0, u64::MAX).contains("18446744073709551615 entries are more than"));
    assert!(header(u64::MAX, 0).contains("18446744073709551615 tensors are more than"));
    assert!(header(0, 4_000).contains("truncated"));

    let array = |count: u64| {
        let mut value = 8u32.to_le_bytes().to_vec();
        value.extend(count.to_le_bytes());
        refusal(GgufWriter::default().entry("k", 9, &value))
    };
    assert!(array(u64::MAX).contains("longer than the 4194304 allowed"));
    assert!(array(4_000_000).contains("truncated"));
    let string = |length: u64| refusal(GgufWriter::default().entry("k", 8, &length.to_le_bytes()));
    assert!(string(u64::MAX).contains("is longer than the 4194304 allowed"));
    assert!(string(4_000_000).contains("truncated"));
}

#[test]
fn refuses_broken_metadata() {
    let twice = refusal(GgufWriter::default().u32("k", 1).u32("k", 2));
    assert!(twice.contains("the metadata entry \"k\"") && twice.contains("appears twice"), "{twice}");
    let kind = refusal(GgufWriter::default().entry("k", 99, &[]));
    assert!(kind.contains("99 is not a type of the format"), "{kind}");
    let utf8 = refusal(GgufWriter::default().entry("k", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]));
    assert!(utf8.contains("not UTF-8"), "{utf8}");
    let boolean = refusal(GgufWriter::default().entry("k", 7, &[2]));
    assert!(boolean.contains("2 is not a boolean"), "{boolean}");
    let nested = refusal(GgufWriter::default().entry("k", 9, &[9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]));
    assert!(nested.contains("arrays of arrays"), "{nested}");
    let alignment = refusal(GgufWriter::default().u32("general.alignment", 0));
    assert!(alignment.contains("alignment 0"), "{alignment}");
}

#[test]
fn refuses_broken_tensors() {
    let one = |shape: &[u64], kind, offset| {
        refusal(GgufWriter::default().info("t", shape, kind, offset).raw_tensor("end", &[1], 0, &[0; 4]))
    };
    assert!(one(&[], 0, 0).contains("0 dimensions"));
    assert!(one(&[1, 1, 1, 1, 1], 0, 0).contains("5 dimensions"));
    assert!(one(&[0], 0, 0).contains("the shape [0] is not possible"));
    assert!(one(&[u64::MAX, u64::MAX], 0, 0).contains("is not possible"));
    assert!(one(&[1 << 61], 0, 0).contains("is not possible"));
    assert!(one(&[33], 8, 0).contains("the shape [33] is not possible for the type Q8_0"));
    assert!(one(&[1 << 40], 0, 0).contains("truncated: the data of the tensor \"t\""));
    assert!(one(&[1], 0, 1 << 20).contains("truncated: the data of the tensor \"t\""));
    assert!(one(&[1], 0, 3).contains("not a multiple of the alignment 32"));
    assert!(one(&[1], 0, u64::MAX - 31).contains("beyond any file"));
    assert!(one(&[256], 15, 0).contains("the type 15 of the tensor \"t\" is not supported; supported: F32"));
    let twice = refusal(small_file().tensor("one", &[1], &[0.0]));
    assert!(twice.contains("\"one\" appears twice"), "{twice}");
}

/// `fixtures/quants_reference.py` describes the layout.
#[test]
fn reads_every_type_as_ggml_does() {
    let mut rest: &[u8] = include_bytes!("../../fixtures/quants.bin");
    let mut types = 0;
    while let Some((header, after)) = rest.split_first_chunk::<12>() {
        let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let (kind, bytes, count) = (number(0), number(4) as usize, number(8) as usize);
        let (data, after) = after.split_at(bytes);
        let (expected, after) = after.split_at(4 * count);
        let expected: Vec<f32> = expected.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let file = GgufWriter::default().raw_tensor("t", &[count as u64], kind, data).finish();
        let gguf = parse(&file).expect("parses");
        let mut found = vec![0.0; count];
        super::dequantise(gguf.tensors.get("t").expect("tensor"), 0, &mut found);
        assert_eq!(found, expected, "type {kind}");
        types += 1;
        rest = after;
    }
    assert_eq!(types, 13);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn flipped_bytes_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = small_file().finish();
        for (place, value) in flips {
            let at = place.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(gguf) = parse(&bytes) {
            for info in gguf.tensors.names().filter_map(|name| gguf.tensors.get(name)) {
                let blocks = info.data.len() / info.kind.block_bytes();
                let mut values = vec![0.0; blocks * info.kind.block_values()];
                super::dequantise(info, 0, &mut values);
            }
        }
    }
}

/// Bytes of one block whose scales, at the beginning, are ordinary numbers.
fn block_bytes(bytes: Vec<u8>, scales: [u16; 2]) -> Vec<u8> {
    // An exponent from 2⁻¹⁵ to 2⁰, and either sign.
    let scales = scales.map(|scale| (scale & 0x83ff) | (scale >> 2 & 0x3c00)).map(u16::to_le_bytes);
    [scales.as_flattened(), &bytes[4..]].concat()
}

proptest! {
    #[test]
    fn weights_of_4_bits_are_the_same_as_they_stand_and_as_floats(
        bytes in proptest::collection::vec(any::<u8>(), 144), scales in any::<[u16; 2]>(),
    ) {
        let bytes = block_bytes(bytes, scales);
        // The types' numbers in the format, their values per block, and how far roundings may part them.
        for (kind, values, rounding) in [(2, 32, 0.0), (3, 32, 0.0), (12, 256, 1.0 / 1_024.0)] {
            let length = match kind { 2 => 18, 3 => 20, _ => 144 };
            let file = GgufWriter::default().raw_tensor("one", &[values], kind, &bytes[..length]).finish();
            let gguf = parse(&file).expect("parses");
            let tensor = gguf.tensors.get("one").expect("tensor");
            prop_assert!(tensor.kind.has_four_bits());
            let mut floats = vec![0.0; values as usize];
            super::dequantise(tensor, 0, &mut floats);
            for (number, floats) in floats.chunks_exact(32).enumerate() {
                let block = super::four_bits(tensor, number);
                let (step, minimum) = (block.step.to_f32(), block.minimum.to_f32());
                for (quant, float) in block.quants.into_iter().zip(floats) {
                    let found = f32::from(quant) * step + minimum;
                    let most = (f32::from(quant) * step.abs() + minimum.abs() + 1e-4) * rounding;
                    prop_assert!((found - float).abs() <= most, "type {kind}, block {number}: {found}, not {float}");
                }
            }
        }
    }
}
