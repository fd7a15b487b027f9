//! Applies changes to the rows. One writer at a time: a change is compared with what stands before it is written.

use std::collections::{BTreeMap, HashMap};

use fjall::{Database, Keyspace, Slice};
use parlance_cluster_protocol::{Position, TurnId};

use super::{
    cell::{self, Erasures},
    keys::{self, Kind, SessionPart},
};
use crate::{Change, ChangeKind, Row};

/// The longest value that the embedded store takes.
pub const MAX_VALUE_BYTES: usize = 64 << 20;

/// Rows that an erasure gathers before it writes their removal, so that erasing a long session needs little memory.
const ERASURE_CHUNK: usize = 4_096;

/// How many forgotten ids of a session are marked one by one, give or take those since the last look. Past that, the
/// older half is summed up as "everything before". An id that was written before that and comes for the first time only
/// after so many later ones were forgotten would stay out; a log delivers in order, so none does.
const MAX_FORGOTTEN: usize = 256;
/// One in so many forgotten ids has the session's marks counted.
const FORGOTTEN_PER_COUNT: u32 = 32;

/// What became of a batch.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Outcome {
    pub(super) applied: u64,
    pub(super) stale: u64,
    pub(super) bytes: u64,
}

/// Why a batch stopped.
#[derive(Debug)]
pub(super) enum WriteError {
    Store(fjall::Error),
    Records(crate::RecordsError),
}

impl From<fjall::Error> for WriteError {
    fn from(error: fjall::Error) -> Self {
        Self::Store(error)
    }
}

impl From<crate::RecordsError> for WriteError {
    fn from(error: crate::RecordsError) -> Self {
        Self::Records(error)
    }
}

/// One batch on its way into the store. The caller holds the store's write lock.
pub(super) struct Writer<'a> {
    db: &'a Database,
    rows: &'a Keyspace,
    /// What the batch changes, sorted, since sorted keys go into the store fastest. `None` removes the row.
    pending: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// Erasures of the batch's sessions as they stand, pending ones included.
    erasures: HashMap<SessionPart, Erasures>,
    outcome: Outcome,
}

impl<'a> Writer<'a> {
    pub(super) fn new(db: &'a Database, rows: &'a Keyspace) -> Self {
        Self { db, rows, pending: BTreeMap::new(), erasures: HashMap::new(), outcome: Outcome::default() }
    }

    /// Applies the changes in order.
    pub(super) fn apply(mut self, changes: Vec<Change>) -> Result<Outcome, WriteError> {
        for change in changes {
            if self.apply_one(change.position, change.kind)? {
                self.outcome.applied += 1;
            } else {
                self.outcome.stale += 1;
            }
        }
        self.commit()?;
        Ok(self.outcome)
    }

    /// Applies one change; `false` if it came late or again.
    fn apply_one(&mut self, at: Position, kind: ChangeKind) -> Result<bool, WriteError> {
        match kind {
            ChangeKind::Put(row) => self.put_row(at, row),
            ChangeKind::ForgetDedupe { session, event_id } => self.forget(at, &SessionPart::new(&session)?, &event_id),
            ChangeKind::TruncateItems { session, from } => self.truncate(at, SessionPart::new(&session)?, from),
            ChangeKind::EraseSession { session } => self.erase(at, SessionPart::new(&session)?),
        }
    }

    fn put_row(&mut self, at: Position, row: Row) -> Result<bool, WriteError> {
        match row {
            Row::Session { session, state } => self.put(SessionPart::new(&session)?.row(Kind::State), at, &state),
            Row::Item { session, index, item } => {
                let session = SessionPart::new(&session)?;
                Ok(!self.erasures(&session)?.cover_item(index, at) && self.put(session.item(index), at, &item)?)
            }
            Row::Turn { session: key, turn } => {
                let session = SessionPart::new(&key)?;
                Ok(!self.erasures(&session)?.cover(at)
                    && self.put(keys::turn(&key.tenant, turn)?, at, session.as_bytes())?
                    && self.put(session.turn(turn), at, &[])?)
            }
            Row::Dedupe { session, event_id, outcome } => {
                self.put_dedupe(at, &SessionPart::new(&session)?, &event_id, &outcome)
            }
            Row::Delivery { session, key, state } => {
                let session = SessionPart::new(&session)?;
                let row = session.named(Kind::Delivery, "delivery key", &key)?;
                Ok(!self.erasures(&session)?.cover(at) && self.put(row, at, &state)?)
            }
        }
    }

