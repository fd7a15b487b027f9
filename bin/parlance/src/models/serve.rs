//! From a configured model to what the node loads.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use parlance_actors_runtime::{LoadModel, LoadProgress, ModelOrder, ModelSources, ModelSpec};
use parlance_inference_engine::{
    EmbeddingCodec as _, EmbeddingEngine, EmbeddingOptions, Engine, EngineOptions, ModelKind, ModelReplica,
    Replica as _, ScriptedOptions, ScriptedReplica, StepCosts, TextCodec as _,
};
use parlance_inference_model::{DeviceChoice, LoadOptions, LoadStage, load, load_embedder};

use super::{ModelSource, SCRIPTED_NAME, Weights, mebibytes};
use crate::{
    config::{Config, DEFAULT_MODEL, ModelConfig},
    failure::{Exit, Failure, chain},
};

/// A schema as simple as any.
const ANY_OBJECT: &str = r#"{"type":"object"}"#;

/// What reports the progress of a loading.
type Report<'a> = &'a (dyn Fn(LoadProgress) + Sync);

/// Everything that the node is to serve, the default model first. Looks at the files, and loads nothing yet.
///
/// # Errors
///
/// Exit code 2 with the model that cannot be served, or if those that are loaded at the start do not fit together.
pub(crate) fn specs(config: &Config) -> Result<Vec<ModelSpec>, Failure> {
    let mut specs: Vec<ModelSpec> = Vec::new();
    let mut models = Vec::new();
    for (name, model) in &config.models {
        check_device(name, model)?;
        let weights = model.source.resolve(&config.model_dir)?;
        let embeds = kind(&weights)? == ModelKind::Embedding;
        models.push(((name != DEFAULT_MODEL, embeds), name, weights, model));
    }
    // The node's default is its first model: the one that is configured as such, else one that chats.
    models.sort_by_key(|(place, ..)| *place);
    for (_, name, weights, model) in models {
        let spec = spec(served_name(name, &weights), weights, model)?;
        if specs.iter().any(|other| other.name == spec.name) {
            return Err(Failure::usage(
                format!("two models would be served under the name `{}`", spec.name),
                "Give each [models.NAME] another source or another name",
            ));
        }
        specs.push(spec);
    }
    check_memory(&specs, config.limits.memory.budget_bytes)?;
    Ok(specs)
}

fn check_memory(specs: &[ModelSpec], budget: u64) -> Result<(), Failure> {
    let at_start: Vec<_> = specs.iter().filter(|spec| spec.preload || spec.pinned).collect();
    if at_start.iter().map(|spec| spec.bytes()).sum::<u64>() <= budget {
        return Ok(());
    }
    let needs: Vec<_> = at_start.iter().map(|spec| format!("`{}` {}", spec.name, mebibytes(spec.bytes()))).collect();
    Err(Failure::usage(
        format!("the models do not fit into {}: {}", mebibytes(budget), needs.join(", ")),
        "Give them fewer lanes or context_tokens, set preload = false for some, or raise limits.model_memory_mib",
    ))
}

/// What makes models of an operator's words while the node runs: what is left open stays as the configuration has it.
pub(crate) fn sources(config: &Config) -> ModelSources {
    let (models, model_dir) = (config.models.clone(), config.model_dir.clone());
    Arc::new(move |order| ordered(order, &models, &model_dir).map_err(|failure| failure.lines.join("; ")))
}

fn ordered(order: &ModelOrder, models: &BTreeMap<String, ModelConfig>, model_dir: &Path) -> Result<ModelSpec, Failure> {
    let is_it = |section: &String, model: &ModelConfig| {
        model.source.resolve(model_dir).is_ok_and(|weights| served_name(section, &weights) == order.model)
    };
    let configured = models.iter().find(|(section, model)| is_it(section, model)).map(|(_, model)| model.clone());
    // A name that nobody gave a source is one.
    let named = configured.is_some() || order.source.is_some();
    let written = order.source.as_ref().or((!named).then_some(&order.model));
    let source = written.map(|text| parse::<ModelSource>(text, "source")).transpose()?;
    let mut model = match (configured, source) {
        (Some(model), None) => model,
        (Some(model), Some(source)) => ModelConfig { source, ..model },
        (None, source) => ModelConfig::of(source.unwrap_or_else(|| ModelSource::Named(order.model.clone()))),
    };
    if let Some(precision) = &order.precision {
        model.precision = parse(precision, "precision")?;
    }
    model.replicas = order.replicas.unwrap_or(model.replicas);
    model.pinned = order.pinned.unwrap_or(model.pinned);
    model.lanes = order.lanes.or(model.lanes);
    model.context_tokens = order.context_tokens.or(model.context_tokens);
    check_device(&order.model, &model)?;
    let weights = model.source.resolve(model_dir)?;
    let name = if named { order.model.clone() } else { served_name(DEFAULT_MODEL, &weights) };
    spec(name, weights, &model)
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str, what: &str) -> Result<T, Failure> {
    text.parse().map_err(|problem| Failure::usage(format!("the {what} `{text}` {problem}"), "Correct it"))
}

fn spec(name: String, weights: Weights, model: &ModelConfig) -> Result<ModelSpec, Failure> {
    let (load, replica_bytes) = loader(&name, weights, model)?;
    let replicas = model.replicas;
    Ok(ModelSpec { name, load, replicas, replica_bytes, pinned: model.pinned, preload: model.preload })
}

