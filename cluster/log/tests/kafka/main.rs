//! The log in Kafka, with real brokers: `make services` installs them and starts the one that most tests share.
//!
//! Tests that break brokers start their own, and end them.

mod checks;
mod conformance;
mod events;
mod faults;
mod owners;
mod replicas;
mod secure;
mod support;
