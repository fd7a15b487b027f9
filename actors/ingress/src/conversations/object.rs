//! Conversations and their items as JSON.

use parlance_actors_runtime::{SessionInfo, SessionItem};
use parlance_cluster_protocol::{FinishReason, Role};
use serde::Serialize;

use super::Metadata;
use crate::ids;

/// A conversation. Everything behind `metadata` is ours.
#[derive(Debug, Serialize)]
pub(crate) struct ConversationObject {
    id: String,
    object: &'static str,
    created_at: u64,
    metadata: Metadata,
    updated_at: u64,
    system_prompt: Option<String>,
    item_count: u64,
    /// Turns without an answer yet, as response ids, in order.
    open_responses: Vec<String>,
}

impl ConversationObject {
    pub(super) fn id(&self) -> String {
        self.id.clone()
    }
}

impl From<SessionInfo> for ConversationObject {
    fn from(info: SessionInfo) -> Self {
        Self {
            id: info.session.chat,
            object: "conversation",
            created_at: info.created_at.0 / 1_000,
            metadata: info.metadata,
            updated_at: info.updated_at.0 / 1_000,
            system_prompt: info.system_prompt,
            item_count: info.items,
            open_responses: info.open_turns.into_iter().map(ids::response_id).collect(),
        }
    }
}

/// One message of a conversation. `created_at` and what follows it are ours.
#[derive(Debug, Serialize)]
pub(crate) struct ItemObject {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    status: &'static str,
    role: &'static str,
    content: [Content; 1],
    created_at: u64,
    index: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// The code of a turn that ended without a reply; the text is what a person is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct Content {
    #[serde(rename = "type")]
    kind: &'static str,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<[(); 0]>,
}

impl ItemObject {
    pub(super) fn id(&self) -> String {
        self.id.clone()
    }
}

impl From<SessionItem> for ItemObject {
    fn from(item: SessionItem) -> Self {
        let spoken = item.role == Role::Assistant;
        let whole = item.error.is_none() && item.finish.is_none_or(|finish| finish == FinishReason::Stop);
        Self {
            id: item_id(&item),
            kind: "message",
            status: if whole { "completed" } else { "incomplete" },
            role: role(item.role),
            content: [Content {
                kind: if spoken { "output_text" } else { "input_text" },
                text: item.text,
                annotations: spoken.then_some([]),
            }],
            created_at: item.at.0 / 1_000,
            index: item.index,
            response_id: item.turn.map(ids::response_id),
            finish_reason: item.finish.map(finish_reason),
            model: item.model.map(|model| model.name),
            error: item.error,
        }
    }
}

/// A reply's id is the same as in its response; everything else is named by its place.
pub(super) fn item_id(item: &SessionItem) -> String {
    match item.turn {
        Some(turn) if item.finish.is_some() => ids::reply_item_id(turn),
        _ => format!("msg_i{}", item.index),
    }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    }
}

fn finish_reason(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
    }
}

/// A page of a list.
#[derive(Debug, Serialize)]
pub(crate) struct Page<T> {
    object: &'static str,
    data: Vec<T>,
    first_id: Option<String>,
    last_id: Option<String>,
    has_more: bool,
}

impl<T> Page<T> {
    /// A page of `limit` out of up to one more, which tells that there is more.
    pub(super) fn cut(mut data: Vec<T>, limit: usize, id: impl Fn(&T) -> String) -> Self {
        let has_more = data.len() > limit;
        data.truncate(limit);
        Self { object: "list", first_id: data.first().map(&id), last_id: data.last().map(&id), data, has_more }
    }
}
