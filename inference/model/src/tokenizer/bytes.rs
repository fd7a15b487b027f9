//! What each token stands for in the reply's text.

use std::collections::HashMap;

use parlance_inference_engine::TokenId;

/// How the texts of ordinary tokens spell bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// A character for each byte, as in GPT-2.
    ByteLevel,
    /// The text itself with `▁` for spaces, as in SentencePiece; `<0x0A>` is a byte.
    Pieces,
}

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Ordinary text in the vocabulary's spelling.
    Text,
    /// One byte of text for which the vocabulary has no piece.
    Byte,
    /// A control token: it has no text.
    Control,
    /// A token that is found like a control token and stands for its own text.
    Verbatim,
    /// A token that no text becomes.
    Unused,
}

impl Kind {
    /// Whether it is found by its spelling before ordinary text is cut.
    pub(super) fn is_found_whole(self) -> bool {
        matches!(self, Self::Control | Self::Verbatim)
    }
}

/// The bytes of all tokens, end to end.
pub(super) struct TokenBytes {
    bytes: Vec<u8>,
    /// Where each token ends in `bytes`; it begins where the one before ends.
    ends: Vec<u32>,
}

impl TokenBytes {
    /// From the tokens in the order of their numbers.
    pub(super) fn new<'a>(tokens: impl Iterator<Item = (&'a str, Kind)>, spelling: Spelling) -> Self {
        let decode = byte_of_char();
        let mut bytes = Vec::new();
        let mut ends = Vec::new();
        for (text, kind) in tokens {
            match (kind, spelling) {
                (Kind::Control | Kind::Unused, _) => {}
                (Kind::Verbatim, _) => bytes.extend(text.as_bytes()),
                (Kind::Byte, _) => bytes.extend(spelt_byte(text)),
                (Kind::Text, Spelling::ByteLevel) => bytes.extend(text.chars().filter_map(|char| decode.get(&char))),
                (Kind::Text, Spelling::Pieces) => bytes.extend(text.replace(SPACE, " ").bytes()),
            }
            ends.push(bytes.len() as u32);
        }
        Self { bytes, ends }
    }

    pub(super) fn get(&self, token: TokenId) -> &[u8] {
        let token = token as usize;
        let Some(&end) = self.ends.get(token) else { return &[] };
        let begin = if token == 0 { 0 } else { self.ends[token - 1] };
        &self.bytes[begin as usize..end as usize]
    }
}

/// SentencePiece's spelling of a space.
pub(super) const SPACE: char = '\u{2581}';

/// The byte that a token such as `<0x0A>` stands for.
pub(super) fn spelt_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// GPT-2's spelling of bytes: printable Latin-1 stands for itself, the other bytes for the characters from U+0100 on.
fn byte_of_char() -> HashMap<char, u8> {
    let mut spare = (0x100..).filter_map(char::from_u32);
    (0..=u8::MAX)
        .filter_map(|byte| match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => Some((char::from(byte), byte)),
            _ => spare.next().map(|char| (char, byte)),
        })
        .collect()
}
