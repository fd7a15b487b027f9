use std::{
    io::{Read as _, Write as _},
    net::TcpStream as Stream,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use super::*;

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);
/// What must not arrive is waited for so long.
const MOMENT: Duration = Duration::from_millis(150);

/// A connection from outside to endpoint `b`, and its other end there.
fn connect(network: &Network) -> (Stream, Stream) {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let proxy = network.proxy("b", listener.local_addr().expect("bound"));
    let near = Stream::connect(proxy).expect("the proxy accepts");
    let far = listener.accept().expect("it is dialled").0;
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    }
    (near, far)
}

fn say(stream: &mut Stream, text: &str) {
    stream.write_all(text.as_bytes()).expect("it is sent");
}

fn assert_hears(stream: &mut Stream, text: &str) {
    let mut heard = vec![0; text.len()];
    stream.read_exact(&mut heard).expect("it arrives");
    assert_eq!(String::from_utf8_lossy(&heard), text);
}

fn assert_hears_nothing(stream: &mut Stream) {
    stream.set_read_timeout(Some(MOMENT)).expect("a time-out");
    let heard = stream.read(&mut [0; 16]);
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    assert_eq!(heard.expect_err("silence").kind(), std::io::ErrorKind::WouldBlock);
}

fn until(holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "it never came");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn bytes_pass_both_ways_and_so_does_the_end() {
    let network = Network::new(1);
    let (mut near, mut far) = connect(&network);
    say(&mut near, "there");
    assert_hears(&mut far, "there");
    say(&mut far, "back");
    assert_hears(&mut near, "back");
    near.shutdown(std::net::Shutdown::Write).expect("it is closed");
    assert_eq!(far.read(&mut [0; 1]).expect("an end"), 0);
    say(&mut far, "after the end");
    assert_hears(&mut near, "after the end");
    drop(far);
    assert_eq!(near.read(&mut [0; 1]).expect("an end"), 0);
    assert_eq!((network.counts(OUTSIDE, "b").bytes, network.counts("b", OUTSIDE).bytes), (5, 17));
    assert_eq!(network.counts("b", OUTSIDE).held_bytes, 0);
}

#[test]
fn a_cut_holds_everything_until_it_is_healed() {
    let network = Network::new(1);
    let (mut near, mut far) = connect(&network);
    network.cut(OUTSIDE, "b");
    say(&mut near, "there");
    say(&mut far, "back");
    assert_hears_nothing(&mut far);
    assert_hears_nothing(&mut near);
    let counts = network.counts(OUTSIDE, "b");
    assert_eq!((counts.bytes, counts.held_bytes), (0, 5));
    assert_eq!(network.counts("b", OUTSIDE).held_bytes, 4);
    network.heal(OUTSIDE, "b");
    assert_hears(&mut far, "there");
    assert_hears(&mut near, "back");
}

#[test]
fn a_cut_one_way_leaves_the_other() {
    let network = Network::new(1);
    let (mut near, mut far) = connect(&network);
    network.cut_towards("b", OUTSIDE);
    say(&mut near, "there");
    assert_hears(&mut far, "there");
    say(&mut far, "back");
    assert_hears_nothing(&mut near);
    assert_eq!(network.counts(OUTSIDE, "b").held_bytes, 0);
    network.heal_all();
    assert_hears(&mut near, "back");
}

#[test]
fn the_end_of_a_peer_is_not_heard_through_a_cut() {
    let network = Network::new(1);
    let (mut near, far) = connect(&network);
    network.cut_towards("b", OUTSIDE);
    drop(far);
    assert_hears_nothing(&mut near);
    network.heal_all();
    assert_eq!(near.read(&mut [0; 1]).expect("an end"), 0);
}

#[test]
fn no_connection_is_made_through_a_cut_in_either_direction() {
    for (from, to) in [(OUTSIDE, "b"), ("b", OUTSIDE)] {
        let network = Network::new(1);
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let proxy = network.proxy("b", listener.local_addr().expect("bound"));
        network.cut_towards(from, to);
        let gone = Stream::connect(proxy).expect("the kernel accepts");
        let mut near = Stream::connect(proxy).expect("the kernel accepts");
        until(|| network.counts(from, to).held_connections == 2);
        say(&mut near, "hello");
        drop(gone);
        network.heal_all();
        // Who has given up meanwhile is never seen.
        let mut far = listener.accept().expect("it is dialled").0;
        assert_hears(&mut far, "hello");
    }
}

