//! A turn as its watchers see it: text that grows, then one outcome.
//!
//! The text lies once, with the writer; every watcher reads it at its own pace from a byte offset. So a slow watcher costs nothing,
//! nothing is lost, and the memory of a turn is bounded by its reply.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use parlance_cluster_protocol::{
    BodyHash, GenerationOptions, History, Item, Origin, Replied, TurnFailed, TurnId, UserHash,
};
use parlance_inference_engine::{CancelHandle, TokenLogprob};
use parlance_inference_gateway::CallSyntax;
use tokio::sync::watch;

/// What a client asks of a session.
#[derive(Debug, Clone)]
pub struct TurnRequest {
    /// A fresh id; ignored where the request joins an earlier turn.
    pub turn: TurnId,
    /// So that a repeated request joins the first one, for 24 hours.
    pub idempotency: Option<Idempotency>,
    /// What was said: with [`History::Session`] the new messages, with [`History::Given`] the whole prompt.
    pub input: Vec<Item>,
    /// Which history it is answered on.
    pub history: History,
    /// How the reply is generated.
    pub options: GenerationOptions,
    /// The seed; drawn at random where absent.
    pub seed: Option<u64>,
    /// Through which face it came.
    pub origin: Origin,
    /// Whose turn it is.
    pub user: Option<UserHash>,
    /// Whether the session is created if there is none.
    pub create: bool,
    /// How many turns the session must have had, if that matters: with another number the request is refused.
    pub behind: Option<u64>,
    /// What the model is told before this turn's history, in place of the session's system prompt.
    pub instructions: Option<String>,
}

/// An idempotency key and the body that it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// The key, at most 255 characters.
    pub key: String,
    /// SHA-256 over everything that makes the request another one.
    pub body_hash: BodyHash,
}

/// How a turn ended.
#[derive(Debug, Clone, PartialEq)]
pub enum TurnOutcome {
    /// With its reply.
    Replied(Arc<Replied>),
    /// Without one.
    Failed(Arc<TurnFailed>),
}

/// What a watcher of a turn is told, in order: deltas, then one end.
#[derive(Debug, Clone, PartialEq)]
pub enum TurnEvent {
    /// More text.
    Delta {
        /// Bytes of the reply up to the end of `text`: what a watcher resumes after.
        end: usize,
        /// The new text.
        text: String,
        /// The tokens whose text began to come out since the last delta, where they were asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// The end. The deltas' texts together are the reply's text.
    Ended(TurnOutcome),
    /// The writer died. The turn itself goes on if it is durable: watch it again.
    Interrupted,
}

#[derive(Debug, Default)]
struct TurnState {
    text: String,
    /// Empty unless asked for.
    logprobs: Vec<TokenLogprob>,
    outcome: Option<TurnOutcome>,
}

/// The one writer of a turn's text.
#[derive(Debug)]
pub(crate) struct TurnWriter(watch::Sender<TurnState>);

impl TurnWriter {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(TurnState::default()))
    }

    pub(crate) fn push(&self, text: &str) {
        self.push_scored(text, Vec::new());
    }

    /// Adds text and the probabilities that came with it.
    pub(crate) fn push_scored(&self, text: &str, logprobs: Vec<TokenLogprob>) {
        if !text.is_empty() || !logprobs.is_empty() {
            self.0.send_modify(|state| {
                state.text.push_str(text);
                state.logprobs.extend(logprobs);
            });
        }
    }

    /// Ends the turn. A reply's text replaces what was pushed, of which it is the continuation.
    pub(crate) fn end(&self, outcome: TurnOutcome) {
        self.0.send_modify(|state| {
            if let TurnOutcome::Replied(replied) = &outcome {
                debug_assert!(replied.text.starts_with(&state.text), "a reply continues what was shown of it");
                state.text.clone_from(&replied.text);
            }
            state.outcome = Some(outcome);
        });
    }

    pub(crate) fn has_watchers(&self) -> bool {
        self.0.receiver_count() > 0
    }

    /// Its text from the beginning.
    pub(crate) fn watch(&self) -> TurnStream {
        TurnStream { receiver: self.0.subscribe(), read: 0, read_logprobs: 0, ended: false, cancel: None, calls: None }
    }

    /// The text so far.
    pub(crate) fn text(&self) -> String {
        self.0.borrow().text.clone()
    }

    /// The text behind its first `bytes` bytes.
    pub(crate) fn text_from(&self, bytes: usize) -> String {
        self.0.borrow().text.get(bytes..).unwrap_or_default().to_owned()
    }

    /// The first `bytes` bytes of the text.
    pub(crate) fn text_to(&self, bytes: usize) -> String {
        self.0.borrow().text.get(..bytes).unwrap_or_default().to_owned()
    }
}

/// A watcher of one turn. Dropping it stops a stateless generation and leaves a durable turn alone.
#[derive(Debug)]
pub struct TurnStream {
    receiver: watch::Receiver<TurnState>,
    read: usize,
    read_logprobs: usize,
    ended: bool,
    /// Ends a stateless generation with its only watcher.
    cancel: Option<Cancellation>,
    calls: Option<CallSyntax>,
}

