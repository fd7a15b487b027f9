//! A model's tokenizer: byte-level BPE or SentencePiece's BPE, with control tokens.
//!
//! Control tokens are found only in text that the caller vouches for ([`Tokenizer::encode_with_control`]). The encoders know
//! none of them, so [`Tokenizer::encode_text`] cannot produce one whatever its input says.
//!
//! A GGUF file describes it in its metadata (`gguf`), a directory in `tokenizer.json` (`json`).

mod bytes;
mod gguf;
mod json;
mod pieces;

use tokenizers::{
    PreTokenizerWrapper, TokenizerImpl, models::bpe::BPE, normalizers::NormalizerWrapper,
    processors::PostProcessorWrapper,
};

use parlance_inference_engine::TokenId;

pub(crate) use self::json::{JsonTokenizer, SpecialTokens};
use self::{
    bytes::{Kind, TokenBytes},
    pieces::Pieces,
};

/// What ends a turn in the templates in use; a file names only one of them as its end-of-sequence token.
const END_TEXTS: [&str; 8] =
    ["<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "</s>"];

type Bpe = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, tokenizers::DecoderWrapper>;

/// Turns text without control tokens into tokens.
enum Encoder {
    /// By the library.
    Library {
        /// For text that begins a prompt.
        first: Box<Bpe>,
        /// For text behind a control token, where it is cut in another way.
        later: Option<Box<Bpe>>,
    },
    /// By the scores of SentencePiece's pieces.
    Pieces(Box<Pieces>),
}

impl Encoder {
    fn encode(&self, text: &str, is_first: bool, out: &mut Vec<TokenId>) -> Result<(), String> {
        let bpe = match self {
            Self::Pieces(pieces) => {
                pieces.encode(text, out);
                return Ok(());
            }
            Self::Library { later: Some(later), .. } if !is_first => later,
            Self::Library { first, .. } => first,
        };
        let encoding = bpe.encode_fast(text, false).map_err(|error| error.to_string())?;
        out.extend(encoding.get_ids());
        Ok(())
    }
}

/// Text to tokens and back.
pub(crate) struct Tokenizer {
    encoder: Encoder,
    /// Control tokens, longest first, so that the longest match is found first.
    control: Vec<(String, TokenId)>,
    bytes: TokenBytes,
    ends: Vec<TokenId>,
    /// The token that every prompt begins with, if there is one.
    leading: Option<TokenId>,
    bos_text: String,
    eos_text: String,
}

impl Tokenizer {
    /// The text of the token that begins a sequence, for the chat template.
    pub(crate) fn bos_text(&self) -> &str {
        &self.bos_text
    }

    /// The text of the token that ends a sequence, for the chat template.
    pub(crate) fn eos_text(&self) -> &str {
        &self.eos_text
    }

    /// The texts of the control tokens.
    pub(crate) fn control_texts(&self) -> impl Iterator<Item = &str> {
        self.control.iter().map(|(text, _)| text.as_str())
    }

    /// The control token with this text.
    pub(crate) fn control_token(&self, text: &str) -> Option<TokenId> {
        self.control.iter().find(|(control, _)| control == text).map(|(_, token)| *token)
    }

    /// The bytes that a token stands for; none for control tokens and numbers beyond the vocabulary.
    pub(crate) fn token_bytes(&self, token: TokenId) -> &[u8] {
        self.bytes.get(token)
    }

    /// Whether the token ends a reply.
    pub(crate) fn is_end(&self, token: TokenId) -> bool {
        self.ends.contains(&token)
    }

    /// Encodes text in which nothing is a control token. Bytes that the vocabulary lacks are left out.
    pub(crate) fn encode_text(&self, text: &str, out: &mut Vec<TokenId>) -> Result<(), String> {
        self.encode_part(text, true, out)
    }

    fn encode_part(&self, text: &str, is_first: bool, out: &mut Vec<TokenId>) -> Result<(), String> {
        if text.is_empty() { Ok(()) } else { self.encoder.encode(text, is_first, out) }
    }

    /// Encodes `text`, in which control tokens count wherever they are spelled out, as a whole prompt. Every `ignored`
    /// character is dropped after the control tokens were found; it keeps apart what shall not be read as one.
    pub(crate) fn encode_with_control(&self, text: &str, ignored: Option<char>) -> Result<Vec<TokenId>, String> {
        let mut out = Vec::with_capacity(text.len() / 3 + 1);
        let mut plain = 0;
        let mut at = 0;
        while at < text.len() {
            if let Some((control, token)) = self.control_at(&text[at..]) {
                self.encode_plain(&text[plain..at], plain == 0, ignored, &mut out)?;
                out.push(token);
                at += control;
                plain = at;
            } else {
                at += text[at..].chars().next().map_or(1, char::len_utf8);
            }
        }
        self.encode_plain(&text[plain..], plain == 0, ignored, &mut out)?;
        if let Some(leading) = self.leading
            && out.first() != Some(&leading)
        {
            out.insert(0, leading);
        }
        Ok(out)
    }

    /// The length and number of the control token that `text` begins with.
    fn control_at(&self, text: &str) -> Option<(usize, TokenId)> {
        let (control, token) = self.control.iter().find(|(control, _)| text.starts_with(control.as_str()))?;
        Some((control.len(), *token))
    }

    fn encode_plain(
        &self,
        text: &str,
        is_first: bool,
        ignored: Option<char>,
        out: &mut Vec<TokenId>,
    ) -> Result<(), String> {
        match ignored {
            Some(ignored) if text.contains(ignored) => self.encode_part(&text.replace(ignored, ""), is_first, out),
            _ => self.encode_part(text, is_first, out),
        }
    }
}

/// The tokens that are found whole in text that is vouched for, longest first.
fn control_tokens<'a>(tokens: impl Iterator<Item = (TokenId, &'a str, Kind)>) -> Vec<(String, TokenId)> {
    let control = tokens.filter(|(_, text, kind)| kind.is_found_whole() && !text.is_empty());
    let mut control: Vec<_> = control.map(|(token, text, _)| (text.to_owned(), token)).collect();
    control.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
    control
}

/// The tokens that end a reply: those that are named, and those whose text says so.
fn end_tokens(named: impl IntoIterator<Item = TokenId>, control: &[(String, TokenId)]) -> Vec<TokenId> {
    let spelt = control.iter().filter(|(text, _)| END_TEXTS.contains(&text.as_str())).map(|(_, token)| *token);
    let mut ends: Vec<TokenId> = named.into_iter().chain(spelt).collect();
    ends.sort_unstable();
    ends.dedup();
    ends
}
