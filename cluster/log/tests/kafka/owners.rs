//! The rules of ownership over Kafka: what counts is the same for all who read it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use parlance_cluster_log::{
    KafkaConfig, KafkaLog, ShardLog,
    conformance::append,
    ownership::{Limits, LogPoint, Output, Ownership, SlotTable, StepDown, Ticket},
};
use parlance_cluster_protocol::{Nonce, Offset, SlotId, TimestampMs};

use crate::support::{Broker, SHARD, config, fresh_topic, open, shared};

/// A node's view of the shard, whose outputs are performed one after the other.
struct Node {
    machine: Ownership,
    log: Arc<KafkaLog>,
    seen: Vec<Output>,
}

impl Node {
    fn new(name: &str, log: &Arc<KafkaLog>) -> Self {
        let slots = SlotTable::new(SHARD, log.shards());
        let machine = Ownership::new(name, slots, LogPoint::START, Limits::default());
        Self { machine, log: log.clone(), seen: Vec::new() }
    }

    async fn tell(&mut self, event: impl FnOnce(&mut Ownership, &mut Vec<Output>)) {
        let mut due = Vec::new();
        event(&mut self.machine, &mut due);
        let mut due = VecDeque::from(due);
        while let Some(output) = due.pop_front() {
            let mut next = Vec::new();
            match output {
                Output::Append { tag, entries } => {
                    let outcomes = append(&*self.log, SHARD, entries).await;
                    self.machine.on_appended(tag, &outcomes, &mut next);
                }
                Output::Read { from, .. } => {
                    // A broker that hangs is asked again.
                    let entries = loop {
                        match self.log.read(SHARD, from, 1 << 20).await {
                            Ok(entries) => break entries,
                            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                        }
                    };
                    self.machine.on_read(from, entries, &mut next);
                }
                Output::ClaimWanted { .. } => self.machine.claim(nonce(), TimestampMs(0), &mut next),
                other => self.seen.push(other),
            }
            due.extend(next);
        }
    }

    async fn claim(&mut self) {
        self.tell(|machine, out| machine.claim(nonce(), TimestampMs(0), out)).await;
    }

    async fn propose(&mut self, payloads: impl IntoIterator<Item = String>) -> Vec<Ticket> {
        let propose = |payload: String| self.machine.propose(slot(), Bytes::from(payload)).expect("it owns the shard");
        let tickets = payloads.into_iter().map(propose).collect();
        self.tell(Ownership::flush).await;
        tickets
    }

    fn applied(&self) -> Vec<(Offset, Bytes)> {
        let applied = |output: &Output| match output {
            Output::Apply { offset, payload, .. } => Some((*offset, payload.clone())),
            _ => None,
        };
        self.seen.iter().filter_map(applied).collect()
    }

    /// What became of the tickets: whether each is committed. Each is settled once.
    fn settled(&self) -> Vec<(Ticket, bool)> {
        let settled = |output: &Output| match output {
            Output::Committed { ticket, .. } => Some((*ticket, true)),
            Output::Failed { ticket } => Some((*ticket, false)),
            _ => None,
        };
        self.seen.iter().filter_map(settled).collect()
    }
}

fn nonce() -> Nonce {
    Nonce(rand::random())
}

/// A slot of the shard, in a log of four.
fn slot() -> SlotId {
    (0..).map(SlotId).find(|slot| SlotTable::new(SHARD, 4).owns(*slot)).expect("each shard has some")
}

async fn replayed(log: &Arc<KafkaLog>) -> Vec<(Offset, Bytes)> {
    let mut reader = Node::new("reader", log);
    reader.tell(Ownership::catch_up).await;
    reader.applied()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deposed_owner_writes_in_vain() {
    let topic = fresh_topic();
    let logs = [Arc::new(shared(&topic).await), Arc::new(shared(&topic).await)];
    let (mut zombie, mut owner) = (Node::new("a", &logs[0]), Node::new("b", &logs[1]));
    zombie.claim().await;
    let before = zombie.propose((0..100).map(|number| format!("first {number}"))).await;
    owner.claim().await;
    let vain = zombie.propose(["in vain".to_owned()]).await;
    let after = owner.propose(["second".to_owned()]).await;
    let committed = |tickets: &[Ticket]| tickets.iter().map(|ticket| (*ticket, true)).collect::<Vec<_>>();
    assert_eq!(zombie.settled(), [committed(&before), vec![(vain[0], false)]].concat());
    let superseded = |output: &Output| matches!(output, Output::SteppedDown { reason: StepDown::Superseded { node, .. } } if node == "b");
    assert_eq!(zombie.seen.iter().filter(|output| superseded(output)).count(), 1);
    assert_eq!(owner.settled(), committed(&after));
    assert_eq!(owner.applied().len(), 101, "everything that counts, once");
    assert_eq!(replayed(&logs[0]).await, owner.applied());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_finds_out_what_became_of_its_records_when_a_hung_broker_goes_on() {
    let broker = Broker::start();
    let config = KafkaConfig { append_timeout: Duration::from_secs(1), ..config(&broker.address(), &fresh_topic()) };
    let log = Arc::new(open(config).await);
    let mut owner = Node::new("a", &log);
    owner.claim().await;
    owner.propose(["before".to_owned()]).await;
    broker.signal("-STOP");
    let going_on = async {
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        broker.signal("-CONT");
    };
    // Their outcomes are unknown; the owner claims over itself until a claim of its own is read.
    let (tickets, ()) = tokio::join!(owner.propose((0..10).map(|number| format!("during {number}"))), going_on);
    let reigns = owner.seen.iter().filter(|output| matches!(output, Output::BecameOwner { .. })).count();
    assert!(reigns >= 2, "the outcome was known at once");
    owner.propose(["after".to_owned()]).await;
    let settled = owner.settled();
    assert!(settled.iter().map(|(ticket, _)| ticket.0).eq(0..12), "each once and in order: {settled:?}");
    assert_eq!(tickets.len(), 10);
    assert_eq!(owner.applied().len(), settled.iter().filter(|(_, committed)| *committed).count());
    assert_eq!(replayed(&log).await, owner.applied());
}
