//! The tokenizer that the metadata of a GGUF file describe.

use parlance_inference_engine::TokenId;
use tokenizers::{
    PreTokenizerWrapper, SplitDelimiterBehavior,
    models::bpe::BPE,
    normalizers::NFC,
    pre_tokenizers::{
        byte_level::ByteLevel,
        digits::Digits,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use super::{
    Bpe, Encoder, Tokenizer,
    bytes::{Kind, Spelling, TokenBytes, spelt_byte},
    control_tokens, end_tokens,
    pieces::Pieces,
};
use crate::{ModelError, gguf::Metadata};

/// The pre-tokenizers that are built in, as `tokenizer.ggml.pre` names them. Names and meanings are llama.cpp's (`llama-vocab.cpp`);
/// `default` is what a file without the entry gets.
const SUPPORTED_PRE: &str = "default, gpt-2, llama-bpe, qwen2, smollm";
/// What files call the way Llama 3 cuts text; the last two are from before they agreed.
const LLAMA3_NAMES: [&str; 3] = ["llama-bpe", "llama3", "llama-v3"];
/// How Llama 3 cuts text: contractions, words with one character before them, up to three digits, runs of symbols, line ends, spaces.
const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As Llama 3, but every digit alone.
const QWEN2_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// llama.cpp's own, one after the other.
const DEFAULT_WORDS: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

/// The vocabulary as the file lists it.
struct Vocabulary<'a> {
    metadata: &'a Metadata<'a>,
    tokens: &'a [&'a str],
    kinds: Vec<Kind>,
    unknown: Option<TokenId>,
}

impl Tokenizer {
    /// Builds the tokenizer that `metadata` describes.
    ///
    /// # Errors
    ///
    /// [`ModelError`] if the description is of another kind, incomplete or contradictory.
    pub(crate) fn from_metadata(metadata: &Metadata<'_>) -> Result<Self, ModelError> {
        let vocabulary = Vocabulary::read(metadata)?;
        let (encoder, spelling, leads) = match metadata.string("tokenizer.ggml.model")? {
            "gpt2" => byte_level(&vocabulary)?,
            "llama" => (Encoder::Pieces(Box::new(vocabulary.pieces()?)), Spelling::Pieces, true),
            other => {
                let supported = "gpt2 (byte-level BPE), llama (SentencePiece BPE)";
                return Err(metadata.unsupported(format!("the tokenizer {other:?}"), supported));
            }
        };
        let control = control_tokens(vocabulary.numbered());
        let bos = vocabulary.special("tokenizer.ggml.bos_token_id")?;
        let eos = vocabulary.special("tokenizer.ggml.eos_token_id")?;
        let leads = metadata.bool_or_none("tokenizer.ggml.add_bos_token")?.unwrap_or(leads);
        Ok(Self {
            encoder,
            bytes: TokenBytes::new(vocabulary.numbered().map(|(_, text, kind)| (text, kind)), spelling),
            ends: vocabulary.ends(&control, eos)?,
            leading: bos.filter(|_| leads),
            bos_text: vocabulary.text(bos),
            eos_text: vocabulary.text(eos),
            control,
        })
    }
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata<'a>) -> Result<Self, ModelError> {
        let tokens = metadata.strings("tokenizer.ggml.tokens")?;
        let types = metadata.integers("tokenizer.ggml.token_type")?;
        if types.len() != tokens.len() {
            return Err(metadata.inconsistent(format!("{} tokens have {} types", tokens.len(), types.len())));
        }
        let kinds = types.iter().zip(tokens).map(|(number, text)| match number {
            // Old files leave the type of ordinary tokens open.
            0 | 1 => Ok(Kind::Text),
            // Unknown and control tokens.
            2 | 3 => Ok(Kind::Control),
            4 => Ok(Kind::Verbatim),
            5 => Ok(Kind::Unused),
            6 if spelt_byte(text).is_some() => Ok(Kind::Byte),
            other => Err(metadata.inconsistent(format!("the token {text:?} cannot have the type {other}"))),
        });
        let kinds = kinds.collect::<Result<_, _>>()?;
        let unknown = types.iter().position(|number| *number == 2).map(|token| token as TokenId);
        Ok(Self { metadata, tokens, kinds, unknown })
    }

    fn numbered(&self) -> impl Iterator<Item = (TokenId, &'a str, Kind)> {
        self.tokens.iter().zip(&self.kinds).enumerate().map(|(token, (text, kind))| (token as TokenId, *text, *kind))
    }

    /// The ordinary text tokens, each once.
    fn texts<T>(&self, value: impl Fn(TokenId) -> T) -> Result<ahash::AHashMap<String, T>, ModelError> {
        let mut texts = ahash::AHashMap::with_capacity(self.tokens.len());
        for (token, text, _) in self.numbered().filter(|(.., kind)| *kind == Kind::Text) {
            if texts.insert(text.to_owned(), value(token)).is_some() {
                return Err(self.metadata.inconsistent(format!("the token {text:?} appears twice in the vocabulary")));
            }
        }
        Ok(texts)
    }

    fn bpe(&self, ignore_merges: bool) -> Result<BPE, ModelError> {
        let merges = self.metadata.strings("tokenizer.ggml.merges")?;
        let merges = merges.iter().map(|merge| match merge.split_once(' ') {
            Some((left, right)) if !left.is_empty() && !right.is_empty() => Ok((left.to_owned(), right.to_owned())),
            _ => Err(self.metadata.inconsistent(format!("the merge {merge:?} is not two tokens"))),
        });
        let merges = merges.collect::<Result<Vec<_>, _>>()?;
        BPE::builder()
            .vocab_and_merges(self.texts(|token| token)?, merges)
            .ignore_merges(ignore_merges)
            .build()
            .map_err(|error| self.metadata.inconsistent(format!("the merges do not fit the vocabulary: {error}")))
    }

    fn pieces(&self) -> Result<Pieces, ModelError> {
        if self.metadata.bool_or_none("tokenizer.ggml.remove_extra_whitespaces")?.unwrap_or(false) {
            let what = "the metadata entry \"tokenizer.ggml.remove_extra_whitespaces\"";
            return Err(self.metadata.unsupported(what, "tokenizers that keep all spaces"));
        }
        let scores = self.metadata.floats("tokenizer.ggml.scores")?;
        if scores.len() != self.tokens.len() {
            let problem = format!("{} tokens have {} scores", self.tokens.len(), scores.len());
            return Err(self.metadata.inconsistent(problem));
        }
        let mut bytes = [None; 256];
        for (token, text, _) in self.numbered().filter(|(.., kind)| *kind == Kind::Byte) {
            let byte = spelt_byte(text).map(usize::from).unwrap_or_default();
            bytes[byte] = Some(token);
        }
        let space_first = self.metadata.bool_or_none("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        let texts = self.texts(|token| (token, scores[token as usize] as f32))?;
        Ok(Pieces::new(texts, bytes, self.unknown, space_first))
    }

    /// A token named in the metadata, if it is; it must exist.
    fn special(&self, key: &str) -> Result<Option<TokenId>, ModelError> {
        match self.metadata.u32_or_none(key)? {
            Some(token) if token as usize >= self.tokens.len() => {
                let problem = format!("{key:?} is {token}, but there are {} tokens", self.tokens.len());
                Err(self.metadata.inconsistent(problem))
            }
            token => Ok(token),
        }
    }

    fn text(&self, token: Option<TokenId>) -> String {
        token.map_or("", |token| self.tokens[token as usize]).to_owned()
    }

    fn ends(&self, control: &[(String, TokenId)], eos: Option<TokenId>) -> Result<Vec<TokenId>, ModelError> {
        let mut named = Vec::from_iter(eos);
        for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
            named.extend(self.special(key)?);
        }
        match end_tokens(named, control) {
            ends if ends.is_empty() => Err(self.metadata.inconsistent("no token ends a reply")),
            ends => Ok(ends),
        }
    }
}

