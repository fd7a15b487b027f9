//! From a recorded turn to what a replica is asked.

use std::time::Instant;

use parlance_cluster_protocol::{GenerationOptions, Item, OutputFormat, Role, ServiceTier};
use parlance_inference_engine::{
    ChatMessage, ChatRole, EngineError, GenerateRequest, Grammar, Priority, PromptBudget, Replica, ReplicaInfo,
    Sampling, TokenId,
};

use crate::{GatewayError, ToolChoice, ToolUse, tools};

/// The most tokens of a reply whose caller names no limit. Modest, because a lane is reserved for all of them.
pub const DEFAULT_MAX_TOKENS: u32 = 512;
/// The largest `max_tokens`: beyond any model's context.
pub const MAX_TOKENS_LIMIT: u32 = 1 << 20;
/// The most stop texts.
pub const MAX_STOPS: usize = 4;
/// The longest stop text. Text is held back as long as it may become one.
pub const MAX_STOP_BYTES: usize = 256;

/// The parameter that says what a reply is held to.
pub const FORMAT: &str = "response_format";
/// What JSON mode holds a reply to.
const ANY_OBJECT: &str = r#"{"type":"object"}"#;

/// Where the caller leaves sampling open: what the makers of SmolLM2-Instruct recommend, and small models need.
const DEFAULT_TEMPERATURE: f32 = 0.2;
const DEFAULT_TOP_P: f32 = 0.9;

/// One turn, ready to be asked.
#[derive(Debug, Clone)]
pub struct Turn<'a> {
    /// The conversation with its system prompt, oldest message first, up to what is to be answered.
    pub items: &'a [&'a Item],
    /// How the reply is generated.
    pub options: &'a GenerationOptions,
    /// The seed of its random numbers.
    pub seed: u64,
    /// Whether every token is reported with its probability, and with how many alternatives.
    pub logprobs: Option<u32>,
    /// Tokens that an earlier attempt recorded.
    pub forced: Vec<TokenId>,
    /// When it is dropped.
    pub deadline: Option<Instant>,
    /// Whose it is.
    pub tenant: &'a str,
    /// Turns with equal values share a conversation's cache; 0 is none.
    pub affinity: u64,
    /// Whether an answer was promised, so that it waits for its turn however long that takes.
    pub promised: bool,
    /// The tools, where there are any; then no message is left out.
    pub tools: Option<&'a ToolUse>,
    /// Whether the oldest messages may be left out to fit the context: so for a session's own history, not for a given one.
    pub drop_oldest: bool,
}

/// Checks the options, compiles the format and renders the conversation for `replica`. Pure computation, mostly of milliseconds.
///
/// Where history may be left out, room is kept for the whole reply up to half of the context. Where it may not, prompt and
/// `max_tokens` together must fit; without `max_tokens` the reply gets what the prompt leaves.
///
/// # Errors
///
/// [`GatewayError::InvalidValue`] for options out of range and a format that replies cannot be held to, [`GatewayError::Engine`] for a conversation that does not fit or
/// that the chat template refuses.
pub fn prepare_turn(replica: &dyn Replica, turn: Turn<'_>) -> Result<GenerateRequest, GatewayError> {
    validate_options(turn.options)?;
    if turn.items.is_empty() {
        return Err(invalid("messages", "must hold at least one message"));
    }
    let grammar = match (turn.options.format.as_ref(), turn.tools) {
        (None, None) => None,
        (None, Some(tools)) => tools::grammar(replica, tools)?,
        (Some(format), tools) if tools.is_none_or(|tools| tools.choice == ToolChoice::Never) => {
            Some(grammar(replica, format)?)
        }
        (Some(_), _) => return Err(invalid(FORMAT, "goes not with tools that may be called")),
    };
    let messages: Vec<_> = turn.items.iter().map(|item| message(item)).collect();
    let budget = budget(turn.options.max_tokens, turn.drop_oldest, replica.info());
    let prompt = match turn.tools {
        None => replica.prepare(&messages, budget)?,
        Some(tools) => tools::prepare(replica, &messages, tools, budget.reserve)?,
    };
    let room = replica.info().context_tokens.saturating_sub(prompt.token_count);
    Ok(GenerateRequest {
        prompt,
        sampling: sampling(turn.options, turn.seed),
        max_tokens: turn.options.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS).min(room),
        stop: turn.options.stop.clone(),
        logprobs: turn.logprobs,
        grammar,
        forced: turn.forced,
        deadline: turn.deadline,
        tenant: turn.tenant.to_owned(),
        affinity: turn.affinity,
        priority: match turn.options.tier {
            ServiceTier::Flex => Priority::Low,
            ServiceTier::Default => Priority::Default,
            ServiceTier::Priority => Priority::High,
        },
        promised: turn.promised,
    })
}

