//! Writing committed records into the record store: the view is a fold of the records and never more than that.

use std::{mem, sync::Arc};

use bytes::Bytes;
use parlance_actors_dialogue::{Limits, Projector, ViewChange};
use parlance_cluster_protocol::{Position, SessionKey};
use parlance_cluster_records::{At, Change, ChangeKind, RecordStore, RecordsError, Row};
use tokio::task::spawn_blocking;

use super::tail::{Committed, Projection};
use crate::{ShardError, node::Services};

/// The records behind one write to the store, more where one session has more of them.
const RECORDS_PER_WRITE: usize = 1_024;

/// Brings the rows of every session in `projection` up to its last record.
///
/// Projections of a node's shards take turns, so that however many there are, they take no more threads than a few from the turns.
///
/// # Errors
///
/// What kept the store from serving. Some rows may be written; doing it again is harmless.
pub(super) async fn project(services: &Services, projection: &Arc<Projection>) -> Result<(), ShardError> {
    // The semaphore lives as long as the services and is never closed.
    let _turn = services.projections.acquire().await;
    project_into(&*services.records, services.dialogue_limits, projection).await
}

/// The same, whatever the store belongs to.
pub(crate) async fn project_into(
    records: &dyn RecordStore,
    limits: Limits,
    projection: &Arc<Projection>,
) -> Result<(), ShardError> {
    // They go along with the first rows.
    let mut views = projection.views.clone();
    let mut batch = Vec::new();
    let mut count = 0;
    for (session, committed) in &projection.records {
        batch.push(session.clone());
        count += committed.len();
        if count >= RECORDS_PER_WRITE {
            write(records, limits, projection, mem::take(&mut batch), mem::take(&mut views)).await?;
            count = 0;
        }
    }
    write(records, limits, projection, batch, views).await
}

/// Makes `changes`, and brings the rows of some sessions up to date, where it may take its time: a thread that may block.
async fn write(
    records: &dyn RecordStore,
    limits: Limits,
    projection: &Arc<Projection>,
    batch: Vec<Arc<SessionKey>>,
    mut changes: Vec<Change>,
) -> Result<(), ShardError> {
    let keys: Vec<&SessionKey> = batch.iter().map(|session| &**session).collect();
    let states = records.states(&keys).await?;
    let projection = projection.clone();
    let fold = move || {
        for (session, state) in batch.iter().zip(states) {
            let committed = projection.records.get(session).map_or(&[][..], Vec::as_slice);
            fold(session, limits, state, committed, &mut changes)?;
        }
        Ok::<_, ShardError>(changes)
    };
    let folded = spawn_blocking(fold).await;
    let changes = folded.unwrap_or_else(|died| Err(RecordsError::Unavailable(died.to_string()).into()))?;
    records.write(changes).await?;
    Ok(())
}

/// Folds a session's records over its state row. The state row comes last, once for all of them.
fn fold(
    session: &SessionKey,
    limits: Limits,
    state: Option<At<Bytes>>,
    committed: &[Committed],
    changes: &mut Vec<Change>,
) -> Result<(), ShardError> {
    let snapshot = state.as_ref().map(|state| &*state.value);
    let mut projector = Projector::new(session.clone(), limits, snapshot)?;
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
