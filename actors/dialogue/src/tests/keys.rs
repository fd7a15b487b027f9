//! Repeated event ids and idempotency keys.

use super::world::*;
use crate::{Command, DEDUPE_TTL_MS, Effect, Joined, Limits, Refusal};
use parlance_cluster_protocol::{Origin, SessionKey, TimestampMs, TurnId};

fn joined(effects: &[Effect]) -> Vec<(u128, &'static str)> {
    let joined = effects.iter().filter_map(|effect| match effect {
        Effect::Joined { turn, state: Joined::Open, .. } => Some((turn.0, "open")),
        Effect::Joined { turn, state: Joined::Answered(_), .. } => Some((turn.0, "answered")),
        Effect::Joined { turn, state: Joined::Over, .. } => Some((turn.0, "over")),
        _ => None,
    });
    joined.collect()
}

#[test]
fn a_repeated_request_joins_the_first_whatever_its_state() {
    let mut world = World::new();
    world.submit(keyed(1, "key", 1));
    assert_eq!(world.submit(keyed(2, "key", 1)), [], "nothing is told while the first is not recorded");
    assert_eq!(joined(&world.commit_all()), [(1, "open")]);
    assert_eq!(joined(&world.submit(keyed(3, "key", 1))), [(1, "open")]);
    world.answer(3);
    assert_eq!(joined(&world.submit(keyed(4, "key", 1))), [(1, "answered")]);
    assert_eq!(world.log.len(), 2);
}

#[test]
fn joining_is_possible_while_the_queue_is_full() {
    let mut world = World::with(Limits { queue: 1, ..Limits::default() });
    world.accept(keyed(1, "key", 1));
    assert_eq!(joined(&world.submit(keyed(2, "key", 1))), [(1, "open")]);
}

#[test]
fn a_request_that_joined_a_lost_one_is_refused_with_it() {
    let mut world = World::new();
    world.submit(keyed(1, "key", 1));
    world.submit(keyed(2, "key", 1));
    assert_eq!(refusals(&world.lose(0)), [Refusal::NotRecorded, Refusal::NotRecorded]);
    world.accept(keyed(3, "key", 1));
}

#[test]
fn another_body_under_the_same_key_is_a_conflict() {
    let mut world = World::new();
    world.submit(keyed(1, "key", 1));
    assert_eq!(refusals(&world.submit(keyed(2, "key", 2))), [Refusal::IdempotencyConflict]);
    world.commit_all();
    world.answer(1);
    assert_eq!(refusals(&world.submit(keyed(3, "key", 2))), [Refusal::IdempotencyConflict]);
}

#[test]
fn an_answer_survives_its_regeneration() {
    let mut world = World::new();
    world.accept(keyed(1, "key", 1));
    world.answer(3);
    world.accept(again(2, 1));
    world.answer(5);
    assert_eq!(world.transcript(), ["hello".into(), reply_of("a", 2, 5)]);
    assert_eq!(joined(&world.submit(keyed(3, "key", 1))), [(1, "answered")]);
    world.crash(0, 0, 0);
    assert_eq!(joined(&world.submit(keyed(4, "key", 1))), [(1, "answered")]);
}

#[test]
fn a_failed_turn_is_replayed_as_failed() {
    let mut world = World::new();
    world.accept(keyed(1, "key", 1));
    world.model_fails(None);
    world.commit_all();
    assert_eq!(joined(&world.submit(keyed(2, "key", 1))), [(1, "answered")]);
}

#[test]
fn channel_answers_are_not_kept() {
    let mut world = World::new();
    let mut first = keyed(1, "event", 1);
    first.origin = Origin::Channel;
    world.accept(first.clone());
    world.answer(3);
    first.turn = TurnId(2);
    assert_eq!(joined(&world.submit(first)), [(1, "over")]);
}

#[test]
fn an_event_id_is_remembered_for_24_hours_and_then_forgotten() {
    let mut world = World::new();
    world.accept(keyed(1, "key", 1));
    world.answer(3);
    world.advance_time(DEDUPE_TTL_MS - 1);
    assert_eq!(joined(&world.submit(keyed(2, "key", 1))), [(1, "answered")]);
    world.advance_time(1);
    world.accept(keyed(3, "key", 2));
    assert_eq!(world.stores[2].dedupe.len(), 1);
    world.advance_time(DEDUPE_TTL_MS);
    world.accept(turn(4, "any record"));
    assert!(world.stores.last().is_some_and(|store| store.dedupe.is_empty()), "its row is gone");
}

