//! The turn that is being answered.
//!
//! ```text
//!            ┌──────────── failed, may be tried again ───────────┐
//!            ▼                                                   │
//!  Fresh ─▶ Running ◀─ committed ── Attempting ◀── time is up ── Waiting ◀── interrupted by a crash
//!            │                                                   │
//!            └─▶ Ending: its final record is proposed until it is committed ◀─┘   (finished, failed, stopped, too late)
//! ```

use parlance_cluster_protocol::{
    AttemptStarted, FinishReason, ModelTag, Progress, Replied, SessionEvent, TimestampMs, TurnFailed, TurnId, Usage,
};

use super::{Dialogue, InFlight};
use crate::{Effect, Failure, GenerationOrder, OpenTurn};

#[derive(Debug)]
pub(super) struct Head {
    turn: TurnId,
    phase: Phase,
    /// Attempts that failed, as far as this process saw them.
    failures: u32,
    /// The most that any earlier attempt of this process said, as far as the running one continues it.
    said: Said,
}

#[derive(Debug)]
enum Phase {
    /// Its first attempt, which the acceptance implies, has not begun.
    Fresh,
    /// The next attempt begins then.
    Waiting { until: TimestampMs },
    /// The next attempt is being recorded.
    Attempting,
    /// A model answers.
    Running(Run),
    /// It ends with this record.
    Ending(SessionEvent),
}

#[derive(Debug, Default)]
struct Run {
    attempt: u32,
    said: Said,
    /// How many of the tokens said are recorded.
    recorded: usize,
    checkpoint_at: TimestampMs,
}

#[derive(Debug)]
struct Started {
    model: ModelTag,
    prompt_tokens: u32,
}

#[derive(Debug, Default)]
struct Said {
    started: Option<Started>,
    tokens: Vec<u32>,
    text: String,
}

impl Run {
    fn wants_checkpoint(&self) -> bool {
        self.said.started.is_some() && self.recorded < self.said.tokens.len()
    }

    fn next_checkpoint(&self, every_ms: u64) -> TimestampMs {
        TimestampMs(self.checkpoint_at.0.saturating_add(every_ms))
    }
}

impl Head {
    fn new(turn: TurnId, phase: Phase) -> Self {
        Self { turn, phase, failures: 0, said: Said::default() }
    }

    pub(super) fn wake_at(&self, deadline: TimestampMs, every_ms: u64, in_flight: bool) -> Option<TimestampMs> {
        match &self.phase {
            Phase::Ending(_) => None,
            Phase::Waiting { until } => Some(deadline.min(*until)),
            Phase::Running(run) if run.wants_checkpoint() && !in_flight => {
                Some(deadline.min(run.next_checkpoint(every_ms)))
            }
            Phase::Fresh | Phase::Attempting | Phase::Running(_) => Some(deadline),
        }
    }

    /// The longest reply so far, of this attempt or an earlier one.
    fn longest(&self) -> &Said {
        match &self.phase {
            Phase::Running(run) if run.said.tokens.len() >= self.said.tokens.len() => &run.said,
            _ => &self.said,
        }
    }

    /// Ends the running attempt, and keeps what it said.
    fn leave_run(&mut self, next: Phase) -> Option<Run> {
        let Phase::Running(mut run) = std::mem::replace(&mut self.phase, next) else { return None };
        if run.said.tokens.len() >= self.said.tokens.len() {
            self.said = std::mem::take(&mut run.said);
        }
        Some(run)
    }
}

impl Dialogue {
    /// The attempt that was running was interrupted. The next one begins at once, unless they were too many: a turn that brings
    /// the process down must not do so for ever.
    pub(super) fn recover(&mut self) {
        if self.live {
            return;
        }
        self.live = true;
        if !self.durable.is_being_adopted() {
            self.take_up();
        }
    }

    /// The first open turn goes on here, if there is one.
    pub(super) fn take_up(&mut self) {
        if let Some(open) = self.durable.open.front() {
            let phase = if open.attempt < self.limits.attempts {
                Phase::Waiting { until: self.clock }
            } else {
                Phase::Ending(failed(open, "model_failed", "The reply was interrupted too often."))
            };
            self.head = Some(Head::new(open.request.turn, phase));
        }
    }

