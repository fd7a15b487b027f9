use parlance_inference_engine::EngineError;
use thiserror::Error;

/// Why a turn did not reach a replica.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum GatewayError {
    /// No model has this name. The caller must choose another.
    #[error("there is no model `{name}`; available: {}", list(available))]
    ModelNotFound {
        /// The name as it was asked for.
        name: String,
        /// What can be asked for, sorted.
        available: Vec<String>,
    },
    /// The model is on its way. Try again later.
    #[error("the model `{name}` is loading ({percent} %)")]
    ModelLoading {
        /// The model's name.
        name: String,
        /// How much of it is loaded.
        percent: u8,
    },
    /// The model is configured, but takes no memory now. One that is loaded on demand comes back when it is asked for.
    #[error("the model `{name}` is not loaded")]
    ModelUnloaded {
        /// The model's name.
        name: String,
    },
    /// The model cannot serve until the operator mends what `reason` says, or its replica is back.
    #[error("the model `{name}` is not available: {reason}")]
    ModelUnavailable {
        /// The model's name.
        name: String,
        /// Why it does not serve.
        reason: String,
    },
    /// A parameter of the request is out of range. The caller must correct it.
    #[error("`{param}` {message}")]
    InvalidValue {
        /// The parameter, as the public interface names it.
        param: &'static str,
        /// What is wrong with it, to be read after its name.
        message: String,
    },
    /// The replica refused the turn.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}
