//! Replies that a JSON schema allows: which tokens may come next, whatever the model thinks of them.
//!
//! ```text
//! schema ─▶ GrammarCompiler (one per vocabulary) ─▶ Grammar (one per reply):  mask ─▶ choose ─▶ follow ─▶ mask ─▶ …
//! ```
//!
//! The grammar sees bytes, so a reply may be cut into tokens in any way; a token that ends inside a character or a keyword is as good as
//! another. What a keyword of the schema cannot be held to is refused when it is compiled, never ignored.

mod compiler;
mod expansion;
mod formats;
mod multiples;

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use llguidance::{
    JsonCompileOptions, Matcher, ParserFactory,
    api::{ParserLimits, TopLevelGrammar},
    toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie},
};
use serde_json::Value;

pub(crate) use self::compiler::GrammarCompiler;
use crate::{EngineError, TokenId};

/// The largest schema, in bytes of its JSON text.
pub const MAX_SCHEMA_BYTES: usize = 64 * 1024;
/// What stands for "never": finite, since a row that is not is a model's failure, and too little to be drawn.
pub(crate) const NEVER: f32 = f32::MIN;
/// White space between two tokens of JSON. Bounded, because small models like to go on with it for ever.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,16}";
/// A byte that no text has: marks a token that stands for no text.
const NO_TEXT: u8 = 0xff;

/// Bounds on what a caller's schema may cost: mostly under a millisecond, at worst some tenths of a second to compile and some
/// hundredths for a token, which the neighbours wait for.
fn limits() -> ParserLimits {
    ParserLimits {
        initial_lexer_fuel: 500_000,
        step_lexer_fuel: 50_000,
        step_max_items: 20_000,
        max_lexer_states: 50_000,
        max_grammar_size: 100_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// Compiles schemas for one vocabulary, where and when it is called.
struct SchemaCompiler(ParserFactory);

impl SchemaCompiler {
    /// See [`GrammarCompiler::new`].
    fn new<'a>(
        vocabulary: usize,
        bytes: impl Fn(TokenId) -> &'a [u8],
        is_end: impl Fn(TokenId) -> bool,
    ) -> Result<Self, EngineError> {
        let ids = 0..vocabulary as TokenId;
        let ends: Vec<TokenId> = ids.clone().filter(|&id| is_end(id)).collect();
        let Some(&end) = ends.first() else {
            return Err(EngineError::Schema("no token of the model ends a reply".to_owned()));
        };
        let end_word = |id: TokenId| [&[NO_TEXT][..], id.to_string().as_bytes()].concat();
        let words: Vec<_> = ids.map(|id| if is_end(id) { end_word(id) } else { bytes(id).to_vec() }).collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocabulary as u32, end), &words).with_eos_tokens(&ends);
        let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&tokens).map_err(|error| EngineError::Schema(error.to_string()))?;
        *factory.limits_mut() = limits();
        factory.quiet();
        Ok(Self(factory))
    }

    /// Compiles a JSON schema.
    ///
    /// # Errors
    ///
    /// [`EngineError::Schema`] says what it cannot be held to.
    fn compile(&self, schema: &str) -> Result<Grammar, EngineError> {
        let grammar = TopLevelGrammar::from_json_schema(read(schema).map_err(EngineError::Schema)?);
        let unsupported = |_| EngineError::Schema("its combination of keywords is not supported".to_owned());
        let parser = catch_unwind(AssertUnwindSafe(|| self.0.create_parser(grammar))).map_err(unsupported)?;
        let matcher = Matcher::new(parser);
        if let Some(error) = matcher.get_error() {
            return Err(EngineError::Schema(error));
        }
        // One that begins with nothing, such as a reference to itself, compiles all the same.
        matcher.clone().compute_mask().map_err(|_| EngineError::Schema("it leads nowhere".to_owned()))?;
        Ok(Grammar(Box::new(matcher)))
    }
}

/// Reads a schema and puts our own rules into it, or says what is wrong with it.
fn read(schema: &str) -> Result<Value, String> {
    if schema.len() > MAX_SCHEMA_BYTES {
        return Err(format!("it has {} bytes; at most {MAX_SCHEMA_BYTES} are allowed", schema.len()));
    }
    let mut schema: Value = serde_json::from_str(schema).map_err(|error| error.to_string())?;
    if !schema.is_object() {
        return Err("it is not an object".to_owned());
    }
    multiples::check(&schema)?;
    expansion::check(&schema)?;
    formats::tighten(&mut schema);
    let options =
        JsonCompileOptions { whitespace_pattern: Some(WHITE_SPACE.to_owned()), ..JsonCompileOptions::default() };
    // In place of what the caller may have put there: none of it may make the grammar more lenient than the schema.
    options.apply_to(&mut schema);
    Ok(schema)
}

/// How far a reply has come that a grammar governs.
pub struct Grammar(Box<Matcher>);

impl Grammar {
    /// Leaves only the logits of the tokens that may come next.
    ///
    /// # Errors
    ///
    /// [`EngineError::ModelFailed`] at a bound on the work for one token.
    pub(crate) fn mask(&mut self, row: &mut [f32]) -> Result<(), EngineError> {
        let allowed = self.0.compute_mask_or_eos().map_err(|error| failed(&error))?;
        for (id, logit) in row.iter_mut().enumerate() {
            // What is not finite stays, for the sampler to find.
            if logit.is_finite() && !allowed.is_allowed(id as TokenId) {
                *logit = NEVER;
            }
        }
        Ok(())
    }

    /// Goes on behind `tokens`, none of which ends the reply.
    ///
    /// # Errors
    ///
    /// [`EngineError::ModelFailed`] if one of them may not come there.
    pub(crate) fn follow(&mut self, tokens: &[TokenId]) -> Result<(), EngineError> {
        self.0.consume_tokens(tokens).map_err(|error| failed(&error))
    }

    /// Whether nothing can come next but the end.
    pub(crate) fn is_complete(&self) -> bool {
        self.0.is_stopped()
    }
}

fn failed(error: &dyn fmt::Display) -> EngineError {
    EngineError::ModelFailed(format!("the reply's schema cannot be followed any further: {error}"))
}

impl Clone for Grammar {
    /// Nothing is shared, so that two replies can be on two threads.
    fn clone(&self) -> Self {
        Self(Box::new(self.0.deep_clone()))
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").field("is_complete", &self.is_complete()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
