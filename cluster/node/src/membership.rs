//! Who is in the cluster, as a pure machine over foca's SWIM.
//!
//! Inputs are what the transport brings and what the failure detector says; outputs are datagrams for other members, and events. Nobody else
//! sets a timer: [`Input::Tick`] comes every [`TICK`]. Time is [lived time](crate::lived), so that a pause of this process makes nobody dead.
//!
//! ```text
//! links ── Datagram, LinkUp ──▶ ┌────────────┐ ── Send ──▶ links
//! detector ── Suspicion ──────▶ │ Membership │
//! operator ── Update, Leave ──▶ └────────────┘ ── Event ─▶ placement, detector, whoever dials
//! ```
//!
//! A suspicion of our own detector is gossiped as SWIM's `Suspect`. The suspect refutes it, or is `Down` after `down_after`. Who was taken for dead
//! and is not comes back under its next revision, in the same incarnation. Of two incarnations of one name the one of the later boot counts, whichever was
//! heard of first; the earlier is told so and stops.
//!
//! What foca leaves to its user is done here: records that change (a revision in the identity), leaving apart from dying (the last record says so), a
//! bound on members, telling a suspect that it is suspected until it answers, and finding each other again after a partition.

mod packet;
mod record;
#[cfg(test)]
mod tests;
mod timers;
mod view;

use std::{collections::BTreeMap, num::NonZeroU8, num::NonZeroUsize, time::Duration};

use bytes::Bytes;
use foca::{Foca, Header, Message, NoCustomBroadcast, Notification, PeriodicParams, State, Timer};
use rand::{SeedableRng, rngs::StdRng};

pub use self::{
    packet::MAX_DATAGRAM_BYTES,
    record::{Duty, MAX_ADDRESS_BYTES, Member, Versions},
    view::{Event, Seen, Standing},
};
use self::{
    packet::{Packet, Wire},
    timers::Timers,
    view::View,
};
use crate::{
    detector::Suspicion,
    identity::{Incarnation, NodeName},
    lived::LivedTime,
    placement::Weight,
};

/// Names that are remembered at once, this node's own not counted.
pub const MAX_MEMBERS: usize = 1_024;

/// Between two ticks.
pub const TICK: Duration = Duration::from_millis(100);

/// Between two rounds of asking around.
const ROUND: Duration = Duration::from_secs(1);

/// Suspects that are told so in one round.
const SUSPECTS_PER_ROUND: usize = 32;

/// Members taken for dead that are asked in one round whether they are, and strangers with a link that are greeted.
const OTHERS_PER_ROUND: usize = 8;

/// How fast this node makes up its mind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// From a suspicion that nobody refutes until the suspect is down.
    pub down_after: Duration,
    /// How long a node that is gone is remembered, unless room is needed earlier.
    pub forget_after: Duration,
    /// The longest time between two ticks that is no pause of this process.
    pub longest_step: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            down_after: Duration::from_secs(5),
            forget_after: Duration::from_secs(24 * 3_600),
            longest_step: Duration::from_millis(400),
        }
    }
}

