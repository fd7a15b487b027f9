//! What clients read of a session.

use std::collections::BTreeMap;

use parlance_actors_dialogue::{DialogueError, Durable, HistoryItem, ItemKind, Limits};
use parlance_cluster_protocol::{FinishReason, ModelTag, Role, SessionKey, TimestampMs, TurnId, Usage};
use parlance_cluster_records::StoredItem;

/// What is known of a session besides its history.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionInfo {
    /// The session.
    pub session: SessionKey,
    /// When it was created.
    pub created_at: TimestampMs,
    /// When its last record was made.
    pub updated_at: TimestampMs,
    /// The owner's labels.
    pub metadata: BTreeMap<String, String>,
    /// Its own system prompt, if it has one.
    pub system_prompt: Option<String>,
    /// How many turns were ever accepted.
    pub turns: u64,
    /// How many items its history has.
    pub items: u64,
    /// The turn that is being answered, and those that wait, in order.
    pub open_turns: Vec<TurnId>,
}

/// One item of a session's history.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionItem {
    /// Its number within the session, from 0.
    pub index: u64,
    /// The turn that it came with, unless it was put in from outside.
    pub turn: Option<TurnId>,
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub text: String,
    /// When it was recorded.
    pub at: TimestampMs,
    /// Why a reply ended; `None` on everything else.
    pub finish: Option<FinishReason>,
    /// A reply's token counts.
    pub usage: Option<Usage>,
    /// The model of a reply.
    pub model: Option<ModelTag>,
    /// The error code of a turn that ended without a reply.
    pub error: Option<String>,
}

impl SessionInfo {
    /// Reads a state row; `None` for a session that was deleted.
    pub(super) fn read(session: SessionKey, limits: Limits, state: &[u8]) -> Result<Option<Self>, DialogueError> {
        let durable = Durable::decode(session, limits, state)?;
        let Some(created_at) = durable.created_at().filter(|_| durable.exists()) else { return Ok(None) };
        Ok(Some(Self {
            session: durable.session().clone(),
            created_at,
            updated_at: durable.updated_at(),
            metadata: durable.metadata().clone(),
            system_prompt: durable.system_prompt().map(Into::into),
            turns: durable.turns(),
            items: durable.items(),
            open_turns: durable.open_turns().map(|open| open.request.turn).collect(),
        }))
    }
}

impl SessionItem {
    /// Reads a row of the transcript.
    pub(super) fn read(stored: &StoredItem) -> Result<Self, DialogueError> {
        let row = HistoryItem::decode(&stored.item)?;
        let mut item = Self {
            index: stored.index,
            turn: row.turn,
            role: row.item.role,
            text: row.item.text.clone(),
            at: row.created_at,
            finish: None,
            usage: None,
            model: None,
            error: None,
        };
        match row.kind {
            ItemKind::Added | ItemKind::Input { .. } => {}
            ItemKind::Reply { finish, usage, model, .. } => {
                (item.finish, item.usage, item.model) = (Some(finish), Some(usage), Some(model));
            }
            ItemKind::Failure { code } => item.error = Some(code),
        }
        Ok(item)
    }
}
