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

/// The session in which `previous` can be continued, or else the history to continue it on.
pub(super) async fn continuable(
    app: &App,
    tenant: &str,
    previous: TurnId,
) -> Result<Result<SessionKey, Vec<Item>>, ApiError> {
    let session = session_of(app, tenant, previous).await?;
    if !is_given(&session) && last_turn(app, &session).await? == Some(previous) {
        return Ok(Ok(session));
    }
    Ok(Err(history(app, &session, previous).await?))
}

/// Turns in a key's own session are given whole and are not each other's history.
fn is_given(session: &SessionKey) -> bool {
    session.channel == Sessions::key_session("", "").channel
}

async fn last_turn(app: &App, session: &SessionKey) -> Result<Option<TurnId>, ApiError> {
    let sessions = app.node.sessions();
    let info = sessions.info(session).await?;
    if let Some(open) = info.and_then(|info| info.open_turns.last().copied()) {
        return Ok(Some(open));
    }
    let newest = ItemQuery { from: None, descending: true, limit: 1 };
    let items = sessions.items(session, newest).await?.unwrap_or_default();
    Ok(items.first().and_then(|item| item.turn))
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
