//! `parlance nodes`: the nodes of a cluster, as one of them sees them.

use clap::Subcommand;
use serde_json::{Value, json};

use super::{
    text,
    wait::{Progress, Wait, find},
};
use crate::{
    client::{Api, Remote, runtime},
    failure::Failure,
    output,
};

const NODES: &str = "/admin/v1/nodes";

/// Look at the nodes of a cluster, and take them out of service and back
#[derive(Debug, Subcommand)]
pub(super) enum Nodes {
    /// List the nodes that a node knows
    List {
        #[command(flatten)]
        remote: Remote,
    },
    /// Have a node hand its shards to the others and get none, for instance before it is stopped
    Drain {
        /// The node
        name: String,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        remote: Remote,
    },
    /// Have a node that drains take shards again
    Undrain {
        /// The node
        name: String,
        #[command(flatten)]
        remote: Remote,
    },
}

impl Nodes {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::List { remote } => list(&remote),
            Self::Drain { name, wait, remote } => drain(&name, &wait, &remote),
            Self::Undrain { name, remote } => undrain(&name, &remote),
        }
    }
}

fn list(remote: &Remote) -> Result<(), Failure> {
    let api = Api::new(remote)?;
    let nodes = runtime()?.block_on(api.json(api.get(NODES)))?;
    if remote.json {
        output::json(&nodes);
        return Ok(());
    }
    let rows: Vec<Vec<String>> = nodes["data"].as_array().into_iter().flatten().map(row).collect();
    output::table(&["NODE", "STANDING", "DUTY", "SHARDS", "ZONE", "WEIGHT", "ADDRESS", "BOOT", ""], &rows);
    Ok(())
}

fn row(node: &Value) -> Vec<String> {
    let note = match (node["self"] == true, node["linked"] == true) {
        (true, _) => "answers this",
        (false, true) => "",
        (false, false) => "no link",
    };
    let cells = ["name", "standing", "duty", "shards", "zone", "weight", "address", "boot"];
    let cell = |key: &&str| if node[key].is_null() { "-".to_owned() } else { text(&node[key]) };
    cells.iter().map(cell).chain([note.to_owned()]).collect()
}

fn drain(name: &str, wait: &Wait, remote: &Remote) -> Result<(), Failure> {
    check_name(name)?;
    let api = Api::new(remote)?;
    let node = runtime()?.block_on(async {
        let begun = api.json(api.post(&format!("{NODES}/{name}/drain"))).await?;
        wait.until(begun, &api, NODES, |nodes| drained(name, nodes)).await
    })?;
    match (remote.json, node["shards"] == 0) {
        (true, _) => output::json(&node),
        (false, true) => output::line(format!("{name} is drained: it owns no shard")),
        (false, false) => output::line(format!("{name} is {}", text(&node["duty"]))),
    }
    Ok(())
}

/// How far the node is. One that died meanwhile is waited for like any other: the others take its shards over.
fn drained(name: &str, nodes: &Value) -> Result<Progress, Failure> {
    let Some(node) = find(nodes, "name", &json!(name)) else {
        return Err(Failure::failed(
            format!("the server knows no node `{name}` any more"),
            "See `parlance nodes list`",
        ));
    };
    Ok(match node["shards"].as_u64() {
        Some(0) => Progress::Done(node.clone()),
        Some(1) => Progress::Left(format!("{name} still owns 1 shard")),
        _ => Progress::Left(format!("{name} still owns {} shards", node["shards"])),
    })
}

fn undrain(name: &str, remote: &Remote) -> Result<(), Failure> {
    check_name(name)?;
    let api = Api::new(remote)?;
    let node = runtime()?.block_on(api.json(api.post(&format!("{NODES}/{name}/undrain"))))?;
    if remote.json {
        output::json(&node);
    } else {
        output::line(format!("{name} is {}", text(&node["duty"])));
    }
    Ok(())
}

/// Names of nodes go into paths.
pub(super) fn check_name(name: &str) -> Result<(), Failure> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=64).contains(&name.len()) && name.chars().all(allowed) && !name.trim_matches('.').is_empty() {
        return Ok(());
    }
    Err(Failure::usage(format!("{name:?} is no node's name"), "`parlance nodes list` shows the names"))
}
