//! `parlance shards`: which node owns which part of the sessions.

use clap::Subcommand;
use serde_json::{Value, json};

use super::{
    nodes::check_name,
    text,
    wait::{Progress, Wait, find},
};
use crate::{
    client::{Api, Remote, runtime},
    failure::Failure,
    output,
};

const SHARDS: &str = "/admin/v1/shards";

/// Look at the shards of the log, and move them between nodes
#[derive(Debug, Subcommand)]
pub(super) enum Shards {
    /// List the shards with their owners and standbys
    List {
        #[command(flatten)]
        remote: Remote,
    },
    /// Have a shard's owner hand it to another node
    Move {
        /// The shard's number
        shard: u32,
        /// The node that shall own it
        #[arg(long, value_name = "NODE")]
        to: String,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        remote: Remote,
    },
}

impl Shards {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::List { remote } => list(&remote),
            Self::Move { shard, to, wait, remote } => move_to(shard, &to, &wait, &remote),
        }
    }
}

fn list(remote: &Remote) -> Result<(), Failure> {
    let api = Api::new(remote)?;
    let shards = runtime()?.block_on(api.json(api.get(SHARDS)))?;
    if remote.json {
        output::json(&shards);
        return Ok(());
    }
    let rows: Vec<Vec<String>> = shards["data"].as_array().into_iter().flatten().map(row).collect();
    output::table(&["SHARD", "OWNER", "STATE", "STANDBY"], &rows);
    Ok(())
}

fn row(shard: &Value) -> Vec<String> {
    let standby = match (shard["standby"].as_str(), shard["warm"] == true) {
        (None, _) => "-".to_owned(),
        (Some(standby), true) => format!("{standby} (warm)"),
        (Some(standby), false) => standby.to_owned(),
    };
    vec![text(&shard["shard"]), owner(shard), text(&shard["state"]), standby]
}

fn owner(shard: &Value) -> String {
    shard["owner"].as_str().unwrap_or("-").to_owned()
}

fn move_to(number: u32, to: &str, wait: &Wait, remote: &Remote) -> Result<(), Failure> {
    check_name(to)?;
    let api = Api::new(remote)?;
    let shard = runtime()?.block_on(async {
        let begun = api.json(api.post(&format!("{SHARDS}/{number}/move")).json(&json!({ "to": to }))).await?;
        wait.until(begun, &api, SHARDS, |shards| moved(number, to, shards)).await
    })?;
    match (remote.json, is_at(&shard, to)) {
        (true, _) => output::json(&shard),
        (false, true) => output::line(format!("shard {number} is with {to}")),
        (false, false) => output::line(format!("shard {number} is to move to {to}")),
    }
    Ok(())
}

fn is_at(shard: &Value, node: &str) -> bool {
    shard["owner"] == node && shard["state"] == "owned"
}

fn moved(number: u32, to: &str, shards: &Value) -> Result<Progress, Failure> {
    let Some(shard) = find(shards, "shard", &json!(number)) else {
        return Err(Failure::failed(format!("the server lists no shard {number}"), "See `parlance shards list`"));
    };
    Ok(match is_at(shard, to) {
        true => Progress::Done(shard.clone()),
        false => {
            let (state, owner) = (text(&shard["state"]), owner(shard));
            Progress::Left(format!("shard {number} is still {state}, its owner {owner}"))
        }
    })
}
