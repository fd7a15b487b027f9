//! One simulated node: what the cluster's actor does, without the actor.

use std::{collections::BTreeMap, time::Duration};

use parlance_cluster_log::sim::ClientId;
use parlance_cluster_node::{
    detector::{Detector, Suspicion},
    identity::Incarnation,
    membership::{Duty, Event, Input, Member, Membership, Output, Seen, TICK, Versions},
    placement::Weight,
};
use parlance_cluster_protocol::{ShardId, peer::Report};

use super::{
    super::steward::{Order, ShardNews, Steward},
    network::Message,
    shard::{Effect, SimShard, Tools},
};
use crate::shard_supervisor::Assignment;

const MOVES_AT_ONCE: usize = 4;
const HEARTBEAT: Duration = Duration::from_millis(250);
const REPORT_EVERY: Duration = Duration::from_secs(1);

pub(super) struct SimNode {
    pub(super) me: Incarnation,
    pub(super) client: ClientId,
    pub(super) paused_until: Duration,
    started: Duration,
    next_tick: Duration,
    next_beat: Duration,
    next_report: Duration,
    membership: Membership,
    detector: Detector,
    steward: Steward,
    pub(super) shards: BTreeMap<u16, SimShard>,
    is_dirty: bool,
    last_report: Report,
    /// Somebody later runs under its name: it has to end.
    pub(super) is_superseded: bool,
    /// What it wants sent, `None` to everybody.
    pub(super) outbox: Vec<(Option<Incarnation>, Message)>,
}

impl SimNode {
    pub(super) fn start(me: Incarnation, client: ClientId, shards: u16, now: Duration, seed: u64) -> Self {
        let member = Member {
            node: me.clone(),
            revision: 0,
            duty: Duty::Serving,
            address: String::new(),
            zone: None,
            weight: Weight::ONE,
            versions: Versions { oldest: 1, newest: 1 },
        };
        Self {
            client,
            paused_until: Duration::ZERO,
            started: now,
            next_tick: now,
            next_beat: now,
            next_report: now,
            membership: Membership::new(member, Default::default(), seed),
            detector: Detector::new(Default::default()),
            steward: Steward::new(me.clone(), shards, MOVES_AT_ONCE, true),
            me,
            shards: BTreeMap::new(),
            is_dirty: true,
            last_report: Report::default(),
            is_superseded: false,
            outbox: Vec::new(),
        }
    }

    pub(super) fn runs(&self, now: Duration) -> bool {
        now >= self.paused_until
    }

    fn up(&self, now: Duration) -> Duration {
        now - self.started
    }

    pub(super) fn members(&self) -> Vec<Seen> {
        self.membership.members().cloned().collect()
    }

    pub(super) fn duty(&self) -> Duty {
        self.membership.me().duty
    }

    pub(super) fn set_duty(&mut self, duty: Duty, now: Duration) {
        self.tell(Input::Update { duty, weight: Weight::ONE }, now);
    }

    /// Who owns the shard, as this node sees it.
    pub(super) fn owner(&self, shard: u16) -> Option<Incarnation> {
        if self.shards.get(&shard).is_some_and(SimShard::serves) {
            return Some(self.me.clone());
        }
        self.steward.elsewhere(&self.members())[usize::from(shard)].clone()
    }

    pub(super) fn on_link(&mut self, peer: &Incarnation, up: bool, now: Duration) {
        if up {
            self.tell(Input::LinkUp(peer), now);
            self.outbox.push((Some(peer.clone()), Message::Report(self.last_report.clone())));
        } else {
            self.tell(Input::LinkDown(peer), now);
        }
    }

    pub(super) fn on_message(&mut self, from: &Incarnation, message: Message, now: Duration) {
        let up = self.up(now);
        if let Some(suspicion) = self.detector.heard(from, up) {
            self.on_suspicion(&suspicion, now);
        }
        match message {
            Message::Gossip(bytes) => self.tell(Input::Datagram { from, bytes: &bytes }, now),
            Message::Report(report) => {
                self.steward.on_report(from, report);
                self.is_dirty = true;
            }
            // The world hands requests to the shard.
            Message::Heartbeat | Message::Ask { .. } => {}
        }
    }

    pub(super) fn on_news(&mut self, shard: u16, news: ShardNews) {
        self.steward.on_news(ShardId(shard), news);
        self.is_dirty = true;
    }

