//! What the grammar's own notion of a format lets through and validators of JSON schemas do not.

use serde_json::{Map, Value};

/// Values, not schemas, whatever they look like.
const DATA: [&str; 4] = ["const", "default", "enum", "examples"];

/// Patterns that hold besides the formats: no leap day, since most years have none; no leap second, since most minutes have none;
/// parts of addresses no longer than RFC 5321 and RFC 1035 allow.
fn pattern(format: &str) -> Option<&'static str> {
    match format {
        "date" => Some(r"^[1-9][0-9]{3}-(02-[01][0-9]|02-2[0-8]|(0[13-9]|1[0-2])-[0-9]{2})$"),
        "date-time" => {
            Some(r"^[1-9][0-9]{3}-(02-[01][0-9]|02-2[0-8]|(0[13-9]|1[0-2])-[0-9]{2})T[0-9]{2}:[0-9]{2}:[0-5][0-9]")
        }
        "time" => Some(r"^[0-9]{2}:[0-9]{2}:[0-5][0-9]"),
        "email" => Some(r"^[^@]{1,64}@([a-zA-Z0-9-]{1,63}\.){1,3}[a-zA-Z]{2,10}$"),
        "hostname" => Some(r"^.{1,253}$"),
        _ => None,
    }
}

/// Puts the patterns next to the formats that need them, wherever the schema has no pattern of its own there.
pub(super) fn tighten(schema: &mut Value) {
    match schema {
        Value::Array(schemas) => schemas.iter_mut().for_each(tighten),
        Value::Object(fields) => {
            tighten_one(fields);
            let nested = fields.iter_mut().filter(|(name, _)| !DATA.contains(&name.as_str()));
            nested.for_each(|(_, value)| tighten(value));
        }
        _ => {}
    }
}

fn tighten_one(fields: &mut Map<String, Value>) {
    let Some(pattern) = fields.get("format").and_then(Value::as_str).and_then(pattern) else { return };
    fields.entry("pattern").or_insert_with(|| pattern.into());
}
