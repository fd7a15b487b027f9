//! Redis behind the ports, with real servers: `redis-server` has to be installed, which `make services` sees to.

use std::{
    net::TcpListener,
    num::{NonZeroU32, NonZeroUsize},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use parlance_cluster_cache::{
    Cache, Cached, Decision, Limit, Limiter, Redis, RedisCache, RedisLimiter, RedisOptions, conformance,
};
use parlance_cluster_protocol::Position;
use tempfile::TempDir;

/// How long a test waits for what has to come.
const PATIENCE: Duration = Duration::from_secs(20);
/// Of a command: long enough for a machine that does other things meanwhile.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Of a command to a server that hangs.
const SHORT_TIMEOUT: Duration = Duration::from_millis(500);

/// A `redis-server`, killed with this.
struct Server {
    process: Child,
    port: u16,
    arguments: Vec<String>,
    directory: TempDir,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        // Whoever takes the port meanwhile makes the server end, and the test say so.
        let port = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound").port();
        let directory = tempfile::tempdir().expect("a directory");
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let process = spawn(port, directory.path(), &arguments);
        let server = Self { process, port, arguments, directory };
        server.wait();
        server
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn wait(&self) {
        let begun = Instant::now();
        while !["PONG", "NOAUTH Authentication required."].contains(&&*self.cli(&["PING"])) {
            assert!(begun.elapsed() < PATIENCE, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn cli(&self, words: &[&str]) -> String {
        cli(self.port, words)
    }

    fn kill(&mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ends");
    }

    fn restart(&mut self) {
        self.process = spawn(self.port, self.directory.path(), &self.arguments);
        self.wait();
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.process.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have been killed by the test.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(port: u16, directory: &Path, arguments: &[String]) -> Child {
    let mut server = Command::new("redis-server");
    server.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]);
    server.arg(directory).args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    server.spawn().expect("redis-server is installed: make services")
}

fn cli(port: u16, words: &[&str]) -> String {
    let output = Command::new("redis-cli").args(["-p", &port.to_string()]).args(words).output();
    String::from_utf8_lossy(&output.expect("redis-cli is installed: make services").stdout).trim().to_owned()
}

fn connect(url: impl Into<String>, timeout: Duration) -> Arc<Redis> {
    Redis::connect(RedisOptions { timeout, ..RedisOptions::new(url, "test") }).expect("a good URL")
}

/// Waits until the connection is there: before that a command is late, and none is sent for a second.
async fn connected(url: impl Into<String>) -> Arc<Redis> {
    connected_within(url, TIMEOUT).await
}

async fn connected_within(url: impl Into<String>, timeout: Duration) -> Arc<Redis> {
    let redis = connect(url, timeout);
    let cache = RedisCache::new(redis.clone());
    until_kept(&cache, "connected").await;
    redis
}

async fn until_kept(cache: &RedisCache, value: &'static str) {
    let begun = Instant::now();
    loop {
        cache.put("until", b"kept", entry(value), Duration::from_secs(600)).await;
        if cache.get("until", b"kept", Position(0)).await == Some(entry(value)) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "redis does not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn entry(value: &'static str) -> Cached {
    Cached { value: value.into(), position: Position(1) }
}

fn limiter(redis: &Arc<Redis>) -> RedisLimiter {
    RedisLimiter::new(redis.clone(), NonZeroUsize::new(100).expect("not zero"))
}

/// So many takes in an hour.
fn hourly(burst: u32) -> Limit {
    let burst = NonZeroU32::new(burst).expect("not zero");
    Limit { tokens: NonZeroU32::MIN, per: Duration::from_secs(3_600), burst }
}

async fn allowed(limiter: &RedisLimiter, key: &[u8], takes: usize, limit: Limit) -> usize {
    let mut allowed = 0;
    for _ in 0..takes {
        allowed += usize::from(limiter.take("t", key, 1, limit).await == Decision::Allowed);
    }
    allowed
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_conforms() {
    let server = Server::start(&[]);
    let redis = connected(server.url()).await;
    conformance::cache(&RedisCache::new(redis.clone())).await;
    conformance::limiter(&limiter(&redis)).await;
    assert!(redis.is_up());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_cluster_conforms() {
    let nodes: Vec<_> = (0..3).map(|_| Server::start(&["--cluster-enabled", "yes"])).collect();
    for (node, slots) in nodes.iter().zip([("0", "5460"), ("5461", "10922"), ("10923", "16383")]) {
        assert_eq!(node.cli(&["CLUSTER", "ADDSLOTSRANGE", slots.0, slots.1]), "OK");
        assert_eq!(nodes[0].cli(&["CLUSTER", "MEET", "127.0.0.1", &node.port.to_string()]), "OK");
    }
    let begun = Instant::now();
    while !nodes.iter().all(|node| node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok")) {
        assert!(begun.elapsed() < PATIENCE, "{}", nodes[0].cli(&["CLUSTER", "INFO"]));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let redis = connected(format!("redis-cluster://127.0.0.1:{}", nodes[0].port)).await;
    conformance::cache(&RedisCache::new(redis.clone())).await;
    conformance::limiter(&limiter(&redis)).await;
    assert!(nodes.iter().all(|node| node.cli(&["DBSIZE"]) != "0"), "the keys lie on all nodes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_behind_a_sentinel_conforms() {
    let server = Server::start(&[]);
    let directory = tempfile::tempdir().expect("a directory");
    let config = directory.path().join("sentinel.conf");
    let monitor = format!("sentinel monitor main 127.0.0.1 {} 1\n", server.port);
    std::fs::write(&config, monitor).expect("written");
    // Its configuration file comes first.
    let port = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound").port();
    let mut command = Command::new("redis-server");
    command.arg(&config).args(["--sentinel", "--port", &port.to_string(), "--bind", "127.0.0.1"]);
    let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    let sentinel = Server { process, port, arguments: Vec::new(), directory };
    sentinel.wait();
    let redis = connected(format!("redis-sentinel://127.0.0.1:{port}?sentinelServiceName=main")).await;
    conformance::cache(&RedisCache::new(redis.clone())).await;
    conformance::limiter(&limiter(&redis)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_share_what_is_kept_and_what_is_taken() {
    let server = Server::start(&[]);
    let (one, other) = (connected(server.url()).await, connected(server.url()).await);
    RedisCache::new(one.clone()).put("t", b"k", entry("shared"), Duration::from_secs(60)).await;
    assert_eq!(RedisCache::new(other.clone()).get("t", b"k", Position(0)).await, Some(entry("shared")));
    let (one, other) = (limiter(&one), limiter(&other));
    let takes = [&one, &other].map(|limiter| allowed(limiter, b"shared", 20, hourly(10)));
    assert_eq!(futures_util::future::join_all(takes).await.iter().sum::<usize>(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_forgets_and_fails_nothing() {
    let server = Server::start(&[]);
    let redis = connected(server.url()).await;
    let (cache, limiter) = (RedisCache::new(redis.clone()), limiter(&redis));
    cache.put("t", b"k", entry("kept"), Duration::from_secs(60)).await;
    assert_eq!(allowed(&limiter, b"flushed", 9, hourly(3)).await, 3);
    assert_eq!((server.cli(&["FLUSHALL"]), server.cli(&["SCRIPT", "FLUSH"])), ("OK".into(), "OK".into()));
    assert_eq!(cache.get("t", b"k", Position(0)).await, None);
    cache.put("t", b"k", entry("again"), Duration::from_secs(60)).await;
    assert_eq!(cache.get("t", b"k", Position(0)).await, Some(entry("again")));
    assert_eq!(allowed(&limiter, b"flushed", 9, hourly(3)).await, 3, "a forgotten bucket is full");
    assert!(redis.is_up());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_is_done_without_and_found_again() {
    let mut server = Server::start(&[]);
    let redis = connected(server.url()).await;
    let (cache, limiter) = (RedisCache::new(redis.clone()), limiter(&redis));
    cache.put("t", b"k", entry("lost"), Duration::from_secs(60)).await;
    server.kill();
    assert_eq!(cache.get("t", b"k", Position(0)).await, None);
    assert_eq!(allowed(&limiter, b"alone", 9, hourly(3)).await, 3, "the node limits by itself");
    assert!(!redis.is_up());
    server.restart();
    until_kept(&cache, "back").await;
    assert!(redis.is_up());
    assert_eq!(allowed(&limiter, b"alone", 9, hourly(4)).await, 4, "by the shared bucket again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_is_waited_for_once() {
    let server = Server::start(&[]);
    let redis = connected_within(server.url(), SHORT_TIMEOUT).await;
    let (cache, limiter) = (RedisCache::new(redis.clone()), limiter(&redis));
    server.signal("-STOP");
    let begun = Instant::now();
    assert_eq!(cache.get("t", b"k", Position(0)).await, None);
    assert_eq!(allowed(&limiter, b"hung", 100, hourly(3)).await, 3);
    // One time-out, and then nobody asks for a second.
    assert!(begun.elapsed() < 3 * SHORT_TIMEOUT, "{:?}", begun.elapsed());
    server.signal("-CONT");
    until_kept(&cache, "goes on").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_may_come_after_its_clients() {
    let mut server = Server::start(&["--requirepass", "secret"]);
    server.kill();
    let redis = connect(format!("redis://:secret@127.0.0.1:{}", server.port), SHORT_TIMEOUT);
    let cache = RedisCache::new(redis.clone());
    assert_eq!(cache.get("t", b"k", Position(0)).await, None);
    server.process = spawn(server.port, server.directory.path(), &server.arguments);
    until_kept(&cache, "came").await;
    let stranger = RedisCache::new(connect(server.url(), SHORT_TIMEOUT));
    stranger.put("until", b"kept", entry("a stranger's"), Duration::from_secs(60)).await;
    assert_eq!(stranger.get("until", b"kept", Position(0)).await, None, "without the password");
    assert_eq!(cache.get("until", b"kept", Position(0)).await, Some(entry("came")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_that_says_nothing_is_refused_without_repeating_its_password() {
    for url in ["", "127.0.0.1", "http://:secret@localhost", "redis-sentinel://:secret@localhost:1"] {
        let options = RedisOptions::new(url, "p");
        assert!(!format!("{options:?}").contains("secret"), "{options:?}");
        let refused = Redis::connect(options).expect_err(url);
        assert!(refused.to_string().contains("redis://HOST:PORT"), "{refused}");
        assert!(!refused.to_string().contains("secret"), "{refused}");
    }
}
