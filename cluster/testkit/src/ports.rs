//! Ports that stay a test's own while nothing listens on them.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    ops::Range,
};

/// Below what Linux takes for connections that go out: such a connection could sit on a dead node's port when it starts again.
const RANGE: Range<u16> = 20_000..32_000;
const TRIES: usize = 1_000;

/// `count` neighbouring ports of loopback that are free now; the first.
///
/// # Panics
///
/// Where there are none.
pub(crate) fn reserve(count: u16) -> SocketAddr {
    let is_free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let mut tries = (0..TRIES).map(|_| rand::random_range(RANGE));
    let first = tries.find(|first| (*first..first + count).all(is_free)).expect("there are free ports");
    SocketAddr::from((Ipv4Addr::LOCALHOST, first))
}
