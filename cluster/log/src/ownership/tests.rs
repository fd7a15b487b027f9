//! Scripted walks through the machine, one per rule.

use bytes::Bytes;
use parlance_cluster_protocol::{Claim, Data, Entry, Epoch, Nonce, Offset, Seq, ShardId, SlotId, TimestampMs};

use super::{
    AppendTag, Limits, LogPoint, MAX_PAYLOAD_BYTES, Output, Ownership, ProposeError, SlotTable, StepDown, Ticket,
};
use crate::{AppendOutcome, MAX_ENTRY_BYTES, StoredEntry};

const SLOT: SlotId = SlotId(7);
const AT: TimestampMs = TimestampMs(0);

/// A machine and its log, which lands what the test tells it to land.
struct Bench {
    machine: Ownership,
    log: Vec<Bytes>,
    out: Vec<Output>,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        let slots = SlotTable::new(ShardId(0), 1);
        Self { machine: Ownership::new("a", slots, LogPoint::START, limits), log: Vec::new(), out: Vec::new() }
    }

    /// An owner whose claim lies at offset 0.
    fn owner() -> Self {
        let mut bench = Self::new(Limits { window: 4, queue: 4 });
        bench.claim(1);
        let (tag, entries) = bench.append();
        bench.land(&entries);
        bench.answer(tag, &[0]);
        assert_eq!(bench.drain(), [Output::BecameOwner { epoch: epoch(0, 1) }]);
        bench
    }

    fn claim(&mut self, nonce: u128) {
        self.machine.claim(Nonce(nonce), AT, &mut self.out);
        self.read();
    }

    /// Answers reads until none is asked for; other outputs stay.
    fn read(&mut self) {
        while let Some(index) = self.out.iter().position(|output| matches!(output, Output::Read { .. })) {
            let Output::Read { from, .. } = self.out.remove(index) else { unreachable!("position says so") };
            let entries = self.log.iter().enumerate().skip(from.0 as usize);
            let entries = entries.map(|(at, bytes)| StoredEntry { offset: Offset(at as u64), bytes: bytes.clone() });
            self.machine.on_read(from, entries.collect(), &mut self.out);
        }
        self.out.retain(|output| !matches!(output, Output::CaughtUp { .. }));
    }

    /// The one append that was asked for.
    fn append(&mut self) -> (AppendTag, Vec<Bytes>) {
        let mut appends = Vec::new();
        self.out.retain(|output| match output {
            Output::Append { tag, entries } => {
                appends.push((*tag, entries.clone()));
                false
            }
            _ => true,
        });
        assert_eq!(appends.len(), 1, "one append is asked for");
        appends.remove(0)
    }

    fn propose(&mut self, payload: &'static str) -> Ticket {
        self.machine.propose(SLOT, Bytes::from_static(payload.as_bytes())).expect("the owner has room")
    }

    fn flush(&mut self) -> (AppendTag, Vec<Bytes>) {
        self.machine.flush(&mut self.out);
        self.append()
    }

    fn land(&mut self, entries: &[Bytes]) {
        self.log.extend_from_slice(entries);
    }

    fn answer(&mut self, tag: AppendTag, offsets: &[u64]) {
        let outcomes: Vec<_> = offsets.iter().map(|offset| AppendOutcome::At(Offset(*offset))).collect();
        self.machine.on_appended(tag, &outcomes, &mut self.out);
    }

    fn time_out(&mut self, tag: AppendTag, entries: usize) {
        self.machine.on_appended(tag, &vec![AppendOutcome::Unknown; entries], &mut self.out);
    }

    fn foreign(&mut self, nonce: u128, prev_epoch: Option<Epoch>) {
        let claim = Claim { node: "b".into(), nonce: Nonce(nonce), prev_epoch, at: AT };
        self.land(&[Entry::Claim(claim).encode()]);
    }

    fn drain(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.out)
    }
}

fn epoch(offset: u64, nonce: u128) -> Epoch {
    Epoch { offset: Offset(offset), nonce: Nonce(nonce) }
}

fn applied(offset: u64, payload: &'static str) -> Output {
    Output::Apply { offset: Offset(offset), slot: SLOT, payload: Bytes::from_static(payload.as_bytes()) }
}

fn committed(ticket: Ticket, offset: u64) -> Output {
    Output::Committed { ticket, offset: Offset(offset) }
}

#[test]
fn contiguous_acknowledgements_commit_without_a_read() {
    let mut bench = Bench::owner();
    let tickets = [bench.propose("one"), bench.propose("two")];
    let (tag, entries) = bench.flush();
    assert_eq!(entries.len(), 2, "proposals share an append");
    bench.answer(tag, &[1, 2]);
    assert_eq!(
        bench.drain(),
        [applied(1, "one"), committed(tickets[0], 1), applied(2, "two"), committed(tickets[1], 2)]
    );
}

#[test]
fn acknowledgements_wait_for_the_ones_before_them() {
    let mut bench = Bench::owner();
    let one = bench.propose("one");
    let (first, _) = bench.flush();
    let two = bench.propose("two");
    let (second, _) = bench.flush();
    bench.answer(second, &[2]);
    assert_eq!(bench.drain(), []);
    bench.answer(first, &[1]);
    assert_eq!(bench.drain(), [applied(1, "one"), committed(one, 1), applied(2, "two"), committed(two, 2)]);
}

