//! A request that is being computed.

use std::time::Instant;

use crate::{
    EngineError, Grammar, LaneInput, Sampling, TextCodec, TokenId, TokenLogprob,
    blocks::Sequence,
    load::RunningGuard,
    logprobs::Distribution,
    lookup::Lookup,
    reply::{Next, Reply},
    sampling::{Occurrences, Sampler},
    speculation::MOST_GUESSED,
};

/// What a request is told whose logits are not all numbers.
pub(crate) const NOT_FINITE: &str = "the model gave a logit that is not finite";

/// A request that holds a lane.
pub(crate) struct Running {
    pub(crate) sequence: Sequence,
    pub(crate) tenant: String,
    pub(crate) sampling: Sampling,
    pub(crate) logprobs: Option<u32>,
    /// Invariant: has followed the reply's part of `tokens`.
    pub(crate) grammar: Option<Grammar>,
    pub(crate) seen: Occurrences,
    /// Prompt and reply so far.
    pub(crate) tokens: Vec<TokenId>,
    /// How many of `tokens` are in the cache. Invariant: fewer than all of them, until the reply ended.
    pub(crate) computed: usize,
    /// Tokens in this step.
    pub(crate) planned: usize,
    /// Where guesses are made. Invariant: has followed `tokens`.
    pub(crate) lookup: Option<Lookup>,
    /// The last token and the guess behind it, where this step checks one.
    pub(crate) guess: Vec<TokenId>,
    pub(crate) reply: Reply,
    pub(crate) deadline: Option<Instant>,
    pub(crate) _guard: RunningGuard,
}

/// The next token of a reply.
struct Chosen {
    token: TokenId,
    logprob: Option<TokenLogprob>,
    /// Whether the grammar allows nothing behind it.
    is_last: bool,
}

/// What a step's logits are turned into tokens with.
pub(crate) struct Chooser<'a> {
    pub(crate) sampler: &'a mut Sampler,
    pub(crate) codec: &'a dyn TextCodec,
    pub(crate) now: Instant,
}

impl Running {
    pub(crate) fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether all but the last token is computed.
    pub(crate) fn decodes(&self) -> bool {
        self.pending() == 1
    }

    pub(crate) fn input(&self) -> Option<LaneInput<'_>> {
        let end = (self.computed + self.planned).min(self.tokens.len());
        let known = &self.tokens[self.computed..end];
        let is_whole = self.planned > 0 && end == self.tokens.len();
        let (tokens, logits) = match &self.guess[..] {
            [] => (known, usize::from(is_whole)),
            guess => (guess, guess.len()),
        };
        (self.planned > 0).then_some(LaneInput { lane: self.sequence.lane, start: self.computed, tokens, logits })
    }

    /// The most positions that it may come to.
    pub(crate) fn positions(&self) -> usize {
        self.tokens.len() + self.reply.room() as usize
    }

    /// How much of the prompt is computed next, of at most `most`: up to the end of a block, where others may have gone on.
    pub(crate) fn chunk(&self, most: usize, block_tokens: usize) -> usize {
        let whole = (self.computed + most) / block_tokens * block_tokens;
        if self.pending() <= most {
            self.pending()
        } else {
            whole.checked_sub(self.computed).filter(|count| *count > 0).unwrap_or(most)
        }
    }

    /// How probable it is of each guessed token that it and those before it are right. A guess leaves room for the token behind it.
    pub(crate) fn chances(&self) -> Vec<f64> {
        let Some(lookup) = self.lookup.as_ref().filter(|_| self.decodes()) else { return Vec::new() };
        let room = (self.reply.room() as usize).saturating_sub(1);
        let length = lookup.guess(&self.tokens).len().min(room).min(MOST_GUESSED);
        (0..length).map(|ahead| lookup.chance(ahead)).collect()
    }

    /// Lets this step check so many guessed tokens.
    pub(crate) fn guess_ahead(&mut self, depth: usize) {
        self.guess.clear();
        if let Some(lookup) = self.lookup.as_ref().filter(|_| depth > 0) {
            self.guess.extend(self.tokens.last());
            self.guess.extend_from_slice(&lookup.guess(&self.tokens)[..depth]);
            self.planned = self.guess.len();
        }
    }

    /// Takes the tokens that the rows of logits behind the last token give: one, and one more behind every guess that was right. How many.
    ///
    /// # Errors
    ///
    /// [`EngineError::ModelFailed`] for logits that are not finite and at a bound of the grammar.
    pub(crate) fn advance<'a>(
        &mut self,
        rows: impl Iterator<Item = &'a mut [f32]>,
        chooser: &mut Chooser<'_>,
    ) -> Result<usize, EngineError> {
        let mut taken = 0;
        for row in rows {
            let Chosen { token, logprob, is_last } = self.choose(row, chooser)?;
            taken += 1;
            self.seen.add(token);
            self.reply.accept(Next { tokens: &[token], logprob, is_last }, chooser.codec, chooser.now);
            self.tokens.push(token);
            self.lookup.iter_mut().for_each(|lookup| lookup.follow(&self.tokens));
            if self.reply.is_ended() || self.guess.get(taken) != Some(&token) {
                break;
            }
            // As guessed, so it is in the cache.
            self.computed += 1;
        }
        self.guess.clear();
        Ok(taken)
    }

    /// The next token, from its row of logits.
    fn choose(&mut self, row: &mut [f32], chooser: &mut Chooser<'_>) -> Result<Chosen, EngineError> {
        let distribution = self.logprobs.map(|top| (Distribution::of(row), top));
        if let Some(grammar) = &mut self.grammar {
            grammar.mask(row)?;
        }
        let position = self.reply.len().into();
        let chosen = chooser.sampler.choose(row, &self.sampling, &self.seen, position);
        let token = chosen.map_err(|_| EngineError::ModelFailed(NOT_FINITE.to_owned()))?;
        let logprob = distribution.map(|(distribution, top)| distribution.report(token, top, chooser.codec));
        Ok(Chosen { token, logprob, is_last: follow(self.grammar.as_mut(), &[token], chooser.codec)? })
    }
}

/// Takes a grammar, where there is one, behind `tokens`. Whether it allows nothing more.
pub(crate) fn follow(
    grammar: Option<&mut Grammar>,
    tokens: &[TokenId],
    codec: &dyn TextCodec,
) -> Result<bool, EngineError> {
    let Some(grammar) = grammar else { return Ok(false) };
    // The end is the reply's matter.
    if !tokens.iter().any(|&token| codec.is_end(token)) {
        grammar.follow(tokens)?;
    }
    Ok(grammar.is_complete())
}
