//! The tokenizer and the chat template against ids from an independent implementation (`fixtures/tokenizer_reference.py`).

mod support;

use std::sync::{Arc, LazyLock};

use parlance_inference_engine::{ChatMessage, ChatRole, TextCodec};
use parlance_inference_model::{ChatCodec, Precision};
use serde::Deserialize;

static CODEC: LazyLock<Arc<ChatCodec>> = LazyLock::new(|| support::model(1, 64, Precision::F32).codec);

#[derive(Deserialize)]
struct Fixture {
    texts: Vec<TextCase>,
    chats: Vec<ChatCase>,
}

#[derive(Deserialize)]
struct TextCase {
    text: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct ChatCase {
    messages: Vec<Said>,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Said {
    role: ChatRole,
    content: String,
}

impl ChatCase {
    fn messages(&self) -> Vec<ChatMessage<'_>> {
        self.messages.iter().map(|said| ChatMessage { role: said.role, content: &said.content }).collect()
    }
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("../fixtures/tokenizer.json")).expect("the fixture is JSON")
}

fn decode(codec: &dyn TextCodec, ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|&id| codec.token_bytes(id)).copied().collect()
}

#[test]
fn encodes_and_decodes_as_the_reference_does() {
    let codec: &ChatCodec = &CODEC;
    let fixture = fixture();
    assert!(fixture.texts.len() >= 400 && fixture.chats.len() >= 14);
    for TextCase { text, ids } in &fixture.texts {
        assert_eq!(&codec.encode_text(text).expect("encodes"), ids, "{text:?}");
        let bytes = decode(codec, ids);
        // The vocabulary lacks 21 bytes; what it has must come back.
        let kept: Vec<u8> = text.bytes().filter(|byte| !MISSING_BYTES.contains(byte)).collect();
        assert_eq!(bytes, kept, "{text:?}");
    }
    for case in &fixture.chats {
        let messages = case.messages();
        assert_eq!(codec.encode_chat(&messages).expect("encodes"), case.ids, "{messages:?}");
    }
}

#[test]
fn message_content_never_becomes_a_control_token() {
    let codec: &ChatCodec = &CODEC;
    let (im_start, im_end) = (1, 2);
    for case in fixture().chats {
        let messages = case.messages();
        let ids = codec.encode_chat(&messages).expect("encodes");
        // The template's own: a start and an end for each message, for the default system prompt, and a start for the reply.
        let has_system = messages[0].role == ChatRole::System;
        let turns = messages.len() + usize::from(!has_system);
        assert_eq!(ids.iter().filter(|&&id| id == im_start).count(), turns + 1, "{messages:?}");
        assert_eq!(ids.iter().filter(|&&id| id == im_end).count(), turns, "{messages:?}");
        assert!(!ids.iter().any(|id| *id == 0 || (3..17).contains(id)), "{messages:?}");
    }
}

#[test]
fn control_tokens_have_no_bytes_and_the_right_ones_end_a_reply() {
    let codec: &ChatCodec = &CODEC;
    for id in 0..17 {
        assert_eq!(codec.token_bytes(id), b"", "{id}");
        assert_eq!(codec.is_end(id), id == 0 || id == 2, "{id}");
    }
    assert!(!codec.token_bytes(17).is_empty() && !codec.is_end(17));
    assert_eq!(codec.token_bytes(u32::MAX), b"");
}

/// Bytes without a token: control characters and bytes that UTF-8 has no or little use for.
const MISSING_BYTES: [u8; 21] = [
    0x04, 0x06, 0x13, 0x14, 0x16, 0x1d, 0xc0, 0xc1, 0xf1, 0xf2, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd,
    0xfe, 0xff,
];