#[test]
fn a_gap_is_read_and_an_inert_entry_in_it_does_no_harm() {
    let mut bench = Bench::owner();
    let one = bench.propose("one");
    let (tag, entries) = bench.flush();
    bench.foreign(9, None);
    bench.land(&entries);
    bench.answer(tag, &[2]);
    assert_eq!(bench.out, [Output::Read { from: Offset(1), attempt: 0 }]);
    bench.read();
    assert_eq!(bench.drain(), [Output::Fenced { offset: Offset(1) }, applied(2, "one"), committed(one, 2)]);
}

#[test]
fn a_valid_claim_in_the_gap_ends_the_reign() {
    let mut bench = Bench::owner();
    let lost = bench.propose("lost");
    let (tag, entries) = bench.flush();
    let queued = bench.propose("queued");
    bench.foreign(9, Some(epoch(0, 1)));
    bench.land(&entries);
    bench.answer(tag, &[2]);
    // The window has room: the queued one went out before the gap was read.
    let _ = bench.append();
    bench.read();
    let epoch = epoch(1, 9);
    assert_eq!(
        bench.drain(),
        [
            Output::ForeignClaim { epoch, node: "b".into(), at: AT },
            Output::Failed { ticket: lost },
            Output::Failed { ticket: queued },
            Output::SteppedDown { reason: StepDown::Superseded { epoch, node: "b".into() } },
            Output::Fenced { offset: Offset(2) },
        ]
    );
    assert_eq!(bench.machine.propose(SLOT, Bytes::new()), Err(ProposeError::NotOwner));
}

#[test]
fn an_unknown_outcome_is_settled_by_a_claim_of_our_own() {
    let mut bench = Bench::owner();
    let (landed, lost) = (bench.propose("landed"), bench.propose("lost"));
    let (tag, entries) = bench.flush();
    bench.land(&entries[..1]);
    bench.time_out(tag, 2);
    let queued = bench.propose("queued");
    bench.machine.flush(&mut bench.out);
    assert_eq!(bench.drain(), [Output::ClaimWanted { attempt: 0 }], "nothing is appended, nothing called failed");
    bench.claim(2);
    let (claim, barrier) = bench.append();
    assert_eq!(bench.drain(), [applied(1, "landed"), committed(landed, 1)]);
    bench.land(&barrier);
    bench.answer(claim, &[2]);
    assert_eq!(
        bench.drain(),
        [
            Output::Failed { ticket: lost },
            Output::Failed { ticket: queued },
            Output::BecameOwner { epoch: epoch(2, 2) },
        ]
    );
    bench.land(&entries[1..]);
    bench.machine.catch_up(&mut bench.out);
    bench.read();
    assert_eq!(bench.drain(), [Output::Fenced { offset: Offset(3) }], "what was called failed lands late and is inert");
}

#[test]
fn a_barrier_with_unknown_outcome_is_repeated_until_one_is_read() {
    let mut bench = Bench::owner();
    bench.propose("lost");
    let (tag, _) = bench.flush();
    bench.time_out(tag, 1);
    bench.claim(2);
    let (first, late) = bench.append();
    bench.time_out(first, 1);
    bench.claim(3);
    let (second, entries) = bench.append();
    bench.drain();
    bench.land(&late);
    bench.land(&entries);
    bench.answer(second, &[2]);
    bench.read();
    assert!(
        bench.drain().contains(&Output::BecameOwner { epoch: epoch(1, 2) }),
        "the first of ours that landed counts"
    );
}

#[test]
fn a_hole_that_fills_late_is_settled_by_a_claim() {
    let mut bench = Bench::owner();
    let one = bench.propose("one");
    let (first, one_bytes) = bench.flush();
    bench.propose("two");
    let (second, two_bytes) = bench.flush();
    bench.land(&two_bytes);
    bench.land(&one_bytes);
    bench.answer(first, &[2]);
    bench.answer(second, &[1]);
    bench.read();
    assert_eq!(
        bench.drain(),
        [
            Output::Fenced { offset: Offset(1) },
            applied(2, "one"),
            committed(one, 2),
            Output::ClaimWanted { attempt: 0 },
        ]
    );
}

#[test]
fn the_namesake_of_a_dead_process_does_not_inherit_its_claim() {
    let mut bench = Bench::new(Limits::default());
    bench.claim(2);
    let (tag, entries) = bench.append();
    // The claim of a process of the same name that was thought dead.
    let claim = Claim { node: "a".into(), nonce: Nonce(1), prev_epoch: None, at: AT };
    bench.land(&[Entry::Claim(claim).encode()]);
    bench.land(&entries);
    bench.answer(tag, &[1]);
    bench.read();
    assert!(bench.drain().iter().any(|output| matches!(output, Output::SteppedDown { .. })));
    assert_eq!(bench.machine.epoch(), None);
}

