//! Embeddings: nothing is recorded, and they end with their client.

use std::sync::Arc;

use parlance_actors_guard::Guards;
use parlance_cluster_protocol::{Item, ModelTag, Role};
use parlance_inference_engine::{EmbeddingInput, EmbeddingReplica, EmbeddingRequest, Embeddings, EngineError, TokenId};
use tokio::{task::spawn_blocking, time::Instant};

use super::Node;
use crate::{Refusal, guarded::Reviewed};

/// Texts to embed.
#[derive(Debug, Clone)]
pub struct EmbedRequest {
    /// Whose they are.
    pub tenant: String,
    /// The model; empty is the default one.
    pub model: String,
    /// The texts.
    pub inputs: Vec<EmbeddingInput>,
    /// How many values the vectors shall have; as many as the model gives where absent.
    pub dimensions: Option<usize>,
}

/// Embedded texts.
#[derive(Debug, Clone)]
pub struct Embedded {
    /// What embedded them.
    pub model: ModelTag,
    /// Their vectors.
    pub embeddings: Embeddings,
    /// Their tokens together.
    pub tokens: usize,
}

impl Node {
    /// Embeds texts.
    ///
    /// # Errors
    ///
    /// Why there are no vectors.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the work within one step.
    pub async fn embed(&self, request: EmbedRequest) -> Result<Embedded, Refusal> {
        let EmbedRequest { tenant, model, inputs, dimensions } = request;
        let services = &self.services;
        let _permit = services.stateless.admit(&tenant)?;
        let deadline = Instant::now() + services.limits.turn_deadline;
        services.models.fetch(&model).await?;
        let replica = services.models.embedding(&model)?;
        check_dimensions(&*replica, dimensions)?;
        let inputs = inputs.into_iter().map(|input| review(&services.guards, &tenant, input));
        let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
        let texts = prepare(replica.clone(), inputs).await?;
        let tokens = texts.iter().map(Vec::len).sum();
        let request = EmbeddingRequest { texts, tenant, deadline: Some(deadline.into_std()) };
        let pending = replica.submit(request)?;
        let embeddings = pending.await.unwrap_or(Err(EngineError::Stopped))?;
        let info = replica.info();
        let model = ModelTag { name: info.name.clone(), digest: info.digest.clone(), numerics: info.numerics.clone() };
        Ok(Embedded { model, embeddings, tokens })
    }
}

/// A vector that is cut means something only where the model was trained for it, as none of those that are built in was.
fn check_dimensions(replica: &dyn EmbeddingReplica, wanted: Option<usize>) -> Result<(), Refusal> {
    let (name, dimensions) = (&replica.info().name, replica.dimensions());
    match wanted {
        Some(wanted) if wanted != dimensions => {
            let message = format!("`dimensions` must be {dimensions}: the vectors of {name} cannot be cut to {wanted}");
            Err(Refusal::InvalidValue { param: "dimensions".into(), message })
        }
        _ => Ok(()),
    }
}

/// Has the guard look at a text. Tokens hold nothing that it could read.
fn review(guards: &Guards, tenant: &str, input: EmbeddingInput) -> Result<EmbeddingInput, Refusal> {
    let EmbeddingInput::Text(text) = input else { return Ok(input) };
    let item = Item { role: Role::User, text };
    let reviewed = Reviewed::new(guards, tenant, vec![&item])?;
    let texts: Vec<&str> = reviewed.messages().into_iter().map(|item| item.text.as_str()).collect();
    Ok(EmbeddingInput::Text(texts.concat()))
}

/// Tokenises where it may take its time: a full request takes a second.
async fn prepare(
    replica: Arc<dyn EmbeddingReplica>,
    inputs: Vec<EmbeddingInput>,
) -> Result<Vec<Vec<TokenId>>, Refusal> {
    let prepared = spawn_blocking(move || replica.prepare(&inputs)).await;
    let panicked = |_| EngineError::ModelFailed("its tokenizer panicked".into());
    Ok(prepared.map_err(panicked)??)
}
