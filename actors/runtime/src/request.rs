//! What is asked of a session, wherever it lives, and what it answers.

use parlance_cluster_protocol::{
    Adopted, BodyHash, ItemsAdded, SessionKey, SessionOpened, SessionUpdated, TimestampMs, TurnAccepted, TurnId,
    UserHash,
};
use tokio::sync::oneshot;

use crate::{AcceptedTurn, Refusal, TurnStream, admission::Permit};

/// Where an answer goes. A dropped port means that the session, or its shard here, ended before it answered.
pub(crate) type Reply = oneshot::Sender<Result<SessionAnswer, Refusal>>;

/// A request on its way to a session of this node.
#[derive(Debug)]
pub(crate) struct SessionCommand {
    pub(crate) request: SessionRequest,
    /// The place of a turn among those that are open.
    pub(crate) permit: Option<Permit>,
    pub(crate) reply: Reply,
}

impl SessionCommand {
    /// Answers without handing it to the session.
    pub(crate) fn refuse(self, refusal: Refusal) {
        // A caller that is gone needs no answer.
        let _gone = self.reply.send(Err(refusal));
    }
}

/// Something that a client asks of a session.
#[derive(Debug, Clone)]
pub(crate) enum SessionRequest {
    Submit(Submit),
    BindKey {
        body_hash: BodyHash,
        target: SessionKey,
        turn: TurnId,
        expires_at: TimestampMs,
    },
    Open {
        opened: SessionOpened,
        user: Option<UserHash>,
    },
    Update {
        updated: SessionUpdated,
        user: Option<UserHash>,
    },
    AddItems {
        added: ItemsAdded,
        user: Option<UserHash>,
    },
    Delete {
        user: Option<UserHash>,
    },
    /// Part of a session of another log. Taking one over twice is as good as once.
    Adopt(Box<Adopted>),
    /// Answered with whether the turn was open. `None`: the running one.
    Stop {
        turn: Option<TurnId>,
    },
    /// For the text of an open turn, from its beginning.
    Watch {
        turn: TurnId,
    },
}

/// A turn that is to be accepted.
#[derive(Debug, Clone)]
pub(crate) struct Submit {
    pub(crate) turn: Box<TurnAccepted>,
    pub(crate) user: Option<UserHash>,
    pub(crate) create: bool,
    pub(crate) behind: Option<u64>,
    /// Of what it asks, for the model to say whether it has room.
    pub(crate) prompt_tokens: u32,
}

impl SessionRequest {
    /// Whether it leads to records.
    pub(crate) fn makes_records(&self) -> bool {
        !matches!(self, Self::Stop { .. } | Self::Watch { .. })
    }

    /// Whether asking it twice does no more than asking it once, so that it may be asked again when nobody knows whether it was done.
    pub(crate) fn may_be_repeated(&self) -> bool {
        match self {
            Self::Submit(submit) => !submit.turn.event_id.is_empty(),
            Self::BindKey { .. } | Self::Update { .. } | Self::Adopt(_) | Self::Stop { .. } | Self::Watch { .. } => {
                true
            }
            Self::Open { .. } | Self::AddItems { .. } | Self::Delete { .. } => false,
        }
    }
}

/// What a session answers.
#[derive(Debug)]
pub(crate) enum SessionAnswer {
    Accepted(AcceptedTurn),
    Bound(BoundKey),
    Done,
    Stopped(bool),
    /// `None`: the turn is not open.
    Watching(Option<TurnStream>),
}

/// What an idempotency key stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BoundKey {
    pub(crate) target: SessionKey,
    pub(crate) turn: TurnId,
    /// Whether it was bound just now, to the request's own turn.
    pub(crate) first: bool,
}