/// Byte-level BPE, and whether prompts begin with a token of their own where the file does not say.
fn byte_level(vocabulary: &Vocabulary<'_>) -> Result<(Encoder, Spelling, bool), ModelError> {
    let pre = vocabulary.metadata.string_or_none("tokenizer.ggml.pre")?.unwrap_or("default");
    let is_llama3 = LLAMA3_NAMES.contains(&pre);
    // Llama 3 takes a word that is a token as it is, whatever its merges say.
    let mut bpe = Bpe::new(vocabulary.bpe(is_llama3)?);
    bpe.with_pre_tokenizer(Some(pre_tokenizer(vocabulary.metadata, pre)?));
    if pre == "qwen2" {
        // The model was trained on composed characters; llama.cpp leaves them as they come.
        let composed = bpe.with_normalizer(Some(NFC));
        composed.map_err(|error| vocabulary.metadata.inconsistent(error.to_string()))?;
    }
    Ok((Encoder::Library { first: Box::new(bpe), later: None }, Spelling::ByteLevel, is_llama3))
}

/// How text is cut before BPE.
fn pre_tokenizer(metadata: &Metadata<'_>, pre: &str) -> Result<PreTokenizerWrapper, ModelError> {
    let words = |pattern: &str| {
        let split = Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false);
        split.map(PreTokenizerWrapper::from).map_err(|error| metadata.inconsistent(error.to_string()))
    };
    let spell = PreTokenizerWrapper::from(ByteLevel::new(false, true, false));
    let gpt2 = PreTokenizerWrapper::from(ByteLevel::new(false, true, true));
    let steps = match pre {
        "gpt-2" => vec![gpt2],
        "smollm" => vec![Digits::new(true).into(), gpt2],
        _ if LLAMA3_NAMES.contains(&pre) => vec![words(LLAMA3_WORDS)?, spell],
        "qwen2" => vec![words(QWEN2_WORDS)?, spell],
        "default" => {
            let steps = DEFAULT_WORDS.map(words).into_iter().chain([Ok(spell)]);
            steps.collect::<Result<Vec<_>, _>>()?
        }
        other => return Err(metadata.unsupported(format!("the pre-tokenizer {other:?}"), SUPPORTED_PRE)),
    };
    Ok(Sequence::new(steps).into())
}
