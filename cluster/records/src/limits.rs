//! How long keys and values may be, in every store.

use parlance_cluster_protocol::{MAX_KEY_PART_BYTES, SessionKey};

use crate::{Change, ChangeKind, RecordsError, Row};

/// The longest event id or delivery key that a store takes.
pub const MAX_ID_BYTES: usize = 4_096;

/// Refuses a change whose keys or values are too long, before anything of its batch is written.
pub(crate) fn check(change: &Change, max_value_bytes: usize) -> Result<(), RecordsError> {
    let session = match &change.kind {
        ChangeKind::Put(Row::Session { session, .. } | Row::Item { session, .. } | Row::Turn { session, .. }) => {
            session
        }
        ChangeKind::Put(Row::Dedupe { session, event_id, .. }) | ChangeKind::ForgetDedupe { session, event_id } => {
            at_most("event id", event_id.len(), MAX_ID_BYTES)?;
            session
        }
        ChangeKind::Put(Row::Delivery { session, key, .. }) => {
            at_most("delivery key", key.len(), MAX_ID_BYTES)?;
            session
        }
        ChangeKind::TruncateItems { session, .. } | ChangeKind::EraseSession { session } => session,
    };
    check_session(session)?;
    match &change.kind {
        ChangeKind::Put(Row::Session { state: value, .. } | Row::Delivery { state: value, .. })
        | ChangeKind::Put(Row::Item { item: value, .. } | Row::Dedupe { outcome: value, .. }) => {
            at_most("value", value.len(), max_value_bytes)
        }
        _ => Ok(()),
    }
}

/// Refuses a key whose parts are too long to stand behind their lengths.
pub(crate) fn check_session(session: &SessionKey) -> Result<(), RecordsError> {
    let parts = [&session.tenant, &session.channel, &session.account, &session.chat, &session.thread];
    parts.iter().try_for_each(|part| at_most("part of a session key", part.len(), MAX_KEY_PART_BYTES))
}

pub(crate) fn at_most(what: &'static str, bytes: usize, limit: usize) -> Result<(), RecordsError> {
    if bytes > limit { Err(RecordsError::TooLarge { what, bytes, limit }) } else { Ok(()) }
}
