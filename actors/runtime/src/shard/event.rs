//! What is published of a record: a CloudEvent, or nothing. Its form is part of the public interface (`docs/events.md`). No text of a
//! conversation is ever in it.

use parlance_cluster_log::EventMessage;
use parlance_cluster_protocol::{
    FinishReason, Origin, Position, SessionEvent, SessionRecord, TimestampMs, TurnId, Usage,
};
use serde::Serialize;

/// The name that a request without a model asks for.
const DEFAULT_MODEL: &str = parlance_inference_gateway::DEFAULT_MODEL;

/// CloudEvents 1.0, <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md>.
#[derive(Serialize)]
struct CloudEvent<'a> {
    specversion: &'static str,
    id: String,
    source: String,
    #[serde(rename = "type")]
    kind: &'static str,
    subject: &'a str,
    time: String,
    datacontenttype: &'static str,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    tenant: &'a str,
    channel: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    account: &'a str,
    session: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    thread: &'a str,
    turn: String,
    attempt: u32,
    #[serde(flatten)]
    of: Of<'a>,
}

/// What is told of one type alone.
#[derive(Serialize)]
#[serde(untagged)]
enum Of<'a> {
    Accepted {
        model: &'a str,
        origin: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        regenerates: Option<String>,
        deadline: String,
    },
    Replied {
        model: &'a str,
        model_digest: &'a str,
        numerics: &'a str,
        finish: &'static str,
        usage: Counts,
    },
    Failed {
        code: &'a str,
    },
}

#[derive(Serialize)]
struct Counts {
    prompt_tokens: u32,
    completion_tokens: u32,
    cached_tokens: u32,
}

/// The event of a committed record; `None` for one that nothing is published of. A record makes one event at most, so its index is 0.
pub(super) fn render(cluster: &str, position: Position, record: &SessionRecord) -> Option<EventMessage> {
    let (kind, turn, attempt, of) = told(&record.event)?;
    let session = &record.session;
    let event = CloudEvent {
        specversion: "1.0",
        id: format!("{cluster}/{}/{position}/0", session.slot()),
        source: format!("/parlance/{cluster}"),
        kind,
        subject: &session.chat,
        time: rfc3339(record.at),
        datacontenttype: "application/json",
        data: Data {
            tenant: &session.tenant,
            channel: &session.channel,
            account: &session.account,
            session: &session.chat,
            thread: &session.thread,
            turn: turn.to_string(),
            attempt,
            of,
        },
    };
    #[expect(clippy::expect_used, reason = "strings, numbers and structs of them are always JSON")]
    let payload = serde_json::to_vec(&event).expect("an event is JSON");
    Some(EventMessage { key: session.chat.clone().into(), payload: payload.into() })
}

fn told(event: &SessionEvent) -> Option<(&'static str, TurnId, u32, Of<'_>)> {
    Some(match event {
        SessionEvent::TurnAccepted(accepted) => {
            let of = Of::Accepted {
                model: if accepted.options.model.is_empty() { DEFAULT_MODEL } else { &accepted.options.model },
                origin: origin(accepted.origin),
                regenerates: accepted.regenerates.map(|turn| turn.to_string()),
                deadline: rfc3339(accepted.deadline),
            };
            ("parlance.turn.accepted.v1", accepted.turn, 1, of)
        }
        SessionEvent::Replied(replied) => {
            let of = Of::Replied {
                model: &replied.model.name,
                model_digest: &replied.model.digest,
                numerics: &replied.model.numerics,
                finish: finish(replied.finish),
                usage: replied.usage.into(),
            };
            ("parlance.turn.replied.v1", replied.turn, replied.attempt, of)
        }
        SessionEvent::TurnFailed(failed) => {
            ("parlance.turn.failed.v1", failed.turn, failed.attempt, Of::Failed { code: &failed.code })
        }
        SessionEvent::Opened(_)
        | SessionEvent::Updated(_)
        | SessionEvent::ItemsAdded(_)
        | SessionEvent::KeyBound(_)
        | SessionEvent::AttemptStarted(_)
        | SessionEvent::Progress(_)
        | SessionEvent::Adopted(_)
        | SessionEvent::Deleted => return None,
    })
}

fn origin(origin: Origin) -> &'static str {
    match origin {
        Origin::ChatCompletion => "chat_completion",
        Origin::Response => "response",
        Origin::WebSocket => "websocket",
        Origin::Channel => "channel",
    }
}

fn finish(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
    }
}

impl From<Usage> for Counts {
    fn from(usage: Usage) -> Self {
        let Usage { prompt_tokens, completion_tokens, cached_tokens } = usage;
        Self { prompt_tokens, completion_tokens, cached_tokens }
    }
}

