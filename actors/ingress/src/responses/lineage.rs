//! Continuing a response by its id.
//!
//! The last response of a hidden session is continued in place. An older one, one in a key's own session (whose turns are given whole) or
//! one of a conversation that went on is continued on a copy of the history up to it.

use parlance_actors_runtime::{ItemQuery, SessionItem, Sessions};
use parlance_cluster_protocol::{Item, Role, SessionKey, TurnId};

use super::stored;
use crate::{api_error::ApiError, app::App};

/// Items per read of a history.
const PAGE: usize = 256;

/// The longest history that is copied, in reads.
const MAX_PAGES: usize = 16;

const PARAM: &str = "previous_response_id";

/// The session that a response belongs to.
pub(super) async fn session_of(app: &App, tenant: &str, previous: TurnId) -> Result<SessionKey, ApiError> {
    let session = app.node.sessions().find_turn(tenant, previous).await?;
    session.ok_or_else(|| stored::not_found(previous).about(PARAM))
}

/// Turns in a key's own session are given whole and are not each other's history.
fn is_given(session: &SessionKey) -> bool {
    session.channel == Sessions::key_session("", "").channel
}

/// How many turns the session has had, if `previous` was the last and can be continued in place.
pub(super) async fn turns_if_last(app: &App, session: &SessionKey, previous: TurnId) -> Result<Option<u64>, ApiError> {
    let sessions = app.node.sessions();
    let Some(info) = sessions.info(session).await?.filter(|_| !is_given(session)) else { return Ok(None) };
    let last = match info.open_turns.last() {
        Some(open) => Some(*open),
        None => {
            let newest = ItemQuery { from: None, descending: true, limit: 1 };
            let items = sessions.items(session, newest).await?.unwrap_or_default();
            items.first().and_then(|item| item.turn)
        }
    };
    Ok((last == Some(previous)).then_some(info.turns))
}

/// What was said up to and including the reply of `previous`, the system prompt first.
pub(super) async fn history(app: &App, session: &SessionKey, previous: TurnId) -> Result<Vec<Item>, ApiError> {
    let sessions = app.node.sessions();
    let unknown = || stored::not_found(previous).about(PARAM);
    let info = sessions.info(session).await?.ok_or_else(unknown)?;
    let mut copied: Vec<Item> = info.system_prompt.map(|text| Item { role: Role::System, text }).into_iter().collect();
    let mut query = ItemQuery { from: Some(0), descending: false, limit: PAGE };
    for _ in 0..MAX_PAGES {
        let page = sessions.items(session, query).await?.ok_or_else(unknown)?;
        let Some(last) = page.last() else {
            let message = "The response has no reply yet; wait for it, or continue it in a conversation.";
            return Err(ApiError::unsupported(PARAM, message));
        };
        query.from = Some(last.index + 1);
        for item in page {
            let wanted = item.error.is_none() && (!is_given(session) || item.turn == Some(previous));
            let ends = is_reply_of(&item, previous);
            if wanted {
                copied.push(Item { role: item.role, text: item.text });
            }
            if ends {
                return Ok(copied);
            }
        }
    }
    let most = PAGE * MAX_PAGES;
    Err(ApiError::unsupported(PARAM, format!("Beyond {most} items, only the last response can be continued.")))
}

fn is_reply_of(item: &SessionItem, turn: TurnId) -> bool {
    item.turn == Some(turn) && (item.finish.is_some() || item.error.is_some())
}
