//! SentencePiece's byte-pair encoding (Kudo and Richardson 2018), the tokenizer of Llama 2 and Mistral.
//!
//! Neighbours whose text together is a piece are merged, the piece with the highest score first, the leftmost where scores are equal.
//! What stays without a piece is spelt in bytes. A GGUF file has the scores and no list of merges, so the library that does the other
//! tokenizers has no use for it.

use std::{cmp::Ordering, collections::BinaryHeap};

use parlance_inference_engine::TokenId;

use super::bytes::SPACE;

/// No symbol before or behind.
const NONE: usize = usize::MAX;

/// The pieces of a vocabulary.
pub(super) struct Pieces {
    /// Number and score of every piece of text.
    ids: ahash::AHashMap<String, (TokenId, f32)>,
    /// The tokens of single bytes.
    bytes: [Option<TokenId>; 256],
    unknown: Option<TokenId>,
    /// Whether text begins with a space that it does not have.
    space_first: bool,
}

/// A stretch of text that is one token so far.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    begin: usize,
    /// 0 once it is part of the symbol before.
    length: usize,
    before: usize,
    behind: usize,
}

/// Two neighbours that could become one.
#[derive(Debug)]
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Of both together, when they were found: they may have grown since.
    length: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}

impl Pieces {
    pub(super) fn new(
        ids: ahash::AHashMap<String, (TokenId, f32)>,
        bytes: [Option<TokenId>; 256],
        unknown: Option<TokenId>,
        space_first: bool,
    ) -> Self {
        Self { ids, bytes, unknown, space_first }
    }

    /// Encodes text in which nothing is a control token. Bytes that the vocabulary lacks are left out.
    pub(super) fn encode(&self, text: &str, out: &mut Vec<TokenId>) {
        let mut spelt = String::with_capacity(text.len() + 3);
        if self.space_first {
            spelt.push(SPACE);
        }
        spelt.extend(text.chars().map(|char| if char == ' ' { SPACE } else { char }));
        for symbol in self.merged(&spelt) {
            self.push(&spelt[symbol.begin..][..symbol.length], out);
        }
    }

    fn merged(&self, text: &str) -> Vec<Symbol> {
        let mut symbols = characters(text);
        let mut pairs = BinaryHeap::new();
        for right in 1..symbols.len() {
            self.consider(text, &symbols, right - 1, right, &mut pairs);
        }
        while let Some(Pair { left, right, length, .. }) = pairs.pop() {
            let (first, second) = (symbols[left], symbols[right]);
            if first.length == 0 || second.length == 0 || first.length + second.length != length {
                continue;
            }
            symbols[left] = Symbol { length, behind: second.behind, ..first };
            symbols[right].length = 0;
            if let Some(next) = symbols.get_mut(second.behind) {
                next.before = left;
            }
            self.consider(text, &symbols, first.before, left, &mut pairs);
            self.consider(text, &symbols, left, second.behind, &mut pairs);
        }
        symbols.retain(|symbol| symbol.length > 0);
        symbols
    }

    /// Notes that two neighbours could be merged, if they are there and could.
    fn consider(&self, text: &str, symbols: &[Symbol], left: usize, right: usize, pairs: &mut BinaryHeap<Pair>) {
        let (Some(first), Some(second)) = (symbols.get(left), symbols.get(right)) else { return };
        let length = first.length + second.length;
        if let Some(&(_, score)) = self.ids.get(&text[first.begin..][..length]) {
            pairs.push(Pair { score, left, right, length });
        }
    }

    fn push(&self, text: &str, out: &mut Vec<TokenId>) {
        match self.ids.get(text) {
            Some(&(token, _)) => out.push(token),
            None if text.bytes().all(|byte| self.bytes[usize::from(byte)].is_none()) => out.extend(self.unknown),
            None => out.extend(text.bytes().filter_map(|byte| self.bytes[usize::from(byte)])),
        }
    }
}

fn characters(text: &str) -> Vec<Symbol> {
    let mut symbols: Vec<_> = text
        .char_indices()
        .enumerate()
        .map(|(at, (begin, char))| Symbol {
            begin,
            length: char.len_utf8(),
            before: at.wrapping_sub(1),
            behind: at + 1,
        })
        .collect();
    if let Some(last) = symbols.last_mut() {
        last.behind = NONE;
    }
    symbols
}