    /// Does what is due.
    pub(super) fn advance(&mut self, out: &mut Vec<Effect>) {
        let Some(open) = self.durable.open.front().filter(|_| self.live && !self.durable.is_being_adopted()) else {
            self.head = None;
            return;
        };
        let turn = open.request.turn;
        if self.head.as_ref().is_none_or(|head| head.turn != turn) {
            self.head = Some(Head::new(turn, Phase::Fresh));
        }
        if let Some(event) = self.due_end() {
            self.end(event, out);
        }
        match self.head.as_ref().map(|head| &head.phase) {
            Some(Phase::Fresh) => self.start(out),
            Some(Phase::Waiting { until }) if *until <= self.clock => self.propose_attempt(out),
            Some(Phase::Running(_)) => self.checkpoint(out),
            Some(Phase::Ending(_)) => self.propose_end(out),
            _ => {}
        }
    }

    /// The final record that a turn gets before its attempt has ended by itself.
    fn due_end(&self) -> Option<SessionEvent> {
        let (open, head) = (self.durable.open.front()?, self.head.as_ref()?);
        let late = open.request.deadline <= self.clock;
        if matches!(head.phase, Phase::Ending(_)) {
            None
        } else if self.durable.is_deleted() {
            Some(failed(open, "session_deleted", "The conversation was deleted."))
        } else if self.stops.contains(&head.turn) && (late || has_caught_up(open, head)) {
            Some(cancelled(open, head))
        } else {
            late.then(|| failed(open, "deadline_exceeded", "The reply took too long."))
        }
    }

    fn end(&mut self, event: SessionEvent, out: &mut Vec<Effect>) {
        let Some(head) = &mut self.head else { return };
        let turn = head.turn;
        if let Some(run) = head.leave_run(Phase::Ending(event)) {
            out.push(Effect::CancelGeneration { turn, attempt: run.attempt });
        }
    }

    fn propose_end(&mut self, out: &mut Vec<Effect>) {
        let Some(Head { turn, phase: Phase::Ending(event), .. }) = &self.head else { return };
        let turn = *turn;
        if !self.has_pending(|what| matches!(what, InFlight::End(ending) if *ending == turn)) {
            let event = event.clone();
            self.propose(None, event, InFlight::End(turn), out);
        }
    }

    fn propose_attempt(&mut self, out: &mut Vec<Effect>) {
        let (Some(open), Some(head)) = (self.durable.open.front(), &mut self.head) else { return };
        head.phase = Phase::Attempting;
        let started = AttemptStarted { turn: head.turn, attempt: open.attempt + 1 };
        let turn = head.turn;
        self.propose(None, SessionEvent::AttemptStarted(started), InFlight::Attempt(turn), out);
    }

    pub(super) fn attempt_committed(&mut self, turn: TurnId, out: &mut Vec<Effect>) {
        if self.head.as_ref().is_some_and(|head| head.turn == turn && matches!(head.phase, Phase::Attempting)) {
            // Not if it was stopped meanwhile, or its time is up.
            match self.due_end() {
                Some(event) => self.end(event, out),
                None => self.start(out),
            }
        }
    }

    pub(super) fn attempt_lost(&mut self, turn: TurnId) {
        match &mut self.head {
            Some(Head { turn: running, phase: phase @ Phase::Attempting, .. }) if *running == turn => {
                *phase = Phase::Waiting { until: self.clock };
            }
            _ => {}
        }
    }

    /// Runs the recorded attempt.
    fn start(&mut self, out: &mut Vec<Effect>) {
        let (Some(open), Some(head)) = (self.durable.open.front(), &mut self.head) else { return };
        let Some(begun) = &open.head else { return };
        head.phase = Phase::Running(Run { attempt: open.attempt, checkpoint_at: self.clock, ..Run::default() });
        out.push(Effect::StartGeneration(Box::new(GenerationOrder {
            turn: head.turn,
            attempt: open.attempt,
            messages: self.history.prompt(open, begun),
            history: open.request.history,
            options: open.request.options.clone(),
            seed: open.request.seed,
            forced: open.tokens.clone(),
            forced_model: open.model.clone(),
            deadline: open.request.deadline,
            affinity: self.affinity,
        })));
    }

    fn run_mut(&mut self, turn: TurnId, attempt: u32) -> Option<&mut Run> {
        match self.head.as_mut()? {
            Head { turn: running, phase: Phase::Running(run), .. } if *running == turn && run.attempt == attempt => {
                Some(run)
            }
            _ => None,
        }
    }