fn grammar(replica: &dyn Replica, format: &OutputFormat) -> Result<Grammar, GatewayError> {
    let schema = match format {
        OutputFormat::JsonObject => ANY_OBJECT,
        OutputFormat::JsonSchema { schema, .. } => schema,
    };
    replica.compile(schema).map_err(|error| match error {
        EngineError::Schema(problem) => invalid(FORMAT, format!("has a schema that cannot be followed: {problem}")),
        other => other.into(),
    })
}

/// Checks that every option is in its range. The same for every model, so that a turn can be refused before it is accepted.
///
/// # Errors
///
/// [`GatewayError::InvalidValue`] names the first that is not.
pub fn validate_options(options: &GenerationOptions) -> Result<(), GatewayError> {
    in_range("temperature", options.temperature, 0.0, 2.0)?;
    above_zero("top_p", options.top_p, 1.0)?;
    in_range("min_p", options.min_p, 0.0, 1.0)?;
    above_zero("repetition_penalty", options.repetition_penalty, 2.0)?;
    in_range("presence_penalty", options.presence_penalty, -2.0, 2.0)?;
    in_range("frequency_penalty", options.frequency_penalty, -2.0, 2.0)?;
    if let Some(tokens) = options.max_tokens
        && !(1..=MAX_TOKENS_LIMIT).contains(&tokens)
    {
        return Err(invalid("max_tokens", format!("must be from 1 to {MAX_TOKENS_LIMIT}, not {tokens}")));
    }
    if options.stop.len() > MAX_STOPS {
        return Err(invalid("stop", format!("must hold at most {MAX_STOPS} texts, not {}", options.stop.len())));
    }
    match options.stop.iter().find(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
        Some(stop) => {
            let message = format!("must hold texts of 1 to {MAX_STOP_BYTES} bytes, not of {}", stop.len());
            Err(invalid("stop", message))
        }
        None => Ok(()),
    }
}

fn in_range(param: &'static str, value: Option<f32>, least: f32, most: f32) -> Result<(), GatewayError> {
    match value {
        // A NaN is in no range.
        Some(value) if !(least..=most).contains(&value) => {
            Err(invalid(param, format!("must be from {least} to {most}, not {value}")))
        }
        _ => Ok(()),
    }
}

fn above_zero(param: &'static str, value: Option<f32>, most: f32) -> Result<(), GatewayError> {
    match value {
        Some(value) if !(value > 0.0 && value <= most) => {
            Err(invalid(param, format!("must be above 0 and at most {most}, not {value}")))
        }
        _ => Ok(()),
    }
}

fn invalid(param: &'static str, message: impl Into<String>) -> GatewayError {
    GatewayError::InvalidValue { param, message: message.into() }
}

fn message(item: &Item) -> ChatMessage<'_> {
    let role = match item.role {
        Role::System => ChatRole::System,
        Role::User => ChatRole::User,
        Role::Assistant => ChatRole::Assistant,
        Role::Tool => ChatRole::Tool,
    };
    ChatMessage { role, content: &item.text }
}

fn budget(max_tokens: Option<u32>, drop_oldest: bool, info: &ReplicaInfo) -> PromptBudget {
    let half = (info.context_tokens / 2).max(1);
    let reserve = match max_tokens {
        wanted if drop_oldest => wanted.unwrap_or(DEFAULT_MAX_TOKENS).min(half),
        Some(wanted) => wanted,
        None => 1,
    };
    PromptBudget { reserve, drop_oldest }
}

