//! From a configured model to what the node loads.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use parlance_actors_runtime::{LoadModel, ModelSpec};
use parlance_inference_engine::{
    EmbeddingCodec as _, EmbeddingEngine, EmbeddingOptions, Engine, EngineOptions, ModelKind, ModelReplica,
    ScriptedOptions, ScriptedReplica, TextCodec as _,
};
use parlance_inference_model::{DeviceChoice, LoadOptions, LoadProgress, load, load_embedder};

use super::{SCRIPTED_NAME, Weights};
use crate::{
    config::{Config, DEFAULT_MODEL, ModelConfig},
    failure::{Exit, Failure, chain},
};

/// Everything that the node is to serve, the default model first. Looks at the files, and loads nothing yet.
///
/// # Errors
///
/// Exit code 2 with the model that cannot be served.
pub(crate) fn specs(config: &Config) -> Result<Vec<ModelSpec>, Failure> {
    let mut names = BTreeSet::new();
    let mut loaders = Vec::new();
    for (section, model) in &config.models {
        check_device(section, model)?;
        let weights = model.source.resolve(&config.model_dir)?;
        let served = served_name(section, &weights);
        if !names.insert(served.clone()) {
            return Err(Failure::usage(
                format!("two models would be served under the name `{served}`"),
                "Give each [models.NAME] another source or another name",
            ));
        }
        let (kind, load) = loader(&served, weights, model)?;
        let spec = ModelSpec { name: served, load };
        loaders.push(((section != DEFAULT_MODEL, kind == ModelKind::Embedding), model.replicas, spec));
    }
    // The node's default is its first model: the one that is configured as such, else one that chats.
    loaders.sort_by_key(|(place, ..)| *place);
    let specs = loaders.into_iter().flat_map(|(_, replicas, spec)| std::iter::repeat_n(spec, replicas));
    Ok(specs.collect())
}

/// The section `default` says which model is the default; the model keeps its own name.
fn served_name(section: &str, weights: &Weights) -> String {
    match weights {
        Weights::Scripted(_) => SCRIPTED_NAME.to_owned(),
        Weights::File { name, .. } if section == DEFAULT_MODEL => name.clone(),
        Weights::File { .. } => section.to_owned(),
    }
}

fn loader(name: &str, weights: Weights, model: &ModelConfig) -> Result<(ModelKind, LoadModel), Failure> {
    match weights {
        Weights::Scripted(reference) => {
            let options = ScriptedOptions::parse(&reference)
                .map_err(|error| Failure::usage(chain(&error), "Correct the model's reference"))?;
            let load =
                move |_: &(dyn Fn(u8) + Sync)| Ok(ModelReplica::Chat(Arc::new(ScriptedReplica::new(options.clone()))));
            Ok((ModelKind::Chat, Arc::new(load)))
        }
        Weights::File { path, .. } => {
            let (kind, options) = (inspect(&path)?, options(name, model));
            check_embeds(name, kind, model)?;
            let load = move |progress: &(dyn Fn(u8) + Sync)| match kind {
                ModelKind::Chat => load_chat(&path, &options, progress),
                ModelKind::Embedding => load_embedding(&path, &options, progress),
            };
            Ok((kind, Arc::new(load)))
        }
    }
}

/// Before anything is started: a device that is not there would fail the replicas one after the other.
fn check_device(name: &str, model: &ModelConfig) -> Result<(), Failure> {
    let checked = model.device.check(model.precision);
    checked.map_err(|error| Failure { exit: Exit::Usage, lines: vec![format!("models.{name}: {}", chain(&error))] })
}

/// Models that embed run on the processor.
fn check_embeds(name: &str, kind: ModelKind, model: &ModelConfig) -> Result<(), Failure> {
    if kind == ModelKind::Chat || matches!(model.device, DeviceChoice::Auto | DeviceChoice::Cpu) {
        return Ok(());
    }
    let problem = format!("models.{name}: the model embeds, and that is not done on the device {}", model.device);
    Err(Failure::usage(problem, "Set its device to auto or cpu"))
}

fn options(name: &str, model: &ModelConfig) -> LoadOptions {
    let usual = LoadOptions::new(name);
    LoadOptions {
        device: model.device,
        precision: model.precision,
        lanes: model.lanes.unwrap_or(usual.lanes),
        context_tokens: model.context_tokens.map_or(usual.context_tokens, |tokens| tokens as u32),
        ..usual
    }
}

fn inspect(path: &Path) -> Result<ModelKind, Failure> {
    parlance_inference_model::inspect(path).map_err(|error| Failure { exit: Exit::Usage, lines: vec![chain(&error)] })
}

fn load_chat(path: &Path, options: &LoadOptions, progress: &(dyn Fn(u8) + Sync)) -> Result<ModelReplica, String> {
    let loaded = load(path, options, &|at| progress(percent(at))).map_err(|error| chain(&error))?;
    let numerics = &loaded.codec.info().numerics;
    tracing::info!(model = %options.name, numerics, weight_bytes = loaded.model.weight_bytes(), "model loaded");
    let engine = Engine::start(Box::new(loaded.model), loaded.codec, EngineOptions::default());
    Ok(ModelReplica::Chat(Arc::new(engine)))
}

fn load_embedding(path: &Path, options: &LoadOptions, progress: &(dyn Fn(u8) + Sync)) -> Result<ModelReplica, String> {
    let loaded = load_embedder(path, options, &|at| progress(percent(at))).map_err(|error| chain(&error))?;
    let numerics = &loaded.codec.info().numerics;
    tracing::info!(model = %options.name, numerics, weight_bytes = loaded.model.weight_bytes(), "model loaded");
    let engine = EmbeddingEngine::start(Box::new(loaded.model), loaded.codec, EmbeddingOptions::default());
    Ok(ModelReplica::Embedding(Arc::new(engine)))
}

fn percent(at: LoadProgress) -> u8 {
    (at.done_bytes.saturating_mul(100) / at.total_bytes.max(1)).min(100) as u8
}
