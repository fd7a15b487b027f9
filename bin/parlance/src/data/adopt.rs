//! Moves the sessions of a data directory to a node of another log, which adopts them.
//!
//! ```text
//! lock ─▶ records catch up with the log ─▶ seal ─▶ per session: parts ─▶ the node ─▶ compared ─▶ summary
//! ```
//!
//! It can be interrupted and run again: what was adopted is found, what was begun goes on.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures_util::{StreamExt as _, stream};
use parlance_actors_runtime::{
    Limits,
    adoption::{Extent, Source, SourceSession, catch_up},
};
use parlance_cluster_log::{LocalLog, LocalLogOptions, LogError};
use parlance_cluster_records::LocalRecords;
use reqwest::{RequestBuilder, header};
use serde::Serialize;
use serde_json::{Value, json};

use super::{LOG, RECORDS, check_is_data, seal};
use crate::{
    client::{Api, ApiFailure},
    failure::{Exit, Failure, chain},
    output,
};

/// Sessions on their way at once.
const AT_ONCE: usize = 8;
/// Sessions per read.
const PAGE: usize = 256;
/// How long a node that cannot take anything at the moment is asked again.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);
/// How often a difference is looked at again: rows may be on their way into the records.
const LOOKS: usize = 5;
/// Event ids that are remembered for no longer than this are not compared: they may be forgotten meanwhile.
const KEYS_LEFT_MS: u64 = 10 * 60 * 1_000;
/// How often progress is told.
const TOLD_EVERY: Duration = Duration::from_secs(1);
/// How many sessions that could not be moved are named.
const NAMED: usize = 10;

/// What came of it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Adoption {
    /// Where the sessions are now.
    pub(crate) into: String,
    /// Sessions in the directory.
    pub(crate) sessions: usize,
    /// Of these, those that were there already, from an earlier run.
    pub(crate) found: usize,
    /// Those that have changed there since they were adopted; compared as far as nothing but a deletion changes.
    pub(crate) changed: usize,
    /// Items that were compared.
    pub(crate) items: u64,
    /// Keys that were compared.
    pub(crate) keys: u64,
    /// Turns that go on there.
    pub(crate) open_turns: usize,
}

/// What came of one session.
struct Moved {
    found: bool,
    changed: bool,
    items: u64,
    keys: u64,
    open_turns: usize,
}

/// Moves everything in `data` to the node behind `api`.
///
/// # Errors
///
/// Exit code 2 if `data` is no data directory, 3 if the node cannot be reached, 1 for what keeps sessions from being moved, and for any
/// that do not compare equal.
pub(crate) async fn adopt(data: &Path, api: &Api) -> Result<Adoption, Failure> {
    check_is_data(data)?;
    let into = receiver(api).await?;
    let log = open_log(data)?;
    let opened = LocalRecords::open(data.join(RECORDS));
    let records = Arc::new(opened.map_err(|error| Failure::failed(chain(&error), "Check the directory"))?);
    let sealed = seal::read(data)?;
    if let Some(sealed) = sealed.as_ref().filter(|sealed| sealed.into != into) {
        return Err(Failure::failed(
            format!("{} was sealed for {}, and this node is of {into}", data.display(), sealed.into),
            "Name a node that the move was begun with (--server)",
        ));
    }
    catch_up(&log, &*records, &Limits::default()).await.map_err(|error| unreadable(&error))?;
    if sealed.is_none() {
        seal::Seal::now(&into).write(data)?;
    }
    let mover = Mover { api, source: Source::new(records, &Limits::default()) };
    mover.run(into).await
}

fn open_log(data: &Path) -> Result<LocalLog, Failure> {
    LocalLog::open(LocalLogOptions::new(data.join(LOG))).map_err(|error| match error {
        LogError::InUse { .. } => Failure::failed(
            format!("a process uses the data directory {}", data.display()),
            "End the node first: `kill -TERM` lets it finish its turns",
        ),
        other => Failure::failed(chain(&other), "Check the directory"),
    })
}

/// Who takes the sessions, as the seal names it.
async fn receiver(api: &Api) -> Result<String, Failure> {
    let status = api.json(api.get("/admin/v1/status")).await?;
    match (status["cluster"]["id"].as_str(), status["node"].as_str()) {
        (Some(cluster), _) => Ok(format!("cluster {cluster}")),
        (None, Some(node)) => Ok(format!("node {node}")),
        _ => Err(Failure::failed("the server tells no name", "Check that --server names a Parlance node")),
    }
}

fn unreadable(error: &dyn std::error::Error) -> Failure {
    Failure::failed(chain(error), "Check the directory; nothing of it was changed that a node would not change")
}

struct Mover<'a> {
    api: &'a Api,
    source: Source,
}

