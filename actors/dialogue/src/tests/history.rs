//! What a prompt is made of.

use super::world::*;
use crate::{Command, ItemKind, Limits, Refusal};
use parlance_cluster_protocol::{History, SessionOpened, SessionUpdated, TurnAccepted, TurnId};

#[test]
fn a_prompt_is_the_conversation_so_far() {
    let mut world = World::new();
    world.converse(1, "one");
    world.converse(2, "two");
    world.accept(turn(3, "three"));
    let (first, second) = (reply_of("a", 1, 3), reply_of("a", 2, 3));
    assert_eq!(world.prompt(), ["one", &first, "two", &second, "three"]);
}

#[test]
fn the_sessions_system_prompt_comes_first() {
    let mut world = World::new();
    let caller = world.caller();
    let opened = SessionOpened {
        system_prompt: Some("Be brief.".into()),
        items: vec![user("earlier")],
        ..SessionOpened::default()
    };
    world.tell(Command::Open { caller, opened });
    world.accept(turn(1, "now"));
    assert_eq!(world.prompt(), ["Be brief.", "earlier", "now"]);
}

#[test]
fn instructions_take_the_system_prompts_place_in_their_turn_alone() {
    let mut world = World::new();
    let caller = world.caller();
    let opened = SessionOpened { system_prompt: Some("Be brief.".into()), ..SessionOpened::default() };
    world.tell(Command::Open { caller, opened });
    let instructed = |id, text| TurnAccepted { instructions: Some("Be kind.".into()), ..turn(id, text) };
    world.accept(instructed(1, "one"));
    assert_eq!(world.prompt(), ["Be kind.", "one"]);
    world.crash(0, 0, 0);
    world.commit_all();
    assert_eq!(world.prompt(), ["Be kind.", "one"]);
    world.answer(1);
    world.accept(turn(2, "two"));
    assert_eq!(world.prompt(), ["Be brief.", "one", &reply_of("a", 1, 1), "two"]);
    world.answer(1);
    world.accept(TurnAccepted { history: History::Given, ..instructed(3, "three") });
    assert_eq!(world.prompt(), ["Be kind.", "three"]);
}

#[test]
fn every_attempt_of_a_turn_gets_the_same_prompt() {
    let mut world = World::new();
    let set = |world: &mut World, prompt: &str| {
        let caller = world.caller();
        let updated = SessionUpdated { system_prompt: Some(prompt.into()), ..SessionUpdated::default() };
        world.tell(Command::Update { caller, updated });
        world.commit_all();
    };
    world.converse(1, "one");
    set(&mut world, "Be brief.");
    world.accept(turn(2, "two"));
    let prompt = world.prompt().join("|");
    set(&mut world, "Be verbose.");
    world.crash(0, 4, 4);
    world.commit_all();
    assert_eq!(world.prompt().join("|"), prompt);
    world.answer(1);
    set(&mut world, "");
    world.accept(turn(3, "three"));
    assert_eq!(world.prompt().first(), Some(&"one"), "an empty system prompt is none");
}

#[test]
fn exchanges_without_text_are_in_the_transcript_and_in_no_prompt() {
    let mut world = World::new();
    world.accept(turn(1, "fails"));
    world.model_fails(None);
    world.commit_all();
    world.accept(turn(2, "stopped"));
    world.tell(Command::Stop { turn: None });
    world.commit_all();
    world.accept(turn(3, "works"));
    assert_eq!(world.prompt(), ["works"]);
    world.answer(2);
    assert_eq!(world.transcript(), ["fails", "It failed.", "stopped", "", "works", &reply_of("a", 3, 2)]);
}

#[test]
fn a_given_prompt_is_used_as_it_is_and_leaves_no_trace_in_later_ones() {
    let mut world = World::new();
    world.converse(1, "one");
    let mut given = turn(2, "given");
    given.history = History::Given;
    given.input.insert(0, user("before"));
    world.accept(given);
    assert_eq!(world.prompt(), ["before", "given"]);
    world.answer(2);
    world.accept(turn(3, "three"));
    assert_eq!(world.prompt(), ["one", &reply_of("a", 1, 3), "three"]);
    assert_eq!(world.transcript().len(), 6);
}

#[test]
fn a_regenerated_reply_replaces_the_last_one_when_it_is_committed() {
    let mut world = World::new();
    world.converse(1, "one");
    world.converse(2, "two");
    world.accept(again(3, 2));
    assert_eq!(world.prompt(), ["one", &reply_of("a", 1, 3), "two"]);
    assert_eq!(world.transcript().last(), Some(&reply_of("a", 2, 3)), "the old reply stays until then");
    world.answer(5);
    let replies = [reply_of("a", 1, 3), reply_of("a", 3, 5)];
    assert_eq!(world.transcript(), ["one", &replies[0], "two", &replies[1]]);
    world.accept(again(4, 3));
    assert_eq!(world.prompt(), ["one", &replies[0], "two"]);
}

