//! What links count.

use metrics::{counter, gauge};

/// A link is up.
pub(super) fn link_up() {
    gauge!("parlance_cluster_links").increment(1.0);
}

/// A link that was up is over.
pub(super) fn link_down() {
    gauge!("parlance_cluster_links").decrement(1.0);
    counter!("parlance_cluster_links_lost_total").increment(1);
}

/// A connection led to no link.
pub(super) fn handshake_failed(direction: &'static str) {
    counter!("parlance_cluster_handshakes_failed_total", "direction" => direction).increment(1);
}

/// A connection was closed unheard: as many handshakes as may be were under way.
pub(super) fn handshake_refused() {
    counter!("parlance_cluster_handshakes_refused_total").increment(1);
}

/// A frame was of no use.
pub(super) fn frame_dropped(why: &'static str) {
    counter!("parlance_cluster_frames_dropped_total", "reason" => why).increment(1);
}

/// A call was told that the node is busy.
pub(super) fn call_refused() {
    counter!("parlance_cluster_calls_refused_total").increment(1);
}
