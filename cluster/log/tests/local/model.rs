//! Random sequences of appends, trims, crashes and reopens, against what a log should be.

use bytes::Bytes;
use futures_util::future::join_all;
use parlance_cluster_log::{
    AppendOutcome, LocalLog, ShardLog,
    conformance::{append, read_all},
};
use parlance_cluster_protocol::{Offset, ShardId};
use proptest::{collection::vec, prelude::*};

use crate::support::{BLOCK, last_blocks, open, overwrite, quick_directory, used_segments};

const SHARDS: u16 = 4;

#[derive(Debug, Clone)]
enum Step {
    /// Appends that are all under way at once: shard, number of entries, size of each.
    Append(Vec<(u16, usize, usize)>),
    /// Trims a shard to so many percent of its end.
    Trim(u16, u64),
    /// Closes and opens.
    Reopen,
    /// The same, with noise of this length behind the end, as a torn batch leaves it.
    Tear(usize, u8),
    /// Trims every shard to its end.
    TrimAll,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let one = (0..SHARDS, 0..4usize, prop_oneof![4 => 0..600usize, 1 => 0..70_000usize]);
    let step = prop_oneof![
        10 => vec(one, 1..20).prop_map(Step::Append),
        3 => (0..SHARDS, 0..=100u64).prop_map(|(shard, percent)| Step::Trim(shard, percent)),
        2 => Just(Step::Reopen),
        1 => (1..20_000usize, any::<u8>()).prop_map(|(length, noise)| Step::Tear(length, noise)),
        1 => Just(Step::TrimAll),
    ];
    vec(step, 1..40)
}

/// Per shard, all that was ever appended, where it was trimmed, and the highest start that was seen.
#[derive(Default)]
struct Model {
    shards: [(Vec<Bytes>, u64, u64); SHARDS as usize],
    appended: usize,
}

impl Model {
    async fn append(&mut self, log: &LocalLog, appends: Vec<(u16, usize, usize)>) {
        let mut pending = Vec::new();
        for (shard, count, size) in appends {
            let first = self.appended;
            self.appended += count;
            let entries: Vec<Bytes> = (first..first + count).map(|number| entry(number, size)).collect();
            let all = &mut self.shards[usize::from(shard)].0;
            let expected = (all.len() as u64..).take(count).map(|at| AppendOutcome::At(Offset(at))).collect::<Vec<_>>();
            all.extend(entries.iter().cloned());
            pending.push(async move { assert_eq!(append(log, ShardId(shard), entries).await, expected) });
        }
        join_all(pending).await;
    }

    async fn trim(&mut self, log: &LocalLog, shard: u16, percent: u64) {
        let (all, trimmed, _) = &mut self.shards[usize::from(shard)];
        let before = all.len() as u64 * percent / 100;
        log.trim(ShardId(shard), Offset(before)).await.expect("it is within the bounds");
        *trimmed = before.max(*trimmed);
    }

    async fn check(&mut self, log: &LocalLog) {
        for (shard, (all, trimmed, oldest)) in (0..).zip(&mut self.shards) {
            let bounds = log.bounds(ShardId(shard)).await.expect("bounds");
            assert_eq!(bounds.end, Offset(all.len() as u64));
            assert!((*oldest..=*trimmed).contains(&bounds.start.0), "shard {shard} starts at {}", bounds.start);
            *oldest = bounds.start.0;
            let read = read_all(log, ShardId(shard)).await;
            assert!(read.into_iter().map(|entry| entry.bytes).eq(all[*oldest as usize..].iter().cloned()));
        }
    }
}

fn entry(number: usize, size: usize) -> Bytes {
    let mut bytes = number.to_le_bytes().to_vec();
    // No zeros: `tear` finds the end by them.
    bytes.resize(size.max(8), number as u8 | 1);
    bytes.into()
}

/// Leaves noise behind the end of the log, first and last byte not zero.
fn tear(directory: &std::path::Path, length: usize, noise: u8) {
    let segments = used_segments(directory);
    let path = segments.last().expect("a log has a segment with a header");
    let end = last_blocks(path, 1).end;
    let room = std::fs::metadata(path).expect("it is there").len() as usize - end;
    let bytes: Vec<u8> = (0..length.min(room)).map(|at| noise.wrapping_mul(at as u8) | 1).collect();
    overwrite(path, end, &bytes);
    assert_eq!(end % BLOCK, 0);
}

async fn run(steps: Vec<Step>) {
    let directory = quick_directory();
    let mut model = Model::default();
    let mut log = open(directory.path());
    for step in steps {
        match step {
            Step::Append(appends) => model.append(&log, appends).await,
            Step::Trim(shard, percent) => model.trim(&log, shard, percent).await,
            Step::Reopen => {
                drop(log);
                log = open(directory.path());
                model.check(&log).await;
            }
            Step::Tear(length, noise) => {
                drop(log);
                tear(directory.path(), length, noise);
                log = open(directory.path());
                model.check(&log).await;
            }
            Step::TrimAll => {
                for shard in 0..SHARDS {
                    model.trim(&log, shard, 100).await;
                }
                assert_eq!(used_segments(directory.path()).len(), 1, "only the active segment is left");
            }
        }
    }
    model.check(&log).await;
    drop(log);
    model.check(&open(directory.path())).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_log_is_what_was_appended_less_what_was_trimmed(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(run(steps));
    }
}
