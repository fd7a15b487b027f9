//! The request of a chat completion.

use parlance_cluster_protocol::Origin;
use parlance_inference_gateway::ToolUse;

use crate::{
    api_error::ApiError,
    call::Call,
    format, generation,
    json::{Object, missing, parse_object},
    logprobs::MAX_ALTERNATIVES,
    messages, tools,
};

/// A parsed request.
#[derive(Debug)]
pub(super) struct ChatRequest {
    pub(super) call: Call,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    /// Whether every token is reported with its probability, and with how many alternatives.
    pub(super) logprobs: Option<u32>,
    /// The tools, if the request has to do with any.
    pub(super) tools: Option<ToolUse>,
    /// Whether a reply may have several calls.
    pub(super) parallel: bool,
}

impl ChatRequest {
    /// Parses and checks a body; `model_header` wins over its model.
    pub(super) fn parse(body: &[u8], model_header: Option<&str>) -> Result<Self, ApiError> {
        let mut body = parse_object(body)?;
        let values = body.array("messages")?.ok_or_else(|| missing("messages"))?;
        let (input, of_tools) = messages::with_tools(values, "messages")?;
        let mut options = generation::sampling(&mut body)?;
        options.model = generation::model(&mut body, model_header)?;
        options.stop = generation::stop(&mut body)?;
        options.max_tokens = token_limit(&mut body)?;
        options.format = format::of_chat(&mut body)?;
        one_choice(&mut body)?;
        let seed = generation::seed(&mut body)?;
        let user = generation::user(&mut body)?;
        let stream = body.boolean("stream")?.unwrap_or(false);
        let include_usage = include_usage(&mut body)?;
        let logprobs = logprobs(&mut body)?;
        let parallel = body.boolean("parallel_tool_calls")?.unwrap_or(true);
        let tools = tools::tool_use(&mut body, of_tools)?;
        generation::check_rest(&body)?;
        let call = Call { input, options, seed, user, origin: Origin::ChatCompletion };
        Ok(Self { call, stream, include_usage, logprobs, tools, parallel })
    }
}

/// The newer name wins.
fn token_limit(body: &mut Object) -> Result<Option<u32>, ApiError> {
    let older = generation::token_limit(body, "max_tokens")?;
    Ok(generation::token_limit(body, "max_completion_tokens")?.or(older))
}

fn one_choice(body: &mut Object) -> Result<(), ApiError> {
    match body.integer("n", 1..=128)? {
        None | Some(1) => Ok(()),
        Some(n) => {
            Err(ApiError::unsupported("n", format!("Unsupported value: 'n' is {n}; this server makes one choice.")))
        }
    }
}

fn include_usage(body: &mut Object) -> Result<bool, ApiError> {
    let Some(mut options) = body.object("stream_options")? else { return Ok(false) };
    Ok(options.boolean("include_usage")?.unwrap_or(false))
}

fn logprobs(body: &mut Object) -> Result<Option<u32>, ApiError> {
    let wanted = body.boolean("logprobs")?.unwrap_or(false);
    let alternatives = body.integer("top_logprobs", 0..=MAX_ALTERNATIVES)?;
    match alternatives {
        Some(1..) if !wanted => {
            let message = "Invalid value for 'top_logprobs': it goes only with 'logprobs' set to true.";
            Err(ApiError::invalid(Some("top_logprobs".into()), message))
        }
        alternatives => Ok(wanted.then_some(alternatives.unwrap_or(0) as u32)),
    }
}
