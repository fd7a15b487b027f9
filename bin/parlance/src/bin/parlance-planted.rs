//! The `parlance` command with the planted bugs that the crash tests choose from and must find. Never shipped.

use std::process::ExitCode;

fn main() -> ExitCode {
    parlance_cli::main()
}
