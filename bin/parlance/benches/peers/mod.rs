//! Who is measured: this node, and llama.cpp's server and vLLM with the same model in several formats.

pub(crate) mod load;
mod memory;
pub(crate) mod report;
pub(crate) mod row;

use std::{
    env,
    fs::{self, File},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    common::{Node, Place, get, wait},
    streamed::model_directory,
};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const MODEL: &str = "smollm2-135m-instruct.gguf";
/// Where `.ci/services` puts peers.
const PEERS: &str = "target/services/peers";
/// Lanes: as many as there are callers at most.
const LANES: &str = "32";
/// Room of a lane, and of all of them.
const LANE_TOKENS: &str = "640";
const ALL_TOKENS: &str = "20480";
/// vLLM compiles its model at every start: minutes where others use the machine too.
const PATIENCE: Duration = Duration::from_secs(600);
/// Both peers can be told to go on past the end of the text. This node cannot; the prompts make the model go on, and the report has what
/// was counted.
const LLAMA_SWITCHES: &[(&str, bool)] = &[("ignore_eos", true), ("cache_prompt", false)];
const VLLM_SWITCHES: &[(&str, bool)] = &[("ignore_eos", true)];

/// A server that can be measured.
pub(crate) struct Subject {
    pub(crate) name: String,
    kind: Kind,
}

enum Kind {
    /// This node, with a precision and a choice of speculation.
    Parlance(&'static str, &'static str),
    /// This node on a device, in what it computes there by default.
    Device(String),
    /// llama.cpp's server, with a model file.
    Llama(PathBuf),
    /// vLLM, with a type of numbers.
    Vllm(&'static str),
}

/// A server that runs. Dropping it ends it.
pub(crate) struct Running {
    pub(crate) url: String,
    /// When it was started.
    pub(crate) began: Instant,
    /// What its requests have beside the interface that all share.
    pub(crate) switches: &'static [(&'static str, bool)],
    process: Process,
}

enum Process {
    Node(Node, #[expect(dead_code, reason = "kept as long as its node")] Place),
    Peer(Peer),
}

/// A process of somebody else's, with those that it starts. Dropping it ends them all.
struct Peer(Child);

/// Everybody who is there; with `DEVICE`, this node on that device alone.
pub(crate) fn subjects() -> Vec<Subject> {
    if let Ok(device) = env::var("DEVICE") {
        return vec![Subject { name: format!("parlance, {device}"), kind: Kind::Device(device) }];
    }
    let ours = [
        ("parlance int4", Kind::Parlance("int4", "auto")),
        ("parlance int4, speculation off", Kind::Parlance("int4", "off")),
        ("parlance int8", Kind::Parlance("int8", "auto")),
        ("parlance f32", Kind::Parlance("f32", "auto")),
    ];
    let ours = ours.map(|(name, kind)| (name.to_owned(), kind));
    let made = ["Q8_0", "Q4_0", "BF16", "F32"].map(|format| (format, peers().join(format!("formats/{format}.gguf"))));
    let files = [("Q4_1, as shipped", model_file())].into_iter().chain(made);
    let llama = files.filter(|(_, file)| llama_server().is_file() && file.is_file());
    let llama = llama.map(|(format, file)| (format!("llama.cpp {format}"), Kind::Llama(file)));
    let vllm = [("BF16", "bfloat16"), ("F32", "float32")].into_iter().filter(|_| vllm_python().is_file());
    let vllm = vllm.map(|(format, numbers)| (format!("vLLM {format}"), Kind::Vllm(numbers)));
    ours.into_iter().chain(llama).chain(vllm).map(|(name, kind)| Subject { name, kind }).collect()
}

fn peers() -> PathBuf {
    Path::new(ROOT).join(PEERS)
}

fn llama_server() -> PathBuf {
    peers().join("bin/llama-server")
}

fn vllm_python() -> PathBuf {
    peers().join("vllm/bin/python")
}

fn model_file() -> PathBuf {
    model_directory().join(MODEL)
}

impl Subject {
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self.kind, Kind::Parlance(..) | Kind::Device(_))
    }

    /// Starts it and waits until it takes requests.
    pub(crate) fn start(&self) -> Running {
        match &self.kind {
            Kind::Parlance(precision, speculation) => start_node("cpu", precision, speculation),
            Kind::Device(device) => start_node(device, "auto", "auto"),
            Kind::Llama(file) => self.start_peer(llama_command(file), LLAMA_SWITCHES),
            Kind::Vllm(numbers) => self.start_peer(vllm_command(numbers), VLLM_SWITCHES),
        }
    }

    fn start_peer(&self, mut command: Command, switches: &'static [(&'static str, bool)]) -> Running {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
        let log = peers().join(format!("{}.log", self.name));
        let output = File::create(&log).expect("a log file");
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("a second handle")).stderr(output);
        let began = Instant::now();
        let mut peer = Peer(command.spawn().expect("the peer starts"));
        let url = format!("http://127.0.0.1:{port}");
        while TcpStream::connect(("127.0.0.1", port)).is_err() || get(&format!("{url}/health")).status != 200 {
            let is_up = peer.0.try_wait().expect("our own child").is_none();
            assert!(is_up && began.elapsed() < PATIENCE, "never ready, see {}", log.display());
            thread::sleep(Duration::from_millis(10));
        }
        Running { url, began, switches, process: Process::Peer(peer) }
    }
}

