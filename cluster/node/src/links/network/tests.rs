//! On a paused clock: times are exact but for tokio's milliseconds.

use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all, pending};
use tokio::time::{sleep, timeout};

use super::*;
use crate::{
    identity::BootId,
    links::{CallError, Failure, LinkInfo, WINDOW_BYTES, conformance},
};

const MS: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(60);
/// By then a cut is noticed.
const NOTICED: Duration = Duration::from_millis(1_500);

/// What was seen everywhere, in order.
#[derive(Clone, Default)]
struct Trace(Arc<Mutex<Vec<String>>>);

impl Trace {
    fn note(&self, what: String) {
        self.0.lock().expect("unpoisoned").push(what);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().expect("unpoisoned"))
    }
}

/// A node that notes what it sees, and answers a call of kind 0 with its start; others never.
struct Witness {
    me: Incarnation,
    trace: Trace,
    heard: AtomicUsize,
    /// Calls that run.
    running: Arc<()>,
}

impl Handler for Witness {
    fn call(
        &self,
        _from: &Incarnation,
        kind: u32,
        _payload: Bytes,
        _deadline: Instant,
    ) -> BoxFuture<'static, Result<Bytes, Failure>> {
        let (running, boot) = (self.running.clone(), self.me.boot.to_string());
        Box::pin(async move {
            let _running = running;
            if kind > 0 {
                pending::<()>().await;
            }
            Ok(boot.into())
        })
    }

    fn cast(&self, from: &Incarnation, _kind: u32, payload: Bytes) {
        self.trace.note(format!("{}: {} from {}", self.me.name, String::from_utf8_lossy(&payload), from.name));
    }
}

impl Observer for Witness {
    fn up(&self, link: &LinkInfo) {
        self.trace.note(format!("{} up {}", self.me.name, link.peer.name));
    }

    fn down(&self, peer: &Incarnation) {
        self.trace.note(format!("{} down {}", self.me.name, peer.name));
    }

    fn heard(&self, _peer: &Incarnation) {
        self.heard.fetch_add(1, Ordering::Relaxed);
    }
}

struct World {
    network: Network,
    trace: Trace,
}

struct Node {
    links: Arc<dyn Links>,
    witness: Arc<Witness>,
}

impl World {
    fn new(seed: u64) -> Self {
        Self { network: Network::new(seed), trace: Trace::default() }
    }

    /// A node whose address is its name.
    fn join(&self, node: &str, boot: u64) -> Node {
        let me = Incarnation { name: name(node), boot: BootId(boot) };
        let (trace, running) = (self.trace.clone(), Arc::default());
        let witness = Arc::new(Witness { me: me.clone(), trace, heard: AtomicUsize::new(0), running });
        Node { links: self.network.join(me, node, witness.clone(), witness.clone()), witness }
    }

    /// Two nodes that are linked, and of which the first keeps dialling.
    async fn pair(&self) -> (Node, Node) {
        let (a, b) = (self.join("a", 1), self.join("b", 1));
        assert!(a.links.dial("b"));
        sleep(10 * MS).await;
        assert_eq!(self.trace.take(), ["a up b", "b up a"]);
        (a, b)
    }
}

impl Node {
    async fn cast(&self, to: &str, text: &str) -> Result<(), CallError> {
        self.links.cast(&name(to), 0, text.to_owned().into(), LONG).await
    }

    /// A call that is never answered: how it ends, and when.
    fn hopeless(&self, to: &str) -> tokio::task::JoinHandle<(Result<Bytes, CallError>, Instant)> {
        let call = self.links.call(&name(to), 1, Bytes::new(), LONG);
        tokio::spawn(async { (call.await, Instant::now()) })
    }

    fn peers(&self) -> Vec<String> {
        self.links.links().iter().map(|link| link.peer.to_string()).collect()
    }
}

fn name(name: &str) -> NodeName {
    name.parse().expect("a name")
}

#[tokio::test(start_paused = true)]
async fn what_links_promise_is_kept() {
    let network = Network::new(1);
    let join = |node: &str| {
        let me = Incarnation { name: name(node), boot: BootId(1) };
        let quiet = Arc::new(Witness {
            me: me.clone(),
            trace: Trace::default(),
            heard: AtomicUsize::new(0),
            running: Arc::default(),
        });
        network.join(me, node, Arc::new(conformance::Peer::default()), quiet)
    };
    let (a, b) = (join("a"), join("b"));
    a.dial("b");
    sleep(10 * MS).await;
    conformance::check_all(&*a, &name("b")).await;
    conformance::check_all(&*b, &name("a")).await;
}

