//! A Kafka broker of a test's own, behind the network.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

use crate::{cluster::LOG, network::Network, ports};

/// The broker's own and its controller's.
const PORTS: u16 = 2;

/// A running broker, its own controller, in a cluster of its own. Dropping it kills it.
///
/// Clients go where a broker says that it is (`advertised.listeners`), so this one says that it is at its proxy: every node reaches it through
/// its own link with [`LOG`]. `make services` installs what it is made of.
#[derive(Debug)]
pub struct Broker {
    directory: TempDir,
    own: SocketAddr,
    proxy: SocketAddr,
}

impl Broker {
    /// Starts a broker and waits until it serves, which takes some seconds.
    ///
    /// # Panics
    ///
    /// Where Kafka is not installed or does not start.
    pub fn start(network: &Network) -> Self {
        let own = ports::reserve(PORTS);
        let directory = TempDir::new().expect("a temporary directory");
        let broker = Self { directory, own, proxy: network.proxy(LOG, own) };
        broker.restart();
        broker
    }

    /// Starts it again, on what is left, after it was killed.
    ///
    /// # Panics
    ///
    /// As [`Self::start`].
    pub fn restart(&self) {
        let mut command = Command::new(script());
        command.arg("start").arg(self.directory.path()).arg(self.own.port().to_string());
        command.arg(format!("advertised.listeners=PLAINTEXT://{}", self.proxy));
        let output = command.output().expect("the script runs");
        let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "the broker does not start: {said}\n{log}");
    }

    /// Where nodes reach it, `HOST:PORT`.
    pub fn address(&self) -> String {
        self.proxy.to_string()
    }

    /// Where it is without the network: for the test's own clients as the first address. They too are sent to the proxy, as nobody's.
    pub fn own_address(&self) -> String {
        self.own.to_string()
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

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.ci/kafka")
}
