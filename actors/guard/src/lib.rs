//! The guard on both sides of the model: what goes in is reviewed before a token is computed, what comes out before anybody
//! sees it.
//!
//! ```text
//!  accepted turn ──▶ InputGuard::review ──▶ model ──▶ OutputReview::push ──▶ watchers, record
//!                         │ Blocked                        │ Blocked
//!                         └──────▶ the turn's recorded failure ◀──────┘
//! ```
//!
//! Pure: no clock, no I/O, no actors. So far there is one guard, [`PassThrough`], which lets everything through.

use std::{fmt, sync::Arc};

use parlance_cluster_protocol::Item;

/// The most bytes of a reply that an [`OutputReview`] may hold back.
pub const MAX_HELD_BACK_BYTES: usize = 4_096;

/// Why a turn is not answered, or no further. Becomes the turn's recorded final failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The error code of the public interface.
    pub code: &'static str,
    /// What a person is told. Never repeats what was blocked.
    pub message: String,
}

/// What becomes of a turn's messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputVerdict {
    /// The model gets them as they are.
    Pass,
    /// The model gets these instead.
    Masked(Vec<Item>),
    /// The model gets nothing.
    Blocked(Block),
}

/// Reviews what the model is told. One value serves all sessions.
pub trait InputGuard: Send + Sync + 'static {
    /// Reviews a prompt of `tenant`, oldest message first: all of it, since the record keeps earlier messages as they were said.
    /// The same messages get the same verdict, so that a turn that is taken up again gets the same prompt.
    fn review(&self, tenant: &str, messages: &[&Item]) -> InputVerdict;
}

/// What becomes of a piece of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputVerdict {
    /// This text may be shown; it is empty while everything is held back.
    Release(String),
    /// Nothing further may be shown. What was released stays so; what was held back is dropped.
    Blocked(Block),
}

/// Reviews what the model says. One value serves all sessions.
pub trait OutputGuard: Send + Sync + 'static {
    /// Begins to review one attempt to answer one turn of `tenant`. An attempt that goes on from recorded tokens says them
    /// again, so its review begins anew.
    fn begin(&self, tenant: &str) -> Box<dyn OutputReview>;
}

/// The review of one reply while it is generated.
pub trait OutputReview: Send {
    /// Takes the next piece and says what may be shown now. Holds back at most [`MAX_HELD_BACK_BYTES`].
    fn push(&mut self, delta: String) -> OutputVerdict;

    /// The reply is complete: says what is to be shown of the text that was held back. Nothing follows.
    fn finish(&mut self) -> OutputVerdict;
}

/// Both guards of a node.
#[derive(Clone)]
pub struct Guards {
    /// In front of the model.
    pub input: Arc<dyn InputGuard>,
    /// Behind it.
    pub output: Arc<dyn OutputGuard>,
}

impl Default for Guards {
    fn default() -> Self {
        Self { input: Arc::new(PassThrough), output: Arc::new(PassThrough) }
    }
}

impl fmt::Debug for Guards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guards")
    }
}

/// Lets everything through as it is, at once.
#[derive(Debug, Clone, Copy, Default)]
pub struct PassThrough;

impl InputGuard for PassThrough {
    fn review(&self, _tenant: &str, _messages: &[&Item]) -> InputVerdict {
        InputVerdict::Pass
    }
}

impl OutputGuard for PassThrough {
    fn begin(&self, _tenant: &str) -> Box<dyn OutputReview> {
        Box::new(Self)
    }
}

impl OutputReview for PassThrough {
    fn push(&mut self, delta: String) -> OutputVerdict {
        OutputVerdict::Release(delta)
    }

    fn finish(&mut self) -> OutputVerdict {
        OutputVerdict::Release(String::new())
    }
}

#[cfg(test)]
mod tests {
    use std::mem;

    use parlance_cluster_protocol::Role;

    use super::*;

    const SECRET: &str = "hunter2";

    /// A guard that needs everything the hooks offer: it masks what goes in and blocks what comes out, across pieces.
    struct KeepsSecret;

    #[derive(Default)]
    struct Withholds {
        held: String,
    }

    impl InputGuard for KeepsSecret {
        fn review(&self, tenant: &str, messages: &[&Item]) -> InputVerdict {
            if tenant == "locked" {
                return InputVerdict::Blocked(block());
            }
            let masked = |item: &&Item| Item { role: item.role, text: item.text.replace(SECRET, "***") };
            InputVerdict::Masked(messages.iter().map(masked).collect())
        }
    }

    impl OutputGuard for KeepsSecret {
        fn begin(&self, _tenant: &str) -> Box<dyn OutputReview> {
            Box::new(Withholds::default())
        }
    }

    impl OutputReview for Withholds {
        fn push(&mut self, delta: String) -> OutputVerdict {
            self.held.push_str(&delta);
            if self.held.contains(SECRET) {
                return OutputVerdict::Blocked(block());
            }
            let partial = (1..SECRET.len()).rev().find(|length| self.held.ends_with(&SECRET[..*length])).unwrap_or(0);
            let kept = self.held.split_off(self.held.len() - partial);
            OutputVerdict::Release(mem::replace(&mut self.held, kept))
        }

        fn finish(&mut self) -> OutputVerdict {
            OutputVerdict::Release(mem::take(&mut self.held))
        }
    }

    fn block() -> Block {
        Block { code: "content_blocked", message: "This cannot be said here.".into() }
    }

    /// What a watcher sees of a reply, and whether it was blocked.
    fn watch(guard: &dyn OutputGuard, deltas: &[&str]) -> (String, bool) {
        let (mut review, mut seen) = (guard.begin("tenant"), String::new());
        for delta in deltas {
            match review.push((*delta).into()) {
                OutputVerdict::Release(text) => seen.push_str(&text),
                OutputVerdict::Blocked(_) => return (seen, true),
            }
        }
        match review.finish() {
            OutputVerdict::Release(text) => (seen + &text, false),
            OutputVerdict::Blocked(_) => (seen, true),
        }
    }

    fn said(text: &str) -> Item {
        Item { role: Role::User, text: text.into() }
    }

    #[test]
    fn pass_through_changes_and_delays_nothing() {
        assert_eq!(PassThrough.review("tenant", &[&said(SECRET)]), InputVerdict::Pass);
        let mut review = PassThrough.begin("tenant");
        for delta in ["hunt", "er2", "", "ß"] {
            assert_eq!(review.push(delta.into()), OutputVerdict::Release(delta.into()));
        }
        assert_eq!(review.finish(), OutputVerdict::Release(String::new()));
    }

    #[test]
    fn a_guard_can_mask_and_block_what_goes_in() {
        let guard: &dyn InputGuard = &KeepsSecret;
        assert_eq!(guard.review("open", &[&said("it is hunter2")]), InputVerdict::Masked(vec![said("it is ***")]));
        assert_eq!(guard.review("locked", &[&said("hi")]), InputVerdict::Blocked(block()));
    }

    #[test]
    fn a_guard_can_hold_back_until_it_is_sure() {
        assert_eq!(watch(&KeepsSecret, &["the hun", "ter", "2 is out"]), ("the ".into(), true));
        assert_eq!(watch(&KeepsSecret, &["the hun", "ter", " is out"]), ("the hunter is out".into(), false));
        assert_eq!(watch(&KeepsSecret, &["a hunt"]), ("a hunt".into(), false), "the end releases what was held back");
        assert_eq!(watch(&PassThrough, &["the hun", "ter2"]), ("the hunter2".into(), false));
    }
}
