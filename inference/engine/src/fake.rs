//! What the engine's tests share: a tiny deterministic model, the answers it must give, and a sink that remembers.

use std::{
    ops::DerefMut,
    sync::{Arc, Mutex},
};

use crate::{
    Block, BlockCopy, ChatMessage, EngineError, EventSink, Finish, GenerateEvent, GenerateRequest, Lane, LaneInput,
    PreparedPrompt, ReplicaInfo, TextCodec, TokenId, TokenLogprob, TokenModel, TokenUsage, random,
    sampling::{Occurrences, Sampler},
};

pub(crate) const VOCABULARY: usize = 64;
pub(crate) const END: TokenId = 0;
/// A lane that holds one of these makes the model misbehave; it never generates them.
pub(crate) const MAKES_NAN: TokenId = 60;
pub(crate) const MAKES_PANIC: TokenId = 61;
pub(crate) const MAKES_ERROR: TokenId = 62;
pub(crate) const MAKES_STOP: TokenId = 63;

/// Pieces of text, some of them parts of characters.
const PIECES: [&[u8]; 12] =
    [b"a", b"b", b"ab", b" ", b"\xf0\x9f", b"\x98\x80", b"\xc3\xa9", b"\xff", b"ba ", b"\xe2\x82", b"\xac", b""];

/// Positions in a block of its cache.
pub(crate) const BLOCK: usize = 4;

/// Its logits are a hash of everything in the lane's cache, so that any mix-up of lanes, blocks or positions changes the answer.
pub(crate) struct FakeModel {
    /// What was computed in each block, up to what was written last.
    blocks: Vec<Vec<TokenId>>,
    /// Per lane.
    tables: Vec<Vec<Block>>,
    context: usize,
    /// Of how many of the newest tokens its logits are a hash: few make texts that repeat themselves.
    memory: usize,
    /// Lengths of the inputs of each step, per lane.
    pub(crate) steps: Vec<Vec<(usize, usize)>>,
}

impl FakeModel {
    pub(crate) fn new(lanes: usize, context: usize) -> Self {
        Self::with_blocks(lanes, context, lanes * context.div_ceil(BLOCK))
    }

    pub(crate) fn with_blocks(lanes: usize, context: usize, blocks: usize) -> Self {
        let per_lane = context.div_ceil(BLOCK);
        let own = |lane| (lane * per_lane..blocks.min((lane + 1) * per_lane)).map(|block| block as Block).collect();
        let (blocks, tables) = (vec![Vec::new(); blocks], (0..lanes).map(own).collect());
        Self { blocks, tables, context, memory: usize::MAX, steps: Vec::new() }
    }

    /// One whose logits are a hash of so many of the newest tokens.
    pub(crate) fn remembering(self, memory: usize) -> Self {
        Self { memory, ..self }
    }

    fn history(&self, lane: Lane, length: usize) -> Vec<TokenId> {
        let blocks = self.tables[lane].iter().map(|block| &self.blocks[*block as usize]);
        let history: Vec<TokenId> = blocks.flatten().copied().take(length).collect();
        assert_eq!(history.len(), length, "a hole in the cache of lane {lane}");
        history
    }

    fn write(&mut self, lane: Lane, position: usize, token: TokenId) {
        let block = &mut self.blocks[self.tables[lane][position / BLOCK] as usize];
        assert!(position % BLOCK <= block.len(), "a hole in the cache of lane {lane}");
        block.truncate(position % BLOCK);
        block.push(token);
    }
}

impl TokenModel for FakeModel {
    fn lanes(&self) -> usize {
        self.tables.len()
    }

    fn block_tokens(&self) -> usize {
        BLOCK
    }

    fn blocks(&self) -> usize {
        self.blocks.len()
    }

    fn place(&mut self, lane: Lane, blocks: &[Block]) {
        self.tables[lane] = blocks.to_vec();
    }

    fn copy(&mut self, copy: BlockCopy) {
        assert_ne!(copy.from, copy.to);
        self.blocks[copy.to as usize] = self.blocks[copy.from as usize][..copy.positions].to_vec();
    }

    fn context_tokens(&self) -> usize {
        self.context
    }

    fn vocabulary(&self) -> usize {
        VOCABULARY
    }

