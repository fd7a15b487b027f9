//! Brokers behind the network: real ones, which `make services` installs.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use parlance_cluster_testkit::{
    Broker, LOG, ProcessState,
    network::{Network, OUTSIDE},
};

const PATIENCE: Duration = Duration::from_secs(60);
/// Metadata, of no topic, in a version that is old and still spoken: key, version, correlation, no client id, no topics, none to be made.
const METADATA: &[u8] = &[0, 3, 0, 4, 0, 0, 0, 7, 0xff, 0xff, 0, 0, 0, 0, 0];

/// The ports at which the brokers of a cluster say that they are; nothing where the one asked does not answer.
fn told_ports(address: &str) -> Option<Vec<u16>> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(&(METADATA.len() as u32).to_be_bytes()).ok()?;
    stream.write_all(METADATA).ok()?;
    let number = |stream: &mut TcpStream| {
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).ok().map(|()| u32::from_be_bytes(bytes))
    };
    // Its length, the correlation, how long we were made to wait.
    for _ in 0..3 {
        number(&mut stream)?;
    }
    let brokers = number(&mut stream)?;
    let mut ports = Vec::new();
    for _ in 0..brokers {
        number(&mut stream)?;
        let mut length = [0; 2];
        stream.read_exact(&mut length).ok()?;
        stream.read_exact(&mut vec![0; usize::from(u16::from_be_bytes(length))]).ok()?;
        ports.push(u16::try_from(number(&mut stream)?).expect("a port"));
        stream.read_exact(&mut [0; 2]).ok()?;
    }
    ports.sort_unstable();
    Some(ports)
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "it never came about that {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn brokers_say_that_they_are_at_their_proxies_and_come_back_after_a_crash() {
    let network = Network::new(1);
    let brokers = Broker::start_three(&network);
    let mut proxies: Vec<u16> = brokers
        .iter()
        .map(|broker| broker.address().rsplit_once(':').expect("HOST:PORT").1.parse().expect("a port"))
        .collect();
    proxies.sort_unstable();
    for broker in &brokers {
        until("a broker knows all three", || told_ports(&broker.address()).as_ref() == Some(&proxies));
    }
    brokers[0].signal("-KILL");
    until("the broker is gone", || brokers[0].state() == ProcessState::Gone);
    assert_eq!(told_ports(&brokers[0].address()), None);
    until("it is missed", || told_ports(&brokers[1].address()).is_some_and(|ports| ports.len() == 2));
    brokers[0].restart();
    until("it is back", || told_ports(&brokers[1].address()).as_ref() == Some(&proxies));
    network.cut(OUTSIDE, LOG);
    assert_eq!(told_ports(&brokers[1].address()), None, "no broker is reached through a cut");
    assert!(network.counts(OUTSIDE, LOG).held_connections > 0);
}
