//! The stored shape of what a reply is held to.

use crate as domain;
use crate::WireError;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Format {
    #[prost(oneof = "Kind", tags = "1, 2")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Kind {
    #[prost(message, tag = "1")]
    JsonObject(JsonObject),
    #[prost(message, tag = "2")]
    JsonSchema(JsonSchema),
}

#[derive(Clone, PartialEq, prost::Message)]
struct JsonObject {}

#[derive(Clone, PartialEq, prost::Message)]
struct JsonSchema {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    schema: String,
}

impl From<&domain::OutputFormat> for Format {
    fn from(format: &domain::OutputFormat) -> Self {
        let kind = match format {
            domain::OutputFormat::JsonObject => Kind::JsonObject(JsonObject {}),
            domain::OutputFormat::JsonSchema { name, schema } => {
                Kind::JsonSchema(JsonSchema { name: name.clone(), schema: schema.clone() })
            }
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<Format> for domain::OutputFormat {
    type Error = WireError;

    /// A kind from a newer release is refused: without it the reply would be held to nothing.
    fn try_from(format: Format) -> Result<Self, WireError> {
        match format.kind {
            None => Err(WireError::UnknownKind { what: "OutputFormat" }),
            Some(Kind::JsonObject(JsonObject {})) => Ok(Self::JsonObject),
            Some(Kind::JsonSchema(JsonSchema { name, schema })) => Ok(Self::JsonSchema { name, schema }),
        }
    }
}
