//! The engine over the real model: what a request shares with others of its tenant is not computed again, and changes no answer.

mod support;

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use parlance_inference_engine::{
    ChatMessage, ChatRole, Engine, EngineOptions, EngineReplica, GenerateEvent, GenerateRequest, PromptBudget, Replica,
    TokenId, TokenUsage,
};
use parlance_inference_model::{LoadedModel, Precision};

/// How long an answer may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(120);
const CONTEXT: u32 = 2_048;
/// What a first turn has at least.
const LONG: u32 = 1_000;

/// Long enough for a chat of a thousand tokens.
const TEXT: &str = include_str!("../../../ARCHITECTURE.md");

fn engine(options: EngineOptions) -> EngineReplica {
    let LoadedModel { model, codec } = support::model(4, CONTEXT, Precision::Int8);
    Engine::start(Box::new(model), codec, options)
}

/// What became of a request.
struct Answer {
    tokens: Vec<TokenId>,
    text: String,
    usage: TokenUsage,
}

/// An answer on its way.
struct Asked {
    heard: Arc<Mutex<(Vec<TokenId>, String)>>,
    said: mpsc::Receiver<()>,
    ended: mpsc::Receiver<TokenUsage>,
}

impl Asked {
    /// Waits until its prompt is computed.
    fn begun(self) -> Self {
        self.said.recv_timeout(PATIENCE).expect("the reply has begun");
        self
    }

    fn wait(self) -> Answer {
        let usage = self.ended.recv_timeout(PATIENCE).expect("the reply is complete");
        let (tokens, text) = self.heard.lock().expect("no test thread panicked").clone();
        Answer { tokens, text, usage }
    }
}

fn start(engine: &EngineReplica, tenant: &str, messages: &[ChatMessage<'_>], max_tokens: u32) -> Asked {
    let prompt = engine.prepare(messages, PromptBudget { reserve: max_tokens, drop_oldest: false }).expect("fits");
    let request = GenerateRequest::greedy(tenant, prompt, max_tokens);
    let (told, ended) = mpsc::channel();
    let (says, said) = mpsc::channel();
    let heard = Arc::new(Mutex::new((Vec::new(), String::new())));
    let ear = heard.clone();
    let sink = move |event| match event {
        GenerateEvent::Tokens { ids, text, .. } => {
            let mut heard = ear.lock().expect("no test thread panicked");
            heard.0.extend(ids);
            heard.1.push_str(&text);
            // Few wait for this.
            let _unheard = says.send(());
            true
        }
        GenerateEvent::Finished { usage, .. } => told.send(usage).is_ok(),
        GenerateEvent::Failed(error) => panic!("{error}"),
    };
    engine.submit(request, Box::new(sink)).expect("there is room");
    Asked { heard, said, ended }
}

fn ask(engine: &EngineReplica, tenant: &str, messages: &[ChatMessage<'_>], max_tokens: u32) -> Answer {
    start(engine, tenant, messages, max_tokens).wait()
}

fn system(content: &str) -> ChatMessage<'_> {
    ChatMessage { role: ChatRole::System, content }
}

fn user(content: &str) -> ChatMessage<'_> {
    ChatMessage { role: ChatRole::User, content }
}

fn assistant(content: &str) -> ChatMessage<'_> {
    ChatMessage { role: ChatRole::Assistant, content }
}

#[test]
fn the_second_turn_of_a_long_chat_computes_only_what_is_new() {
    let engine = engine(EngineOptions::default());
    let question = format!("{}\n\nWhat is this text about?", &TEXT[..4_400]);
    let first = ask(&engine, "t", &[user(&question)], 40);
    assert!(first.usage.prompt >= LONG && first.usage.cached == 0, "{:?}", first.usage);
    let chat = [user(&question), assistant(&first.text), user("And in one word?")];
    let second = ask(&engine, "t", &chat, 10);
    let (cached, prompt) = (second.usage.cached, second.usage.prompt);
    assert!(cached * 10 >= prompt * 9, "{cached} of {prompt} tokens were cached");
    let cold = ask(&engine, "u", &chat, 10);
    assert_eq!((cold.tokens, cold.usage.cached), (second.tokens, 0), "another tenant's is computed, and the same");
}

#[test]
fn a_system_prompt_is_shared_by_all_requests_of_a_tenant() {
    let engine = engine(EngineOptions::default());
    let prompt = &TEXT[..1_800];
    let questions = ["Who owns a session?", "What may never happen?", "Name a crate.", "How is it proved?"];
    let cold = questions.map(|question| ask(&engine, "cold", &[system(prompt), user(question)], 12));
    // The first runs on while the others come.
    let long = start(&engine, "t", &[system(prompt), user("Tell me all of it.")], 300).begun();
    let first = ask(&engine, "t", &[system(prompt), user(questions[0])], 12);
    let others = questions.map(|question| start(&engine, "t", &[system(prompt), user(question)], 12));
    let others = others.map(Asked::wait);
    for (cold, warm) in cold.iter().zip(&others).chain([(&cold[0], &first)]) {
        assert_eq!(warm.tokens, cold.tokens);
        let Answer { usage, .. } = warm;
        assert!(usage.cached * 10 >= usage.prompt * 8, "{} of {} tokens were cached", usage.cached, usage.prompt);
    }
    assert!(long.wait().usage.completion > 100);
}
