//! Kafka brokers of a test's own, behind the network.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

use crate::{
    cluster::LOG,
    network::Network,
    ports,
    process::{self, ProcessState},
};

/// For clients, for controllers, and for other brokers.
const PORTS: u16 = 3;

/// A running broker, which is a controller too. Dropping it kills it.
///
/// Clients go where a broker says that it is (`advertised.listeners`), so this one says that it is at its proxy: every node reaches every broker
/// through its own link with [`LOG`]. Brokers reach each other directly. `make services` installs what they are made of.
#[derive(Debug)]
pub struct Broker {
    directory: TempDir,
    own: SocketAddr,
    proxy: SocketAddr,
    settings: Vec<String>,
}

impl Broker {
    /// Starts a broker by itself and waits until it serves, which takes some seconds.
    ///
    /// # Panics
    ///
    /// Where Kafka is not installed or does not start.
    pub fn start(network: &Network) -> Self {
        Self::start_some(network, 1).remove(0)
    }

    /// Starts three brokers of one cluster, for topics of three replicas.
    ///
    /// # Panics
    ///
    /// As [`Self::start`].
    pub fn start_three(network: &Network) -> Vec<Self> {
        Self::start_some(network, 3)
    }

    fn start_some(network: &Network, count: usize) -> Vec<Self> {
        let ports: Vec<SocketAddr> = (0..count).map(|_| ports::reserve(PORTS)).collect();
        let voters: Vec<String> =
            (1..).zip(&ports).map(|(id, own)| format!("{id}@127.0.0.1:{}", own.port() + 1)).collect();
        let prepare = |(id, own): (usize, SocketAddr)| {
            let directory = TempDir::new().expect("a temporary directory");
            let proxy = network.proxy(LOG, own);
            let settings = settings(id, own.port(), proxy, &voters.join(","));
            Self { directory, own, proxy, settings }
        };
        let brokers: Vec<Self> = (1..).zip(ports).map(prepare).collect();
        // None serves before most do.
        std::thread::scope(|scope| brokers.iter().for_each(|broker| drop(scope.spawn(|| broker.restart()))));
        brokers
    }

    /// Starts it again, on what is left, after it was killed.
    ///
    /// # Panics
    ///
    /// As [`Self::start`].
    pub fn restart(&self) {
        let mut command = Command::new(script());
        command.arg("start").arg(self.directory.path()).arg(self.own.port().to_string()).args(&self.settings);
        let output = command.output().expect("the script runs");
        let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "the broker does not start: {said}\n{log}");
    }

    /// Where nodes reach it, `HOST:PORT`.
    pub fn address(&self) -> String {
        self.proxy.to_string()
    }

    /// Sends it a signal: `-KILL`, `-STOP`, `-CONT`.
    ///
    /// # Panics
    ///
    /// Where it does not run.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").arg(signal).arg(self.pid().expect("it was started")).status();
        assert!(sent.is_ok_and(|status| status.success()), "the broker is gone");
    }

    /// What its process is doing, as the kernel says.
    pub fn state(&self) -> ProcessState {
        let pid = self.pid().and_then(|pid| pid.parse().ok());
        pid.map_or(ProcessState::Gone, process::state)
    }

    fn pid(&self) -> Option<String> {
        fs::read_to_string(self.directory.path().join("pid")).ok().map(|pid| pid.trim().to_owned())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            // The test may have killed it.
            let _ = Command::new("kill").args(["-KILL", &pid]).stderr(Stdio::null()).status();
        }
    }
}

/// What a broker is told beyond what all are.
fn settings(id: usize, port: u16, proxy: SocketAddr, voters: &str) -> Vec<String> {
    let at = |listener: &str, port: u16| format!("{listener}://127.0.0.1:{port}");
    let listeners = [at("PLAINTEXT", port), at("CONTROLLER", port + 1), at("BROKERS", port + 2)];
    vec![
        format!("node.id={id}"),
        format!("controller.quorum.voters={voters}"),
        format!("listeners={}", listeners.join(",")),
        format!("advertised.listeners=PLAINTEXT://{proxy},{}", at("BROKERS", port + 2)),
        "inter.broker.listener.name=BROKERS".to_owned(),
        "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,BROKERS:PLAINTEXT".to_owned(),
    ]
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.ci/kafka")
}