    fn put_dedupe(
        &mut self,
        at: Position,
        session: &SessionPart,
        event_id: &str,
        outcome: &[u8],
    ) -> Result<bool, WriteError> {
        let forgotten = self.position(&session.named(Kind::Forgotten, "event id", event_id)?)?;
        let row = session.named(Kind::Dedupe, "event id", event_id)?;
        let erasures = self.erasures(session)?;
        let is_dead = erasures.cover(at) || forgotten.is_some_and(|forgotten| at < forgotten);
        let may_be_dead = at < erasures.forgotten;
        if is_dead || (may_be_dead && self.position(&row)?.is_none()) {
            return Ok(false);
        }
        self.put(row, at, outcome)
    }

    fn forget(&mut self, at: Position, session: &SessionPart, event_id: &str) -> Result<bool, WriteError> {
        let remembered = !self.erasures(session)?.cover(at)
            && self.put(session.named(Kind::Forgotten, "event id", event_id)?, at, &[])?;
        let row = session.named(Kind::Dedupe, "event id", event_id)?;
        let removed = self.position(&row)?.is_some_and(|written| written < at);
        if removed {
            self.pending.insert(row, None);
        }
        if remembered && crc32c::crc32c(event_id.as_bytes()).is_multiple_of(FORGOTTEN_PER_COUNT) {
            self.sum_up_forgotten(session)?;
        }
        Ok(remembered || removed)
    }

    /// Bounds the marks of forgotten ids. Those of the batch itself are left to the next count.
    fn sum_up_forgotten(&mut self, session: &SessionPart) -> Result<(), WriteError> {
        let mut marks = Vec::new();
        for row in self.rows.prefix(session.row(Kind::Forgotten)) {
            let (key, value) = row.into_inner()?;
            marks.push((cell::decode("forgotten id", &value)?.0, key.to_vec()));
        }
        if marks.len() <= MAX_FORGOTTEN {
            return Ok(());
        }
        marks.sort();
        let until = marks[marks.len() / 2].0;
        self.remember(session, |erasures| erasures.forgotten = erasures.forgotten.max(until))?;
        for (_, key) in marks.into_iter().take_while(|(position, _)| *position <= until) {
            // A newer mark of the same id may be on its way.
            self.pending.entry(key).or_insert(None);
        }
        Ok(())
    }

    fn truncate(&mut self, at: Position, session: SessionPart, from: u64) -> Result<bool, WriteError> {
        let changed = self.remember(&session, |erasures| erasures.truncate(from, at))?;
        self.commit()?;
        let items = session.row(Kind::Item);
        let removed = self.remove_older(session.item(from), keys::behind(&items), at)?;
        Ok(changed || removed)
    }

    fn erase(&mut self, at: Position, session: SessionPart) -> Result<bool, WriteError> {
        let changed = self.remember(&session, |erasures| erasures.erase(at))?;
        self.commit()?;
        let mut removed = self.remove_older_turns(&session, at)?;
        for kind in [Kind::Item, Kind::Dedupe, Kind::Forgotten, Kind::Delivery] {
            let rows = session.row(kind);
            let end = keys::behind(&rows);
            removed |= self.remove_older(rows, end, at)?;
        }
        Ok(changed || removed)
    }

    /// Records an erasure, so that older writes stay dead when they come late.
    fn remember(&mut self, session: &SessionPart, change: impl FnOnce(&mut Erasures)) -> Result<bool, WriteError> {
        let before = self.erasures(session)?.clone();
        let mut after = before.clone();
        change(&mut after);
        if after == before {
            return Ok(false);
        }
        self.pending.insert(session.row(Kind::Erasures), Some(after.encode()));
        self.erasures.insert(session.clone(), after);
        Ok(true)
    }

    /// Removes the rows in `start..end` that were written before `at`. Nothing may be pending in that range.
    fn remove_older(&mut self, start: Vec<u8>, end: Vec<u8>, at: Position) -> Result<bool, WriteError> {
        let mut removed = false;
        for row in self.rows.range(start..end) {
            let (key, value) = row.into_inner()?;
            if cell::decode("row", &value)?.0 < at {
                removed = true;
                self.remove(key.to_vec())?;
            }
        }
        Ok(removed)
    }

    /// Removes the session's turns that were written before `at`, from both of their rows.
    fn remove_older_turns(&mut self, session: &SessionPart, at: Position) -> Result<bool, WriteError> {
        let mut removed = false;
        let prefix = session.row(Kind::TurnOfSession);
        let tenant = keys::decode_session(session.as_bytes())?.tenant;
        for row in self.rows.prefix(&prefix) {
            let (key, value) = row.into_inner()?;
            if cell::decode("turn", &value)?.0 >= at {
                continue;
            }
            removed = true;
            self.remove_turn(&tenant, keys::turn_behind(&prefix, &key)?, session)?;
            self.remove(key.to_vec())?;
        }
        Ok(removed)
    }

