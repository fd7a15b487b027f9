//! From a configured model to what the node loads.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use parlance_actors_runtime::{LoadModel, ModelSpec};
use parlance_inference_engine::{
    Engine, EngineOptions, Replica, ScriptedOptions, ScriptedReplica, StepCosts, TextCodec as _,
};
use parlance_inference_model::{LoadOptions, LoadProgress, load};

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
    let mut specs = Vec::new();
    // The node's default is its first model.
    let default_first = config.models.iter().partition::<Vec<_>, _>(|(name, _)| *name == DEFAULT_MODEL);
    for (name, model) in default_first.0.into_iter().chain(default_first.1) {
        check_device(name, model)?;
        let weights = model.source.resolve(&config.model_dir)?;
        let served = served_name(name, &weights);
        if !names.insert(served.clone()) {
            return Err(Failure::usage(
                format!("two models would be served under the name `{served}`"),
                "Give each [models.NAME] another source or another name",
            ));
        }
        let load = loader(&served, weights, model)?;
        specs.extend((0..model.replicas).map(|_| ModelSpec { name: served.clone(), load: load.clone() }));
    }
    Ok(specs)
}

/// The section `default` says which model is the default; the model keeps its own name.
fn served_name(section: &str, weights: &Weights) -> String {
    match weights {
        Weights::Scripted(_) => SCRIPTED_NAME.to_owned(),
        Weights::File { name, .. } if section == DEFAULT_MODEL => name.clone(),
        Weights::File { .. } => section.to_owned(),
    }
}

fn loader(name: &str, weights: Weights, model: &ModelConfig) -> Result<LoadModel, Failure> {
    match weights {
        Weights::Scripted(reference) => {
            let options = ScriptedOptions::parse(&reference)
                .map_err(|error| Failure::usage(chain(&error), "Correct the model's reference"))?;
            Ok(Arc::new(move |_| Ok(Arc::new(ScriptedReplica::new(options.clone())) as Arc<dyn Replica>)))
        }
        Weights::File { path, .. } => {
            inspect(&path)?;
            let (options, usual) = (options(name, model), EngineOptions::default());
            let target_first_token = model.target_first_token.unwrap_or(usual.target_first_token);
            let engine = EngineOptions { target_first_token, ..usual };
            Ok(Arc::new(move |progress| load_weights(&path, &options, engine, progress)))
        }
    }
}

/// Before anything is started: a device that is not there would fail the replicas one after the other.
fn check_device(name: &str, model: &ModelConfig) -> Result<(), Failure> {
    let checked = model.device.check(model.precision);
    checked.map_err(|error| Failure { exit: Exit::Usage, lines: vec![format!("models.{name}: {}", chain(&error))] })
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

fn inspect(path: &Path) -> Result<(), Failure> {
    parlance_inference_model::inspect(path).map_err(|error| Failure { exit: Exit::Usage, lines: vec![chain(&error)] })
}

fn load_weights(
    path: &Path,
    options: &LoadOptions,
    engine: EngineOptions,
    progress: &(dyn Fn(u8) + Sync),
) -> Result<Arc<dyn Replica>, String> {
    let percent = |at: LoadProgress| (at.done_bytes.saturating_mul(100) / at.total_bytes.max(1)).min(100) as u8;
    let mut loaded = load(path, options, &|at| progress(percent(at))).map_err(|error| chain(&error))?;
    let numerics = &loaded.codec.info().numerics;
    tracing::info!(model = %options.name, numerics, weight_bytes = loaded.model.weight_bytes(), "model loaded");
    let costs = StepCosts::measure(&mut loaded.model).map_err(|error| chain(&error))?;
    Ok(Arc::new(Engine::start(Box::new(loaded.model), loaded.codec, EngineOptions { costs, ..engine })))
}
