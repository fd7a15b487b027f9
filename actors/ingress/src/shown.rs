//! What a watcher has been shown of a reply, and how a repeated stream continues it.
//!
//! When the writer of a turn dies, the turn is answered again from what was recorded of it. The new stream begins at byte 0; as far
//! as it repeats what was shown, nothing is shown again. Where it departs, the watcher is told how much of the text stands.

use std::collections::VecDeque;

/// What a watcher is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// More text, which ends at byte `end` of the reply.
    Delta {
        /// Bytes of the reply up to the end of `text`.
        end: usize,
        /// The new text.
        text: String,
    },
    /// Of what was shown only the first `to` bytes stand.
    Rewound {
        /// How many bytes stand.
        to: usize,
    },
}

/// The text that was shown.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    text: String,
    /// Bytes that the watcher has already, from an earlier connection; they are not shown again.
    had: usize,
    steps: VecDeque<Step>,
}

impl Shown {
    /// A watcher that has the first `had` bytes already.
    pub(crate) fn after(had: usize) -> Self {
        Self { had, ..Self::default() }
    }

    /// All the text so far.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// What is to be told next.
    pub(crate) fn next_step(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    /// Takes text that stands at byte `start` of the stream's reply.
    ///
    /// Invariant: streams have no gaps, so `start` is never beyond what was taken.
    pub(crate) fn take(&mut self, start: usize, text: &str) {
        debug_assert!(start <= self.text.len(), "a stream has no gaps");
        let old = self.text.get(start..).unwrap_or_default();
        let common = common_prefix(old, text);
        if common < old.len() && common < text.len() {
            self.rewind(start + common);
            self.append(&text[common..]);
        } else if text.len() > old.len() {
            self.append(&text[common..]);
        }
    }

    /// The reply is complete with `length` bytes.
    pub(crate) fn complete(&mut self, length: usize) {
        if length < self.text.len() {
            self.rewind(length);
        } else if length < self.had {
            self.had = length;
            self.steps.push_back(Step::Rewound { to: length });
        }
    }

    fn rewind(&mut self, to: usize) {
        self.text.truncate(to);
        self.steps.push_back(Step::Rewound { to });
        self.had = self.had.min(to);
    }

    fn append(&mut self, text: &str) {
        let start = self.text.len();
        self.text.push_str(text);
        let skipped = ceil_boundary(text, self.had.saturating_sub(start));
        if skipped < text.len() {
            self.steps.push_back(Step::Delta { end: self.text.len(), text: text[skipped..].to_owned() });
        }
    }
}

/// How many bytes two texts share from their beginning, cut to whole characters.
fn common_prefix(a: &str, b: &str) -> usize {
    let equal = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    (0..=equal).rev().find(|&at| a.is_char_boundary(at) && b.is_char_boundary(at)).unwrap_or(0)
}

/// The first character boundary at or behind `at`.
fn ceil_boundary(text: &str, at: usize) -> usize {
    (at..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn steps(shown: &mut Shown) -> Vec<Step> {
        std::iter::from_fn(|| shown.next_step()).collect()
    }

    fn delta(end: usize, text: &str) -> Step {
        Step::Delta { end, text: text.into() }
    }

    #[test]
    fn a_repeated_stream_is_not_shown_again() {
        let mut shown = Shown::default();
        shown.take(0, "hello wo");
        assert_eq!(steps(&mut shown), [delta(8, "hello wo")]);
        shown.take(0, "hel");
        shown.take(3, "lo world");
        shown.complete(11);
        assert_eq!(steps(&mut shown), [delta(11, "rld")]);
        assert_eq!(shown.text(), "hello world");
    }

    #[test]
    fn a_departing_stream_rewinds_to_where_it_departs() {
        let mut shown = Shown::default();
        shown.take(0, "grün");
        steps(&mut shown);
        shown.take(0, "grau");
        assert_eq!(steps(&mut shown), [Step::Rewound { to: 2 }, delta(4, "au")]);
    }

    #[test]
    fn a_shorter_reply_rewinds_at_its_end() {
        let mut shown = Shown::default();
        shown.take(0, "hello");
        steps(&mut shown);
        shown.take(0, "hel");
        shown.complete(3);
        assert_eq!(steps(&mut shown), [Step::Rewound { to: 3 }]);
    }

    #[test]
    fn a_watcher_that_comes_back_gets_what_it_lacks() {
        let mut shown = Shown::after(3);
        shown.take(0, "hello");
        assert_eq!(steps(&mut shown), [delta(5, "lo")]);
        let mut beyond = Shown::after(99);
        beyond.take(0, "hello");
        beyond.complete(5);
        assert_eq!(steps(&mut beyond), [Step::Rewound { to: 5 }]);
    }

    proptest! {
        /// Whatever streams follow each other, applying the steps gives the last stream's text.
        #[test]
        fn steps_rebuild_the_last_stream(streams in prop::collection::vec(prop::collection::vec("[aäb]{0,4}", 0..5), 1..4)) {
            let mut shown = Shown::default();
            let mut screen = String::new();
            let mut last = String::new();
            for pieces in streams {
                last.clear();
                for piece in pieces {
                    shown.take(last.len(), &piece);
                    last.push_str(&piece);
                }
            }
            shown.complete(last.len());
            for step in steps(&mut shown) {
                match step {
                    Step::Delta { end, text } => {
                        screen.push_str(&text);
                        prop_assert_eq!(screen.len(), end);
                    }
                    Step::Rewound { to } => screen.truncate(to),
                }
            }
            prop_assert_eq!(&screen, &last);
        }
    }
}
