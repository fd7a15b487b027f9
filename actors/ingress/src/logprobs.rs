//! Probabilities of tokens as JSON.

use parlance_inference_engine::{Likelihood, TokenLogprob};
use serde::Serialize;

/// The probabilities of a reply's tokens, or of those of a chunk.
#[derive(Debug, Serialize)]
pub(super) struct Logprobs {
    content: Vec<Token>,
    refusal: Option<()>,
}

#[derive(Debug, Serialize)]
struct Token {
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
    pub(super) fn new(tokens: &[TokenLogprob]) -> Self {
        Self { content: tokens.iter().map(Token::from).collect(), refusal: None }
    }
}

impl From<&TokenLogprob> for Token {
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
