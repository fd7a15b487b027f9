//! `parlance up`: a node.

use crate::{
    config::{Config, Overrides},
    failure::Failure,
    logs, node,
};

/// Start a node
///
/// Its first line on stdout is one JSON object with the addresses that it serves; logs go to stderr.
#[derive(Debug, clap::Args)]
pub(super) struct Up {
    #[command(flatten)]
    overrides: Overrides,
    /// What to log: error, warn, info, debug, trace, or filters by module
    #[arg(long, value_name = "LEVEL", env = "PARLANCE_LOG", default_value = logs::DEFAULT_LEVEL)]
    log_level: String,
}

impl Up {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = Config::load(&self.overrides)?;
        logs::start(&self.log_level)?;
        node::run(&config)
    }
}