impl Mover<'_> {
    async fn run(&self, into: String) -> Result<Adoption, Failure> {
        let total = self.count().await?;
        output::note(format!("moving {total} sessions to {into}"));
        let mut done = Adoption { into, ..Adoption::default() };
        let (mut failed, mut told) = (Vec::new(), Instant::now());
        let mut after = None;
        loop {
            let page = self.source.sessions(after.as_ref(), PAGE).await.map_err(|error| unreadable(&error))?;
            let mut moves = stream::iter(&page).map(|session| self.move_one(session)).buffer_unordered(AT_ONCE);
            while let Some((session, moved)) = moves.next().await {
                done.sessions += 1;
                match moved {
                    Ok(moved) => done.add(&moved),
                    Err(failure) if failure.exit == Exit::Unreachable => return Err(failure),
                    Err(failure) => failed.push(name(session, failure)),
                }
                if told.elapsed() >= TOLD_EVERY {
                    told = Instant::now();
                    output::note(format!("{} of {total} sessions", done.sessions));
                }
            }
            drop(moves);
            match page.into_iter().next_back() {
                Some(last) => after = Some(last),
                None => break,
            }
        }
        if failed.is_empty() && done.sessions == total { Ok(done) } else { Err(not_all(failed, &done, total)) }
    }

    async fn count(&self) -> Result<usize, Failure> {
        let (mut count, mut after) = (0, None);
        loop {
            let page = self.source.sessions(after.as_ref(), PAGE).await.map_err(|error| unreadable(&error))?;
            count += page.len();
            match page.into_iter().next_back() {
                Some(last) => after = Some(last),
                None => return Ok(count),
            }
        }
    }

    async fn move_one<'s>(&self, session: &'s SourceSession) -> (&'s SourceSession, Result<Moved, Failure>) {
        (session, self.bring(session).await)
    }

    async fn bring(&self, session: &SourceSession) -> Result<Moved, Failure> {
        let mut parts = self.source.parts(session).await.map_err(|error| unreadable(&error))?;
        let digest = hex(&parts.digest());
        let found = self.ask(session, whole()).await?["adopted"] == digest.as_str();
        if !found {
            while let Some(part) = parts.next().await.map_err(|error| unreadable(&error))? {
                let post = || {
                    let request = self.api.post("/admin/v1/adoption").body(part.clone());
                    request.header(header::CONTENT_TYPE, "application/octet-stream")
                };
                self.send(post).await?;
            }
        }
        let moved = self.compared(session, &digest).await?;
        Ok(Moved { found, ..moved })
    }

    /// Makes sure that the node's records hold what ours do.
    async fn compared(&self, session: &SourceSession, digest: &str) -> Result<Moved, Failure> {
        let mut differs = String::new();
        for look in 0..LOOKS {
            if look > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            let extent = whole();
            let there = self.ask(session, extent).await?;
            if there["adopted"] != digest {
                differs = "it is not whole there".to_owned();
                continue;
            }
            let changed = there["changed"] == true;
            if there["deleted"] == true && changed {
                return Ok(Moved { found: false, changed, items: 0, keys: 0, open_turns: 0 });
            }
            match self.differs(session, &there, extent).await? {
                Ok(moved) => return Ok(Moved { changed, ..moved }),
                Err(difference) => differs = difference,
            }
            if changed {
                let lasting = Extent { items_below: session.lasting_items(), ..extent };
                let there = self.ask(session, lasting).await?;
                match self.differs(session, &there, lasting).await? {
                    Ok(moved) => return Ok(Moved { changed, ..moved }),
                    Err(difference) => differs = difference,
                }
            }
        }
        Err(Failure::failed(differs, "Look at the node's log, and run the command again"))
    }

    /// The inner error is a difference.
    async fn differs(
        &self,
        session: &SourceSession,
        there: &Value,
        extent: Extent,
    ) -> Result<Result<Moved, String>, Failure> {
        let here = self.source.compare(session, extent).await.map_err(|error| unreadable(&error))?;
        if there["digest"] == hex(&here.digest).as_str() {
            let (items, keys, open_turns) = (here.items, here.keys, session.open_turns());
            return Ok(Ok(Moved { found: false, changed: false, items, keys, open_turns }));
        }
        Ok(Err(format!(
            "it differs: {} items and {} keys here, {} and {} there",
            here.items, here.keys, there["items"], there["keys"]
        )))
    }

    /// What the node's records hold of the session.
    async fn ask(&self, session: &SourceSession, extent: Extent) -> Result<Value, Failure> {
        let body = json!({
            "session": hex(&session.key()),
            "items_below": extent.items_below,
            "keys_after_ms": extent.keys_after_ms,
        });
        self.send(|| self.api.post("/admin/v1/adoption/compare").json(&body)).await
    }

    /// Sends a request that may be repeated, until the node takes it or is asked in vain for too long.
    async fn send(&self, request: impl Fn() -> RequestBuilder) -> Result<Value, Failure> {
        let until = Instant::now() + PATIENCE;
        loop {
            let failure = match self.api.send(request()).await {
                Ok(response) => match response.json().await {
                    Ok(value) => return Ok(value),
                    Err(error) => ApiFailure::Lost(chain(&error)),
                },
                Err(failure) => failure,
            };
            let wait = match &failure {
                ApiFailure::Lost(_) => PAUSE,
                ApiFailure::Busy(_, wait) => (*wait).clamp(PAUSE, PATIENCE / 10),
                ApiFailure::Refused(_) => return Err(self.api.ended(failure)),
            };
            if Instant::now() + wait > until {
                return Err(self.api.ended(failure));
            }
            tokio::time::sleep(wait).await;
        }
    }
}

impl Adoption {
    fn add(&mut self, moved: &Moved) {
        self.found += usize::from(moved.found);
        self.changed += usize::from(moved.changed);
        self.items += moved.items;
        self.keys += moved.keys;
        self.open_turns += moved.open_turns;
    }
}

/// All items, and all keys that nobody forgets soon.
fn whole() -> Extent {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX / 2);
    Extent { items_below: i64::MAX.unsigned_abs(), keys_after_ms: now + KEYS_LEFT_MS }
}

/// A failure with the session in front, and its remedy left out, which is the same for all.
fn name(session: &SourceSession, failure: Failure) -> String {
    format!("session {}: {}", session.name(), failure.lines.join(" "))
}

fn not_all(mut failed: Vec<String>, done: &Adoption, total: usize) -> Failure {
    let left = failed.len();
    failed.truncate(NAMED);
    failed.push(format!(
        "{left} of {total} sessions were not moved to {}. Correct what is said above and run the command again; the directory keeps everything",
        done.into
    ));
    Failure { exit: Exit::Failed, lines: failed }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
