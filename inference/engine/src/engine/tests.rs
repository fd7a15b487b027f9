//! The engine's thread, as its clients see it.

use std::sync::mpsc::sync_channel;

use super::*;
use crate::error::{LEAST_RETRY_AFTER, MOST_RETRY_AFTER};
use crate::{
    Finish, GenerateEvent, LaneInput,
    fake::{Ear, FakeCodec, FakeModel, Heard, Hooked, MAKES_PANIC, MAKES_STOP, VOCABULARY, expected, request},
};

const CONTEXT: usize = 120;

/// How long a test waits for the engine's thread before it fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// An engine that computes a step only when the test lets it; freely, once the test has dropped its end.
fn start(lanes: usize, queue: usize) -> (EngineReplica, Sender<()>) {
    let (open, gate) = channel::<()>();
    let wait = move |_: &[LaneInput<'_>]| {
        // Open for ever after the sender is gone.
        let _ = gate.recv();
    };
    let model = Box::new(Hooked { model: Box::new(FakeModel::new(lanes, CONTEXT)), before: wait });
    let options = EngineOptions { queue, ..EngineOptions::default() };
    (Engine::start(model, FakeCodec::new(CONTEXT), options), open)
}

/// A request whose end can be waited for.
struct Asked {
    ear: Ear,
    ended: Receiver<()>,
    cancel: CancelHandle,
}

impl Asked {
    /// Waits until the sink is dropped.
    fn wait(self) -> Heard {
        match self.ended.recv_timeout(PATIENCE) {
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => self.ear.heard(),
            other => panic!("the request does not end: {other:?}"),
        }
    }
}

fn ask(replica: &EngineReplica, request: GenerateRequest) -> Result<Asked, EngineError> {
    let ear = Ear::default();
    let (held, ended) = sync_channel::<()>(0);
    let mut sink = ear.sink();
    let cancel = replica.submit(
        request,
        Box::new(move |event: GenerateEvent| {
            let _held = &held;
            sink.send(event)
        }),
    )?;
    Ok(Asked { ear, ended, cancel })
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "{what} does not come");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn requests_from_many_threads_get_their_answers() {
    let (replica, open) = start(3, 1000);
    drop(open);
    thread::scope(|scope| {
        for thread in 0..8u32 {
            let replica = &replica;
            scope.spawn(move || {
                for n in 0..50u32 {
                    let mut asked = request((0..1 + n).map(|at| (thread * 7 + n * 3 + at) % 59 + 1).collect(), 10);
                    asked.affinity = u64::from(n % 3);
                    let heard = ask(replica, asked.clone()).expect("there is room").wait();
                    assert_eq!(heard.essence(), expected(&asked, CONTEXT).essence());
                }
            });
        }
    });
    wait_until("rest", || replica.load() == ReplicaLoad::default());
}

#[test]
fn a_full_queue_refuses_at_once_with_a_time() {
    let (replica, open) = start(1, 2);
    let first = ask(&replica, request(vec![1], 5)).expect("there is room");
    wait_until("the first request's lane", || replica.load() == ReplicaLoad { running: 1, waiting: 0 });
    let waiting = [0, 1].map(|_| ask(&replica, request(vec![1], 5)).expect("there is room"));
    for _ in 0..3 {
        match ask(&replica, request(vec![1], 5)).err() {
            Some(EngineError::QueueFull { retry_after }) => {
                assert!((LEAST_RETRY_AFTER..=MOST_RETRY_AFTER).contains(&retry_after));
            }
            other => panic!("not refused: {other:?}"),
        }
    }
    waiting[0].cancel.cancel();
    open.send(()).expect("the engine waits");
    wait_until("the cancelled request's place", || replica.load().waiting == 1);
    let again = ask(&replica, request(vec![1], 5)).expect("there is room again");
    drop(open);
    let expected = expected(&request(vec![1], 5), CONTEXT).essence();
    let [cancelled, waiting] = waiting;
    for asked in [first, waiting, again] {
        assert_eq!(asked.wait().essence(), expected);
    }
    assert_eq!(cancelled.wait(), Heard::default());
}

#[test]
fn cancelling_ends_a_running_request_silently() {
    let (replica, open) = start(1, 2);
    let asked = ask(&replica, request(vec![1, 2], 100)).expect("there is room");
    wait_until("the lane", || replica.load().running == 1);
    asked.cancel.cancel();
    open.send(()).expect("the engine waits");
    wait_until("the free lane", || replica.load() == ReplicaLoad::default());
    assert_eq!(asked.wait(), Heard::default());
}

#[test]
fn what_no_step_can_compute_is_refused() {
    let (replica, _open) = start(1, 2);
    let refused = |asked| ask(&replica, asked).err().expect("must be refused");
    assert_eq!(refused(request(vec![], 5)), EngineError::Template("the prompt is empty".into()));
    let context = CONTEXT as u32;
    let exceeded = EngineError::ContextExceeded { prompt: context, reserve: 1, context, model: "fake".into() };
    assert_eq!(refused(request(vec![1; CONTEXT], 5)), exceeded);
    let foreign = request(vec![1, VOCABULARY as u32], 5);
    assert_eq!(refused(foreign), EngineError::ModelFailed("token 64 is not in the vocabulary".into()));
    let forced = GenerateRequest { forced: vec![99], ..request(vec![1], 5) };
    assert_eq!(refused(forced), EngineError::ModelFailed("token 99 is not in the vocabulary".into()));
}