#[test]
fn a_regeneration_without_text_leaves_the_reply_and_can_be_tried_again() {
    let mut world = World::new();
    world.converse(1, "one");
    for (id, old) in [(2, 1), (3, 2), (4, 1)] {
        world.accept(again(id, old));
        assert_eq!(world.prompt(), ["one"]);
        world.model_fails(None);
        world.commit_all();
        assert_eq!(world.transcript(), ["one", &reply_of("a", 1, 3), "It failed."]);
    }
    world.accept(turn(5, "five"));
    assert_eq!(world.prompt(), ["one", &reply_of("a", 1, 3), "five"]);
    world.answer(1);
    world.accept(again(6, 5));
    world.answer(2);
    assert_eq!(world.transcript().last(), Some(&reply_of("a", 6, 2)));
}

#[test]
fn a_failed_turn_can_be_regenerated() {
    let mut world = World::new();
    world.accept(turn(1, "one"));
    world.model_fails(None);
    world.commit_all();
    world.accept(again(2, 1));
    assert_eq!(world.prompt(), ["one"]);
    world.answer(2);
    assert_eq!(world.transcript(), ["one", &reply_of("a", 2, 2)]);
    world.accept(turn(3, "three"));
    assert_eq!(world.prompt(), ["one", &reply_of("a", 2, 2), "three"]);
}

#[test]
fn only_the_last_reply_of_a_session_at_rest_is_regenerated() {
    let mut world = World::new();
    assert_eq!(refusals(&world.submit(again(1, 9))), [Refusal::InvalidRegenerate]);
    world.converse(1, "one");
    world.converse(2, "two");
    assert_eq!(refusals(&world.submit(again(3, 1))), [Refusal::InvalidRegenerate]);
    let mut with_input = again(3, 2);
    with_input.input = vec![user("other")];
    assert_eq!(refusals(&world.submit(with_input)), [Refusal::InvalidRegenerate]);
    world.submit(turn(4, "four"));
    assert_eq!(refusals(&world.submit(again(3, 2))), [Refusal::SessionBusy], "a turn is in flight");
    world.commit_all();
    assert_eq!(refusals(&world.submit(again(3, 2))), [Refusal::SessionBusy], "a turn is open");
    world.answer(1);
    let caller = world.caller();
    world.tell(Command::AddItems { caller, items: vec![user("more")] });
    world.commit_all();
    assert_eq!(refusals(&world.submit(again(3, 4))), [Refusal::InvalidRegenerate], "something came behind it");
}

#[test]
fn the_window_keeps_the_latest_items_within_its_bounds() {
    let mut world = World::with(Limits { history_items: 6, history_bytes: 1_000, ..Limits::default() });
    for id in 1..=10 {
        world.converse(id, &format!("question {id}"));
    }
    world.accept(turn(11, "last"));
    let replies = [reply_of("a", 9, 3), reply_of("a", 10, 3)];
    // Six rows, the new one among them, which leaves the answer of the eighth exchange alone at the front.
    let eighth = reply_of("a", 8, 3);
    assert_eq!(world.prompt(), [&eighth, "question 9", &replies[0], "question 10", &replies[1], "last"]);
    assert_eq!(world.transcript().len(), 21, "the transcript keeps everything");
}

#[test]
fn the_window_is_bounded_in_bytes() {
    let mut world = World::with(Limits { history_bytes: 1_000, ..Limits::default() });
    for id in 1..=5 {
        world.converse(id, &"x".repeat(400));
    }
    world.accept(turn(6, "last"));
    let bytes: usize = world.prompt().iter().map(|text| text.len()).sum();
    assert!((500..=1_000).contains(&bytes), "{bytes}");
}

#[test]
fn messages_larger_than_the_window_are_refused_unless_the_prompt_is_given() {
    let mut world = World::with(Limits { history_bytes: 100, ..Limits::default() });
    let mut large = turn(1, &"x".repeat(101));
    assert_eq!(refusals(&world.submit(large.clone())), [Refusal::InputTooLarge]);
    large.history = History::Given;
    world.accept(large);
}

#[test]
fn an_exchange_larger_than_the_window_stays_whole_while_it_is_the_last() {
    let mut world = World::with(Limits { history_bytes: 100, ..Limits::default() });
    let question = "x".repeat(90);
    world.accept(turn(1, &question));
    world.answer(50);
    world.accept(again(2, 1));
    assert_eq!(world.prompt(), [&question]);
    world.answer(50);
    world.accept(turn(3, "next"));
    assert_eq!(world.prompt(), ["next"]);
}

#[test]
fn rows_tell_what_is_needed_to_show_them() {
    let mut world = World::new();
    world.converse(1, "one");
    world.accept(again(2, 1));
    world.answer(2);
    let rows = world.stores.last().map(|store| store.transcript()).unwrap_or_default();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0].kind, ItemKind::Input { given: false });
    assert_eq!((rows[0].turn, rows[0].exchange, rows[0].user), (Some(TurnId(1)), Some(TurnId(1)), Some([7; 32])));
    assert_eq!((rows[1].turn, rows[1].exchange, rows[1].user), (Some(TurnId(2)), Some(TurnId(1)), None));
    let ItemKind::Reply { usage, model, .. } = &rows[1].kind else { panic!("{rows:?}") };
    assert_eq!((usage.completion_tokens, model.name.as_str()), (2, "a"));
}
