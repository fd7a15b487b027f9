use std::collections::VecDeque;

use proptest::prelude::*;

use super::{packet::Malformed, *};
use crate::identity::BootId;

fn node(name: &str, boot: u64) -> Incarnation {
    Incarnation { name: name.parse().expect("a name"), boot: BootId(boot) }
}

fn record(name: &str, boot: u64) -> Member {
    Member {
        address: format!("{name}:7000"),
        versions: Versions { oldest: 1, newest: 3 },
        ..Member::unknown(node(name, boot))
    }
}

/// Memberships with a network between them that loses nothing and takes no time.
struct Cluster {
    members: Vec<Membership>,
    now: Duration,
    /// Who can not be reached, by name.
    cut: Vec<&'static str>,
    /// Events that no test has looked at yet, by member.
    events: Vec<(usize, Event)>,
}

impl Cluster {
    fn new(records: &[(&str, u64)]) -> Self {
        let member = |(name, boot): &(&str, u64)| Membership::new(record(name, *boot), Options::default(), *boot);
        let mut cluster = Self {
            members: records.iter().map(member).collect(),
            now: Duration::from_secs(100),
            cut: vec![],
            events: vec![],
        };
        for at in 1..cluster.members.len() {
            let first = cluster.members[0].me().node.clone();
            cluster.handle(at, Input::LinkUp(&first));
        }
        cluster.pass(3_000);
        cluster.events.clear();
        cluster
    }

    /// Handles an input, and all the datagrams that follow from it; gives the events of the member at `at`.
    fn handle(&mut self, at: usize, input: Input<'_>) -> Vec<Event> {
        let mut under_way = VecDeque::from([(at, self.members[at].handle(input, self.now))]);
        for _ in 0..10_000 {
            let Some((by, outputs)) = under_way.pop_front() else { return self.take(at) };
            let from = self.members[by].me().node.clone();
            for output in outputs {
                match output {
                    Output::Event(event) => self.events.push((by, event)),
                    Output::Send { to, bytes } => {
                        let cut = |node: &Incarnation| self.cut.contains(&node.name.as_str());
                        let reached = !cut(&to) && !cut(&from);
                        let to = self.members.iter().position(|member| member.me().node == to && reached);
                        under_way.extend(to.map(|to| {
                            let input = Input::Datagram { from: &from, bytes: &bytes };
                            (to, self.members[to].handle(input, self.now))
                        }));
                    }
                }
            }
        }
        panic!("they talk for ever");
    }

    fn take(&mut self, at: usize) -> Vec<Event> {
        self.events.extract_if(.., |(by, _)| *by == at).map(|(_, event)| event).collect()
    }

    /// Lets time pass, and gives the events of the first.
    fn pass(&mut self, ms: u64) -> Vec<Event> {
        let mut events = Vec::new();
        for _ in 0..ms / 100 {
            self.now += TICK;
            for at in 0..self.members.len() {
                let these = self.handle(at, Input::Tick);
                events.extend(these.into_iter().filter(|_| at == 0).chain(self.take(0)));
            }
        }
        events
    }

    fn standings(&self, at: usize) -> Vec<(String, Standing)> {
        self.members[at].members().map(|seen| (seen.member.node.to_string(), seen.standing)).collect()
    }
}

fn datagram(from: Member, to: Member, updates: Vec<foca::Member<Member>>) -> Bytes {
    Packet { header: Header { src: from, src_incarnation: 0, dst: to, message: Message::Gossip }, updates }.encode()
}

#[test]
fn members_find_each_other_and_say_good_bye() {
    let mut cluster = Cluster::new(&[("a", 1), ("b", 1), ("c", 1)]);
    assert!((0..3).all(|at| cluster.standings(at).iter().map(|(_, standing)| *standing).eq([Standing::Alive; 2])));
    let weight = Weight::new(7).expect("a weight");
    cluster.handle(1, Input::Update { duty: Duty::Draining, weight });
    let seen = cluster.members[2].members().find(|seen| seen.member.node == node("b", 1)).expect("b").member.clone();
    assert_eq!((seen.duty, seen.weight, seen.revision, seen.candidate().draining), (Duty::Draining, weight, 1, true));
    cluster.handle(2, Input::Leave);
    assert!(cluster.take(0).contains(&Event::Left(node("c", 1))));
    assert_eq!((cluster.standings(0)[1].1, cluster.standings(1)[1].1), (Standing::Left, Standing::Left));
    assert_eq!(cluster.pass(3_000), [], "and nobody asks it back");
    assert!(cluster.members[2].handle(Input::Tick, cluster.now).is_empty());
}

