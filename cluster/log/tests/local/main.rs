//! Tests of the local log on real files.

mod conformance;
mod support;
