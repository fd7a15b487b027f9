//! The cases. Times are bounds far above what is usual: they tell noticing from not noticing.

use std::{
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    fleet::{Fleet, Process},
    node::{ECHO, Order, SLOW},
    proxy::Proxy,
};

/// A cut or hung peer is noticed in 1.25 to 1.5 s; this much is still noticing, on a machine that has much else to do.
const NOTICED: Duration = Duration::from_secs(4);
/// What the stock transport is watched for.
const WATCHED: Duration = Duration::from_secs(5);

type Case = (&'static str, fn());

pub(crate) const ALL: &[Case] = &[
    ("nodes_link_and_call_each_other", nodes_link_and_call_each_other),
    ("what_links_promise_is_kept", what_links_promise_is_kept),
    ("a_cut_link_is_noticed_by_both_and_mended", a_cut_link_is_noticed_by_both_and_mended),
    ("a_hung_peer_is_noticed_and_taken_back", a_hung_peer_is_noticed_and_taken_back),
    ("control_the_stock_transport_never_notices_a_hung_peer", control_the_stock_transport_never_notices_a_hung_peer),
    ("a_killed_peer_fails_its_calls_at_once", a_killed_peer_fails_its_calls_at_once),
    ("silent_connections_are_in_nobodys_way", silent_connections_are_in_nobodys_way),
    (
        "control_one_silent_connection_blocks_the_stock_transport",
        control_one_silent_connection_blocks_the_stock_transport,
    ),
    ("a_restarted_node_is_linked_at_once_whatever_became_of_the_old", a_restarted_node_is_linked_at_once),
    ("a_sender_is_held_back_while_its_peer_does_not_read", a_sender_is_held_back_while_its_peer_does_not_read),
    ("nodes_that_dial_each_other_keep_one_link", nodes_that_dial_each_other_keep_one_link),
    ("strangers_are_refused_with_the_reason", strangers_are_refused_with_the_reason),
    ("versions_are_agreed_on", versions_are_agreed_on),
];

fn pair(fleet: &Fleet) -> (Process, Process) {
    let (a, b) = (fleet.start("a"), fleet.start("b"));
    a.dial(&b.address);
    a.until_linked(&["b"]);
    b.until_linked(&["a"]);
    (a, b)
}

fn nodes_link_and_call_each_other() {
    let fleet = Fleet::of(&["a", "b"]);
    let (a, b) = pair(&fleet);
    assert_eq!(a.call("b", ECHO, "hello", 5_000)["bytes"], json!(5));
    assert_eq!(b.call("a", ECHO, &"x".repeat(1 << 20), 5_000)["bytes"], json!(1 << 20));
    let unknown = a.call("b", 99, "", 5_000);
    assert_eq!(unknown["error"]["text"], json!("there is no kind 99 (code 404)"));
    let late = a.call("b", SLOW, "5000", 100);
    assert_eq!((&late["error"]["kind"], &late["error"]["certain"]), (&json!("TimedOut"), &json!(false)));
    let large = a.call("b", ECHO, &"x".repeat((4 << 20) + 1), 5_000);
    assert_eq!((&large["error"]["kind"], &large["error"]["certain"]), (&json!("TooLarge"), &json!(true)));
    let nobody = a.call("c", ECHO, "", 5_000);
    assert_eq!((&nobody["error"]["kind"], &nobody["error"]["certain"]), (&json!("Unreachable"), &json!(true)));
    // A slow call is in nobody's way.
    let slow = a.tell(&Order::Call { to: "b".to_owned(), kind: SLOW, payload: "1500".to_owned(), within_ms: 10_000 });
    assert!(a.call("b", ECHO, "quick", 5_000)["ms"].as_u64().expect("a time") < 1_000);
    assert_eq!(a.answer(slow)["bytes"], json!(4));
}

fn what_links_promise_is_kept() {
    let fleet = Fleet::of(&["a", "b"]);
    let (a, b) = pair(&fleet);
    assert_eq!(a.ask(&Order::Check { with: "b".to_owned() }), json!("kept"));
    b.until_linked(&["a"]);
    assert_eq!(b.ask(&Order::Check { with: "a".to_owned() }), json!("kept"));
}

/// Begins a call that takes long, does something to the link, and tells how the call ended and after how long.
fn interrupted(caller: &Process, to: &str, interrupt: impl FnOnce()) -> (String, Duration) {
    let order = Order::Call { to: to.to_owned(), kind: SLOW, payload: "25000".to_owned(), within_ms: 28_000 };
    let call = caller.tell(&order);
    thread::sleep(Duration::from_millis(200));
    interrupt();
    let begun = Instant::now();
    let answer = caller.answer(call);
    (answer["error"]["kind"].as_str().unwrap_or("it was answered").to_owned(), begun.elapsed())
}

fn a_cut_link_is_noticed_by_both_and_mended() {
    let fleet = Fleet::of(&["a", "b"]);
    let (a, b) = (fleet.start("a"), fleet.start("b"));
    let proxy = Proxy::to(&b.address);
    a.dial(&proxy.address.to_string());
    a.until_linked(&["b"]);
    let (error, after) = interrupted(&a, "b", || proxy.cut());
    assert_eq!(error, "LinkLost");
    assert!(after < NOTICED, "noticed after {after:?}");
    assert!(a.until_linked(&[]) + b.until_linked(&[]) < NOTICED);
    proxy.mend();
    a.until_linked(&["b"]);
    assert_eq!(a.call("b", ECHO, "again", 5_000)["bytes"], json!(5));
}

fn a_hung_peer_is_noticed_and_taken_back() {
    let fleet = Fleet::of(&["a", "b"]);
    let (a, b) = pair(&fleet);
    let (error, after) = interrupted(&a, "b", || b.signal("-STOP"));
    assert_eq!(error, "LinkLost");
    assert!(after < NOTICED, "noticed after {after:?}");
    b.signal("-CONT");
    a.until_linked(&["b"]);
    assert_eq!(a.call("b", ECHO, "again", 5_000)["bytes"], json!(5));
}

fn stock(fleet: &Fleet, name: &str) -> Process {
    Process::start(&crate::node::Setup { stock: true, ..fleet.setup(name) })
}

fn control_the_stock_transport_never_notices_a_hung_peer() {
    let fleet = Fleet::of(&["a", "b"]);
    let (a, b) = (stock(&fleet, "a"), stock(&fleet, "b"));
    a.dial(&b.address);
    a.until_linked(&["b"]);
    b.signal("-STOP");
    thread::sleep(WATCHED);
    assert_eq!(a.links(), ["b"], "if it notices now, our own watch may go");
}

fn a_killed_peer_fails_its_calls_at_once() {
    let fleet = Fleet::of(&["a", "b"]);
    let (a, b) = pair(&fleet);
    let (error, after) = interrupted(&a, "b", || b.signal("-KILL"));
    assert_eq!(error, "LinkLost");
    assert!(after < Duration::from_secs(1), "noticed after {after:?}");
    assert_eq!(a.call("b", ECHO, "", 5_000)["error"]["kind"], json!("Unreachable"));
}

fn silent_connections_are_in_nobodys_way() {
    let fleet = Fleet::of(&["a", "b"]);
    let (a, b) = (fleet.start("a"), fleet.start("b"));
    let silent: Vec<_> = (0..20).map(|_| TcpStream::connect(&b.address).expect("it accepts")).collect();
    a.dial(&b.address);
    let after = a.until_linked(&["b"]);
    // Each would have held the next one up for the 3 s of its own handshake.
    assert!(after < Duration::from_secs(3), "linked after {after:?}");
    drop(silent);
}

fn control_one_silent_connection_blocks_the_stock_transport() {
    let fleet = Fleet::of(&["a", "b"]);
    let (a, b) = (stock(&fleet, "a"), stock(&fleet, "b"));
    let silent = TcpStream::connect(&b.address).expect("it accepts");
    thread::sleep(Duration::from_millis(200));
    a.tell(&Order::Dial { address: b.address.clone() });
    thread::sleep(WATCHED);
    assert!(a.links().is_empty(), "if it links now, our own accepting may go");
    drop(silent);
    a.until_linked(&["b"]);
}

fn a_restarted_node_is_linked_at_once() {
    let fleet = Fleet::of(&["a", "b"]);
    // So long that nothing is noticed by silence.
    let patient = |name: &str, boot| crate::node::Setup { boot, silence_ms: 60_000, ..fleet.setup(name) };
    let (a, b) = (Process::start(&patient("a", 1)), Process::start(&patient("b", 1)));
    let proxy = Proxy::to(&b.address);
    a.dial(&proxy.address.to_string());
    a.until_linked(&["b"]);
    proxy.cut();
    b.signal("-KILL");
    let again = Process::start(&patient("b", 2));
    again.dial(&a.address);
    let boot = |boot: u64| move |node: &Process| node.ask(&Order::Links)[0]["boot"] == json!(boot);
    a.until(boot(2), "a link with the second start");
    assert_eq!(a.call("b", ECHO, "anew", 5_000)["bytes"], json!(4));
    // The first start, should it come back, is not believed any more.
    let ghost = Process::start(&patient("b", 1));
    ghost.dial(&a.address);
    ghost.until(|ghost| ghost.log().contains("b was restarted: this start of it is over"), "a refusal");
    assert!(boot(2)(&a) && ghost.links().is_empty());
}

fn a_sender_is_held_back_while_its_peer_does_not_read() {
    let fleet = Fleet::of(&["a", "b"]);
    let patient = |name: &str| Process::start(&crate::node::Setup { silence_ms: 60_000, ..fleet.setup(name) });
    let (a, b) = (patient("a"), patient("b"));
    a.dial(&b.address);
    a.until_linked(&["b"]);
    let (count, bytes) = (4_000, 64 << 10);
    let before = a.ask(&Order::Memory).as_u64().expect("a number");
    b.signal("-STOP");
    let flood = |within_ms| Order::Flood { to: "b".to_owned(), count, bytes, within_ms };
    let held = a.ask(&flood(1_500));
    assert_eq!((&held["error"]["kind"], &held["error"]["certain"]), (&json!("Busy"), &json!(true)), "{held}");
    let sent = held["sent"].as_u64().expect("a number");
    assert!(sent * bytes as u64 <= 8 << 20, "{sent} messages of {bytes} bytes are under way");
    let grown = a.ask(&Order::Memory).as_u64().expect("a number").saturating_sub(before);
    assert!(grown < 64 << 10, "the sender grew by {grown} KiB");
    b.signal("-CONT");
    let rest = a.ask(&flood(25_000));
    assert_eq!(rest, json!({ "sent": count }), "all of it goes when the peer reads again");
    let all = (sent + count) * bytes as u64;
    b.until(|b| b.ask(&Order::Taken) == json!(all), "everything arrives");
}

fn nodes_that_dial_each_other_keep_one_link() {
    let names = ["a", "b", "c"];
    let fleet = Fleet::of(&names);
    let nodes: Vec<_> = names.iter().map(|name| fleet.start(name)).collect();
    for (node, other) in nodes.iter().flat_map(|node| nodes.iter().map(move |other| (node, other))) {
        node.dial(&other.address);
    }
    let others = |name: &str| names.into_iter().filter(|other| *other != name).collect::<Vec<_>>();
    for _ in 0..2 {
        for (node, name) in nodes.iter().zip(names) {
            node.until_linked(&others(name));
        }
        // Whatever was decided between the two connections of a pair is decided by then.
        thread::sleep(Duration::from_secs(1));
    }
    for (node, name) in nodes.iter().zip(names) {
        for other in others(name) {
            assert_eq!(node.call(other, ECHO, "x", 5_000)["bytes"], json!(1), "{name} to {other}");
        }
    }
}

fn strangers_are_refused_with_the_reason() {
    let fleet = Fleet::of(&["a", "b", "c"]);
    let a = fleet.start("a");
    let other_cluster = crate::node::Setup { cluster: "other".to_owned(), ..fleet.setup("b") };
    assert!(std::panic::catch_unwind(|| Process::start(&other_cluster)).is_err(), "its certificate is for another");
    let borrowed = crate::node::Setup { shows: "c".to_owned(), ..fleet.setup("b") };
    let namesake = crate::node::Setup { boot: 7, ..fleet.setup("a") };
    for (setup, reason) in
        [(borrowed, "the certificate shown does not bear the name b"), (namesake, "two nodes are named a")]
    {
        let stranger = Process::start(&setup);
        stranger.dial(&a.address);
        stranger.until(|stranger| stranger.log().contains(reason), reason);
        assert!(stranger.links().is_empty());
    }
    // An authority of its own.
    let foreign = Fleet::of(&["b"]).start("b");
    foreign.dial(&a.address);
    foreign.until(|foreign| foreign.log().contains("is the peer a node of the same cluster?"), "a refusal");
    assert!(a.links().is_empty() && foreign.links().is_empty());
}

fn versions_are_agreed_on() {
    let fleet = Fleet::of(&["a", "b", "c"]);
    let speaking = |name: &str, versions| Process::start(&crate::node::Setup { versions, ..fleet.setup(name) });
    let (new, old, ancient) = (speaking("a", 2..=3), speaking("b", 1..=2), speaking("c", 1..=1));
    new.dial(&old.address);
    new.until_linked(&["b"]);
    assert_eq!(new.ask(&Order::Links)[0]["version"], json!(2));
    ancient.dial(&new.address);
    ancient.until(|ancient| ancient.log().contains("upgrade step by step"), "a refusal");
    ancient.dial(&old.address);
    ancient.until_linked(&["b"]);
}