    pub(super) fn generation_started(
        &mut self,
        turn: TurnId,
        attempt: u32,
        model: ModelTag,
        continues: bool,
        prompt_tokens: u32,
    ) {
        let recorded = self.durable.open.front().map_or(0, |open| open.tokens.len());
        let Some(run) = self.run_mut(turn, attempt) else { return };
        run.said.started = Some(Started { model, prompt_tokens });
        run.recorded = if continues { recorded } else { 0 };
        if let Some(head) = self.head.as_mut().filter(|_| !continues) {
            head.said = Said::default();
        }
    }

    pub(super) fn tokens_arrived(&mut self, turn: TurnId, attempt: u32, ids: &[u32], text: &str) {
        if let Some(run) = self.run_mut(turn, attempt) {
            run.said.tokens.extend_from_slice(ids);
            run.said.text.push_str(text);
        }
    }

    /// Proposes the tokens that are not recorded yet, one such record at a time, if they are many or old enough.
    fn checkpoint(&mut self, out: &mut Vec<Effect>) {
        let (now, limits) = (self.clock, self.limits);
        let Some(Head { turn, phase: Phase::Running(run), .. }) = &mut self.head else { return };
        let (Some(started), Some(new)) = (&run.said.started, run.said.tokens.get(run.recorded..)) else { return };
        let due = new.len() >= limits.checkpoint_tokens || run.next_checkpoint(limits.checkpoint_ms) <= now;
        let in_flight = self.pending.iter().any(|pending| matches!(pending.what, InFlight::Progress(_)));
        if new.is_empty() || !due || in_flight {
            return;
        }
        let turn = *turn;
        let progress = Progress {
            turn,
            attempt: run.attempt,
            model: started.model.clone(),
            from: run.recorded as u32,
            tokens: new.to_vec(),
        };
        run.checkpoint_at = now;
        self.propose(None, SessionEvent::Progress(progress), InFlight::Progress(turn), out);
    }

    pub(super) fn progress_committed(&mut self, turn: TurnId) {
        let Some(open) = self.durable.open.front().filter(|open| open.request.turn == turn) else { return };
        let recorded = open.tokens.len();
        if let Some(Head { phase: Phase::Running(run), .. }) = &mut self.head {
            run.recorded = recorded;
        }
    }

    pub(super) fn generation_finished(&mut self, turn: TurnId, attempt: u32, finish: FinishReason, usage: Usage) {
        let Some(run) = self.run_mut(turn, attempt) else { return };
        let Said { started, text, .. } = std::mem::take(&mut run.said);
        let model = started.map(|started| started.model).unwrap_or_default();
        let replied = Replied { turn, attempt, text, finish, usage, model };
        if let Some(head) = &mut self.head {
            head.phase = Phase::Ending(SessionEvent::Replied(replied));
        }
    }

    pub(super) fn generation_failed(&mut self, turn: TurnId, attempt: u32, failure: Failure) {
        if self.run_mut(turn, attempt).is_none() {
            return;
        }
        let (Some(open), Some(head)) = (self.durable.open.front(), &mut self.head) else { return };
        head.failures += 1;
        let may_go_on = head.failures < self.limits.failures && open.attempt < self.limits.attempts;
        let next = match failure.retry_after_ms.filter(|_| may_go_on) {
            Some(wait) => Phase::Waiting { until: TimestampMs(self.clock.0.saturating_add(wait)) },
            None => Phase::Ending(failed(open, &failure.code, &failure.message)),
        };
        head.leave_run(next);
    }
}

/// Whether as much was said as is recorded: what may have been shown is not taken back by a stop.
fn has_caught_up(open: &OpenTurn, head: &Head) -> bool {
    let anew = matches!(&head.phase, Phase::Running(run) if run.said.started.is_some() && run.recorded == 0);
    anew || head.longest().tokens.len() >= open.tokens.len()
}

fn cancelled(open: &OpenTurn, head: &Head) -> SessionEvent {
    let said = head.longest();
    SessionEvent::Replied(Replied {
        turn: head.turn,
        attempt: open.attempt,
        text: said.text.clone(),
        finish: FinishReason::Cancelled,
        usage: Usage {
            prompt_tokens: said.started.as_ref().map_or(0, |started| started.prompt_tokens),
            completion_tokens: said.tokens.len() as u32,
            cached_tokens: 0,
        },
        model: said.started.as_ref().map(|started| started.model.clone()).unwrap_or_default(),
    })
}

fn failed(open: &OpenTurn, code: &str, message: &str) -> SessionEvent {
    let (turn, attempt) = (open.request.turn, open.attempt);
    SessionEvent::TurnFailed(TurnFailed { turn, attempt, code: code.into(), message: message.into() })
}
