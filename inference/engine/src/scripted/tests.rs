//! The twin's behaviour, as a client sees it.

use super::*;
use crate::{
    Sampling, TokenUsage,
    fake::{Ear, Heard},
};

/// `printf 'Good morning' | sha256sum`, the first 16 digits.
const DIGEST_OF_GOOD_MORNING: &str = "90a90a48e23dcc51";

fn replica(keys: &str) -> ScriptedReplica {
    ScriptedReplica::new(ScriptedOptions::parse(&format!("scripted:{keys}")).expect("valid"))
}

fn request(replica: &ScriptedReplica, text: &str) -> GenerateRequest {
    let message = ChatMessage { role: ChatRole::User, content: text };
    let prompt = replica.prepare(&[message], PromptBudget { reserve: 1, drop_oldest: false }).expect("fits");
    GenerateRequest::greedy("t", prompt, 100)
}

fn answer(replica: &ScriptedReplica, request: GenerateRequest) -> Heard {
    let ear = Ear::default();
    replica.submit(request, ear.sink()).expect("accepted");
    ear.heard()
}

fn usage(prompt: u32, completion: u32) -> TokenUsage {
    TokenUsage { prompt, completion, cached: 0 }
}

#[test]
fn an_instant_reply_is_one_event_and_the_end() {
    let replica = replica("tokens=4");
    let heard = answer(&replica, request(&replica, "Good morning"));
    assert_eq!(heard.events, 2);
    assert_eq!(heard.ids.len(), 4);
    let words: Vec<_> = heard.text.split(' ').collect();
    assert_eq!((words.len(), words[0]), (4, DIGEST_OF_GOOD_MORNING));
    assert_eq!(heard.end, Some(Ok((Finish::Stop, usage(2, 4)))));
}

#[test]
fn replies_depend_on_message_and_script_alone() {
    let (one, other) = (replica("seed=1"), replica("seed=2"));
    let say = |replica: &ScriptedReplica, text, seed| {
        let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
        answer(replica, GenerateRequest { sampling, ..request(replica, text) }).text
    };
    assert_eq!(say(&one, "hi", 1), say(&one, "hi", 2));
    assert_ne!(say(&one, "hi", 1), say(&other, "hi", 1));
    assert_ne!(say(&one, "hi", 1), say(&one, "ho", 1));
}

#[test]
fn limits_and_stop_texts_shorten_a_reply() {
    let replica = replica("tokens=8");
    let whole = answer(&replica, request(&replica, "hi"));
    let short = answer(&replica, GenerateRequest { max_tokens: 3, ..request(&replica, "hi") });
    assert_eq!(short.ids, whole.ids[..3]);
    assert_eq!(short.end, Some(Ok((Finish::Length, usage(1, 3)))));

    let words: Vec<_> = whole.text.split_inclusive(' ').collect();
    let stop = format!("{}{}", &words[3][1..], words[4].trim_end());
    let stopped = answer(&replica, GenerateRequest { stop: vec![stop.clone()], ..request(&replica, "hi") });
    let at = whole.text.find(&stop).expect("taken from it");
    assert_eq!(stopped.text, whole.text[..at]);
    assert_eq!(stopped.end, Some(Ok((Finish::Stop, usage(1, stopped.ids.len() as u32)))));
    assert!(whole.ids.starts_with(&stopped.ids) && stopped.ids.len() < 8);
}

#[test]
fn forced_tokens_are_said_again_and_continued_exactly() {
    let replica = replica("tokens=8");
    let whole = answer(&replica, request(&replica, "hi"));
    for cut in 0..=8 {
        let forced = whole.ids[..cut].to_vec();
        let again = answer(&replica, GenerateRequest { forced, ..request(&replica, "hi") });
        assert_eq!((&again.ids, &again.text, &again.end), (&whole.ids, &whole.text, &whole.end));
    }
    let mut foreign = whole.ids[..3].to_vec();
    foreign[1] = (foreign[1] + 1) % 64;
    let other = answer(&replica, GenerateRequest { forced: foreign.clone(), ..request(&replica, "hi") });
    assert_eq!(other.ids[..3], foreign);
    assert_ne!(other.text, whole.text);
}

