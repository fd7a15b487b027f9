//! Watching a turn until its end, over the death of its writer: the one helper of every streaming face.

use std::time::Duration;

use parlance_actors_runtime::{Sessions, TurnEvent, TurnOutcome, TurnStream};
use parlance_cluster_protocol::{SessionKey, TurnId};
use parlance_inference_engine::TokenLogprob;
use parlance_inference_gateway::CallSyntax;
use tokio::time::sleep;

use crate::{
    api_error::ApiError,
    shown::{Shown, Step},
};

/// How often a lost turn is looked for in a row. With the pauses below, that is half a minute.
const MAX_TRIES: u32 = 34;

/// The pause before the first try; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What a watcher is told.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ReplyEvent {
    /// More text, which ends at byte `end` of the reply.
    Delta {
        /// Bytes of the reply up to the end of `text`.
        end: usize,
        /// The new text.
        text: String,
        /// The tokens whose text began to come out, where they were asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// The turn was answered anew and departs from what was shown: only the first `to` bytes stand.
    Rewound {
        /// How many bytes stand.
        to: usize,
    },
    /// The end.
    Ended(TurnOutcome),
    /// The turn is out of sight; a durable one goes on all the same.
    Lost(ApiError),
}

/// Where a durable turn is found again.
struct Home {
    sessions: Sessions,
    session: SessionKey,
}

/// A turn that is being watched. Dropping it ends a stateless generation and leaves a durable turn alone.
pub(crate) struct Reply {
    turn: TurnId,
    stream: TurnStream,
    /// Absent for a stateless generation.
    home: Option<Home>,
    shown: Shown,
    /// Bytes that the present stream gave.
    position: usize,
    /// Probabilities that are still to be told.
    logprobs: Vec<TokenLogprob>,
    /// The end, while steps before it are still to be told.
    outcome: Option<TurnOutcome>,
    tries: u32,
    over: bool,
}

impl Reply {
    /// Watches a generation that is in no session.
    pub(crate) fn stateless(turn: TurnId, stream: TurnStream) -> Self {
        Self::of(turn, stream, None, 0)
    }

    /// Watches a durable turn whose `stream` begins at byte 0; the watcher has the first `had` bytes already.
    pub(crate) fn durable(
        sessions: Sessions,
        session: SessionKey,
        turn: TurnId,
        stream: TurnStream,
        had: usize,
    ) -> Self {
        Self::of(turn, stream, Some(Home { sessions, session }), had)
    }

    fn of(turn: TurnId, stream: TurnStream, home: Option<Home>, had: usize) -> Self {
        let shown = Shown::after(had);
        Self { turn, stream, home, shown, position: 0, logprobs: Vec::new(), outcome: None, tries: 0, over: false }
    }

    /// The turn.
    pub(crate) fn turn(&self) -> TurnId {
        self.turn
    }

    /// How calls of tools are written in the text, if it may have any.
    pub(crate) fn call_syntax(&self) -> Option<CallSyntax> {
        self.stream.call_syntax()
    }

    /// All the text so far, whether it was shown by this watcher or had before.
    pub(crate) fn text(&self) -> &str {
        self.shown.text()
    }

    /// What comes next; `None` behind the end.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped; a search for a lost turn counts on.
    pub(crate) async fn next(&mut self) -> Option<ReplyEvent> {
        loop {
            match self.shown.next_step() {
                Some(Step::Delta { end, text }) => {
                    return Some(ReplyEvent::Delta { end, text, logprobs: std::mem::take(&mut self.logprobs) });
                }
                Some(Step::Rewound { to }) => return Some(ReplyEvent::Rewound { to }),
                None if self.over => return None,
                None => {}
            }
            if self.outcome.is_some() && !self.logprobs.is_empty() {
                let (end, logprobs) = (self.shown.text().len(), std::mem::take(&mut self.logprobs));
                return Some(ReplyEvent::Delta { end, text: String::new(), logprobs });
            }
            if let Some(outcome) = self.outcome.take() {
                self.over = true;
                return Some(ReplyEvent::Ended(outcome));
            }
            if let Err(error) = self.advance().await {
                self.over = true;
                return Some(ReplyEvent::Lost(error));
            }
        }
    }

    /// Waits for the end alone.
    pub(crate) async fn outcome(self) -> Result<TurnOutcome, ApiError> {
        self.scored_outcome().await.map(|(outcome, _)| outcome)
    }

    /// Waits for the end, and says how probable the tokens were, where that was asked for.
    pub(crate) async fn scored_outcome(mut self) -> Result<(TurnOutcome, Vec<TokenLogprob>), ApiError> {
        let mut all = Vec::new();
        while let Some(event) = self.next().await {
            match event {
                ReplyEvent::Ended(outcome) => return Ok((outcome, all)),
                ReplyEvent::Lost(error) => return Err(error),
                ReplyEvent::Delta { logprobs, .. } => all.extend(logprobs),
                ReplyEvent::Rewound { .. } => {}
            }
        }
        Err(lost())
    }

    async fn advance(&mut self) -> Result<(), ApiError> {
        match self.stream.next().await {
            Some(TurnEvent::Delta { end, text, logprobs }) => {
                self.tries = 0;
                self.shown.take(self.position, &text);
                self.position = end;
                self.logprobs.extend(logprobs);
            }
            Some(TurnEvent::Ended(outcome)) => {
                if let TurnOutcome::Replied(replied) = &outcome {
                    self.shown.complete(replied.text.len());
                }
                self.outcome = Some(outcome);
            }
            Some(TurnEvent::Interrupted) | None => self.find_again().await?,
        }
        Ok(())
    }

    /// One try to find the turn again, after a pause.
    async fn find_again(&mut self) -> Result<(), ApiError> {
        let Some(home) = &mut self.home else { return Err(lost()) };
        if self.tries == MAX_TRIES {
            return Err(lost());
        }
        self.tries += 1;
        sleep(FIRST_PAUSE.saturating_mul(1 << self.tries.min(10)).min(LONGEST_PAUSE)).await;
        if let Ok(Some(stream)) = home.sessions.watch(&home.session, self.turn).await {
            self.stream = stream;
            self.position = 0;
        } else if let Ok(Some(session)) = home.sessions.find_turn(&home.session.tenant, self.turn).await {
            // A joined turn may live in another session than the one that was asked for.
            home.session = session;
        }
        Ok(())
    }
}

fn lost() -> ApiError {
    let message = "The reply was interrupted. If the call had an X-Turn-ID, the turn goes on all the same: \
        fetch it with GET /v1/responses/resp_ and that id.";
    ApiError::new(http::StatusCode::INTERNAL_SERVER_ERROR, "interrupted", message)
}
