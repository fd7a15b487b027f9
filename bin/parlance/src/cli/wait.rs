//! Waits until a node has done what it was asked for.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{client::Api, failure::Failure, output};

/// How often a node is asked how far it is.
const POLL: Duration = Duration::from_millis(200);

/// Whether a command waits until what it asked for is done.
#[derive(Debug, clap::Args)]
pub(super) struct Wait {
    /// Wait until it is done
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, value_name = "SECONDS", default_value_t = 120, requires = "wait")]
    timeout_s: u64,
}

/// How far something is.
pub(super) enum Progress {
    /// It is done; this is what came of it.
    Done(Value),
    /// What is left, for people: "PLACE still …".
    Left(String),
}

impl Wait {
    /// Reads `path` again and again until `look` finds in it that it is done, and tells each time that something else is left. Without `--wait`
    /// the answer is `begun`, at once.
    ///
    /// # Errors
    ///
    /// Exit code 1 with what is left when the time is over, and what `look` and the server say.
    pub(super) async fn until(
        &self,
        begun: Value,
        api: &Api,
        path: &str,
        look: impl Fn(&Value) -> Result<Progress, Failure>,
    ) -> Result<Value, Failure> {
        if !self.wait {
            return Ok(begun);
        }
        let until = Instant::now() + Duration::from_secs(self.timeout_s);
        let mut told = String::new();
        loop {
            let left = match look(&api.json(api.get(path)).await?)? {
                Progress::Done(value) => return Ok(value),
                Progress::Left(left) => left,
            };
            if Instant::now() >= until {
                let remedy = "It goes on: see `parlance shards list`";
                return Err(Failure::failed(format!("{left} after {} s", self.timeout_s), remedy));
            }
            if left != told {
                output::note(&left);
                told = left;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// The one in a list that bears `name` under `key`.
pub(super) fn find<'a>(list: &'a Value, key: &str, name: &Value) -> Option<&'a Value> {
    list["data"].as_array()?.iter().find(|item| item[key] == *name)
}
