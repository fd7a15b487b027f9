//! The messages of the web chat's line.

use axum::extract::ws::Message;
use parlance_cluster_protocol::{GenerationOptions, TurnId, Usage};
use serde::Serialize;

use crate::{
    api_error::ApiError,
    generation, ids,
    json::{Object, missing, parse_object},
};

/// The longest id that a page may give a message, in bytes. With the session's it must fit an idempotency key.
const MAX_ID: usize = 96;

/// What a page says.
#[derive(Debug, PartialEq)]
pub(super) enum ClientMessage {
    Auth { key: String },
    Turn(TurnMessage),
    Regenerate(RegenerateMessage),
    Resume { turn: TurnId, after: usize },
    Stop { session: String, turn: Option<TurnId> },
    Ping,
}

/// A wish for another reply in place of the session's last one.
#[derive(Debug, PartialEq)]
pub(super) struct RegenerateMessage {
    pub(super) session: String,
    pub(super) turn: Option<TurnId>,
    pub(super) id: Option<String>,
    pub(super) options: Box<GenerationOptions>,
    pub(super) seed: Option<u64>,
}

/// A turn of a session.
#[derive(Debug, PartialEq)]
pub(super) struct TurnMessage {
    pub(super) session: String,
    pub(super) text: String,
    pub(super) id: Option<String>,
    pub(super) options: Box<GenerationOptions>,
    pub(super) seed: Option<u64>,
}

impl ClientMessage {
    /// Reads a message. With an error comes what tells the page which message it was.
    pub(super) fn parse(text: &str) -> Result<Self, Box<(ApiError, Subject)>> {
        let mut subject = Subject::default();
        let message = parse_object(text.as_bytes()).and_then(|body| Self::read(body, &mut subject));
        message.map_err(|error| Box::new((error, subject)))
    }

    fn read(mut body: Object, subject: &mut Subject) -> Result<Self, ApiError> {
        let kind = body.required_string("type")?;
        subject.id = body.string("id")?;
        subject.session = body.string("session")?;
        let turn = turn(&mut body)?;
        subject.turn = turn;
        if subject
            .id
            .as_ref()
            .is_some_and(|id| id.is_empty() || id.len() > MAX_ID || !id.bytes().all(|b| b.is_ascii_graphic()))
        {
            return Err(ApiError::invalid(
                Some("id".into()),
                format!("Invalid 'id': 1 to {MAX_ID} visible ASCII characters."),
            ));
        }
        match kind.as_str() {
            "auth" => Ok(Self::Auth { key: body.required_string("key")? }),
            "turn" => {
                let session = session(subject)?;
                let text = body.required_string("text")?;
                if text.trim().is_empty() {
                    return Err(ApiError::invalid(Some("text".into()), "Invalid 'text': it is empty."));
                }
                let (options, seed) = options(&mut body)?;
                Ok(Self::Turn(TurnMessage { session, text, id: subject.id.clone(), options, seed }))
            }
            "regenerate" => {
                let (options, seed) = options(&mut body)?;
                let (session, id) = (session(subject)?, subject.id.clone());
                Ok(Self::Regenerate(RegenerateMessage { session, turn, id, options, seed }))
            }
            "resume" => {
                let after = body.integer("after", 0..=i64::MAX)?.unwrap_or(0);
                let after = usize::try_from(after).unwrap_or(usize::MAX);
                Ok(Self::Resume { turn: turn.ok_or_else(|| missing("turn"))?, after })
            }
            "stop" => Ok(Self::Stop { session: session(subject)?, turn }),
            "ping" => Ok(Self::Ping),
            other => {
                let message =
                    format!("Unknown message type '{other}'; expected turn, stop, regenerate, resume, auth or ping.");
                Err(ApiError::invalid(Some("type".into()), message))
            }
        }
    }
}

fn turn(body: &mut Object) -> Result<Option<TurnId>, ApiError> {
    let Some(text) = body.string("turn")? else { return Ok(None) };
    let invalid = || ApiError::invalid(Some("turn".into()), "Invalid 'turn': expected 32 hexadecimal digits.");
    ids::parse_response_id(&text).map(Some).ok_or_else(invalid)
}

fn session(subject: &Subject) -> Result<String, ApiError> {
    let session = subject.session.clone().ok_or_else(|| missing("session"))?;
    ids::check_session_id(&session, "session")?;
    Ok(session)
}

fn options(body: &mut Object) -> Result<(Box<GenerationOptions>, Option<u64>), ApiError> {
    let mut options = generation::sampling(body)?;
    options.model = generation::model(body, None)?;
    options.max_tokens = generation::token_limit(body, "max_tokens")?;
    options.stop = generation::stop(body)?;
    Ok((Box::new(options), generation::seed(body)?))
}