    fn on_suspicion(&mut self, suspicion: &Suspicion, now: Duration) {
        match suspicion {
            Suspicion::Began(node) => self.steward.on_silence(node, true),
            Suspicion::Ended(node) => self.steward.on_silence(node, false),
        }
        self.is_dirty = true;
        self.tell(Input::Suspicion(suspicion), now);
    }

    fn tell(&mut self, input: Input<'_>, now: Duration) {
        let up = self.up(now);
        for output in self.membership.handle(input, up) {
            match output {
                Output::Send { to, bytes } => self.outbox.push((Some(to), Message::Gossip(bytes))),
                Output::Event(event) => self.on_event(event, up),
            }
        }
    }

    fn on_event(&mut self, event: Event, up: Duration) {
        self.is_dirty = true;
        match event {
            Event::Joined(member) | Event::Recovered(member) | Event::Changed(member) => {
                self.detector.watch(&member.node, up);
            }
            Event::Restarted { was, now } => {
                self.steward.on_gone(&was);
                self.detector.forget(&was.name);
                self.detector.watch(&now.node, up);
            }
            Event::Left(node) | Event::Down(node) => {
                self.detector.forget(&node.name);
                self.steward.on_gone(&node);
            }
            Event::Suspected(_) => {}
            Event::Superseded { .. } => self.is_superseded = true,
        }
    }

    /// Time has passed. What its shards lead to is in `tools`, with the shard's number in `told`.
    pub(super) fn step(&mut self, tools: &mut Tools<'_>, told: &mut Vec<(u16, Effect)>) {
        let now = tools.now;
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            for suspicion in self.detector.tick(self.up(now)) {
                self.on_suspicion(&suspicion, now);
            }
            self.tell(Input::Tick, now);
            self.is_dirty = true;
        }
        if now >= self.next_beat {
            self.next_beat = now + HEARTBEAT;
            self.outbox.push((None, Message::Heartbeat));
        }
        for (shard, sim) in &mut self.shards {
            sim.step(tools);
            told.extend(tools.effects.drain(..).map(|effect| (*shard, effect)));
        }
        self.take_news(told);
        if std::mem::take(&mut self.is_dirty) {
            self.decide(tools, told);
        }
    }

    /// Hands the news among what happened to the steward.
    pub(super) fn take_news(&mut self, told: &[(u16, Effect)]) {
        let news: Vec<_> = told
            .iter()
            .filter_map(|(shard, effect)| match effect {
                Effect::News(news) => Some((*shard, news.clone())),
                _ => None,
            })
            .collect();
        for (shard, news) in news {
            self.on_news(shard, news);
        }
        self.shards.retain(|_, shard| !shard.is_over());
    }

    fn decide(&mut self, tools: &mut Tools<'_>, told: &mut Vec<(u16, Effect)>) {
        let (members, me, up) = (self.members(), self.membership.me().clone(), self.up(tools.now));
        let before = told.len();
        for order in self.steward.decide(up, &me, &members) {
            let shard = match &order {
                Order::Assign(shard, _) | Order::Release(shard, _) => *shard,
            };
            self.carry_out(order, tools);
            told.extend(tools.effects.drain(..).map(|effect| (shard.0, effect)));
        }
        let news = told.split_off(before);
        self.take_news(&news);
        told.extend(news);
        self.report(tools.now);
    }

    fn carry_out(&mut self, order: Order, tools: &mut Tools<'_>) {
        match order {
            Order::Assign(shard, Assignment::Away) => {
                if self.shards.remove(&shard.0).is_some() {
                    tools.effects.push(Effect::News(ShardNews::Ended));
                }
            }
            Order::Assign(shard, assignment) => {
                let (client, me) = (self.client, self.me.to_string());
                let sim = self.shards.entry(shard.0).or_insert_with(|| SimShard::follow(shard, client, &me, tools));
                if assignment == Assignment::Own {
                    sim.claim("failover", tools);
                }
            }
            Order::Release(shard, to) => {
                if let Some(sim) = self.shards.get_mut(&shard.0) {
                    sim.release(to.to_string(), tools);
                }
            }
        }
    }

    fn report(&mut self, now: Duration) {
        let report = self.steward.report();
        let is_news = Report { number: 0, ..report.clone() } != Report { number: 0, ..self.last_report.clone() };
        if is_news || now >= self.next_report {
            self.next_report = now + REPORT_EVERY;
            self.last_report = report.clone();
            self.outbox.push((None, Message::Report(report)));
        }
    }
}