/// What happens to a membership.
#[derive(Debug, Clone)]
pub enum Input<'a> {
    /// [`TICK`] has passed.
    Tick,
    /// A datagram has come over the link with `from`.
    Datagram {
        /// Whom the link's certificate and hello name.
        from: &'a Incarnation,
        /// What came.
        bytes: &'a [u8],
    },
    /// There is a link with this node.
    LinkUp(&'a Incarnation),
    /// There is no link with it any more.
    LinkDown(&'a Incarnation),
    /// The failure detector has changed its opinion.
    Suspicion(&'a Suspicion),
    /// This node's record changes.
    Update {
        /// Whether it may own shards. [`Duty::Leaving`] leaves, as [`Input::Leave`] does.
        duty: Duty,
        /// Its part of the work.
        weight: Weight,
    },
    /// This node leaves. Nothing comes out any more afterwards.
    Leave,
}

/// What a membership wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this over the link with `to`, or drop it if there is none.
    Send {
        /// To whom.
        to: Incarnation,
        /// At most [`MAX_DATAGRAM_BYTES`].
        bytes: Bytes,
    },
    /// Something has become of a member.
    Event(Event),
}

/// This node's view of the cluster.
pub struct Membership {
    options: Options,
    foca: Swim,
    clock: LivedTime,
    timers: Timers,
    view: View,
    /// With whom there are links. Invariant: at most [`MAX_MEMBERS`].
    links: BTreeMap<NodeName, Incarnation>,
    /// Whom our own detector suspects.
    suspects: BTreeMap<NodeName, Suspect>,
    /// Since when those that are gone are.
    gone: BTreeMap<NodeName, Duration>,
    next_round: Duration,
    rounds: usize,
    refused: u64,
    /// Whether this node has left or is superseded: nothing comes out any more.
    over: bool,
    outputs: Vec<Output>,
}

/// Somebody whom our own detector suspects.
#[derive(Debug, Clone)]
struct Suspect {
    node: Incarnation,
    since: Duration,
    /// How often the suspect had refuted suspicions when this one began. One more, and it begins anew.
    refutations: u16,
}

impl Membership {
    /// A node that knows nobody yet. `seed` decides whom it picks where it picks by lot.
    pub fn new(me: Member, options: Options, seed: u64) -> Self {
        let foca = Foca::new(me, config(&options), StdRng::seed_from_u64(seed), Wire);
        Self {
            clock: LivedTime::new(options.longest_step),
            options,
            foca,
            timers: Timers::default(),
            view: View::default(),
            links: BTreeMap::new(),
            suspects: BTreeMap::new(),
            gone: BTreeMap::new(),
            next_round: Duration::ZERO,
            rounds: 0,
            refused: 0,
            over: false,
            outputs: Vec::new(),
        }
    }

    /// This node's own record.
    pub fn me(&self) -> &Member {
        self.foca.identity()
    }

    /// Everybody else who is remembered, in the order of their names.
    pub fn members(&self) -> impl Iterator<Item = &Seen> {
        self.view.seen.values()
    }

    /// Datagrams that were refused because they were malformed, not their sender's, or more than fits.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Takes in what has happened, at the time `now` of a steady clock.
    pub fn handle(&mut self, input: Input<'_>, now: Duration) -> Vec<Output> {
        let lived = self.clock.advance(now);
        if self.over {
            return Vec::new();
        }
        match input {
            Input::Tick => self.on_tick(lived),
            Input::Datagram { from, bytes } => self.on_datagram(from, bytes),
            Input::LinkUp(peer) => self.on_link_up(peer),
            Input::LinkDown(peer) => self.links.retain(|_, linked| linked != peer),
            Input::Suspicion(suspicion) => self.on_suspicion(suspicion, lived),
            Input::Update { duty: Duty::Leaving, .. } | Input::Leave => self.leave(),
            Input::Update { duty, weight } => self.update(duty, weight),
        }
        self.look(lived);
        std::mem::take(&mut self.outputs)
    }

    fn on_tick(&mut self, lived: Duration) {
        // A bound for the case that timers set timers that are due at once.
        for _ in 0..4 * MAX_MEMBERS {
            let Some(timer) = self.timers.next(lived) else { break };
            self.foca(|foca, effects| foca.handle_timer(timer, effects));
        }
        self.expire(lived);
        if lived >= self.next_round {
            self.next_round = lived + ROUND;
            self.ask_around();
        }
    }

    /// Takes those for dead whom our detector has suspected for too long, and who have not refuted it; forgets who has been gone for long.
    fn expire(&mut self, lived: Duration) {
        let mut down = Vec::new();
        for known in others(&self.foca).filter(|known| known.state() == State::Suspect) {
            let Some(suspect) = self.suspects.get_mut(&known.id().node.name) else { continue };
            if suspect.refutations != known.incarnation() {
                (suspect.refutations, suspect.since) = (known.incarnation(), lived);
            } else if lived.saturating_sub(suspect.since) >= self.options.down_after {
                down.push(foca::Member::new(known.id().clone(), known.incarnation(), State::Down));
            }
        }
        self.apply(down);
        let old = |since: &Duration| lived.saturating_sub(*since) >= self.options.forget_after;
        let forgotten: Vec<_> =
            self.gone.iter().filter(|(_, since)| old(since)).map(|(name, _)| name.clone()).collect();
        forgotten.iter().for_each(|name| self.forget(name));
    }

    /// Repairs what lost datagrams and partitions have left: compares views with one member, tells suspects, asks the dead.
    fn ask_around(&mut self) {
        let live = self.pick(&[State::Alive, State::Suspect], 1);
        let suspects = self.pick(&[State::Suspect], SUSPECTS_PER_ROUND);
        let down = self.pick(&[State::Down], OTHERS_PER_ROUND);
        let stranger =
            |peer: &&Incarnation| self.view.seen.get(&peer.name).is_none_or(|seen| seen.member.node != **peer);
        let strangers: Vec<_> = self.links.values().filter(stranger).cloned().collect();
        let strangers = turn(&strangers, OTHERS_PER_ROUND, self.rounds)
            .map(|peer| Member::unknown(peer.clone()))
            .collect::<Vec<_>>();
        self.rounds = self.rounds.wrapping_add(1);
        for suspect in suspects {
            let to = suspect.id().clone();
            self.tell(&to, vec![suspect]);
            self.announce(to);
        }
        let members = live.into_iter().chain(down).map(|known| known.id().clone());
        members.chain(strangers).for_each(|to| self.announce(to));
    }

    /// Up to `most` members in one of these states whose turn it is, except those that have left.
    fn pick(&self, states: &[State], most: usize) -> Vec<foca::Member<Member>> {
        let mut fit: Vec<_> = others(&self.foca).filter(|known| states.contains(&known.state())).collect();
        fit.retain(|known| known.state() != State::Down || known.id().duty != Duty::Leaving);
        fit.sort_by_key(|known| &known.id().node.name);
        turn(&fit, most, self.rounds).map(|known| (*known).clone()).collect()
    }

    fn on_link_up(&mut self, peer: &Incarnation) {
        if self.links.len() < MAX_MEMBERS || self.links.contains_key(&peer.name) {
            self.links.insert(peer.name.clone(), peer.clone());
        }
        self.announce(Member::unknown(peer.clone()));
    }

    fn on_datagram(&mut self, from: &Incarnation, bytes: &[u8]) {
        let Ok(packet) = Packet::decode(bytes) else { return self.refused += 1 };
        let me = &self.me().node;
        if let Some(later) = packet.records().find(|record| record.node.name == me.name && record.node.boot > me.boot) {
            self.outputs.push(Output::Event(Event::Superseded { by: later.node.boot }));
            self.over = true;
            return;
        }
        if packet.header.src.node != *from || from.name == me.name || !self.make_room(&packet) {
            return self.refused += 1;
        }
        let known = self.view.seen.get(&from.name).filter(|seen| seen.member.node.boot > from.boot);
        if let Some(later) = known.map(|seen| seen.member.clone()) {
            return self.tell(&packet.header.src, vec![foca::Member::alive(later)]);
        }
        self.foca(|foca, effects| foca.handle_data(bytes, effects));
    }

    /// Whether the names in `packet` can be remembered, after those that have been gone the longest were forgotten for them.
    fn make_room(&mut self, packet: &Packet) -> bool {
        let mut names: Vec<_> = packet.updates.iter().map(|update| &update.id().node.name).collect();
        names.push(&packet.header.src.node.name);
        names.retain(|name| !self.view.seen.contains_key(*name) && **name != self.me().node.name);
        names.sort_unstable();
        names.dedup();
        let missing = (self.view.seen.len() + names.len()).saturating_sub(MAX_MEMBERS);
        let mut gone: Vec<_> = self.gone.iter().map(|(name, since)| (*since, name.clone())).collect();
        if missing > gone.len() {
            return false;
        }
        gone.sort_unstable();
        gone.iter().take(missing).for_each(|(_, name)| self.forget(name));
        true
    }

    fn forget(&mut self, name: &NodeName) {
        self.gone.remove(name);
        if let Some(seen) = self.view.seen.remove(name) {
            self.foca(|foca, effects| foca.handle_timer(Timer::RemoveDown(seen.member), effects));
        }
    }

    fn on_suspicion(&mut self, suspicion: &Suspicion, lived: Duration) {
        match suspicion {
            Suspicion::Ended(node) => drop(self.suspects.remove(&node.name)),
            Suspicion::Began(node) => {
                let Some(known) = self.foca.iter_members().find(|known| known.id().node == *node) else { return };
                let suspect = foca::Member::new(known.id().clone(), known.incarnation(), State::Suspect);
                let refutations = known.incarnation();
                self.suspects.insert(node.name.clone(), Suspect { node: node.clone(), since: lived, refutations });
                self.apply(vec![suspect]);
            }
        }
    }

    fn update(&mut self, duty: Duty, weight: Weight) {
        let changed = Member { duty, weight, ..self.me().clone() };
        if let Some(changed) = changed.next().filter(|_| changed != *self.me()) {
            self.foca(|foca, effects| foca.change_identity(changed, effects));
            self.tell_all(Vec::new());
        }
    }

    fn leave(&mut self) {
        if let Some(last) = self.me().next() {
            self.foca(|foca, effects| foca.change_identity(Member { duty: Duty::Leaving, ..last }, effects));
        }
        self.tell_all(vec![foca::Member::down(self.me().clone())]);
        self.over = true;
    }

    /// Introduces ourselves to somebody, who answers with whom it knows.
    fn announce(&mut self, to: Member) {
        self.foca(|foca, effects| foca.announce(to, effects));
    }

    fn apply(&mut self, updates: Vec<foca::Member<Member>>) {
        self.foca(|foca, effects| foca.apply_many(updates.into_iter(), true, effects));
    }

    fn tell_all(&mut self, updates: Vec<foca::Member<Member>>) {
        let live: Vec<_> = self.foca.iter_members().map(|member| member.id().clone()).collect();
        live.iter().for_each(|member| self.tell(member, updates.clone()));
    }

    /// Sends somebody what it has to hear, whatever foca would pick.
    fn tell(&mut self, to: &Member, updates: Vec<foca::Member<Member>>) {
        // 0 refutations: the receiver keeps the highest number that it has heard of.
        let header = Header { src: self.me().clone(), src_incarnation: 0, dst: to.clone(), message: Message::Gossip };
        let bytes = Packet { header, updates }.encode();
        self.outputs.push(Output::Send { to: to.node.clone(), bytes });
    }

    /// Lets foca do something. What it complains about has left it as it was; it is counted.
    fn foca(&mut self, act: impl FnOnce(&mut Swim, &mut Effects<'_>) -> Result<(), foca::Error>) {
        let lived = self.clock.lived();
        let mut effects = Effects { lived, timers: &mut self.timers, outputs: &mut self.outputs };
        let done = act(&mut self.foca, &mut effects);
        // After a change of identity foca does nothing until it applies something.
        let settled = self.foca.apply_many(std::iter::empty(), false, &mut effects);
        self.refused += u64::from(done.is_err()) + u64::from(settled.is_err());
    }

    /// Compares what foca knows with what was said of it, and says what is new.
    fn look(&mut self, lived: Duration) {
        let mut events = Vec::new();
        self.suspects.retain(|name, suspect| {
            let known = self.foca.iter_members().find(|known| known.id().node.name == *name);
            known.is_some_and(|known| known.id().node == suspect.node)
        });
        for known in others(&self.foca) {
            let member = known.id();
            let standing = match known.state() {
                State::Down if member.duty == Duty::Leaving => Standing::Left,
                State::Down => Standing::Down,
                State::Suspect => Standing::Suspected,
                State::Alive if self.suspects.contains_key(&member.node.name) => Standing::Suspected,
                State::Alive => Standing::Alive,
            };
            let seen = self.view.seen.get(&member.node.name);
            if seen.is_some_and(|seen| seen.standing == standing && seen.member == *member) {
                continue;
            }
            match standing.is_live() {
                true => drop(self.gone.remove(&member.node.name)),
                false => drop(self.gone.entry(member.node.name.clone()).or_insert(lived)),
            }
            self.view.see(Seen { member: member.clone(), standing }, &mut events);
        }
        self.outputs.extend(events.into_iter().map(Output::Event));
    }
}

/// Those `most` of `all` whose turn it is in this round.
fn turn<T>(all: &[T], most: usize, round: usize) -> impl Iterator<Item = &T> {
    let first = round.wrapping_mul(most).checked_rem(all.len()).unwrap_or(0);
    all.iter().cycle().skip(first).take(most.min(all.len()))
}

type Swim = Foca<Member, Wire, StdRng, NoCustomBroadcast>;

/// What foca knows of everybody else. It also keeps what was said of our earlier incarnations.
fn others(foca: &Swim) -> impl Iterator<Item = &foca::Member<Member>> {
    foca.iter_membership_state().filter(|known| known.id().node.name != foca.identity().node.name)
}

/// Where foca's effects go.
struct Effects<'a> {
    lived: Duration,
    timers: &'a mut Timers,
    outputs: &'a mut Vec<Output>,
}

impl foca::Runtime<Member> for Effects<'_> {
    /// Events come from comparing views instead: they cannot be missed.
    fn notify(&mut self, _: Notification<'_, Member>) {}

    fn send_to(&mut self, to: Member, data: &[u8]) {
        self.outputs.push(Output::Send { to: to.node, bytes: Bytes::copy_from_slice(data) });
    }

    fn submit_after(&mut self, event: Timer<Member>, after: Duration) {
        self.timers.set(event, self.lived + after);
    }
}

fn config(options: &Options) -> foca::Config {
    const THREE: NonZeroUsize = NonZeroUsize::new(3).expect("3 is not 0");
    foca::Config {
        // The detector is faster. This finds who is heard of by nobody, and by way of others who is not.
        probe_period: Duration::from_secs(1),
        probe_rtt: Duration::from_millis(300),
        num_indirect_probes: THREE,
        max_transmissions: const { NonZeroU8::new(10).expect("10 is not 0") },
        suspect_to_down_after: options.down_after,
        remove_down_after: None,
        max_packet_size: const { NonZeroUsize::new(MAX_DATAGRAM_BYTES).expect("it is not 0") },
        notify_down_members: true,
        periodic_announce: None,
        periodic_announce_to_down_members: None,
        periodic_gossip: Some(PeriodicParams { frequency: Duration::from_millis(200), num_members: THREE }),
    }
}
