//! From changes to statements. Pure: what is sent, with which timestamp, and what goes together.
//!
//! A write by the record at position `p` has the timestamp `2·p + 1`, a removal `2·p`. So the highest position decides each cell, of one
//! record's write and removal of a cell the write wins, and no two changes of different records ever tie.

use std::collections::BTreeMap;

use bytes::Bytes;
use parlance_cluster_protocol::{Position, SLOTS, SessionKey, TurnId};
use uuid::Uuid;

use super::statements::{Bind, Statement};
use crate::{Change, ChangeKind, MAX_POSITION, RecordsError, Row, limits};

/// The longest value that these servers take in one piece, with room for the rest of a mutation.
pub(super) const MAX_VALUE_BYTES: usize = 8 << 20;
/// Statements that go together, so that neither the servers' limits for batches (50 KiB in Cassandra) nor their time slices are passed.
const MAX_BATCH_BYTES: usize = 32 << 10;
const MAX_BATCH_STATEMENTS: usize = 64;
/// The sessions of a tenant's channel lie in so many partitions. Fixed for ever: a bucket is part of what is stored.
pub(super) const BUCKETS: u16 = 16;

/// One statement with its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mutation {
    pub(super) statement: Statement,
    pub(super) values: Vec<Bind>,
}

/// What a list of changes comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Statements that go together, each time to one partition of one table. They may be sent in any order.
    pub(super) batches: Vec<Vec<Mutation>>,
    /// The newest erasure of each session. They come behind the batches, to find the turns that are to go.
    pub(super) erasures: Vec<(SessionKey, Position)>,
    /// The states of sessions. They come last: a state says that everything up to its position is there, and whoever finds it writes nothing
    /// of that again.
    pub(super) states: Vec<Vec<Mutation>>,
    /// What all of it takes on the wire, about.
    pub(super) bytes: u64,
}

impl Plan {
    /// Refuses all of them if one cannot be kept.
    pub(super) fn new(changes: Vec<Change>) -> Result<Self, RecordsError> {
        for change in &changes {
            limits::check(change, MAX_VALUE_BYTES)?;
            check_position(change.position)?;
        }
        let mut grouped = Grouped::default();
        let mut erasures = BTreeMap::new();
        for Change { position, kind } in changes {
            match kind {
                ChangeKind::Put(row) => put(&mut grouped, position, row),
                ChangeKind::ForgetDedupe { session, event_id } => {
                    let session = key(&session);
                    let values = vec![removed_at(position), Bind::Bytes(session.clone()), Bind::Text(event_id)];
                    grouped.add(Statement::PutDedupe, session, Statement::ForgetDedupe, values);
                }
                ChangeKind::TruncateItems { session, from } => {
                    let session = key(&session);
                    let values = vec![removed_at(position), Bind::Bytes(session.clone()), number(from)];
                    grouped.add(Statement::PutItem, session, Statement::TruncateItems, values);
                }
                ChangeKind::EraseSession { session } => {
                    let newest = erasures.entry(session).or_insert(position);
                    *newest = position.max(*newest);
                }
            }
        }
        let (bytes, states) = (grouped.bytes, std::mem::take(&mut grouped.states));
        let states = states.into_iter().map(|mutation| vec![mutation]).collect();
        Ok(Self { batches: grouped.into_batches(), erasures: erasures.into_iter().collect(), states, bytes })
    }
}

fn put(grouped: &mut Grouped, position: Position, row: Row) {
    let at = written_at(position);
    match row {
        Row::Session { session, state } => {
            let (encoded, bucket) = (key(&session), bucket_of(&session));
            let values = vec![Bind::Bytes(encoded.clone()), Bind::Bytes(state), at.clone()];
            grouped.add_state(Mutation { statement: Statement::PutState, values });
            let names = [Bind::Text(session.tenant), Bind::Text(session.channel), Bind::Int(bucket)];
            let values = names.into_iter().chain([Bind::Bytes(encoded.clone()), at]).collect();
            grouped.add(Statement::PutListed, encoded, Statement::PutListed, values);
        }
        Row::Item { session, index, item } => {
            let session = key(&session);
            let values = vec![Bind::Bytes(session.clone()), number(index), Bind::Bytes(item), at];
            grouped.add(Statement::PutItem, session, Statement::PutItem, values);
        }
        Row::Turn { session, turn } => {
            let (encoded, turn) = (key(&session), turn_id(turn));
            let values = vec![Bind::Bytes(encoded.clone()), turn.clone(), at.clone()];
            grouped.add(Statement::PutTurnOfSession, encoded.clone(), Statement::PutTurnOfSession, values);
            // Each turn is a partition of its own.
            let values = vec![Bind::Text(session.tenant), turn, Bind::Bytes(encoded), at];
            grouped.add_alone(Mutation { statement: Statement::PutTurn, values });
        }
        Row::Dedupe { session, event_id, outcome } => {
            let session = key(&session);
            let values = vec![Bind::Bytes(session.clone()), Bind::Text(event_id), Bind::Bytes(outcome), at];
            grouped.add(Statement::PutDedupe, session, Statement::PutDedupe, values);
        }
        Row::Delivery { session, key: delivery, state } => {
            let session = key(&session);
            let values = vec![Bind::Bytes(session.clone()), Bind::Text(delivery), Bind::Bytes(state), at];
            grouped.add(Statement::PutDelivery, session, Statement::PutDelivery, values);
        }
    }
}

