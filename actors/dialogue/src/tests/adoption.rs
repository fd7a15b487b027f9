//! Sessions that come from another log.

use parlance_cluster_protocol::{
    Adopted, AdoptedItem, AdoptedKey, AdoptedTurn, AdoptionChain, SessionEvent, TimestampMs, TurnId,
};
use proptest::prelude::*;

use super::{
    sequences::{Action, action, drain, limits, perform},
    store::Store,
    world::*,
};
use crate::{Command, Durable, Effect, Joined, Refusal};

/// The parts of a session: its state cut after so many bytes, and so many rows in a part.
fn parts(world: &World, state_bytes: usize, rows: usize) -> Vec<Adopted> {
    let store = world.stores.last().cloned().unwrap_or_default();
    let Some(state) = store.state.clone() else { return Vec::new() };
    let mut chain = AdoptionChain::default();
    chain.add_state(&state);
    let all = all_rows(&store);
    all.iter().for_each(|part| chain.add_rows(part));
    let chunks: Vec<_> = (0..state.len()).step_by(state_bytes).collect();
    let mut parts: Vec<Adopted> = Vec::new();
    for from in &chunks {
        let to = (from + state_bytes).min(state.len());
        let state_left = (state.len() - to) as u64;
        parts.push(Adopted { state: state.slice(*from..to), state_left, ..Adopted::default() });
    }
    for some in all.chunks(rows) {
        let mut part = Adopted::default();
        for row in some {
            part.turns.extend(row.turns.iter().copied());
            part.keys.extend(row.keys.iter().cloned());
            part.items.extend(row.items.iter().cloned());
        }
        parts.push(part);
    }
    for (number, part) in (0..).zip(&mut parts) {
        (part.digest, part.part) = (chain.0, number);
    }
    let open = Durable::decode(world.session.clone(), world.limits, &state).expect("it was written by this build");
    let open = open.open_turns().map(|open| AdoptedTurn { turn: open.request.turn, deadline: open.request.deadline });
    if let Some(last) = parts.last_mut() {
        (last.last, last.open) = (true, open.collect());
    }
    parts
}

/// Each row as a part of its own, in the order of digests.
fn all_rows(store: &Store) -> Vec<Adopted> {
    let turns = store.turns.iter().map(|turn| Adopted { turns: vec![*turn], ..Adopted::default() });
    let keys = store.dedupe.iter().map(|(event_id, row)| {
        let key = AdoptedKey { event_id: event_id.clone(), row: row.clone() };
        Adopted { keys: vec![key], ..Adopted::default() }
    });
    let items = store.items.iter().map(|(index, row)| {
        let item = AdoptedItem { index: *index, row: row.clone() };
        Adopted { items: vec![item], ..Adopted::default() }
    });
    turns.chain(keys).chain(items).collect()
}

fn tell(world: &mut World, part: &Adopted) -> Vec<Effect> {
    let caller = world.caller();
    let mut effects = world.tell(Command::Adopt { caller, part: Box::new(part.clone()) });
    effects.extend(world.commit_all());
    effects
}

/// The same, and what follows from the last part is not recorded yet.
fn tell_alone(world: &mut World, part: &Adopted) -> Vec<Effect> {
    let caller = world.caller();
    let mut effects = world.tell(Command::Adopt { caller, part: Box::new(part.clone()) });
    if matches!(world.in_flight.front(), Some((_, record)) if matches!(record.event, SessionEvent::Adopted(_))) {
        effects.extend(world.commit_one());
    }
    effects
}

fn is_done(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Done { .. }))
}

/// Another log at the same time, which has adopted nothing yet.
fn elsewhere(home: &World) -> World {
    let mut away = World::with(home.limits);
    (away.now, away.moved) = (home.now, home.log.clone());
    away
}

fn moved(home: &World) -> World {
    let mut away = elsewhere(home);
    for part in parts(home, 1 << 20, 1 << 20) {
        assert!(is_done(&tell(&mut away, &part)));
    }
    away
}

