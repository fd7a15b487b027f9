//! The request of embeddings.

use parlance_inference_engine::{EmbeddingInput, TokenId};
use serde_json::Value;

use crate::{
    api_error::ApiError,
    generation,
    json::{Object, missing, parse_object, wrong_type},
};

/// The most texts of a request.
const MAX_TEXTS: usize = 2_048;

/// The most values of a vector that can be asked for: beyond any model's.
const MAX_DIMENSIONS: i64 = 65_536;

/// How vectors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    /// As numbers.
    Float,
    /// As the base64 of 32-bit floats, little-endian.
    Base64,
}

/// A parsed request.
#[derive(Debug)]
pub(super) struct EmbeddingsRequest {
    pub(super) model: String,
    pub(super) inputs: Vec<EmbeddingInput>,
    pub(super) encoding: Encoding,
    /// How many values the vectors shall have.
    pub(super) dimensions: Option<usize>,
}

impl EmbeddingsRequest {
    /// Parses and checks a body; `model_header` wins over its model.
    pub(super) fn parse(body: &[u8], model_header: Option<&str>) -> Result<Self, ApiError> {
        let mut body = parse_object(body)?;
        let model = generation::model(&mut body, model_header)?;
        let inputs = inputs(body.take("input").ok_or_else(|| missing("input"))?)?;
        let encoding = encoding(&mut body)?;
        let dimensions = body.integer("dimensions", 1..=MAX_DIMENSIONS)?.map(|values| values as usize);
        // Nothing is kept that the caller's user could be told by.
        generation::user(&mut body)?;
        generation::check_rest(&body)?;
        Ok(Self { model, inputs, encoding, dimensions })
    }
}

fn encoding(body: &mut Object) -> Result<Encoding, ApiError> {
    match body.string("encoding_format")?.as_deref() {
        None | Some("float") => Ok(Encoding::Float),
        Some("base64") => Ok(Encoding::Base64),
        Some(other) => {
            let message = format!("Invalid value: '{other}'. Supported values are: 'float', 'base64'.");
            Err(ApiError::invalid(Some("encoding_format".into()), message))
        }
    }
}

/// A text, an array of texts, the tokens of a text, or an array of such arrays.
fn inputs(input: Value) -> Result<Vec<EmbeddingInput>, ApiError> {
    let values = match input {
        Value::String(text) => return Ok(vec![text_input(text, "input")?]),
        Value::Array(values) if matches!(values.first(), Some(Value::Number(_))) => {
            return Ok(vec![EmbeddingInput::Tokens(tokens(values, "input")?)]);
        }
        Value::Array(values) => values,
        other => return Err(wrong_type("input", "a string or an array", &other)),
    };
    if values.is_empty() || values.len() > MAX_TEXTS {
        let message = format!("Invalid 'input': expected 1 to {MAX_TEXTS} texts, not {}.", values.len());
        return Err(ApiError::invalid(Some("input".into()), message));
    }
    let numbered = values.into_iter().enumerate();
    numbered.map(|(number, value)| one_of_several(value, &format!("input[{number}]"))).collect()
}

fn one_of_several(value: Value, path: &str) -> Result<EmbeddingInput, ApiError> {
    match value {
        Value::String(text) => text_input(text, path),
        Value::Array(values) => tokens(values, path).map(EmbeddingInput::Tokens),
        other => Err(wrong_type(path, "a string or an array of tokens", &other)),
    }
}

fn text_input(text: String, path: &str) -> Result<EmbeddingInput, ApiError> {
    if text.is_empty() {
        return Err(ApiError::invalid(Some(path.into()), format!("Invalid '{path}': it must not be empty.")));
    }
    Ok(EmbeddingInput::Text(text))
}

fn tokens(values: Vec<Value>, path: &str) -> Result<Vec<TokenId>, ApiError> {
    let token = |value: Value| {
        let token = value.as_u64().and_then(|token| TokenId::try_from(token).ok());
        token.ok_or_else(|| wrong_type(path, "an array of tokens, which are whole numbers", &value))
    };
    values.into_iter().map(token).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<EmbeddingsRequest, (String, Option<String>)> {
        EmbeddingsRequest::parse(body.as_bytes(), None).map_err(|error| (error.code.into_owned(), error.param))
    }

    #[test]
    fn texts_and_tokens_come_alone_and_in_arrays() {
        let text = |text: &str| EmbeddingInput::Text(text.into());
        let tokens = |tokens: &[TokenId]| EmbeddingInput::Tokens(tokens.to_vec());
        for (input, expected) in [
            (r#""one""#, vec![text("one")]),
            (r#"["one", "two"]"#, vec![text("one"), text("two")]),
            ("[5, 6]", vec![tokens(&[5, 6])]),
            ("[[5, 6], [7]]", vec![tokens(&[5, 6]), tokens(&[7])]),
        ] {
            let parsed = parse(&format!(r#"{{"model": "m", "input": {input}}}"#)).expect("a good request");
            assert_eq!((parsed.inputs, parsed.encoding, parsed.dimensions), (expected, Encoding::Float, None));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let many = vec![r#""a""#; MAX_TEXTS + 1].join(",");
        for (fields, param) in [
            (r#""model": "m""#.to_owned(), "input"),
            (r#""input": """#.to_owned(), "input"),
            (r#""input": []"#.to_owned(), "input"),
            (r#""input": {}"#.to_owned(), "input"),
            (format!(r#""input": [{many}]"#), "input"),
            (r#""input": ["a", ""]"#.to_owned(), "input[1]"),
            (r#""input": ["a", 5]"#.to_owned(), "input[1]"),
            (r#""input": [5, "a"]"#.to_owned(), "input"),
            (r#""input": [-5]"#.to_owned(), "input"),
            (r#""input": [1.5]"#.to_owned(), "input"),
            (r#""input": [[4294967296]]"#.to_owned(), "input[0]"),
            (r#""input": "a", "encoding_format": "hex""#.to_owned(), "encoding_format"),
            (r#""input": "a", "dimensions": 0"#.to_owned(), "dimensions"),
            (r#""input": "a", "tempurature": 0"#.to_owned(), "tempurature"),
        ] {
            let (_, named) = parse(&format!("{{{fields}}}")).expect_err(&fields);
            assert_eq!(named.as_deref(), Some(param), "{fields}");
        }
    }
}
