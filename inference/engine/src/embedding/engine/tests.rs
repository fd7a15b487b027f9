//! The embedding engine's thread, as its clients see it.

use std::sync::mpsc::RecvTimeoutError;

use super::*;
use crate::embedding::Embeddings;

/// Tokens that make the model misbehave.
const PANICS: TokenId = 90;
const FAILS: TokenId = 91;
const VOCABULARY: usize = 100;
const CONTEXT: u32 = 8;

struct Codec(ReplicaInfo);

impl EmbeddingCodec for Codec {
    fn info(&self) -> &ReplicaInfo {
        &self.0
    }

    fn vocabulary(&self) -> usize {
        VOCABULARY
    }

    fn encode(&self, text: &str) -> Result<Vec<TokenId>, EngineError> {
        Ok(text.split_whitespace().map(|word| word.len() as TokenId).collect())
    }
}

/// Sums tokens. Computes a step only when the test lets it; freely, once the test has dropped its end.
struct Model {
    gate: Receiver<()>,
    steps: Sender<usize>,
}

impl EmbeddingModel for Model {
    fn dimensions(&self) -> usize {
        2
    }

    fn embed(&mut self, texts: &[&[TokenId]], vectors: &mut Vec<f32>) -> Result<(), EngineError> {
        let _ = self.steps.send(texts.len());
        let _ = self.gate.recv();
        vectors.clear();
        let any = |token| texts.iter().any(|text| text.contains(&token));
        assert!(!any(PANICS), "a model with a bug");
        if any(FAILS) {
            return Err(EngineError::ModelFailed("as it was told".into()));
        }
        vectors.extend(texts.iter().flat_map(|text| [text.iter().sum::<u32>() as f32, text.len() as f32]));
        Ok(())
    }
}

struct Started {
    replica: EmbeddingEngineReplica,
    open: Sender<()>,
    steps: Receiver<usize>,
}

fn start(queue: usize) -> Started {
    let ((open, gate), (steps_to, steps)) = (channel(), channel());
    let info = ReplicaInfo { name: "sums".into(), digest: "d".into(), numerics: "n".into(), context_tokens: CONTEXT };
    let model = Box::new(Model { gate, steps: steps_to });
    let options = EmbeddingOptions { queue, request_tokens: 32, step_tokens: 4 };
    Started { replica: EmbeddingEngine::start(model, Arc::new(Codec(info)), options), open, steps }
}

fn ask(replica: &EmbeddingEngineReplica, texts: &[&[TokenId]]) -> Result<PendingEmbeddings, EngineError> {
    let texts = texts.iter().map(|text| text.to_vec()).collect();
    replica.submit(EmbeddingRequest { texts, tenant: "t".into(), deadline: None })
}

fn wait(pending: PendingEmbeddings) -> Result<Embeddings, EngineError> {
    pending.blocking_recv().unwrap_or(Err(EngineError::Stopped))
}

#[test]
fn texts_come_back_as_vectors_in_their_order() {
    let Started { replica, open, .. } = start(8);
    drop(open);
    let texts = ["a bb ccc", "dddd", "e"].map(|text| EmbeddingInput::Text(text.into()));
    let texts = replica.prepare(&texts).expect("they fit");
    let texts: Vec<_> = texts.iter().map(Vec::as_slice).collect();
    let found = wait(ask(&replica, &texts).expect("taken")).expect("vectors");
    assert_eq!(found.vectors().collect::<Vec<_>>(), [[6.0, 3.0], [4.0, 1.0], [1.0, 1.0]]);
    assert_eq!(replica.load(), ReplicaLoad::default());
}

