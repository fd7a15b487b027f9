//! Tests of the local log on real files.

mod callers;
mod conformance;
mod crash;
mod disk;
mod model;
mod open;
mod support;
mod syncs;
mod trim;