/// The section `default` says which model is the default; the model keeps its own name.
fn served_name(section: &str, weights: &Weights) -> String {
    match weights {
        Weights::Scripted(_) => SCRIPTED_NAME.to_owned(),
        Weights::File { name, .. } if section == DEFAULT_MODEL => name.clone(),
        Weights::File { .. } => section.to_owned(),
    }
}

/// How one replica is loaded, and what it takes.
fn loader(name: &str, weights: Weights, model: &ModelConfig) -> Result<(LoadModel, u64), Failure> {
    match weights {
        Weights::Scripted(_) if name != SCRIPTED_NAME => Err(Failure::usage(
            format!("the scripted model cannot be served as `{name}`"),
            format!("Leave the name out: it is served as `{SCRIPTED_NAME}`"),
        )),
        Weights::Scripted(reference) => {
            let options = ScriptedOptions::parse(&reference)
                .map_err(|error| Failure::usage(chain(&error), "Correct the model's reference"))?;
            let load = move |_: Report<'_>| Ok(ModelReplica::Chat(Arc::new(ScriptedReplica::new(options.clone()))));
            Ok((Arc::new(load), 0))
        }
        Weights::File { path, .. } => {
            let (options, engine) = (options(name, model), engine_options(model));
            let kind = kind_of(&path)?;
            check_embeds(name, kind, model)?;
            let footprint = parlance_inference_model::inspect(&path, &options).map_err(|error| unusable(&error))?;
            let load = move |progress: Report<'_>| match kind {
                ModelKind::Chat => load_chat(&path, &options, engine, progress),
                ModelKind::Embedding => load_embedding(&path, &options, progress),
            };
            Ok((Arc::new(load), footprint.total()))
        }
    }
}

fn unusable(error: &parlance_inference_model::ModelError) -> Failure {
    Failure { exit: Exit::Usage, lines: vec![chain(error)] }
}

/// What a model is for.
fn kind(weights: &Weights) -> Result<ModelKind, Failure> {
    match weights {
        Weights::Scripted(_) => Ok(ModelKind::Chat),
        Weights::File { path, .. } => kind_of(path),
    }
}

fn kind_of(path: &Path) -> Result<ModelKind, Failure> {
    parlance_inference_model::kind(path).map_err(|error| unusable(&error))
}

/// Models that embed run on the processor.
fn check_embeds(name: &str, kind: ModelKind, model: &ModelConfig) -> Result<(), Failure> {
    if kind == ModelKind::Chat || matches!(model.device, DeviceChoice::Auto | DeviceChoice::Cpu) {
        return Ok(());
    }
    let problem = format!("models.{name}: the model embeds, and that is not done on the device {}", model.device);
    Err(Failure::usage(problem, "Set its device to auto or cpu"))
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
        cache_tokens: model.cache_tokens,
        ..usual
    }
}

fn engine_options(model: &ModelConfig) -> EngineOptions {
    let usual = EngineOptions::default();
    EngineOptions {
        kept_tokens: model.kept_tokens,
        speculation: model.speculation,
        target_first_token: model.target_first_token.unwrap_or(usual.target_first_token),
        ..usual
    }
}

fn load_chat(
    path: &Path,
    options: &LoadOptions,
    engine: EngineOptions,
    progress: Report<'_>,
) -> Result<ModelReplica, String> {
    let mut loaded = load(path, options, &|at| progress(reported(at))).map_err(|error| chain(&error))?;
    let numerics = &loaded.codec.info().numerics;
    let (weight_bytes, cache_bytes) = (loaded.model.weight_bytes(), loaded.model.cache_bytes());
    tracing::info!(model = %options.name, numerics, weight_bytes, most_cache_bytes = cache_bytes, "model loaded");
    let costs = StepCosts::measure(&mut loaded.model).map_err(|error| chain(&error))?;
    let engine = Engine::start(Box::new(loaded.model), loaded.codec, EngineOptions { costs, ..engine });
    // The first reply in JSON shall not wait for the tables of the whole vocabulary.
    if let Err(error) = engine.compile(ANY_OBJECT) {
        tracing::warn!(model = %options.name, %error, "no replies in JSON");
    }
    Ok(ModelReplica::Chat(Arc::new(engine)))
}

fn load_embedding(path: &Path, options: &LoadOptions, progress: Report<'_>) -> Result<ModelReplica, String> {
    let loaded = load_embedder(path, options, &|at| progress(reported(at))).map_err(|error| chain(&error))?;
    let numerics = &loaded.codec.info().numerics;
    tracing::info!(model = %options.name, numerics, weight_bytes = loaded.model.weight_bytes(), "model loaded");
    let engine = EmbeddingEngine::start(Box::new(loaded.model), loaded.codec, EmbeddingOptions::default());
    Ok(ModelReplica::Embedding(Arc::new(engine)))
}

fn reported(at: parlance_inference_model::LoadProgress) -> LoadProgress {
    let percent = (at.done_bytes.saturating_mul(100) / at.total_bytes.max(1)).min(100) as u8;
    match at.stage {
        LoadStage::Description | LoadStage::Weights => LoadProgress::Reading { percent },
        LoadStage::WarmUp => LoadProgress::Warming,
    }
}
