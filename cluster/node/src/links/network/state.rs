//! What the network is made of, and what happens in it next: no task, no waiting, the time is told.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    sync::{futures::OwnedNotified, oneshot, watch},
    time::Instant,
};

use super::link::{End, Id, Local, Message};
use crate::{
    identity::{Incarnation, NodeName},
    links::{CallError, HEARTBEAT, LinkInfo, MOST_DIALLED, MOST_LINKS, MOST_PENDING, RETRY, SILENCE},
};

const DELAY: RangeInclusive<Duration> = Duration::from_micros(100)..=Duration::from_millis(1);

/// See the module.
pub(super) struct State {
    rng: StdRng,
    pub(super) delay: RangeInclusive<Duration>,
    /// Who is not heard by whom.
    cuts: BTreeSet<(NodeName, NodeName)>,
    nodes: BTreeMap<Id, Node>,
    /// The ends of links that are up.
    ends: BTreeMap<Id, End>,
    /// What happens when; what comes at the same time, in the order in which it was entered.
    agenda: BTreeMap<(Instant, u64), Event>,
    /// What has happened and is to be told.
    notices: VecDeque<(Arc<Local>, Notice)>,
    /// The last number that was given to anything.
    last: u64,
}

struct Node {
    local: Arc<Local>,
    /// None: another node has taken it.
    address: Option<String>,
    dialled: BTreeMap<String, Dialling>,
    links: BTreeMap<NodeName, Id>,
}

struct Dialling {
    /// Of attempts under another number nothing is wanted any more.
    number: u64,
    pause: Duration,
    /// The peer whose link has to end before it is tried again.
    waits_for: Option<NodeName>,
}

enum Event {
    /// The first message under way to this end arrives.
    Arrival(Id),
    /// Perhaps this end has heard nothing for too long.
    Silence(Id),
    /// A node says on every link that it is there.
    Beat(Id),
    Dial {
        node: Id,
        address: String,
        number: u64,
    },
}

/// What a node is told.
pub(super) enum Notice {
    Up(LinkInfo),
    Down(Incarnation),
    Heard(Incarnation),
    Cast { from: Incarnation, kind: u32, payload: Bytes },
    Call(Asked),
}

/// A call that has come.
pub(super) struct Asked {
    /// Where the answer goes.
    pub(super) end: Id,
    pub(super) id: u64,
    pub(super) from: Incarnation,
    pub(super) kind: u32,
    pub(super) payload: Bytes,
    pub(super) deadline: Instant,
    /// Changes when the link is over.
    pub(super) over: watch::Receiver<()>,
}

/// What became of a message that was to be sent.
pub(super) enum Offered {
    Sent,
    /// Nothing was sent; there may be room when this is done.
    Full(OwnedNotified),
    /// Nothing was sent: the link is over.
    Over,
}

/// A call that has begun: its link, its number, and where its answer comes.
pub(super) type Begun = (Id, u64, oneshot::Receiver<Result<Bytes, CallError>>);

