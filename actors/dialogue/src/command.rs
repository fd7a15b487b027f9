//! What is told to the machine.

use parlance_cluster_protocol::{
    Adopted, BodyHash, FinishReason, Item, ModelTag, SessionKey, SessionOpened, SessionUpdated, TimestampMs,
    TurnAccepted, TurnId, Usage, UserHash,
};

/// Ties effects to the request that they answer. Chosen by the caller, unique among its unanswered requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Names a proposed record until it is settled. Grows with every proposal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u64);

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Names the request in the effects that answer it.
    pub request: RequestId,
    /// The person, as a keyed hash.
    pub user: Option<UserHash>,
}

/// Why an attempt brought no reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The error code of the public interface; recorded if the turn fails of it.
    pub code: String,
    /// What a person is told.
    pub message: String,
    /// After how many milliseconds another attempt makes sense; `None`: never.
    pub retry_after_ms: Option<u64>,
}

/// Something that was asked for or that happened. Commands with a [`Caller`] are answered by exactly one effect that names its
/// request.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// The state is replayed up to the owner's own claim, and nothing that this process proposed before is unsettled. Until
    /// then every request is refused. The interrupted turn is taken up again.
    Recovered,
    /// Time has passed; see [`Dialogue::wake_at`](crate::Dialogue::wake_at).
    Tick,
    /// Create the conversation with settings. Answered by `Done` or `Refused`.
    Open {
        /// Who asks.
        caller: Caller,
        /// The settings.
        opened: SessionOpened,
    },
    /// Change settings. Answered by `Done` or `Refused`.
    Update {
        /// Who asks.
        caller: Caller,
        /// The changes.
        updated: SessionUpdated,
    },
    /// Put items into the history; refused while a turn is open. Answered by `Done` or `Refused`.
    AddItems {
        /// Who asks.
        caller: Caller,
        /// The items, oldest first.
        items: Vec<Item>,
    },
    /// Delete the conversation. Answered by `Done` or `Refused`.
    Delete {
        /// Who asks.
        caller: Caller,
    },
    /// Take over a part of what another log knew of the session. Answered by `Done`, also if it was taken over before, or `Refused`.
    Adopt {
        /// Who asks.
        caller: Caller,
        /// The part.
        part: Box<Adopted>,
    },
    /// Bind an idempotency key to a turn; this session is the key's own. Answered by `Bound` or `Refused`.
    BindKey {
        /// Who asks.
        caller: Caller,
        /// The request's body.
        body_hash: BodyHash,
        /// The session whose turn will answer it.
        target: SessionKey,
        /// That turn.
        turn: TurnId,
        /// From when on the key is free again.
        expires_at: TimestampMs,
    },
    /// Accept a turn. Answered by `Accepted`, `Joined` or `Refused`.
    Submit {
        /// Who asks.
        caller: Caller,
        /// What is recorded if it is accepted. A regeneration has no input of its own.
        turn: Box<TurnAccepted>,
        /// Whether the session comes into being with the turn if there is none.
        create: bool,
        /// How many turns must have been accepted before it, if that matters: with another number it is refused.
        behind: Option<u64>,
    },
    /// End a turn with the text that there is; the running one, unless another is named. Without effect on an ended one.
    Stop {
        /// The turn.
        turn: Option<TurnId>,
    },
    /// The proposed record is committed and was given to [`Dialogue::apply`](crate::Dialogue::apply).
    Committed {
        /// The proposal.
        tag: Tag,
    },
    /// The proposed record is not in the log and never will be.
    NeverCommitted {
        /// The proposal.
        tag: Tag,
    },
    /// A model has taken up the turn. Comes before its first tokens.
    GenerationStarted {
        /// The turn.
        turn: TurnId,
        /// The attempt.
        attempt: u32,
        /// The model.
        model: ModelTag,
        /// Whether the reply begins with the forced tokens. If not, it begins anew.
        continues: bool,
        /// Tokens of the prompt.
        prompt_tokens: u32,
    },
    /// More of the reply. Counted from the reply's beginning: forced tokens arrive again, with their text.
    TokensArrived {
        /// The turn.
        turn: TurnId,
        /// The attempt.
        attempt: u32,
        /// Token ids; may be empty where held-back text is released, or where the model does not tell.
        ids: Vec<u32>,
        /// The text, as it may be shown and stored.
        text: String,
    },
    /// The reply is complete.
    GenerationFinished {
        /// The turn.
        turn: TurnId,
        /// The attempt.
        attempt: u32,
        /// Why it ended.
        finish: FinishReason,
        /// Its token counts.
        usage: Usage,
    },
    /// The attempt brings no reply.
    GenerationFailed {
        /// The turn.
        turn: TurnId,
        /// The attempt.
        attempt: u32,
        /// Why.
        failure: Failure,
    },
}
