//! The models of a running node: listed, loaded, unloaded.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    cli::text,
    client::{Api, ApiFailure, Remote, runtime},
    failure::Failure,
    models::mebibytes,
    output,
};

const MODELS: &str = "/admin/v1/models";

/// How often a node is asked how far it is.
const POLL: Duration = Duration::from_millis(100);

/// How much longer than its deadline a model may take to leave.
const UNLOAD_MARGIN: Duration = Duration::from_secs(30);

/// Have a node load a model; run it on the node's own machine
///
/// Without options the model stays as the node's configuration has it. A model that is loaded already is left alone, unless --reload
/// asks for it again: then it serves until the new one takes over, and what runs on the old one is finished.
#[derive(Debug, clap::Args)]
pub(crate) struct Load {
    /// A configured model, a fetched one, or the path of a GGUF file or directory
    #[arg(value_name = "NAME|PATH")]
    model: String,
    /// What NAME is loaded from, if not what the node knows it by
    #[arg(long, value_name = "NAME|PATH|scripted:…")]
    source: Option<String>,
    /// auto, f32, f16, bf16, int8 or int4
    #[arg(long)]
    precision: Option<String>,
    /// How many replicas serve it
    #[arg(long, value_name = "COUNT")]
    replicas: Option<usize>,
    /// Sequences in memory at once
    #[arg(long, value_name = "COUNT")]
    lanes: Option<usize>,
    /// The longest sequence
    #[arg(long, value_name = "TOKENS")]
    context_tokens: Option<usize>,
    /// Never take its memory for another model
    #[arg(long)]
    pinned: bool,
    /// Load it again where it is loaded
    #[arg(long)]
    reload: bool,
    /// Do not wait until it serves
    #[arg(long)]
    no_wait: bool,
    /// How long to wait
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout_s: u64,
    #[command(flatten)]
    remote: Remote,
}

/// Have a node take a model out of memory; run it on the node's own machine
#[derive(Debug, clap::Args)]
pub(crate) struct Unload {
    /// The model's name
    model: String,
    /// How long its requests may go on [default: the node's limits.model_drain_s]
    #[arg(long, value_name = "SECONDS")]
    deadline_s: Option<u64>,
    /// Do not wait until its memory is free
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    remote: Remote,
}

impl Load {
    pub(super) fn run(self) -> Result<(), Failure> {
        let api = Api::new(&self.remote)?;
        let body = json!({
            "model": absolute(&self.model), "source": self.source.as_deref().map(absolute),
            "precision": self.precision, "replicas": self.replicas, "lanes": self.lanes,
            "context_tokens": self.context_tokens, "pinned": self.pinned.then_some(true), "reload": self.reload,
        });
        let model = runtime()?.block_on(async {
            let begun = api.json(api.post(MODELS).json(&body)).await?;
            if self.no_wait { Ok(begun) } else { loaded(&api, begun, Duration::from_secs(self.timeout_s)).await }
        })?;
        tell(&model, self.remote.json);
        Ok(())
    }
}

impl Unload {
    pub(super) fn run(self) -> Result<(), Failure> {
        let api = Api::new(&self.remote)?;
        let deadline = self.deadline_s.map_or_else(String::new, |seconds| format!("?deadline_s={seconds}"));
        let patience = self.deadline_s.map(|seconds| Duration::from_secs(seconds) + UNLOAD_MARGIN);
        let model = runtime()?.block_on(async {
            let path = format!("{MODELS}/{}{deadline}", self.model);
            let begun = api.json(api.delete(&path)).await?;
            if self.no_wait { Ok(begun) } else { unloaded(&api, begun, patience).await }
        })?;
        tell(&model, self.remote.json);
        Ok(())
    }
}