#[test]
fn a_suspect_refutes_or_is_down_and_comes_back_as_the_same_incarnation() {
    let mut cluster = Cluster::new(&[("a", 1), ("b", 1), ("c", 1)]);
    let began = Suspicion::Began(node("b", 1));
    let events = cluster.handle(0, Input::Suspicion(&began));
    assert_eq!(events[0], Event::Suspected(node("b", 1)));
    let ended = Suspicion::Ended(node("b", 1));
    cluster.handle(0, Input::Suspicion(&ended));
    cluster.pass(1_500);
    assert_eq!(cluster.standings(0)[0].1, Standing::Alive);
    cluster.cut = vec!["b"];
    cluster.handle(0, Input::Suspicion(&began));
    let events = cluster.pass(6_000);
    assert_eq!(events, [Event::Down(node("b", 1))]);
    cluster.cut.clear();
    let events = cluster.pass(3_000);
    assert!(
        matches!(&events[..], [Event::Recovered(member)] if member.node == node("b", 1) && member.revision > 0),
        "{events:?}"
    );
}

#[test]
fn a_pause_of_ones_own_makes_nobody_dead() {
    let mut cluster = Cluster::new(&[("a", 1), ("b", 1)]);
    cluster.cut = vec!["b"];
    for pause in [15_000, 3_600_000] {
        cluster.now += Duration::from_millis(pause);
        assert_eq!(cluster.handle(0, Input::Tick), [], "no probe fails because its sender slept");
    }
    let events = cluster.handle(0, Input::Suspicion(&Suspicion::Began(node("b", 1))));
    assert_eq!(events, [Event::Suspected(node("b", 1))]);
    cluster.now += Duration::from_secs(15);
    assert_eq!(cluster.handle(0, Input::Tick), [], "and no suspect is out of time because its judge slept");
    cluster.handle(0, Input::Suspicion(&Suspicion::Ended(node("b", 1))));
    cluster.now -= Duration::from_secs(3_000);
    cluster.cut.clear();
    assert!(cluster.pass(5_000).iter().all(|event| matches!(event, Event::Recovered(_))));
    assert_eq!(cluster.standings(0), [("b@0000000000000001".to_owned(), Standing::Alive)]);
}

#[test]
fn a_later_boot_replaces_an_earlier_one_in_any_order_of_news() {
    for order in [[5, 9], [9, 5]] {
        let mut membership = Membership::new(record("a", 1), Options::default(), 1);
        let mut events = Vec::new();
        for boot in order {
            let bytes = datagram(record("b", 1), record("a", 1), vec![foca::Member::alive(record("c", boot))]);
            events.extend(membership.handle(Input::Datagram { from: &node("b", 1), bytes: &bytes }, TICK));
        }
        let last = membership.members().last().expect("c");
        assert_eq!((&last.member.node, last.standing), (&node("c", 9), Standing::Alive));
        let restarts = events.iter().filter(|event| matches!(event, Output::Event(Event::Restarted { was, now }) if was.boot.0 == 5 && now.node.boot.0 == 9));
        assert_eq!(restarts.count(), usize::from(order == [5, 9]));
        // Neither as the sender nor as news does the earlier come back.
        let bytes = datagram(record("c", 5), record("a", 1), vec![]);
        let outputs = membership.handle(Input::Datagram { from: &node("c", 5), bytes: &bytes }, TICK);
        assert!(matches!(&outputs[..], [Output::Send { to, .. }] if *to == node("c", 5)), "it is told: {outputs:?}");
        assert_eq!(membership.members().last().expect("c").member.node, node("c", 9));
    }
}

#[test]
fn an_earlier_boot_learns_that_it_is_superseded() {
    let mut cluster = Cluster::new(&[("a", 1), ("b", 9)]);
    // A clock that was set back, or a process that slept while its successor ran.
    cluster.members.push(Membership::new(record("b", 5), Options::default(), 3));
    let events = cluster.handle(2, Input::LinkUp(&node("a", 1)));
    assert_eq!(events, [Event::Superseded { by: BootId(9) }]);
    assert_eq!(cluster.members[2].handle(Input::Tick, cluster.now), []);
    assert_eq!(cluster.standings(0), [("b@0000000000000009".to_owned(), Standing::Alive)]);
}

#[test]
fn nobody_speaks_for_others_and_names_are_bounded() {
    let mut membership = Membership::new(record("a", 1), Options::default(), 1);
    let bytes = datagram(record("b", 1), record("a", 1), vec![]);
    assert_eq!(membership.handle(Input::Datagram { from: &node("c", 1), bytes: &bytes }, TICK), []);
    assert_eq!((membership.refused(), membership.members().count()), (1, 0));
    let live =
        |from: usize| (from..from + 200).map(|n| foca::Member::alive(record(&format!("n{n}"), 1))).collect::<Vec<_>>();
    for round in 0..10 {
        let bytes = datagram(record("b", 1), record("a", 1), live(round * 200));
        membership.handle(Input::Datagram { from: &node("b", 1), bytes: &bytes }, TICK);
    }
    assert_eq!((membership.refused(), membership.members().count()), (6, 1_001));
    // Those that are gone make room.
    let gone = (0..200).map(|n| foca::Member::down(record(&format!("n{n}"), 1))).collect();
    for updates in [gone, live(2_000)] {
        let bytes = datagram(record("b", 1), record("a", 1), updates);
        membership.handle(Input::Datagram { from: &node("b", 1), bytes: &bytes }, TICK);
    }
    assert_eq!((membership.refused(), membership.members().count()), (6, MAX_MEMBERS));
    assert_eq!(membership.members().filter(|seen| seen.standing.is_live()).count(), 1_001);
}

