//! The way from a turn to a replica: which models there are, which replica answers, and what exactly it is asked.

mod calls;
mod error;
mod registry;
mod tools;
mod turn;

pub use calls::{CallReader, CallSyntax, Part, WrittenCall};
pub use error::GatewayError;
pub use registry::{DEFAULT_MODEL, Demand, ModelListing, ModelRegistry, ModelState};
pub use tools::{ToolChoice, ToolUse, call_syntax};
pub use turn::{
    DEFAULT_MAX_TOKENS, FORMAT, MAX_STOP_BYTES, MAX_STOPS, MAX_TOKENS_LIMIT, Turn, prepare_turn, validate_options,
};
