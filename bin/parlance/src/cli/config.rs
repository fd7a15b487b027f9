//! `parlance config`: what a node would run with.

use clap::Subcommand;

use crate::{
    config::{Config, Overrides},
    failure::Failure,
    output,
};

/// Look at the configuration
#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Check the configuration and print what is in force, with where each value was set
    Check {
        #[command(flatten)]
        overrides: Overrides,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl ConfigCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self::Check { overrides, json } = self;
        let config = Config::load(&overrides)?;
        if json {
            output::json(&config.to_json());
        } else {
            output::text_now(config.to_toml());
        }
        Ok(())
    }
}