#[tokio::test(start_paused = true)]
async fn who_is_dialled_may_come_later_and_is_heard_from_then_on() {
    let world = World::new(1);
    let a = world.join("a", 1);
    assert!(a.links.dial("b") && a.links.dial("b") && a.links.dial("a"));
    sleep(Duration::from_secs(20)).await;
    let b = world.join("b", 1);
    sleep(Duration::from_secs(6)).await;
    assert_eq!(world.trace.take(), ["a up b", "b up a"]);
    let heard = || [&a, &b].map(|node| node.witness.heard.load(Ordering::Relaxed));
    let before = heard();
    sleep(Duration::from_secs(10)).await;
    let after = heard();
    assert!((0..2).all(|node| (39..=41).contains(&(after[node] - before[node]))), "{before:?} {after:?}");
    assert_eq!(world.trace.take(), [""; 0], "and nothing else happens");
}

#[tokio::test(start_paused = true)]
async fn who_is_forgotten_is_dialled_no_more() {
    let world = World::new(1);
    let (a, b) = world.pair().await;
    a.links.forget("b");
    assert_eq!(a.peers().len(), 1, "the link stays");
    b.links.cut(&name("a"), "a test");
    sleep(LONG).await;
    assert_eq!(world.trace.take(), ["b down a", "a down b"]);
}

#[tokio::test(start_paused = true)]
async fn casts_keep_their_order_and_none_takes_too_long() {
    let world = World::new(1);
    let (a, b) = world.pair().await;
    world.network.set_delay(Duration::ZERO..=100 * MS);
    for number in 0..100 {
        a.cast("b", &number.to_string()).await.expect("it is sent");
    }
    sleep(101 * MS).await;
    let expected: Vec<_> = (0..100).map(|number| format!("b: {number} from a")).collect();
    assert_eq!(world.trace.take(), expected);
    drop(b);
}

