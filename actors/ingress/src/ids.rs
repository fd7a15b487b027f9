//! Identifiers at the public interface.
//!
//! A turn's id is a UUIDv7, so the time of its creation is part of it and every rendering of a turn shows the same `created`.

use std::time::{SystemTime, UNIX_EPOCH};

use parlance_cluster_protocol::TurnId;

use crate::api_error::ApiError;

/// The longest session id, in bytes.
const MAX_SESSION_ID: usize = 128;

/// The longest idempotency key, in bytes.
const MAX_IDEMPOTENCY_KEY: usize = 255;

/// A turn id that nobody has used.
pub(crate) fn fresh_turn() -> TurnId {
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    TurnId(uuid::Builder::from_unix_timestamp_millis(millis, &rand::random()).into_uuid().as_u128())
}

/// When a turn was made, in seconds since the Unix epoch.
pub(crate) fn created_at(turn: TurnId) -> u64 {
    (turn.0 >> 80) as u64 / 1_000
}

/// The turn as a response.
pub(crate) fn response_id(turn: TurnId) -> String {
    format!("resp_{turn}")
}

/// The turn as a chat completion.
pub(crate) fn completion_id(turn: TurnId) -> String {
    format!("chatcmpl-{turn}")
}

/// The reply of a turn as an item of a conversation.
pub(crate) fn reply_item_id(turn: TurnId) -> String {
    format!("msg_{turn}")
}

/// Reads a response id. A turn that was asked for in another way is found under its id all the same.
pub(crate) fn parse_response_id(text: &str) -> Option<TurnId> {
    let digits = text.strip_prefix("resp_").or_else(|| text.strip_prefix("chatcmpl-")).unwrap_or(text);
    TurnId::parse(digits)
}

/// An id for a conversation that names none.
pub(crate) fn fresh_conversation() -> String {
    format!("conv_{}", fresh_turn())
}

/// Checks a session's id: `[A-Za-z0-9._:-]{1,128}`.
pub(crate) fn check_session_id(id: &str, param: &str) -> Result<(), ApiError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-');
    if (1..=MAX_SESSION_ID).contains(&id.len()) && id.bytes().all(allowed) {
        return Ok(());
    }
    let message =
        format!("Invalid '{param}': a session id has 1 to {MAX_SESSION_ID} characters out of A-Z a-z 0-9 . _ : -");
    Err(ApiError::invalid(Some(param.into()), message))
}

/// Checks an idempotency key: 1 to 255 visible ASCII characters.
pub(crate) fn check_idempotency_key(key: &str, param: &str) -> Result<(), ApiError> {
    if (1..=MAX_IDEMPOTENCY_KEY).contains(&key.len()) && key.bytes().all(|b| matches!(b, b' '..=b'~')) {
        return Ok(());
    }
    let message =
        format!("Invalid '{param}': an idempotency key has 1 to {MAX_IDEMPOTENCY_KEY} visible ASCII characters.");
    Err(ApiError::invalid(Some(param.into()), message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_keeps_its_time_through_its_names() {
        let turn = fresh_turn();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_secs();
        assert!(created_at(turn).abs_diff(now) <= 1);
        for name in [response_id(turn), completion_id(turn), turn.to_string()] {
            assert_eq!(parse_response_id(&name), Some(turn));
        }
        assert_eq!(parse_response_id("resp_"), None);
        assert_eq!(parse_response_id("resp_zz"), None);
    }

    #[test]
    fn ids_are_bounded() {
        assert!(check_session_id("conv_1.a:b-C", "X-Session-ID").is_ok());
        for bad in ["", "a b", "a/b", "ü", &"x".repeat(129)] {
            assert!(check_session_id(bad, "X-Session-ID").is_err(), "{bad}");
        }
        assert!(check_idempotency_key(&"k".repeat(255), "Idempotency-Key").is_ok());
        for bad in ["", &"k".repeat(256), "a\u{7}", "ü"] {
            assert!(check_idempotency_key(bad, "Idempotency-Key").is_err(), "{bad}");
        }
    }
}
