//! The tokenizer that a `tokenizer.json` describes, as the library `tokenizers` writes it.
//!
//! The library would find added tokens, control tokens among them, in any text. They are taken out of the description before it is
//! handed over, so that the encoder cannot produce one.

use std::collections::{BTreeMap, HashSet};

use parlance_inference_engine::TokenId;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    Bpe, Encoder, Tokenizer,
    bytes::{Kind, Spelling, TokenBytes, spelt_byte},
    control_tokens, end_tokens,
};

/// What is done to text before it is cut, as far as the supported families need it.
const NORMALIZERS: [&str; 3] = ["NFC", "Prepend", "Replace"];
/// How text is cut, as far as the supported families need it.
const PRE_TOKENIZERS: [&str; 4] = ["ByteLevel", "Digits", "Metaspace", "Split"];

/// A token that is found before ordinary text is cut.
#[derive(Debug, Clone, Deserialize)]
struct Added {
    id: TokenId,
    content: String,
    special: bool,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
}

/// What the files beside `tokenizer.json` say about single tokens.
#[derive(Debug, Default)]
pub(crate) struct SpecialTokens {
    pub(crate) bos_text: String,
    pub(crate) eos_text: String,
    /// The numbers of tokens that end a reply, besides the one of `eos_text`.
    pub(crate) ends: Vec<TokenId>,
}

/// A description that was not yet turned into a tokenizer.
pub(crate) struct JsonTokenizer {
    description: Map<String, Value>,
    added: Vec<Added>,
    /// The tokens by number.
    tokens: BTreeMap<TokenId, (String, Kind)>,
    spelling: Spelling,
}

impl JsonTokenizer {
    /// Reads a description.
    ///
    /// # Errors
    ///
    /// What is wrong with it or not supported.
    pub(crate) fn read(mut description: Map<String, Value>) -> Result<Self, String> {
        let spelling = spelling(&description)?;
        check_steps(&description, "normalizer", "normalizers", &NORMALIZERS)?;
        check_steps(&description, "pre_tokenizer", "pretokenizers", &PRE_TOKENIZERS)?;
        let added = description.insert("added_tokens".to_owned(), json!([])).unwrap_or(json!([]));
        let added: Vec<Added> = serde_json::from_value(added).map_err(|error| format!("added_tokens: {error}"))?;
        if let Some(token) = added.iter().find(|token| token.single_word || token.lstrip || token.rstrip) {
            return Err(format!("the added token {:?} takes spaces beside it, which is not supported", token.content));
        }
        let tokens = take_tokens(&mut description, &added)?;
        for unused in ["post_processor", "padding", "truncation"] {
            description.insert(unused.to_owned(), Value::Null);
        }
        Ok(Self { description, added, tokens, spelling })
    }

    /// The number of tokens that a model for this tokenizer has at least.
    pub(crate) fn least_vocabulary(&self) -> usize {
        self.tokens.last_key_value().map_or(0, |(token, _)| *token as usize + 1)
    }

    /// Builds the tokenizer.
    ///
    /// # Errors
    ///
    /// What does not fit together.
    pub(crate) fn build(self, special: SpecialTokens) -> Result<Tokenizer, String> {
        let control = control_tokens(self.tokens.iter().map(|(token, (text, kind))| (*token, text.as_str(), *kind)));
        let eos = self.added.iter().find(|token| token.content == special.eos_text).map(|token| token.id);
        let ends = end_tokens(special.ends.into_iter().chain(eos), &control);
        if ends.is_empty() {
            return Err("no token ends a reply".to_owned());
        }
        let later = without_first_space(&self.description);
        // The library borrows from the text that it reads, so it cannot take the values as they are.
        let build = |description| {
            let built = serde_json::from_str::<Bpe>(&Value::Object(description).to_string());
            built.map(Box::new).map_err(|error| error.to_string())
        };
        let encoder = Encoder::Library { first: build(self.description)?, later: later.map(build).transpose()? };
        Ok(Tokenizer {
            encoder,
            bytes: TokenBytes::new(every_number(&self.tokens), self.spelling),
            ends,
            // As transformers encodes a rendered chat: what begins a prompt is in the template.
            leading: None,
            bos_text: special.bos_text,
            eos_text: special.eos_text,
            control,
        })
    }
}

/// The tokens in the order of their numbers, with something in the gaps.
fn every_number(tokens: &BTreeMap<TokenId, (String, Kind)>) -> impl Iterator<Item = (&str, Kind)> {
    let mut next = 0;
    tokens.iter().flat_map(move |(&token, (text, kind))| {
        let gap = token - next;
        next = token + 1;
        std::iter::repeat_n(("", Kind::Unused), gap as usize).chain([(text.as_str(), *kind)])
    })
}

