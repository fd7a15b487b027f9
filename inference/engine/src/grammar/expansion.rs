//! How large a schema becomes where the compiler merges its parts.
//!
//! `allOf`, and what stands beside a `$ref`, are merged into one schema, for which references are replaced by what they refer to. A dozen
//! definitions that each merge the next one with itself make gigabytes of a few kilobytes that way, and the library's own limits count
//! the parts, not their size. So the size is computed before, and so is the number of an object's properties, whose cost is quadratic.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// The most bytes that a merged part may become: some tenths of a second of work.
const MAX_BYTES: u64 = 2 << 20;
/// The most properties of one object: some tenths of a second of work.
const MAX_PROPERTIES: usize = 2_000;

/// Refuses a schema that becomes too large.
///
/// # Errors
///
/// What is too large.
pub(super) fn check(schema: &Value) -> Result<(), String> {
    let mut sizes = Sizes { root: schema, targets: HashMap::new() };
    sizes.check(schema)
}

/// The sizes of the parts of a schema with their references replaced.
struct Sizes<'a> {
    root: &'a Value,
    /// By reference; nothing for one that is being computed, which refers to itself.
    targets: HashMap<&'a str, Option<u64>>,
}

impl<'a> Sizes<'a> {
    fn check(&mut self, schema: &'a Value) -> Result<(), String> {
        match schema {
            Value::Array(values) => values.iter().try_for_each(|value| self.check(value)),
            Value::Object(fields) => {
                if is_merged(fields) && self.of_object(fields) > MAX_BYTES {
                    return Err("what its allOf and $ref merge is too large".to_owned());
                }
                if let Some(Value::Object(properties)) = fields.get("properties")
                    && properties.len() > MAX_PROPERTIES
                {
                    let count = properties.len();
                    return Err(format!(
                        "an object of it has {count} properties; at most {MAX_PROPERTIES} are allowed"
                    ));
                }
                fields.values().try_for_each(|value| self.check(value))
            }
            _ => Ok(()),
        }
    }

    fn of(&mut self, value: &'a Value) -> u64 {
        match value {
            Value::Object(fields) => self.of_object(fields),
            Value::Array(values) => values.iter().fold(1, |sum: u64, value| sum.saturating_add(self.of(value))),
            Value::String(text) => text.len() as u64 + 1,
            Value::Null | Value::Bool(_) | Value::Number(_) => 1,
        }
    }

    fn of_object(&mut self, fields: &'a Map<String, Value>) -> u64 {
        let mut sum: u64 = 1;
        for (key, value) in fields {
            let own = match value {
                Value::String(reference) if key == "$ref" => self.of_target(reference),
                // Only what is referred to counts.
                _ if key == "$defs" || key == "definitions" => 0,
                value => self.of(value),
            };
            sum = sum.saturating_add(key.len() as u64).saturating_add(own);
        }
        sum
    }

    fn of_target(&mut self, reference: &'a str) -> u64 {
        if let Some(known) = self.targets.get(reference) {
            return known.unwrap_or(1);
        }
        let Some(target) = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer)) else { return 1 };
        self.targets.insert(reference, None);
        let size = self.of(target);
        self.targets.insert(reference, Some(size));
        size
    }
}

/// What stands beside a reference without being merged with its target.
const BESIDE: [&str; 9] =
    ["$ref", "$defs", "definitions", "$schema", "$id", "$comment", "title", "description", "default"];

fn is_merged(fields: &Map<String, Value>) -> bool {
    let has_reference = fields.get("$ref").is_some_and(Value::is_string);
    fields.contains_key("allOf") || (has_reference && fields.keys().any(|key| !BESIDE.contains(&key.as_str())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A text's pattern, merged with itself `times` over.
    fn doubled(times: usize, pattern_bytes: usize) -> Value {
        let mut definitions = Map::new();
        for number in 0..times {
            let next = json!({ "$ref": format!("#/$defs/d{}", number + 1) });
            definitions.insert(format!("d{number}"), json!({ "allOf": [next, next] }));
        }
        let pattern = "a".repeat(pattern_bytes);
        definitions.insert(format!("d{times}"), json!({ "type": "string", "pattern": pattern }));
        json!({ "$ref": "#/$defs/d0", "$defs": definitions })
    }

    #[test]
    fn what_merging_multiplies_is_refused_before_it_is_merged() {
        assert_eq!(check(&doubled(3, 1_000)), Ok(()));
        for (times, bytes) in [(12, 1_000), (7, 32_000), (500, 1)] {
            let refused = check(&doubled(times, bytes));
            assert_eq!(refused, Err("what its allOf and $ref merge is too large".into()), "{times} {bytes}");
        }
    }

    #[test]
    fn what_is_only_referred_to_may_be_large() {
        let mut definitions = Map::new();
        for number in 0..30 {
            let next = json!({ "$ref": format!("#/$defs/d{}", number + 1) });
            definitions.insert(format!("d{number}"), json!({ "properties": { "left": next, "right": next } }));
        }
        definitions.insert("d30".into(), json!({ "type": "string" }));
        let shared = json!({ "$ref": "#/$defs/d0", "description": "shared", "$defs": definitions });
        assert_eq!(check(&shared), Ok(()), "nothing is merged");
        let tree = json!({ "allOf": [{ "$ref": "#/$defs/node" }], "$defs": { "node": { "properties": { "next": { "$ref": "#/$defs/node" } } } } });
        assert_eq!(check(&tree), Ok(()), "a reference to itself ends");
    }

    #[test]
    fn objects_have_a_bound_on_their_properties() {
        let with = |count: usize| {
            let properties: Map<_, _> = (0..count).map(|number| (format!("p{number}"), json!({}))).collect();
            json!({ "items": { "properties": properties } })
        };
        assert_eq!(check(&with(MAX_PROPERTIES)), Ok(()));
        assert!(check(&with(MAX_PROPERTIES + 1)).is_err());
    }
}
