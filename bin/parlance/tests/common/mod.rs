//! Runs the real binary: commands to their end, and nodes that end with the test.
//!
//! Nothing of the machine's own configuration reaches the processes. A node's log is kept where its test fails.

#![expect(dead_code, reason = "every test binary compiles this module and uses its own part of it")]

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

/// Far longer than anything here takes on a loaded machine: a wait that reaches it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A scripted model that answers at once.
pub(crate) const SCRIPTED: &str = "scripted:ttft_ms=0,token_ms=0,tokens=16,seed=0";

/// The `parlance` binary with a home of its own and none of the caller's settings.
pub(crate) fn parlance(home: &Path) -> Command {
    command(Path::new(env!("CARGO_BIN_EXE_parlance")), home)
}

fn command(binary: &Path, home: &Path) -> Command {
    let mut command = Command::new(binary);
    let ours = |name: &std::ffi::OsString| name.to_string_lossy().starts_with("PARLANCE_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| ours(name)) {
        command.env_remove(name);
    }
    command.env("HOME", home).env_remove("XDG_STATE_HOME").env_remove("XDG_DATA_HOME").stdin(Stdio::null());
    command
}

/// The test-only binary with a planted bug.
pub(crate) fn planted(place: &Place, bug: &str) -> Command {
    let planted = Path::new(env!("CARGO_BIN_EXE_parlance")).with_file_name("parlance-planted");
    let remedy = "cargo build --release -p parlance --features planted-bugs --bin parlance-planted";
    assert!(planted.exists(), "{} is missing; make it: {remedy}", planted.display());
    let mut command = command(&planted, place.path());
    command.env("PARLANCE_PLANTED_BUG", bug);
    command
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// Asserts a failure as a person meets it: its exit code and one line that has every one of `parts`.
    #[track_caller]
    pub(crate) fn assert_refused(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        let errors: Vec<&str> = self.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "not one line: {self:?}");
        for part in parts {
            assert!(errors[0].contains(part), "no {part:?} in {:?}", errors[0]);
        }
    }
}

/// Runs a command to its end.
pub(crate) fn end(command: &mut Command) -> Ended {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    let read = |from: Box<dyn std::io::Read + Send>| {
        std::thread::spawn(move || std::io::read_to_string(from).unwrap_or_default())
    };
    let stdout = read(Box::new(child.stdout.take().expect("piped")));
    let stderr = read(Box::new(child.stderr.take().expect("piped")));
    let code = wait(&mut child).and_then(|status| status.code());
    Ended { code, stdout: stdout.join().expect("a reader"), stderr: stderr.join().expect("a reader") }
}

/// Waits for the end of a process; one that outlives all patience is killed and has no status.
pub(crate) fn wait(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().expect("our own child") {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

/// An answer over HTTP.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Answer {
    /// The body as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }
}

/// Runs a future to its end, within all patience.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await.expect("no answer") })
}

/// A client that trusts this authority, or nobody.
pub(crate) fn client(ca: Option<&Path>) -> reqwest::Client {
    // The second call finds the first one's work done.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder();
    match ca {
        None => builder.build().expect("a client"),
        Some(ca) => {
            let pem = std::fs::read(ca).expect("a CA");
            let certificates = reqwest::Certificate::from_pem_bundle(&pem).expect("certificates");
            builder.tls_certs_only(certificates).build().expect("a client")
        }
    }
}

/// Sends a request and reads the whole answer.
pub(crate) fn send(request: reqwest::RequestBuilder) -> Result<Answer, reqwest::Error> {
    block_on(async {
        let response = request.send().await?;
        Ok(Answer { status: response.status().as_u16(), body: response.text().await? })
    })
}

/// A `GET`.
#[track_caller]
pub(crate) fn get(url: &str) -> Answer {
    send(client(None).get(url)).expect("an answer")
}

/// A running node. Dropping it kills it.
pub(crate) struct Node {
    child: Child,
    /// The first line that it printed.
    pub(crate) listening: Value,
    log: PathBuf,
    _stdout: ChildStdout,
}

/// The directory of a node's data, log and home.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().expect("a temporary directory"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// Writes a file and returns its path.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, content).expect("written");
        path
    }

    /// `parlance` with this place as its home.
    pub(crate) fn parlance(&self) -> Command {
        parlance(self.path())
    }

    /// `parlance up` on a free port with the scripted model and this place's data.
    pub(crate) fn up(&self) -> Command {
        let mut up = self.parlance();
        up.args(["up", "--listen", "127.0.0.1:0", "--model", SCRIPTED, "--data"]).arg(self.data());
        up
    }

    /// Starts a node.
    pub(crate) fn start(&self) -> Node {
        Node::start(self, &mut self.up())
    }
}

impl Node {
    /// Starts a node by its command and waits for its first line.
    #[track_caller]
    pub(crate) fn start(place: &Place, command: &mut Command) -> Self {
        let log = place.path().join("node.log");
        let stderr = File::options().create(true).append(true).open(&log).expect("a log file");
        let mut child = command.stdout(Stdio::piped()).stderr(stderr).spawn().expect("the binary starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = stdout.read_line(&mut line);
            let _ = sender.send((read.map(|_| line), stdout.into_inner()));
        });
        let first = receiver.recv_timeout(PATIENCE);
        let (Ok((Ok(line), stdout)), log_text) = (first, std::fs::read_to_string(&log).unwrap_or_default()) else {
            let _ = child.kill();
            panic!("the node printed no first line");
        };
        let listening = serde_json::from_str(&line).unwrap_or_else(|_| panic!("first line {line:?}, log:\n{log_text}"));
        Self { child, listening, log, _stdout: stdout }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listening["http"].as_str().expect("an address").parse().expect("an address")
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address())
    }

    /// Waits until the node takes traffic.
    #[track_caller]
    pub(crate) fn wait_ready(&self) {
        let deadline = Instant::now() + PATIENCE;
        let mut last = get(&self.url("/readyz"));
        while last.status != 200 {
            assert!(Instant::now() < deadline, "never ready: {last:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
            last = get(&self.url("/readyz"));
        }
    }

    /// Waits until the model is loaded.
    #[track_caller]
    pub(crate) fn wait_for_model(&self, name: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let model = get(&self.url(&format!("/v1/models/{name}")));
            if model.status == 200 && model.json()["state"] == "ready" {
                return;
            }
            assert!(Instant::now() < deadline, "never ready: {model:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.id().to_string()).status();
        assert!(sent.is_ok_and(|status| status.success()), "cannot signal the node");
    }

    /// Waits for the node to end by itself.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        wait(&mut self.child).and_then(|status| status.code())
    }

    /// Ends it as an orchestrator does, and returns its exit code.
    pub(crate) fn terminate(mut self) -> Option<i32> {
        self.signal("TERM");
        self.ended()
    }

    /// Kills it as a crash does.
    pub(crate) fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let kept = std::env::temp_dir().join(format!("parlance-node-{}.log", self.child.id()));
            let _ = std::fs::copy(&self.log, &kept);
            // libtest's capture does not matter here: the line must be seen beside the failure.
            let _ = writeln!(std::io::stderr(), "the node's log is kept at {}", kept.display());
        }
    }
}
