//! Turns: acknowledged when recorded, answered in order, ended once.

use super::world::*;
use crate::{Command, Effect, Limits, Refusal};
use parlance_cluster_protocol::{FinishReason, SessionEvent, TimestampMs, TurnId};

#[test]
fn a_turn_is_acknowledged_and_begun_only_when_it_is_committed() {
    let mut world = World::new();
    let effects = world.submit(turn(1, "hi"));
    assert!(matches!(effects.as_slice(), [Effect::Propose { .. }]), "{effects:?}");
    let effects = world.commit_one();
    assert!(matches!(effects.as_slice(), [Effect::Accepted { .. }, Effect::StartGeneration(_)]), "{effects:?}");
    assert_eq!(world.prompt(), ["hi"]);
}

#[test]
fn a_turn_that_is_never_committed_is_refused() {
    let mut world = World::new();
    world.submit(turn(1, "hi"));
    assert_eq!(refusals(&world.lose(0)), [Refusal::NotRecorded]);
    assert!(world.dialogue.is_idle() && world.running.is_none() && world.nobody_waits());
}

#[test]
fn a_reply_is_told_when_it_is_committed_and_proposed_until_then() {
    let mut world = World::new();
    world.accept(turn(1, "hi"));
    world.model_starts("a");
    world.model_says(3);
    world.model_finishes();
    for _ in 0..3 {
        assert_eq!(endings(&world.lose(0)), []);
        assert_eq!(world.in_flight.len(), 1, "the same reply is proposed anew");
    }
    assert_eq!(endings(&world.commit_all()), [(1, "Stop".into())]);
    assert_eq!(world.transcript(), ["hi".into(), reply_of("a", 1, 3)]);
    assert!(world.dialogue.is_idle());
}

#[test]
fn turns_are_answered_one_after_the_other() {
    let mut world = World::new();
    for id in 1..=3 {
        world.accept(turn(id, &format!("question {id}")));
    }
    for id in 1..=3 {
        assert_eq!(world.running.as_ref().map(|order| order.turn), Some(TurnId(id)));
        assert_eq!(endings(&world.answer(2)), [(id, "Stop".into())]);
    }
    let replies: Vec<_> = (1..=3).flat_map(|id| [format!("question {id}"), reply_of("a", id, 2)]).collect();
    assert_eq!(world.transcript(), replies);
}

#[test]
fn the_queue_is_bounded_and_counts_what_is_in_flight() {
    let mut world = World::with(Limits { queue: 2, ..Limits::default() });
    world.accept(turn(1, "one"));
    world.submit(turn(2, "two"));
    assert_eq!(refusals(&world.submit(turn(3, "three"))), [Refusal::QueueFull]);
    world.answer(1);
    world.accept(turn(4, "four"));
}

#[test]
fn a_turn_ends_at_its_deadline_and_its_generation_is_cancelled() {
    let mut world = World::new();
    world.accept(turn(1, "hi"));
    world.model_starts("a");
    assert_eq!(world.dialogue.wake_at(), Some(TimestampMs(START + 60_000)));
    let effects = world.advance_time(59_999);
    assert_eq!(effects, []);
    let effects = world.advance_time(1);
    assert!(matches!(effects[0], Effect::CancelGeneration { turn: TurnId(1), attempt: 1 }), "{effects:?}");
    assert_eq!(endings(&world.commit_all()), [(1, "deadline_exceeded".into())]);
}

#[test]
fn a_waiting_turn_has_at_least_the_time_of_those_before_it() {
    let mut world = World::new();
    world.accept(turn(1, "long"));
    let mut short = turn(2, "short");
    short.deadline = TimestampMs(START + 1_000);
    world.accept(short);
    assert_eq!(world.accepted(TurnId(2)).map(|turn| turn.deadline), Some(TimestampMs(START + 60_000)));
    world.advance_time(60_000);
    assert_eq!(endings(&world.commit_all()), [(1, "deadline_exceeded".into()), (2, "deadline_exceeded".into())]);
}

#[test]
fn a_deadline_does_not_end_a_turn_whose_reply_is_in_flight() {
    let mut world = World::new();
    world.accept(turn(1, "hi"));
    world.model_starts("a");
    world.model_finishes();
    assert_eq!(world.advance_time(120_000), []);
    world.lose(0);
    assert_eq!(endings(&world.commit_all()), [(1, "Stop".into())]);
}

#[test]
fn three_failed_attempts_end_a_turn_with_the_last_code() {
    let mut world = World::new();
    world.accept(turn(1, "hi"));
    for attempt in 1..=3 {
        assert_eq!(world.running.as_ref().map(|order| order.attempt), Some(attempt));
        world.model_starts("a");
        world.model_fails(Some(0));
        world.commit_all();
    }
    assert_eq!(endings(&world.seen), [(1, "model_failed".into())]);
    assert!(world.running.is_none() && world.dialogue.is_idle());
}