#[test]
fn what_no_step_could_compute_is_refused() {
    let Started { replica, open, .. } = start(8);
    drop(open);
    let tokens = |tokens: &[TokenId]| EmbeddingInput::Tokens(tokens.to_vec());
    let too_long = EngineError::TextTooLong { text: 1, tokens: 9, context: CONTEXT, model: "sums".into() };
    assert_eq!(replica.prepare(&[tokens(&[1; 8]), tokens(&[1; 9])]), Err(too_long.clone()));
    let words = |count| EmbeddingInput::Text("a ".repeat(count));
    assert_eq!(replica.prepare(&[words(8), words(9)]), Err(too_long.clone()));
    assert_eq!(replica.prepare(&[tokens(&[1; 8]), words(8)]), Ok(vec![vec![1; 8]; 2]));
    for (inputs, told) in [
        (vec![], "there are no texts"),
        (vec![words(1), words(0)], "text 1 has no tokens"),
        (vec![tokens(&[99, 100])], "text 0 has the token 100, but sums has the tokens 0 to 99"),
        (vec![words(8); 5], "the texts have 40 tokens, and a request may have 32"),
    ] {
        assert_eq!(replica.prepare(&inputs), Err(EngineError::Texts(told.into())));
    }
    assert!(matches!(ask(&replica, &[]), Err(EngineError::Texts(_))));
    assert_eq!(ask(&replica, &[&[1], &[1; 9]]).err(), Some(too_long));
}

#[test]
fn the_queue_is_bounded_and_a_cancelled_request_leaves_it_within_a_step() {
    let Started { replica, open, steps } = start(2);
    let first = ask(&replica, &[&[1, 1, 1], &[2, 2, 2]]).expect("taken");
    steps.recv().expect("a step has begun");
    let second = ask(&replica, &[&[3]]).expect("taken");
    assert!(matches!(ask(&replica, &[&[4]]), Err(EngineError::QueueFull { .. })));
    drop(first);
    open.send(()).expect("the engine lives");
    // The next step is the second request's, although the first had another text.
    assert_eq!(steps.recv(), Ok(1));
    drop(open);
    assert_eq!(wait(second).expect("vectors").values, [3.0, 1.0]);
    wait(ask(&replica, &[&[4]]).expect("there is room again")).expect("vectors");
}

#[test]
fn a_failed_batch_says_so_and_the_engine_goes_on_until_three_fail_in_a_row() {
    let Started { replica, open, .. } = start(8);
    drop(open);
    for bad in [PANICS, FAILS, PANICS] {
        let failed = wait(ask(&replica, &[&[bad]]).expect("taken"));
        assert!(matches!(failed, Err(EngineError::ModelFailed(_))), "{failed:?}");
        if bad == FAILS {
            wait(ask(&replica, &[&[1]]).expect("taken")).expect("vectors");
        }
    }
    assert!(!replica.lifeline().is_ended());
    for bad in [FAILS, PANICS] {
        let pending = ask(&replica, &[&[bad]]);
        assert!(pending.and_then(wait).is_err());
    }
    let until = Instant::now() + Duration::from_secs(30);
    while !replica.lifeline().is_ended() {
        assert!(Instant::now() < until, "the engine goes on");
        thread::yield_now();
    }
    assert_eq!(ask(&replica, &[&[1]]).err(), Some(EngineError::Stopped));
}

#[test]
fn a_cut_lifeline_ends_it_within_a_step() {
    let Started { replica, open, steps } = start(8);
    let pending = ask(&replica, &[&[1, 1, 1], &[2, 2, 2]]).expect("taken");
    steps.recv().expect("a step has begun");
    replica.lifeline().cut();
    drop(open);
    assert_eq!(wait(pending), Err(EngineError::Stopped));
    assert!(steps.recv().is_err(), "no further step");
}

#[test]
fn the_thread_answers_what_it_has_taken_on_and_ends_with_its_handle() {
    let Started { replica, open, steps } = start(8);
    let pending = ask(&replica, &[&[5], &[6]]).expect("taken");
    drop(replica);
    drop(open);
    assert_eq!(wait(pending).expect("vectors").values, [5.0, 1.0, 6.0, 1.0]);
    while steps.recv_timeout(Duration::from_secs(30)) != Err(RecvTimeoutError::Disconnected) {}
}
