//! The one place that writes to the terminal. Everything else that is told goes through `tracing`.
#![expect(clippy::print_stderr, reason = "this module is the binary's own output")]

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

use crate::failure::Failure;

/// Writes one line to stdout at once. A reader that went away is no error of ours: the command ends by itself.
pub(crate) fn line(text: impl std::fmt::Display) {
    text_now(format!("{text}\n"));
}

/// Writes text to stdout at once, without a line end.
pub(crate) fn text_now(text: impl std::fmt::Display) {
    let mut out = io::stdout().lock();
    let _ = write!(out, "{text}").and_then(|()| out.flush());
}

/// Writes a value to stdout as one line of JSON.
pub(crate) fn json(value: &impl Serialize) {
    line(serde_json::to_string(value).expect("our own output types have only string keys"));
}

/// Writes a note for the person at the terminal to stderr.
pub(crate) fn note(text: impl std::fmt::Display) {
    eprintln!("{text}");
}

/// Writes a note that only a person wants: not into the log of a service.
pub(crate) fn greet(text: impl std::fmt::Display) {
    if io::stderr().is_terminal() {
        note(text);
    }
}

/// Writes why a command failed to stderr, one line for each thing that is wrong.
pub(crate) fn failure(failure: &Failure) {
    for line in &failure.lines {
        eprintln!("error: {line}");
    }
}

/// Lays rows out in columns under a heading.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(heading.get(column).map(|cell| cell.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let show = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        line(padded.join("  ").trim_end());
    };
    show(&mut heading.iter().copied());
    for row in rows {
        show(&mut row.iter().map(String::as_str));
    }
}
