//! Who holds which lane of the KV cache, and what the idle ones still hold.

use crate::{GenerateRequest, Lane, TokenId};

/// The lanes of one model.
///
/// Invariant: a lane's `tokens` are in its KV cache, in this order, while it is idle.
pub(crate) struct Lanes {
    lanes: Vec<Resident>,
    uses: u64,
}

#[derive(Default)]
struct Resident {
    running: bool,
    tenant: String,
    affinity: u64,
    tokens: Vec<TokenId>,
    /// When it was taken last; 0 is never.
    used: u64,
}

/// A lane that was taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) lane: Lane,
    /// How many of the request's tokens are in its cache.
    pub(crate) reused: usize,
}

impl Lanes {
    pub(crate) fn new(count: usize) -> Self {
        Self { lanes: std::iter::repeat_with(Resident::default).take(count).collect(), uses: 0 }
    }

    pub(crate) fn has_idle(&self) -> bool {
        self.lanes.iter().any(|lane| !lane.running)
    }

    /// The lanes that are held, in order.
    #[cfg(test)]
    pub(crate) fn running(&self) -> impl Iterator<Item = Lane> {
        self.lanes.iter().enumerate().filter(|(_, lane)| lane.running).map(|(at, _)| at)
    }

    /// Takes the idle lane that holds most of `tokens` for the same conversation of the same tenant, else the one that was used
    /// longest ago. Nothing is ever shared between tenants. At least one token is left to compute.
    pub(crate) fn take(&mut self, request: &GenerateRequest, tokens: &[TokenId]) -> Option<Taken> {
        let shared = |lane: &Resident| {
            let same = request.affinity != 0 && lane.affinity == request.affinity && lane.tenant == request.tenant;
            if same { common_prefix(&lane.tokens, tokens) } else { 0 }
        };
        let idle = self.lanes.iter().enumerate().filter(|(_, lane)| !lane.running);
        let best = idle
            .map(|(at, lane)| (shared(lane), lane.used, at))
            .max_by_key(|&(shared, used, at)| (shared, std::cmp::Reverse((used, at))));
        let (shared, _, lane) = best?;
        self.uses += 1;
        self.lanes[lane] = Resident {
            running: true,
            tenant: request.tenant.clone(),
            affinity: request.affinity,
            tokens: Vec::new(),
            used: self.uses,
        };
        Some(Taken { lane, reused: shared.min(tokens.len().saturating_sub(1)) })
    }

    /// Gives a lane back with `tokens` in its cache.
    pub(crate) fn release(&mut self, lane: Lane, tokens: Vec<TokenId>) {
        debug_assert!(self.lanes[lane].running, "lane {lane} is released twice");
        self.lanes[lane].running = false;
        self.lanes[lane].tokens = tokens;
    }

    /// Forgets what the idle lanes hold, after a failure of the model.
    pub(crate) fn forget(&mut self) {
        self.lanes.iter_mut().for_each(|lane| lane.tokens.clear());
    }
}

fn common_prefix(a: &[TokenId], b: &[TokenId]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