/// Statements by the partition that they change.
#[derive(Default)]
struct Grouped {
    /// By table, named by the statement that writes to it, and session. Nothing is lost where several sessions share a partition.
    partitions: BTreeMap<(Statement, Bytes), Vec<Mutation>>,
    alone: Vec<Mutation>,
    states: Vec<Mutation>,
    bytes: u64,
}

impl Grouped {
    fn add(&mut self, table: Statement, session: Bytes, statement: Statement, values: Vec<Bind>) {
        let mutation = Mutation { statement, values };
        self.bytes += mutation.bytes() as u64;
        self.partitions.entry((table, session)).or_default().push(mutation);
    }

    fn add_alone(&mut self, mutation: Mutation) {
        self.bytes += mutation.bytes() as u64;
        self.alone.push(mutation);
    }

    fn add_state(&mut self, mutation: Mutation) {
        self.bytes += mutation.bytes() as u64;
        self.states.push(mutation);
    }

    fn into_batches(self) -> Vec<Vec<Mutation>> {
        let mut batches: Vec<_> = self.alone.into_iter().map(|mutation| vec![mutation]).collect();
        for mutations in self.partitions.into_values() {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            for mutation in mutations {
                let more = mutation.bytes();
                if !batch.is_empty() && (bytes + more > MAX_BATCH_BYTES || batch.len() == MAX_BATCH_STATEMENTS) {
                    batches.push(std::mem::take(&mut batch));
                    bytes = 0;
                }
                bytes += more;
                batch.push(mutation);
            }
            batches.push(batch);
        }
        batches
    }
}

impl Mutation {
    fn bytes(&self) -> usize {
        self.values.iter().map(Bind::bytes).sum()
    }
}

/// What removes a session's rows, its turns by their ids as they were found.
pub(super) fn erase(session: &SessionKey, position: Position, turns: Vec<Uuid>) -> (Vec<Mutation>, Vec<Mutation>) {
    let turn = |turn| {
        let values = vec![removed_at(position), Bind::Text(session.tenant.clone()), Bind::Turn(turn)];
        Mutation { statement: Statement::EraseTurn, values }
    };
    let table = |statement| {
        let values = vec![removed_at(position), Bind::Bytes(key(session))];
        Mutation { statement, values }
    };
    let tables =
        [Statement::EraseItems, Statement::EraseDedupe, Statement::EraseDeliveries, Statement::EraseTurnsOfSession];
    (turns.into_iter().map(turn).collect(), tables.into_iter().map(table).collect())
}

pub(super) fn check_position(position: Position) -> Result<(), RecordsError> {
    if position <= MAX_POSITION { Ok(()) } else { Err(RecordsError::PositionTooHigh { position, limit: MAX_POSITION }) }
}

/// The timestamp of a write.
pub(super) fn written_at(position: Position) -> Bind {
    Bind::Timestamp(2 * position.0 as i64 + 1)
}

/// The timestamp of a removal.
fn removed_at(position: Position) -> Bind {
    Bind::Timestamp(2 * position.0 as i64)
}

/// The position of a write with this timestamp; nothing where it is none of ours.
pub(super) fn position_of(timestamp: i64) -> Option<Position> {
    (timestamp > 0 && timestamp % 2 == 1).then_some(Position(timestamp as u64 / 2))
}

pub(super) fn key(session: &SessionKey) -> Bytes {
    session.encode().into()
}

/// Numbers in the order of their bytes: CQL knows none of 64 bits without a sign.
pub(super) fn number(index: u64) -> Bind {
    Bind::Bytes(Bytes::copy_from_slice(&index.to_be_bytes()))
}

pub(super) fn turn_id(turn: TurnId) -> Bind {
    Bind::Turn(Uuid::from_u128(turn.0))
}

