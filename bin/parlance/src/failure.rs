//! How a command fails: an exit code, one line on stderr, and what to do about it.

use std::fmt;

/// The exit codes of every command. Fixed: scripts read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The command was right and could not be carried out.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// The server could not be reached.
    Unreachable = 3,
}

/// Why a command ends without success.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) exit: Exit,
    /// One line for each thing that is wrong, each with its remedy. Never empty.
    pub(crate) lines: Vec<String>,
}

impl Failure {
    /// The command could not be carried out. `remedy` is a sentence.
    pub(crate) fn failed(message: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        Self::new(Exit::Failed, message, remedy)
    }

    /// The command line or the configuration is wrong.
    pub(crate) fn usage(message: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, message, remedy)
    }

    /// The server could not be reached.
    pub(crate) fn unreachable(message: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        Self::new(Exit::Unreachable, message, remedy)
    }

    fn new(exit: Exit, message: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        Self { exit, lines: vec![format!("{message}. {remedy}")] }
    }
}

/// The causes of an error on one line. Repeated texts are left out, as some libraries print their source themselves.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = one_line(&error.to_string());
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = one_line(&cause.to_string());
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Keeps a message on one line, whatever a library or a server put into it.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
