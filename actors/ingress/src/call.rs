//! What every call for an answer has in common: its headers in, its headers out, and the way into the runtime.

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, request::Parts};
use parlance_actors_runtime::{AcceptedTurn, Idempotency, Refusal, Sessions, StatelessRequest, TurnRequest};
use parlance_cluster_protocol::{
    BodyHash, GenerationOptions, History, Item, Origin, Role, SessionKey, SessionOpened, TurnId,
};
use parlance_inference_gateway::ToolUse;
use sha2::{Digest, Sha256};

use crate::{
    api_error::ApiError,
    app::App,
    auth::{Tenant, user_hash},
    ids,
    reply::Reply,
};

const MODEL: &str = "x-model-id";
const SESSION: &str = "x-session-id";
const KEY: &str = "idempotency-key";
const TURN: &str = "x-turn-id";
const REPLAYED: &str = "idempotency-replayed";

/// The headers that steer a call.
#[derive(Debug, Default)]
pub(crate) struct CallHeaders {
    pub(crate) model: Option<String>,
    pub(crate) session: Option<String>,
    pub(crate) key: Option<String>,
}

impl CallHeaders {
    /// Reads and checks them.
    pub(crate) fn read(headers: &HeaderMap) -> Result<Self, ApiError> {
        let session = text(headers, SESSION, "X-Session-ID")?;
        let key = text(headers, KEY, "Idempotency-Key")?;
        if let Some(session) = &session {
            ids::check_session_id(session, "X-Session-ID")?;
        }
        if let Some(key) = &key {
            ids::check_idempotency_key(key, "Idempotency-Key")?;
        }
        Ok(Self { model: text(headers, MODEL, "X-Model-ID")?, session, key })
    }

    /// The key together with what makes the request another one.
    pub(crate) fn idempotency(&self, parts: &Parts, body: &[u8]) -> Option<Idempotency> {
        let key = self.key.clone()?;
        let path = parts.uri.path();
        let hash =
            body_hash(&[parts.method.as_str(), path, text_or_empty(&self.session), text_or_empty(&self.model)], body);
        Some(Idempotency { key, body_hash: hash })
    }
}

fn text_or_empty(text: &Option<String>) -> &str {
    text.as_deref().unwrap_or_default()
}

fn text(headers: &HeaderMap, name: &str, shown: &str) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let invalid = |reason: &str| ApiError::invalid(Some(shown.into()), format!("Invalid header '{shown}': {reason}."));
    if values.next().is_some() {
        return Err(invalid("it is given twice"));
    }
    let text = value.to_str().map_err(|_| invalid("it has characters other than visible ASCII"))?;
    Ok(Some(text.to_owned()))
}

/// SHA-256 over texts, each behind its length, and the body.
pub(crate) fn body_hash(texts: &[&str], body: &[u8]) -> BodyHash {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    }
    hash.update(body);
    hash.finalize().into()
}

/// What a response tells in headers about its turn.
#[derive(Debug, Default)]
pub(crate) struct TurnHeaders {
    /// The session as the caller knows it; hidden ones are not told.
    pub(crate) session: Option<String>,
    /// Present once the turn is durable.
    pub(crate) turn: Option<TurnId>,
    pub(crate) replayed: bool,
    pub(crate) keyed: bool,
}

impl TurnHeaders {
    /// Puts them on a response, or on the error that takes its place.
    pub(crate) fn finish(self, result: Result<Response, ApiError>) -> Response {
        let mut response = result.unwrap_or_else(|mut error| {
            // A client that repeated this without a key would have it answered twice.
            error.no_retry |= self.turn.is_some() && !self.keyed;
            error.into_response()
        });
        let headers = response.headers_mut();
        if let Some(session) = self.session.as_deref().and_then(|session| HeaderValue::from_str(session).ok()) {
            headers.insert(SESSION, session);
        }
        if let Some(turn) = self.turn {
            let value = HeaderValue::from_str(&turn.to_string()).expect("hexadecimal digits are a header value");
            headers.insert(TURN, value);
        }
        if self.replayed {
            headers.insert(REPLAYED, HeaderValue::from_static("true"));
        }
        response
    }
}

/// A parsed call for an answer, of either face.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) input: Vec<Item>,
    pub(crate) options: GenerationOptions,
    pub(crate) seed: Option<u64>,
    /// The caller's name for its user.
    pub(crate) user: Option<String>,
    pub(crate) origin: Origin,
}

/// A turn of a session.
#[derive(Debug)]
pub(crate) struct DurableCall {
    pub(crate) session: SessionKey,
    pub(crate) history: History,
    /// Whether the session is created if there is none.
    pub(crate) create: bool,
    pub(crate) idempotency: Option<Idempotency>,
    pub(crate) turn: TurnId,
    /// In place of the session's system prompt.
    pub(crate) instructions: Option<String>,
    /// How many turns the session must have had, if that matters.
    pub(crate) behind: Option<u64>,
}

impl DurableCall {
    /// The next turn of a session, made with it if there is none.
    pub(crate) fn next(session: SessionKey, idempotency: Option<Idempotency>) -> Self {
        let (history, turn) = (History::Session, ids::fresh_turn());
        Self { session, history, create: true, idempotency, turn, instructions: None, behind: None }
    }

