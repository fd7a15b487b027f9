//! Bugs that the crash tests plant and must find. Compiled with the feature `planted-bugs` alone, and chosen at run time by
//! `PARLANCE_PLANTED_BUG`.

use std::sync::OnceLock;

/// Whether a turn is acknowledged when its record is proposed, before the log has it.
pub(crate) fn acks_before_append() -> bool {
    is_chosen("ack-before-append")
}

fn is_chosen(bug: &str) -> bool {
    static CHOSEN: OnceLock<Option<String>> = OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("PARLANCE_PLANTED_BUG").ok()).as_deref() == Some(bug)
}
