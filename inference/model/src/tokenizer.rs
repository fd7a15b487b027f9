//! The tokenizer that a GGUF file describes: byte-level BPE with control tokens.
//!
//! Control tokens are found only in text that the caller vouches for ([`Tokenizer::encode_with_control`]). The BPE model knows
//! none of them, so [`Tokenizer::encode_text`] cannot produce one whatever its input says.

use std::collections::HashMap;

use tokenizers::{
    PreTokenizerWrapper, TokenizerImpl,
    models::bpe::BPE,
    normalizers::NormalizerWrapper,
    pre_tokenizers::{byte_level::ByteLevel, digits::Digits, sequence::Sequence},
    processors::PostProcessorWrapper,
};

use parlance_inference_engine::TokenId;

use crate::{ModelError, gguf::Metadata};

/// The token types of the format that are not ordinary text.
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;
/// What ends a turn in the templates in use; a file names only one of them as its end-of-sequence token.
const END_TEXTS: [&str; 8] =
    ["<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "</s>"];
/// The pre-tokenizers that are built in, as `tokenizer.ggml.pre` names them.
const SUPPORTED_PRE: &str = "smollm, gpt-2";

type Inner =
    TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, tokenizers::DecoderWrapper>;

/// Text to tokens and back.
pub(crate) struct Tokenizer {
    bpe: Inner,
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
    /// Builds the tokenizer that `metadata` describes.
    ///
    /// # Errors
    ///
    /// [`ModelError`] if the description is of another kind, incomplete or contradictory.
    pub(crate) fn from_metadata(metadata: &Metadata<'_>) -> Result<Self, ModelError> {
        let kind = metadata.string("tokenizer.ggml.model")?;
        if kind != "gpt2" {
            return Err(metadata.unsupported(format!("the tokenizer {kind:?}"), "gpt2 (byte-level BPE)"));
        }
        let tokens = metadata.strings("tokenizer.ggml.tokens")?;
        let is_control = control_flags(metadata, tokens.len())?;
        let mut bpe = Inner::new(build_bpe(metadata, tokens, &is_control)?);
        bpe.with_pre_tokenizer(Some(pre_tokenizer(metadata)?));
        let control = control_tokens(tokens, &is_control);
        let bos = special(metadata, "tokenizer.ggml.bos_token_id", tokens)?;
        let eos = special(metadata, "tokenizer.ggml.eos_token_id", tokens)?;
        let leads = metadata.bool_or_none("tokenizer.ggml.add_bos_token")?.unwrap_or(false);
        let text = |token: Option<TokenId>| token.map_or("", |token| tokens[token as usize]).to_owned();
        Ok(Self {
            bpe,
            bytes: TokenBytes::new(tokens, &is_control),
            ends: end_tokens(metadata, tokens, &control, eos)?,
            leading: bos.filter(|_| leads),
            bos_text: text(bos),
            eos_text: text(eos),
            control,
        })
    }

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
        if !text.is_empty() {
            let encoding = self.bpe.encode_fast(text, false).map_err(|error| error.to_string())?;
            out.extend(encoding.get_ids());
        }
        Ok(())
    }

    /// Encodes `text`, in which control tokens count wherever they are spelled out, as a whole prompt. Every `ignored`
    /// character is dropped after the control tokens were found; it keeps apart what shall not be read as one.
    pub(crate) fn encode_with_control(&self, text: &str, ignored: Option<char>) -> Result<Vec<TokenId>, String> {
        let mut out = Vec::with_capacity(text.len() / 3 + 1);
        let mut plain = 0;
        let mut at = 0;
        while at < text.len() {
            if let Some((control, token)) = self.control_at(&text[at..]) {
                self.encode_plain(&text[plain..at], ignored, &mut out)?;
                out.push(token);
                at += control;
                plain = at;
            } else {
                at += text[at..].chars().next().map_or(1, char::len_utf8);
            }
        }
        self.encode_plain(&text[plain..], ignored, &mut out)?;
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

    fn encode_plain(&self, text: &str, ignored: Option<char>, out: &mut Vec<TokenId>) -> Result<(), String> {
        match ignored {
            Some(ignored) if text.contains(ignored) => self.encode_text(&text.replace(ignored, ""), out),
            _ => self.encode_text(text, out),
        }
    }
}

/// Which tokens are not ordinary text, by token.
fn control_flags(metadata: &Metadata<'_>, tokens: usize) -> Result<Vec<bool>, ModelError> {
    let kinds = metadata.integers("tokenizer.ggml.token_type")?;
    if kinds.len() != tokens {
        return Err(metadata.inconsistent(format!("{tokens} tokens have {} types", kinds.len())));
    }
    Ok(kinds.iter().map(|&kind| kind == CONTROL || kind == USER_DEFINED).collect())
}

fn build_bpe(metadata: &Metadata<'_>, tokens: &[&str], is_control: &[bool]) -> Result<BPE, ModelError> {
    let text = tokens.iter().zip(is_control).enumerate().filter(|(_, (_, control))| !**control);
    let mut vocabulary = ahash::AHashMap::with_capacity(tokens.len());
    for (token, (text, _)) in text {
        if vocabulary.insert((*text).to_owned(), token as TokenId).is_some() {
            return Err(metadata.inconsistent(format!("the token {text:?} appears twice in the vocabulary")));
        }
    }
    let merges = metadata.strings("tokenizer.ggml.merges")?;
    let merges = merges.iter().map(|merge| match merge.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() => Ok((left.to_owned(), right.to_owned())),
        _ => Err(metadata.inconsistent(format!("the merge {merge:?} is not two tokens"))),
    });
    let merges = merges.collect::<Result<Vec<_>, _>>()?;
    BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .build()
        .map_err(|error| metadata.inconsistent(format!("the merges do not fit the vocabulary: {error}")))
}