    /// A turn whose prompt is given whole, in the session of its idempotency key.
    pub(crate) fn of_key(tenant: &Tenant, idempotency: Idempotency) -> Self {
        let session = Sessions::key_session(&tenant.name, &idempotency.key);
        Self { history: History::Given, ..Self::next(session, Some(idempotency)) }
    }
}

/// Generates outside any session. `logprobs`: whether every token is reported with its probability, and with how many alternatives.
pub(crate) async fn generate(
    app: &App,
    tenant: &Tenant,
    call: Call,
    logprobs: Option<u32>,
    tools: Option<ToolUse>,
) -> Result<Reply, ApiError> {
    let id = ids::fresh_turn();
    let request = StatelessRequest {
        id,
        tenant: tenant.name.to_string(),
        input: call.input,
        options: call.options,
        seed: call.seed,
        logprobs,
        tools,
    };
    Ok(Reply::stateless(id, app.node.generate(request).await?))
}

/// Submits a durable turn; `headers` then tell that it is accepted.
pub(crate) async fn submit(
    app: &App,
    tenant: &Tenant,
    call: Call,
    durable: DurableCall,
    headers: &mut TurnHeaders,
) -> Result<Reply, ApiError> {
    headers.keyed = durable.idempotency.is_some();
    let request = TurnRequest {
        turn: durable.turn,
        idempotency: durable.idempotency,
        input: call.input,
        history: durable.history,
        options: call.options,
        seed: call.seed,
        origin: call.origin,
        user: call.user.map(|user| user_hash(&app.user_secret, &tenant.name, &user)),
        create: durable.create,
        behind: durable.behind,
        instructions: durable.instructions,
    };
    let sessions = app.node.sessions();
    let AcceptedTurn { turn, replayed, stream } =
        sessions.submit(&durable.session, request).await.map_err(|refusal| refused(refusal, headers.keyed))?;
    headers.turn = Some(turn);
    headers.replayed = replayed;
    Ok(Reply::durable(sessions.clone(), durable.session, turn, stream, 0))
}

/// After an outage of the log alone it is not certain that nothing was accepted, so nobody may repeat that without a key.
fn refused(refusal: Refusal, keyed: bool) -> ApiError {
    let uncertain = matches!(refusal, Refusal::LogUnavailable(_));
    let mut error = ApiError::from(refusal);
    error.no_retry |= uncertain && !keyed;
    error
}

/// Takes the leading system messages out of a session's turn; they are its system prompt while it is new.
pub(crate) fn split_system(input: &mut Vec<Item>) -> Option<String> {
    let leading = input.iter().take_while(|item| item.role == Role::System).count();
    let texts: Vec<String> = input.drain(..leading).map(|item| item.text).collect();
    (!texts.is_empty()).then(|| texts.join("\n\n"))
}

/// Gives a session its system prompt if it does not exist yet.
pub(crate) async fn open_with_prompt(app: &App, session: &SessionKey, prompt: String) -> Result<(), ApiError> {
    let opened = SessionOpened { system_prompt: Some(prompt), ..SessionOpened::default() };
    match app.node.sessions().open(session, opened, None).await {
        Ok(_) | Err(Refusal::SessionExists) => Ok(()),
        Err(refusal) => Err(refusal.into()),
    }
}

/// The error of a request for an answer that has nothing to answer.
pub(crate) fn no_user_message(param: &str) -> ApiError {
    let message = format!("Invalid '{param}': a turn of a session needs a message of the role 'user'.");
    ApiError::invalid(Some(param.into()), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn bad_headers_are_refused_by_name() {
        let cases = [
            (headers(&[(SESSION, "a b")]), "X-Session-ID"),
            (headers(&[(SESSION, "")]), "X-Session-ID"),
            (headers(&[(SESSION, "a"), (SESSION, "b")]), "X-Session-ID"),
            (headers(&[(KEY, "")]), "Idempotency-Key"),
            (
                HeaderMap::from_iter([(
                    http::HeaderName::from_static(MODEL),
                    HeaderValue::from_bytes(b"\xfc").expect("obs-text is a header value"),
                )]),
                "X-Model-ID",
            ),
        ];
        for (headers, param) in cases {
            assert_eq!(CallHeaders::read(&headers).expect_err("a bad header").param.as_deref(), Some(param));
        }
    }

    #[test]
    fn the_hash_tells_requests_apart_wherever_they_differ() {
        let base = body_hash(&["POST", "/v1/chat/completions", "s", ""], b"{}");
        assert_eq!(base, body_hash(&["POST", "/v1/chat/completions", "s", ""], b"{}"));
        for (texts, body) in [
            (["POST", "/v1/responses", "s", ""], &b"{}"[..]),
            (["POST", "/v1/chat/completions", "", "s"], b"{}"),
            (["POST", "/v1/chat/completions", "s", ""], b"{ }"),
        ] {
            assert_ne!(base, body_hash(&texts, body));
        }
    }

    #[test]
    fn leading_system_messages_are_split_off() {
        let item = |role, text: &str| Item { role, text: text.into() };
        let mut input =
            vec![item(Role::System, "a"), item(Role::System, "b"), item(Role::User, "c"), item(Role::System, "d")];
        assert_eq!(split_system(&mut input).as_deref(), Some("a\n\nb"));
        assert_eq!(input, [item(Role::User, "c"), item(Role::System, "d")]);
        assert_eq!(split_system(&mut input), None);
    }
}