#[test]
fn a_schema_gets_a_short_document() {
    let replica = replica("tokens=8");
    let documents = [
        (r#"{"type": "object"}"#, "{}"),
        (r#"{"type": "array", "items": {"type": "string"}, "minItems": 2}"#, r#"["",""]"#),
        (r#"{"anyOf": [{"type": "string", "minLength": 2}, {"type": "null"}]}"#, r#""00""#),
        (
            r#"{"type": "object", "properties": {"city": {"const": "Paris", "type": "string"}, "celsius": {"type": "integer"}},
                "required": ["city", "celsius"], "additionalProperties": false}"#,
            r#"{"city":"Paris","celsius":0}"#,
        ),
        (r#"{"type": "number"}"#, "0"),
    ];
    for (schema, document) in documents {
        let grammar = || Some(replica.compile(schema).expect("a good schema"));
        let whole =
            answer(&replica, GenerateRequest { grammar: grammar(), max_tokens: 100, ..request(&replica, "hi") });
        assert_eq!(
            (whole.text.as_str(), whole.end),
            (document, Some(Ok((Finish::Stop, usage(1, document.len() as u32)))))
        );
        let forced = whole.ids[..1].to_vec();
        let again = answer(
            &replica,
            GenerateRequest { grammar: grammar(), forced, max_tokens: 100, ..request(&replica, "hi") },
        );
        assert_eq!((again.ids, again.text.as_str()), (whole.ids, document));
    }
}

#[test]
fn a_prompt_that_does_not_fit_is_refused() {
    let replica = replica("context=10");
    let words = "w ".repeat(10);
    let message = |count: usize| ChatMessage { role: ChatRole::User, content: &words[..2 * count] };
    let budget = PromptBudget { reserve: 4, drop_oldest: true };
    let cut = replica.prepare(&[message(3), message(6)], budget).expect("fits without the first");
    assert_eq!((cut.token_count, cut.dropped_messages), (6, 1));
    let refused = replica.prepare(&[message(7)], budget);
    assert!(matches!(refused, Err(EngineError::ContextExceeded { prompt: 7, reserve: 4, context: 10, .. })));
}

#[test]
fn an_expired_deadline_is_told() {
    let replica = replica("");
    let deadline = Some(Instant::now().into_std());
    let heard = answer(&replica, GenerateRequest { deadline, ..request(&replica, "hi") });
    assert_eq!(heard.end, Some(Err(EngineError::DeadlineExceeded)));
    assert_eq!(heard.events, 1);
}

#[test]
fn a_replica_that_takes_time_needs_a_runtime() {
    let replica = replica("ttft_ms=1");
    let refused = replica.submit(request(&replica, "hi"), Ear::default().sink());
    assert_eq!(refused.err(), Some(EngineError::Stopped));
}

#[tokio::test(start_paused = true)]
async fn tokens_come_on_time() {
    let replica = replica("ttft_ms=20,token_ms=5,tokens=4");
    let (ear, start) = (Ear::default(), Instant::now());
    replica.submit(request(&replica, "hi"), ear.sink()).expect("accepted");
    assert_eq!(replica.load(), ReplicaLoad { running: 1, waiting: 0 });
    for (at, tokens) in [(19, 0), (21, 1), (26, 2), (31, 3), (36, 4)] {
        tokio::time::sleep_until(start + Duration::from_millis(at)).await;
        assert_eq!(ear.heard().ids.len(), tokens, "after {at} ms");
    }
    assert_eq!(ear.heard().end, Some(Ok((Finish::Stop, usage(1, 4)))));
    assert_eq!(replica.load(), ReplicaLoad::default());
}

#[tokio::test(start_paused = true)]
async fn forced_tokens_take_no_time_of_their_own() {
    let replica = replica("ttft_ms=20,token_ms=5,tokens=4");
    let (first, second) = (Ear::default(), Ear::default());
    replica.submit(request(&replica, "hi"), first.sink()).expect("accepted");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let forced = first.heard().ids[..3].to_vec();
    replica.submit(GenerateRequest { forced, ..request(&replica, "hi") }, second.sink()).expect("accepted");
    tokio::time::sleep(Duration::from_millis(21)).await;
    assert_eq!((second.heard().ids, second.heard().end), (first.heard().ids, first.heard().end));
}

#[tokio::test(start_paused = true)]
async fn cancelling_frees_lane_and_place_at_once() {
    let replica = replica("ttft_ms=20,token_ms=5,lanes=1,queue=2");
    let ears = [Ear::default(), Ear::default(), Ear::default(), Ear::default()];
    let handles: Vec<_> = ears.iter().map(|ear| replica.submit(request(&replica, "hi"), ear.sink())).collect();
    assert_eq!(replica.load(), ReplicaLoad { running: 1, waiting: 2 });
    assert!(
        matches!(handles[3], Err(EngineError::QueueFull { retry_after }) if retry_after == Duration::from_millis(100))
    );

    handles[1].as_ref().expect("queued").cancel();
    tokio::task::yield_now().await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(replica.load(), ReplicaLoad { running: 1, waiting: 1 });

    tokio::time::sleep(Duration::from_millis(25)).await;
    handles[0].as_ref().expect("running").cancel();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(replica.load(), ReplicaLoad { running: 1, waiting: 0 });

    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(ears[0].heard().end, None);
    assert_eq!(ears[1].heard().events, 0);
    assert!(matches!(ears[2].heard().end, Some(Ok((Finish::Stop, _)))));
    assert_eq!(replica.load(), ReplicaLoad::default());
}

#[tokio::test(start_paused = true)]
async fn hanging_up_frees_the_lane() {
    let replica = replica("ttft_ms=20,token_ms=5");
    let ear = Ear::default();
    replica.submit(request(&replica, "hi"), ear.sink_that_hangs_up_after(2)).expect("accepted");
    tokio::time::sleep(Duration::from_millis(26)).await;
    assert_eq!(replica.load(), ReplicaLoad::default());
    assert_eq!((ear.heard().events, ear.heard().end), (2, None));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_waiting_and_running() {
    let replica = replica("ttft_ms=20,token_ms=50,lanes=1");
    let (running, waiting) = (Ear::default(), Ear::default());
    let after = |ms| Some((Instant::now() + Duration::from_millis(ms)).into_std());
    let first = GenerateRequest { deadline: after(100), ..request(&replica, "hi") };
    let second = GenerateRequest { deadline: after(50), ..request(&replica, "hi") };
    replica.submit(first, running.sink()).expect("accepted");
    replica.submit(second, waiting.sink()).expect("queued");
    tokio::time::sleep(Duration::from_millis(51)).await;
    assert_eq!(waiting.heard().end, Some(Err(EngineError::DeadlineExceeded)));
    assert_eq!(replica.load(), ReplicaLoad { running: 1, waiting: 0 });
    tokio::time::sleep(Duration::from_millis(51)).await;
    assert_eq!(running.heard().end, Some(Err(EngineError::DeadlineExceeded)));
    assert_eq!((running.heard().ids.len(), replica.load()), (2, ReplicaLoad::default()));
}

proptest::proptest! {
    #[test]
    fn words_are_counted_as_by_splitting(text in "[ a\\n\\r\\tbß]{0,600}") {
        proptest::prop_assert_eq!(script::count_words(&text), text.split_ascii_whitespace().count());
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_twin_finishes_and_a_cut_one_tells() {
    for cut in [false, true] {
        let replica = replica("token_ms=10,tokens=5");
        let lifeline = replica.lifeline();
        let ear = Ear::default();
        replica.submit(request(&replica, "hello"), ear.sink()).expect("accepted");
        if cut {
            lifeline.cut();
            let refused = replica.submit(request(&replica, "hello"), Ear::default().sink());
            assert_eq!(refused.err(), Some(EngineError::Stopped));
        }
        drop(replica);
        assert!(!lifeline.is_ended(), "a request runs");
        lifeline.ended().await;
        let end = ear.heard().end;
        assert_eq!(end, Some(if cut { Err(EngineError::Stopped) } else { Ok((Finish::Stop, usage(1, 5))) }));
    }
}
