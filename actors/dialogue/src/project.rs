use std::mem;

use bytes::Bytes;
use parlance_cluster_protocol::{Position, SessionKey, SessionRecord};

use crate::{DialogueError, Durable, Limits, ViewChange};

/// Turns a session's committed records into changes of its views, without its transcript in memory.
///
/// It cannot forget event ids, whose list it does not hold; the session's [`Dialogue`](crate::Dialogue) does that with the next
/// record that it applies.
#[derive(Debug)]
pub struct Projector {
    durable: Durable,
    changed: bool,
}

impl Projector {
    /// Starts from the session's state row; without one, from nothing.
    ///
    /// # Errors
    ///
    /// [`DialogueError::Wire`] if the row is newer or damaged.
    pub fn new(session: SessionKey, limits: Limits, snapshot: Option<&[u8]>) -> Result<Self, DialogueError> {
        let durable = match snapshot {
            Some(snapshot) => Durable::decode(session, limits, snapshot)?,
            None => Durable::new(session, limits),
        };
        Ok(Self { durable, changed: false })
    }

    /// Adds the changes that a record makes, its state row excepted; none if the state holds the record already, since the other
    /// rows, which are written before it, then do so too.
    ///
    /// # Errors
    ///
    /// See [`DialogueError`]; no further record can then be projected.
    pub fn apply(
        &mut self,
        position: Position,
        record: &SessionRecord,
        changes: &mut Vec<ViewChange>,
    ) -> Result<(), DialogueError> {
        self.changed |= self.durable.apply(position, record, changes)?;
        Ok(())
    }

    /// The state row and the position that it holds, if a record has changed it since the last call.
    pub fn take_state(&mut self) -> Option<(Position, Bytes)> {
        let changed = mem::take(&mut self.changed);
        self.durable.position().filter(|_| changed).map(|position| (position, self.durable.encode()))
    }
}
