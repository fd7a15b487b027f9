//! Apache Cassandra as the tests meet it: the shared server that `make services` has started, servers of a test's own, and a proxy that loses
//! answers.

mod proxy;

use std::{
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use parlance_cluster_records::{Credentials, Replication, ScyllaOptions, ScyllaRecords};
use scylla::client::{session::Session, session_builder::SessionBuilder};

pub(crate) use self::proxy::Proxy;

/// Where `.ci/cassandra` has the shared server.
pub(crate) const SHARED_PORT: u16 = 19_042;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A file of `target/services/cassandra-tls`.
pub(crate) fn tls_file(name: &str) -> PathBuf {
    root().join("target/services/cassandra-tls").join(name)
}

/// A store on a server, in that keyspace, with short time-outs.
pub(crate) fn options(port: u16, keyspace: &str) -> ScyllaOptions {
    ScyllaOptions {
        replication: Some(Replication::Everywhere(1)),
        credentials: Some(Credentials { user: "cassandra".into(), password: "cassandra".into() }),
        ..ScyllaOptions::new([format!("127.0.0.1:{port}")], keyspace)
    }
}

/// A keyspace of the shared server, dropped with this.
pub(crate) struct Keyspace {
    pub(crate) options: ScyllaOptions,
    pub(crate) admin: Session,
}

impl Keyspace {
    /// One that is not there yet.
    ///
    /// # Panics
    ///
    /// If the server does not run.
    pub(crate) async fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let there = TcpStream::connect(("127.0.0.1", SHARED_PORT));
        assert!(there.is_ok(), "Cassandra does not answer on port {SHARED_PORT}: make services");
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let options = options(SHARED_PORT, &format!("test_{}_{number}", std::process::id()));
        let admin = SessionBuilder::new().known_node(&options.nodes[0]).user("cassandra", "cassandra");
        Self { options, admin: admin.build().await.expect("the server lets its own user in: make services") }
    }

    pub(crate) async fn open(&self) -> ScyllaRecords {
        ScyllaRecords::open(self.options.clone()).await.expect("a healthy store opens")
    }

    /// Runs CQL, with the keyspace for `{}`.
    pub(crate) async fn run(&self, cql: &str) -> scylla::response::query_result::QueryResult {
        let cql = cql.replace("{}", &self.options.keyspace);
        self.admin.query_unpaged(cql, ()).await.expect("good CQL")
    }

    /// How many rows a table has.
    pub(crate) async fn count(&self, table: &str) -> i64 {
        let rows = self.run(&format!("SELECT count(*) FROM {{}}.{table}")).await.into_rows_result();
        rows.expect("rows").single_row::<(i64,)>().expect("one number").0
    }
}

/// Needs a runtime of several threads.
impl Drop for Keyspace {
    fn drop(&mut self) {
        let cql = format!("DROP KEYSPACE IF EXISTS {}", self.options.keyspace);
        tokio::task::block_in_place(|| {
            // Left to a person where it fails: the test says why by itself.
            let _ = tokio::runtime::Handle::current().block_on(self.admin.query_unpaged(cql, ()));
        });
    }
}

/// A server of a test's own, killed and forgotten with this.
pub(crate) struct Server {
    name: String,
    /// The last number of its address, 127.0.0.N.
    number: u8,
    pub(crate) port: u16,
}

impl Server {
    pub(crate) fn start() -> Self {
        let server = Self::new(1, free_ports(std::process::id()));
        server.restart();
        server
    }

    /// Three that are one cluster, with a user `parlance` whom each of them knows by itself.
    pub(crate) async fn start_three() -> [Self; 3] {
        let port = free_ports(std::process::id().wrapping_add(1));
        let servers = [1, 2, 3].map(|number| Self::new(number, port));
        // One after the other: those that start at once may not hear of each other for long.
        servers.iter().for_each(Self::restart);
        let admin = SessionBuilder::new().known_node(servers[0].node()).user("cassandra", "cassandra").build().await;
        let admin = admin.expect("the server lets its own user in");
        for cql in [
            "ALTER KEYSPACE system_auth WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 3}",
            "CREATE ROLE IF NOT EXISTS parlance WITH PASSWORD = 'parlance' AND LOGIN = true AND SUPERUSER = true",
        ] {
            // Until they have heard of each other.
            let begun = Instant::now();
            while let Err(error) = admin.query_unpaged(cql, ()).await {
                assert!(begun.elapsed() < Duration::from_secs(120), "{error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        servers
    }

    fn new(number: u8, port: u16) -> Self {
        Self { name: format!("cassandra-test-{}-{port}-{number}", std::process::id()), number, port }
    }

    /// Its address and port.
    pub(crate) fn node(&self) -> String {
        format!("127.0.0.{}:{}", self.number, self.port)
    }

    /// Starts it on what it has kept, and waits until it answers.
    pub(crate) fn restart(&self) {
        let mut start = Command::new(root().join(".ci/cassandra"));
        start
            .args(["start", &self.name, &self.port.to_string(), &format!("127.0.0.{}", self.number)])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let started = start.status().expect("the script is there");
        assert!(started.success(), "Cassandra does not start: make services");
    }

    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.pid()]).status();
        assert!(sent.is_ok_and(|status| status.success()));
    }

    /// Stops it, until it gets the signal to go on.
    pub(crate) fn halt(&self) {
        self.signal("-STOP");
        let status = format!("/proc/{}/status", self.pid());
        while !std::fs::read_to_string(&status).expect("it runs").contains("State:\tT") {
            std::thread::yield_now();
        }
    }

    fn pid(&self) -> String {
        let pid = std::fs::read_to_string(self.directory().join("pid")).expect("it was started");
        pid.trim().to_owned()
    }

    pub(crate) fn kill(&self) {
        self.signal("-KILL");
        while TcpStream::connect_timeout(&([127, 0, 0, self.number], self.port).into(), Duration::from_secs(1)).is_ok()
        {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn directory(&self) -> PathBuf {
        root().join("target/services").join(&self.name)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(pid) = std::fs::read_to_string(self.directory().join("pid")) {
            let _ = Command::new("kill").args(["-KILL", pid.trim()]).stderr(Stdio::null()).status();
        }
        // Its log says what a failed test does not.
        if std::thread::panicking() {
            return;
        }
        let _ = std::fs::remove_dir_all(self.directory());
        let _ = std::fs::remove_file(self.directory().with_extension("lock"));
    }
}

/// Two free ports in a row, below those that the system hands out to clients. Whoever takes one meanwhile makes the server end, and the test
/// say so.
fn free_ports(seed: u32) -> u16 {
    let is_free = |port: u16| TcpListener::bind(("0.0.0.0", port)).is_ok();
    let candidates = (0..5_000).map(|n| 20_000 + 2 * ((seed.wrapping_mul(7_919).wrapping_add(n)) % 5_000) as u16);
    candidates.into_iter().find(|port| is_free(*port) && is_free(*port + 1)).expect("two free ports in a row")
}