#[test]
fn the_engine_outlives_a_panic_of_its_model() {
    let (replica, open) = start(2, 10);
    drop(open);
    let failed = ask(&replica, request(vec![1, MAKES_PANIC], 5)).expect("there is room").wait();
    assert_eq!(failed.end, Some(Err(EngineError::ModelFailed("asked to panic".into()))));
    let well = ask(&replica, request(vec![1], 5)).expect("there is room").wait();
    assert_eq!(well.essence(), expected(&request(vec![1], 5), CONTEXT).essence());
    assert!(!replica.lifeline().is_ended());
}

#[tokio::test]
async fn an_engine_that_ends_tells_everyone() {
    let (replica, open) = start(1, 10);
    let asked = [vec![MAKES_STOP], vec![1]].map(|prompt| ask(&replica, request(prompt, 5)).expect("there is room"));
    assert!(!replica.lifeline().is_ended());
    drop(open);
    let [of_its_batch, waiting] = asked.map(|asked| asked.wait().end);
    assert!(matches!(of_its_batch, Some(Err(EngineError::ModelFailed(_)))), "{of_its_batch:?}");
    assert_eq!(waiting, Some(Err(EngineError::Stopped)));
    tokio::time::timeout(PATIENCE, replica.lifeline().ended()).await.expect("the engine ends");
    assert!(replica.lifeline().is_ended());
    assert_eq!(ask(&replica, request(vec![1], 5)).err(), Some(EngineError::Stopped));
    assert_eq!(replica.load(), ReplicaLoad::default());
}

#[test]
fn a_model_without_lanes_is_stopped_from_the_beginning() {
    let (replica, _open) = start(0, 10);
    wait_until("the end", || replica.lifeline().is_ended());
    assert_eq!(ask(&replica, request(vec![1], 5)).err(), Some(EngineError::Stopped));
}

#[test]
fn a_dropped_replica_finishes_what_it_has_taken_on() {
    let (replica, open) = start(1, 10);
    let asked = [1, 2, 3].map(|token| ask(&replica, request(vec![token], 8)).expect("there is room"));
    drop(replica);
    drop(open);
    for (asked, token) in asked.into_iter().zip(1..) {
        assert_eq!(asked.wait().essence(), expected(&request(vec![token], 8), CONTEXT).essence());
    }
}

#[tokio::test]
async fn a_cut_engine_tells_everyone_and_ends() {
    let (replica, open) = start(1, 10);
    let lifeline = replica.lifeline();
    let asked = [1, 2].map(|token| ask(&replica, request(vec![token], 100)).expect("there is room"));
    wait_until("the lane", || replica.load().running == 1);
    lifeline.cut();
    open.send(()).expect("the engine waits");
    for asked in asked {
        assert_eq!(asked.wait().end, Some(Err(EngineError::Stopped)));
    }
    tokio::time::timeout(PATIENCE, lifeline.ended()).await.expect("the engine ends");
    assert_eq!(ask(&replica, request(vec![1], 5)).err(), Some(EngineError::Stopped));
}

#[tokio::test]
async fn a_dropped_replica_has_ended_when_its_last_request_has() {
    let (replica, open) = start(1, 10);
    let lifeline = replica.lifeline();
    let asked = ask(&replica, request(vec![1], 8)).expect("there is room");
    drop(replica);
    assert!(!lifeline.is_ended(), "a request runs");
    drop(open);
    assert_eq!(asked.wait().essence(), expected(&request(vec![1], 8), CONTEXT).essence());
    tokio::time::timeout(PATIENCE, lifeline.ended()).await.expect("the engine ends");
}

#[test]
fn messages_become_a_prompt_that_fits() {
    let (replica, _open) = start(1, 10);
    let text = "x".repeat(60);
    let message = |role, length| ChatMessage { role, content: &text[..length] };
    let messages = [
        message(ChatRole::System, 10),
        message(ChatRole::User, 60),
        message(ChatRole::Assistant, 20),
        message(ChatRole::User, 40),
    ];
    let cut = replica.prepare(&messages, PromptBudget { reserve: 20, drop_oldest: true }).expect("fits");
    assert_eq!((cut.tokens.len(), cut.token_count, cut.dropped_messages), (50, 50, 2));
    assert_eq!(cut.last_user_text, "x".repeat(40));
    let refused = replica.prepare(&messages, PromptBudget { reserve: 20, drop_oldest: false });
    assert!(matches!(refused, Err(EngineError::ContextExceeded { prompt: 130, reserve: 20, context: 120, .. })));
}

#[test]
fn a_reply_ends_by_its_limit_or_the_contexts() {
    let (replica, open) = start(1, 10);
    drop(open);
    for prompt in [vec![1; 3], vec![1; CONTEXT - 2]] {
        for max_tokens in [0, 1, 2, 1000] {
            let asked = request(prompt.clone(), max_tokens);
            let heard = ask(&replica, asked.clone()).expect("there is room").wait();
            assert_eq!(heard.essence(), expected(&asked, CONTEXT).essence());
            let room = max_tokens.min((CONTEXT - prompt.len()) as u32);
            match heard.end {
                Some(Ok((Finish::Length, usage))) => assert_eq!(usage.completion, room),
                Some(Ok((Finish::Stop, usage))) => assert!(usage.completion < room),
                other => panic!("{other:?}"),
            }
        }
    }
}
