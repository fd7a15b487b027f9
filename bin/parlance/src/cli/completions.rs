//! `parlance completions`: the shell's own completion script.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::{failure::Failure, output};

/// Print a completion script for a shell
///
/// For example: `parlance completions bash > ~/.local/share/bash-completion/completions/parlance`
#[derive(Debug, clap::Args)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::Cli::command(), "parlance", &mut script);
        output::text_now(String::from_utf8_lossy(&script));
        Ok(())
    }
}
