//! Random histories against a model that is simple enough to be right.
//!
//! The model keeps every change it was ever given, in a set, so that order and repeats cannot matter to it. A row is
//! its newest write, unless a removal that is newer than that write covers it.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use futures_util::future::join_all;
use parlance_cluster_protocol::{Position, SessionKey, TurnId};

use super::Subject;
use crate::{At, Change, ChangeKind, Order, RecordStore, Row, StoredItem};

const STEPS: u64 = 60;
/// Of a round of changes in any order.
const CHANGES: u64 = 30;
const ROUNDS: u64 = 8;
const INDEXES: u64 = 6;
const POSITIONS: u64 = 40;
const ALL: usize = 1_000;

/// Plays one random history on an empty store.
pub(super) async fn play(subject: &impl Subject, seed: u64) {
    let mut random = Random(seed);
    let mut model = Model::default();
    let mut batches: Vec<Vec<Change>> = Vec::new();
    let mut store = subject.open().await;
    for step in 0..STEPS {
        let batch = match random.below(5) {
            0 if !batches.is_empty() => batches[random.below(batches.len() as u64) as usize].clone(),
            _ => (0..=random.below(8)).map(|_| change(&mut random, 0)).collect(),
        };
        model.changes.extend(batch.iter().cloned());
        store.write(batch.clone()).await.expect("a healthy store takes writes");
        batches.push(batch);
        if random.below(8) == 0 {
            drop(store);
            store = subject.open().await;
        }
        model.compare(&store, &format!("seed {seed}, step {step}")).await;
    }
}

