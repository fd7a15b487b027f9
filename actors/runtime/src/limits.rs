use std::time::Duration;

use parlance_cluster_cache::Limit;

/// The bounds of one node. Past a bound a request is refused at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Turns accepted or waiting to be, over all sessions of the node.
    pub open_turns: usize,
    /// The same for one tenant.
    pub open_turns_per_tenant: usize,
    /// How many turns a tenant may ask for, durable and stateless, wherever they come in; absent: any number.
    pub turn_rate: Option<Limit>,
    /// Turns that wait in one session behind the running one.
    pub queued_turns_per_session: usize,
    /// Sessions in memory; the longest idle ones leave first. Past it, while none can leave, turns of further sessions are refused.
    pub live_sessions: usize,
    /// How long an idle session stays in memory.
    pub session_idle: Duration,
    /// How long a turn may take from acceptance to its reply.
    pub turn_deadline: Duration,
    /// Committed records per shard that the record store may lag behind; past it new turns are refused.
    pub projection_lag: usize,
    /// Bytes of a session's latest history that stay in memory.
    pub history_bytes: usize,
    /// Stateless generations at once.
    pub stateless: usize,
    /// How long a request waits for a model that is loaded on demand.
    pub model_wait: Duration,
    /// How long a model that is replaced or makes room may finish what it has taken on.
    pub model_drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            open_turns: 10_000,
            open_turns_per_tenant: 5_000,
            turn_rate: None,
            queued_turns_per_session: 8,
            live_sessions: 100_000,
            session_idle: Duration::from_secs(60),
            turn_deadline: Duration::from_secs(300),
            projection_lag: 50_000,
            history_bytes: 256 * 1024,
            stateless: 1_000,
            model_wait: Duration::from_secs(30),
            model_drain: Duration::from_secs(60),
        }
    }
}
