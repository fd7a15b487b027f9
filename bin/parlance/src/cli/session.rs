//! `parlance session`: the durable conversations of a node.

use clap::Subcommand;
use serde_json::{Value, json};

use crate::{
    client::{Api, Remote, runtime},
    failure::Failure,
    output,
};

/// Sessions per request.
const PAGE: usize = 500;
/// Items per request: the interface's own bound.
const ITEMS_PAGE: usize = 100;

/// Look at conversations
#[derive(Debug, Subcommand)]
pub(super) enum Session {
    /// List conversations
    List {
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
        #[command(flatten)]
        remote: Remote,
    },
    /// Show one conversation with its messages
    Inspect {
        /// The conversation
        id: String,
        #[command(flatten)]
        remote: Remote,
    },
}

impl Session {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::List { limit, remote } => list(limit, &remote),
            Self::Inspect { id, remote } => inspect(&id, &remote),
        }
    }
}

fn list(limit: usize, remote: &Remote) -> Result<(), Failure> {
    let api = Api::new(remote)?;
    let sessions = runtime()?.block_on(pages(&api, "/admin/v1/sessions", PAGE, limit))?;
    if remote.json {
        output::json(&sessions);
        return Ok(());
    }
    let row = |session: &Value| {
        let open = session["open_turns"].as_array().map_or(0, Vec::len);
        let text = |key: &str| session[key].as_str().map_or_else(|| session[key].to_string(), str::to_owned);
        vec![text("id"), text("items"), open.to_string(), age(&session["updated_at"])]
    };
    output::table(&["SESSION", "ITEMS", "OPEN TURNS", "UPDATED"], &sessions.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

fn inspect(id: &str, remote: &Remote) -> Result<(), Failure> {
    check_id(id)?;
    let api = Api::new(remote)?;
    let (session, items) = runtime()?.block_on(async {
        let session = api.json(api.get(&format!("/v1/conversations/{id}"))).await?;
        let items = pages(&api, &format!("/v1/conversations/{id}/items?order=asc"), ITEMS_PAGE, usize::MAX).await?;
        Ok::<_, Failure>((session, items))
    })?;
    if remote.json {
        output::json(&json!({ "session": session, "items": items }));
        return Ok(());
    }
    output::line(format!(
        "session  {id}, {} items, updated {} ago",
        session["item_count"],
        age(&session["updated_at"])
    ));
    for open in session["open_responses"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        output::line(format!("open     {open}"));
    }
    for item in &items {
        let role = item["role"].as_str().unwrap_or("?");
        output::line(format!("\n{role}: {}", item_text(item)));
    }
    Ok(())
}

/// Session ids go into paths.
pub(super) fn check_id(id: &str) -> Result<(), Failure> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '-');
    if (1..=128).contains(&id.len()) && id.chars().all(allowed) {
        return Ok(());
    }
    Err(Failure::usage(format!("{id:?} is no session id"), "Use 1 to 128 of the characters A-Z a-z 0-9 . _ : -"))
}

/// The text of a message.
pub(super) fn item_text(item: &Value) -> String {
    let parts = item["content"].as_array().into_iter().flatten();
    parts.filter_map(|part| part["text"].as_str()).collect()
}

/// Reads up to `limit` objects of a list that comes in pages.
pub(super) async fn pages(api: &Api, path: &str, page: usize, limit: usize) -> Result<Vec<Value>, Failure> {
    let mut found: Vec<Value> = Vec::new();
    let mut after = None::<String>;
    while found.len() < limit {
        let separator = if path.contains('?') { '&' } else { '?' };
        let from = after.map_or_else(String::new, |after| format!("&after={after}"));
        let size = page.min(limit - found.len());
        let mut answer = api.json(api.get(&format!("{path}{separator}limit={size}{from}"))).await?;
        let data = answer["data"].as_array_mut().map(std::mem::take).unwrap_or_default();
        let (more, any) = (answer["has_more"] == true, !data.is_empty());
        found.extend(data);
        after = answer["last_id"].as_str().map(str::to_owned);
        if !more || !any || after.is_none() {
            break;
        }
    }
    Ok(found)
}

/// How long ago a time in Unix seconds was.
fn age(seconds: &Value) -> String {
    let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds.as_u64().unwrap_or(0));
    let ago = then.elapsed().unwrap_or_default().as_secs();
    match ago {
        0..120 => format!("{ago} s"),
        120..7_200 => format!("{} min", ago / 60),
        7_200..172_800 => format!("{} h", ago / 3_600),
        _ => format!("{} d", ago / 86_400),
    }
}
