//! How the scripted replica behaves, read from its model reference.

use std::time::Duration;

use crate::InvalidOption;

/// How a [`ScriptedReplica`](crate::ScriptedReplica) behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptedOptions {
    /// From taking a lane to the first token. Key `ttft_ms`, 0 by default.
    pub ttft: Duration,
    /// From one token to the next. Key `token_ms`, 0 by default.
    pub token_time: Duration,
    /// Tokens of a reply that nothing shortens. Key `tokens`, 16 by default.
    pub tokens: u32,
    /// Makes other words. Key `seed`, 0 by default.
    pub seed: u64,
    /// Requests that run at once. Key `lanes`, 1,024 by default.
    pub lanes: u32,
    /// Requests that wait for a lane at most. Key `queue`, 4,096 by default.
    pub queue: u32,
    /// Words of prompt and reply together. Key `context`, 8,192 by default.
    pub context_tokens: u32,
}

impl Default for ScriptedOptions {
    fn default() -> Self {
        Self {
            ttft: Duration::ZERO,
            token_time: Duration::ZERO,
            tokens: 16,
            seed: 0,
            lanes: 1024,
            queue: 4096,
            context_tokens: 8192,
        }
    }
}

/// The longest time that a key may name: an hour.
const MAX_MS: u64 = 3_600_000;
/// The most tokens and words that a key may name: beyond any model's context.
const MAX_TOKENS: u64 = 1 << 20;
/// The most lanes and places that a key may name: each is a small task in memory.
const MAX_REQUESTS: u64 = 1 << 20;

impl ScriptedOptions {
    /// Whether `reference` names a scripted model at all: `scripted`, alone or before a colon.
    pub fn names_scripted(reference: &str) -> bool {
        reference == "scripted" || reference.starts_with("scripted:")
    }

    /// Reads a model reference like `scripted:ttft_ms=20,token_ms=5,tokens=16,seed=0`; every key may be left out.
    ///
    /// # Errors
    ///
    /// [`InvalidOption`] names the first key that is unknown, repeated or has a bad value.
    pub fn parse(reference: &str) -> Result<Self, InvalidOption> {
        let keys = match reference.strip_prefix("scripted") {
            Some("") => "",
            Some(rest) => rest.strip_prefix(':').ok_or_else(|| not_scripted(reference))?,
            None => return Err(not_scripted(reference)),
        };
        let mut options = Self::default();
        let mut seen = Vec::new();
        for pair in keys.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| InvalidOption::new(pair, "has no value"))?;
            if seen.contains(&key) {
                return Err(InvalidOption::new(key, "is given twice"));
            }
            seen.push(key);
            options.set(key, value)?;
        }
        Ok(options)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), InvalidOption> {
        match key {
            "ttft_ms" => self.ttft = Duration::from_millis(number(key, value, 0, MAX_MS)?),
            "token_ms" => self.token_time = Duration::from_millis(number(key, value, 0, MAX_MS)?),
            "tokens" => self.tokens = number(key, value, 1, MAX_TOKENS)? as u32,
            "seed" => self.seed = number(key, value, 0, u64::MAX)?,
            "lanes" => self.lanes = number(key, value, 1, MAX_REQUESTS)? as u32,
            "queue" => self.queue = number(key, value, 0, MAX_REQUESTS)? as u32,
            "context" => self.context_tokens = number(key, value, 1, MAX_TOKENS)? as u32,
            _ => return Err(InvalidOption::new(key, KNOWN_KEYS)),
        }
        Ok(())
    }

    /// Whether replies take no time, so that they are given within `submit`.
    pub(super) fn is_instant(&self) -> bool {
        self.ttft.is_zero() && self.token_time.is_zero()
    }
}

const KNOWN_KEYS: &str = "is not one of ttft_ms, token_ms, tokens, seed, lanes, queue, context";

fn not_scripted(reference: &str) -> InvalidOption {
    InvalidOption::new(reference, "is not `scripted` or `scripted:key=value,...`")
}

fn number(key: &str, value: &str, least: u64, most: u64) -> Result<u64, InvalidOption> {
    match value.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(InvalidOption::new(key, format!("must be a whole number from {least} to {most}, not `{value}`"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(reference: &str) -> String {
        ScriptedOptions::parse(reference).expect_err("must be refused").to_string()
    }

    #[test]
    fn reads_every_key() {
        let read = ScriptedOptions::parse("scripted:ttft_ms=20,token_ms=5,tokens=7,seed=9,lanes=2,queue=0,context=99");
        let expected = ScriptedOptions {
            ttft: Duration::from_millis(20),
            token_time: Duration::from_millis(5),
            tokens: 7,
            seed: 9,
            lanes: 2,
            queue: 0,
            context_tokens: 99,
        };
        assert_eq!(read, Ok(expected));
        for bare in ["scripted", "scripted:"] {
            assert_eq!(ScriptedOptions::parse(bare), Ok(ScriptedOptions::default()));
        }
    }

    #[test]
    fn errors_name_the_key() {
        assert_eq!(error("scripted:speed=1"), format!("`speed` {KNOWN_KEYS}"));
        assert_eq!(error("scripted:tokens=0"), "`tokens` must be a whole number from 1 to 1048576, not `0`");
        assert_eq!(error("scripted:ttft_ms=-1"), "`ttft_ms` must be a whole number from 0 to 3600000, not `-1`");
        assert_eq!(error("scripted:token_ms=1.5"), "`token_ms` must be a whole number from 0 to 3600000, not `1.5`");
        assert_eq!(error("scripted:seed"), "`seed` has no value");
        assert_eq!(error("scripted:seed=1,seed=2"), "`seed` is given twice");
        assert_eq!(error("scriptedx"), "`scriptedx` is not `scripted` or `scripted:key=value,...`");
        assert_eq!(error("llama"), "`llama` is not `scripted` or `scripted:key=value,...`");
    }
}