impl Drop for TurnStream {
    fn drop(&mut self) {
        if let Some(cancellation) = &self.cancel {
            cancellation.cancel();
        }
    }
}

/// Ends a generation, whichever of its attempts is running.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancellation(Arc<Mutex<Cancellable>>);

#[derive(Debug, Default)]
struct Cancellable {
    /// Few: an attempt follows only on a replica's death.
    attempts: Vec<CancelHandle>,
    cancelled: bool,
}

impl Cancellation {
    /// From now on, this ends the attempt of `handle` too.
    pub(crate) fn cover(&self, handle: CancelHandle) {
        let mut state = self.state();
        if state.cancelled {
            handle.cancel();
        }
        state.attempts.push(handle);
    }

    fn cancel(&self) {
        let mut state = self.state();
        state.cancelled = true;
        state.attempts.iter().for_each(CancelHandle::cancel);
    }

    fn state(&self) -> MutexGuard<'_, Cancellable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TurnStream {
    pub(crate) fn cancel_on_drop(&mut self, cancellation: Cancellation) {
        self.cancel = Some(cancellation);
    }

    pub(crate) fn set_call_syntax(&mut self, calls: Option<CallSyntax>) {
        self.calls = calls;
    }

    /// How calls of tools are written in the text, if it may have any.
    pub fn call_syntax(&self) -> Option<CallSyntax> {
        self.calls
    }

    /// What comes next; `None` behind the end.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<TurnEvent> {
        while !self.ended {
            if let Some(event) = self.take_available() {
                return Some(event);
            }
            if self.receiver.changed().await.is_err() {
                let last = self.take_available().unwrap_or(TurnEvent::Interrupted);
                self.ended |= last == TurnEvent::Interrupted;
                return Some(last);
            }
        }
        None
    }

    fn take_available(&mut self) -> Option<TurnEvent> {
        let state = self.receiver.borrow_and_update();
        let text = state.text.get(self.read..).unwrap_or_default();
        let logprobs = &state.logprobs[self.read_logprobs..];
        if !text.is_empty() || !logprobs.is_empty() {
            self.read += text.len();
            self.read_logprobs += logprobs.len();
            return Some(TurnEvent::Delta { end: self.read, text: text.to_owned(), logprobs: logprobs.to_vec() });
        }
        let outcome = state.outcome.clone()?;
        self.ended = true;
        Some(TurnEvent::Ended(outcome))
    }
}

/// An accepted turn: durable, and being answered.
#[derive(Debug)]
pub struct AcceptedTurn {
    /// Its id: the first request's where this one joined it.
    pub turn: TurnId,
    /// Whether an earlier request with the same idempotency key was joined.
    pub replayed: bool,
    /// Its text and outcome, from the beginning.
    pub stream: TurnStream,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replied(text: &str) -> TurnOutcome {
        TurnOutcome::Replied(Arc::new(Replied {
            turn: TurnId(1),
            attempt: 1,
            text: text.into(),
            finish: parlance_cluster_protocol::FinishReason::Stop,
            usage: Default::default(),
            model: Default::default(),
        }))
    }

    fn delta(end: usize, text: &str) -> TurnEvent {
        TurnEvent::Delta { end, text: text.into(), logprobs: vec![] }
    }

    #[tokio::test]
    async fn every_watcher_reads_everything_at_its_own_pace() {
        let writer = TurnWriter::new();
        let mut early = writer.watch();
        writer.push("he");
        assert_eq!(early.next().await, Some(delta(2, "he")));
        writer.push("ll");
        writer.end(replied("hello"));
        let mut late = writer.watch();
        drop(writer);
        assert_eq!(early.next().await, Some(delta(5, "llo")));
        assert_eq!(early.next().await, Some(TurnEvent::Ended(replied("hello"))));
        assert_eq!(early.next().await, None);
        assert_eq!(late.next().await, Some(delta(5, "hello")));
        assert_eq!(late.next().await, Some(TurnEvent::Ended(replied("hello"))));
    }

    #[tokio::test]
    async fn a_writer_that_dies_interrupts_its_watchers_behind_the_text() {
        let writer = TurnWriter::new();
        let mut stream = writer.watch();
        writer.push("so far");
        drop(writer);
        assert_eq!(stream.next().await, Some(delta(6, "so far")));
        assert_eq!(stream.next().await, Some(TurnEvent::Interrupted));
        assert_eq!(stream.next().await, None);
    }

    #[tokio::test]
    async fn probabilities_come_once_and_with_their_text() {
        let token = |byte: u8| {
            let token = parlance_inference_engine::Likelihood { bytes: vec![byte], logprob: -1.0 };
            TokenLogprob { token, top: vec![] }
        };
        let writer = TurnWriter::new();
        let mut stream = writer.watch();
        writer.push_scored("a", vec![token(b'a')]);
        writer.push_scored("b", vec![token(b'b')]);
        let both = TurnEvent::Delta { end: 2, text: "ab".into(), logprobs: vec![token(b'a'), token(b'b')] };
        assert_eq!(stream.next().await, Some(both));
        writer.push_scored("", vec![token(b'c')]);
        let silent = TurnEvent::Delta { end: 2, text: String::new(), logprobs: vec![token(b'c')] };
        assert_eq!(stream.next().await, Some(silent));
    }
}
