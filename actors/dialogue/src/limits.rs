/// For how long an event id is remembered: 24 hours from the acceptance of its turn.
pub const DEDUPE_TTL_MS: u64 = 24 * 60 * 60 * 1_000;

/// The bounds of one session. The two history bounds decide what a prompt holds, so they must be equal on all nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most accepted turns without an answer, the running one included.
    pub queue: usize,
    /// The most attempts to answer one turn that may fail in one life of the session.
    pub failures: u32,
    /// The most attempts to answer one turn, those included that were interrupted because the session or its process died.
    pub attempts: u32,
    /// The most items of history in memory and in a prompt, the current exchange excepted.
    pub history_items: usize,
    /// The most bytes of text in those items.
    pub history_bytes: u64,
    /// The most event ids that are remembered.
    pub dedupe: usize,
    /// The most bytes of final answers that are kept for repeated requests.
    pub dedupe_bytes: usize,
    /// The most requests whose outcome waits for a record that is in flight.
    pub waiting: usize,
    /// Tokens between two checkpoints of a running reply.
    pub checkpoint_tokens: usize,
    /// Milliseconds between two checkpoints of a running reply.
    pub checkpoint_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue: 8,
            failures: 3,
            attempts: 12,
            history_items: 512,
            history_bytes: 256 * 1_024,
            dedupe: 4_096,
            dedupe_bytes: 16 * 1_024 * 1_024,
            waiting: 64,
            checkpoint_tokens: 64,
            checkpoint_ms: 250,
        }
    }
}
