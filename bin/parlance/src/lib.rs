//! The node, the operator's commands and the terminal client of Parlance, composed into one binary.

mod allocator;
mod auth;
mod cli;
mod client;
mod cluster;
mod config;
mod data;
mod failure;
mod files;
mod logs;
mod models;
mod node;
mod output;
mod platform;
mod secret;
mod stores;
mod tls;

use std::process::ExitCode;

/// Runs the command that the process was called with.
pub fn main() -> ExitCode {
    cli::run()
}
