//! Decides what this node should be to every shard, as a pure machine: facts in, orders out; no clock, no I/O.
//!
//! Everything here is a hint. Who owns a shard is decided in its log; a wrong decision costs a claim too many and no answer.
//!
//! - Where every shard should be says [`plan`]. An owner hands over what the plan has elsewhere, once the receiver is warm.
//! - A shard without an owner is taken by whom the plan names, once it follows the log to its end. An owner counts as gone when membership says
//!   so, or when this node and one more, or all others that are left, have not heard of it for too long.
//! - Peace: a node that just started waits until it may know the others. One that hears of less than half of the nodes waits longer than they
//!   do. The more often a shard was claimed lately, the longer the next claim waits.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use parlance_cluster_node::{
    identity::{Incarnation, NodeName},
    membership::{Member, Seen, Standing},
    placement::{Candidate, Hint, Plan, Shard, plan},
};
use parlance_cluster_protocol::{
    Offset, ShardId,
    peer::{Handing, OwnedShard, Report},
};

use super::WithModels;
use crate::shard_supervisor::Assignment;

/// After its start a node takes nothing that nobody owns, so that all of a new cluster's nodes can be there first.
const SETTLE: Duration = Duration::from_secs(1);
/// The same where it knows of other nodes and has met none, and before it takes a shard over from a node that it never met.
const SETTLE_ALONE: Duration = Duration::from_secs(5);
/// How much longer a node waits that hears of less than half of the others.
const MINORITY_WAITS: Duration = Duration::from_secs(5);
/// How long a shard is left to its last owner if that lives and says nothing of it: its actor may be restarting.
const OWNER_RETURNS: Duration = Duration::from_secs(3);
/// The pause before a further claim while a shard is disputed; each further claim doubles it.
const DISPUTED_PAUSE: Duration = Duration::from_millis(250);
/// Doublings of that pause at most: 8 s.
const MOST_DOUBLINGS: usize = 5;
/// Shards that are followed for the first time at once: each is replayed from its checkpoint.
const FOLLOWS_AT_ONCE: usize = 8;
/// How long a receiver may take to get warm; then the hand-over is put off.
const WARM_WITHIN: Duration = Duration::from_secs(20);
/// Hand-overs that an operator has asked for and that wait.
const MOST_WISHES: usize = 4_096;

/// Who owns a shard, as its log says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reign {
    /// The name of the claim: of which start of which node.
    pub(crate) by: String,
    /// Where the claim lies.
    pub(crate) claimed_at: Offset,
    /// How often others claimed the shard lately, without a release before.
    pub(crate) recent_claims: usize,
}

/// What a shard's actor tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ShardNews {
    /// It follows the log and could take over at once; again when somebody else claimed.
    Warm { reign: Option<Reign> },
    /// It claims.
    Claiming,
    /// It owns the shard.
    Owned { claimed_at: Offset },
    /// It is handing the shard over.
    Releasing,
    /// Its term is over.
    Ended,
}

/// What this node is to a shard at the moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
enum Mine {
    #[default]
    Away,
    /// Follows, and does not know the end of the log yet.
    Cold,
    Warm {
        reign: Option<Reign>,
    },
    Claiming,
    Owned {
        claimed_at: Offset,
    },
    Releasing,
}

/// What has to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Order {
    /// Be this to the shard.
    Assign(ShardId, Assignment),
    /// Hand the shard over.
    Release(ShardId, Incarnation),
}

/// A shard as the node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShardSeen {
    pub(crate) owner: Option<Incarnation>,
    pub(crate) standby: Option<Incarnation>,
    /// Whether the standby could take over at once.
    pub(crate) warm: bool,
    pub(crate) moving: bool,
}

struct Peer {
    node: Incarnation,
    report: Report,
}

/// See the module.
pub(crate) struct Steward {
    me: Incarnation,
    moves_at_once: usize,
    /// Whether other nodes are configured.
    has_seeds: bool,
    mine: Vec<Mine>,
    peers: BTreeMap<NodeName, Peer>,
    /// Whom this node has not heard of for too long.
    silent: BTreeSet<Incarnation>,
    /// Since when this node should take a shard that nobody owns.
    due: BTreeMap<u32, Duration>,
    /// What this node hands over, to whom, and since when.
    handing: BTreeMap<u32, (Incarnation, Duration)>,
    /// What an operator wants moved. Bound: [`MOST_WISHES`].
    wishes: BTreeMap<u32, NodeName>,
    last: Plan,
    number: u64,
}

impl Steward {
    pub(crate) fn new(me: Incarnation, shards: u16, moves_at_once: usize, has_seeds: bool) -> Self {
        Self {
            me,
            moves_at_once,
            has_seeds,
            mine: vec![Mine::Away; usize::from(shards)],
            peers: BTreeMap::new(),
            silent: BTreeSet::new(),
            due: BTreeMap::new(),
            handing: BTreeMap::new(),
            wishes: BTreeMap::new(),
            last: Plan::default(),
            number: 0,
        }
    }

