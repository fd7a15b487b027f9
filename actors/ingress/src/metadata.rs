//! The owner's labels on a conversation.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    api_error::ApiError,
    json::{Object, wrong_type},
};

/// The interface's own bounds: pairs, and bytes of a key and of a value.
const MAX_PAIRS: usize = 16;
const MAX_KEY: usize = 64;
const MAX_VALUE: usize = 512;

/// Takes `metadata` out of a request.
pub(crate) fn take(body: &mut Object) -> Result<Option<BTreeMap<String, String>>, ApiError> {
    let path = body.path("metadata");
    let Some(value) = body.take("metadata") else { return Ok(None) };
    let Value::Object(pairs) = value else { return Err(wrong_type(&path, "an object", &value)) };
    let invalid = |message: String| ApiError::invalid(Some(path.clone()), message);
    if pairs.len() > MAX_PAIRS {
        return Err(invalid(format!("Invalid '{path}': at most {MAX_PAIRS} pairs.")));
    }
    let mut metadata = BTreeMap::new();
    for (key, value) in pairs {
        let Value::String(value) = value else {
            return Err(wrong_type(&format!("{path}.{key}"), "a string", &value));
        };
        if key.len() > MAX_KEY || value.len() > MAX_VALUE {
            let message =
                format!("Invalid '{path}': a key has at most {MAX_KEY} bytes and a value at most {MAX_VALUE}.");
            return Err(invalid(message));
        }
        metadata.insert(key, value);
    }
    Ok(Some(metadata))
}
