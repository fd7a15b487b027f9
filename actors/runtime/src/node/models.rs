//! The node's models as the operator changes them.

use std::{sync::Arc, time::Duration};

use super::Node;
use crate::{ModelRefusal, ModelSpec, ModelsReport, model_manager::ManagerHandle};

/// Makes a model of an operator's words. May read the model's files; the reason of a failure is for the operator.
pub type ModelSources = Arc<dyn Fn(&ModelOrder) -> Result<ModelSpec, String> + Send + Sync>;

/// What an operator wants loaded. What is left open stays as the configuration has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModelOrder {
    /// The name that it is served under, or an alias.
    pub model: String,
    /// Where it comes from.
    pub source: Option<String>,
    /// In which numbers it computes.
    pub precision: Option<String>,
    /// How many replicas serve it.
    pub replicas: Option<usize>,
    /// Sequences in memory at once.
    pub lanes: Option<usize>,
    /// The longest sequence.
    pub context_tokens: Option<usize>,
    /// Whether its memory is never taken for another model.
    pub pinned: Option<bool>,
}

impl ModelOrder {
    /// Whether it says more than a name.
    fn has_settings(&self) -> bool {
        *self != Self { model: self.model.clone(), ..Self::default() }
    }
}

impl Node {
    /// Decides on loading a model, which then happens in the background; with `reload` even where it is loaded: then it goes on serving
    /// until the new one takes over. Returns the name that it is served under.
    ///
    /// # Errors
    ///
    /// Why it is not loaded.
    pub async fn load_model(&self, order: ModelOrder, reload: bool) -> Result<String, ModelRefusal> {
        let known = self.models().canonical_name(&order.model).ok();
        let plain = !order.has_settings();
        let name = match known {
            Some(name) if plain => return self.manager()?.load(name.clone(), None, reload).await.map(|()| name),
            known => known.unwrap_or_else(|| order.model.clone()),
        };
        let spec = self.make_spec(ModelOrder { model: name, ..order }).await?;
        let name = spec.name.clone();
        self.manager()?.load(name.clone(), Some(spec), reload).await.map(|()| name)
    }

    async fn make_spec(&self, order: ModelOrder) -> Result<ModelSpec, ModelRefusal> {
        let Some(sources) = self.services.sources.clone() else {
            let known: Vec<String> = self.models().list().into_iter().map(|listing| listing.name).collect();
            return Err(ModelRefusal::NotFound { name: order.model, known: known.join(", ") });
        };
        let made = tokio::task::spawn_blocking(move || sources(&order)).await;
        made.map_err(|_ended| ModelRefusal::Unavailable)?.map_err(ModelRefusal::Unusable)
    }

    /// Takes a model out of service. Requests that run on it have until `deadline` to end; then its memory is free. Returns the name
    /// that it was served under.
    ///
    /// # Errors
    ///
    /// Why it stays.
    pub async fn unload_model(&self, model: &str, deadline: Option<Duration>) -> Result<String, ModelRefusal> {
        let name = self.models().canonical_name(model).unwrap_or_else(|_| model.to_owned());
        let deadline = deadline.unwrap_or(self.services.limits.model_drain);
        self.manager()?.unload(name.clone(), deadline).await.map(|()| name)
    }

    /// All models and what they take.
    ///
    /// # Errors
    ///
    /// [`ModelRefusal::Unavailable`].
    pub async fn report_models(&self) -> Result<ModelsReport, ModelRefusal> {
        self.manager()?.report().await
    }

    fn manager(&self) -> Result<ManagerHandle, ModelRefusal> {
        self.services.models.manager().ok_or(ModelRefusal::Unavailable)
    }
}