/// Where the session is, and how it came there, makes no difference.
fn assert_alike(away: &World, home: &World) {
    let ((one, history, dedupe), (other, ..)) = (away.dialogue.folded(), home.dialogue.folded());
    let one = Durable { position: other.position, adoption: other.adoption.clone(), ..one.clone() };
    assert_eq!((&one, history, dedupe), home.dialogue.folded());
    let rows = |world: &World| Store { state: None, ..world.stores.last().cloned().unwrap_or_default() };
    assert_eq!(rows(away), rows(home));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_session_goes_on_elsewhere_as_if_it_had_never_moved(
        small in any::<bool>(),
        before in proptest::collection::vec(action(), 0..60),
        (state_bytes, rows) in (1..200usize, 1..4usize),
        crashes in proptest::collection::vec((0..4usize, 0..=2usize, 0..=100usize, 0..=100usize), 0..3),
        after in proptest::collection::vec(action(), 0..40),
    ) {
        let mut home = World::with(limits(small));
        for (id, action) in before.into_iter().enumerate() {
            perform(&mut home, action, id as u128);
        }
        // Where it goes it is not earlier.
        home.now = home.now.max(home.dialogue.durable().updated_at().0).max(START);
        let mut away = elsewhere(&home);
        let parts = parts(&home, state_bytes, rows);
        for (number, part) in parts.iter().enumerate() {
            if let Some((_, kept, state, rows)) = crashes.iter().find(|(at, ..)| *at == number) {
                let caller = away.caller();
                away.tell(Command::Adopt { caller, part: Box::new(part.clone()) });
                let last = away.log.len();
                let state = state * last / 100;
                away.crash(*kept, state, state + rows * (last - state) / 100);
            }
            prop_assert!(is_done(&tell_alone(&mut away, part)), "part {number} of {}", parts.len());
        }
        // Both begin a new life, so that they number their proposals alike.
        for world in [&mut home, &mut away] {
            let last = world.log.len();
            world.crash(0, last, last);
        }
        away.same_requests(&home);
        assert_alike(&away, &home);
        for (id, action) in (1_000..).zip(after) {
            // Its own log has a time of its own, which may be later than the session's.
            if !matches!(action, Action::ClockGoesBack { .. }) {
                let there = perform(&mut away, action.clone(), id);
                prop_assert_eq!(there, perform(&mut home, action, id));
            }
        }
        drain(&mut home);
        drain(&mut away);
        assert_alike(&away, &home);
    }
}

fn conversed() -> World {
    let mut home = World::new();
    home.converse(1, "one");
    home.accept(keyed(2, "key", 1));
    home.answer(70);
    home
}

#[test]
fn until_the_last_part_is_there_the_session_exists_for_nobody() {
    let home = conversed();
    let mut away = elsewhere(&home);
    let parts = parts(&home, 1 << 20, 2);
    assert!(parts.len() > 2);
    for part in &parts {
        assert!(!away.dialogue.durable().exists());
        assert!(is_done(&tell(&mut away, part)));
        if !part.last {
            assert_eq!(refusals(&away.submit(turn(9, "hi"))), [Refusal::SessionBusy]);
            assert_eq!(away.dialogue.durable().adopted(), None);
        }
    }
    assert!(away.dialogue.durable().exists());
    assert_eq!(away.dialogue.durable().adopted(), Some((parts[0].digest, false)));
    assert_eq!(away.transcript(), home.transcript());
    let joined = away.submit(keyed(9, "key", 1));
    assert!(matches!(joined[..], [Effect::Joined { turn: TurnId(2), state: Joined::Answered(_), .. }]), "{joined:?}");
    away.converse(10, "three");
    assert_eq!(away.dialogue.durable().adopted(), Some((parts[0].digest, true)));
}

#[test]
fn the_same_again_changes_nothing() {
    let home = conversed();
    let mut away = elsewhere(&home);
    let parts = parts(&home, 1 << 20, 2);
    for (number, part) in parts.iter().enumerate() {
        tell(&mut away, part);
        for earlier in &parts[..=number] {
            assert!(is_done(&tell(&mut away, earlier)));
        }
    }
    away.converse(9, "more");
    assert!(parts.iter().all(|part| is_done(&tell(&mut away, part))));
    assert_eq!(away.log.len(), parts.len() + 2);
}

#[test]
fn a_session_with_records_of_its_own_is_not_replaced() {
    let home = conversed();
    let parts = parts(&home, 1 << 20, 1 << 20);
    let mut away = elsewhere(&home);
    away.moved.clear();
    away.converse(9, "its own");
    assert_eq!(refusals(&tell(&mut away, &parts[0])), [Refusal::AlreadyExists]);
    let mut other = conversed();
    other.converse(8, "another");
    let mut away = moved(&other);
    assert_eq!(refusals(&tell(&mut away, &parts[0])), [Refusal::AlreadyExists]);
    assert_eq!(away.transcript(), other.transcript());
}

