//! `parlance status`: what a node says of itself.

use serde_json::Value;

use super::text;
use crate::{
    client::{Api, Remote, runtime},
    failure::{Failure, one_line},
    output,
};

/// Show the state of a node
#[derive(Debug, clap::Args)]
pub(super) struct Status {
    #[command(flatten)]
    remote: Remote,
}

impl Status {
    pub(super) fn run(self) -> Result<(), Failure> {
        let api = Api::new(&self.remote)?;
        let status = runtime()?.block_on(api.json(api.get("/admin/v1/status")))?;
        if self.remote.json {
            output::json(&status);
        } else {
            show(&status);
        }
        Ok(())
    }
}

fn show(status: &Value) {
    let ready = if status["ready"] == true { "yes" } else { "no" };
    output::line(format!(
        "node        {} (boot {}, version {})",
        text(&status["node"]),
        text(&status["boot"]),
        text(&status["version"])
    ));
    output::line(format!("ready       {ready}"));
    for reason in status["reasons"].as_array().into_iter().flatten() {
        output::line(format!("            {}", text(reason)));
    }
    if status["cluster"].is_object() {
        output::line(format!("cluster     {}", cluster(&status["cluster"])));
    }
    output::line(format!("shards      {} of {}", status["shards"]["owned"], status["shards"]["total"]));
    let parked = match status["sessions"]["parked"].as_u64() {
        None | Some(0) => String::new(),
        Some(parked) => {
            format!(", {parked} parked: they failed again and again, the log says why; a restart tries them anew")
        }
    };
    output::line(format!("sessions    {} in memory{parked}", status["sessions"]["live"]));
    output::line(format!("open turns  {} durable, {} stateless", status["open_turns"], status["stateless"]));
    for dependency in status["dependencies"].as_array().into_iter().flatten() {
        let state = if dependency["up"] == true { "up" } else { "down" };
        let reason = dependency["reason"].as_str().map_or_else(String::new, |reason| format!(": {}", one_line(reason)));
        output::line(format!("{:<11} {state}{reason}", text(&dependency["name"])));
    }
    let row = |model: &Value| {
        let detail = model["detail"]
            .as_u64()
            .map_or_else(|| model["detail"].as_str().unwrap_or("").to_owned(), |percent| format!("{percent} %"));
        vec![
            text(&model["name"]),
            format!("{} {detail}", text(&model["state"])),
            text(&model["running"]),
            text(&model["waiting"]),
        ]
    };
    let rows: Vec<Vec<String>> = status["models"].as_array().into_iter().flatten().map(row).collect();
    output::line("");
    output::table(&["MODEL", "STATE", "RUNNING", "WAITING"], &rows);
}

/// Its name, and how many of its nodes stand how.
fn cluster(cluster: &Value) -> String {
    let count = |standing: &str| cluster[standing].as_u64().unwrap_or(0);
    let nodes = if count("alive") == 1 { "node" } else { "nodes" };
    let others = ["suspected", "down"].into_iter().filter(|standing| count(standing) > 0);
    let others: String = others.map(|standing| format!(", {} {standing}", count(standing))).collect();
    format!("{}: {} {nodes} alive{others}", text(&cluster["id"]), count("alive"))
}