#[test]
fn a_release_is_the_last_entry() {
    let mut bench = Bench::owner();
    let one = bench.propose("one");
    bench.machine.release("b", &mut bench.out).expect("it owns");
    let (tag, entries) = bench.append();
    assert_eq!(bench.machine.propose(SLOT, Bytes::new()), Err(ProposeError::NotOwner));
    bench.land(&entries);
    bench.answer(tag, &[1, 2]);
    let reason = StepDown::Released { to: "b".into() };
    assert_eq!(bench.drain(), [applied(1, "one"), committed(one, 1), Output::SteppedDown { reason }]);
    let late = Data { epoch: epoch(0, 1), seq: Seq(2), slot: SLOT, payload: Bytes::new() };
    bench.land(&[Entry::Data(late).encode()]);
    bench.machine.catch_up(&mut bench.out);
    bench.read();
    assert_eq!(bench.drain(), [Output::Fenced { offset: Offset(3) }]);
}

#[test]
fn window_and_queue_are_bounded() {
    let mut bench = Bench::owner();
    for _ in 0..4 {
        bench.propose("x");
    }
    let (tag, entries) = bench.flush();
    assert_eq!(entries.len(), 4);
    for _ in 0..4 {
        bench.propose("y");
    }
    assert_eq!(bench.machine.propose(SLOT, Bytes::new()), Err(ProposeError::Full));
    bench.machine.flush(&mut bench.out);
    assert_eq!(bench.drain(), [], "the window is full");
    bench.answer(tag, &[1, 2, 3, 4]);
    assert_eq!(bench.append().1.len(), 4, "room in the window is used");
}

#[test]
fn the_largest_payload_makes_an_entry_that_every_log_takes() {
    let mut bench = Bench::owner();
    let too_large = Bytes::from(vec![7; MAX_PAYLOAD_BYTES + 1]);
    let bytes = too_large.len();
    assert_eq!(bench.machine.propose(SLOT, too_large.clone()), Err(ProposeError::TooLarge { bytes }));
    assert!(bench.machine.propose(SLOT, too_large.slice(1..)).is_ok());
    let (_, entries) = bench.flush();
    assert!(entries[0].len() <= MAX_ENTRY_BYTES);
    let widest = Epoch { offset: Offset(u64::MAX), nonce: Nonce(u128::MAX) };
    let data = Data { epoch: widest, seq: Seq(u64::MAX), slot: SlotId(16_383), payload: too_large.slice(1..) };
    assert!(Entry::Data(data).encode().len() <= MAX_ENTRY_BYTES);
}

#[test]
fn an_unreadable_entry_stops_the_machine_and_leaves_the_rest_unresolved() {
    let mut bench = Bench::owner();
    let one = bench.propose("one");
    let _ = bench.flush();
    bench.land(&[Bytes::from_static(b"\xff\xff")]);
    bench.machine.catch_up(&mut bench.out);
    bench.read();
    let out = bench.drain();
    assert_eq!(out[0], Output::Unresolved { ticket: one });
    assert!(
        matches!(&out[1], Output::SteppedDown { reason: StepDown::Unreadable { offset: Offset(1), .. } }),
        "{out:?}"
    );
    bench.claim(5);
    assert_eq!(bench.drain(), [], "it never does anything again");
}

#[test]
fn a_follower_applies_what_the_owner_wrote_and_goes_on_from_a_checkpoint() {
    let mut bench = Bench::owner();
    bench.propose("one");
    bench.propose("two");
    let (_, entries) = bench.flush();
    bench.land(&entries);

    let slots = SlotTable::new(ShardId(0), 1);
    bench.machine = Ownership::new("b", slots, LogPoint::START, Limits::default());
    bench.log.truncate(2);
    let claim = Entry::Claim(Claim { node: "a".into(), nonce: Nonce(1), prev_epoch: None, at: AT });
    bench.log[0] = claim.encode();
    bench.machine.catch_up(&mut bench.out);
    bench.read();
    let out = bench.drain();
    assert_eq!(out[1..], [applied(1, "one")]);

    bench.machine = Ownership::new("b", slots, bench.machine.point(), Limits::default());
    bench.land(&entries[1..]);
    bench.machine.catch_up(&mut bench.out);
    bench.read();
    assert_eq!(bench.drain(), [applied(2, "two")]);
}

#[test]
fn a_slot_of_another_shard_is_refused_by_its_owner_and_inert_for_readers() {
    let slots = SlotTable::new(ShardId(0), 2);
    let foreign = SlotId(16_383);
    let mut machine = Ownership::new("b", slots, LogPoint::START, Limits::default());
    let mut out = Vec::new();
    let claim = Claim { node: "a".into(), nonce: Nonce(1), prev_epoch: None, at: AT };
    let data = Data { epoch: epoch(0, 1), seq: Seq(0), slot: foreign, payload: Bytes::new() };
    let entries = [Entry::Claim(claim), Entry::Data(data)];
    let entries = (0..).zip(entries).map(|(at, entry)| StoredEntry { offset: Offset(at), bytes: entry.encode() });
    machine.on_read(Offset(0), entries.collect(), &mut out);
    assert_eq!(out[1..], [Output::Fenced { offset: Offset(1) }]);
}