/// Gives the store random changes in an order that has nothing to do with their positions, some of them again, many at once. Positions grow
/// from round to round, so that no early erasure decides everything.
pub(super) async fn converge(subject: &impl Subject, seed: u64) {
    let mut random = Random(seed);
    let mut model = Model::default();
    let store = subject.open().await;
    for round in 0..ROUNDS {
        let late = POSITIONS / 2 * round;
        let mut changes: Vec<Change> = (0..CHANGES).map(|_| change(&mut random, late)).collect();
        model.changes.extend(changes.iter().cloned());
        for _ in 0..CHANGES / 3 {
            changes.push(model.changes[random.below(model.changes.len() as u64) as usize].clone());
        }
        for place in (1..changes.len()).rev() {
            changes.swap(place, random.below(place as u64 + 1) as usize);
        }
        let written = join_all(changes.chunks(5).map(|batch| store.write(batch.to_vec()))).await;
        written.into_iter().collect::<Result<(), _>>().expect("a healthy store takes writes");
        model.compare(&store, &format!("seed {seed}, round {round}")).await;
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014): small, and the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

fn sessions() -> [SessionKey; 3] {
    [SessionKey::api("t", "a"), SessionKey::api("t", "ab"), SessionKey::in_channel("t2", "irc", "a")]
}

/// Turns belong to one session for ever.
fn turn_of(session: usize, number: u64) -> TurnId {
    TurnId(u128::from(number) << 8 | session as u128)
}

/// A random change at some position from `lowest` on. What is written depends on position and row alone, as one record writes a row once.
fn change(random: &mut Random, lowest: u64) -> Change {
    let number = random.below(3) as usize;
    let session = sessions()[number].clone();
    let position = lowest + random.below(POSITIONS);
    let index = random.below(INDEXES);
    let value = Bytes::from(format!("{position}"));
    let event_id = format!("event {index}");
    let kind = match random.below(16) {
        0..2 => ChangeKind::Put(Row::Session { session, state: value }),
        2..6 => ChangeKind::Put(Row::Item { session, index, item: value }),
        6..8 => ChangeKind::Put(Row::Turn { session, turn: turn_of(number, index) }),
        8..11 => ChangeKind::Put(Row::Dedupe { session, event_id, outcome: value }),
        11 => ChangeKind::Put(Row::Delivery { session, key: event_id, state: value }),
        12 => ChangeKind::ForgetDedupe { session, event_id },
        13..15 => ChangeKind::TruncateItems { session, from: index },
        _ => ChangeKind::EraseSession { session },
    };
    Change { position: Position(position), kind }
}

#[derive(Default)]
struct Model {
    changes: Vec<Change>,
}

impl Model {
    /// The newest position at which a row that `wanted` recognises was written, unless a newer removal covers it.
    fn row(&self, wanted: impl Fn(&Row) -> bool, covers: impl Fn(&ChangeKind) -> bool) -> Option<Position> {
        let position = |change: &Change| change.position;
        let is_write = |change: &&Change| matches!(&change.kind, ChangeKind::Put(row) if wanted(row));
        let written = self.changes.iter().filter(is_write).map(position).max()?;
        let removed = self.changes.iter().filter(|change| covers(&change.kind)).map(position).max();
        removed.is_none_or(|removed| written >= removed).then_some(written)
    }

    fn state(&self, of: &SessionKey) -> Option<At<Bytes>> {
        let position = self.row(|row| matches!(row, Row::Session { session, .. } if session == of), |_| false)?;
        Some(At { position, value: value_at(position) })
    }

    fn items(&self, of: &SessionKey) -> Vec<StoredItem> {
        let item = |wanted| {
            let covers = |kind: &ChangeKind| match kind {
                ChangeKind::TruncateItems { session, from } => session == of && *from <= wanted,
                kind => erases(kind, of),
            };
            let is = |row: &Row| matches!(row, Row::Item { session, index, .. } if session == of && *index == wanted);
            self.row(is, covers).map(|position| StoredItem { index: wanted, item: value_at(position) })
        };
        (0..INDEXES).filter_map(item).collect()
    }

    fn dedupe(&self, of: &SessionKey) -> BTreeMap<String, Bytes> {
        let outcome = |index| {
            let wanted = format!("event {index}");
            let covers = |kind: &ChangeKind| match kind {
                ChangeKind::ForgetDedupe { session, event_id } => session == of && *event_id == wanted,
                kind => erases(kind, of),
            };
            let is = |row: &Row| matches!(row, Row::Dedupe { session, event_id, .. } if session == of && *event_id == wanted);
            self.row(is, covers).map(|position| (wanted.clone(), value_at(position)))
        };
        (0..INDEXES).filter_map(outcome).collect()
    }

    fn has_turn(&self, of: &SessionKey, wanted: TurnId) -> bool {
        let is = |row: &Row| matches!(row, Row::Turn { session, turn } if session == of && *turn == wanted);
        self.row(is, |kind| erases(kind, of)).is_some()
    }

    async fn compare(&self, store: &Arc<dyn RecordStore>, place: &str) {
        for (number, session) in sessions().iter().enumerate() {
            let state = store.session(session).await.expect("a healthy store reads");
            assert_eq!(state, self.state(session), "state of {session}: {place}");
            let listed = store.sessions(&session.tenant, &session.channel, None, ALL).await;
            let listed = listed.expect("a healthy store reads").into_iter().find(|(listed, _)| listed == session);
            assert_eq!(listed.map(|(_, state)| state), state, "listing of {session}: {place}");

            let mut items = self.items(session);
            let found = store.items(session, None, Order::Ascending, ALL).await.expect("a healthy store reads");
            assert_eq!(found, items, "items of {session}: {place}");
            items.reverse();
            let found = store.items(session, None, Order::Descending, ALL).await.expect("a healthy store reads");
            assert_eq!(found, items, "items of {session}, backwards: {place}");

            let found = store.dedupe(session, ALL).await.expect("a healthy store reads");
            assert_eq!(
                found.into_iter().collect::<BTreeMap<_, _>>(),
                self.dedupe(session),
                "ids of {session}: {place}"
            );
            for turn in (0..INDEXES).map(|index| turn_of(number, index)) {
                let expected = self.has_turn(session, turn).then(|| session.clone());
                let found = store.turn(&session.tenant, turn).await.expect("a healthy store reads");
                assert_eq!(found, expected, "turn of {session}: {place}");
            }
        }
    }
}

fn erases(kind: &ChangeKind, of: &SessionKey) -> bool {
    matches!(kind, ChangeKind::EraseSession { session } if session == of)
}

fn value_at(position: Position) -> Bytes {
    position.0.to_string().into()
}
