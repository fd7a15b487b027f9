//! From a laptop into a cluster: two nodes over Kafka and Cassandra (`make services` starts them) adopt a node's data directory.

mod common;
mod moved;

use std::{net::TcpStream, path::PathBuf};

use common::{Node, Place, end};
use moved::{adopted, fill, kill_after_parts};
use serde_json::json;

const KAFKA: &str = "127.0.0.1:19092";
const CASSANDRA: &str = "127.0.0.1:19042";

/// The nodes' configurations, over stores that nobody has used. The second finds the first at its address.
struct Cluster {
    place: Place,
    fresh: u64,
}

impl Cluster {
    fn new() -> Self {
        for (name, address) in [("Kafka", KAFKA), ("Cassandra", CASSANDRA)] {
            assert!(TcpStream::connect(address).is_ok(), "{name} does not answer at {address}: make services");
        }
        let place = Place::new();
        place.file("password", "cassandra\n");
        for words in [&["cluster"][..], &["node", "--name", "a", "--name", "b"]] {
            let made =
                end(place.parlance().arg("cert").args(words).args(["--cluster", "chat"]).current_dir(place.path()));
            assert_eq!(made.code, Some(0), "{made:?}");
        }
        Self { place, fresh: rand::random() }
    }

    fn config(&self, name: &str, seeds: &str) -> PathBuf {
        let (here, fresh) = (self.place.path().display(), self.fresh);
        let text = format!(
            "[node]\nname = '{name}'\n[cluster]\nid = 'chat'\nlisten = '127.0.0.1:0'\nseeds = [{seeds}]\n\
             ca = '{here}/cluster-certs/ca.pem'\ncert = '{here}/cluster-certs/{name}.pem'\n\
             key = '{here}/cluster-certs/{name}.key'\n\
             [log]\nkind = 'kafka'\nbrokers = ['{KAFKA}']\ntopic_prefix = 'test-{fresh:x}'\nshards = 4\nreplication = 1\n\
             [records]\nkind = 'scylla'\ncontact_points = ['{CASSANDRA}']\nkeyspace = 'test_{fresh:x}'\nreplication = 1\n\
             user = 'cassandra'\npassword_file = '{here}/password'\n"
        );
        self.place.file(&format!("{name}.toml"), text)
    }

    fn start(&self, name: &str, seeds: &str) -> Node {
        let mut up = self.place.parlance();
        up.args(["up", "--listen", "127.0.0.1:0", "--model", common::SCRIPTED, "--data"]);
        up.arg(self.place.path().join(name)).arg("--config").arg(self.config(name, seeds));
        Node::start(&self.place, &mut up)
    }
}

#[test]
fn a_laptops_sessions_go_on_in_a_cluster() {
    let source = Place::new();
    let contents = fill(&source);
    let cluster = Cluster::new();
    let a = cluster.start("a", "");
    let seed = a.listening["cluster"].as_str().expect("an address");
    let b = cluster.start("b", &format!("'{seed}'"));
    a.wait_ready();
    b.wait_ready();
    kill_after_parts(&source, b.address(), 4);
    let done = adopted(&source, &a.url(""));
    assert_eq!((&done["into"], &done["sessions"]), (&json!("cluster chat"), &json!(contents.sessions)), "{done}");
    contents.assert_at(&b);
    end(&mut source.up()).assert_refused(1, &["was sealed on", "went to cluster chat", "--data"]);
    let again = adopted(&source, &b.url(""));
    assert_eq!(again["found"], json!(contents.sessions), "{again}");
    assert_eq!((a.terminate(), b.terminate()), (Some(0), Some(0)));
}
