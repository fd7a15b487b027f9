//! Progress that a person sees growing: a bar on a terminal, a plain line every tenth of the way elsewhere.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output;

/// Where the total is not known, a plain line is printed this often.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// One transfer of bytes.
pub(super) struct Progress {
    label: String,
    total: Option<u64>,
    bar: Option<ProgressBar>,
    told_tenths: u64,
    told_at: Instant,
}

impl Progress {
    /// Starts to show a transfer of `total` bytes, where that is known.
    pub(super) fn start(label: &str, total: Option<u64>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| bar(label, total));
        if bar.is_none() {
            output::note(format!("{label} …"));
        }
        Self { label: label.to_owned(), total, bar, told_tenths: 0, told_at: Instant::now() }
    }

    /// Shows that `bytes` are there.
    pub(super) fn at(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            return bar.set_position(bytes);
        }
        let tenths = self.total.map_or(0, |total| bytes.min(total) * 10 / total.max(1));
        let due = match self.total {
            Some(_) => tenths > self.told_tenths && tenths < 10,
            None => self.told_at.elapsed() >= PLAIN_INTERVAL,
        };
        if due {
            let percent = self.total.map_or_else(String::new, |_| format!(" ({} %)", tenths * 10));
            output::note(format!("{}: {}{percent}", self.label, mebibytes(bytes)));
            (self.told_tenths, self.told_at) = (tenths, Instant::now());
        }
    }

    /// Ends the transfer.
    pub(super) fn done(self) {
        match &self.bar {
            Some(bar) => bar.finish(),
            None => output::note(format!("{}: done", self.label)),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // A failure's own line must not be written into the bar.
        if let Some(bar) = self.bar.take().filter(|bar| !bar.is_finished()) {
            bar.abandon();
        }
    }
}

fn bar(label: &str, total: Option<u64>) -> ProgressBar {
    let template = match total {
        Some(_) => "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        None => "{msg} {spinner} {bytes} {bytes_per_sec}",
    };
    let style = ProgressStyle::with_template(template).expect("the template is a constant");
    let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new).with_style(style.progress_chars("=> "));
    bar.set_draw_target(ProgressDrawTarget::stderr());
    bar.set_message(label.to_owned());
    bar
}

/// A size for people.
pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1024.0 * 1024.0))
}
