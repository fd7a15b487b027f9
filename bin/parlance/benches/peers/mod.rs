//! Who is measured: this node, and llama.cpp's server with the same model in several formats.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::common::{Node, PATIENCE, Place, get};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
/// Where peers are looked for.
const PEERS: &str = "target/services/peers";
/// Lanes: as many as there are callers at most.
const LANES: &str = "32";

/// A server that can be measured.
pub(crate) struct Subject {
    pub(crate) name: String,
    kind: Kind,
}

enum Kind {
    /// This node, with a precision.
    Parlance(&'static str),
    /// llama.cpp's server, with a model file.
    Llama(PathBuf),
}

/// A server that runs. Dropping it ends it.
pub(crate) struct Running {
    pub(crate) url: String,
    pub(crate) cold_start: Duration,
    process: Process,
}

enum Process {
    Node(Node, #[expect(dead_code, reason = "kept as long as its node")] Place),
    Peer(Child),
}

/// Everybody who is there.
pub(crate) fn subjects() -> Vec<Subject> {
    let mut subjects = vec![
        Subject { name: "parlance int8".into(), kind: Kind::Parlance("int8") },
        Subject { name: "parlance f32".into(), kind: Kind::Parlance("f32") },
    ];
    let formats = [("Q4_1, as shipped", model_file()), ("Q8_0", peer("q8_0.gguf")), ("Q4_0", peer("q4_0.gguf"))];
    let present = formats.into_iter().filter(|(_, path)| path.is_file() && server().is_file());
    subjects
        .extend(present.map(|(format, path)| Subject { name: format!("llama.cpp {format}"), kind: Kind::Llama(path) }));
    subjects
}

fn peer(name: &str) -> PathBuf {
    Path::new(ROOT).join(PEERS).join(name)
}

fn server() -> PathBuf {
    peer("bin/llama-server")
}

fn model_file() -> PathBuf {
    Path::new(ROOT).join("models/smollm2-135m-instruct.gguf")
}

impl Subject {
    pub(crate) fn start(&self) -> Running {
        match &self.kind {
            Kind::Parlance(precision) => start_node(precision),
            Kind::Llama(model) => start_llama(model),
        }
    }
}

fn start_node(precision: &str) -> Running {
    let place = Place::new();
    let source = fs::canonicalize(model_file()).expect("the model was fetched");
    // Nothing is kept for later prompts, as the peers are asked to keep nothing.
    let config = format!(
        "[models.default]\nsource = '{}'\nprecision = '{precision}'\nlanes = {LANES}\nkept_tokens = 0\n",
        source.display()
    );
    let config = place.file("parlance.toml", config);
    let mut up = place.parlance();
    up.args(["up", "--listen", "127.0.0.1:0", "--config"]).arg(config).arg("--data").arg(place.data());
    let began = Instant::now();
    let node = Node::start(&place, &mut up);
    node.wait_ready();
    let (url, cold_start) = (format!("http://{}", node.address()), began.elapsed());
    Running { url, cold_start, process: Process::Node(node, place) }
}

fn start_llama(model: &Path) -> Running {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
    let mut command = Command::new(server());
    command.arg("-m").arg(model).args(["--host", "127.0.0.1", "--port", &port.to_string(), "-np", LANES]);
    // 512 tokens for each of the lanes.
    command.args(["-c", "16384", "--threads", "2"]).stdout(Stdio::null()).stderr(Stdio::null());
    let began = Instant::now();
    let child = command.spawn().expect("the peer starts");
    let url = format!("http://127.0.0.1:{port}");
    let mut running = Running { url, cold_start: Duration::ZERO, process: Process::Peer(child) };
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err()
        || get(&format!("{}/health", running.url)).status != 200
    {
        assert!(began.elapsed() < PATIENCE, "the peer never became ready");
        std::thread::sleep(Duration::from_millis(10));
    }
    running.cold_start = began.elapsed();
    running
}

impl Running {
    /// Whether it is somebody else's.
    pub(crate) fn is_peer(&self) -> bool {
        matches!(self.process, Process::Peer(_))
    }

    /// The most memory that the process ever had resident, in bytes.
    pub(crate) fn peak_bytes(&self) -> u64 {
        let id = match &self.process {
            Process::Node(node, _) => node.id(),
            Process::Peer(child) => child.id(),
        };
        let status = fs::read_to_string(format!("/proc/{id}/status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells it");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1_024
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Process::Peer(child) = &mut self.process {
            let _ended = child.kill();
            let _reaped = child.wait();
        }
    }
}
