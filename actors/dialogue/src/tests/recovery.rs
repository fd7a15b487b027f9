//! Crashes, checkpoints of a running reply, records that cannot follow.

use super::world::*;
use crate::{Command, DialogueError, Projector};
use parlance_cluster_protocol::{
    FinishReason, Position, Progress, Replied, SessionEvent, SessionKey, SessionRecord, TimestampMs, TurnId,
};

fn progress(world: &World) -> Vec<(u32, usize)> {
    let progress = world.log.iter().filter_map(|record| match &record.event {
        SessionEvent::Progress(progress) => Some((progress.from, progress.tokens.len())),
        _ => None,
    });
    progress.collect()
}

#[test]
fn tokens_are_recorded_every_64() {
    let mut world = World::new();
    world.accept(turn(1, "hi"));
    world.model_starts("a");
    for _ in 0..200 {
        world.model_says(1);
        world.commit_all();
    }
    assert_eq!(progress(&world), [(0, 64), (64, 64), (128, 64)]);
}

#[test]
fn tokens_are_recorded_after_250_ms() {
    let mut world = World::new();
    world.accept(turn(1, "hi"));
    world.model_starts("a");
    world.model_says(3);
    assert_eq!(world.dialogue.wake_at(), Some(TimestampMs(START + 250)));
    world.advance_time(249);
    assert!(world.in_flight.is_empty());
    world.advance_time(1);
    world.commit_all();
    world.advance_time(1_000);
    assert_eq!(progress(&world), [(0, 3)], "nothing new, nothing to record");
    world.model_says(2);
    world.commit_all();
    assert_eq!(progress(&world), [(0, 3), (3, 2)]);
}

#[test]
fn one_checkpoint_is_in_flight_at_a_time_and_a_lost_one_is_made_good() {
    let mut world = World::new();
    world.accept(turn(1, "hi"));
    world.model_starts("a");
    for _ in 0..4 {
        world.model_says(64);
    }
    assert_eq!(world.in_flight.len(), 1);
    world.lose(0);
    world.commit_all();
    assert_eq!(progress(&world), [(0, 256)]);
}

#[test]
fn a_reply_goes_on_where_it_was_recorded() {
    let mut world = World::new();
    world.accept(turn(1, "hi"));
    world.model_starts("a");
    world.model_says(70);
    world.commit_all();
    world.model_says(5);
    world.crash(0, 1, 2);
    assert!(world.running.is_none(), "an attempt is recorded before it runs");
    world.commit_all();
    let order = world.running.clone().expect("the turn runs again");
    assert_eq!((order.attempt, order.forced.len()), (2, 70));
    assert_eq!(order.forced_model, Some(model("a")));
    world.model_starts("a");
    world.model_says(70);
    world.commit_all();
    world.answer(0);
    assert_eq!(progress(&world), [(0, 70), (70, 70)]);
    assert_eq!(world.transcript(), ["hi".into(), reply_of("a", 1, 140)]);
}

#[test]
fn another_model_begins_anew() {
    let mut world = World::new();
    world.accept(turn(1, "hi"));
    world.model_starts("a");
    world.model_says(70);
    world.commit_all();
    world.crash(0, 0, 0);
    world.commit_all();
    world.model_starts("b");
    world.model_says(64);
    world.commit_all();
    world.crash(0, 0, 0);
    world.commit_all();
    let order = world.running.clone().expect("the turn runs again");
    assert_eq!((order.attempt, order.forced.len(), order.forced_model), (3, 64, Some(model("b"))));
    world.model_starts("b");
    world.model_finishes();
    world.commit_all();
    assert_eq!(world.transcript(), ["hi".into(), reply_of("b", 1, 64)]);
}

#[test]
fn a_turn_that_is_interrupted_again_and_again_fails() {
    let mut world = World::new();
    world.accept(turn(1, "hi"));
    world.accept(turn(2, "waits"));
    for interrupted in 1..=world.limits.attempts {
        assert_eq!(world.running.as_ref().map(|order| (order.turn, order.attempt)), Some((TurnId(1), interrupted)));
        world.crash(0, 0, 0);
        world.commit_all();
    }
    assert_eq!(endings(&world.seen), [(1, "model_failed".into())]);
    let order = world.running.clone().expect("the waiting turn has come up");
    assert_eq!((order.turn, order.attempt), (TurnId(2), 1), "waiting is no attempt");
}

#[test]
fn an_interruption_is_no_failure() {
    let mut world = World::new();
    world.accept(turn(1, "hi"));
    for _ in 0..4 {
        world.model_fails(Some(0));
        world.commit_all();
        world.crash(0, 0, 0);
        world.commit_all();
    }
    world.answer(2);
    assert_eq!(endings(&world.seen), [(1, "Stop".into())]);
}

