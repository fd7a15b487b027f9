//! Real clusters for tests: processes that are started, broken and watched.
//!
//! * [`Cluster`] runs `parlance` processes with certificates and configurations of their own, kills, stops and pauses them, and asks them how
//!   they are. Whatever happens, they end with the test.
//! * [`network::Network`] is the fault proxy between them, and between them and their stores: cuts in one direction or both, delays, losses, resets.
//! * [`Broker`] is a Kafka broker that nodes reach through the network, one or three.
//! * [`faults`] draws a schedule of faults by a seed, does them one after the other, and has a probe see each.
//!
//! The load, the history and the checker are `parlance_loadtest`'s. Everything here is for tests: what goes wrong panics and says what the
//! test's author needs, with the ends of the nodes' logs. This crate knows the nodes' command line, configuration and HTTP, and none of their code.
//!
//! # How a test reads
//!
//! Three nodes under load, one of which is killed, in `bin/parlance/tests`:
//!
//! ```no_run
//! use std::{sync::Arc, time::Duration};
//!
//! use parlance_cluster_testkit::{Cluster, Plan, Stores, faults::{Fault, Summary, schedule}, network::Network};
//! use parlance_loadtest::{checker::pace::pace, load::{Load, OpenLoop, Patience}};
//!
//! # async fn test() {
//! let binary = option_env!("CARGO_BIN_EXE_parlance").unwrap_or("parlance"); // env! in bin/parlance
//! let cluster = Cluster::prepare(Plan {
//!     stores: Stores::fresh(&["127.0.0.1:19092"], &["127.0.0.1:19042"]),
//!     network: Some(Arc::new(Network::new(1))),
//!     ..Plan::new(binary, &[("a", "one"), ("b", "two"), ("c", "three")])
//! });
//! cluster.start_all().await;
//! let load = Load::new(cluster.targets(), Patience { silence: Duration::from_secs(5), ..Patience::default() });
//! let open = OpenLoop { rate: 50.0, sessions: 200, most_under_way: 2_000, keyless: 0.1, seed: 1 };
//! let clients = tokio::spawn(load.clone().open_loop(open));
//!
//! // One fault of a kind, or as many as the schedule has; a node can also be killed by hand: cluster.kill("a").
//! let faults = schedule(7, &[Fault::KillOwner], 1, Duration::from_secs(2)..=Duration::from_secs(3));
//! let summary = Summary::of_run(&cluster, &load, 7, &faults, |line| eprintln!("{line}")).await;
//!
//! load.stop();
//! clients.await.expect("no client panicked");
//! let report = load.check(200).await.expect("the nodes are up");
//! let (pace, late) = pace(&load.recorder().events(), &summary.troubles());
//! assert_eq!((report.violations, late), (vec![], vec![]));
//! assert_eq!(summary.unconfirmed(), Vec::<&_>::new());
//! assert!(summary.gates(&pace, None).iter().all(|gate| gate.holds()), "{}", summary.markdown(&pace, None));
//! # }
//! ```
//!
//! Where the brokers are to be cut off or to crash too, the log is in some of the test's own, behind the network:
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use parlance_cluster_testkit::{Broker, Plan, Stores, network::Network};
//! let network = Arc::new(Network::new(1));
//! let brokers: Vec<_> = Broker::start_three(&network).into_iter().map(Arc::new).collect();
//! let addresses: Vec<String> = brokers.iter().map(|broker| broker.address()).collect();
//! let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
//! let stores = Stores::fresh(&addresses, &["127.0.0.1:19042"]);
//! let nodes = [("a", "one"), ("b", "two"), ("c", "two")];
//! let plan = Plan { stores, network: Some(network), brokers, ..Plan::new("parlance", &nodes) };
//! ```
//!
//! # What cannot be done here
//!
//! Losses and delays are those that TCP lets its users see, and a connection through a cut is accepted and then silent where a real one would not
//! be accepted (see [`network`]). There are no packets of other protocols, no clocks that jump, and no disks that fill or slow down. A CQL server
//! can be cut off only where it is one, for the driver goes to all others at the addresses that it is told.

mod admin;
mod broker;
mod certificates;
mod cluster;
mod config;
pub mod faults;
pub mod network;
mod ports;
mod process;

pub use self::{
    admin::Metrics,
    broker::Broker,
    cluster::{Cluster, LOG, PATIENCE, Plan, RECORDS},
    config::Stores,
    process::ProcessState,
};