#[test]
fn what_does_not_add_up_is_never_recorded() {
    let home = conversed();
    let parts = parts(&home, 1 << 20, 2);
    let mut away = elsewhere(&home);
    let refused = |away: &mut World, part: &Adopted| {
        let before = away.log.len();
        let refusals = refusals(&tell(away, part));
        assert!(matches!(refusals[..], [Refusal::BadPart(_)]), "{refusals:?}");
        assert_eq!(away.log.len(), before);
    };
    refused(&mut away, &parts[1]);
    refused(&mut away, &Adopted { state: vec![0xff; 9].into(), ..parts[0].clone() });
    let rows_first = Adopted { items: parts[parts.len() - 1].items.clone(), state_left: 1, ..parts[0].clone() };
    refused(&mut away, &rows_first);
    tell(&mut away, &parts[0]);
    refused(&mut away, &parts[2]);
    refused(&mut away, &Adopted { digest: [9; 32], ..parts[1].clone() });
    refused(&mut away, &Adopted { state: parts[0].state.clone(), ..parts[1].clone() });
    refused(&mut away, &Adopted { last: true, ..parts[1].clone() });
    parts[1..parts.len() - 1].iter().for_each(|part| drop(tell(&mut away, part)));
    let last = &parts[parts.len() - 1];
    refused(&mut away, &Adopted { items: vec![], ..last.clone() });
    let debt = AdoptedTurn { turn: TurnId(7), deadline: TimestampMs(START) };
    refused(&mut away, &Adopted { open: vec![debt], ..last.clone() });
    assert!(is_done(&tell(&mut away, last)));
}

#[test]
fn an_adoption_that_was_given_up_leaves_nothing_behind() {
    let (given_up, mut home) = (conversed(), World::new());
    home.accept(keyed(5, "other key", 1));
    home.answer(2);
    let mut away = elsewhere(&home);
    let parts_of_other = parts(&given_up, 30, 2);
    parts_of_other[..parts_of_other.len() - 1].iter().for_each(|part| drop(tell(&mut away, part)));
    for part in parts(&home, 1 << 20, 1) {
        assert!(is_done(&tell(&mut away, &part)));
    }
    assert_alike(&away, &home);
    let last = parts_of_other.last().expect("it has parts");
    assert_eq!(refusals(&tell(&mut away, last)), [Refusal::AlreadyExists]);
}

#[test]
fn a_turn_without_an_answer_goes_on_where_it_was_recorded() {
    let mut home = conversed();
    home.accept(turn(3, "three"));
    home.accept(turn(4, "four"));
    home.model_starts("a");
    home.model_says(70);
    home.commit_all();
    let mut away = moved(&home);
    away.commit_all();
    let order = away.running.clone().expect("the turn runs again");
    assert_eq!((order.turn, order.attempt, order.forced.len()), (TurnId(3), 2, 70));
    away.answer(10);
    away.answer(5);
    let expected = ["one", &reply_of("a", 1, 3), "hello", &reply_of("a", 2, 70), "three", &reply_of("a", 3, 80)];
    assert_eq!(away.transcript()[..6], expected);
    assert!(away.dialogue.is_idle());
}

#[test]
fn an_overdue_turn_ends_where_it_came_to() {
    let mut home = conversed();
    home.accept(turn(3, "three"));
    let mut away = elsewhere(&home);
    away.advance_time(61_000);
    for part in parts(&home, 1 << 20, 1 << 20) {
        tell(&mut away, &part);
    }
    assert_eq!(endings(&away.seen), [(3, "deadline_exceeded".into())]);
}

#[test]
fn a_deleted_session_stays_deleted() {
    let mut home = conversed();
    let caller = home.caller();
    home.tell(Command::Delete { caller });
    home.commit_all();
    assert!(matches!(home.log.last().map(|record| &record.event), Some(SessionEvent::Deleted)));
    let mut away = moved(&home);
    assert_eq!(refusals(&away.submit(turn(9, "hi"))), [Refusal::Deleted]);
}
