//! Real nodes, as processes, which end with the test.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use parlance_loadtest::load::Targets;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    broker::Broker,
    certificates,
    config::{ClusterSection, NodeConfig, Stores},
    network::Network,
    ports,
    process::{self, Process, ProcessState},
};

/// Far longer than anything takes on a loaded machine: a wait that reaches it has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// What is shown of a node's log when a test fails, in lines.
const TAIL_LINES: usize = 20;
/// The name of the CQL server in the [network](Network).
pub const RECORDS: &str = "records";
/// The name of the brokers in the [network](Network).
pub const LOG: &str = "log";

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The `parlance` binary: tests of `bin/parlance` know it as `env!("CARGO_BIN_EXE_parlance")`.
    pub binary: PathBuf,
    /// The cluster's name.
    pub id: String,
    /// Names of nodes, each with its zone.
    pub nodes: Vec<(String, String)>,
    /// Where they keep what they share.
    pub stores: Stores,
    /// Shards of the log.
    pub shards: u16,
    /// The model that every node serves, as `--model` has it.
    pub model: String,
    /// Between the nodes, and in front of the CQL server, where it is to be broken.
    pub network: Option<Arc<Network>>,
    /// Brokers of the test's own, where they are to crash too; the stores name their addresses.
    pub brokers: Vec<Arc<Broker>>,
    /// More for each node's configuration file, in TOML; it begins with a section.
    pub settings: String,
    /// More for the nodes' environment.
    pub environment: Vec<(String, String)>,
}

impl Plan {
    /// Nodes of these names in these zones, with stores of their own, four shards and a scripted model that answers in about 50 ms.
    pub fn new(binary: impl Into<PathBuf>, nodes: &[(&str, &str)]) -> Self {
        Self {
            binary: binary.into(),
            id: "test".to_owned(),
            nodes: nodes.iter().map(|&(name, zone)| (name.to_owned(), zone.to_owned())).collect(),
            stores: Stores::Local,
            shards: 4,
            model: "scripted:ttft_ms=20,token_ms=2,tokens=12,seed=0".to_owned(),
            network: None,
            brokers: Vec::new(),
            settings: String::new(),
            environment: Vec::new(),
        }
    }
}

/// A cluster's processes and files. Dropping it kills the nodes; where that is for a failed test, their logs are kept and their ends shown.
#[derive(Debug)]
pub struct Cluster {
    plan: Plan,
    directory: TempDir,
    members: BTreeMap<String, Member>,
    targets: Arc<Targets>,
    http: reqwest::Client,
}

#[derive(Debug)]
struct Member {
    zone: String,
    directory: PathBuf,
    /// Where it listens for other nodes, over all its starts.
    listen: SocketAddr,
    /// Where others reach it, if not there.
    advertise: Option<SocketAddr>,
    process: Mutex<Option<Process>>,
}

impl Member {
    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> PathBuf {
        self.directory.join("node.log")
    }
}