/// Shows the models of a node.
pub(super) fn list(remote: &Remote, json: bool) -> Result<(), Failure> {
    let api = Api::new(remote)?;
    let models = runtime()?.block_on(api.json(api.get(MODELS)))?;
    if json {
        output::json(&models);
        return Ok(());
    }
    let rows: Vec<Vec<String>> = models["data"].as_array().into_iter().flatten().map(row).collect();
    output::table(&["MODEL", "STATE", "REPLICAS", "RUNNING", "WAITING", "MEMORY", ""], &rows);
    let held = mebibytes(models["memory"]["held_bytes"].as_u64().unwrap_or(0));
    let budget = models["memory"]["budget_bytes"].as_u64();
    output::line(budget.map_or_else(|| format!("\n{held} held"), |all| format!("\n{held} of {} held", mebibytes(all))));
    Ok(())
}

fn row(model: &Value) -> Vec<String> {
    let notes = [("pinned", model["pinned"] == true), ("on demand", model["preload"] == false)];
    let notes: Vec<_> = notes.into_iter().filter(|(_, is_so)| *is_so).map(|(note, _)| note).collect();
    vec![
        text(&model["id"]),
        state(model),
        format!("{} of {}", model["serving"], model["replicas"]),
        text(&model["running"]),
        text(&model["waiting"]),
        mebibytes(model["held_bytes"].as_u64().unwrap_or(0)),
        notes.join(", "),
    ]
}

/// Waits until the model serves, and says how far it is.
async fn loaded(api: &Api, begun: Value, patience: Duration) -> Result<Value, Failure> {
    let (name, until) = (text(&begun["id"]), Instant::now() + patience);
    let (mut model, mut told) = (begun, String::new());
    loop {
        match model["state"].as_str() {
            Some("loading" | "warming") => {}
            Some("ready") => return Ok(model),
            _ => {
                let reason = model["reason"].as_str().map_or_else(|| format!("it is {}", state(&model)), str::to_owned);
                let remedy = "Mend it, and load it again";
                return Err(Failure::failed(format!("`{name}` is not loaded: {reason}"), remedy));
            }
        }
        if Instant::now() > until {
            let remedy = "It goes on: see `parlance model list --server URL`";
            return Err(Failure::failed(format!("`{name}` is still {}", state(&model)), remedy));
        }
        let now = state(&model);
        if now != told {
            output::note(format!("{name}: {now}"));
            told = now;
        }
        tokio::time::sleep(POLL).await;
        model = api.json(api.get(&format!("{MODELS}/{name}"))).await?;
    }
}

/// Waits until nothing of the model is left in memory.
async fn unloaded(api: &Api, begun: Value, patience: Option<Duration>) -> Result<Value, Failure> {
    let (name, began) = (text(&begun["id"]), Instant::now());
    let mut model = begun;
    while model["state"] == "draining" {
        if patience.is_some_and(|patience| began.elapsed() > patience) {
            return Err(Failure::failed(format!("`{name}` still drains"), "See the node's log"));
        }
        tokio::time::sleep(POLL).await;
        model = match api.send(api.get(&format!("{MODELS}/{name}"))).await {
            // It was added at run time, and is gone.
            Err(ApiFailure::Refused(_)) => json!({ "id": name, "object": "model", "state": "unloaded" }),
            Err(other) => return Err(api.ended(other)),
            Ok(response) => response.json().await.unwrap_or_default(),
        };
    }
    Ok(model)
}

fn tell(model: &Value, json: bool) {
    if json {
        output::json(model);
    } else {
        output::line(format!("{} is {}", text(&model["id"]), state(model)));
    }
}

/// The state in words; the progress in whole tenths, so that it is not told too often.
fn state(model: &Value) -> String {
    let state = text(&model["state"]);
    match (model["progress"].as_u64(), model["reason"].as_str()) {
        (Some(percent), _) => format!("{state} ({} %)", percent / 10 * 10),
        (None, Some(reason)) => format!("{state}: {reason}"),
        (None, None) => state,
    }
}

/// The node's working directory is another one.
fn absolute(source: &str) -> String {
    let path = Path::new(source);
    let looks_like_a_path = source.contains('/') || source.ends_with(".gguf");
    if looks_like_a_path && path.is_relative() && path.exists() {
        return std::path::absolute(path)
            .map_or_else(|_| source.to_owned(), |path| path.to_string_lossy().into_owned());
    }
    source.to_owned()
}