    pub(crate) fn on_news(&mut self, shard: ShardId, news: ShardNews) {
        let mine = &mut self.mine[usize::from(shard.0)];
        *mine = match news {
            ShardNews::Warm { reign } => Mine::Warm { reign },
            ShardNews::Claiming => Mine::Claiming,
            ShardNews::Owned { claimed_at } => Mine::Owned { claimed_at },
            ShardNews::Releasing => Mine::Releasing,
            ShardNews::Ended => Mine::Away,
        };
        if !matches!(mine, Mine::Owned { .. }) {
            self.handing.remove(&u32::from(shard.0));
            self.wishes.remove(&u32::from(shard.0));
        }
    }

    /// Takes a peer's report, unless a later one came before.
    pub(crate) fn on_report(&mut self, from: &Incarnation, report: Report) {
        let known = self.peers.get(&from.name);
        let is_old = known.is_some_and(|known| {
            known.node.boot > from.boot || (known.node == *from && known.report.number >= report.number)
        });
        if !is_old {
            self.peers.insert(from.name.clone(), Peer { node: from.clone(), report });
        }
    }

    pub(crate) fn on_silence(&mut self, node: &Incarnation, silent: bool) {
        match silent {
            true => drop(self.silent.insert(node.clone())),
            false => drop(self.silent.remove(node)),
        }
    }

    /// That incarnation is gone for good.
    pub(crate) fn on_gone(&mut self, node: &Incarnation) {
        self.silent.remove(node);
        if self.peers.get(&node.name).is_some_and(|peer| peer.node == *node) {
            self.peers.remove(&node.name);
        }
    }

    /// An operator wants a shard of this node's moved. `false`: it is not this node's, or too many wait.
    pub(crate) fn on_wish(&mut self, shard: ShardId, to: NodeName) -> bool {
        let owned = matches!(self.mine.get(usize::from(shard.0)), Some(Mine::Owned { .. }));
        let fits = owned && self.wishes.len() < MOST_WISHES;
        if fits {
            self.wishes.insert(u32::from(shard.0), to);
        }
        fits
    }

    /// What others should know of this node.
    pub(crate) fn report(&mut self) -> Report {
        self.number += 1;
        let mut report = Report { number: self.number, ..Report::default() };
        for (mine, shard) in self.mine.iter().zip(0..) {
            match mine {
                Mine::Owned { claimed_at } => {
                    report.owned.push(OwnedShard { shard, claimed_at: claimed_at.0 });
                }
                Mine::Warm { .. } => report.warm.push(shard),
                _ => {}
            }
        }
        report.silent = self.silent.iter().map(ToString::to_string).collect();
        let handing =
            |(shard, (to, _)): (&u32, &(Incarnation, Duration))| Handing { shard: *shard, to: to.to_string() };
        report.handing = self.handing.iter().map(handing).collect();
        report
    }

    /// Decides anew. `up` is how long this node has lived, `members` everybody else who is remembered, `me` its own record.
    pub(crate) fn decide(&mut self, up: Duration, me: &Member, members: &[Seen]) -> Vec<Order> {
        let live: Vec<&Seen> = members.iter().filter(|seen| !self.is_gone(seen, members)).collect();
        let mut candidates: Vec<Candidate> = live.iter().map(|seen| seen.member.candidate()).collect();
        candidates.push(me.candidate());
        let shards: Vec<Shard> = (0..self.mine.len() as u32).map(|shard| self.seen(shard, &candidates)).collect();
        self.last = plan(&candidates, &shards, self.moves_at_once);
        let mut orders = Vec::new();
        self.hand_over(up, &candidates, &mut orders);
        self.take(up, members, &shards, &mut orders);
        self.follow(&shards, &mut orders);
        orders
    }

    /// Who owns each shard as far as is known, this node not counted; after [`decide`](Self::decide).
    pub(crate) fn elsewhere(&self, members: &[Seen]) -> Vec<Option<Incarnation>> {
        let live: Vec<Candidate> =
            members.iter().filter(|seen| !self.is_gone(seen, members)).map(|seen| seen.member.candidate()).collect();
        (0..self.mine.len() as u32)
            .map(|shard| self.owner(shard, &live).map(|(node, _)| node).filter(|node| *node != self.me))
            .collect()
    }

