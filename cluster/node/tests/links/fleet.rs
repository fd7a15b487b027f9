//! Starts nodes, tells them what to do, stops and kills them.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Condvar, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::node::{Order, Setup};

/// The variable that makes this program a node.
pub(crate) const NODE: &str = "PARLANCE_TEST_NODE";
/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(30);
const CLUSTER: &str = "test";

/// Certificates, and what nodes are started with.
pub(crate) struct Fleet {
    directory: TempDir,
}

impl Fleet {
    /// With a certificate for each name.
    pub(crate) fn of(names: &[&str]) -> Self {
        let directory = TempDir::new().expect("a directory");
        write_certificates(directory.path(), names);
        Self { directory }
    }

    pub(crate) fn setup(&self, name: &str) -> Setup {
        Setup {
            name: name.to_owned(),
            boot: 1,
            cluster: CLUSTER.to_owned(),
            certificates: self.directory.path().to_owned(),
            shows: name.to_owned(),
            versions: 1..=1,
            silence_ms: 1_250,
            stock: false,
        }
    }

    pub(crate) fn start(&self, name: &str) -> Process {
        Process::start(&self.setup(name))
    }
}

fn write_certificates(directory: &Path, names: &[&str]) {
    let mut params = CertificateParams::new(vec![]).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
    fs::write(directory.join("ca.pem"), authority.pem()).expect("it is written");
    for name in names {
        let key = KeyPair::generate().expect("a key");
        let domains = vec![format!("{CLUSTER}.parlance"), format!("{name}.{CLUSTER}.parlance")];
        let mut params = CertificateParams::new(domains).expect("parameters");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &authority).expect("a certificate");
        fs::write(directory.join(format!("{name}.pem")), certificate.pem()).expect("it is written");
        fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).expect("it is written");
    }
}

type Answers = Arc<(Mutex<HashMap<u64, Value>>, Condvar)>;

/// A running node. Dropping it kills it.
pub(crate) struct Process {
    child: Child,
    orders: Mutex<(u64, ChildStdin)>,
    answers: Answers,
    log: Arc<Mutex<String>>,
    pub(crate) address: String,
}

impl Process {
    pub(crate) fn start(setup: &Setup) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("a path"));
        command.env(NODE, json!(setup).to_string()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let (mut out, mut err) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        let log = Arc::new(Mutex::new(String::new()));
        let logged = log.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4_096];
            while let Ok(count @ 1..) = err.read(&mut buffer) {
                logged.lock().expect("unpoisoned").push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        let (addresses, address) = mpsc::channel();
        let answers = Answers::default();
        let answered = answers.clone();
        thread::spawn(move || {
            for line in BufReader::new(&mut out).lines().map_while(Result::ok) {
                let value: Value = serde_json::from_str(&line).expect("JSON");
                match value["id"].as_u64() {
                    Some(id) => {
                        answered.0.lock().expect("unpoisoned").insert(id, value["answer"].clone());
                        answered.1.notify_all();
                    }
                    None => drop(addresses.send(value["address"].as_str().expect("an address").to_owned())),
                }
            }
        });
        let Ok(address) = address.recv_timeout(LIMIT) else {
            panic!("the node does not start: {}", log.lock().expect("unpoisoned"))
        };
        let orders = Mutex::new((0, child.stdin.take().expect("piped")));
        Self { child, orders, answers, log, address }
    }

    /// Gives an order; the number under which its answer will come.
    pub(crate) fn tell(&self, order: &Order) -> u64 {
        let mut orders = self.orders.lock().expect("unpoisoned");
        orders.0 += 1;
        let id = orders.0;
        writeln!(orders.1, "{}", json!([id, order])).expect("it listens");
        id
    }

    pub(crate) fn answer(&self, id: u64) -> Value {
        let answers = self.answers.0.lock().expect("unpoisoned");
        let missing = |answers: &mut HashMap<u64, Value>| !answers.contains_key(&id);
        let (mut answers, waited) = self.answers.1.wait_timeout_while(answers, LIMIT, missing).expect("unpoisoned");
        assert!(!waited.timed_out(), "no answer; the node's log: {}", self.log());
        answers.remove(&id).expect("it is there")
    }

    pub(crate) fn ask(&self, order: &Order) -> Value {
        self.answer(self.tell(order))
    }

    pub(crate) fn dial(&self, address: &str) {
        assert_eq!(self.ask(&Order::Dial { address: address.to_owned() }), json!(true));
    }

    pub(crate) fn call(&self, to: &str, kind: u32, payload: &str, within_ms: u64) -> Value {
        self.ask(&Order::Call { to: to.to_owned(), kind, payload: payload.to_owned(), within_ms })
    }

    /// The names of nodes that it is linked with.
    pub(crate) fn links(&self) -> Vec<String> {
        let links = self.ask(&Order::Links);
        let names = links.as_array().expect("a list").iter().filter_map(|link| link["peer"].as_str());
        names.map(str::to_owned).collect()
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("unpoisoned").clone()
    }

    /// Waits until it is linked with exactly these, and tells for how long.
    pub(crate) fn until_linked(&self, with: &[&str]) -> Duration {
        self.until(|node| node.links() == with, &format!("links with {with:?}"))
    }

    pub(crate) fn until(&self, holds: impl Fn(&Self) -> bool, what: &str) -> Duration {
        let begun = Instant::now();
        while !holds(self) {
            assert!(begun.elapsed() < LIMIT, "never: {what}; the node's log: {}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
        begun.elapsed()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(status.expect("kill is there").success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
