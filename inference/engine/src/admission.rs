//! Whether a request may wait for a lane, decided by whoever submits it, without waiting for a step.
//!
//! The engine's thread notes before every step what it has in hand; submitters read that, and what others wait for, behind a lock
//! that nobody holds for longer than it takes to add up. A request is refused when the wait for its first token would exceed the
//! target, and told when it would no longer: the time by which the forecast exceeds it. Two bounds on counts stand behind that.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    EngineOptions, GenerateRequest,
    cost::StepCosts,
    error::MOST_RETRY_AFTER,
    load::{Load, WaitingGuard},
    shares,
};

/// Tokens that a reply is taken to have before one was seen.
const UNMEASURED_REPLY: f64 = 128.0;
/// Weight of the newest reply in the running mean of their lengths.
const NEWEST_REPLY: f64 = 0.1;
/// A prompt that takes longer than the target by itself may wait, too: its whole time may be this many times its own.
const PATIENCE_OF_THE_LONG: f64 = 2.0;

/// The ledger of one engine, shared by its handle and its thread.
pub(crate) struct Admission {
    load: Arc<Load>,
    bounds: Bounds,
    ledger: Mutex<Ledger>,
}

/// What does not change.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    queue: usize,
    target: Duration,
    lanes: usize,
    /// Prompt tokens of a step while others decode.
    chunk: usize,
    /// And while nobody does.
    step_tokens: usize,
}

struct Ledger {
    /// Only those with something waiting or running.
    tenants: HashMap<String, Account>,
    waiting: usize,
    /// The tokens that the replies of those who wait may have together.
    waiting_replies: usize,
    costs: StepCosts,
    reply_tokens: f64,
    contenders: usize,
    /// Steps until each running request is likely to give its lane back, in order.
    releases: Vec<f64>,
}

/// What one tenant has in the engine.
#[derive(Debug, Clone, Copy, Default)]
struct Account {
    waiting: usize,
    waiting_tokens: usize,
    running: usize,
    /// Prompt tokens of running requests that are to be computed.
    prefill: usize,
}

/// A running request, as the engine's thread sees it before a step.
pub(crate) struct Progress<'a> {
    pub(crate) tenant: &'a str,
    /// Prompt tokens that are to be computed.
    pub(crate) prefill: usize,
    /// Tokens of the reply so far.
    pub(crate) said: u32,
    /// Tokens that it may yet have.
    pub(crate) room: u32,
}

/// A place among the waiting requests, until it is dropped.
pub(crate) struct Ticket {
    admission: Arc<Admission>,
    tenant: String,
    tokens: usize,
    reply: usize,
    _waiting: WaitingGuard,
}

impl Admission {
    pub(crate) fn new(load: Arc<Load>, lanes: usize, options: &EngineOptions) -> Arc<Self> {
        let bounds = Bounds {
            queue: options.queue.max(1),
            target: options.target_first_token,
            lanes,
            chunk: options.prefill_chunk.max(1),
            step_tokens: options.step_tokens.max(1),
        };
        let ledger = Ledger {
            tenants: HashMap::new(),
            waiting: 0,
            waiting_replies: 0,
            costs: options.costs,
            reply_tokens: UNMEASURED_REPLY,
            contenders: 0,
            releases: Vec::new(),
        };
        Arc::new(Self { load, bounds, ledger: Mutex::new(ledger) })
    }

    /// A place for a request. One that was promised its answer is held to the bounds on counts alone.
    ///
    /// # Errors
    ///
    /// When a place is likely to be free.
    pub(crate) fn admit(self: &Arc<Self>, request: &GenerateRequest) -> Result<Ticket, Duration> {
        let tokens = request.prompt.tokens.len() + request.forced.len();
        let mut ledger = self.ledger();
        ledger.check_counts(&self.bounds, &request.tenant)?;
        if !request.promised {
            ledger.check_target(&self.bounds, &request.tenant, tokens)?;
        }
        let account = ledger.tenants.entry(request.tenant.clone()).or_default();
        account.waiting += 1;
        account.waiting_tokens += tokens;
        let reply = request.max_tokens as usize;
        ledger.waiting += 1;
        ledger.waiting_replies += reply;
        let (admission, tenant) = (self.clone(), request.tenant.clone());
        Ok(Ticket { admission, tenant, tokens, reply, _waiting: self.load.wait_unbounded() })
    }

    /// Whether a request of that size would get a place now.
    ///
    /// # Errors
    ///
    /// As [`admit`](Self::admit).
    pub(crate) fn check(&self, tenant: &str, tokens: usize) -> Result<(), Duration> {
        let ledger = self.ledger();
        ledger.check_counts(&self.bounds, tenant)?;
        ledger.check_target(&self.bounds, tenant, tokens)
    }