    /// For operators; after [`decide`](Self::decide).
    pub(crate) fn shards_seen(&self, members: &[Seen], me: &Member) -> Vec<ShardSeen> {
        let live = members.iter().filter(|seen| !self.is_gone(seen, members)).map(|seen| seen.member.candidate());
        let candidates: Vec<Candidate> = live.chain([me.candidate()]).collect();
        let seen = |shard: u32| {
            let known = self.seen(shard, &candidates);
            let standby = self.last.hints.get(shard as usize).and_then(|hint| hint.standby.clone());
            let warm = standby.as_ref().is_some_and(|standby| self.is_warm(standby, shard));
            let moving = self.last.moves.iter().any(|moving| moving.shard == shard);
            ShardSeen { owner: known.owner, standby, warm, moving }
        };
        (0..self.mine.len() as u32).map(seen).collect()
    }

    /// How many shards a node says it owns.
    pub(crate) fn owned_by(&self, node: &Incarnation) -> usize {
        if *node == self.me {
            return self.mine.iter().filter(|mine| matches!(mine, Mine::Owned { .. })).count();
        }
        self.peers.get(&node.name).filter(|peer| peer.node == *node).map_or(0, |peer| peer.report.owned.len())
    }

    /// The other nodes that this one hears of and that have models.
    pub(crate) fn with_models(&self, me: &Member, members: &[Seen]) -> Vec<WithModels> {
        let of = |seen: &Seen| {
            let peer = self.peers.get(&seen.member.node.name).filter(|peer| peer.node == seen.member.node)?;
            let models = peer.report.models.clone();
            let is_near = seen.member.zone == me.zone;
            (!models.is_empty()).then(|| WithModels { node: seen.member.node.clone(), is_near, models })
        };
        self.heard(members).filter_map(of).collect()
    }

    /// Whether this node does not hear of `node`.
    pub(crate) fn is_silent(&self, node: &Incarnation) -> bool {
        self.silent.contains(node)
    }

    fn is_gone(&self, seen: &Seen, members: &[Seen]) -> bool {
        let node = &seen.member.node;
        if !seen.standing.is_live() || !self.silent.contains(node) {
            return !seen.standing.is_live();
        }
        let name = node.to_string();
        let mut others = self.heard(members).filter(|other| other.member.node != *node).peekable();
        let says_so = |other: &Seen| {
            self.peers.get(&other.member.node.name).is_some_and(|peer| peer.report.silent.contains(&name))
        };
        others.peek().is_none() || others.any(says_so)
    }

    /// The members that live and that this node hears of.
    fn heard<'a>(&'a self, members: &'a [Seen]) -> impl Iterator<Item = &'a Seen> {
        members.iter().filter(|seen| seen.standing.is_live() && !self.silent.contains(&seen.member.node))
    }

    /// Who says to own the shard, with the latest claim.
    fn owner(&self, shard: u32, live: &[Candidate]) -> Option<(Incarnation, u64)> {
        let claim_of = |peer: &Peer| peer.report.owned.iter().find(|owned| owned.shard == shard).map(|o| o.claimed_at);
        let is_live = |peer: &&Peer| live.iter().any(|candidate| candidate.node == peer.node);
        let peers = self.peers.values().filter(is_live);
        let theirs = peers.filter_map(|peer| Some((peer.node.clone(), claim_of(peer)?)));
        let ours = match &self.mine[shard as usize] {
            Mine::Owned { claimed_at } => Some((self.me.clone(), claimed_at.0)),
            _ => None,
        };
        theirs.chain(ours).max_by_key(|(_, claimed_at)| *claimed_at)
    }

    fn seen(&self, shard: u32, candidates: &[Candidate]) -> Shard {
        let owner = match &self.mine[shard as usize] {
            Mine::Claiming | Mine::Releasing => Some(self.me.clone()),
            _ => self.owner(shard, candidates).map(|(node, _)| node),
        };
        let warm = candidates.iter().find(|candidate| self.is_warm(&candidate.node, shard));
        Shard { owner, warm: warm.map(|candidate| candidate.node.clone()) }
    }

    fn is_warm(&self, node: &Incarnation, shard: u32) -> bool {
        if *node == self.me {
            return matches!(self.mine[shard as usize], Mine::Warm { .. });
        }
        let peer = self.peers.get(&node.name).filter(|peer| peer.node == *node);
        peer.is_some_and(|peer| peer.report.warm.contains(&shard))
    }