    fn remove_turn(&mut self, tenant: &str, turn: TurnId, session: &SessionPart) -> Result<(), WriteError> {
        let row = keys::turn(tenant, turn)?;
        if let Some(value) = self.rows.get(&row)?
            && cell::decode("turn", &value)?.1 == session.as_bytes()
        {
            self.remove(row)?;
        }
        Ok(())
    }

    fn remove(&mut self, key: Vec<u8>) -> Result<(), WriteError> {
        self.pending.insert(key, None);
        if self.pending.len() >= ERASURE_CHUNK { self.commit() } else { Ok(()) }
    }

    /// Writes the row if what stands there is older.
    fn put(&mut self, key: Vec<u8>, at: Position, value: &[u8]) -> Result<bool, WriteError> {
        if self.position(&key)?.is_some_and(|written| written >= at) {
            return Ok(false);
        }
        self.pending.insert(key, Some(cell::encode(at, value)));
        Ok(true)
    }

    /// When the row was written, pending changes included.
    fn position(&self, key: &[u8]) -> Result<Option<Position>, WriteError> {
        let position = |cell: &[u8]| cell::decode("row", cell).map(|(position, _)| position);
        Ok(match self.pending.get(key) {
            Some(pending) => pending.as_deref().map(position).transpose()?,
            None => self.rows.get(key)?.as_deref().map(position).transpose()?,
        })
    }

    fn erasures(&mut self, session: &SessionPart) -> Result<&Erasures, WriteError> {
        if !self.erasures.contains_key(session) {
            let stored = self.rows.get(session.row(Kind::Erasures))?;
            let erasures = stored.map(|cell| Erasures::decode(&cell)).transpose()?.unwrap_or_default();
            self.erasures.insert(session.clone(), erasures);
        }
        Ok(&self.erasures[session])
    }

    /// Puts what is pending into the store as one atomic batch.
    fn commit(&mut self) -> Result<(), WriteError> {
        let mut batch = self.db.batch();
        for (key, value) in std::mem::take(&mut self.pending) {
            self.outcome.bytes += (key.len() + value.as_ref().map_or(0, Vec::len)) as u64;
            match value {
                Some(value) => batch.insert(self.rows, Slice::from(key), Slice::from(value)),
                None => batch.remove(self.rows, Slice::from(key)),
            }
        }
        Ok(batch.commit()?)
    }
}

#[cfg(test)]
mod tests {
    use parlance_cluster_protocol::SessionKey;

    use super::*;
    use crate::local::{LocalOptions, store};

    fn event(position: u64, session: &SessionKey, id: u64, is_known: bool) -> Change {
        let (session, event_id) = (session.clone(), format!("event {id}"));
        let kind = match is_known {
            true => ChangeKind::Put(Row::Dedupe { session, event_id, outcome: "x".into() }),
            false => ChangeKind::ForgetDedupe { session, event_id },
        };
        Change { position: Position(position), kind }
    }

    #[test]
    fn marks_of_forgotten_ids_are_bounded_and_still_hold() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let rows = store::open(dir.path(), LocalOptions::default())?.rows;
        let write = |change| {
            let outcome = Writer::new(&rows.db, &rows.keyspace).apply(vec![change]);
            outcome.map(|outcome| outcome.applied > 0).expect("a healthy store takes writes")
        };
        let session = SessionKey::api("t", "a");
        assert!(write(event(1, &session, 1_000_000, true)));
        for id in 0..2_000 {
            assert!(write(event(2 * id + 2, &session, id, true)));
            assert!(write(event(2 * id + 3, &session, id, false)));
        }
        let count = |kind| rows.keyspace.prefix(SessionPart::new(&session).expect("short").row(kind)).count();
        assert!((MAX_FORGOTTEN / 2..3 * MAX_FORGOTTEN).contains(&count(Kind::Forgotten)), "{}", count(Kind::Forgotten));
        for id in 0..2_000 {
            assert!(!write(event(2 * id + 2, &session, id, true)), "{id} came back");
        }
        assert_eq!(count(Kind::Dedupe), 1, "an old id that was not forgotten stays");
        assert!(write(event(2, &session, 1_000_000, true)), "and takes newer outcomes");
        Ok(())
    }
}
