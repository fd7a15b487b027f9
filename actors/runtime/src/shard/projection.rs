//! Writing committed records into the record store: the view is a fold of the records and never more than that.

use std::mem;

use parlance_actors_dialogue::{Projector, ViewChange};
use parlance_cluster_protocol::{Position, SessionKey};
use parlance_cluster_records::{Change, ChangeKind, Row};

use super::tail::{Committed, Projection};
use crate::{ShardError, node::Services};

/// The most changes in one write to the store.
const CHANGES_PER_WRITE: usize = 4_096;

/// Brings the rows of every session in `projection` up to its last record.
///
/// # Errors
///
/// What kept the store from serving. Some rows may be written; doing it again is harmless.
pub(super) async fn project(services: &Services, projection: &Projection) -> Result<(), ShardError> {
    let mut changes = projection.views.clone();
    for (session, committed) in &projection.records {
        project_session(services, session, committed, &mut changes).await?;
        if changes.len() >= CHANGES_PER_WRITE {
            services.records.write(mem::take(&mut changes)).await?;
        }
    }
    services.records.write(changes).await?;
    Ok(())
}

/// Folds the records over the session's state row. The state row comes last, once for all of them.
async fn project_session(
    services: &Services,
    session: &SessionKey,
    committed: &[Committed],
    changes: &mut Vec<Change>,
) -> Result<(), ShardError> {
    let state = services.records.session(session).await?;
    let snapshot = state.as_ref().map(|state| &*state.value);
    let mut projector = Projector::new(session.clone(), services.dialogue_limits, snapshot)?;
    let mut views = Vec::new();
    for Committed { position, record } in committed {
        projector.apply(*position, record, &mut views)?;
        changes.extend(views.drain(..).map(|view| change(session, *position, view)));
    }
    if let Some((position, state)) = projector.take_state() {
        let session = session.clone();
        changes.push(Change { position, kind: ChangeKind::Put(Row::Session { session, state }) });
    }
    Ok(())
}

pub(super) fn change(session: &SessionKey, position: Position, view: ViewChange) -> Change {
    let session = session.clone();
    let kind = match view {
        ViewChange::PutItem { index, item } => ChangeKind::Put(Row::Item { session, index, item: item.encode() }),
        ViewChange::PutTurn { turn } => ChangeKind::Put(Row::Turn { session, turn }),
        ViewChange::PutDedupe { event_id, outcome } => {
            ChangeKind::Put(Row::Dedupe { session, event_id: (*event_id).into(), outcome: outcome.encode() })
        }
        ViewChange::ForgetDedupe { event_id } => ChangeKind::ForgetDedupe { session, event_id: (*event_id).into() },
        ViewChange::TruncateItems { from } => ChangeKind::TruncateItems { session, from },
        ViewChange::Erase => ChangeKind::EraseSession { session },
    };
    Change { position, kind }
}
