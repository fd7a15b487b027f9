//! Reads answers: streams of events, and whole ones.

use futures_util::StreamExt as _;
use serde_json::Value;

use crate::history::EventKind;

/// One event of a stream is shorter.
const MAX_FRAME_BYTES: usize = 1024 * 1024;
/// A reply is shorter.
const MAX_REPLY_BYTES: usize = 16 * 1024 * 1024;
/// Errors of the server that say nothing about the turn: it may be answered yet.
const PASSING: [&str; 4] = ["overloaded", "log_unavailable", "records_unavailable", "draining"];

/// What an error says that came with a turn's id.
pub(super) fn failure(turn: String, code: &str) -> EventKind {
    if PASSING.contains(&code) {
        return unknown(format!("the turn's stream ended with {code}"));
    }
    EventKind::Failed { turn, code: code.to_owned() }
}

pub(super) fn unknown(reason: impl ToString) -> EventKind {
    EventKind::Unknown { reason: reason.to_string() }
}

/// A response without a turn's id.
pub(super) async fn refusal(response: reqwest::Response) -> EventKind {
    let status = response.status();
    match response.json::<Value>().await {
        Ok(body) => match body["error"]["code"].as_str() {
            // The log did not answer in time: it alone knows.
            Some("log_unavailable") => unknown("log_unavailable"),
            Some(code) if !status.is_success() => EventKind::Refused { code: code.to_owned() },
            _ => unknown(format!("{status}: {body}")),
        },
        Err(error) => unknown(error),
    }
}

/// Reads a reply that comes in one piece.
pub(super) async fn read_whole(response: reqwest::Response, turn: String) -> EventKind {
    match response.json::<Value>().await {
        Ok(body) => match (&body["choices"][0]["message"]["content"], &body["error"]["code"]) {
            (Value::String(text), _) => EventKind::Replied { turn, text: text.clone() },
            (_, Value::String(code)) => failure(turn, code),
            _ => unknown(format!("neither a reply nor an error: {body}")),
        },
        Err(error) => unknown(error),
    }
}

/// Reads the reply's event stream up to `[DONE]`. A stream that ends before leaves the client without the answer.
pub(super) async fn read_stream(response: reqwest::Response, turn: String) -> EventKind {
    let mut reading = Reading::new(turn);
    let mut bytes = response.bytes_stream();
    while let Some(chunk) = bytes.next().await {
        let end = match chunk {
            Ok(chunk) => reading.take(&chunk),
            Err(error) => Some(unknown(error)),
        };
        if let Some(end) = end {
            return end;
        }
    }
    unknown("the stream ended before [DONE]")
}

/// A stream of events as far as it has been read.
struct Reading {
    turn: String,
    /// Bytes behind the last whole event.
    rest: Vec<u8>,
    text: String,
}

impl Reading {
    fn new(turn: String) -> Self {
        Self { turn, rest: Vec::new(), text: String::new() }
    }

    /// Takes the next bytes; how the stream ended, if it has.
    fn take(&mut self, chunk: &[u8]) -> Option<EventKind> {
        self.rest.extend_from_slice(chunk);
        while let Some(end) = self.rest.windows(2).position(|pair| pair == b"\n\n") {
            let frame: Vec<u8> = self.rest.drain(..end + 2).collect();
            let end = match std::str::from_utf8(&frame) {
                Ok(frame) => {
                    frame.lines().find_map(|line| line.strip_prefix("data: ")).and_then(|data| self.event(data))
                }
                Err(error) => Some(unknown(error)),
            };
            if end.is_some() {
                return end;
            }
        }
        let is_long = self.rest.len() > MAX_FRAME_BYTES || self.text.len() > MAX_REPLY_BYTES;
        is_long.then(|| unknown("the stream has no end"))
    }

    fn event(&mut self, data: &str) -> Option<EventKind> {
        if data == "[DONE]" {
            return Some(EventKind::Replied { turn: self.turn.clone(), text: std::mem::take(&mut self.text) });
        }
        let Ok(event) = serde_json::from_str::<Value>(data) else { return Some(unknown(format!("no event: {data}"))) };
        if let Some(code) = event["error"]["code"].as_str() {
            return Some(failure(self.turn.clone(), code));
        }
        self.text.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(chunks: &[&[u8]]) -> Option<EventKind> {
        let mut reading = Reading::new("t".into());
        chunks.iter().find_map(|chunk| reading.take(chunk))
    }

    const HALF: &[u8] = b"data: {\"choices\":[{\"delta\":{\"content\":\"a\xc3";

    #[test]
    fn a_stream_may_come_in_any_pieces() {
        let rest: &[u8] =
            b"\xa4\"}}]}\n\n: still there\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\ndata: [DONE]\n\n";
        assert_eq!(read(&[HALF, rest]), Some(EventKind::Replied { turn: "t".into(), text: "aäb".into() }));
    }

    #[test]
    fn an_error_is_the_turns_failure_unless_it_passes() {
        let error = |code: &str| read(&[format!("data: {{\"error\":{{\"code\":\"{code}\"}}}}\n\n").as_bytes()]);
        assert_eq!(error("deadline"), Some(EventKind::Failed { turn: "t".into(), code: "deadline".into() }));
        assert!(matches!(error("overloaded"), Some(EventKind::Unknown { .. })));
    }

    #[test]
    fn what_makes_no_sense_is_unknown() {
        assert!(matches!(read(&[b"data: {\n\n"]), Some(EventKind::Unknown { .. })));
        assert!(matches!(read(&[b"data: \xff\n\n"]), Some(EventKind::Unknown { .. })));
        assert_eq!(read(&[HALF]), None);
        assert!(matches!(read(&[HALF, &vec![b'x'; MAX_FRAME_BYTES]]), Some(EventKind::Unknown { .. })));
    }
}
