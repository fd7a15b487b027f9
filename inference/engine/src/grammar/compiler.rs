//! Schemas are compiled apart from whoever asks: on one thread per vocabulary, in a bounded queue, within a time, and once for all who ask
//! for the same one. A schema that takes its compiler long delays other new schemas, never a reply or a runtime's thread for longer than
//! the stated patience.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel},
    },
    thread,
    time::Duration,
};

use sha2::{Digest, Sha256};

use super::{Grammar, SchemaCompiler};
use crate::{EngineError, TokenId};

/// How long a caller waits for its schema: many times what the worst one that the limits let through was seen to take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Schemas that wait for the thread at most.
const QUEUE: usize = 16;
/// Compiled schemas, and refusals, that are kept. A turn's is asked for twice: before it is accepted, and for its attempt.
const KEPT: usize = 32;
/// The library goes down into a schema by recursion.
const STACK_BYTES: usize = 16 << 20;

/// SHA-256 of a schema.
type Key = [u8; 32];

/// Compiles schemas for one vocabulary.
pub(crate) struct GrammarCompiler {
    jobs: SyncSender<Job>,
    kept: Arc<Mutex<Kept>>,
    patience: Duration,
}

struct Job {
    key: Key,
    schema: String,
    reply: Sender<Result<Grammar, EngineError>>,
}

/// What was compiled or refused, the one that was used last at the end.
#[derive(Default)]
struct Kept(VecDeque<(Key, Result<Grammar, EngineError>)>);

impl Kept {
    fn get(&mut self, key: &Key) -> Option<Result<Grammar, EngineError>> {
        let at = self.0.iter().position(|(kept, _)| kept == key)?;
        let used = self.0.remove(at)?;
        let result = used.1.clone();
        self.0.push_back(used);
        Some(result)
    }

    fn put(&mut self, key: Key, result: Result<Grammar, EngineError>) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back((key, result));
    }
}

impl GrammarCompiler {
    /// For the tokens below `vocabulary`: the bytes that each stands for, and whether it ends a reply. Takes some tenths of a second
    /// for a large vocabulary.
    ///
    /// # Errors
    ///
    /// [`EngineError::Schema`] if no token ends a reply, [`EngineError::ModelFailed`] if the system refuses a thread.
    pub(crate) fn new<'a>(
        vocabulary: usize,
        bytes: impl Fn(TokenId) -> &'a [u8],
        is_end: impl Fn(TokenId) -> bool,
    ) -> Result<Self, EngineError> {
        Self::start(SchemaCompiler::new(vocabulary, bytes, is_end)?)
    }

    fn start(compiler: SchemaCompiler) -> Result<Self, EngineError> {
        let (jobs, inbox) = sync_channel(QUEUE);
        let kept = Arc::new(Mutex::new(Kept::default()));
        let keep = kept.clone();
        // It ends with the last sender of jobs.
        let builder = thread::Builder::new().name("grammars".to_owned()).stack_size(STACK_BYTES);
        let spawned = builder.spawn(move || run(&compiler, &inbox, &keep));
        let refused = |error: std::io::Error| EngineError::ModelFailed(format!("no thread for grammars: {error}"));
        spawned.map_err(refused)?;
        Ok(Self { jobs, kept, patience: PATIENCE })
    }

    /// Compiles a JSON schema, or finds it compiled.
    ///
    /// # Errors
    ///
    /// [`EngineError::Schema`] says what it cannot be held to, or that it takes too long; [`EngineError::QueueFull`] if too many wait.
    pub(crate) fn compile(&self, schema: &str) -> Result<Grammar, EngineError> {
        let key = Sha256::digest(schema).into();
        if let Some(found) = lock(&self.kept).get(&key) {
            return found;
        }
        let (reply, compiled) = channel();
        self.jobs.try_send(Job { key, schema: schema.to_owned(), reply }).map_err(|error| match error {
            TrySendError::Full(_) => EngineError::QueueFull { retry_after: self.patience },
            TrySendError::Disconnected(_) => EngineError::ModelFailed("the compiler of grammars has ended".to_owned()),
        })?;
        let late = |_| EngineError::Schema(format!("compiling it takes longer than {:?}", self.patience));
        compiled.recv_timeout(self.patience).map_err(late)?
    }
}

fn run(compiler: &SchemaCompiler, jobs: &Receiver<Job>, kept: &Mutex<Kept>) {
    for Job { key, schema, reply } in jobs {
        let found = lock(kept).get(&key);
        let result = found.unwrap_or_else(|| {
            let result = compiler.compile(&schema);
            lock(kept).put(key, result.clone());
            result
        });
        // Whoever lost patience finds it the next time.
        let _late = reply.send(result);
    }
}

/// Nothing that panics happens under the lock but an allocation that fails.
fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema_compiler() -> SchemaCompiler {
        let bytes: &'static [u8] = (0..=u8::MAX).collect::<Vec<_>>().leak();
        let text = |id: TokenId| bytes.get(id as usize).map_or(&[][..], std::slice::from_ref);
        SchemaCompiler::new(257, text, |id| id == 256).expect("a vocabulary")
    }

    fn compiler() -> GrammarCompiler {
        GrammarCompiler::start(schema_compiler()).expect("a thread")
    }

    fn kept(compiler: &GrammarCompiler) -> usize {
        lock(&compiler.kept).0.len()
    }

    fn schema(number: usize) -> String {
        format!(r#"{{"const": {number}}}"#)
    }

    #[test]
    fn what_was_compiled_is_found_again_and_the_least_used_is_forgotten() {
        let compiler = compiler();
        for number in 0..KEPT {
            compiler.compile(&schema(number)).expect("a schema");
            compiler.compile(&schema(0)).expect("a schema");
        }
        assert_eq!(kept(&compiler), KEPT);
        let refused = compiler.compile(r#"{"not": {}}"#).expect_err("not supported");
        assert_eq!(compiler.compile(r#"{"not": {}}"#).expect_err("not supported"), refused);
        assert_eq!(kept(&compiler), KEPT, "bounded");
        let has = |number| lock(&compiler.kept).get(&Sha256::digest(schema(number)).into()).is_some();
        assert!(has(0) && !has(1) && has(2), "the one that was used least is gone");
    }

    #[test]
    fn a_kept_grammar_starts_anew_for_everyone() {
        let compiler = compiler();
        for _ in 0..2 {
            let mut grammar = compiler.compile(&schema(7)).expect("a schema");
            grammar.follow(&[b'7'.into()]).expect("it begins there");
            assert!(grammar.is_complete());
        }
    }

    #[test]
    fn whoever_loses_patience_is_told_and_finds_it_later_and_too_many_are_refused() {
        // Nobody compiles yet.
        let (jobs, inbox) = sync_channel(QUEUE);
        let compiler = GrammarCompiler { jobs, kept: Arc::default(), patience: Duration::ZERO };
        for number in 0..QUEUE {
            let refused = compiler.compile(&schema(number)).expect_err("there is no time");
            assert_eq!(refused, EngineError::Schema("compiling it takes longer than 0ns".into()));
        }
        let refused = compiler.compile(&schema(QUEUE)).expect_err("there is no room");
        assert!(matches!(refused, EngineError::QueueFull { .. }), "{refused:?}");
        let GrammarCompiler { jobs, kept, patience } = compiler;
        drop(jobs);
        run(&schema_compiler(), &inbox, &kept);
        let (jobs, _inbox) = sync_channel(QUEUE);
        let compiler = GrammarCompiler { jobs, kept, patience };
        compiler.compile(&schema(QUEUE - 1)).expect("it is there now");
    }
}