    fn step(&mut self, inputs: &[LaneInput<'_>], logits: &mut Vec<f32>) -> Result<(), EngineError> {
        logits.clear();
        self.steps.push(inputs.iter().map(|input| (input.lane, input.tokens.len())).collect());
        let faults = [MAKES_PANIC, MAKES_ERROR, MAKES_STOP];
        if let Some(fault) = faults.into_iter().find(|fault| inputs.iter().any(|input| input.tokens.contains(fault))) {
            // A model that failed may have written anywhere.
            self.blocks.iter_mut().flatten().for_each(|token| *token += 1);
            assert!(fault != MAKES_PANIC, "asked to panic");
            let message = "asked to fail".to_owned();
            return Err(if fault == MAKES_STOP { EngineError::Stopped } else { EngineError::ModelFailed(message) });
        }
        let mut used = vec![false; self.tables.len()];
        for input in inputs {
            assert!(!std::mem::replace(&mut used[input.lane], true), "lane {} twice in a step", input.lane);
            assert!(!input.tokens.is_empty(), "nothing to compute");
            let end = input.start + input.tokens.len();
            assert!(end <= self.context, "beyond the context");
            (input.start..).zip(input.tokens).for_each(|(at, token)| self.write(input.lane, at, *token));
            let history = self.history(input.lane, end);
            for length in end + 1 - input.logits..=end {
                logits.extend(row(&history[..length], self.memory));
            }
        }
        Ok(())
    }
}

/// A model that first calls `before` with what it is to compute.
pub(crate) struct Hooked<M, F> {
    pub(crate) model: M,
    pub(crate) before: F,
}

impl<M, F> TokenModel for Hooked<M, F>
where
    M: DerefMut<Target = FakeModel> + Send,
    F: FnMut(&[LaneInput<'_>]) + Send,
{
    fn lanes(&self) -> usize {
        self.model.lanes()
    }

    fn context_tokens(&self) -> usize {
        self.model.context_tokens()
    }

    fn vocabulary(&self) -> usize {
        self.model.vocabulary()
    }

    fn block_tokens(&self) -> usize {
        self.model.block_tokens()
    }

    fn blocks(&self) -> usize {
        self.model.blocks()
    }

    fn place(&mut self, lane: Lane, blocks: &[Block]) {
        self.model.place(lane, blocks);
    }

    fn copy(&mut self, copy: BlockCopy) {
        self.model.copy(copy);
    }

    fn step(&mut self, inputs: &[LaneInput<'_>], logits: &mut Vec<f32>) -> Result<(), EngineError> {
        (self.before)(inputs);
        self.model.step(inputs, logits)
    }
}

fn row(history: &[TokenId], memory: usize) -> Vec<f32> {
    let hash =
        history[history.len().saturating_sub(memory)..].iter().fold(0, |hash, &token| random::bits(hash, token.into()));
    let mut row: Vec<f32> = (0..VOCABULARY as u64).map(|id| (random::bits(hash, id) >> 60) as f32 / 2.0).collect();
    row[MAKES_NAN as usize..].fill(-1000.0);
    if history.contains(&MAKES_NAN) {
        row[5] = f32::NAN;
    }
    row
}

pub(crate) struct FakeCodec(ReplicaInfo);

impl FakeCodec {
    pub(crate) fn new(context: usize) -> Arc<Self> {
        let (name, digest, numerics) = ("fake".into(), "d".into(), "n".into());
        Arc::new(Self(ReplicaInfo { name, digest, numerics, context_tokens: context as u32 }))
    }
}

impl TextCodec for FakeCodec {
    fn info(&self) -> &ReplicaInfo {
        &self.0
    }

    fn encode_chat(&self, messages: &[ChatMessage<'_>]) -> Result<Vec<TokenId>, EngineError> {
        let tokens = messages.iter().flat_map(|message| message.content.bytes().map(|byte| u32::from(byte) % 50 + 1));
        Ok(tokens.collect())
    }

    fn token_bytes(&self, token: TokenId) -> &[u8] {
        PIECES[token as usize % PIECES.len()]
    }

    fn is_end(&self, token: TokenId) -> bool {
        token == END
    }
}

pub(crate) fn request(prompt: Vec<TokenId>, max_tokens: u32) -> GenerateRequest {
    let prompt = PreparedPrompt {
        token_count: prompt.len() as u32,
        tokens: prompt,
        last_user_text: String::new(),
        dropped_messages: 0,
    };
    GenerateRequest::greedy("t", prompt, max_tokens)
}

/// What the model answers, computed alone, token by token, without the engine.
pub(crate) fn expected(request: &GenerateRequest, context: usize) -> Heard {
    expected_with(usize::MAX, request, context)
}

/// What the model answers whose logits are a hash of its newest tokens.
pub(crate) fn expected_with(memory: usize, request: &GenerateRequest, context: usize) -> Heard {
    let codec = FakeCodec::new(context);
    let mut seen = Occurrences::new(&request.sampling, &request.prompt.tokens);
    let mut tokens = request.prompt.tokens.clone();
    let max_tokens = (request.max_tokens as usize).min(context - tokens.len());
    let (mut ids, mut bytes) = (Vec::new(), Vec::new());
    let (text, finish) = loop {
        if let Some(text) = cut_at_stop(&bytes, &request.stop) {
            break (text, Finish::Stop);
        }
        if ids.len() == max_tokens {
            break (lossy(&bytes), Finish::Length);
        }
        let position = ids.len() as u64;
        let drawn = || {
            Sampler::default().choose(&mut row(&tokens, memory), &request.sampling, &seen, position).expect("finite")
        };
        let id = request.forced.get(ids.len()).copied().unwrap_or_else(drawn);
        if id == END {
            break (lossy(&bytes), Finish::Stop);
        }
        seen.add(id);
        ids.push(id);
        tokens.push(id);
        bytes.extend_from_slice(codec.token_bytes(id));
    };
    let usage = TokenUsage { prompt: request.prompt.token_count, completion: ids.len() as u32, cached: 0 };
    Heard { events: 0, ids, text, logprobs: vec![], end: Some(Ok((finish, usage))) }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The text before the stop text that is complete first, not counting a character that is not yet whole.
fn cut_at_stop(bytes: &[u8], stops: &[String]) -> Option<String> {
    let whole = bytes.utf8_chunks().fold(String::new(), |mut text, chunk| {
        text.push_str(chunk.valid());
        let finished = bytes.as_ptr_range().end != chunk.invalid().as_ptr_range().end || is_hopeless(chunk.invalid());
        text.push_str(if chunk.invalid().is_empty() || !finished { "" } else { "\u{fffd}" });
        text
    });
    let cut = stops.iter().filter_map(|stop| whole.find(stop.as_str()).map(|at| (at + stop.len(), at))).min();
    cut.map(|(_, at)| whole[..at].to_owned())
}

fn is_hopeless(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_some())
}

/// What a sink was told.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Heard {
    pub(crate) events: usize,
    pub(crate) ids: Vec<TokenId>,
    pub(crate) text: String,
    pub(crate) logprobs: Vec<TokenLogprob>,
    pub(crate) end: Option<Result<(Finish, TokenUsage), EngineError>>,
}

impl Heard {
    /// Without what may differ between two correct answers, the number of events and what a cache spared, and without
    /// probabilities.
    pub(crate) fn essence(&self) -> Self {
        let end = self.end.clone().map(|end| end.map(|(finish, usage)| (finish, TokenUsage { cached: 0, ..usage })));
        Self { events: 0, end, logprobs: vec![], ..self.clone() }
    }

    pub(crate) fn cached(&self) -> u32 {
        self.end.clone().and_then(Result::ok).map_or(0, |(_, usage)| usage.cached)
    }
}

/// Makes sinks and remembers what they hear.
#[derive(Default, Clone)]
pub(crate) struct Ear(Arc<Mutex<Heard>>);

impl Ear {
    pub(crate) fn sink(&self) -> Box<dyn EventSink> {
        self.sink_that_hangs_up_after(usize::MAX)
    }

    pub(crate) fn sink_that_hangs_up_after(&self, events: usize) -> Box<dyn EventSink> {
        let heard = self.0.clone();
        Box::new(move |event| {
            let mut heard = heard.lock().expect("no test thread panicked");
            assert!(heard.end.is_none(), "an event after the end: {event:?}");
            heard.events += 1;
            match event {
                GenerateEvent::Tokens { ids, text, logprobs } => {
                    assert!(!(ids.is_empty() && text.is_empty() && logprobs.is_empty()), "an event without news");
                    heard.ids.extend(ids);
                    heard.text.push_str(&text);
                    heard.logprobs.extend(logprobs);
                }
                GenerateEvent::Finished { finish, usage } => heard.end = Some(Ok((finish, usage))),
                GenerateEvent::Failed(error) => heard.end = Some(Err(error)),
            }
            heard.events < events
        })
    }

    pub(crate) fn heard(&self) -> Heard {
        self.0.lock().expect("no test thread panicked").clone()
    }

    /// Whether no sink is left.
    pub(crate) fn is_dropped(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}