#[test]
fn a_stop_waits_until_what_was_recorded_is_said_again() {
    let mut world = World::new();
    world.accept(turn(1, "hi"));
    world.model_starts("a");
    world.model_says(70);
    world.commit_all();
    world.crash(0, 0, 0);
    world.commit_all();
    world.tell(Command::Stop { turn: None });
    assert!(world.in_flight.is_empty(), "what was shown is not taken back");
    world.model_starts("a");
    assert_eq!(endings(&world.commit_all()), [(1, "Cancelled".into())]);
    assert_eq!(world.transcript(), ["hi".into(), reply_of("a", 1, 70)]);
}

#[test]
fn a_stop_that_never_catches_up_ends_at_the_deadline() {
    let mut world = World::new();
    world.accept(turn(1, "hi"));
    world.model_starts("a");
    world.model_says(70);
    world.commit_all();
    world.crash(0, 0, 0);
    world.tell(Command::Stop { turn: None });
    world.advance_time(60_000);
    assert_eq!(endings(&world.commit_all()), [(1, "Cancelled".into())]);
}

#[test]
fn a_record_is_applied_once() {
    let mut world = World::new();
    world.converse(1, "one");
    let before = world.dialogue.snapshot();
    let record = world.log[1].clone();
    assert_eq!(world.dialogue.apply(position_of(1), &record, &mut Vec::new()), Ok(false));
    assert_eq!(world.dialogue.snapshot(), before);
}

#[test]
fn a_waiting_session_is_idle_only_when_all_is_settled() {
    let mut world = World::new();
    assert!(world.dialogue.is_idle());
    world.submit(turn(1, "hi"));
    assert!(!world.dialogue.is_idle());
    world.commit_all();
    assert!(!world.dialogue.is_idle());
    assert_eq!(world.dialogue.open_turns().len(), 1);
    world.answer(1);
    assert!(world.dialogue.is_idle());
    assert_eq!(world.dialogue.wake_at(), None);
}

fn replied(world: &World, turn: u128) -> SessionRecord {
    let event = SessionEvent::Replied(Replied {
        turn: TurnId(turn),
        attempt: 1,
        text: "rogue".into(),
        finish: FinishReason::Stop,
        usage: Default::default(),
        model: Default::default(),
    });
    SessionRecord { session: world.session.clone(), user: None, key_id: 0, at: TimestampMs(world.now), event }
}

#[test]
fn records_that_cannot_follow_are_refused() {
    let mut world = World::new();
    world.accept(turn(1, "one"));
    world.accept(turn(2, "two"));
    let before = world.dialogue.snapshot();
    let mut gap = replied(&world, 1);
    gap.event =
        SessionEvent::Progress(Progress { turn: TurnId(1), attempt: 1, model: model("a"), from: 5, tokens: vec![1] });
    let repeated = world.log[0].clone();
    for record in [replied(&world, 2), replied(&world, 9), gap, repeated] {
        let outcome = world.dialogue.apply(Position(1_000), &record, &mut Vec::new());
        assert!(matches!(outcome, Err(DialogueError::Inconsistent { .. })), "{outcome:?}");
    }
    let mut foreign = replied(&world, 1);
    foreign.session = SessionKey::api("tenant", "other");
    let outcome = world.dialogue.apply(Position(1_000), &foreign, &mut Vec::new());
    assert!(matches!(outcome, Err(DialogueError::WrongSession { .. })), "{outcome:?}");
    assert_eq!(world.dialogue.snapshot(), before);
}

#[test]
fn a_projector_makes_the_same_rows_without_the_transcript() {
    let mut world = World::new();
    world.accept(keyed(1, "key", 1));
    world.answer(3);
    world.accept(again(2, 1));
    world.answer(3);
    for known in 0..=world.log.len() {
        let mut store = world.stores[known].clone();
        let mut projector =
            Projector::new(world.session.clone(), world.limits, store.state.as_deref()).expect("readable");
        let mut changes = Vec::new();
        for (at, record) in world.log.iter().enumerate() {
            projector.apply(position_of(at), record, &mut changes).expect("the log was applied before");
        }
        let state = projector.take_state();
        assert_eq!(state.is_some(), known < world.log.len());
        for change in changes {
            store.change(change);
        }
        store.state = state.map(|(_, state)| state).or(store.state);
        assert_eq!(Some(&store), world.stores.last());
        assert_eq!(projector.take_state(), None);
    }
}