impl Cluster {
    /// Writes certificates and configurations, and starts nothing yet.
    ///
    /// # Panics
    ///
    /// Where files cannot be written or there is no free port.
    pub fn prepare(mut plan: Plan) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        fs::write(directory.path().join("password"), "cassandra\n").expect("it is written");
        certificates::write(directory.path(), &plan.id, plan.nodes.iter().map(|(name, _)| name.as_str()));
        if let (Some(network), Stores::Shared { contact_points, .. }) = (&plan.network, &mut plan.stores) {
            let server = contact_points.first().and_then(|server| server.parse().ok()).expect("HOST:PORT by number");
            *contact_points = vec![network.proxy(RECORDS, server).to_string()];
        }
        let member = |(name, zone): &(String, String)| {
            let own = directory.path().join(name);
            fs::create_dir(&own).expect("names of nodes are names of directories, each its own");
            let listen = ports::reserve(1);
            let advertise = plan.network.as_ref().map(|network| network.proxy(name, listen));
            let member = Member { zone: zone.clone(), directory: own, listen, advertise, process: Mutex::default() };
            (name.clone(), member)
        };
        let members = plan.nodes.iter().map(member).collect();
        // Fails where another one in this process has done it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().timeout(Duration::from_secs(5)).build();
        let targets = Arc::new(Targets::new());
        let cluster = Self { plan, directory, members, targets, http: http.expect("an HTTP client can be made here") };
        cluster.members.keys().for_each(|name| cluster.write_config(name));
        cluster
    }

    fn write_config(&self, name: &str) {
        let member = self.member(name);
        let root = self.directory.path();
        let (cert, key) = certificates::files(root, name);
        let section = ClusterSection {
            id: &self.plan.id,
            listen: member.listen,
            advertise: member.advertise,
            seeds: self.members.values().map(|member| member.advertise.unwrap_or(member.listen)).collect(),
            ca: certificates::authority_file(root),
            cert,
            key,
        };
        let config = NodeConfig {
            name,
            zone: &member.zone,
            data: member.directory.join("data"),
            shards: self.plan.shards,
            stores: &self.plan.stores,
            password_file: root.join("password"),
            cluster: (self.plan.stores != Stores::Local).then_some(section),
            settings: &self.plan.settings,
        };
        fs::write(config_file(&member.directory), config.text()).expect("it is written");
    }

    fn member(&self, name: &str) -> &Member {
        self.members.get(name).unwrap_or_else(|| panic!("there is no node {name}"))
    }

    /// The names of all nodes, in order.
    pub fn names(&self) -> Vec<&str> {
        self.members.keys().map(String::as_str).collect()
    }

    /// The names of nodes that were started and not ended since.
    pub fn running(&self) -> Vec<&str> {
        let started = self.members.iter().filter(|(_, member)| member.process().is_some());
        started.map(|(name, _)| name.as_str()).collect()
    }

    /// A node's zone.
    pub fn zone(&self, name: &str) -> &str {
        &self.member(name).zone
    }

    /// The network between the nodes.
    ///
    /// # Panics
    ///
    /// Where the plan has none.
    pub fn network(&self) -> &Network {
        self.plan.network.as_deref().expect("the plan has a network")
    }

    /// The brokers that are the test's own.
    pub fn brokers(&self) -> &[Arc<Broker>] {
        &self.plan.brokers
    }

    /// Whether the plan has a network.
    pub fn has_network(&self) -> bool {
        self.plan.network.is_some()
    }

    /// Where clients reach the nodes, kept up to date.
    pub fn targets(&self) -> Arc<Targets> {
        self.targets.clone()
    }

    /// A node's directory: its configuration `parlance.toml`, its `data` and its `node.log`.
    pub fn directory(&self, name: &str) -> &Path {
        &self.member(name).directory
    }

    fn command(&self, name: &str) -> Command {
        let directory = &self.member(name).directory;
        let mut command = Command::new(&self.plan.binary);
        // Nothing of the machine's own configuration.
        let ours = |name: &std::ffi::OsString| name.to_string_lossy().starts_with("PARLANCE_");
        for (name, _) in std::env::vars_os().filter(|(name, _)| ours(name)) {
            command.env_remove(name);
        }
        command.env("HOME", directory).env_remove("XDG_STATE_HOME").env_remove("XDG_DATA_HOME");
        command.envs(self.plan.environment.iter().map(|(name, value)| (name, value)));
        command.args(["up", "--model", &self.plan.model, "--config"]).arg(config_file(directory));
        command
    }

    /// Starts a node and waits for its first line; it may not be ready yet.
    ///
    /// # Panics
    ///
    /// Where it runs already, or ends or says nothing within [`PATIENCE`].
    pub async fn start(&self, name: &str) {
        let member = self.member(name);
        assert!(member.process().is_none(), "{name} runs already");
        let tell = |pid| {
            if let Some(network) = &self.plan.network {
                network.is_process(name, pid);
            }
        };
        let started = Process::start(self.command(name), &member.log(), PATIENCE, tell).await;
        let process = started.unwrap_or_else(|error| panic!("{name} does not start: {error}\n{}", self.log_tail(name)));
        let http = process.http().unwrap_or_else(|| panic!("{name} tells no address: {}", process.listening));
        self.targets.set(name, format!("http://{http}"));
        *member.process() = Some(process);
    }

    /// Starts every node that does not run, all at once, and waits until all are ready.
    ///
    /// # Panics
    ///
    /// As [`Self::start`] and [`Self::wait_ready`].
    pub async fn start_all(&self) {
        let running = self.running();
        for name in self.names().into_iter().filter(|name| !running.contains(name)) {
            self.start(name).await;
        }
        for name in self.names() {
            self.wait_ready(name).await;
        }
    }

    /// Kills a node as a crash does. Whether it lived until then.
    pub fn kill(&self, name: &str) -> bool {
        self.take(name).kill()
    }

    fn take(&self, name: &str) -> Process {
        self.member(name).process().take().unwrap_or_else(|| panic!("{name} does not run"))
    }

    /// Ends a node as an orchestrator does (SIGTERM), and returns its exit code; none where a signal ended it.
    ///
    /// # Panics
    ///
    /// Where it does not run, or does not end within [`PATIENCE`].
    pub async fn stop(&self, name: &str) -> Option<i32> {
        let mut process = self.take(name);
        process.signal(Signal::TERM);
        let ended = process.ended(PATIENCE).await;
        ended.unwrap_or_else(|| panic!("{name} does not end\n{}", self.log_tail(name))).code()
    }

    /// Stops a node and starts it again; its exit code.
    ///
    /// # Panics
    ///
    /// As [`Self::stop`] and [`Self::start`].
    pub async fn restart(&self, name: &str) -> Option<i32> {
        let code = self.stop(name).await;
        self.start(name).await;
        code
    }

    /// Has a node stand still (SIGSTOP), as a hung machine does.
    pub fn pause(&self, name: &str) {
        self.signal(name, Signal::STOP);
    }

    /// Has a node go on (SIGCONT).
    pub fn resume(&self, name: &str) {
        self.signal(name, Signal::CONT);
    }

    fn signal(&self, name: &str, signal: Signal) {
        self.member(name).process().as_ref().unwrap_or_else(|| panic!("{name} does not run")).signal(signal);
    }

    /// What a node's process is doing, as the kernel says.
    pub fn state(&self, name: &str) -> ProcessState {
        let id = self.member(name).process().as_ref().map(Process::id);
        id.map_or(ProcessState::Gone, process::state)
    }

    /// The processor time that a node's process has used so far; none where it does not run.
    pub fn cpu(&self, name: &str) -> Option<Duration> {
        process::cpu(self.member(name).process().as_ref()?.id())
    }

    /// The number of this start of a node, as it printed it.
    pub fn boot(&self, name: &str) -> Option<String> {
        let boot = self.member(name).process().as_ref()?.listening["boot"].clone();
        Some(boot.as_str().map_or_else(|| boot.to_string(), str::to_owned))
    }

    /// Where a node serves HTTP, `http://HOST:PORT`.
    ///
    /// # Panics
    ///
    /// Where it does not run.
    pub fn url(&self, name: &str) -> String {
        let http = self.member(name).process().as_ref().and_then(Process::http);
        format!("http://{}", http.unwrap_or_else(|| panic!("{name} does not run")))
    }

    /// What a node answers to a `GET`: the status and the body.
    ///
    /// # Errors
    ///
    /// What went wrong, for people, where it does not answer within 5 s.
    pub async fn get(&self, name: &str, path: &str) -> Result<(u16, String), String> {
        let http = self.member(name).process().as_ref().and_then(Process::http);
        let url = format!("http://{}{path}", http.ok_or_else(|| format!("{name} does not run"))?);
        let told = |error: reqwest::Error| format!("{name}: {error}");
        let response = self.http.get(url).send().await.map_err(told)?;
        Ok((response.status().as_u16(), response.text().await.map_err(told)?))
    }

    /// What a node answers to a `GET`, in JSON.
    ///
    /// # Errors
    ///
    /// As [`Self::get`], and where it is another answer than 200 with JSON.
    pub async fn get_json(&self, name: &str, path: &str) -> Result<Value, String> {
        let (status, body) = self.get(name, path).await?;
        match (status, serde_json::from_str(&body)) {
            (200, Ok(value)) => Ok(value),
            _ => Err(format!("{name} answers {status} to {path}: {body}")),
        }
    }

    /// Waits until a node takes traffic.
    ///
    /// # Panics
    ///
    /// Where it does not within [`PATIENCE`].
    pub async fn wait_ready(&self, name: &str) {
        let ready = async || matches!(self.get(name, "/readyz").await, Ok((200, _)));
        self.until(&format!("{name} is ready"), ready).await;
    }

    /// Waits until every node that runs says of every shard that its owner is one of them, and all say the same.
    ///
    /// # Panics
    ///
    /// Where they do not within [`PATIENCE`].
    pub async fn wait_settled(&self) {
        let settled = async || {
            let running = self.running();
            let mut views = Vec::new();
            for name in &running {
                views.push(self.owners(name).await.unwrap_or_default());
            }
            let is_whole = views.first().is_some_and(|view| {
                view.len() == usize::from(self.plan.shards) && view.values().all(|owner| running.contains(&&**owner))
            });
            is_whole && views.windows(2).all(|pair| pair[0] == pair[1])
        };
        self.until("every shard has an owner that all agree on", settled).await;
    }

    /// Waits until something holds.
    ///
    /// # Panics
    ///
    /// Where it does not within [`PATIENCE`].
    pub async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let begun = Instant::now();
        while !holds().await {
            assert!(begun.elapsed() < PATIENCE, "it never came about that {what}");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The last lines of a node's log, and where it is.
    pub fn log_tail(&self, name: &str) -> String {
        let file = self.member(name).log();
        let text = fs::read(&file).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        format!("the log of {name}, {}, ends:\n{}", file.display(), tail.join("\n"))
    }
}

fn config_file(directory: &Path) -> PathBuf {
    directory.join("parlance.toml")
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.members.values().for_each(|member| drop(member.process().take()));
        if std::thread::panicking() {
            self.directory.disable_cleanup(true);
            for name in self.names() {
                // libtest's capture does not matter here: the line must be seen beside the failure.
                let _ = writeln!(std::io::stderr(), "{}", self.log_tail(name));
            }
        }
    }
}
