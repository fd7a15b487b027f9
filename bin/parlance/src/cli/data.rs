//! `parlance data`: a node's data directory, while no node runs on it.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use crate::{
    client::{Api, Remote, runtime},
    data::{self, Adoption, BackedUp},
    failure::Failure,
    output, platform,
};

/// Move, back up and restore the data directory of a node that does not run
#[derive(Debug, Subcommand)]
pub(super) enum Data {
    Adopt(Adopt),
    Backup(Backup),
    Restore(Restore),
}

/// Move all sessions into a cluster, or to another node
///
/// The node that is named adopts them; it must run on this machine. From the first session on no node starts on the directory any more. A
/// move that was interrupted goes on when the command is run again.
#[derive(Debug, Args)]
pub(super) struct Adopt {
    /// The data directory that the sessions are in
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    #[command(flatten)]
    remote: Remote,
}

/// Copy the data directory, with a checksum of every file
#[derive(Debug, Args)]
pub(super) struct Backup {
    /// The data directory [default: the user's state directory, usually ~/.local/state/parlance]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// A new directory for the copy
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Make a data directory of a backup, if every file is what it was
#[derive(Debug, Args)]
pub(super) struct Restore {
    /// What `parlance data backup` wrote
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// The new data directory
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Data {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Adopt(adopt) => adopt.run(),
            Self::Backup(backup) => backup.run(),
            Self::Restore(restore) => restore.run(),
        }
    }
}

impl Adopt {
    fn run(self) -> Result<(), Failure> {
        let api = Api::new(&self.remote)?;
        let done = runtime()?.block_on(data::adopt(&self.from, &api))?;
        if self.remote.json {
            output::json(&done);
        } else {
            tell_adopted(&done, &self.from);
        }
        Ok(())
    }
}

fn tell_adopted(done: &Adoption, from: &Path) {
    let Adoption { into, sessions, found, changed, items, keys, open_turns } = done;
    output::line(format!(
        "{sessions} sessions of {} are with {into}, {found} of them since an earlier run.",
        from.display()
    ));
    output::line(format!("Compared and equal: {items} items, {keys} keys of requests."));
    if *open_turns > 0 {
        output::line(format!("{open_turns} turns had no answer yet and go on there."));
    }
    if *changed > 0 {
        output::line(format!("{changed} sessions have changed there since; of these, what was before was compared."));
    }
}

impl Backup {
    fn run(self) -> Result<(), Failure> {
        let usual = || {
            let remedy = "Name the directory with --data";
            platform::default_data_dir().ok_or_else(|| Failure::usage("this user has no state directory", remedy))
        };
        let data = self.data.map_or_else(usual, Ok)?;
        let done = data::back_up(&data, &self.to)?;
        tell(&done, &format!("Copied {} to {}", data.display(), self.to.display()), self.json);
        Ok(())
    }
}

impl Restore {
    fn run(self) -> Result<(), Failure> {
        let done = data::restore(&self.from, &self.data)?;
        tell(&done, &format!("Restored {} as {}", self.from.display(), self.data.display()), self.json);
        Ok(())
    }
}

fn tell(done: &BackedUp, what: &str, as_json: bool) {
    let BackedUp { files, bytes } = done;
    if as_json {
        output::json(&json!({ "files": files, "bytes": bytes }));
    } else {
        output::line(format!("{what}: {files} files, {bytes} bytes."));
    }
}
