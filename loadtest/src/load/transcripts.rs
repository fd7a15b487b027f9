//! Reads what is recorded in the end.

use std::time::{Duration, Instant};

use serde_json::Value;
use thiserror::Error;

use super::client::Client;
use crate::checker::{RecordedItem, Transcript};

/// A node that was just healed may refuse for a while.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);
/// Pages of a session, of a hundred items each.
const MAX_PAGES: usize = 10_000;

/// A session's record could not be read from any node.
#[derive(Debug, Error)]
#[error("cannot read the record of {session}: {reason}")]
pub struct TranscriptError {
    session: String,
    reason: String,
}

impl Client {
    /// A session's record; empty where nothing was ever accepted in it.
    pub(super) async fn transcript(&self, session: &str) -> Result<Transcript, TranscriptError> {
        let until = Instant::now() + PATIENCE;
        let mut node = 0;
        loop {
            match self.read_items(session, node).await {
                Ok(items) => return Ok(Transcript { session: session.to_owned(), items }),
                Err(reason) if Instant::now() > until => {
                    return Err(TranscriptError { session: session.to_owned(), reason });
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
            node += 1;
        }
    }

    async fn read_items(&self, session: &str, node: usize) -> Result<Vec<RecordedItem>, String> {
        let mut items = Vec::new();
        let mut after = String::new();
        for _ in 0..MAX_PAGES {
            let path = format!("/v1/conversations/{session}/items?order=asc&limit=100{after}");
            let page = self.get_json(node, &path).await?;
            if page.is_null() {
                return Ok(items);
            }
            let list = page["data"].as_array().ok_or_else(|| format!("not a page of items: {page}"))?;
            for item in list {
                items.push(recorded(item).ok_or_else(|| format!("not an item: {item}"))?);
            }
            if page["has_more"] != true {
                return Ok(items);
            }
            after = format!("&after={}", page["last_id"].as_str().ok_or("a page has no last id")?);
        }
        Err("the record has no end".to_owned())
    }
}

/// One listed item; the response that it belongs to bears its turn's id.
fn recorded(item: &Value) -> Option<RecordedItem> {
    let text = item["content"][0]["text"].as_str()?.to_owned();
    let role = item["role"].as_str()?.to_owned();
    let turn = item["response_id"].as_str().and_then(|id| id.strip_prefix("resp_")).unwrap_or_default().to_owned();
    let error = item["error"].as_str().map(str::to_owned);
    Some(RecordedItem { role, text, turn, error })
}