fn bucket_of(session: &SessionKey) -> i32 {
    i32::from(session.slot().0 / (SLOTS / BUCKETS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(position: u64, kind: ChangeKind) -> Change {
        Change { position: Position(position), kind }
    }

    fn item(position: u64, chat: &str, index: u64, bytes: usize) -> Change {
        let session = SessionKey::api("t", chat);
        at(position, ChangeKind::Put(Row::Item { session, index, item: vec![0; bytes].into() }))
    }

    fn plan(changes: Vec<Change>) -> Plan {
        Plan::new(changes).expect("within the limits")
    }

    #[test]
    fn a_batch_stays_within_one_partition_and_its_bounds() {
        let changes = (0..400).map(|n| item(n, if n % 2 == 0 { "a" } else { "b" }, n, 1_000)).collect();
        let batches = plan(changes).batches;
        assert_eq!(batches.iter().map(Vec::len).sum::<usize>(), 400);
        for batch in &batches {
            assert!(batch.iter().all(|mutation| mutation.values[0] == batch[0].values[0]), "one session each");
            assert!(batch.iter().map(Mutation::bytes).sum::<usize>() <= MAX_BATCH_BYTES);
        }
        let small = plan((0..200).map(|n| item(n, "a", n, 1)).collect()).batches;
        assert_eq!(small.iter().map(Vec::len).collect::<Vec<_>>(), [64, 64, 64, 8]);
        let large = plan(vec![item(1, "a", 1, 1 << 20), item(1, "a", 2, 1 << 20)]).batches;
        assert_eq!(large.len(), 2, "what is larger goes alone");
    }

    #[test]
    fn a_state_comes_behind_all_that_it_speaks_for() {
        let session = SessionKey::api("t", "a");
        let state = at(7, ChangeKind::Put(Row::Session { session: session.clone(), state: "s".into() }));
        let turn = at(7, ChangeKind::Put(Row::Turn { session, turn: TurnId(1) }));
        let Plan { batches, states, .. } = plan(vec![state, item(7, "a", 1, 1), turn]);
        let of =
            |batches: &[Vec<Mutation>]| batches.iter().flatten().map(|mutation| mutation.statement).collect::<Vec<_>>();
        assert_eq!(of(&states), [Statement::PutState]);
        let before = of(&batches);
        assert_eq!(before.len(), 4, "{before:?}");
        assert!(!before.contains(&Statement::PutState) && before.contains(&Statement::PutListed));
    }

    #[test]
    fn of_one_record_the_write_is_later_and_an_older_one_earlier() {
        let timestamp = |bind| match bind {
            Bind::Timestamp(timestamp) => timestamp,
            other => panic!("{other:?}"),
        };
        for position in [0, 1, 7, MAX_POSITION.0] {
            let (written, removed) = (written_at(Position(position)), removed_at(Position(position)));
            let (written, removed) = (timestamp(written), timestamp(removed));
            assert_eq!(position_of(written), Some(Position(position)));
            assert!(removed < written && position_of(removed).is_none());
            if position > 0 {
                assert!(timestamp(written_at(Position(position - 1))) < removed);
            }
        }
    }

    #[test]
    fn only_the_newest_erasure_of_a_session_is_made() {
        let erase =
            |position, chat: &str| at(position, ChangeKind::EraseSession { session: SessionKey::api("t", chat) });
        let erasures = plan(vec![erase(3, "a"), erase(5, "a"), erase(4, "a"), erase(1, "b")]).erasures;
        let erasures: Vec<_> = erasures.into_iter().map(|(session, position)| (session.chat, position.0)).collect();
        assert_eq!(erasures, [("a".to_owned(), 5), ("b".to_owned(), 1)]);
    }

    #[test]
    fn what_cannot_be_kept_is_refused_with_all_beside_it() {
        let too_high = Plan::new(vec![item(1, "a", 1, 1), item(MAX_POSITION.0 + 1, "a", 2, 1)]);
        assert!(matches!(too_high, Err(RecordsError::PositionTooHigh { .. })));
        let too_large = Plan::new(vec![item(1, "a", 1, MAX_VALUE_BYTES + 1)]);
        assert!(matches!(too_large, Err(RecordsError::TooLarge { .. })));
    }

    #[test]
    fn every_session_has_a_bucket() {
        let buckets: std::collections::BTreeSet<_> =
            (0..1_000).map(|n| bucket_of(&SessionKey::api("t", n.to_string()))).collect();
        assert_eq!(buckets.into_iter().collect::<Vec<_>>(), (0..i32::from(BUCKETS)).collect::<Vec<_>>());
    }
}
