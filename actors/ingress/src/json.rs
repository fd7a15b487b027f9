//! Reading request bodies strictly: every error names the parameter or the place.
//!
//! A body is parsed once, into values; fields are then taken out by name. A key that occurs twice is refused, since two readers
//! could otherwise see two different requests. `null` counts as absent, as the official clients send it.

use std::{fmt, ops::RangeInclusive};

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::api_error::ApiError;

/// The longest name of a schema or a tool, in bytes.
const MAX_NAME: usize = 64;

/// A JSON object on its way to being taken apart, and where it stands in the request.
#[derive(Debug)]
pub(crate) struct Object {
    fields: Map<String, Value>,
    /// What comes before a field's name in `param`: empty, or for example `messages[0].`.
    prefix: String,
}

/// Parses a request body that must be one JSON object.
pub(crate) fn parse_object(body: &[u8]) -> Result<Object, ApiError> {
    match parse(body)? {
        Value::Object(fields) => Ok(Object { fields, prefix: String::new() }),
        other => Err(ApiError::invalid(None, format!("The request body must be a JSON object, not {}.", kind(&other)))),
    }
}

/// Parses a whole text as one JSON value.
pub(crate) fn parse(body: &[u8]) -> Result<Value, ApiError> {
    let text = std::str::from_utf8(body).map_err(|error| {
        ApiError::bad_json(format!("The request body is not valid UTF-8 at byte {}.", error.valid_up_to()))
    })?;
    if text.trim_ascii().is_empty() {
        return Err(ApiError::bad_json("The request body is empty; it must be a JSON object.".into()));
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Strict.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    value.map_err(|error| ApiError::bad_json(format!("The request body is not valid JSON: {error}.")))
}

/// What a value is, in words.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

impl Object {
    /// An object that stands at `path` of the request.
    pub(crate) fn at(value: Value, path: &str) -> Result<Self, ApiError> {
        match value {
            Value::Object(fields) => Ok(Self { fields, prefix: format!("{path}.") }),
            other => Err(wrong_type(path, "an object", &other)),
        }
    }

    /// Where a field stands in the request, as `param` names it.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Takes a field out; `null` counts as absent.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.fields.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a string out.
    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(&self.path(name), "a string", &other)),
        }
    }

    /// Takes a string out that must be there.
    pub(crate) fn required_string(&mut self, name: &str) -> Result<String, ApiError> {
        self.string(name)?.ok_or_else(|| missing(&self.path(name)))
    }

    /// Takes `name` out: what a schema or a tool is called.
    pub(crate) fn name(&mut self) -> Result<String, ApiError> {
        let (path, name) = (self.path("name"), self.required_string("name")?);
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(is_allowed) {
            let message = format!("Invalid '{path}': 1 to {MAX_NAME} letters, digits, underscores and hyphens.");
            return Err(ApiError::invalid(Some(path), message));
        }
        Ok(name)
    }

    /// Takes a boolean out.
    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(wrong_type(&self.path(name), "a boolean", &other)),
        }
    }

    /// Takes an array out.
    pub(crate) fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(wrong_type(&self.path(name), "an array", &other)),
        }
    }

    /// Takes an object out.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Self>, ApiError> {
        let path = self.path(name);
        self.take(name).map(|value| Self::at(value, &path)).transpose()
    }

    /// Takes a whole number out of the given range.
    pub(crate) fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let path = self.path(name);
        let Some(value) = self.take(name) else { return Ok(None) };
        let Value::Number(number) = &value else { return Err(wrong_type(&path, "an integer", &value)) };
        match number.as_i64() {
            Some(integer) if range.contains(&integer) => Ok(Some(integer)),
            None if number.is_f64() => Err(wrong_type(&path, "an integer", &value)),
            _ => Err(out_of_range(&path, &range, number)),
        }
    }

    /// Takes a number out of the given range.
    pub(crate) fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f32>, ApiError> {
        let path = self.path(name);
        let Some(value) = self.take(name) else { return Ok(None) };
        let Value::Number(number) = &value else { return Err(wrong_type(&path, "a number", &value)) };
        match number.as_f64() {
            Some(real) if range.contains(&real) => Ok(Some(real as f32)),
            _ => Err(out_of_range(&path, &range, number)),
        }
    }

    /// The names that nobody took.
    pub(crate) fn rest(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.fields.iter().filter(|(_, value)| !value.is_null())
    }
}

/// The error for a value of the wrong type.
pub(crate) fn wrong_type(path: &str, expected: &str, found: &Value) -> ApiError {
    let found = match found {
        Value::Number(number) if number.is_f64() => "a decimal number",
        other => kind(other),
    };
    ApiError::invalid(
        Some(path.into()),
        format!("Invalid type for '{path}': expected {expected}, but got {found} instead."),
    )
}

/// The error for a value that must be there.
pub(crate) fn missing(path: &str) -> ApiError {
    ApiError::invalid(Some(path.into()), format!("Missing required parameter: '{path}'."))
}

fn out_of_range<T: fmt::Debug>(path: &str, range: &RangeInclusive<T>, found: &serde_json::Number) -> ApiError {
    let (low, high) = (range.start(), range.end());
    ApiError::invalid(
        Some(path.into()),
        format!("Invalid value for '{path}': expected a value between {low:?} and {high:?}, but got {found}."),
    )
}

/// Builds a [`Value`] and refuses a key that occurs twice in one object.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(Strict)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if fields.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key `{key}` occurs twice")));
            }
            fields.insert(key, entries.next_value_seed(Strict)?);
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &[u8]) -> String {
        parse(body).err().map(|error| error.message).unwrap_or_default()
    }

    #[test]
    fn broken_bodies_are_refused_with_their_place() {
        assert!(message(b"{\"a\": }").contains("line 1 column 7"));
        assert!(message(b"{\"a\": 1").contains("EOF"));
        assert!(message(b"{} {}").contains("trailing characters"));
        assert!(message(b"{\"a\": \"\xff\"}").contains("UTF-8 at byte 7"));
        assert!(message(b"{\"a\": NaN}").contains("line 1"));
        assert!(message(b"{\"a\": 1e400}").contains("number out of range"));
        assert!(message(b"{\"a\": 1, \"a\": 2}").contains("the key `a` occurs twice"));
        assert!(message("[".repeat(10_000).as_bytes()).contains("recursion limit"));
        assert!(message(b"  ").contains("empty"));
    }

    #[test]
    fn values_equal_those_of_a_plain_reader() {
        let text = r#"{"a": [1, -2, 3.5, true, null, "x\u00e9"], "b": {"c": 18446744073709551615}}"#;
        let plain: Value = serde_json::from_str(text).expect("the text is JSON");
        assert_eq!(parse(text.as_bytes()).expect("the text is JSON"), plain);
    }

    #[test]
    fn fields_are_typed_and_bounded() {
        let mut object =
            parse_object(br#"{"n": 3.5, "s": 1, "big": 99999999999999999999, "none": null}"#).expect("an object");
        assert_eq!(object.integer("n", 0..=9).expect_err("a decimal").param.as_deref(), Some("n"));
        assert_eq!(object.string("s").expect_err("a number").param.as_deref(), Some("s"));
        assert!(object.integer("big", 0..=9).is_err());
        assert_eq!(object.boolean("none").expect("null is absent"), None);
        assert_eq!(object.rest().count(), 0);
    }
}