    /// Releases to receivers that are warm, and notes the others, so that they follow.
    fn hand_over(&mut self, up: Duration, candidates: &[Candidate], orders: &mut Vec<Order>) {
        let mut wanted = BTreeMap::new();
        for moving in self.last.moves.iter().filter(|moving| moving.from.as_ref() == Some(&self.me)) {
            wanted.insert(moving.shard, moving.to.clone());
        }
        for (shard, to) in &self.wishes {
            let to = candidates.iter().find(|candidate| candidate.node.name == *to && candidate.node != self.me);
            if let Some(to) = to.filter(|to| !to.draining) {
                wanted.insert(*shard, to.node.clone());
            }
        }
        let mut handing = BTreeMap::new();
        for (shard, to) in wanted {
            if !matches!(self.mine[shard as usize], Mine::Owned { .. }) {
                continue;
            }
            let since = self.handing.get(&shard).filter(|(known, _)| *known == to).map_or(up, |(_, since)| *since);
            if self.is_warm(&to, shard) {
                self.mine[shard as usize] = Mine::Releasing;
                orders.push(Order::Release(ShardId(shard as u16), to));
            } else if up.saturating_sub(since) < WARM_WITHIN {
                handing.insert(shard, (to, since));
            } else {
                self.wishes.remove(&shard);
            }
        }
        self.handing = handing;
    }

    /// Claims what nobody owns and the plan gives to this node.
    fn take(&mut self, up: Duration, members: &[Seen], shards: &[Shard], orders: &mut Vec<Order>) {
        let mut due = BTreeMap::new();
        for (shard, seen) in (0..).zip(shards) {
            if seen.owner.is_some() || self.hint(shard).owner.as_ref() != Some(&self.me) {
                continue;
            }
            let since = self.due.get(&shard).copied().unwrap_or(up);
            due.insert(shard, since);
            let Mine::Warm { reign } = &self.mine[shard as usize] else { continue };
            if up >= self.earliest_claim(since, reign.as_ref(), members) {
                self.mine[shard as usize] = Mine::Claiming;
                orders.push(Order::Assign(ShardId(shard as u16), Assignment::Own));
            }
        }
        self.due = due;
    }

    /// When this node may claim a shard that it should take since `since`.
    fn earliest_claim(&self, since: Duration, reign: Option<&Reign>, members: &[Seen]) -> Duration {
        let met_nobody = self.has_seeds && members.is_empty();
        let start = if met_nobody { SETTLE_ALONE } else { SETTLE };
        let known = members.iter().filter(|seen| seen.standing != Standing::Left).count() + 1;
        let heard = self.heard(members).count() + 1;
        let minority = if 2 * heard < known { MINORITY_WAITS } else { Duration::ZERO };
        let Some(reign) = reign else { return start.max(since + minority) };
        let disputed = match reign.recent_claims {
            0 | 1 => Duration::ZERO,
            claims => DISPUTED_PAUSE * (1 << (claims - 2).min(MOST_DOUBLINGS)),
        };
        let last = members.iter().find(|seen| seen.member.node.to_string() == reign.by);
        let stranger = last.is_none() && !self.is_of_known_name(&reign.by, members);
        let start = if stranger { SETTLE_ALONE } else { start };
        let returns = match last {
            Some(seen) if !self.is_gone(seen, members) => OWNER_RETURNS,
            _ => Duration::ZERO,
        };
        start.max(since + minority + disputed + returns)
    }

    /// Whether an incarnation is an earlier one of a node that is known, this one included.
    fn is_of_known_name(&self, incarnation: &str, members: &[Seen]) -> bool {
        let name = incarnation.split('@').next().unwrap_or_default();
        let mut names = members.iter().map(|seen| &seen.member.node.name).chain([&self.me.name]);
        names.any(|known| known.as_str() == name)
    }

    /// Follows what this node should take over, now or later, and leaves the rest.
    fn follow(&mut self, shards: &[Shard], orders: &mut Vec<Order>) {
        let me = self.me.to_string();
        let handed: BTreeSet<u32> = self
            .peers
            .values()
            .flat_map(|peer| &peer.report.handing)
            .filter(|handing| handing.to == me)
            .map(|handing| handing.shard)
            .collect();
        let mut cold = self.mine.iter().filter(|mine| **mine == Mine::Cold).count();
        for (shard, seen) in (0..).zip(shards) {
            let hint = self.hint(shard);
            let orphaned = seen.owner.is_none() && hint.owner.as_ref() == Some(&self.me);
            let wanted = orphaned || handed.contains(&shard) || hint.standby.as_ref() == Some(&self.me);
            let mine = &mut self.mine[shard as usize];
            match mine {
                Mine::Away if wanted && (orphaned || cold < FOLLOWS_AT_ONCE) => {
                    *mine = Mine::Cold;
                    cold += 1;
                    orders.push(Order::Assign(ShardId(shard as u16), Assignment::Follow));
                }
                Mine::Cold | Mine::Warm { .. } if !wanted && seen.owner.is_some() => {
                    *mine = Mine::Away;
                    orders.push(Order::Assign(ShardId(shard as u16), Assignment::Away));
                }
                _ => {}
            }
        }
    }

    fn hint(&self, shard: u32) -> Hint {
        self.last.hints.get(shard as usize).cloned().unwrap_or_default()
    }
}
