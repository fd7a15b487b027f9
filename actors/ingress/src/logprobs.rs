//! Probabilities of tokens as JSON, in the one form that chat completions and responses share.

use parlance_inference_engine::{Likelihood, TokenLogprob};
use serde::Serialize;

/// The most alternatives that are reported with a token.
pub(crate) const MAX_ALTERNATIVES: i64 = 20;

/// The probabilities of a reply's tokens, or of those of a chunk, in a chat completion.
#[derive(Debug, Serialize)]
pub(crate) struct Logprobs {
    content: Vec<ScoredToken>,
    refusal: Option<()>,
}

/// A token with its probability, and the most probable ones in its place.
#[derive(Debug, Serialize)]
pub(crate) struct ScoredToken {
    #[serde(flatten)]
    token: Alternative,
    top_logprobs: Vec<Alternative>,
}

#[derive(Debug, Serialize)]
struct Alternative {
    /// The bytes as text; one that begins or ends inside a character shows U+FFFD there.
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl Logprobs {
    pub(crate) fn new(tokens: &[TokenLogprob]) -> Self {
        Self { content: scored(tokens), refusal: None }
    }
}

/// The probabilities of a reply's tokens.
pub(crate) fn scored(tokens: &[TokenLogprob]) -> Vec<ScoredToken> {
    tokens.iter().map(ScoredToken::from).collect()
}

impl From<&TokenLogprob> for ScoredToken {
    fn from(token: &TokenLogprob) -> Self {
        Self { token: (&token.token).into(), top_logprobs: token.top.iter().map(Alternative::from).collect() }
    }
}

impl From<&Likelihood> for Alternative {
    fn from(likelihood: &Likelihood) -> Self {
        Self {
            token: String::from_utf8_lossy(&likelihood.bytes).into_owned(),
            logprob: likelihood.logprob,
            bytes: likelihood.bytes.clone(),
        }
    }
}