/// UTC with milliseconds, as in RFC 3339. The calendar is that of <https://howardhinnant.github.io/date_algorithms.html#civil_from_days>.
fn rfc3339(at: TimestampMs) -> String {
    let (days, of_day) = (at.0 / 86_400_000, at.0 % 86_400_000);
    // Years begin in March, so that a leap day is the last of its year; eras are the 400 years after which the calendar repeats.
    let from_march = days + 719_468;
    let (era, day_of_era) = (from_march / 146_097, from_march % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (seconds, millis) = (of_day / 1_000, of_day % 1_000);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use parlance_cluster_protocol::{
        AttemptStarted, GenerationOptions, History, Item, ModelTag, Replied, Role, SessionKey, TurnAccepted, TurnFailed,
    };

    use super::*;

    /// 2026-11-27 21:14:15.042 UTC.
    const AT: TimestampMs = TimestampMs(1_795_814_055_042);
    const TURN: TurnId = TurnId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
    const SECRET: &str = "what was said";

    fn rendered(session: SessionKey, event: SessionEvent) -> Option<(String, String)> {
        let record = SessionRecord { session, user: Some([7; 32]), key_id: 0, at: AT, event };
        let EventMessage { key, payload } = render("chat", Position(42), &record)?;
        assert!(!String::from_utf8_lossy(&payload).contains(SECRET));
        Some((String::from_utf8(key.into()).expect("text"), String::from_utf8(payload.into()).expect("text")))
    }

    fn accepted() -> TurnAccepted {
        TurnAccepted {
            turn: TURN,
            event_id: SECRET.into(),
            body_hash: None,
            input: vec![Item { role: Role::User, text: SECRET.into() }],
            history: History::Session,
            options: GenerationOptions { stop: vec![SECRET.into()], ..GenerationOptions::default() },
            seed: 7,
            origin: Origin::ChatCompletion,
            regenerates: None,
            instructions: Some(SECRET.into()),
            deadline: TimestampMs(AT.0 + 300_000),
        }
    }

    #[test]
    fn an_accepted_turn() {
        let event = SessionEvent::TurnAccepted(accepted());
        let (key, payload) = rendered(SessionKey::api("default", "demo"), event).expect("it is told");
        assert_eq!(key, "demo");
        assert_eq!(
            payload,
            r#"{"specversion":"1.0","id":"chat/6980/42/0","source":"/parlance/chat","type":"parlance.turn.accepted.v1","#.to_owned()
                + r#""subject":"demo","time":"2026-11-27T21:14:15.042Z","datacontenttype":"application/json","#
                + r#""data":{"tenant":"default","channel":"api","session":"demo","turn":"0123456789abcdef0123456789abcdef","#
                + r#""attempt":1,"model":"default","origin":"chat_completion","deadline":"2026-11-27T21:19:15.042Z"}}"#
        );
    }

    #[test]
    fn a_regeneration_in_a_thread_of_a_channel() {
        let session = SessionKey {
            tenant: "t".into(),
            channel: "irc".into(),
            account: "bot".into(),
            chat: "#\"quoted\"".into(),
            thread: "1".into(),
        };
        let options = GenerationOptions { model: "small".into(), ..GenerationOptions::default() };
        let (origin, regenerates) = (Origin::Channel, Some(TurnId(1)));
        let event = SessionEvent::TurnAccepted(TurnAccepted { options, origin, regenerates, ..accepted() });
        let (key, payload) = rendered(session, event).expect("it is told");
        assert_eq!(key, "#\"quoted\"");
        let data =
            r##""subject":"#\"quoted\"","time":"2026-11-27T21:14:15.042Z","datacontenttype":"application/json",""##
                .to_owned()
                + r##"data":{"tenant":"t","channel":"irc","account":"bot","session":"#\"quoted\"","thread":"1","##
                + r#""turn":"0123456789abcdef0123456789abcdef","attempt":1,"model":"small","origin":"channel","#
                + r#""regenerates":"00000000000000000000000000000001","deadline":"2026-11-27T21:19:15.042Z"}}"#;
        assert!(payload.ends_with(&data), "{payload}");
    }

    #[test]
    fn a_reply() {
        let replied = Replied {
            turn: TURN,
            attempt: 2,
            text: SECRET.into(),
            finish: FinishReason::Length,
            usage: Usage { prompt_tokens: 30, completion_tokens: 12, cached_tokens: 8 },
            model: ModelTag { name: "small".into(), digest: "abc".into(), numerics: "int8".into() },
        };
        let event = SessionEvent::Replied(replied);
        let (_, payload) = rendered(SessionKey::api("default", "demo"), event).expect("it is told");
        let expected = r#""type":"parlance.turn.replied.v1","subject":"demo","time":"2026-11-27T21:14:15.042Z","#
            .to_owned()
            + r#""datacontenttype":"application/json","data":{"tenant":"default","channel":"api","session":"demo","#
            + r#""turn":"0123456789abcdef0123456789abcdef","attempt":2,"model":"small","model_digest":"abc","numerics":"int8","#
            + r#""finish":"length","usage":{"prompt_tokens":30,"completion_tokens":12,"cached_tokens":8}}}"#;
        assert!(payload.ends_with(&expected), "{payload}");
    }

    #[test]
    fn a_failure() {
        let (code, message) = ("deadline_exceeded".to_owned(), SECRET.to_owned());
        let event = SessionEvent::TurnFailed(TurnFailed { turn: TURN, attempt: 3, code, message });
        let (_, payload) = rendered(SessionKey::api("default", "demo"), event).expect("it is told");
        let expected = r#""type":"parlance.turn.failed.v1","subject":"demo","time":"2026-11-27T21:14:15.042Z","#
            .to_owned()
            + r#""datacontenttype":"application/json","data":{"tenant":"default","channel":"api","session":"demo","#
            + r#""turn":"0123456789abcdef0123456789abcdef","attempt":3,"code":"deadline_exceeded"}}"#;
        assert!(payload.ends_with(&expected), "{payload}");
    }

    #[test]
    fn of_anything_else_nothing_is_told() {
        for event in [SessionEvent::AttemptStarted(AttemptStarted { turn: TURN, attempt: 2 }), SessionEvent::Deleted] {
            assert_eq!(rendered(SessionKey::api("default", "demo"), event), None);
        }
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_799_999, "2000-02-29T23:59:59.999Z"),
            (1_709_251_200_000, "2024-03-01T00:00:00.000Z"),
            (1_767_225_599_001, "2025-12-31T23:59:59.001Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(TimestampMs(millis)), text);
        }
    }
}
