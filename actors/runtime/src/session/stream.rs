use parlance_actors_dialogue::{Answer, Outcome};
use tokio::time::Instant;

use crate::{TurnOutcome, TurnStream, admission::Permit, metrics, turn::TurnWriter};

/// The text of an open turn as its watchers see it.
pub(super) struct OpenStream {
    writer: TurnWriter,
    /// Text that the running attempt has brought: a further attempt brings the same text again.
    brought: usize,
    since: Instant,
    /// Held until the turn ends; `None` for a turn that was taken over from an earlier incarnation.
    permit: Option<Permit>,
}

impl OpenStream {
    pub(super) fn new() -> Self {
        Self { writer: TurnWriter::new(), brought: 0, since: Instant::now(), permit: None }
    }

    pub(super) fn hold(&mut self, permit: Option<Permit>) {
        self.permit = permit;
    }

    /// Its text from the beginning.
    pub(super) fn watch(&self) -> TurnStream {
        self.writer.watch()
    }

    /// A new attempt begins: its text comes from the beginning.
    pub(super) fn restart(&mut self) {
        self.brought = 0;
    }

    /// Shows what is new of the attempt's text. An attempt that contradicts what was shown interrupts the watchers: they look
    /// again and find the other text, never a splice of both.
    pub(super) fn push(&mut self, text: &str) {
        let shown = self.writer.text_from(self.brought);
        self.brought += text.len();
        if let Some(new) = text.strip_prefix(&*shown) {
            self.writer.push(new);
        } else if !shown.starts_with(text) {
            let kept = self.writer.text_to(self.brought - text.len());
            self.writer = TurnWriter::new();
            self.writer.push(&kept);
            self.writer.push(text);
        }
    }

    /// Tells the watchers the end.
    pub(super) fn end(self, answer: &Answer) {
        metrics::turn_ended((&answer.outcome).into(), self.since.elapsed());
        self.writer.end(outcome(answer));
    }
}

/// A stream of a turn that ended.
pub(super) fn ended(answer: &Answer) -> TurnStream {
    let writer = TurnWriter::new();
    writer.end(outcome(answer));
    writer.watch()
}

fn outcome(answer: &Answer) -> TurnOutcome {
    match &answer.outcome {
        Outcome::Replied(replied) => TurnOutcome::Replied(replied.clone()),
        Outcome::Failed(failed) => TurnOutcome::Failed(failed.clone()),
    }
}
