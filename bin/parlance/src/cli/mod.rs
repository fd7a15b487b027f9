//! The command line: one file per command.

mod cert;
mod chat;
mod completions;
mod config;
mod data;
mod model;
mod nodes;
mod session;
mod shards;
mod status;
mod up;
mod wait;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde_json::Value;

use crate::{failure::Failure, output};

/// Runs chat assistants: a node that serves models and durable conversations, and the tools to talk to it
#[derive(Debug, Parser)]
#[command(name = "parlance", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 3 server unreachable.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::Up),
    Chat(chat::Chat),
    #[command(subcommand)]
    Model(model::Model),
    #[command(subcommand)]
    Session(session::Session),
    Status(status::Status),
    #[command(subcommand)]
    Nodes(nodes::Nodes),
    #[command(subcommand)]
    Shards(shards::Shards),
    #[command(subcommand)]
    Config(config::ConfigCommand),
    #[command(subcommand)]
    Cert(cert::Cert),
    #[command(subcommand)]
    Data(data::Data),
    Completions(completions::Completions),
}

/// Parses the command line and runs the command.
pub(crate) fn run() -> ExitCode {
    // clap itself ends wrong usage with code 2, and help and version with 0.
    let cli = Cli::parse();
    match execute(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::failure(&failure);
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn execute(command: Command) -> Result<(), Failure> {
    match command {
        Command::Up(up) => up.run(),
        Command::Chat(chat) => chat.run(),
        Command::Model(model) => model.run(),
        Command::Session(session) => session.run(),
        Command::Status(status) => status.run(),
        Command::Nodes(nodes) => nodes.run(),
        Command::Shards(shards) => shards.run(),
        Command::Config(config) => config.run(),
        Command::Cert(cert) => cert.run(),
        Command::Data(data) => data.run(),
        Command::Completions(completions) => completions.run(),
    }
}

/// A value of an answer as people read it.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