#[test]
fn at_the_bound_new_keys_are_refused_and_none_is_forgotten() {
    let mut world = World::with(Limits { dedupe: 2, ..Limits::default() });
    for (id, key) in [(1, "a"), (2, "b")] {
        world.accept(keyed(id, key, 1));
        world.answer(1);
    }
    assert_eq!(refusals(&world.submit(keyed(3, "c", 1))), [Refusal::DedupeFull]);
    assert_eq!(joined(&world.submit(keyed(4, "a", 1))), [(1, "answered")]);
    world.converse(5, "without a key");
    world.advance_time(DEDUPE_TTL_MS);
    world.accept(keyed(6, "c", 1));
}

#[test]
fn the_bytes_of_kept_answers_are_bounded() {
    let mut world = World::with(Limits { dedupe_bytes: 10, ..Limits::default() });
    world.accept(keyed(1, "a", 1));
    world.answer(10);
    assert_eq!(refusals(&world.submit(keyed(2, "b", 1))), [Refusal::DedupeFull]);
}

fn bind(world: &mut World, turn: u128, body: u8) -> Vec<Effect> {
    let caller = world.caller();
    let target = SessionKey::api("tenant", format!("target {turn}"));
    let expires_at = TimestampMs(world.now + DEDUPE_TTL_MS);
    world.tell(Command::BindKey { caller, body_hash: [body; 32], target, turn: TurnId(turn), expires_at })
}

fn bound(effects: &[Effect]) -> Vec<(u128, bool)> {
    let bound = effects.iter().filter_map(|effect| match effect {
        Effect::Bound { turn, first, .. } => Some((turn.0, *first)),
        _ => None,
    });
    bound.collect()
}

#[test]
fn a_key_is_bound_once_and_to_one_body() {
    let mut world = World::new();
    bind(&mut world, 1, 1);
    assert_eq!(bind(&mut world, 2, 1), [], "who comes second waits for the record");
    assert_eq!(bind(&mut world, 3, 9), []);
    let effects = world.commit_all();
    assert_eq!(bound(&effects), [(1, true), (1, false)]);
    assert_eq!(refusals(&effects), [Refusal::IdempotencyConflict]);
    assert_eq!(bound(&bind(&mut world, 4, 1)), [(1, false)]);
    assert_eq!(bound(&bind(&mut world, 1, 1)), [(1, true)], "the first may ask again");
    assert_eq!(refusals(&bind(&mut world, 5, 9)), [Refusal::IdempotencyConflict]);
    assert_eq!(world.log.len(), 1);
}

#[test]
fn a_key_can_be_bound_again_when_its_time_is_up() {
    let mut world = World::new();
    bind(&mut world, 1, 1);
    world.commit_all();
    world.crash(0, 1, 1);
    world.advance_time(DEDUPE_TTL_MS - 1);
    assert_eq!(bound(&bind(&mut world, 2, 1)), [(1, false)]);
    world.advance_time(1);
    bind(&mut world, 3, 9);
    assert_eq!(bound(&world.commit_all()), [(3, true)]);
}

#[test]
fn a_binding_that_is_never_committed_binds_nothing() {
    let mut world = World::new();
    bind(&mut world, 1, 1);
    bind(&mut world, 2, 9);
    assert_eq!(refusals(&world.lose(0)), [Refusal::NotRecorded, Refusal::NotRecorded]);
    bind(&mut world, 2, 9);
    assert_eq!(bound(&world.commit_all()), [(2, true)]);
}

#[test]
fn what_waits_for_a_record_is_bounded() {
    let mut world = World::with(Limits { waiting: 3, ..Limits::default() });
    for turn in 1..=3 {
        assert_eq!(refusals(&bind(&mut world, turn, 1)), []);
    }
    assert_eq!(refusals(&bind(&mut world, 4, 1)), [Refusal::SessionBusy]);
    assert_eq!(refusals(&world.submit(turn(5, "hi"))), [Refusal::SessionBusy]);
}
