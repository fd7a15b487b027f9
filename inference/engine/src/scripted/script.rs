//! What the scripted replica says: a pure function of its options, the user's message and the request.

use sha2::{Digest, Sha256};

use super::{ScriptedOptions, document};
use crate::{
    EngineError, Finish, GenerateEvent, GenerateRequest, Likelihood, TokenId, TokenLogprob, TokenUsage, ToolSyntax,
    logprobs::Unreported, random, text::TextAssembler,
};

/// Hexadecimal digits of the message's SHA-256 that a reply begins with.
const DIGEST_DIGITS: usize = 16;
/// Set in the id of the token that stands for the digest, so that it is no word's id.
const DIGEST_TOKEN: TokenId = 1 << 31;

const WORDS: [&str; 64] = [
    " anchor", " autumn", " basket", " beacon", " bridge", " candle", " canyon", " cedar", " circle", " cloud",
    " copper", " coral", " cotton", " dawn", " delta", " desert", " echo", " ember", " fable", " feather", " fern",
    " field", " forest", " garden", " ginger", " glacier", " harbour", " hazel", " island", " ivory", " jasmine",
    " juniper", " kettle", " lagoon", " lantern", " linen", " maple", " marble", " meadow", " mirror", " morning",
    " nectar", " north", " ocean", " olive", " orchard", " pebble", " pepper", " planet", " quartz", " rain", " river",
    " saffron", " silver", " spruce", " stone", " summer", " thistle", " timber", " valley", " velvet", " willow",
    " winter", " zephyr",
];

/// Words of a text, as ASCII white space divides them. Runs over whole conversations at every turn, so its loop is one that
/// compilers turn into vector instructions.
pub(super) fn count_words(text: &str) -> usize {
    let is_space = |byte: u8| u8::from(byte == b' ') | u8::from(byte.wrapping_sub(b'\t') < 5);
    let bytes = text.as_bytes();
    let Some((&first, rest)) = bytes.split_first() else { return 0 };
    let starts = |(before, here): (&[u8], &[u8])| {
        let starts = before.iter().zip(here).map(|(&before, &here)| is_space(before) & (1 - is_space(here)));
        usize::from(starts.sum::<u8>())
    };
    // As many as a byte can count.
    let chunk = usize::from(u8::MAX);
    usize::from(1 - is_space(first)) + bytes.chunks(chunk).zip(rest.chunks(chunk)).map(starts).sum::<usize>()
}

/// What is said to a message that spells a call: the digest and that call, as bytes.
fn told_call(digest: &[u8; 32], message: &str) -> Option<Vec<TokenId>> {
    let mark = ToolSyntax::Hermes.mark();
    let call = &message[message.find(mark)?..];
    let said = format!("{} {call}", digits(digest));
    Some(said.bytes().map(TokenId::from).collect())
}

/// One reply in the making.
pub(super) struct Script {
    digest: [u8; 32],
    words: u64,
    tokens: u32,
    /// What is said instead of words.
    document: Option<Vec<TokenId>>,
    max_tokens: u32,
    forced: Vec<TokenId>,
    prompt_tokens: u32,
    said: u32,
    text: TextAssembler,
    /// Bytes of text that came out.
    out: usize,
    /// The alternatives that are wanted with every token, where probabilities are.
    logprobs: Option<u32>,
    unreported: Unreported,
}

impl Script {
    pub(super) fn new(options: &ScriptedOptions, request: GenerateRequest) -> Result<Self, EngineError> {
        let digest: [u8; 32] = Sha256::digest(request.prompt.last_user_text.as_bytes()).into();
        let message = u64::from_le_bytes(std::array::from_fn(|n| digest[8 + n]));
        let document = request.grammar.map(|g| document::write(g, &request.forced, request.max_tokens as usize));
        let document = document.transpose()?.or_else(|| told_call(&digest, &request.prompt.last_user_text));
        Ok(Self {
            digest,
            words: random::bits(options.seed, message),
            tokens: document.as_ref().map_or(options.tokens, |document| document.len() as u32),
            document,
            max_tokens: request.max_tokens,
            forced: request.forced,
            prompt_tokens: request.prompt.token_count,
            said: 0,
            text: TextAssembler::new(request.stop),
            out: 0,
            logprobs: request.logprobs,
            unreported: Unreported::default(),
        })
    }

    /// Tokens that are there before any time was spent on generating.
    pub(super) fn forced(&self) -> u32 {
        self.forced.len() as u32
    }

    pub(super) fn said(&self) -> u32 {
        self.said
    }

    pub(super) fn usage(&self) -> TokenUsage {
        TokenUsage { prompt: self.prompt_tokens, completion: self.said, cached: 0 }
    }

    /// Says up to `count` more tokens. With the reply's end come the held-back text and the reason.
    pub(super) fn advance(&mut self, count: u32) -> (GenerateEvent, Option<Finish>) {
        let mut ids = Vec::with_capacity(count.min(self.end().saturating_sub(self.said)) as usize);
        let mut text = String::new();
        let mut finish = self.finish();
        for _ in 0..count {
            if finish.is_some() {
                break;
            }
            ids.push(self.say(&mut text));
            finish = self.finish();
        }
        let is_whole = finish.is_some() && !self.text.is_stopped();
        if finish.is_some() {
            self.text.finish(&mut text);
        }
        self.out += text.len();
        let logprobs = if is_whole { self.unreported.take_all() } else { self.unreported.take(self.out) };
        (GenerateEvent::Tokens { ids, text, logprobs }, finish)
    }

    fn say(&mut self, text: &mut String) -> TokenId {
        let scripted = self.scripted(self.said);
        let id = self.forced.get(self.said as usize).copied().unwrap_or(scripted);
        let bytes = if self.document.is_some() {
            document::bytes(id).to_vec()
        } else if id == scripted && self.said == 0 {
            digits(&self.digest).into_bytes()
        } else {
            WORDS[id as usize % WORDS.len()].into()
        };
        // Tokens of an earlier attempt have no probability, as in the engine.
        if let Some(top) = self.logprobs.filter(|_| self.said >= self.forced()) {
            let start = self.out + text.len() + self.text.held_bytes();
            self.unreported.push(start, certain(&bytes, top));
        }
        self.text.push(&bytes, text);
        self.said += 1;
        id
    }

    fn scripted(&self, position: u32) -> TokenId {
        if let Some(document) = &self.document {
            return document[position as usize];
        }
        if position == 0 {
            let head = u32::from_be_bytes(std::array::from_fn(|n| self.digest[n]));
            return DIGEST_TOKEN | (head >> 1);
        }
        (random::bits(self.words, position.into()) % WORDS.len() as u64) as TokenId
    }

    fn end(&self) -> u32 {
        self.tokens.max(self.forced()).min(self.max_tokens)
    }

    fn finish(&self) -> Option<Finish> {
        if self.text.is_stopped() {
            Some(Finish::Stop)
        } else if self.said >= self.max_tokens {
            Some(Finish::Length)
        } else if self.said >= self.tokens.max(self.forced()) {
            Some(Finish::Stop)
        } else {
            None
        }
    }
}

/// What a reply begins with.
fn digits(digest: &[u8; 32]) -> String {
    let head = u64::from_be_bytes(std::array::from_fn(|n| digest[n]));
    format!("{head:0DIGEST_DIGITS$x}")
}

/// A token that nothing else could have been.
fn certain(bytes: &[u8], top: u32) -> TokenLogprob {
    let token = Likelihood { bytes: bytes.to_vec(), logprob: 0.0 };
    TokenLogprob { top: (top > 0).then(|| token.clone()).into_iter().collect(), token }
}
