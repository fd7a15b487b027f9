//! Every metric of this crate: named, described and recorded here.

use std::{sync::OnceLock, time::Duration};

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use parlance_actors_dialogue::Outcome;
use parlance_cluster_protocol::FinishReason;

use crate::Refusal;

/// Handles of the metrics that every turn touches, looked up once.
struct Hot {
    replied: Counter,
    failed: Counter,
    cancelled: Counter,
    duration: Histogram,
    dedupe_hits: Counter,
    fenced: Counter,
    live: Gauge,
    events: Counter,
    event_lag: Gauge,
}

fn hot() -> &'static Hot {
    static HOT: OnceLock<Hot> = OnceLock::new();
    HOT.get_or_init(|| Hot {
        replied: counter!("parlance_turns_total", "outcome" => "replied"),
        failed: counter!("parlance_turns_total", "outcome" => "failed"),
        cancelled: counter!("parlance_turns_total", "outcome" => "cancelled"),
        duration: histogram!("parlance_turn_duration_seconds"),
        dedupe_hits: counter!("parlance_dedupe_hits_total"),
        fenced: counter!("parlance_fenced_records_total"),
        live: gauge!("parlance_sessions", "state" => "live"),
        events: counter!("parlance_events_published_total"),
        event_lag: gauge!("parlance_events_lag"),
    })
}

/// Describes them all; called once, when the exporter is installed.
pub fn describe() {
    describe_counter!("parlance_turns_total", Unit::Count, "Turns that ended, by outcome");
    describe_counter!(
        "parlance_turns_rejected_total",
        Unit::Count,
        "Turns that were refused before acceptance, by code"
    );
    describe_histogram!(
        "parlance_turn_duration_seconds",
        Unit::Seconds,
        "From acceptance of a turn to its recorded end"
    );
    describe_counter!("parlance_fenced_records_total", Unit::Count, "Log entries that were read and did not count");
    describe_counter!("parlance_dedupe_hits_total", Unit::Count, "Requests that joined an earlier one");
    describe_gauge!("parlance_shards_owned", Unit::Count, "Shards that this node owns");
    describe_counter!("parlance_shard_moves_total", Unit::Count, "Shards that changed hands, by cause");
    describe_histogram!(
        "parlance_shard_handover_seconds",
        Unit::Seconds,
        "From the order to hand a shard over until its next owner has said so"
    );
    describe_gauge!("parlance_sessions", Unit::Count, "Sessions in memory, by state");
    describe_counter!(
        "parlance_node_suspicions_total",
        Unit::Count,
        "Suspicions of other nodes that began, and those of them that were false"
    );
    describe_counter!(
        "parlance_peer_messages_refused_total",
        Unit::Count,
        "Messages of other nodes that could not be used, by kind"
    );
    describe_gauge!(
        "parlance_dependency_up",
        Unit::Count,
        "Whether a component that the node depends on serves: 1 or 0"
    );
    describe_counter!("parlance_actor_restarts_total", Unit::Count, "Actors that were restarted, by kind");
    describe_counter!(
        "parlance_events_published_total",
        Unit::Count,
        "Events of turns that were published, repetitions included"
    );
    describe_gauge!(
        "parlance_events_lag",
        Unit::Count,
        "Records of this node's shards that are committed and whose events are not published"
    );
}

/// How a turn ended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ended {
    Replied,
    Failed,
    Cancelled,
}

impl From<&Outcome> for Ended {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Replied(replied) if replied.finish == FinishReason::Cancelled => Self::Cancelled,
            Outcome::Replied(_) => Self::Replied,
            Outcome::Failed(_) => Self::Failed,
        }
    }
}

pub(crate) fn turn_ended(ended: Ended, duration: Duration) {
    match ended {
        Ended::Replied => hot().replied.increment(1),
        Ended::Failed => hot().failed.increment(1),
        Ended::Cancelled => hot().cancelled.increment(1),
    }
    hot().duration.record(duration);
}

pub(crate) fn turn_rejected(refusal: &Refusal) {
    counter!("parlance_turns_rejected_total", "code" => refusal.code()).increment(1);
}

pub(crate) fn dedupe_hit() {
    hot().dedupe_hits.increment(1);
}

pub(crate) fn records_fenced(count: u64) {
    if count > 0 {
        hot().fenced.increment(count);
    }
}

pub(crate) fn session_started() {
    hot().live.increment(1.0);
}

pub(crate) fn session_ended() {
    hot().live.decrement(1.0);
}

pub(crate) fn session_parked() {
    gauge!("parlance_sessions", "state" => "parked").increment(1.0);
}

pub(crate) fn shard_owned(cause: &'static str) {
    gauge!("parlance_shards_owned").increment(1.0);
    counter!("parlance_shard_moves_total", "cause" => cause).increment(1);
}

pub(crate) fn shard_left() {
    gauge!("parlance_shards_owned").decrement(1.0);
}

pub(crate) fn actor_restarted(actor: &'static str) {
    counter!("parlance_actor_restarts_total", "actor" => actor).increment(1);
}

pub(crate) fn shard_handed_over(took: Duration) {
    histogram!("parlance_shard_handover_seconds").record(took);
}

pub(crate) fn events_published(count: usize) {
    if count > 0 {
        hot().events.increment(count as u64);
    }
}

/// One shard's part in `parlance_events_lag`; taken out of it when dropped.
#[derive(Default)]
pub(crate) struct EventLag(u64);

impl EventLag {
    pub(crate) fn set(&mut self, records: u64) {
        hot().event_lag.increment(records as f64 - self.0 as f64);
        self.0 = records;
    }
}

impl Drop for EventLag {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Suspicions so far: the false ones are those that ended with a heartbeat.
pub(crate) fn suspicions(counts: parlance_cluster_node::detector::Counts) {
    counter!("parlance_node_suspicions_total", "outcome" => "begun").absolute(counts.begun);
    counter!("parlance_node_suspicions_total", "outcome" => "false").absolute(counts.falsely);
}

/// Whether a component that the node depends on serves.
pub(crate) fn dependency(name: &'static str, up: bool) {
    gauge!("parlance_dependency_up", "name" => name).set(if up { 1.0 } else { 0.0 });
}

pub(crate) fn peer_message_refused(kind: &'static str) {
    counter!("parlance_peer_messages_refused_total", "kind" => kind).increment(1);
}
