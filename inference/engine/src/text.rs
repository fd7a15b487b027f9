//! From the bytes of tokens to text that may be shown.
//!
//! ```text
//! token bytes ─▶ tail (an unfinished character) ─▶ held (may begin a stop text) ─▶ out
//! ```
//!
//! What comes out, put together, is the lossy UTF-8 decoding of all bytes, cut before the stop text that is complete first.
//! It does not depend on how the bytes were cut into tokens.

use std::str;

/// Assembles one reply's text.
#[derive(Debug)]
pub(crate) struct TextAssembler {
    stops: Vec<String>,
    /// Invariant: a proper prefix of one UTF-8 character, at most 3 bytes.
    tail: Vec<u8>,
    /// Invariant: holds no stop text, and is the longest end of the text so far that a stop text begins with.
    held: String,
    stopped: bool,
}

impl TextAssembler {
    /// For a reply that any of `stops` ends. Empty stop texts are ignored.
    pub(crate) fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, tail: Vec::new(), held: String::new(), stopped: false }
    }

    /// Whether a stop text was met. Nothing comes out from then on.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Bytes of text that are held back, not counting an unfinished character.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held.len()
    }

    /// Adds a token's bytes and appends to `out` the text that became certain.
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut String) {
        if self.stopped {
            return;
        }
        let from = self.held.len();
        self.decode(bytes);
        if self.held.len() > from {
            self.release(out);
        }
    }

    /// Ends the reply and appends to `out` what was held back. An unfinished character becomes U+FFFD.
    pub(crate) fn finish(&mut self, out: &mut String) {
        if self.stopped {
            return;
        }
        if !self.tail.is_empty() {
            self.tail.clear();
            self.held.push(char::REPLACEMENT_CHARACTER);
            self.release(out);
        }
        if !self.stopped {
            out.push_str(&self.held);
        }
        self.held.clear();
        self.stopped = true;
    }

    /// Moves whole characters from tail and `bytes` to `held`; bytes that no continuation can save become U+FFFD.
    fn decode(&mut self, bytes: &[u8]) {
        let joined;
        let mut rest = bytes;
        if !self.tail.is_empty() {
            self.tail.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.tail);
            rest = &joined;
        }
        loop {
            match str::from_utf8(rest) {
                Ok(text) => return self.held.push_str(text),
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    self.held.push_str(str::from_utf8(valid).expect("was found valid"));
                    let Some(invalid) = error.error_len() else {
                        self.tail = after.to_vec();
                        return;
                    };
                    self.held.push(char::REPLACEMENT_CHARACTER);
                    rest = &after[invalid..];
                }
            }
        }
    }

    fn release(&mut self, out: &mut String) {
        if let Some(start) = self.first_stop() {
            out.push_str(&self.held[..start]);
            self.held.clear();
            self.stopped = true;
            return;
        }
        let certain = self.held.len() - self.longest_stop_beginning();
        out.push_str(&self.held[..certain]);
        self.held.drain(..certain);
    }

    /// Where the stop text begins that is complete first; of two complete at the same place, the longer.
    fn first_stop(&self) -> Option<usize> {
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop).map(|start| (start + stop.len(), start)));
        found.min().map(|(_, start)| start)
    }

    /// The length of the longest end of `held` that is the beginning of a stop text.
    fn longest_stop_beginning(&self) -> usize {
        let held = self.held.as_bytes();
        let longest = |stop: &String| {
            let stop = stop.as_bytes();
            (1..stop.len().min(held.len() + 1)).rev().find(|&n| held.ends_with(&stop[..n])).unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn assemble(pieces: &[Vec<u8>], stops: &[String]) -> String {
        let mut assembler = TextAssembler::new(stops.to_vec());
        let mut out = String::new();
        for piece in pieces {
            assembler.push(piece, &mut out);
        }
        assembler.finish(&mut out);
        out
    }

    /// Everything at once, the plain way.
    fn reference(bytes: &[u8], stops: &[String]) -> String {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let cut = stops.iter().filter_map(|s| text.find(s.as_str()).map(|at| (at + s.len(), at))).min();
        cut.map_or(text.clone(), |(_, at)| text[..at].to_owned())
    }

    fn split(bytes: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([0, bytes.len()]).collect();
        at.sort_unstable();
        at.windows(2).map(|w| bytes[w[0]..w[1]].to_vec()).collect()
    }

    fn alphabet() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            6 => "[abc]{1,3}".prop_map(String::into_bytes),
            3 => prop::sample::select(vec!["é", "€", "😀", "\u{fffd}", "ab\n"]).prop_map(|s| s.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 1..4),
        ];
        prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
    }

    fn stops() -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec("[abc€é]{1,5}", 0..4)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn splits_do_not_matter(bytes in alphabet(), stops in stops(), cuts in prop::collection::vec(any::<usize>(), 0..30)) {
            prop_assert_eq!(assemble(&split(&bytes, &cuts), &stops), reference(&bytes, &stops));
        }

        #[test]
        fn what_is_out_is_never_taken_back(bytes in alphabet(), stops in stops()) {
            let whole = reference(&bytes, &stops);
            let mut assembler = TextAssembler::new(stops);
            let mut out = String::new();
            for byte in bytes.chunks(1) {
                assembler.push(byte, &mut out);
                prop_assert!(whole.starts_with(&out), "{:?} is not the beginning of {:?}", out, whole);
            }
        }
    }

    #[test]
    fn text_that_cannot_begin_a_stop_text_comes_out_at_once() {
        let mut assembler = TextAssembler::new(vec!["END".into()]);
        let mut out = String::new();
        assembler.push("so far E".as_bytes(), &mut out);
        assert_eq!(out, "so far ");
        assembler.push(b"N", &mut out);
        assert_eq!(out, "so far ");
        assembler.push(b"ding", &mut out);
        assert_eq!(out, "so far ENding");
    }

    #[test]
    fn an_unfinished_character_waits_and_is_replaced_at_the_end() {
        let mut assembler = TextAssembler::new(vec![]);
        let mut out = String::new();
        assembler.push(&"😀".as_bytes()[..3], &mut out);
        assert_eq!(out, "");
        assembler.finish(&mut out);
        assert_eq!(out, "\u{fffd}");
    }
}
