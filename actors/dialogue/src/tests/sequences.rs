//! Random sequences: whatever happens, and wherever it is cut off, the promises hold.

use parlance_cluster_protocol::{
    History, Role, SessionEvent, SessionOpened, SessionUpdated, TimestampMs, TurnAccepted, TurnId,
};
use proptest::{prelude::*, strategy::ValueTree};

use super::world::*;
use crate::{Command, DEDUPE_TTL_MS, Effect, Limits};

#[derive(Debug, Clone)]
pub(super) enum Action {
    Submit { key: Option<u8>, body: u8, given: bool, seconds: u64 },
    Regenerate,
    Stop { which: Option<u8> },
    Open,
    Update,
    AddItems,
    Delete,
    Bind { body: u8 },
    Commit { count: usize },
    Lose { kept: usize },
    ModelStarts { name: &'static str },
    ModelSays { count: usize },
    ModelFinishes,
    ModelFails { retry_after_ms: Option<u64> },
    TimePasses { ms: u64 },
    ClockGoesBack { ms: u64 },
    Crash { kept: usize, state: usize, rows: usize },
}

pub(super) fn action() -> impl Strategy<Value = Action> {
    let key = proptest::option::of(0..4u8);
    let retry = proptest::option::weighted(0.8, 0..2_000u64);
    prop_oneof![
        40 => (key, 0..2u8, prop::bool::weighted(0.1), 1..900u64)
            .prop_map(|(key, body, given, seconds)| Action::Submit { key, body, given, seconds }),
        10 => Just(Action::Regenerate),
        5 => proptest::option::of(0..40u8).prop_map(|which| Action::Stop { which }),
        2 => Just(Action::Open),
        4 => Just(Action::Update),
        4 => Just(Action::AddItems),
        1 => Just(Action::Delete),
        3 => (0..2u8).prop_map(|body| Action::Bind { body }),
        100 => (1..4usize).prop_map(|count| Action::Commit { count }),
        8 => (0..4usize).prop_map(|kept| Action::Lose { kept }),
        60 => prop_oneof![3 => Just("a"), 1 => Just("b")].prop_map(|name| Action::ModelStarts { name }),
        60 => prop_oneof![1..10usize, 30..100usize].prop_map(|count| Action::ModelSays { count }),
        20 => Just(Action::ModelFinishes),
        8 => retry.prop_map(|retry_after_ms| Action::ModelFails { retry_after_ms }),
        20 => prop_oneof![16 => 1..1_000u64, 3 => 1_000..100_000u64, 1 => Just(DEDUPE_TTL_MS)]
            .prop_map(|ms| Action::TimePasses { ms }),
        3 => (1..5_000u64).prop_map(|ms| Action::ClockGoesBack { ms }),
        16 => (0..4usize, 0..=100usize, 0..=100usize)
            .prop_map(|(kept, state, rows)| Action::Crash { kept, state, rows }),
    ]
}

pub(super) fn perform(world: &mut World, action: Action, id: u128) -> Vec<Effect> {
    match action {
        Action::Submit { key, body, given, seconds } => {
            let mut turn = match key {
                Some(key) => keyed(id, &format!("key {key}"), body),
                None => turn(id, &format!("question {id}")),
            };
            turn.history = if given { History::Given } else { History::Session };
            turn.deadline = TimestampMs(world.now + seconds * 1_000);
            world.submit(turn)
        }
        Action::Regenerate => {
            let last = world.dialogue.durable().last_turn().map_or(0, |last| last.turn.0);
            let turn = TurnAccepted { deadline: TimestampMs(world.now + 60_000), ..again(id, last) };
            world.submit(turn)
        }
        Action::Stop { which } => world.tell(Command::Stop { turn: which.map(|which| TurnId(which.into())) }),
        Action::Commit { count } => (0..count).flat_map(|_| world.commit_one()).collect(),
        Action::Lose { kept } => world.lose(kept),
        Action::ModelStarts { name } => world.model_starts(name),
        Action::ModelSays { count } => world.model_says(count),
        Action::ModelFinishes => world.model_finishes(),
        Action::ModelFails { retry_after_ms } => world.model_fails(retry_after_ms),
        Action::TimePasses { ms } => world.advance_time(ms),
        Action::ClockGoesBack { ms } => {
            world.now -= ms;
            world.tell(Command::Tick)
        }
        Action::Crash { kept, state, rows } => {
            let last = world.log.len();
            let state = state * last / 100;
            world.crash(kept, state, state + rows * (last - state) / 100)
        }
        settings => change_settings(world, settings, id),
    }
}

fn change_settings(world: &mut World, action: Action, id: u128) -> Vec<Effect> {
    let caller = world.caller();
    let prompt = Some(format!("System prompt {id}"));
    let command = match action {
        Action::Open => {
            Command::Open { caller, opened: SessionOpened { system_prompt: prompt, ..SessionOpened::default() } }
        }
        Action::Update => {
            Command::Update { caller, updated: SessionUpdated { system_prompt: prompt, ..SessionUpdated::default() } }
        }
        Action::AddItems => Command::AddItems { caller, items: vec![user(&format!("added {id}"))] },
        Action::Delete => Command::Delete { caller },
        Action::Bind { body } => Command::BindKey {
            caller,
            body_hash: [body; 32],
            target: world.session.clone(),
            turn: TurnId(id),
            expires_at: TimestampMs(world.now + DEDUPE_TTL_MS),
        },
        other => unreachable!("{other:?} is performed elsewhere"),
    };
    world.tell(command)
}

/// One exchange as a plain reader of the log understands it.
struct Exchange {
    inputs: Vec<String>,
    answer: String,
}

/// The texts of the prompt of the first open turn, from the whole log, without any bound.
fn prompt_from_log(log: &[parlance_cluster_protocol::SessionRecord]) -> Vec<String> {
    let (mut open, mut exchanges) = (Vec::<&TurnAccepted>::new(), Vec::<Exchange>::new());
    for record in log {
        match &record.event {
            SessionEvent::ItemsAdded(added) => {
                let added = added.items.iter().map(|item| Exchange { inputs: Vec::new(), answer: item.text.clone() });
                exchanges.extend(added);
            }
            SessionEvent::TurnAccepted(accepted) => open.push(accepted),
            SessionEvent::Replied(replied) => end(&mut exchanges, open.remove(0), replied.text.clone()),
            SessionEvent::TurnFailed(_) => end(&mut exchanges, open.remove(0), String::new()),
            _ => {}
        }
    }
    let current = open[0];
    let inputs = texts(current);
    if current.history == History::Given {
        return inputs;
    }
    let replaced = current.regenerates.and_then(|_| exchanges.pop()).map_or(Vec::new(), |exchange| exchange.inputs);
    let spoken = exchanges.into_iter().filter(|exchange| !exchange.answer.is_empty());
    let before = spoken.flat_map(|exchange| exchange.inputs.into_iter().chain([exchange.answer]));
    before.chain(replaced).chain(inputs).collect()
}

fn end(exchanges: &mut Vec<Exchange>, turn: &TurnAccepted, answer: String) {
    match (turn.regenerates, exchanges.last_mut()) {
        _ if turn.history == History::Given => {}
        (Some(_), Some(last)) if !answer.is_empty() => last.answer = answer,
        (Some(_), _) => {}
        (None, _) => exchanges.push(Exchange { inputs: texts(turn), answer }),
    }
}

fn texts(turn: &TurnAccepted) -> Vec<String> {
    turn.input.iter().map(|item| item.text.clone()).collect()
}

fn check_prompts(world: &World, effects: &[Effect]) {
    for effect in effects {
        let Effect::StartGeneration(order) = effect else { continue };
        let said = order.messages.iter().filter(|item| item.role != Role::System);
        let prompt: Vec<_> = said.map(|item| item.text.clone()).collect();
        let whole = prompt_from_log(&world.log);
        let own = world.accepted(order.turn).map_or(0, |turn| turn.input.len());
        assert!(whole.ends_with(&prompt) && prompt.len() >= own, "{prompt:?} is not the end of {whole:?}");
        if world.limits == Limits::default() {
            assert_eq!(prompt, whole, "nothing is left out within the bounds");
        } else {
            assert!(prompt.len() <= world.limits.history_items + 2);
        }
    }
}

/// The log commits again, and time passes until every turn has ended.
pub(super) fn drain(world: &mut World) {
    for _ in 0..100 {
        world.commit_all();
        if world.dialogue.is_idle() {
            return;
        }
        world.advance_time(30_000);
    }
    panic!("open turns are left: {:?}", summary(&world.seen));
}

fn check_log(world: &World) {
    let accepted = world.log.iter().filter_map(|record| match &record.event {
        SessionEvent::TurnAccepted(accepted) => Some(accepted.turn),
        _ => None,
    });
    let ended = world.log.iter().filter_map(final_turn);
    assert!(accepted.eq(ended), "each accepted turn has one final record, in the order of acceptance");
    assert!(world.log.is_sorted_by_key(|record| record.at), "time never runs backwards");
    let attempts = world.log.iter().filter_map(|record| match &record.event {
        SessionEvent::AttemptStarted(started) => Some(started.attempt),
        _ => None,
    });
    assert!(attempts.max().is_none_or(|most| most <= world.limits.attempts));
    assert!(world.nobody_waits(), "every request was answered");
}

/// Wherever a reader starts, it ends in the same state.
fn check_restores(world: &World) {
    for state in 0..=world.log.len() {
        assert_same(&world.restored(state, state), &world.dialogue);
        assert_same(&world.restored(state, (state + world.log.len()).div_ceil(2)), &world.dialogue);
    }
}

pub(super) fn limits(small: bool) -> Limits {
    match small {
        true => Limits { queue: 3, history_items: 5, history_bytes: 400, dedupe: 3, waiting: 4, ..Limits::default() },
        false => Limits::default(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn every_promise_holds_in_every_sequence(
        small in any::<bool>(),
        actions in proptest::collection::vec(action(), 1..120),
    ) {
        let mut world = World::with(limits(small));
        for (id, action) in actions.into_iter().enumerate() {
            let effects = perform(&mut world, action, id as u128);
            // Several may begin within one action, each on another state of the log: the last is on the present one.
            let started = effects.iter().rposition(|effect| matches!(effect, Effect::StartGeneration(_)));
            if world.running.is_some() {
                check_prompts(&world, &effects[started.unwrap_or(effects.len())..]);
            }
        }
        drain(&mut world);
        check_log(&world);
        check_restores(&world);
    }
}

/// The sequences do reach the interesting states.
#[test]
fn random_sequences_reach_every_kind_of_effect_and_record() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut effects, mut records) = (Vec::new(), std::collections::BTreeSet::new());
    for _ in 0..300 {
        let actions =
            proptest::collection::vec(action(), 100).new_tree(&mut runner).expect("a strategy without filters");
        let mut world = World::new();
        for (id, action) in actions.current().into_iter().enumerate() {
            perform(&mut world, action, id as u128);
        }
        drain(&mut world);
        effects.append(&mut world.seen);
        records.extend(
            world.log.iter().map(|record| std::mem::discriminant(&record.event)).map(|kind| format!("{kind:?}")),
        );
    }
    let counts = summary(&effects);
    let kinds =
        ["Accepted", "Bound", "CancelGeneration", "Done", "Final", "Joined", "Propose", "Refused", "StartGeneration"];
    for kind in kinds {
        assert!(counts.get(kind).is_some_and(|count| *count >= 20), "{kind}: {counts:?}");
    }
    assert_eq!(records.len(), 10, "every kind of record is made");
}