fn start_node(device: &str, precision: &str, speculation: &str) -> Running {
    let place = Place::new();
    let source = fs::canonicalize(model_file()).expect("the model was fetched");
    let config = format!(
        "[models.default]\nsource = '{}'\ndevice = '{device}'\nprecision = '{precision}'\nspeculation = '{speculation}'\n\
         lanes = {LANES}\ncontext_tokens = {LANE_TOKENS}\nkept_tokens = 0\n",
        source.display()
    );
    let config = place.file("parlance.toml", config);
    let mut up = place.parlance();
    up.args(["up", "--listen", "127.0.0.1:0", "--config"]).arg(config).arg("--data").arg(place.data());
    let began = Instant::now();
    let node = Node::start(&place, &mut up);
    let url = format!("http://{}", node.address());
    // Kernels of a GPU are compiled and tuned at every start.
    while get(&format!("{url}/readyz")).status != 200 {
        assert!(began.elapsed() < PATIENCE, "never ready: {}", node.log());
        thread::sleep(Duration::from_millis(5));
    }
    Running { url, began, switches: &[], process: Process::Node(node, place) }
}

fn llama_command(file: &Path) -> Command {
    let mut command = Command::new(llama_server());
    let threads = cores().to_string();
    command.arg("-m").arg(file).args(["-np", LANES, "-c", ALL_TOKENS, "-t", &threads, "-tb", &threads]);
    command.args(["--cache-ram", "0"]);
    command
}

fn vllm_command(numbers: &str) -> Command {
    let mut command = Command::new(vllm_python());
    command.args(["-m", "vllm.entrypoints.openai.api_server", "--served-model-name", "default", "--dtype", numbers]);
    command.arg("--model").arg(peers().join("safetensors"));
    command.args(["--max-num-seqs", LANES, "--max-model-len", LANE_TOKENS, "--no-enable-prefix-caching"]);
    let cache = peers().join("vllm-cache");
    command.env("VLLM_CACHE_ROOT", &cache).env("TORCHINDUCTOR_CACHE_DIR", cache.join("inductor"));
    // Left to itself it would keep one core free, which no other subject does.
    let cores = format!("0-{}", cores() - 1);
    command.env("VLLM_CPU_OMP_THREADS_BIND", cores).env("VLLM_CPU_KVCACHE_SPACE", "2");
    command.env("LD_PRELOAD", peers().join("vllm/lib/libiomp5.so"));
    command.env("HF_HUB_OFFLINE", "1").env("VLLM_NO_USAGE_STATS", "1");
    command
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

impl Running {
    /// What it needs at most, in bytes: the peak of one process, or what several have now.
    pub(crate) fn memory_bytes(&self) -> u64 {
        match &self.process {
            Process::Node(node, _) => memory::peak_bytes(node.id()),
            Process::Peer(peer) if memory::family(peer.0.id()).len() == 1 => memory::peak_bytes(peer.0.id()),
            Process::Peer(peer) => memory::family_bytes(peer.0.id()),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let family: Vec<String> = memory::family(self.0.id()).iter().map(u32::to_string).collect();
        let _asked = Command::new("kill").arg("-TERM").arg(&family[0]).status();
        let _ended = wait(&mut self.0);
        if family.len() > 1 {
            let _rest = Command::new("kill").arg("-KILL").args(&family[1..]).stderr(Stdio::null()).status();
        }
    }
}
