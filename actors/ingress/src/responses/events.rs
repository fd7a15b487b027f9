//! A response as an event stream, with sequence numbers that are the same on every node and after every restart.
//!
//! ```text
//! 0                 response.created
//! 1                 response.in_progress
//! 2                 response.output_item.added
//! 3                 response.content_part.added
//! 3 + end           response.output_text.delta, one or many; `end` is where its text ends within the reply, in bytes
//! 4 + length        response.output_text.done
//! 5 + length        response.content_part.done
//! 6 + length        response.output_item.done
//! 7 + length        response.completed, .incomplete or .failed
//! ```
//! So a number says how much of the reply its reader has, and `starting_after` needs no memory of what was sent. The numbers grow
//! and have gaps.

use std::cell::Cell;

use parlance_actors_runtime::TurnOutcome;
use parlance_cluster_protocol::{FinishReason, TurnId};
use parlance_inference_engine::TokenLogprob;
use serde::Serialize;

use super::object::{Echo, MessageItem, OutputText, ResponseObject};
use crate::{
    api_error::ApiError,
    ids,
    logprobs::{ScoredToken, scored},
    sse::{Frames, Render},
};

/// The number of the event before the first text.
const HEAD: u64 = 3;

/// How many bytes of the reply a reader has that saw events up to `starting_after`.
pub(super) fn bytes_seen(starting_after: Option<u64>) -> usize {
    usize::try_from(starting_after.unwrap_or(0).saturating_sub(HEAD)).unwrap_or(usize::MAX)
}

/// Renders a turn as events of the responses interface.
pub(super) struct EventRender {
    turn: TurnId,
    item: String,
    echo: Echo,
    /// Events up to this number were seen already.
    seen: Option<u64>,
    /// The number of the last event that was written.
    last: Cell<u64>,
    /// Whether probabilities were asked for.
    scored: bool,
    /// Those of the tokens so far.
    logprobs: Vec<TokenLogprob>,
}

#[derive(Serialize)]
struct Event<'a, T> {
    #[serde(rename = "type")]
    kind: &'a str,
    sequence_number: u64,
    #[serde(flatten)]
    rest: T,
}

#[derive(Serialize)]
struct Whole<'a> {
    response: ResponseObject<'a>,
}

#[derive(Serialize)]
struct ItemPart<'a> {
    output_index: u32,
    item: MessageItem<'a>,
}

#[derive(Serialize)]
struct ContentPart<'a> {
    item_id: &'a str,
    output_index: u32,
    content_index: u32,
    part: OutputText<'a>,
}

#[derive(Serialize)]
struct DeltaPart<'a> {
    item_id: &'a str,
    output_index: u32,
    content_index: u32,
    delta: &'a str,
    logprobs: Vec<ScoredToken>,
}

#[derive(Serialize)]
struct TextPart<'a> {
    item_id: &'a str,
    output_index: u32,
    content_index: u32,
    text: &'a str,
    logprobs: Vec<ScoredToken>,
}

#[derive(Serialize)]
struct ErrorPart<'a> {
    code: &'a str,
    message: &'a str,
    param: Option<&'a str>,
}

impl EventRender {
    /// Renders `turn` for a reader that saw events up to `seen`.
    pub(super) fn new(turn: TurnId, echo: Echo, seen: Option<u64>) -> Self {
        Self {
            turn,
            item: ids::reply_item_id(turn),
            echo,
            seen,
            last: Cell::new(seen.unwrap_or(0)),
            scored: false,
            logprobs: Vec::new(),
        }
    }

    /// Whether tokens are shown with their probabilities.
    pub(super) fn scored(self, scored: bool) -> Self {
        Self { scored, ..self }
    }

    fn write<T: Serialize>(&self, number: u64, kind: &str, rest: T, out: &mut Frames) {
        if self.seen.is_none_or(|seen| number > seen) {
            out.event(kind, &Event { kind, sequence_number: number, rest });
            self.last.set(number);
        }
    }

    fn replied(&self, finish: FinishReason, text: &str, out: &mut Frames) -> u64 {
        let length = text.len() as u64;
        let done = HEAD + length + 1;
        let (item_id, output_index, content_index) = (self.item.as_str(), 0, 0);
        let logprobs = &self.logprobs;
        let whole = TextPart { item_id, output_index, content_index, text, logprobs: scored(logprobs) };
        self.write(done, "response.output_text.done", whole, out);
        let part = ContentPart { item_id, output_index, content_index, part: OutputText::new(text, logprobs) };
        self.write(done + 1, "response.content_part.done", part, out);
        let item = ItemPart { output_index, item: MessageItem::ended(self.turn, text, finish, logprobs) };
        self.write(done + 2, "response.output_item.done", item, out);
        done + 3
    }
}

