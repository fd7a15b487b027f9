//! Tests of the local log on real files.

mod conformance;
mod crash;
mod disk;
mod model;
mod open;
mod support;
mod syncs;
mod trim;