/// How text is cut before BPE. The names and what they mean are llama.cpp's (`llama-vocab.cpp`).
fn pre_tokenizer(metadata: &Metadata<'_>) -> Result<PreTokenizerWrapper, ModelError> {
    let byte_level = ByteLevel::new(false, true, true);
    match metadata.string_or_none("tokenizer.ggml.pre")?.unwrap_or("gpt-2") {
        "gpt-2" => Ok(byte_level.into()),
        "smollm" => Ok(Sequence::new(vec![Digits::new(true).into(), byte_level.into()]).into()),
        other => Err(metadata.unsupported(format!("the pre-tokenizer {other:?}"), SUPPORTED_PRE)),
    }
}

fn control_tokens(tokens: &[&str], is_control: &[bool]) -> Vec<(String, TokenId)> {
    let numbered = tokens.iter().zip(is_control).enumerate();
    let control = numbered.filter(|(_, (text, control))| **control && !text.is_empty());
    let mut control: Vec<_> = control.map(|(token, (text, _))| ((*text).to_owned(), token as TokenId)).collect();
    control.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
    control
}

/// A token named in the metadata, if it is; it must exist.
fn special(metadata: &Metadata<'_>, key: &str, tokens: &[&str]) -> Result<Option<TokenId>, ModelError> {
    match metadata.u32_or_none(key)? {
        Some(token) if token as usize >= tokens.len() => {
            Err(metadata.inconsistent(format!("{key:?} is {token}, but there are {} tokens", tokens.len())))
        }
        token => Ok(token),
    }
}

fn end_tokens(
    metadata: &Metadata<'_>,
    tokens: &[&str],
    control: &[(String, TokenId)],
    eos: Option<TokenId>,
) -> Result<Vec<TokenId>, ModelError> {
    let named = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
    let mut ends: Vec<TokenId> = eos.into_iter().collect();
    for key in named {
        ends.extend(special(metadata, key, tokens)?);
    }
    ends.extend(control.iter().filter(|(text, _)| END_TEXTS.contains(&text.as_str())).map(|(_, token)| *token));
    if ends.is_empty() {
        return Err(metadata.inconsistent("no token ends a reply"));
    }
    ends.sort_unstable();
    ends.dedup();
    Ok(ends)
}

/// The bytes of all tokens, end to end.
struct TokenBytes {
    bytes: Vec<u8>,
    /// Where each token ends in `bytes`; it begins where the one before ends.
    ends: Vec<u32>,
}

impl TokenBytes {
    fn new(tokens: &[&str], is_control: &[bool]) -> Self {
        let decode = byte_of_char();
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(tokens.len());
        for (text, control) in tokens.iter().zip(is_control) {
            if !control {
                bytes.extend(text.chars().filter_map(|char| decode.get(&char)));
            }
            ends.push(bytes.len() as u32);
        }
        Self { bytes, ends }
    }

    fn get(&self, token: TokenId) -> &[u8] {
        let token = token as usize;
        let Some(&end) = self.ends.get(token) else { return &[] };
        let begin = if token == 0 { 0 } else { self.ends[token - 1] };
        &self.bytes[begin as usize..end as usize]
    }
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
