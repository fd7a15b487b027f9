//! The project's own fault proxy: TCP between processes that can be cut, slowed and reset, each pair and each direction by itself.
//!
//! There is one [proxy](Network::proxy) in front of each endpoint that is reached: a node's cluster port, a broker, a CQL server. All who
//! reach it do so at the proxy's one address, so nobody has to be told different addresses; whom a connection is from the proxy finds in `/proc`,
//! by the process that holds its other end. So it works on Linux alone, and only for processes that it was [told](Network::is_process) of; all
//! others are [`OUTSIDE`].
//!
//! ```text
//!   node a ──▶ proxy of b ──▶ node b        bytes a → b pass the link (a, b), and bytes b → a the link (b, a),
//!   node b ──▶ proxy of a ──▶ node a        whichever of them dialled
//! ```
//!
//! A cut link drops nothing for ever: as with a pulled cable, what was sent arrives when it is put back, if both ends still wait for it. No new
//! connection is made while either direction is cut. But the dialling side sees its connection accepted and then silent, for the
//! kernel accepts it on the proxy's behalf; with a real cable it would not even be that.

mod bridge;
mod link;
mod origin;

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};

pub use self::link::{Counts, Weather};
use self::{
    link::Link,
    origin::{Finder, Origin, read_table},
};

/// Every process that the network was not told of.
pub const OUTSIDE: &str = "outside";

/// Links between named endpoints. Dropping it ends every connection through it.
#[derive(Debug)]
pub struct Network {
    shared: Arc<Shared>,
    /// Its own, so that no test that blocks its runtime stops the network. Nothing may block it: every connection is carried here. Taken when
    /// dropped.
    runtime: Option<Runtime>,
}

#[derive(Debug)]
struct Shared {
    seed: u64,
    connections: AtomicU64,
    links: Mutex<HashMap<(String, String), Arc<Link>>>,
    processes: Arc<Mutex<HashMap<String, u32>>>,
    finder: Finder,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Network {
    /// A network in good order. `seed` draws delays and losses.
    ///
    /// # Panics
    ///
    /// Where the system gives no thread.
    pub fn new(seed: u64) -> Self {
        Self::with_table(seed, read_table)
    }

    /// `table` reads the kernel's sockets.
    fn with_table(seed: u64, table: impl Fn() -> String + Send + 'static) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let processes = Arc::<Mutex<HashMap<String, u32>>>::default();
        let told = processes.clone();
        let finder = Finder::start(table, move || lock(&told).clone());
        let shared = Shared { seed, connections: AtomicU64::new(0), links: Mutex::default(), processes, finder };
        Self { shared: Arc::new(shared), runtime: Some(runtime.expect("a thread for the network")) }
    }

    /// Puts a proxy in front of endpoint `name`, which is at `target`, now or later. Its address.
    ///
    /// # Panics
    ///
    /// Where no loopback port is free.
    pub fn proxy(&self, name: &str, target: SocketAddr) -> SocketAddr {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        listener.set_nonblocking(true).expect("a socket can be made so");
        let (shared, name) = (self.shared.clone(), name.to_owned());
        let runtime = self.runtime.as_ref().expect("it is taken only when dropped");
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("the runtime takes sockets");
            // Accepting fails for a moment where files run out.
            loop {
                match listener.accept().await {
                    Ok((near, peer)) => drop(tokio::spawn(shared.clone().bridge(near, peer, name.clone(), target))),
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
                }
            }
        });
        address
    }

    /// Endpoint `name` is this process from now on.
    pub fn is_process(&self, name: &str, pid: u32) {
        lock(&self.shared.processes).insert(name.to_owned(), pid);
    }

    /// Cuts two endpoints off from each other.
    pub fn cut(&self, one: &str, other: &str) {
        self.cut_towards(one, other);
        self.cut_towards(other, one);
    }

    /// Nothing that `from` sends reaches `to`; the other direction stays as it is.
    pub fn cut_towards(&self, from: &str, to: &str) {
        self.link(from, to).cut(true);
    }

    /// Cuts everyone of one side off from everyone of the other.
    pub fn split(&self, side: &[&str], other: &[&str]) {
        for one in side {
            other.iter().for_each(|other| self.cut(one, other));
        }
    }

    /// Makes what `from` sends to `to` late, until healed.
    pub fn slow(&self, from: &str, to: &str, weather: Weather) {
        self.link(from, to).set_weather(weather);
    }

    /// Puts both directions between two endpoints back in order.
    pub fn heal(&self, one: &str, other: &str) {
        self.link(one, other).heal();
        self.link(other, one).heal();
    }

    /// Puts everything back in order.
    pub fn heal_all(&self) {
        let links: Vec<_> = lock(&self.shared.links).values().cloned().collect();
        links.iter().for_each(|link| link.heal());
    }

    /// Resets every connection between two endpoints, whoever dialled.
    pub fn reset(&self, one: &str, other: &str) {
        self.link(one, other).reset();
        self.link(other, one).reset();
    }

    /// What has happened to what `from` sent to `to`, ever.
    pub fn counts(&self, from: &str, to: &str) -> Counts {
        self.link(from, to).counts()
    }

    fn link(&self, from: &str, to: &str) -> Arc<Link> {
        self.shared.link(from, to)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // A runtime must not wait for its threads where the caller is on another runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Shared {
    fn link(&self, from: &str, to: &str) -> Arc<Link> {
        lock(&self.links).entry((from.to_owned(), to.to_owned())).or_default().clone()
    }

    /// Carries one connection from its acceptance to its end.
    async fn bridge(self: Arc<Self>, near: TcpStream, peer: SocketAddr, to: String, target: SocketAddr) {
        let Ok(proxy) = near.local_addr() else { return };
        let from = match self.finder.find(peer, proxy).await {
            Origin::Process(name) => name,
            Origin::Outside => OUTSIDE.to_owned(),
            Origin::Gone => return,
        };
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        let (there, back) = (self.link(&from, &to), self.link(&to, &from));
        bridge::Bridge { there: &there, back: &back, seed: self.seed ^ number }.carry(near, target).await;
    }
}

#[cfg(test)]
mod tests;