    /// Notes what the engine is about to compute, and how many tenants share it.
    pub(crate) fn note<'a>(&self, running: impl Iterator<Item = Progress<'a>>, contenders: usize, costs: &StepCosts) {
        let mut ledger = self.ledger();
        (ledger.costs, ledger.contenders) = (*costs, contenders);
        ledger.tenants.retain(|_, account| account.waiting > 0 || account.running > 0);
        ledger.tenants.values_mut().for_each(|account| (account.running, account.prefill) = (0, 0));
        ledger.releases.clear();
        for progress in running {
            let release = progress.prefill as f64 / self.bounds.chunk as f64 + ledger.rest_of_reply(&progress);
            ledger.releases.push(release);
            let account = match ledger.tenants.get_mut(progress.tenant) {
                Some(account) => account,
                None => ledger.tenants.entry(progress.tenant.to_owned()).or_default(),
            };
            account.running += 1;
            account.prefill += progress.prefill;
        }
        ledger.releases.sort_unstable_by(f64::total_cmp);
    }

    /// Learns how long replies are.
    pub(crate) fn reply_ended(&self, tokens: u32) {
        let mut ledger = self.ledger();
        ledger.reply_tokens += (f64::from(tokens) - ledger.reply_tokens) * NEWEST_REPLY;
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut ledger = self.admission.ledger();
        ledger.waiting -= 1;
        ledger.waiting_replies -= self.reply;
        if let Some(account) = ledger.tenants.get_mut(&self.tenant) {
            account.waiting -= 1;
            account.waiting_tokens -= self.tokens;
        }
    }
}

/// What a new request's time to its first token is made of, in seconds.
struct Forecast {
    waits: f64,
    computes: f64,
}

/// What is served before a new request.
struct Ahead {
    requests: usize,
    tokens: usize,
}

impl Ledger {
    /// A tenant may have as many places as it leaves free, so that a flood of one never keeps another out (Choudhury and Hahne,
    /// "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", 1998).
    fn check_counts(&self, bounds: &Bounds, tenant: &str) -> Result<(), Duration> {
        let free = bounds.queue.saturating_sub(self.waiting);
        if free > 0 && self.account(tenant).waiting <= free {
            return Ok(());
        }
        let next_lane = self.releases.first().copied().unwrap_or(self.reply_tokens);
        Err(wait(self.costs.of(next_lane, self.releases.len(), 0)))
    }

    fn check_target(&self, bounds: &Bounds, tenant: &str, tokens: usize) -> Result<(), Duration> {
        let Forecast { waits, computes } = self.forecast(bounds, tenant, tokens);
        let target = bounds.target.as_secs_f64().max(PATIENCE_OF_THE_LONG * computes);
        let excess = waits + computes - target;
        // What is known of the engine is as old as its running step.
        let step = self.costs.of(1.0, self.releases.len(), bounds.chunk);
        if excess > 0.0 { Err(wait(excess + step)) } else { Ok(()) }
    }

    /// When a request with a prompt of `tokens` tokens has its first one. What of it lies in a cache is not known here, so it is rather
    /// sooner.
    fn forecast(&self, bounds: &Bounds, tenant: &str, tokens: usize) -> Forecast {
        let ahead = self.ahead(tenant, tokens);
        let decoding = (self.releases.len() + ahead.requests).min(bounds.lanes);
        let chunk = if decoding == 0 { bounds.step_tokens } else { bounds.chunk } as f64;
        let turn = self.steps_to_lane(bounds, tenant, ahead.requests).max(ahead.tokens as f64 / chunk);
        Forecast {
            waits: self.costs.of(turn, decoding, ahead.tokens),
            computes: self.costs.of((tokens as f64 / chunk).ceil(), decoding, tokens),
        }
    }

    /// All that the tenant has itself; of every other no more than it gets itself meanwhile, since whoever was served least is next.
    fn ahead(&self, tenant: &str, tokens: usize) -> Ahead {
        let own = self.account(tenant);
        let own_tokens = own.waiting_tokens + own.prefill;
        let others = self.tenants.iter().filter(|(name, _)| *name != tenant).map(|(_, account)| account);
        others.fold(Ahead { requests: own.waiting, tokens: own_tokens }, |ahead, other| Ahead {
            requests: ahead.requests + other.waiting.min(own.waiting + 1),
            tokens: ahead.tokens + (other.waiting_tokens + other.prefill).min(own_tokens + tokens),
        })
    }

    /// Steps until there is a lane for a request behind `ahead` others.
    fn steps_to_lane(&self, bounds: &Bounds, tenant: &str, ahead: usize) -> f64 {
        let idle = bounds.lanes.saturating_sub(self.releases.len());
        let has_its_share = self.account(tenant).running >= shares::share(bounds.lanes, self.contenders);
        let kept = if self.contenders > 1 && has_its_share { shares::kept(bounds.lanes) } else { 0 };
        let Some(behind) = ahead.checked_sub(idle.saturating_sub(kept)) else { return 0.0 };
        let lanes = bounds.lanes.max(1);
        let reply = self.reply_of_waiting();
        self.releases.get(behind % lanes).copied().unwrap_or(reply) + (behind / lanes) as f64 * reply
    }

    fn reply_of_waiting(&self) -> f64 {
        if self.waiting == 0 {
            return self.reply_tokens;
        }
        self.reply_tokens.min(self.waiting_replies as f64 / self.waiting as f64)
    }

    /// What is left of a reply that has been like others so far; at most what it may have.
    fn rest_of_reply(&self, progress: &Progress<'_>) -> f64 {
        let said = f64::from(progress.said);
        let rest = if said < self.reply_tokens { self.reply_tokens - said } else { self.reply_tokens };
        rest.min(f64::from(progress.room))
    }

    fn account(&self, tenant: &str) -> Account {
        self.tenants.get(tenant).copied().unwrap_or_default()
    }
}

fn wait(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(MOST_RETRY_AFTER)
}

#[cfg(test)]
mod tests;
