//! Reads the shards' log along, from its beginning: what the nodes trim later was seen.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parlance_cluster_log::{
    KafkaConfig, KafkaLog, ShardLog,
    ownership::{LogPoint, SlotTable, Validator, Verdict},
};
use parlance_cluster_protocol::{Entry, Offset, ShardId};
use parlance_loadtest::checker::owners::{EntryKind, Epoch, LogEntry, Ownership, owners};

const READ_BYTES: usize = 1 << 20;
/// The pause before brokers that do not answer are asked again.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// A reader of all shards.
pub(crate) struct Reader {
    log: Arc<KafkaLog>,
    entries: Arc<Mutex<Vec<LogEntry>>>,
    ended: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Reader {
    pub(crate) async fn begin(brokers: &[String], topic_prefix: &str, shards: u16) -> Self {
        let topic = format!("{topic_prefix}.shards");
        let replication = if brokers.len() < 3 { 1 } else { 3 };
        let config = KafkaConfig { topic, shards, replication, ..KafkaConfig::new(brokers.join(",")) };
        let log = Arc::new(KafkaLog::open(config).await.expect("the brokers are up"));
        let (entries, ended) = (Arc::<Mutex<Vec<LogEntry>>>::default(), Arc::<AtomicBool>::default());
        let read = |shard| tokio::spawn(read(log.clone(), ShardId(shard), entries.clone(), ended.clone()));
        let tasks = (0..shards).map(read).collect();
        Self { log, entries, ended, tasks }
    }

    /// Reads to the end as it is now, and judges.
    pub(crate) async fn end(self) -> Ownership {
        self.ended.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("no reader panicked");
        }
        drop(self.log);
        let entries = self.entries.lock().expect("no reader panicked");
        owners(&entries)
    }
}

async fn read(log: Arc<KafkaLog>, shard: ShardId, entries: Arc<Mutex<Vec<LogEntry>>>, ended: Arc<AtomicBool>) {
    let mut reader = Validator::new(SlotTable::new(shard, log.shards()), LogPoint::START);
    let mut next = Offset(0);
    loop {
        let last = ended.load(Ordering::Relaxed);
        match log.read(shard, next, READ_BYTES).await {
            Ok(stored) if stored.is_empty() && last => return,
            Ok(stored) if stored.is_empty() => drop(log.arrival(shard, next).await),
            Ok(stored) => {
                for stored in stored {
                    assert_eq!(stored.offset, next, "the nodes trimmed what was not read: read faster");
                    next = stored.offset.next();
                    let entry = Entry::decode(stored.bytes).expect("nodes write entries");
                    let accepted = reader.judge(stored.offset, &entry) != Verdict::Inert;
                    let entry =
                        LogEntry { shard: shard.0.into(), offset: stored.offset.0, kind: kind(entry), accepted };
                    entries.lock().expect("no reader panicked").push(entry);
                }
            }
            Err(_) => tokio::time::sleep(ASK_AGAIN).await,
        }
    }
}

fn kind(entry: Entry) -> EntryKind {
    let epoch = |epoch: parlance_cluster_protocol::Epoch| Epoch {
        offset: epoch.offset.0,
        nonce: format!("{:032x}", epoch.nonce.0),
    };
    match entry {
        Entry::Claim(claim) => EntryKind::Claim {
            node: claim.node,
            nonce: format!("{:032x}", claim.nonce.0),
            previous: claim.prev_epoch.map(epoch),
        },
        Entry::Data(data) => EntryKind::Data { epoch: epoch(data.epoch), seq: data.seq.0 },
        Entry::Release(release) => EntryKind::Release { epoch: epoch(release.epoch), seq: release.seq.0 },
    }
}
