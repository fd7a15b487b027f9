//! Generations outside any session: nothing is recorded, and they end with their client.

use parlance_cluster_protocol::{FinishReason, GenerationOptions, Item, ModelTag, Replied, TurnFailed, TurnId, Usage};
use parlance_inference_engine::{EventSink, Finish, GenerateEvent, TokenUsage};

use super::Node;
use crate::{
    Refusal, TurnOutcome, TurnStream,
    admission::Permit,
    guarded::{Blockable, Guarded, Reviewed},
    models::Stateless,
    turn::TurnWriter,
};

/// What is asked of a model outside any session.
#[derive(Debug, Clone)]
pub struct StatelessRequest {
    /// A fresh id.
    pub id: TurnId,
    /// Whose it is.
    pub tenant: String,
    /// The whole prompt.
    pub input: Vec<Item>,
    /// How the reply is generated.
    pub options: GenerationOptions,
    /// The seed; drawn at random where absent.
    pub seed: Option<u64>,
    /// Whether every token is reported with its probability, and with how many alternatives.
    pub logprobs: Option<u32>,
}

impl Node {
    /// Generates a reply. Dropping the stream ends it within one step.
    ///
    /// # Errors
    ///
    /// Why nothing is generated.
    pub async fn generate(&self, request: StatelessRequest) -> Result<TurnStream, Refusal> {
        let permit = self.services.stateless.admit(&request.tenant)?;
        let guards = &self.services.guards;
        let reviewed = Reviewed::new(guards, &request.tenant, request.input.iter().collect())?;
        self.services.models.fetch(&request.options.model).await?;
        let planned = self.services.models.plan_stateless(Stateless {
            tenant: &request.tenant,
            input: &reviewed.messages(),
            options: &request.options,
            seed: request.seed.unwrap_or_else(rand::random),
            logprobs: request.logprobs,
            deadline: self.services.limits.turn_deadline,
        })?;
        let writer = TurnWriter::new();
        let mut stream = writer.watch(0);
        let sink = Sink { writer, turn: request.id, model: planned.tag.clone(), _permit: permit };
        let sink = Guarded::new(guards, &request.tenant, sink);
        let handle = planned.start(Box::new(sink))?;
        stream.cancel_on_drop(handle);
        Ok(stream)
    }
}

/// Writes a generation's events to its stream. Dropped before the end, it interrupts the stream.
struct Sink {
    writer: TurnWriter,
    turn: TurnId,
    model: ModelTag,
    _permit: Permit,
}

impl EventSink for Sink {
    fn send(&mut self, event: GenerateEvent) -> bool {
        match event {
            GenerateEvent::Tokens { text, logprobs, .. } => self.writer.push_scored(&text, logprobs),
            GenerateEvent::Finished { finish, usage } => self.writer.end(self.replied(finish, usage)),
            GenerateEvent::Failed(error) => self.writer.end(self.failed(&error.into())),
        }
        self.writer.has_watchers()
    }
}

impl Blockable for Sink {
    fn blocked(&mut self, refusal: Refusal) {
        self.writer.end(self.failed(&refusal));
    }
}

impl Sink {
    fn replied(&self, finish: Finish, usage: TokenUsage) -> TurnOutcome {
        TurnOutcome::Replied(
            Replied {
                turn: self.turn,
                attempt: 1,
                text: self.writer.text(),
                finish: finish_reason(finish),
                usage: token_counts(usage),
                model: self.model.clone(),
            }
            .into(),
        )
    }

    fn failed(&self, refusal: &Refusal) -> TurnOutcome {
        let (code, message) = (refusal.code().to_owned(), refusal.to_string());
        TurnOutcome::Failed(TurnFailed { turn: self.turn, attempt: 1, code, message }.into())
    }
}

pub(crate) fn finish_reason(finish: Finish) -> FinishReason {
    match finish {
        Finish::Stop => FinishReason::Stop,
        Finish::Length => FinishReason::Length,
    }
}

pub(crate) fn token_counts(usage: TokenUsage) -> Usage {
    Usage { prompt_tokens: usage.prompt, completion_tokens: usage.completion, cached_tokens: usage.cached }
}
