//! The statements, each prepared once.
//!
//! Every write and every delete says its timestamp, and no statement is conditional, so that any of them can be sent any number of times, in
//! any order.

use ::scylla::{
    client::session::Session,
    cluster::metadata::ColumnType,
    serialize::{
        SerializationError,
        value::SerializeValue,
        writers::{CellWriter, WrittenCellProof},
    },
    statement::{Consistency, Statement as Text, prepared::PreparedStatement},
};
use bytes::Bytes;
use uuid::Uuid;

use super::{fault, reach::Reach};
use crate::RecordsError;

/// What every statement is read or written at. The same for rows and checkpoints, and over all data centres: a quorum that can see a
/// checkpoint then sees the rows before it.
pub(super) const CONSISTENCY: Consistency = Consistency::Quorum;
/// Rows in one answer, so that an answer of large rows stays in memory.
const PAGE_ROWS: i32 = 100;

/// A statement, by its place in [`CQL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Statement {
    PutState,
    PutListed,
    PutItem,
    PutTurn,
    PutTurnOfSession,
    PutDedupe,
    PutDelivery,
    PutCheckpoint,
    ForgetDedupe,
    TruncateItems,
    EraseTurn,
    EraseTurnsOfSession,
    EraseItems,
    EraseDedupe,
    EraseDeliveries,
    State,
    Listed,
    ItemsUp,
    ItemsDown,
    Turn,
    TurnOfSession,
    TurnsOfSession,
    Dedupe,
    Checkpoint,
}

/// `{}` stands for the keyspace.
const CQL: [(Statement, &str); 24] = [
    (Statement::PutState, "INSERT INTO {}.states (session, state) VALUES (?, ?) USING TIMESTAMP ?"),
    (
        Statement::PutListed,
        "INSERT INTO {}.sessions (tenant, channel, bucket, session) VALUES (?, ?, ?, ?) USING TIMESTAMP ?",
    ),
    (Statement::PutItem, "INSERT INTO {}.items (session, number, item) VALUES (?, ?, ?) USING TIMESTAMP ?"),
    (Statement::PutTurn, "INSERT INTO {}.turns (tenant, turn, session) VALUES (?, ?, ?) USING TIMESTAMP ?"),
    (Statement::PutTurnOfSession, "INSERT INTO {}.turns_of_sessions (session, turn) VALUES (?, ?) USING TIMESTAMP ?"),
    (Statement::PutDedupe, "INSERT INTO {}.dedupe (session, event_id, outcome) VALUES (?, ?, ?) USING TIMESTAMP ?"),
    (Statement::PutDelivery, "INSERT INTO {}.deliveries (session, delivery, state) VALUES (?, ?, ?) USING TIMESTAMP ?"),
    (Statement::PutCheckpoint, "INSERT INTO {}.checkpoints (shard, checkpoint) VALUES (?, ?) USING TIMESTAMP ?"),
    (Statement::ForgetDedupe, "DELETE FROM {}.dedupe USING TIMESTAMP ? WHERE session = ? AND event_id = ?"),
    (Statement::TruncateItems, "DELETE FROM {}.items USING TIMESTAMP ? WHERE session = ? AND number >= ?"),
    (Statement::EraseTurn, "DELETE FROM {}.turns USING TIMESTAMP ? WHERE tenant = ? AND turn = ?"),
    (Statement::EraseTurnsOfSession, "DELETE FROM {}.turns_of_sessions USING TIMESTAMP ? WHERE session = ?"),
    (Statement::EraseItems, "DELETE FROM {}.items USING TIMESTAMP ? WHERE session = ?"),
    (Statement::EraseDedupe, "DELETE FROM {}.dedupe USING TIMESTAMP ? WHERE session = ?"),
    (Statement::EraseDeliveries, "DELETE FROM {}.deliveries USING TIMESTAMP ? WHERE session = ?"),
    (Statement::State, "SELECT state, writetime(state) FROM {}.states WHERE session = ?"),
    (
        Statement::Listed,
        "SELECT session FROM {}.sessions WHERE tenant = ? AND channel = ? AND bucket = ? AND session > ? LIMIT ?",
    ),
    (
        Statement::ItemsUp,
        "SELECT number, item FROM {}.items WHERE session = ? AND number >= ? ORDER BY number ASC LIMIT ?",
    ),
    (
        Statement::ItemsDown,
        "SELECT number, item FROM {}.items WHERE session = ? AND number <= ? ORDER BY number DESC LIMIT ?",
    ),
    (Statement::Turn, "SELECT session FROM {}.turns WHERE tenant = ? AND turn = ?"),
    (Statement::TurnOfSession, "SELECT turn FROM {}.turns_of_sessions WHERE session = ? AND turn = ?"),
    (Statement::TurnsOfSession, "SELECT turn FROM {}.turns_of_sessions WHERE session = ?"),
    (Statement::Dedupe, "SELECT event_id, outcome FROM {}.dedupe WHERE session = ? LIMIT ?"),
    (Statement::Checkpoint, "SELECT checkpoint, writetime(checkpoint) FROM {}.checkpoints WHERE shard = ?"),
];

/// All statements, ready to be sent.
#[derive(Debug)]
pub(super) struct Statements(Vec<PreparedStatement>);

impl Statements {
    /// Prepares them on a keyspace whose tables are there.
    pub(super) async fn prepare(session: &Session, reach: &Reach, keyspace: &str) -> Result<Self, RecordsError> {
        let mut prepared = Vec::with_capacity(CQL.len());
        for (_, cql) in CQL {
            let mut text = Text::new(cql.replace("{}", keyspace)).with_page_size(PAGE_ROWS);
            text.set_consistency(CONSISTENCY);
            text.set_is_idempotent(true);
            prepared.push(reach.ask(fault::unsettled(fault::of_prepare), || session.prepare(text.clone())).await?);
        }
        Ok(Self(prepared))
    }

    pub(super) fn get(&self, statement: Statement) -> &PreparedStatement {
        &self.0[statement as usize]
    }
}

/// A value on its way into a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Bind {
    Bytes(Bytes),
    Text(String),
    Turn(Uuid),
    Int(i32),
    Timestamp(i64),
}

impl Bind {
    /// What it takes on the wire, about.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Text(text) => text.len(),
            Self::Turn(_) => 16,
            Self::Int(_) | Self::Timestamp(_) => 8,
        }
    }
}

impl SerializeValue for Bind {
    fn serialize<'b>(
        &self,
        typ: &ColumnType<'_>,
        writer: CellWriter<'b>,
    ) -> Result<WrittenCellProof<'b>, SerializationError> {
        match self {
            Self::Bytes(bytes) => bytes.serialize(typ, writer),
            Self::Text(text) => text.serialize(typ, writer),
            Self::Turn(turn) => turn.serialize(typ, writer),
            Self::Int(number) => number.serialize(typ, writer),
            Self::Timestamp(timestamp) => timestamp.serialize(typ, writer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_stand_at_their_places() {
        for (place, (statement, _)) in CQL.iter().enumerate() {
            assert_eq!(*statement as usize, place);
        }
    }

    /// Without one, the server's clock would decide between an old write and a new one.
    #[test]
    fn every_change_says_its_timestamp_and_none_is_conditional() {
        for (_, cql) in CQL.iter().filter(|(_, cql)| !cql.starts_with("SELECT")) {
            assert!(cql.contains(" USING TIMESTAMP ?"), "{cql}");
            assert!(!cql.contains(" IF ") && !cql.contains("TTL"), "{cql}");
        }
    }
}