fn sampling(options: &GenerationOptions, seed: u64) -> Sampling {
    let off = Sampling::default();
    Sampling {
        temperature: options.temperature.unwrap_or(DEFAULT_TEMPERATURE),
        top_p: options.top_p.unwrap_or(DEFAULT_TOP_P),
        top_k: options.top_k.unwrap_or(off.top_k),
        min_p: options.min_p.unwrap_or(off.min_p),
        repetition_penalty: options.repetition_penalty.unwrap_or(off.repetition_penalty),
        presence_penalty: options.presence_penalty.unwrap_or(off.presence_penalty),
        frequency_penalty: options.frequency_penalty.unwrap_or(off.frequency_penalty),
        seed,
    }
}

#[cfg(test)]
mod tests {
    use parlance_inference_engine::{EngineError, ScriptedOptions, ScriptedReplica};

    use super::*;

    fn replica(context: u32) -> ScriptedReplica {
        let options = ScriptedOptions::parse(&format!("scripted:context={context}"));
        ScriptedReplica::new(options.expect("valid options"))
    }

    fn items(words: &[usize]) -> Vec<Item> {
        let roles = [Role::User, Role::Assistant];
        words.iter().zip(roles.into_iter().cycle()).map(|(&n, role)| Item { role, text: "w ".repeat(n) }).collect()
    }

    fn refs(items: &[Item]) -> Vec<&Item> {
        items.iter().collect()
    }

