//! The log of a node: JSON lines on stderr, or text for a person where stderr is a terminal. It never holds message text or secrets.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::failure::Failure;

/// What is logged where nothing else is said.
pub(crate) const DEFAULT_LEVEL: &str = "info";

/// What says nothing that we do not say ourselves; what an operator asks for comes behind it, and counts.
const QUIET: &str = "ractor_cluster=error";

/// Starts logging at `level`: `error`, `warn`, `info`, `debug`, `trace`, or filters such as `info,parlance_cluster_log=debug`.
///
/// # Errors
///
/// Exit code 2 if the level is none.
pub(crate) fn start(level: &str) -> Result<(), Failure> {
    let filter = EnvFilter::builder().parse(format!("{QUIET},{level}")).map_err(|error| {
        Failure::usage(
            format!("the log level `{level}` is none: {}", crate::failure::chain(&error)),
            "Set --log-level or PARLANCE_LOG to error, warn, info, debug or trace",
        )
    })?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        subscriber.with_target(false).init();
    } else {
        subscriber.json().flatten_event(true).with_current_span(true).with_span_list(false).init();
    }
    Ok(())
}
