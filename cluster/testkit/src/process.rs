//! One node, as a process.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{sync::oneshot, time::timeout};

/// Between two looks at a process that is to end.
const PAUSE: Duration = Duration::from_millis(5);

/// What a process is doing, as the kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessState {
    /// It runs, or could.
    Running,
    /// It was stopped by a signal.
    Stopped,
    /// There is none.
    Gone,
}

/// A started node. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    /// The first line that it printed.
    pub(crate) listening: Value,
    /// Kept open: a node that cannot print may end.
    _stdout: Option<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts a process, tells its id at once, and waits for its first line. What it logs goes to the end of `log`.
    pub(crate) async fn start(
        mut command: Command,
        log: &Path,
        patience: Duration,
        spawned: impl FnOnce(u32),
    ) -> Result<Self, String> {
        let stderr = File::options().create(true).append(true).open(log).map_err(|error| error.to_string())?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).spawn();
        let child = child.map_err(|error| format!("{command:?} does not start: {error}"))?;
        let mut process = Self { child, listening: Value::Null, _stdout: None };
        spawned(process.id());
        let mut stdout = BufReader::new(process.child.stdout.take().expect("it is piped"));
        let (sender, first) = oneshot::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = stdout.read_line(&mut line);
            // The test may have given up.
            let _ = sender.send((read.map(|_| line), stdout));
        });
        let first = timeout(patience, first).await.map_err(|_| format!("no first line within {patience:?}"))?;
        let Ok((Ok(line), stdout)) = first else { return Err("no first line".to_owned()) };
        process.listening = serde_json::from_str(&line).map_err(|_| format!("the first line is {line:?}"))?;
        process._stdout = Some(stdout);
        Ok(process)
    }

    pub(crate) fn http(&self) -> Option<SocketAddr> {
        self.listening["http"].as_str()?.parse().ok()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // It may have ended by itself.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Kills it as a crash does. Whether it lived until then.
    pub(crate) fn kill(mut self) -> bool {
        let _ = self.child.kill();
        self.child.wait().is_ok_and(|status| status.signal() == Some(Signal::KILL.as_raw()))
    }

    /// Waits for it to end by itself; nothing where it does not.
    pub(crate) async fn ended(&mut self, patience: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + patience;
        while Instant::now() < until {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            tokio::time::sleep(PAUSE).await;
        }
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process is doing.
pub(crate) fn state(pid: u32) -> ProcessState {
    // The name before it, in parentheses, may hold anything.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    match stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()) {
        Some('T' | 't') => ProcessState::Stopped,
        None | Some('Z' | 'X') => ProcessState::Gone,
        Some(_) => ProcessState::Running,
    }
}

/// Ticks of `/proc` in a second: what Linux shows to all programs, whatever its timer does.
const TICKS_PER_SECOND: u64 = 100;

/// The processor time of a process, in user and system mode, to a hundredth of a second.
pub(crate) fn cpu(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some(Duration::from_millis((ticks()? + ticks()?) * 1_000 / TICKS_PER_SECOND))
}