    fn turn<'a>(items: &'a [&'a Item], options: &'a GenerationOptions, drop_oldest: bool) -> Turn<'a> {
        Turn {
            items,
            options,
            seed: 7,
            logprobs: Some(2),
            forced: vec![3],
            deadline: None,
            tenant: "t",
            affinity: 9,
            promised: true,
            tools: None,
            drop_oldest,
        }
    }

    fn refused(options: GenerationOptions) -> String {
        validate_options(&options).expect_err("must be refused").to_string()
    }

    #[test]
    fn options_out_of_range_are_refused_by_name() {
        let with = GenerationOptions::default;
        let f = Some;
        for value in [-0.1, 2.1, f32::NAN, f32::INFINITY] {
            let message = format!("`temperature` must be from 0 to 2, not {value}");
            assert_eq!(refused(GenerationOptions { temperature: f(value), ..with() }), message);
        }
        for value in [0.0, 1.1, f32::NAN] {
            let message = format!("`top_p` must be above 0 and at most 1, not {value}");
            assert_eq!(refused(GenerationOptions { top_p: f(value), ..with() }), message);
        }
        let others = [
            (GenerationOptions { min_p: f(-0.5), ..with() }, "`min_p` must be from 0 to 1, not -0.5"),
            (
                GenerationOptions { repetition_penalty: f(0.0), ..with() },
                "`repetition_penalty` must be above 0 and at most 2, not 0",
            ),
            (
                GenerationOptions { presence_penalty: f(2.5), ..with() },
                "`presence_penalty` must be from -2 to 2, not 2.5",
            ),
            (
                GenerationOptions { frequency_penalty: f(f32::NAN), ..with() },
                "`frequency_penalty` must be from -2 to 2, not NaN",
            ),
            (GenerationOptions { max_tokens: Some(0), ..with() }, "`max_tokens` must be from 1 to 1048576, not 0"),
            (GenerationOptions { stop: vec!["x".into(); 5], ..with() }, "`stop` must hold at most 4 texts, not 5"),
            (
                GenerationOptions { stop: vec![String::new()], ..with() },
                "`stop` must hold texts of 1 to 256 bytes, not of 0",
            ),
            (
                GenerationOptions { stop: vec!["x".repeat(257)], ..with() },
                "`stop` must hold texts of 1 to 256 bytes, not of 257",
            ),
        ];
        for (options, message) in others {
            assert_eq!(refused(options), message);
        }
    }

    #[test]
    fn the_ends_of_the_ranges_are_allowed() {
        for (low, high) in [(0.0, 2.0), (2.0, 0.0)] {
            let options = GenerationOptions {
                model: String::new(),
                max_tokens: Some(MAX_TOKENS_LIMIT),
                temperature: Some(low),
                top_p: Some(1.0),
                top_k: Some(u32::MAX),
                min_p: Some(1.0),
                repetition_penalty: Some(2.0),
                presence_penalty: Some(-high),
                frequency_penalty: Some(low),
                stop: vec!["x".repeat(MAX_STOP_BYTES); MAX_STOPS],
                format: None,
                tier: ServiceTier::Priority,
            };
            assert_eq!(validate_options(&options), Ok(()));
        }
    }

    #[test]
    fn given_options_and_defaults_reach_the_request() {
        let items = items(&[4]);
        let open =
            prepare_turn(&replica(2000), turn(&refs(&items), &GenerationOptions::default(), false)).expect("fits");
        let defaults = Sampling { temperature: 0.2, top_p: 0.9, seed: 7, ..Sampling::default() };
        assert_eq!((open.max_tokens, open.sampling), (DEFAULT_MAX_TOKENS, defaults));
        assert_eq!((open.forced, open.logprobs, open.tenant.as_str(), open.affinity), (vec![3], Some(2), "t", 9));

        let options = GenerationOptions {
            max_tokens: Some(20),
            temperature: Some(0.5),
            top_p: Some(0.25),
            top_k: Some(5),
            min_p: Some(0.125),
            repetition_penalty: Some(1.5),
            presence_penalty: Some(0.75),
            frequency_penalty: Some(-1.0),
            stop: vec!["END".into()],
            tier: ServiceTier::Flex,
            ..GenerationOptions::default()
        };
        let given = prepare_turn(&replica(2000), turn(&refs(&items), &options, false)).expect("fits");
        let expected = Sampling {
            temperature: 0.5,
            top_p: 0.25,
            top_k: 5,
            min_p: 0.125,
            repetition_penalty: 1.5,
            presence_penalty: 0.75,
            frequency_penalty: -1.0,
            seed: 7,
        };
        assert_eq!((given.max_tokens, given.sampling, given.stop), (20, expected, vec!["END".to_owned()]));
        assert_eq!((open.priority, given.priority, given.promised), (Priority::Default, Priority::Low, true));
    }

    #[test]
    fn a_given_conversation_must_fit_with_its_reply() {
        let items = items(&[30, 30, 30]);
        let open = GenerationOptions::default();
        let request = prepare_turn(&replica(100), turn(&refs(&items), &open, false)).expect("fits");
        assert_eq!((request.max_tokens, request.prompt.dropped_messages), (10, 0));
        let wanted = GenerationOptions { max_tokens: Some(11), ..open };
        let error = prepare_turn(&replica(100), turn(&refs(&items), &wanted, false)).expect_err("too long");
        let exceeded = EngineError::ContextExceeded { prompt: 90, reserve: 11, context: 100, model: "scripted".into() };
        assert_eq!(error, GatewayError::Engine(exceeded));
    }

    #[test]
    fn a_sessions_history_is_cut_to_leave_room_for_the_reply() {
        let items = items(&[30, 30, 30]);
        let open = GenerationOptions::default();
        let request = prepare_turn(&replica(100), turn(&refs(&items), &open, true)).expect("fits");
        assert_eq!((request.max_tokens, request.prompt.dropped_messages, request.prompt.token_count), (70, 2, 30));
        let short = GenerationOptions { max_tokens: Some(10), ..open };
        let request = prepare_turn(&replica(100), turn(&refs(&items), &short, true)).expect("fits");
        assert_eq!((request.max_tokens, request.prompt.dropped_messages), (10, 0));
    }

    #[test]
    fn a_format_becomes_a_grammar_or_is_refused() {
        let items = items(&[1]);
        let prepared = |format| {
            let options = GenerationOptions { format, ..GenerationOptions::default() };
            prepare_turn(&replica(100), turn(&refs(&items), &options, false))
        };
        let schema = |schema: &str| Some(OutputFormat::JsonSchema { name: "n".into(), schema: schema.into() });
        assert!(prepared(None).expect("no format").grammar.is_none());
        assert!(prepared(Some(OutputFormat::JsonObject)).expect("any object").grammar.is_some());
        assert!(prepared(schema(r#"{"type":"integer"}"#)).expect("a schema").grammar.is_some());
        let error = prepared(schema(r#"{"not":{}}"#)).expect_err("it cannot be followed").to_string();
        assert!(error.starts_with("`response_format` has a schema that cannot be followed: "), "{error}");
    }

    #[test]
    fn a_turn_says_something() {
        let error = prepare_turn(&replica(100), turn(&[], &GenerationOptions::default(), true));
        assert_eq!(error.err().map(|e| e.to_string()), Some("`messages` must hold at least one message".into()));
    }
}