/// What a message is about, so that a page can tell its requests apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) session: Option<String>,
    pub(super) turn: Option<TurnId>,
    pub(super) id: Option<String>,
}

/// What the server says.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum ServerMessage<'a> {
    Ready {},
    Accepted {
        turn: &'a str,
        session: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
        replayed: bool,
    },
    Delta {
        turn: &'a str,
        seq: usize,
        text: &'a str,
    },
    Rewind {
        turn: &'a str,
        seq: usize,
    },
    Final {
        turn: &'a str,
        session: &'a str,
        seq: usize,
        finish_reason: &'static str,
        model: &'a str,
        usage: UsageObject,
    },
    Stopped {
        session: &'a str,
        stopped: bool,
    },
    Pong {},
    Error {
        code: &'a str,
        message: &'a str,
        param: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        turn: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        session: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
    },
}

#[derive(Debug, Serialize)]
pub(super) struct UsageObject {
    prompt_tokens: u32,
    completion_tokens: u32,
    cached_tokens: u32,
}

impl From<Usage> for UsageObject {
    fn from(usage: Usage) -> Self {
        let Usage { prompt_tokens, completion_tokens, cached_tokens } = usage;
        Self { prompt_tokens, completion_tokens, cached_tokens }
    }
}

impl ServerMessage<'_> {
    /// The message as it goes over the line.
    pub(super) fn encode(&self) -> Message {
        Message::Text(serde_json::to_string(self).expect("messages are plain data").into())
    }
}

/// An error about `subject`.
pub(super) fn error(error: &ApiError, subject: &Subject) -> Message {
    let message = ServerMessage::Error {
        code: &error.code,
        message: &error.message,
        param: error.param.as_deref(),
        retry_after: error.retry_after.map(|wait| wait.as_secs().max(1)),
        turn: subject.turn.map(|turn| turn.to_string()),
        session: subject.session.as_deref(),
        id: subject.id.as_deref(),
    };
    message.encode()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read() {
        let turn = ClientMessage::parse(r#"{"type":"turn","session":"s1","text":"hi","id":"m1","temperature":0}"#);
        let Ok(ClientMessage::Turn(turn)) = turn else { panic!("{turn:?}") };
        assert_eq!((turn.session.as_str(), turn.text.as_str(), turn.id.as_deref()), ("s1", "hi", Some("m1")));
        assert_eq!(turn.options.temperature, Some(0.0));
        let id = "0123456789abcdef0123456789abcdef";
        let resume = ClientMessage::parse(&format!(r#"{{"type":"resume","turn":"{id}","after":7}}"#));
        assert_eq!(resume, Ok(ClientMessage::Resume { turn: TurnId::parse(id).expect("an id"), after: 7 }));
        assert_eq!(
            ClientMessage::parse(r#"{"type":"stop","session":"s"}"#),
            Ok(ClientMessage::Stop { session: "s".into(), turn: None })
        );
    }

    #[test]
    fn bad_messages_name_what_is_wrong_and_which_they_are() {
        let cases = [
            ("{", "invalid_json", None),
            ("[]", "invalid_value", None),
            (r#"{"type":"dance"}"#, "invalid_value", Some("type")),
            (r#"{"type":"turn","session":"s"}"#, "invalid_value", Some("text")),
            (r#"{"type":"turn","session":"s","text":"  "}"#, "invalid_value", Some("text")),
            (r#"{"type":"turn","text":"x"}"#, "invalid_value", Some("session")),
            (r#"{"type":"turn","session":"a b","text":"x"}"#, "invalid_value", Some("session")),
            (r#"{"type":"turn","session":"s","text":"x","id":""}"#, "invalid_value", Some("id")),
            (r#"{"type":"turn","session":"s","text":"x","temperature":-1}"#, "invalid_value", Some("temperature")),
            (r#"{"type":"resume","turn":"zz"}"#, "invalid_value", Some("turn")),
            (r#"{"type":"resume"}"#, "invalid_value", Some("turn")),
            (
                r#"{"type":"resume","turn":"0123456789abcdef0123456789abcdef","after":-1}"#,
                "invalid_value",
                Some("after"),
            ),
        ];
        for (text, code, param) in cases {
            let (error, _) = *ClientMessage::parse(text).expect_err(text);
            assert_eq!((error.code.as_ref(), error.param.as_deref()), (code, param), "{text}");
        }
        let (_, subject) = *ClientMessage::parse(r#"{"type":"turn","id":"m1","session":"s"}"#).expect_err("no text");
        assert_eq!((subject.id.as_deref(), subject.session.as_deref()), (Some("m1"), Some("s")));
    }
}
