use super::*;

/// A shard's log as it grows, each entry with what a right node makes of it.
#[derive(Default)]
struct Log(Vec<LogEntry>);

impl Log {
    fn add(&mut self, kind: EntryKind, accepted: bool) -> Epoch {
        let offset = self.0.len() as u64;
        let nonce = match &kind {
            EntryKind::Claim { nonce, .. } => nonce.clone(),
            _ => String::new(),
        };
        self.0.push(LogEntry { shard: 3, offset, kind, accepted });
        Epoch { offset, nonce }
    }

    fn claim(&mut self, node: &str, previous: Option<&Epoch>, accepted: bool) -> Epoch {
        let nonce = format!("{node}-{}", self.0.len());
        self.add(EntryKind::Claim { node: node.into(), nonce, previous: previous.cloned() }, accepted)
    }

    fn data(&mut self, epoch: &Epoch, seq: u64, accepted: bool) {
        self.add(EntryKind::Data { epoch: epoch.clone(), seq }, accepted);
    }

    fn release(&mut self, epoch: &Epoch, seq: u64, accepted: bool) {
        self.add(EntryKind::Release { epoch: epoch.clone(), seq }, accepted);
    }
}

/// Owner `a` dies and writes late; `b` and `c` race for its shard; `b` hands it back and writes late too.
fn good() -> Log {
    let mut log = Log::default();
    let a = log.claim("a", None, true);
    log.data(&a, 0, true);
    let b = log.claim("b", Some(&a), true);
    log.claim("c", Some(&a), false);
    log.data(&a, 1, false);
    log.data(&b, 0, true);
    // A record got lost on the way, so this one is behind a gap.
    log.data(&b, 2, false);
    log.release(&b, 1, true);
    log.data(&b, 2, false);
    log.claim("a", Some(&b), true);
    log
}

#[test]
fn a_good_log_has_no_violations_and_is_counted() {
    assert_eq!(owners(&good().0), Ownership { claims: 3, moves: 2, inert: 3, violations: vec![] });
}

#[test]
fn what_is_accepted_of_no_owner_is_found_entry_by_entry() {
    let good = good().0;
    for index in 0..good.len() {
        let mut log = good.clone();
        log[index].accepted = !log[index].accepted;
        let (shard, offset) = (3, index as u64);
        let expected = if log[index].accepted {
            Violation::AcceptedOfNoOwner { shard, offset }
        } else {
            Violation::DroppedOfOwner { shard, offset }
        };
        assert_eq!(owners(&log).violations, [expected], "entry {index}");
    }
}

#[test]
fn two_nodes_under_one_claim_are_found() {
    let mut log = good();
    let claim = EntryKind::Claim { node: "d".into(), nonce: "a-0".into(), previous: None };
    log.add(claim, false);
    assert_eq!(owners(&log.0).violations, [Violation::TwoOwners { shard: 3, offset: 10 }]);
}

#[test]
fn a_log_that_goes_back_is_found() {
    let mut log = good();
    log.0[9].offset = 8;
    assert!(owners(&log.0).violations.contains(&Violation::LogOutOfOrder { shard: 3, offset: 8 }));
}

#[test]
fn shards_do_not_mix() {
    let other = good().0.into_iter().map(|entry| LogEntry { shard: 4, ..entry });
    let mixed: Vec<LogEntry> = good().0.into_iter().zip(other).flat_map(|(one, other)| [one, other]).collect();
    assert_eq!(owners(&mixed), Ownership { claims: 6, moves: 4, inert: 6, violations: vec![] });
}
