//! `/admin/v1/adoption`: sessions of another log, as `parlance data adopt` brings them.

use axum::{
    Extension, Json,
    extract::{Request, State},
};
use parlance_actors_runtime::adoption::Extent;
use serde_json::{Value, json};

use crate::{
    api_error::ApiError,
    app::Shared,
    auth::{Peer, require_operator},
    body::{read_json, read_octets},
    generation,
    json::parse_object,
};

/// The most bytes of a part: what an entry of a log may have.
const MAX_PART_BYTES: usize = 1 << 20;

/// Takes over one part of a session.
pub(crate) async fn adopt(
    State(app): State<Shared>,
    peer: Option<Extension<Peer>>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    require_operator(peer.map(|Extension(peer)| peer))?;
    let part = read_octets(request, MAX_PART_BYTES, &app.limits).await?;
    app.node.sessions().adopt(part).await?;
    Ok(Json(json!({ "object": "adoption.part" })))
}

/// Tells what the records hold of a session. Its key, in hexadecimal, stands in the body: a path would be in logs.
pub(crate) async fn compare(
    State(app): State<Shared>,
    peer: Option<Extension<Peer>>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    require_operator(peer.map(|Extension(peer)| peer))?;
    let (_, body) = read_json(request, &app.limits).await?;
    let mut body = parse_object(&body)?;
    let no_key = || ApiError::invalid(Some("session".into()), "'session' is no key in hexadecimal.");
    let session = from_hex(&body.required_string("session")?).ok_or_else(no_key)?;
    let mut number = |name| Ok::<_, ApiError>(body.integer(name, 0..=i64::MAX)?.map(i64::unsigned_abs));
    let extent = Extent {
        items_below: number("items_below")?.unwrap_or(u64::MAX),
        keys_after_ms: number("keys_after_ms")?.unwrap_or(0),
    };
    generation::check_rest(&body)?;
    let found = app.node.sessions().compare(&session, extent).await?;
    Ok(Json(json!({
        "object": "adoption.comparison",
        "adopted": found.adopted.map(|digest| to_hex(&digest)),
        "changed": found.changed,
        "deleted": found.deleted,
        "items": found.items,
        "keys": found.keys,
        "digest": to_hex(&found.digest),
    })))
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |digit: &u8| char::from(*digit).to_digit(16);
    let byte = |pair: &[u8]| match pair {
        [high, low] => u8::try_from(digit(high)? << 4 | digit(low)?).ok(),
        _ => None,
    };
    text.as_bytes().chunks(2).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_were_written() {
        let key = [0, 0x0f, 0xf0, 0xff];
        assert_eq!(from_hex(&to_hex(&key)).as_deref(), Some(&key[..]));
        for wrong in ["0", "0g", "+1", "é"] {
            assert_eq!(from_hex(wrong), None, "{wrong:?}");
        }
    }
}
