//! Bringing a session into memory: its rows, then the records that the store may not have.

use parlance_actors_dialogue::{Dialogue, Durable};
use parlance_cluster_records::{Order, RecordsError};

use super::SessionArguments;
use crate::{Refusal, ShardError};

/// The inner error is for the session's clients; they may try again.
///
/// # Errors
///
/// A row or record that this build cannot use.
pub(super) async fn load(arguments: &SessionArguments) -> Result<Result<Box<Dialogue>, Refusal>, ShardError> {
    let mut dialogue = match read(arguments).await {
        Ok(dialogue) => dialogue?,
        Err(error) => return Ok(Err(Refusal::RecordsUnavailable(error.to_string()))),
    };
    // What the records change in the views is projected by the shard.
    let mut views = Vec::new();
    for committed in &arguments.tail {
        dialogue.apply(committed.position, &committed.record, &mut views)?;
    }
    Ok(Ok(Box::new(dialogue)))
}

async fn read(arguments: &SessionArguments) -> Result<Result<Dialogue, ShardError>, RecordsError> {
    let (session, services) = (&arguments.session, &arguments.services);
    let limits = services.dialogue_limits;
    let Some(state) = services.records.session(session).await? else {
        return Ok(Ok(Dialogue::new((**session).clone(), limits)));
    };
    let durable = match Durable::decode((**session).clone(), limits, &state.value) {
        Ok(durable) => durable,
        Err(error) => return Ok(Err(error.into())),
    };
    let rows = durable.history_rows();
    let count = usize::try_from(rows.end - rows.start).unwrap_or(usize::MAX);
    let items = services.records.items(session, Some(rows.start), Order::Ascending, count).await?;
    let items = items.into_iter().map(|stored| (stored.index, stored.item)).collect();
    let dedupe = services.records.dedupe(session, limits.dedupe).await?;
    Ok(Dialogue::restore(durable, items, dedupe).map_err(Into::into))
}