#[test]
fn what_is_slow_comes_late_and_in_order() {
    let network = Network::new(1);
    let (mut near, mut far) = connect(&network);
    let delay = Duration::from_millis(50)..=Duration::from_millis(100);
    network.slow(OUTSIDE, "b", Weather { delay, loss: 0.3 });
    let begun = Instant::now();
    let words: Vec<String> = (0..20).map(|n| format!("word {n} ")).collect();
    for word in &words {
        say(&mut near, word);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_hears(&mut far, &words.concat());
    assert!(begun.elapsed() >= Duration::from_millis(50), "it was no slower than it may be");
    assert!(network.counts(OUTSIDE, "b").delayed > 0);
    assert_eq!(network.counts("b", OUTSIDE).delayed, 0);
}

#[test]
fn a_reset_ends_connections_at_once_and_takes_new_ones() {
    let network = Network::new(1);
    let (mut near, mut far) = connect(&network);
    say(&mut near, "there");
    assert_hears(&mut far, "there");
    network.reset("b", OUTSIDE);
    let ended = |stream: &mut Stream| stream.read(&mut [0; 1]).expect_err("a reset").kind();
    assert_eq!(ended(&mut near), std::io::ErrorKind::ConnectionReset);
    assert_eq!(ended(&mut far), std::io::ErrorKind::ConnectionReset);
    let counts = network.counts("b", OUTSIDE).and(&network.counts(OUTSIDE, "b"));
    assert_eq!(counts.resets, 1);
}

#[test]
fn who_is_dead_is_not_there_behind_the_proxy_either() {
    let network = Network::new(1);
    let free =
        std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|free| free.local_addr()).expect("a port");
    let mut near = Stream::connect(network.proxy("b", free)).expect("the kernel accepts");
    near.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    assert_eq!(near.read(&mut [0; 1]).expect_err("a reset").kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_process_is_known_by_its_connection() {
    let network = Network::new(1);
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let proxy = network.proxy("b", listener.local_addr().expect("bound"));
    let start = || {
        // It tells what it hears until its connection ends.
        let script = format!("exec 3<>/dev/tcp/127.0.0.1/{}; echo here >&3; cat <&3", proxy.port());
        Command::new("bash").args(["-c", &script]).stdout(Stdio::piped()).spawn().expect("bash is there")
    };
    let mut other = start();
    network.is_process("other", other.id());
    let mut far_other = listener.accept().expect("it is dialled").0;
    let a = start();
    network.is_process("a", a.id());
    let mut far_a = listener.accept().expect("it is dialled").0;
    assert_hears(&mut far_a, "here\n");
    assert_hears(&mut far_other, "here\n");
    network.cut("a", "b");
    say(&mut far_a, "not heard");
    say(&mut far_other, "heard");
    drop(far_other);
    let mut told = String::new();
    other.stdout.take().expect("piped").read_to_string(&mut told).expect("text");
    assert_eq!(told, "heard");
    until(|| network.counts("b", "a").held_bytes == 9);
    assert_eq!(network.counts("b", "other").bytes, 5);
    for mut child in [a, other] {
        let _ = child.kill();
        child.wait().expect("our own child");
    }
}

#[test]
fn while_one_is_looked_up_the_others_go_on() {
    let (gate, looks) = (Arc::new(Mutex::new(())), Arc::new(AtomicU64::new(0)));
    let (closed, seen) = (gate.clone(), looks.clone());
    let network = Network::with_table(1, move || {
        seen.fetch_add(1, Ordering::Relaxed);
        drop(lock(&closed));
        read_table()
    });
    let (mut near, mut far) = connect(&network);
    say(&mut near, "there");
    assert_hears(&mut far, "there");
    // A look that takes its time.
    let slow = lock(&gate);
    let before = looks.load(Ordering::Relaxed);
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let proxy = network.proxy("c", listener.local_addr().expect("bound"));
    let mut later = Stream::connect(proxy).expect("the kernel accepts");
    until(|| looks.load(Ordering::Relaxed) > before);
    say(&mut near, "again");
    assert_hears(&mut far, "again");
    drop(slow);
    say(&mut later, "at last");
    assert_hears(&mut listener.accept().expect("it is dialled").0, "at last");
}
