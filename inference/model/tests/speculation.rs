//! The engine over the real model: replies that are guessed ahead are those that come token by token.

mod support;

use std::{sync::mpsc, time::Duration};

use parlance_inference_engine::{
    ChatMessage, ChatRole, Engine, EngineOptions, EngineReplica, GenerateEvent, GenerateRequest, PromptBudget, Replica,
    Sampling, Speculation, TokenId,
};
use parlance_inference_model::{LoadedModel, Precision};

/// How long an answer may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(120);
const QUESTIONS: [&str; 4] = [
    "Repeat word for word: the log owns the session, and everything else is derived; the log owns the session.",
    "Count from one to twenty, and then once more from one to twenty.",
    "Write a JSON list of five people with name, age and city.",
    "Tell me a story of a lighthouse.",
];

fn engine(speculation: Speculation) -> EngineReplica {
    let LoadedModel { model, codec } = support::model(4, 1_024, Precision::Int8);
    Engine::start(Box::new(model), codec, EngineOptions { speculation, ..EngineOptions::default() })
}

fn ask(engine: &EngineReplica, question: &str, sampling: Sampling) -> mpsc::Receiver<Vec<TokenId>> {
    let message = ChatMessage { role: ChatRole::User, content: question };
    let prompt = engine.prepare(&[message], PromptBudget { reserve: 120, drop_oldest: false }).expect("fits");
    let request = GenerateRequest { sampling, ..GenerateRequest::greedy("t", prompt, 120) };
    let (told, reply) = mpsc::channel();
    let mut tokens = Vec::new();
    let sink = move |event| match event {
        GenerateEvent::Tokens { ids, .. } => {
            tokens.extend(ids);
            true
        }
        GenerateEvent::Finished { .. } => told.send(std::mem::take(&mut tokens)).is_ok(),
        GenerateEvent::Failed(error) => panic!("{error}"),
    };
    engine.submit(request, Box::new(sink)).expect("there is room");
    reply
}

#[test]
fn guessing_ahead_changes_no_token() {
    let samplings = [
        Sampling::default(),
        Sampling { temperature: 0.7, top_p: 0.9, seed: 11, ..Sampling::default() },
        Sampling { repetition_penalty: 1.1, frequency_penalty: 0.2, ..Sampling::default() },
    ];
    let replies = [Speculation::Off, Speculation::Always, Speculation::Auto].map(|speculation| {
        let engine = engine(speculation);
        let replies = samplings.iter().map(|sampling| {
            let asked = QUESTIONS.map(|question| ask(&engine, question, sampling.clone()));
            asked.map(|reply| reply.recv_timeout(PATIENCE).expect("the reply is complete"))
        });
        replies.collect::<Vec<_>>()
    });
    let [plain, always, auto] = replies;
    assert_eq!(always, plain);
    assert_eq!(auto, plain);
    assert!(plain.iter().flatten().all(|reply| reply.len() > 5));
}
