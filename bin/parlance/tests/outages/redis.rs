//! Nodes that count their tenants' turns in a Redis of the test's own.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use parlance_cluster_testkit::{Cluster, Plan};
use tempfile::TempDir;

use super::{BINARY, NODES, logged, talk::Client, wait_for};

/// Turns that a tenant may save up; a minute brings one.
const BURST: usize = 12;

/// A `redis-server`, killed with this.
struct Server {
    process: Child,
    port: u16,
    directory: TempDir,
}

impl Server {
    fn start() -> Self {
        // Whoever takes the port meanwhile makes the server end, and the test say so.
        let port = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound").port();
        let directory = TempDir::new().expect("a temporary directory");
        Self { process: spawn(port, &directory), port, directory }
    }

    fn kill(&mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ends");
    }

    fn restart(&mut self) {
        self.process = spawn(self.port, &self.directory);
    }

    fn flush(&self) {
        let flushed = Command::new("redis-cli").args(["-p", &self.port.to_string(), "FLUSHALL"]).output();
        assert!(flushed.is_ok_and(|flushed| flushed.status.success()), "redis-cli is installed: make services");
    }
}

fn spawn(port: u16, directory: &TempDir) -> Child {
    let mut server = Command::new("redis-server");
    server.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]);
    server.arg(directory.path()).stdout(Stdio::null()).stderr(Stdio::null());
    server.spawn().expect("redis-server is installed: make services")
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have been killed by the test.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Of twice the burst, asked of one node after the other, in sessions and without: how many were answered. All others are told to wait.
async fn answered(cluster: &Cluster, client: &Client, nodes: &[&str]) -> usize {
    let mut answered = 0;
    for number in 0..2 * BURST {
        let node = cluster.url(nodes[number % nodes.len()]);
        if number % 3 == 0 {
            answered += usize::from(client.ask(&node).await == 200);
            continue;
        }
        let said = client.say(node, format!("session-{number}")).await;
        assert!(said.is_answered() || said.is_refused(429, "rate_limited"), "{said:?}");
        answered += usize::from(said.is_answered());
    }
    answered
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_share_a_tenants_rate_in_redis_and_go_on_alone_without_it() {
    let mut server = Server::start();
    let cluster = Cluster::prepare(Plan {
        settings: format!(
            "[cache]\nkind = 'redis'\nurl = 'redis://127.0.0.1:{}'\ntimeout_ms = 2000\n\
             [limits]\nturns_per_minute_per_tenant = 1\nturn_burst_per_tenant = {BURST}\n",
            server.port
        ),
        ..Plan::new(BINARY, &NODES)
    });
    cluster.start_all().await;
    wait_for(&cluster, "redis", true).await;
    let client = Client::new();
    // A slow machine's minute brings one more.
    let shared = answered(&cluster, &client, &["a", "b"]).await;
    assert!((BURST..BURST + 4).contains(&shared), "{shared} turns were answered by a bucket of {BURST}");
    server.flush();
    let again = answered(&cluster, &client, &["a", "b"]).await;
    assert!((BURST..BURST + 4).contains(&again), "a forgotten bucket is full: {again}");
    server.kill();
    wait_for(&cluster, "redis", false).await;
    for node in ["a", "b"] {
        let alone = answered(&cluster, &client, &[node]).await;
        assert!((BURST..BURST + 4).contains(&alone), "{node} limits by itself: {alone}");
    }
    server.restart();
    wait_for(&cluster, "redis", true).await;
    let shared = answered(&cluster, &client, &["a", "b"]).await;
    assert!((BURST..BURST + 4).contains(&shared), "by a bucket of both again, which is new: {shared}");
    for node in ["a", "b"] {
        assert_eq!(logged(&cluster, node, "redis does not answer"), 1);
        assert_eq!(logged(&cluster, node, "redis answers again"), 1);
    }
}