#[tokio::test(start_paused = true)]
async fn a_cut_is_noticed_by_both_and_mended() {
    let world = World::new(1);
    let (a, b) = world.pair().await;
    let call = a.hopeless("b");
    sleep(MS).await;
    let cut = Instant::now();
    world.network.cut(&name("a"), &name("b"));
    let (answer, noticed) = call.await.expect("it ends");
    assert_eq!(answer, Err(CallError::LinkLost));
    assert!(noticed - cut > super::super::SILENCE - 2 * super::super::HEARTBEAT, "not before anything was missing");
    sleep(NOTICED - (noticed - cut)).await;
    let mut down = world.trace.take();
    down.sort();
    assert_eq!(down, ["a down b", "b down a"]);
    assert_eq!(a.cast("b", "lost").await, Err(CallError::Unreachable));
    sleep(LONG).await;
    assert_eq!(world.trace.take(), [""; 0], "no link while the cut lasts");
    world.network.heal();
    sleep(Duration::from_secs(5) + 10 * MS).await;
    assert_eq!(world.trace.take(), ["a up b", "b up a"]);
    assert_eq!((a.peers().len(), b.peers().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_cut_in_one_direction_ends_the_link_at_both() {
    let world = World::new(1);
    let (a, b) = world.pair().await;
    world.network.cut_one_way(&name("a"), &name("b"));
    a.cast("b", "lost").await.expect("nobody knows yet");
    b.cast("a", "heard").await.expect("it is sent");
    sleep(NOTICED).await;
    // b hears nothing, and what it says about it arrives.
    assert_eq!(world.trace.take(), ["a: heard from b", "b down a", "a down b"]);
    sleep(LONG).await;
    assert_eq!(world.trace.take(), [""; 0], "no link while the cut lasts");
}

#[tokio::test(start_paused = true)]
async fn a_cut_that_ends_before_the_link_loses_nothing() {
    let world = World::new(1);
    let (a, _b) = world.pair().await;
    let send = async |numbers: std::ops::Range<u32>| {
        for number in numbers {
            a.cast("b", &number.to_string()).await.expect("it is sent");
        }
    };
    send(0..10).await;
    world.network.cut_one_way(&name("a"), &name("b"));
    send(10..20).await;
    sleep(500 * MS).await;
    assert_eq!(world.trace.take(), [""; 0]);
    world.network.heal();
    send(20..30).await;
    sleep(100 * MS).await;
    let expected: Vec<_> = (0..30).map(|number| format!("b: {number} from a")).collect();
    assert_eq!(world.trace.take(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_killed_node_fails_its_callers_at_once_and_goes_on_nowhere() {
    let world = World::new(1);
    let (a, b) = world.pair().await;
    let (calling, called) = (a.hopeless("b"), b.hopeless("a"));
    sleep(10 * MS).await;
    assert_eq!([&a, &b].map(|node| Arc::strong_count(&node.witness.running)), [2, 2], "both calls have come");
    let killed = Instant::now();
    world.network.kill(&name("b"));
    let (answer, noticed) = calling.await.expect("it ends");
    assert_eq!(answer, Err(CallError::LinkLost));
    assert!(noticed - killed <= 2 * MS, "after {:?}", noticed - killed);
    assert_eq!(a.cast("b", "lost").await, Err(CallError::Unreachable));
    sleep(MS).await;
    assert_eq!([&a, &b].map(|node| Arc::strong_count(&node.witness.running)), [1, 1], "what ran for them is dropped");
    assert_eq!(world.trace.take(), ["a down b"], "the dead see nothing");
    assert!(timeout(2 * LONG, called).await.is_err(), "its own call never returns");
    assert!(timeout(LONG, b.cast("a", "x")).await.is_err(), "and none that it begins");
    assert!(!b.links.dial("a") && b.peers().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_restarted_node_replaces_its_earlier_start() {
    let world = World::new(1);
    let (a, _first) = world.pair().await;
    let _second = world.join("b", 2);
    sleep(200 * MS).await;
    assert_eq!(world.trace.take(), ["a down b", "a up b", "b up a"]);
    assert_eq!(a.links.call(&name("b"), 0, Bytes::new(), LONG).await, Ok(BootId(2).to_string().into()));
    // Behind a cut nobody hears of the end of a start; the next one is taken for it when they meet.
    world.network.cut(&name("a"), &name("b"));
    let third = world.join("b", 3);
    world.network.heal();
    third.links.dial("a");
    sleep(20 * MS).await;
    assert_eq!(world.trace.take(), ["a down b", "b up a", "a up b"]);
    assert_eq!(a.peers(), [third.witness.me.to_string()]);
    sleep(LONG).await;
    assert_eq!(world.trace.take(), [""; 0], "and that link stays");
}

#[tokio::test(start_paused = true)]
async fn nodes_that_dial_each_other_keep_one_link() {
    let world = World::new(1);
    let (a, b) = (world.join("a", 1), world.join("b", 1));
    assert!(a.links.dial("b") && b.links.dial("a"));
    sleep(LONG).await;
    let mut trace = world.trace.take();
    trace.sort();
    assert_eq!(trace, ["a up b", "b up a"]);
}

#[tokio::test(start_paused = true)]
async fn a_sender_is_held_back_while_nothing_comes_through() {
    let world = World::new(1);
    let (a, _b) = world.pair().await;
    world.network.cut_one_way(&name("a"), &name("b"));
    let payload = Bytes::from(vec![b'x'; 64 << 10]);
    let mut sent = 0;
    let refused = loop {
        match a.links.cast(&name("b"), 0, payload.clone(), 100 * MS).await {
            Ok(()) => sent += payload.len() as u64,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, CallError::Busy);
    assert!(sent <= WINDOW_BYTES && sent > WINDOW_BYTES / 2, "{sent} bytes are under way");
    assert!(a.links.links()[0].under_way_bytes >= sent);
    let waits = a.links.cast(&name("b"), 0, payload, LONG);
    let heal = async {
        sleep(100 * MS).await;
        world.network.heal();
    };
    let (waited, ()) = tokio::join!(waits, heal);
    assert_eq!(waited, Ok(()), "there is room again");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_says_so() {
    let world = World::new(1);
    let (a, b) = world.pair().await;
    b.links.stop().await;
    b.links.stop().await;
    sleep(10 * MS).await;
    assert_eq!(world.trace.take(), ["b down a", "a down b"]);
    assert!(!b.links.dial("a"));
    assert_eq!(b.cast("a", "x").await, Err(CallError::Unreachable));
    sleep(LONG).await;
    assert!(a.peers().is_empty(), "nobody is there to be dialled");
}

/// Three nodes that all talk to each other at once, over links that come and go.
async fn story(seed: u64) -> Vec<String> {
    let world = World::new(seed);
    world.network.set_delay(Duration::from_micros(10)..=20 * MS);
    let nodes: Vec<_> = ["a", "b", "c"].into_iter().map(|name| (name, world.join(name, 1))).collect();
    for (_, node) in &nodes {
        assert!(["a", "b", "c"].iter().all(|address| node.links.dial(address)));
    }
    sleep(100 * MS).await;
    let speak = async |from: &Node, to: &str| {
        for number in 0..100 {
            // Some are said into a cut.
            let _ = from.cast(to, &number.to_string()).await;
            sleep(20 * MS).await;
        }
    };
    let ways = nodes.iter().flat_map(|(from, node)| ["a", "b", "c"].map(|to| (*from, node, to)));
    let all = join_all(ways.filter(|(from, _, to)| from != to).map(|(_, node, to)| speak(node, to)));
    let faults = async {
        sleep(300 * MS).await;
        world.network.cut(&name("a"), &name("b"));
        sleep(NOTICED).await;
        world.network.heal();
        world.network.kill(&name("c"));
    };
    tokio::join!(timeout(LONG, all), faults).1;
    world.trace.take()
}

#[test]
fn the_same_seed_is_the_same_story() {
    let tell = |seed| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(story(seed))
    };
    let told = tell(1);
    assert!(told.len() > 100, "{told:?}");
    assert_eq!(told, tell(1));
    assert_ne!(told, tell(2));
}
