//! What stands in a row, and which change wins it.
//!
//! A delete at position `q` and a write at position `p` are compared as the stamps `2·q` and `2·p + 1`: of one record's
//! two, the write wins, whatever their order. In whole positions: the delete removes the write if and only if `p < q`.

use parlance_cluster_protocol::Position;

use super::keys::damaged;
use crate::RecordsError;

/// How many truncations of one session are remembered. A write that comes late by more than that many truncations of
/// its session could bring an item back; a log delivers in order, so none does.
const MAX_TRUNCATIONS: usize = 64;

const POSITION_BYTES: usize = 8;

/// `position | value`, the position big-endian.
pub(super) fn encode(position: Position, value: &[u8]) -> Vec<u8> {
    let mut cell = Vec::with_capacity(POSITION_BYTES + value.len());
    cell.extend_from_slice(&position.0.to_be_bytes());
    cell.extend_from_slice(value);
    cell
}

/// Reads what [`encode`] wrote.
pub(super) fn decode<'a>(what: &'static str, cell: &'a [u8]) -> Result<(Position, &'a [u8]), RecordsError> {
    let (position, value) = cell.split_first_chunk::<POSITION_BYTES>().ok_or_else(|| damaged(what, "cut short"))?;
    Ok((Position(u64::from_be_bytes(*position)), value))
}

/// What was erased of a session: keeps late writes dead that are older than the erasure.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Erasures {
    /// Everything but the state row that was written before this position is gone.
    pub(super) before: Position,
    /// Event ids are forgotten that were written before this position and are not there: stands for the marks of the
    /// single ids once there are many.
    pub(super) forgotten: Position,
    /// Items from an index on, written before a position, are gone. Invariant: no entry is implied by another or by
    /// `before`, and there are at most [`MAX_TRUNCATIONS`].
    truncations: Vec<(u64, Position)>,
}

impl Erasures {
    pub(super) fn erase(&mut self, position: Position) {
        self.before = self.before.max(position);
        self.truncations.retain(|(_, truncated)| *truncated > position);
    }

    pub(super) fn truncate(&mut self, from: u64, position: Position) {
        let implies = |(f, p): &(u64, Position)| *f <= from && *p >= position;
        if self.before >= position || self.truncations.iter().any(implies) {
            return;
        }
        self.truncations.retain(|(f, p)| *f < from || *p > position);
        self.truncations.push((from, position));
        if self.truncations.len() > MAX_TRUNCATIONS {
            self.truncations.sort_by_key(|(_, position)| *position);
            self.truncations.remove(0);
        }
    }

    /// Whether a row other than the state, written at `position`, is gone.
    pub(super) fn cover(&self, position: Position) -> bool {
        position < self.before
    }

    /// Whether an item written at `position` is gone.
    pub(super) fn cover_item(&self, index: u64, position: Position) -> bool {
        self.cover(position) || self.truncations.iter().any(|(from, p)| index >= *from && position < *p)
    }

    /// `before | forgotten | (from | position)*`, all big-endian.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut cell = self.before.0.to_be_bytes().to_vec();
        cell.extend_from_slice(&self.forgotten.0.to_be_bytes());
        for (from, position) in &self.truncations {
            cell.extend_from_slice(&from.to_be_bytes());
            cell.extend_from_slice(&position.0.to_be_bytes());
        }
        cell
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub(super) fn decode(cell: &[u8]) -> Result<Self, RecordsError> {
        let bad = || damaged("erasure row", "of a wrong length");
        let (numbers, rest) = cell.as_chunks::<8>();
        let mut numbers = numbers.iter().map(|number| u64::from_be_bytes(*number));
        let before = Position(numbers.next().ok_or_else(bad)?);
        let forgotten = Position(numbers.next().ok_or_else(bad)?);
        let mut truncations = Vec::new();
        while let Some(from) = numbers.next() {
            truncations.push((from, Position(numbers.next().ok_or_else(bad)?)));
        }
        if rest.is_empty() { Ok(Self { before, forgotten, truncations }) } else { Err(bad()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Dropping implied entries never changes what is covered.
        #[test]
        fn erasures_cover_what_each_of_them_covers(
            steps in prop::collection::vec((prop::option::of(0u64..6), 0u64..12), 0..20)
        ) {
            let mut erasures = Erasures::default();
            for (from, position) in &steps {
                match from {
                    Some(from) => erasures.truncate(*from, Position(*position)),
                    None => erasures.erase(Position(*position)),
                }
            }
            for index in 0..7 {
                for written in 0..13 {
                    let gone = steps.iter().any(|(from, p)| from.is_none_or(|from| index >= from) && written < *p);
                    prop_assert_eq!(erasures.cover_item(index, Position(written)), gone);
                }
            }
            prop_assert_eq!(Erasures::decode(&erasures.encode()).ok(), Some(erasures));
        }
    }

    #[test]
    fn truncations_are_bounded() {
        let mut erasures = Erasures::default();
        for n in 1..=1_000 {
            erasures.truncate(n, Position(n));
        }
        assert_eq!(erasures.truncations.len(), MAX_TRUNCATIONS);
        assert!(erasures.cover_item(1_000, Position(999)));
    }

    #[test]
    fn rows_cut_short_are_refused() {
        assert!(decode("item", &[0; 7]).is_err());
        assert!(Erasures::decode(&[0; 12]).is_err());
        assert!(Erasures::decode(&[0; 20]).is_err());
        assert!(Erasures::decode(&[0; 24]).is_err());
    }
}
