//! Bugs that the crash tests plant and must find. Compiled with the feature `planted-bugs` alone, and chosen at run time by
//! `PARLANCE_PLANTED_BUG`.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use parlance_cluster_protocol::Item;

/// How late the log gets the record of a turn that was acknowledged too early. Without it the window is as short as a sync, and
/// on a quick disk hardly any kill finds it.
pub(crate) const APPEND_DELAY: Duration = Duration::from_millis(20);

/// The message that panics its session.
const POISON: &str = "poison";

/// Whether a turn is acknowledged when its record is proposed, before the log has it.
pub(crate) fn acks_before_append() -> bool {
    is_chosen("ack-before-append")
}

/// Whether a replaced or unloaded model is ended at once instead of finishing what it has taken on.
pub(crate) fn cuts_replaced_models() -> bool {
    is_chosen("cut-replaced-models")
}

/// Whether repeated messages are taken for new ones.
pub(crate) fn forgets_keys() -> bool {
    is_chosen("no-dedupe")
}

/// Whether a checkpoint goes ahead of the rows that it speaks for.
pub(crate) fn checkpoints_ahead() -> bool {
    is_chosen("checkpoint-ahead")
}

/// Panics a session that answers a poisonous message.
pub(crate) fn taste(messages: &[Arc<Item>]) {
    if is_chosen("panic-on-poison") {
        assert!(messages.iter().all(|item| item.text != POISON), "a planted panic");
    }
}

fn is_chosen(bug: &str) -> bool {
    static CHOSEN: OnceLock<Option<String>> = OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("PARLANCE_PLANTED_BUG").ok()).as_deref() == Some(bug)
}