impl State {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            delay: DELAY,
            cuts: BTreeSet::new(),
            nodes: BTreeMap::new(),
            ends: BTreeMap::new(),
            agenda: BTreeMap::new(),
            notices: VecDeque::new(),
            last: 0,
        }
    }

    /// The next thing to tell, or when to ask again.
    pub(super) fn step(&mut self, now: Instant) -> Result<(Arc<Local>, Notice), Option<Instant>> {
        loop {
            if let Some(notice) = self.notices.pop_front() {
                return Ok(notice);
            }
            let Some(next) = self.agenda.first_entry() else { return Err(None) };
            let due = next.key().0;
            if due > now {
                return Err(Some(due));
            }
            match next.remove() {
                Event::Arrival(end) => self.arrive(end, now),
                Event::Silence(end) => self.look_for_silence(end, now),
                Event::Beat(node) => self.beat(node, now),
                Event::Dial { node, address, number } => self.attempt(node, address, number, now),
            }
        }
    }

    /// The node's number, and whether it is the first that the network ever had.
    pub(super) fn join(&mut self, local: Arc<Local>, address: &str, now: Instant) -> (Id, bool) {
        let first = self.last == 0;
        let id = self.number();
        let node = Node { local, address: Some(address.to_owned()), dialled: BTreeMap::new(), links: BTreeMap::new() };
        if let Some(before) = self.at(address) {
            self.nodes.get_mut(&before).and_then(|node| node.address.take());
        }
        self.nodes.insert(id, node);
        let until_first = self.rng.random_range(Duration::ZERO..HEARTBEAT);
        self.enter(now + until_first, Event::Beat(id));
        (id, first)
    }

    pub(super) fn named(&self, name: &NodeName) -> Option<(Id, Arc<Local>)> {
        let node = self.nodes.iter().find(|(_, node)| node.local.me.name == *name);
        node.map(|(id, node)| (*id, node.local.clone()))
    }

    fn at(&self, address: &str) -> Option<Id> {
        let node = self.nodes.iter().find(|(_, node)| node.address.as_deref() == Some(address));
        node.map(|(id, _)| *id)
    }

    pub(super) fn leave(&mut self, node: Id, now: Instant) {
        let Some(gone) = self.nodes.remove(&node) else { return };
        gone.links.into_values().for_each(|end| self.end(end, now));
    }

    pub(super) fn cut_one_way(&mut self, from: NodeName, to: NodeName) {
        self.cuts.insert((from, to));
    }

    pub(super) fn heal(&mut self, now: Instant) {
        self.cuts.clear();
        let arrivals = |(id, end): (&Id, &End)| end.inbox.iter().map(|(at, _)| (*id, *at)).collect::<Vec<_>>();
        for (id, at) in self.ends.iter().flat_map(arrivals).collect::<Vec<_>>() {
            // Those that are not late have their entry already: one more is of no harm.
            self.enter(at.max(now), Event::Arrival(id));
        }
    }

    pub(super) fn dial(&mut self, node: Id, address: &str, now: Instant) -> bool {
        let number = self.number();
        let Some(dialler) = self.nodes.get_mut(&node) else { return false };
        if dialler.dialled.contains_key(address) {
            return true;
        }
        if dialler.dialled.len() >= MOST_DIALLED {
            return false;
        }
        dialler.dialled.insert(address.to_owned(), Dialling { number, pause: *RETRY.start(), waits_for: None });
        let at = now + self.draw();
        self.enter(at, Event::Dial { node, address: address.to_owned(), number });
        true
    }

    pub(super) fn forget(&mut self, node: Id, address: &str) {
        self.nodes.get_mut(&node).and_then(|node| node.dialled.remove(address));
    }

    pub(super) fn links(&self, node: Id) -> Vec<LinkInfo> {
        let ends = self.nodes.get(&node).into_iter().flat_map(|node| node.links.values());
        ends.filter_map(|end| self.ends.get(end)).map(End::info).collect()
    }

    pub(super) fn end_to(&self, node: Id, peer: &NodeName) -> Option<Id> {
        self.nodes.get(&node)?.links.get(peer).copied()
    }

    pub(super) fn close(&mut self, node: Id, peer: &NodeName, now: Instant) {
        if let Some(end) = self.end_to(node, peer) {
            self.end(end, now);
        }
    }

    pub(super) fn begin(&mut self, node: Id, to: &NodeName) -> Result<Begun, CallError> {
        let id = self.end_to(node, to).ok_or(CallError::Unreachable)?;
        let end = self.ends.get_mut(&id).ok_or(CallError::Unreachable)?;
        if end.waiting.len() >= MOST_PENDING {
            return Err(CallError::Busy);
        }
        let (waiting, answer) = oneshot::channel();
        let call = end.calls;
        end.calls += 1;
        end.waiting.insert(call, waiting);
        Ok((id, call, answer))
    }

    pub(super) fn forget_call(&mut self, end: Id, call: u64) {
        self.ends.get_mut(&end).and_then(|end| end.waiting.remove(&call));
    }

    /// Sends from an end, if there is room.
    pub(super) fn offer(&mut self, end: Id, message: &Message, now: Instant) -> Offered {
        let Some(end) = self.ends.get_mut(&end) else { return Offered::Over };
        let weight = message.weight();
        if !end.has_room(weight) {
            return Offered::Full(end.room.clone().notified_owned());
        }
        end.under_way += weight;
        let other = end.other;
        self.put(other, message.clone(), now);
        Offered::Sent
    }

    /// Puts a message under way to an end. If that is over, it is lost.
    fn put(&mut self, to: Id, message: Message, now: Instant) {
        let drawn = now + self.draw();
        let Some(end) = self.ends.get_mut(&to) else { return };
        let at = end.inbox.back().map_or(drawn, |(last, _)| drawn.max(*last));
        end.inbox.push_back((at, message));
        self.enter(at, Event::Arrival(to));
    }

    fn arrive(&mut self, id: Id, now: Instant) {
        let Some(end) = self.ends.get_mut(&id) else { return };
        if self.cuts.contains(&(end.peer.name.clone(), end.local.me.name.clone())) {
            return;
        }
        let Some((_, message)) = end.inbox.pop_front_if(|(at, _)| *at <= now) else { return };
        end.heard_at = now;
        let (local, from, other) = (end.local.clone(), end.peer.clone(), end.other);
        if let Some(sender) = self.ends.get_mut(&other) {
            sender.acknowledge(message.weight());
        }
        self.notices.push_back((local.clone(), Notice::Heard(from.clone())));
        match message {
            Message::Heartbeat => {}
            Message::Cast { kind, payload } => self.notices.push_back((local, Notice::Cast { from, kind, payload })),
            Message::Call { id: call, kind, payload, deadline } => {
                let Some(end) = self.ends.get(&id) else { return };
                let over = end.over.subscribe();
                let asked = Asked { end: id, id: call, from, kind, payload, deadline, over };
                self.notices.push_back((local, Notice::Call(asked)));
            }
            Message::Answer { id: call, answer } => {
                let waiting = self.ends.get_mut(&id).and_then(|end| end.waiting.remove(&call));
                waiting.map(|waiting| waiting.send(answer));
            }
            Message::Closed => self.end(id, now),
        }
    }

    fn look_for_silence(&mut self, id: Id, now: Instant) {
        let Some(end) = self.ends.get(&id) else { return };
        let due = end.heard_at + SILENCE;
        if due <= now {
            self.end(id, now);
        } else {
            self.enter(due, Event::Silence(id));
        }
    }

    fn beat(&mut self, id: Id, now: Instant) {
        let Some(node) = self.nodes.get(&id) else { return };
        let others = node.links.values().filter_map(|end| self.ends.get(end)).map(|end| end.other);
        others.collect::<Vec<_>>().into_iter().for_each(|other| self.put(other, Message::Heartbeat, now));
        self.enter(now + HEARTBEAT, Event::Beat(id));
    }

    /// An end is over: whoever waits for an answer or for room hears it now, the other end soon.
    fn end(&mut self, id: Id, now: Instant) {
        let Some(end) = self.ends.remove(&id) else { return };
        end.waiting.into_values().for_each(|waiting| drop(waiting.send(Err(CallError::LinkLost))));
        end.room.notify_waiters();
        self.put(end.other, Message::Closed, now);
        let name = end.peer.name.clone();
        self.notices.push_back((end.local, Notice::Down(end.peer)));
        let Some(node) = self.nodes.get_mut(&end.node) else { return };
        node.links.remove(&name);
        let waits = |(_, dialling): &(&String, &Dialling)| dialling.waits_for.as_ref() == Some(&name);
        let again: Vec<_> = node.dialled.iter().filter(waits).map(|(address, _)| address.clone()).collect();
        again.into_iter().for_each(|address| self.retry(end.node, address, now));
    }

    fn attempt(&mut self, node: Id, address: String, number: u64, now: Instant) {
        let dialling = self.nodes.get(&node).and_then(|node| node.dialled.get(&address));
        if dialling.is_none_or(|dialling| dialling.number != number) {
            return;
        }
        let linked = match self.at(&address) {
            // A node that reached itself tries no more.
            Some(peer) if peer == node => return,
            Some(peer) => self.connect(node, peer, now),
            None => None,
        };
        match (linked, self.dialling(node, &address)) {
            (Some(peer), Some(dialling)) => {
                dialling.pause = *RETRY.start();
                dialling.waits_for = Some(peer);
            }
            _ => self.retry(node, address, now),
        }
    }

    fn retry(&mut self, node: Id, address: String, now: Instant) {
        let lot = self.rng.random_range(0.5..1.0);
        let Some(dialling) = self.dialling(node, &address) else { return };
        let (number, at) = (dialling.number, now + dialling.pause.mul_f64(lot));
        dialling.waits_for = None;
        dialling.pause = (dialling.pause * 2).min(*RETRY.end());
        self.enter(at, Event::Dial { node, address, number });
    }

    fn dialling(&mut self, node: Id, address: &str) -> Option<&mut Dialling> {
        self.nodes.get_mut(&node)?.dialled.get_mut(address)
    }

    /// Links two nodes. The name of whom the dialler is linked with now; none: to be tried again.
    fn connect(&mut self, dialler: Id, listener: Id, now: Instant) -> Option<NodeName> {
        let [a, b] = [dialler, listener].map(|id| self.nodes.get(&id).map(|node| node.local.clone()));
        let (a, b) = (a?, b?);
        let cut = |from: &Local, to: &Local| self.cuts.contains(&(from.me.name.clone(), to.me.name.clone()));
        if cut(&a, &b) || cut(&b, &a) {
            return None;
        }
        let known = [self.end_to(dialler, &b.me.name), self.end_to(listener, &a.me.name)];
        let is_with = |end: Option<Id>, peer: &Local| {
            end.and_then(|end| self.ends.get(&end)).is_some_and(|end| end.peer == peer.me)
        };
        match (is_with(known[0], &b), is_with(known[1], &a)) {
            (true, _) => return Some(b.me.name.clone()),
            // It has not noticed yet that the link before this one is over.
            (false, true) => return None,
            (false, false) => {}
        }
        // What is left is with an earlier start.
        known.into_iter().flatten().for_each(|end| self.end(end, now));
        if [dialler, listener].iter().any(|id| self.nodes[id].links.len() >= MOST_LINKS) {
            return None;
        }
        let ends = [self.number(), self.number()];
        let name = b.me.name.clone();
        self.open(ends, dialler, a.clone(), b.me.clone(), now);
        self.open([ends[1], ends[0]], listener, b, a.me.clone(), now);
        Some(name)
    }

    fn open(&mut self, [id, other]: [Id; 2], node: Id, local: Arc<Local>, peer: Incarnation, now: Instant) {
        let end = End::new(node, local.clone(), peer.clone(), other, now);
        self.notices.push_back((local, Notice::Up(end.info())));
        self.ends.insert(id, end);
        if let Some(node) = self.nodes.get_mut(&node) {
            node.links.insert(peer.name, id);
        }
        self.enter(now + SILENCE, Event::Silence(id));
    }

    fn draw(&mut self) -> Duration {
        self.rng.random_range(self.delay.clone())
    }

    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn enter(&mut self, at: Instant, event: Event) {
        let number = self.number();
        self.agenda.insert((at, number), event);
    }
}