#[test]
fn an_attempt_waits_as_long_as_the_failure_says() {
    let mut world = World::new();
    world.accept(turn(1, "hi"));
    world.model_fails(Some(2_000));
    assert_eq!(world.dialogue.wake_at(), Some(TimestampMs(START + 2_000)));
    assert_eq!(world.advance_time(1_999), []);
    world.advance_time(1);
    assert!(matches!(world.in_flight[0].1.event, SessionEvent::AttemptStarted(_)));
    assert!(world.running.is_none(), "an attempt runs only when it is recorded");
    world.lose(0);
    world.commit_all();
    assert_eq!(world.running.as_ref().map(|order| order.attempt), Some(2));
}

#[test]
fn a_failure_that_cannot_be_retried_ends_the_turn_at_once() {
    let mut world = World::new();
    world.accept(turn(1, "hi"));
    world.model_fails(None);
    assert_eq!(endings(&world.commit_all()), [(1, "model_failed".into())]);
}

#[test]
fn what_an_abandoned_attempt_says_does_not_count() {
    let mut world = World::new();
    world.accept(turn(1, "hi"));
    world.model_starts("a");
    let stale = Command::TokensArrived { turn: TurnId(1), attempt: 1, ids: vec![9], text: "stale".into() };
    let finished = Command::GenerationFinished {
        turn: TurnId(1),
        attempt: 1,
        finish: FinishReason::Stop,
        usage: Default::default(),
    };
    world.model_fails(Some(0));
    world.commit_all();
    assert_eq!(world.tell(stale), []);
    assert_eq!(world.tell(finished), []);
    world.answer(2);
    assert_eq!(world.transcript(), ["hi".into(), reply_of("a", 1, 2)]);
}

#[test]
fn stop_ends_the_running_turn_with_what_it_said() {
    let mut world = World::new();
    world.accept(turn(1, "hi"));
    world.model_starts("a");
    world.model_says(4);
    let effects = world.tell(Command::Stop { turn: None });
    assert!(matches!(effects[0], Effect::CancelGeneration { .. }), "{effects:?}");
    assert_eq!(endings(&world.commit_all()), [(1, "Cancelled".into())]);
    assert_eq!(world.transcript(), ["hi".into(), reply_of("a", 1, 4)]);
    assert_eq!(world.tell(Command::Stop { turn: Some(TurnId(1)) }), [], "an ended turn is left alone");
}

#[test]
fn a_stopped_waiting_turn_ends_without_being_generated_when_it_comes_up() {
    let mut world = World::new();
    world.accept(turn(1, "one"));
    world.accept(turn(2, "two"));
    world.submit(turn(3, "three"));
    world.tell(Command::Stop { turn: Some(TurnId(2)) });
    world.tell(Command::Stop { turn: Some(TurnId(3)) });
    world.commit_all();
    world.answer(2);
    assert_eq!(endings(&world.seen), [(1, "Stop".into()), (2, "Cancelled".into()), (3, "Cancelled".into())]);
    let started = world.seen.iter().filter(|effect| matches!(effect, Effect::StartGeneration(_))).count();
    assert_eq!(started, 1);
    assert!(world.dialogue.is_idle());
}

#[test]
fn a_stop_goes_with_the_proposal_that_is_lost() {
    let mut world = World::new();
    world.submit(turn(1, "hi"));
    world.tell(Command::Stop { turn: Some(TurnId(1)) });
    world.lose(0);
    world.accept(turn(1, "hi"));
    assert_eq!(endings(&world.answer(1)), [(1, "Stop".into())]);
}

#[test]
fn a_stop_during_a_retry_keeps_what_the_failed_attempt_said() {
    let mut world = World::new();
    world.accept(turn(1, "hi"));
    world.model_starts("a");
    world.model_says(5);
    world.model_fails(Some(10_000));
    world.tell(Command::Stop { turn: None });
    assert_eq!(endings(&world.commit_all()), [(1, "Cancelled".into())]);
    assert_eq!(world.transcript(), ["hi".into(), reply_of("a", 1, 5)]);
}

#[test]
fn time_never_runs_backwards_in_the_record() {
    let mut world = World::new();
    world.converse(1, "hi");
    world.now -= 10_000;
    world.converse(2, "hi again");
    world.now -= 10_000;
    let last = world.log.len();
    world.crash(0, last, last);
    world.converse(3, "hi once more");
    let times: Vec<_> = world.log.iter().map(|record| record.at.0).collect();
    assert!(times.is_sorted() && times[0] == START, "{times:?}");
}

#[test]
fn nothing_is_taken_before_recovery_is_complete() {
    let mut world = World::new();
    world.dialogue = crate::Dialogue::new(world.session.clone(), world.limits);
    assert_eq!(refusals(&world.submit(turn(1, "hi"))), [Refusal::NotReady]);
    world.tell(Command::Recovered);
    world.accept(turn(1, "hi"));
}

#[test]
fn a_turn_id_in_use_is_refused() {
    let mut world = World::new();
    world.submit(turn(1, "hi"));
    assert_eq!(refusals(&world.submit(turn(1, "hi"))), [Refusal::TurnIdInUse]);
    world.commit_all();
    assert_eq!(refusals(&world.submit(turn(1, "hi"))), [Refusal::TurnIdInUse]);
}