fn any_member() -> impl Strategy<Value = Member> {
    let name = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?";
    let duty = prop_oneof![Just(Duty::Serving), Just(Duty::Draining), Just(Duty::Leaving)];
    let rest = (prop::option::of(name), 1..=Weight::MAX, any::<u32>(), any::<u32>());
    (name, any::<u64>(), any::<u32>(), duty, "[!-~]{0,260}", rest).prop_map(
        |(name, boot, revision, duty, address, rest)| {
            let (zone, weight, one, other) = rest;
            Member {
                node: node(&name, boot),
                revision,
                duty,
                address,
                zone: zone.map(|zone| zone.parse().expect("a zone")),
                weight: Weight::new(weight).expect("a weight"),
                versions: Versions { oldest: one.min(other), newest: one.max(other) },
            }
        },
    )
}

fn any_packet() -> impl Strategy<Value = Packet> {
    let message = (0..11, any::<u8>(), any_member()).prop_map(|(kind, probe_number, third)| match kind {
        0 => Message::Ping(probe_number),
        1 => Message::Ack(probe_number),
        2 => Message::PingReq { target: third, probe_number },
        3 => Message::IndirectPing { origin: third, probe_number },
        4 => Message::IndirectAck { target: third, probe_number },
        5 => Message::ForwardedAck { origin: third, probe_number },
        6 => Message::Announce,
        7 => Message::Feed,
        8 => Message::Gossip,
        9 => Message::Broadcast,
        _ => Message::TurnUndead,
    });
    let state = prop_oneof![Just(State::Alive), Just(State::Suspect), Just(State::Down)];
    let update =
        (any_member(), any::<u16>(), state).prop_map(|(member, count, state)| foca::Member::new(member, count, state));
    (any_member(), any::<u16>(), any_member(), message, prop::collection::vec(update, 0..5)).prop_map(
        |(src, src_incarnation, dst, message, updates)| Packet {
            header: Header { src, src_incarnation, dst, message },
            updates,
        },
    )
}

proptest! {
    #[test]
    fn packets_survive_their_journey(packet in any_packet()) {
        let bytes = packet.encode();
        prop_assert_eq!(Packet::decode(&bytes), Ok(packet));
        for cut in 0..bytes.len().min(40) {
            let _ = Packet::decode(&bytes[..bytes.len() - cut]);
        }
    }

    #[test]
    fn bytes_of_anybody_do_no_harm(
        packets in prop::collection::vec(any_packet(), 1..6), flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        noise in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut membership = Membership::new(record("a", u64::MAX), Options::default(), 1);
        for mut packet in packets {
            packet.header.dst = membership.me().clone();
            let mut bytes = packet.encode().to_vec();
            let from = packet.header.src.node.clone();
            membership.handle(Input::Datagram { from: &from, bytes: &bytes }, TICK);
            for (at, flip) in &flips {
                let at = at.index(bytes.len());
                bytes[at] ^= flip;
            }
            membership.handle(Input::Datagram { from: &from, bytes: &bytes }, TICK);
            membership.handle(Input::Datagram { from: &from, bytes: &noise }, TICK);
        }
        for tick in 0..100 {
            membership.handle(Input::Tick, TICK * tick);
        }
        prop_assert_eq!(&membership.me().node, &node("a", u64::MAX));
        prop_assert!(membership.members().count() <= MAX_MEMBERS);
    }
}

#[test]
fn datagrams_have_a_greatest_length() {
    let updates = vec![foca::Member::alive(record("n", 1)); 10_000];
    let bytes = datagram(record("b", 1), record("a", 1), updates);
    assert!(bytes.len() <= MAX_DATAGRAM_BYTES && bytes.len() > MAX_DATAGRAM_BYTES - 100, "{}", bytes.len());
    assert!(Packet::decode(&bytes).is_ok_and(|packet| packet.updates.len() > 1_000));
    assert_eq!(Packet::decode(&vec![0; MAX_DATAGRAM_BYTES + 1]), Err(Malformed("too long")));
    // A length that no message has is refused before anything is set aside for it.
    assert_eq!(Packet::decode(&[0xff, 0xff, 0xff, 0xff, 0x0f]), Err(Malformed("a length out of bounds")));
}
