//! Sessions opened, changed, filled and deleted.

use std::collections::BTreeMap;

use super::world::*;
use crate::{Command, Effect, Refusal};
use parlance_cluster_protocol::{SessionEvent, SessionOpened, SessionUpdated, TurnId};

fn open(world: &mut World) -> Vec<Effect> {
    let caller = world.caller();
    let metadata = BTreeMap::from([("topic".to_owned(), "tea".to_owned())]);
    world.tell(Command::Open { caller, opened: SessionOpened { metadata, ..SessionOpened::default() } })
}

fn update(world: &mut World) -> Vec<Effect> {
    let caller = world.caller();
    let updated = SessionUpdated { metadata: Some(BTreeMap::new()), ..SessionUpdated::default() };
    world.tell(Command::Update { caller, updated })
}

fn add(world: &mut World, text: &str) -> Vec<Effect> {
    let caller = world.caller();
    world.tell(Command::AddItems { caller, items: vec![user(text)] })
}

fn delete(world: &mut World) -> Vec<Effect> {
    let caller = world.caller();
    world.tell(Command::Delete { caller })
}

#[test]
fn a_session_is_opened_once() {
    let mut world = World::new();
    open(&mut world);
    assert_eq!(refusals(&open(&mut world)), [Refusal::SessionBusy], "nobody knows yet");
    assert!(matches!(world.commit_all().as_slice(), [Effect::Done { .. }]));
    assert_eq!(refusals(&open(&mut world)), [Refusal::AlreadyExists]);
    assert_eq!(world.dialogue.durable().metadata().len(), 1);
    update(&mut world);
    world.commit_all();
    assert!(world.dialogue.durable().metadata().is_empty());
}

#[test]
fn a_session_that_does_not_exist_is_not_found() {
    let mut world = World::new();
    assert_eq!(refusals(&update(&mut world)), [Refusal::NotFound]);
    assert_eq!(refusals(&add(&mut world, "x")), [Refusal::NotFound]);
    assert_eq!(refusals(&delete(&mut world)), [Refusal::NotFound]);
    let caller = world.caller();
    let effects = world.tell(Command::Submit { caller, turn: Box::new(turn(1, "hi")), create: false, behind: None });
    assert_eq!(refusals(&effects), [Refusal::NotFound]);
    world.accept(turn(1, "hi"));
    assert!(world.dialogue.durable().exists(), "a turn may bring its session into being");
}

#[test]
fn a_turn_is_refused_where_another_came_first() {
    let mut world = World::new();
    let submit = |world: &mut World, id, behind| {
        let caller = world.caller();
        world.tell(Command::Submit { caller, turn: Box::new(turn(id, "hi")), create: true, behind: Some(behind) })
    };
    assert_eq!(refusals(&submit(&mut world, 1, 1)), [Refusal::MovedOn]);
    assert_eq!(refusals(&submit(&mut world, 1, 0)), []);
    assert_eq!(refusals(&submit(&mut world, 2, 0)), [Refusal::MovedOn], "one that is only proposed counts");
    world.commit_all();
    world.answer(1);
    assert_eq!(refusals(&submit(&mut world, 2, 0)), [Refusal::MovedOn]);
    assert_eq!(refusals(&submit(&mut world, 2, 1)), []);
    world.lose(0);
    assert_eq!(refusals(&submit(&mut world, 3, 1)), [], "one that never was does not count");
}

#[test]
fn items_are_added_only_at_rest() {
    let mut world = World::new();
    world.submit(turn(1, "one"));
    assert_eq!(refusals(&add(&mut world, "x")), [Refusal::SessionBusy]);
    world.commit_all();
    assert_eq!(refusals(&add(&mut world, "x")), [Refusal::SessionBusy]);
    world.answer(1);
    add(&mut world, "added");
    world.accept(turn(2, "two"));
    assert_eq!(world.prompt(), ["one", &reply_of("a", 1, 1), "added", "two"]);
}

#[test]
fn deletion_ends_open_turns_and_refuses_new_ones() {
    let mut world = World::new();
    world.converse(1, "one");
    world.accept(keyed(2, "key", 1));
    world.accept(turn(3, "three"));
    world.model_starts("a");
    delete(&mut world);
    assert_eq!(refusals(&world.submit(turn(4, "four"))), [Refusal::SessionBusy], "nobody knows yet");
    let effects = world.commit_all();
    assert!(effects.iter().any(|effect| matches!(effect, Effect::CancelGeneration { turn: TurnId(2), .. })));
    assert_eq!(endings(&effects), [(2, "session_deleted".into()), (3, "session_deleted".into())]);
    assert_eq!(refusals(&world.submit(turn(4, "four"))), [Refusal::Deleted]);
    assert_eq!(refusals(&open(&mut world)), [Refusal::Deleted]);
    assert_eq!(refusals(&delete(&mut world)), [Refusal::Deleted]);
    assert!(world.dialogue.is_idle() && !world.dialogue.durable().exists());
}

#[test]
fn deletion_leaves_nothing_but_the_state_row() {
    let mut world = World::new();
    open(&mut world);
    world.accept(keyed(1, "key", 1));
    world.answer(2);
    world.accept(turn(2, "secret words"));
    world.accept(turn(3, "other words"));
    delete(&mut world);
    world.commit_all();
    let store = world.stores.last().cloned().unwrap_or_default();
    assert!(store.items.is_empty() && store.dedupe.is_empty() && store.turns.is_empty());
    let state = String::from_utf8_lossy(&store.state.unwrap_or_default()).into_owned();
    assert!(!state.contains("words") && !state.contains("tea"), "{state}");
    assert_eq!(world.crash(0, 2, 5), []);
}

#[test]
fn a_deletion_that_is_never_committed_changes_nothing() {
    let mut world = World::new();
    world.converse(1, "one");
    delete(&mut world);
    assert_eq!(refusals(&world.lose(0)), [Refusal::NotRecorded]);
    world.converse(2, "two");
    assert_eq!(world.transcript().len(), 4);
}

#[test]
fn turns_left_open_by_a_crash_behind_a_deletion_are_ended() {
    let mut world = World::new();
    world.accept(turn(1, "one"));
    world.accept(turn(2, "two"));
    delete(&mut world);
    world.crash(1, 0, 0);
    assert!(matches!(world.log.last().map(|record| &record.event), Some(SessionEvent::Deleted)));
    assert_eq!(endings(&world.commit_all()), [(1, "session_deleted".into()), (2, "session_deleted".into())]);
}

#[test]
fn records_keep_whose_action_they_are() {
    let mut world = World::new();
    open(&mut world);
    world.accept(turn(1, "hi"));
    world.answer(1);
    let users: Vec<_> = world.log.iter().map(|record| record.user.is_some()).collect();
    assert_eq!(users, [true, true, false]);
}