/// All tokens by number. Added ones are taken out of the model's vocabulary.
fn take_tokens(
    description: &mut Map<String, Value>,
    added: &[Added],
) -> Result<BTreeMap<TokenId, (String, Kind)>, String> {
    let model = description.get_mut("model").and_then(Value::as_object_mut).ok_or("it has no model")?;
    match model.get("type").and_then(Value::as_str) {
        Some("BPE") | None => {}
        Some(other) => return Err(format!("the model {other:?} is not supported; supported: BPE")),
    }
    let by_bytes = model.get("byte_fallback").and_then(Value::as_bool).unwrap_or(false);
    let taken: HashSet<&str> = added.iter().map(|token| token.content.as_str()).collect();
    if model.get("unk_token").and_then(Value::as_str).is_some_and(|unknown| taken.contains(unknown)) {
        model.insert("unk_token".to_owned(), Value::Null);
    }
    let vocabulary = model.get_mut("vocab").and_then(Value::as_object_mut).ok_or("its model has no vocabulary")?;
    vocabulary.retain(|text, _| !taken.contains(text.as_str()));
    let mut tokens = BTreeMap::new();
    for (text, number) in vocabulary.iter() {
        let kind = if by_bytes && spelt_byte(text).is_some() { Kind::Byte } else { Kind::Text };
        let token = number.as_u64().and_then(|number| TokenId::try_from(number).ok());
        insert(&mut tokens, token.ok_or_else(|| format!("the token {text:?} has no number"))?, text, kind)?;
    }
    for token in added {
        let kind = if token.special { Kind::Control } else { Kind::Verbatim };
        insert(&mut tokens, token.id, &token.content, kind)?;
    }
    Ok(tokens)
}

fn insert(
    tokens: &mut BTreeMap<TokenId, (String, Kind)>,
    token: TokenId,
    text: &str,
    kind: Kind,
) -> Result<(), String> {
    match tokens.insert(token, (text.to_owned(), kind)) {
        None => Ok(()),
        Some((other, _)) => Err(format!("the tokens {other:?} and {text:?} have the same number {token}")),
    }
}

/// How the vocabulary spells bytes shows in what turns it back.
fn spelling(description: &Map<String, Value>) -> Result<Spelling, String> {
    let decoder = description.get("decoder").unwrap_or(&Value::Null);
    let has =
        |kind: &str| steps(decoder, "decoders").any(|step| step.get("type").and_then(Value::as_str) == Some(kind));
    if has("ByteLevel") {
        Ok(Spelling::ByteLevel)
    } else if has("ByteFallback") || has("Metaspace") {
        Ok(Spelling::Pieces)
    } else {
        Err("its decoder is not supported; supported: ByteLevel, ByteFallback, Metaspace".to_owned())
    }
}

/// Refuses steps of other kinds than `supported`. There may be none.
fn check_steps(description: &Map<String, Value>, key: &str, plural: &str, supported: &[&str]) -> Result<(), String> {
    let Some(step) = description.get(key).filter(|step| !step.is_null()) else { return Ok(()) };
    let kinds = steps(step, plural).map(|step| step.get("type").and_then(Value::as_str).unwrap_or_default());
    match kinds.into_iter().find(|kind| !supported.contains(kind)) {
        None => Ok(()),
        Some(kind) => Err(format!("the {key} {kind:?} is not supported; supported: {}", supported.join(", "))),
    }
}

/// A step, or the steps of a sequence.
fn steps<'a>(step: &'a Value, plural: &str) -> impl Iterator<Item = &'a Value> {
    let several = step.get(plural).and_then(Value::as_array).map(Vec::as_slice);
    several.unwrap_or(std::slice::from_ref(step)).iter()
}

/// The description for text that is not the first of a prompt, if a space is put before that alone.
fn without_first_space(description: &Map<String, Value>) -> Option<Map<String, Value>> {
    let is_first = |step: &Value| step.get("prepend_scheme").and_then(Value::as_str) == Some("first");
    if !steps(description.get("pre_tokenizer")?, "pretokenizers").any(is_first) {
        return None;
    }
    let mut later = description.clone();
    let cut = later.get_mut("pre_tokenizer")?;
    let several = match cut.get("pretokenizers").is_some_and(Value::is_array) {
        true => cut.get_mut("pretokenizers")?.as_array_mut()?.as_mut_slice(),
        false => std::slice::from_mut(cut),
    };
    for step in several.iter_mut().filter(|step| is_first(step)) {
        step["prepend_scheme"] = json!("never");
    }
    Some(later)
}