impl Render for EventRender {
    fn begin(&mut self, out: &mut Frames) {
        let running = || Whole { response: ResponseObject::running(self.turn, &self.echo) };
        self.write(0, "response.created", running(), out);
        self.write(1, "response.in_progress", running(), out);
        let item = ItemPart { output_index: 0, item: MessageItem::begun(self.turn) };
        self.write(2, "response.output_item.added", item, out);
        let (item_id, part) = (self.item.as_str(), OutputText::new("", &[]));
        self.write(
            HEAD,
            "response.content_part.added",
            ContentPart { item_id, output_index: 0, content_index: 0, part },
            out,
        );
    }

    fn delta(&mut self, end: usize, text: &str, logprobs: &[TokenLogprob], out: &mut Frames) {
        let own = if self.scored { logprobs } else { &[] };
        self.logprobs.extend_from_slice(own);
        let (item_id, logprobs) = (self.item.as_str(), scored(own));
        let delta = DeltaPart { item_id, output_index: 0, content_index: 0, delta: text, logprobs };
        self.write(HEAD + end as u64, "response.output_text.delta", delta, out);
    }

    fn end(&mut self, outcome: &TurnOutcome, text: &str, out: &mut Frames) {
        let response = ResponseObject::ended(self.turn, &self.echo, outcome, &self.logprobs);
        let (number, kind) = match outcome {
            TurnOutcome::Replied(replied) => {
                let number = self.replied(replied.finish, &replied.text, out);
                (
                    number,
                    if replied.finish == FinishReason::Stop { "response.completed" } else { "response.incomplete" },
                )
            }
            // What was shown of a failed reply is not recorded, so its reader may have seen any number.
            TurnOutcome::Failed(_) => {
                ((HEAD + text.len() as u64 + 4).max(self.seen.map_or(0, |seen| seen + 1)), "response.failed")
            }
        };
        self.write(number, kind, Whole { response }, out);
    }

    fn broken(&mut self, error: &ApiError, out: &mut Frames) {
        let part = ErrorPart { code: &error.code, message: &error.message, param: error.param.as_deref() };
        // No number of its own: whoever resumes after it goes on behind what it had before.
        out.event("error", &Event { kind: "error", sequence_number: self.last.get(), rest: part });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parlance_cluster_protocol::{Replied, TurnFailed};

    use super::*;

    fn outcome(text: &str) -> TurnOutcome {
        TurnOutcome::Replied(Arc::new(Replied {
            turn: TurnId(1),
            attempt: 1,
            text: text.into(),
            finish: FinishReason::Stop,
            usage: Default::default(),
            model: Default::default(),
        }))
    }

    /// The numbers and kinds of the events of a reply that comes in these pieces.
    fn events(pieces: &[&str], seen: Option<u64>) -> Vec<(u64, String)> {
        let mut render = EventRender::new(TurnId(1), Echo::default(), seen);
        let mut out = Frames::default();
        render.begin(&mut out);
        let mut text = String::new();
        for piece in pieces {
            text.push_str(piece);
            render.delta(text.len(), piece, &[], &mut out);
        }
        render.end(&outcome(&text), &text, &mut out);
        numbers(&out)
    }

    fn numbers(out: &Frames) -> Vec<(u64, String)> {
        let data = out.as_str().lines().filter_map(|line| line.strip_prefix("data: "));
        let values = data.map(|line| serde_json::from_str::<serde_json::Value>(line).expect("an event is JSON"));
        let number = |value: &serde_json::Value| value["sequence_number"].as_u64().expect("every event is numbered");
        values.map(|value| (number(&value), value["type"].as_str().unwrap_or_default().to_owned())).collect()
    }

    #[test]
    fn numbers_grow_and_follow_from_the_text_alone() {
        let whole = events(&["hello"], None);
        let pieces = events(&["he", "llo"], None);
        assert!(pieces.windows(2).all(|pair| pair[0].0 < pair[1].0), "{pieces:?}");
        assert!(whole.iter().all(|event| pieces.contains(event)), "{whole:?} {pieces:?}");
        assert_eq!(whole.last(), Some(&(3 + 5 + 4, "response.completed".into())));
    }

    #[test]
    fn a_reader_that_comes_back_sees_only_later_events() {
        let all = events(&["he", "llo"], None);
        for (seen, _) in &all {
            let later: Vec<_> = all.iter().filter(|(number, _)| number > seen).cloned().collect();
            assert_eq!(events(&["he", "llo"], Some(*seen)), later);
        }
        assert_eq!(bytes_seen(Some(5)), 2);
        assert_eq!(bytes_seen(Some(1)), 0);
        assert_eq!(bytes_seen(None), 0);
    }

    #[test]
    fn a_failure_is_told_to_whoever_comes_back() {
        let failed =
            TurnFailed { turn: TurnId(1), attempt: 3, code: "deadline_exceeded".into(), message: "late".into() };
        let mut render = EventRender::new(TurnId(1), Echo::default(), Some(500));
        let mut out = Frames::default();
        render.begin(&mut out);
        render.end(&TurnOutcome::Failed(Arc::new(failed)), "", &mut out);
        assert_eq!(numbers(&out), [(501, "response.failed".into())]);
    }
}
