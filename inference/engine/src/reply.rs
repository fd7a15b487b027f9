//! One reply on its way to its sink.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use crate::{
    CancelHandle, EngineError, EventSink, Finish, GenerateEvent, TextCodec, TokenId, TokenLogprob, TokenUsage,
    logprobs::Unreported, metrics::ReplicaMetrics, text::TextAssembler,
};

/// Turns accepted tokens into events and knows when the reply is complete.
///
/// Invariant: after the end, whichever, nothing more is sent.
pub(crate) struct Reply {
    sink: Box<dyn EventSink>,
    cancel: CancelHandle,
    metrics: Arc<ReplicaMetrics>,
    text: TextAssembler,
    /// Bytes of text that were sent.
    sent: usize,
    unreported: Unreported,
    max_tokens: u32,
    usage: TokenUsage,
    submitted: Instant,
    last_token: Option<Instant>,
    ended: bool,
}

/// What comes next in a reply.
pub(crate) struct Next<'a> {
    pub(crate) tokens: &'a [TokenId],
    /// Of the one token, where it was asked for.
    pub(crate) logprob: Option<TokenLogprob>,
    /// Whether nothing can follow the last of `tokens`.
    pub(crate) is_last: bool,
}

/// What bounds a reply.
pub(crate) struct Limits {
    /// Tokens of the prompt.
    pub(crate) prompt: u32,
    pub(crate) max_tokens: u32,
    pub(crate) stop: Vec<String>,
}

impl Reply {
    pub(crate) fn new(
        sink: Box<dyn EventSink>,
        cancel: CancelHandle,
        metrics: Arc<ReplicaMetrics>,
        limits: Limits,
        submitted: Instant,
    ) -> Self {
        let Limits { prompt, max_tokens, stop } = limits;
        let (text, usage) = (TextAssembler::new(stop), TokenUsage { prompt, ..TokenUsage::default() });
        Self {
            sink,
            cancel,
            metrics,
            text,
            sent: 0,
            unreported: Unreported::default(),
            max_tokens,
            usage,
            submitted,
            last_token: None,
            ended: false,
        }
    }

    /// Notes that the prompt begins to be computed, but for `cached` tokens.
    pub(crate) fn begin(&mut self, cached: u32) {
        self.usage.cached = cached;
        self.metrics.looked_up_prefix(self.usage.prompt, cached);
    }

    /// Notes that so many tokens more of the prompt are in a cache by now.
    pub(crate) fn found(&mut self, cached: u32) {
        let cached = cached.min(self.usage.prompt - self.usage.cached);
        self.usage.cached += cached;
        self.metrics.found_prefix(cached);
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.ended
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Tokens of the reply so far.
    pub(crate) fn len(&self) -> u32 {
        self.usage.completion
    }

    /// Tokens that the reply may yet have.
    pub(crate) fn room(&self) -> u32 {
        self.max_tokens.saturating_sub(self.usage.completion)
    }

    /// Takes the next tokens: those of an earlier attempt together, generated ones one by one.
    pub(crate) fn accept(&mut self, next: Next<'_>, codec: &dyn TextCodec, now: Instant) {
        let (mut ids, mut text) = (Vec::with_capacity(next.tokens.len()), String::new());
        let mut finish = (self.room() == 0).then_some(Finish::Length);
        let mut logprob = next.logprob;
        for &id in next.tokens {
            if finish.is_some() {
                break;
            }
            if codec.is_end(id) {
                finish = Some(Finish::Stop);
                break;
            }
            if let Some(logprob) = logprob.take() {
                self.unreported.push(self.sent + text.len() + self.text.held_bytes(), logprob);
            }
            self.text.push(codec.token_bytes(id), &mut text);
            ids.push(id);
            self.usage.completion += 1;
            finish = self.finish_behind(ids.len() == next.tokens.len() && next.is_last);
        }
        if !next.tokens.is_empty() {
            self.measure(now);
        }
        self.tell(ids, text, finish, now);
    }

    /// Whether the reply ends behind the token that was pushed last.
    fn finish_behind(&self, is_last: bool) -> Option<Finish> {
        if self.text.is_stopped() || is_last {
            Some(Finish::Stop)
        } else {
            (self.room() == 0).then_some(Finish::Length)
        }
    }

    fn tell(&mut self, ids: Vec<TokenId>, mut text: String, finish: Option<Finish>, now: Instant) {
        let is_cut = self.text.is_stopped();
        if finish.is_some() {
            self.text.finish(&mut text);
        }
        self.sent += text.len();
        let is_whole = finish.is_some() && !is_cut;
        let logprobs = if is_whole { self.unreported.take_all() } else { self.unreported.take(self.sent) };
        let silent = ids.is_empty() && text.is_empty() && logprobs.is_empty();
        if !silent && !self.send(GenerateEvent::Tokens { ids, text, logprobs }) {
            self.abandon();
        } else if let Some(finish) = finish {
            self.finish(finish, now);
        }
    }

    /// Ends the reply with an error.
    pub(crate) fn fail(&mut self, error: EngineError) {
        if !self.ended {
            self.send(GenerateEvent::Failed(error));
            self.metrics.failed(self.usage.completion);
            self.ended = true;
        }
    }

    /// Ends the reply without a word.
    pub(crate) fn abandon(&mut self) {
        if !self.ended {
            self.metrics.cancelled(self.usage.completion);
            self.ended = true;
        }
    }

    fn finish(&mut self, finish: Finish, now: Instant) {
        let usage = self.usage;
        self.send(GenerateEvent::Finished { finish, usage });
        self.metrics.finished(finish, usage, now - self.submitted);
        self.ended = true;
    }

    fn measure(&mut self, now: Instant) {
        match self.last_token.replace(now) {
            None => self.metrics.first_token(now - self.submitted),
            Some(last) => self.metrics.next_token(now - last),
        }
    }

    fn send(&mut self, event: GenerateEvent) -> bool {
        !self.is_cancelled() && tell(&mut *self.sink, event)
    }
}

impl Drop for Reply {
    /// However the engine's thread ends, nobody waits for ever.
    fn drop(&mut self) {
        self.fail(EngineError::Stopped);
    }
}

/// Whether the sink listens on. One that panics does not; it must not take the replica and its neighbours with it.
pub(crate) fn tell(sink: &mut dyn EventSink, event: GenerateEvent) -> bool {
    catch_unwind(AssertUnwindSafe(|| sink.send(event))).unwrap_or_else(|_| {
        tracing::error!("a sink panicked; its request ends");
        false
    })
}
