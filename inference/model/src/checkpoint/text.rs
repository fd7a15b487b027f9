//! The tokenizer and the chat template of a directory.

use serde_json::Value;

use super::{Checkpoint, json::Object};
use crate::{
    ModelError,
    tokenizer::{JsonTokenizer, SpecialTokens, Tokenizer},
};

impl Checkpoint {
    /// Builds the tokenizer, for a model with `vocabulary` tokens.
    ///
    /// # Errors
    ///
    /// [`ModelError`] if it is damaged, of an unsupported kind, or larger than the model's vocabulary.
    pub(crate) fn tokenizer(&self, vocabulary: usize) -> Result<Tokenizer, ModelError> {
        let object = self.tokenizer.object();
        let refused = |problem: String| object.inconsistent(format!("the tokenizer cannot be used: {problem}"));
        let tokenizer = JsonTokenizer::read(self.tokenizer.entries().clone()).map_err(refused)?;
        if tokenizer.least_vocabulary() > vocabulary {
            let problem = format!("it has the token {}", tokenizer.least_vocabulary() - 1);
            return Err(refused(format!("{problem}, but \"vocab_size\" in config.json is {vocabulary}")));
        }
        let config = self.tokenizer_config.object();
        let special = SpecialTokens {
            bos_text: token_text(config, "bos_token")?,
            eos_text: token_text(config, "eos_token")?,
            ends: self.ends()?,
        };
        tokenizer.build(special).map_err(refused)
    }

    /// The source of the chat template.
    ///
    /// # Errors
    ///
    /// [`ModelError`] if there is none.
    pub(crate) fn template(&self) -> Result<&str, ModelError> {
        if let Some(file) = &self.template {
            let text = std::str::from_utf8(file.bytes());
            return text.map_err(|_| ModelError::inconsistent(file.path(), "it is not UTF-8"));
        }
        let config = self.tokenizer_config.object();
        match config.value("chat_template") {
            Some(Value::Array(several)) => default_template(several).ok_or_else(|| {
                config.inconsistent("none of the templates in the entry \"chat_template\" is named \"default\"")
            }),
            Some(_) => config.string("chat_template"),
            None => Err(ModelError::inconsistent(
                self.directory(),
                "it has no chat template: neither chat_template.jinja nor the entry \"chat_template\" in \
                 tokenizer_config.json",
            )),
        }
    }

    /// The end tokens that `generation_config.json` and `config.json` name.
    fn ends(&self) -> Result<Vec<u32>, ModelError> {
        let mut ends = Vec::new();
        for file in self.generation_config.iter().chain([&self.config]) {
            let object = file.object();
            match object.value("eos_token_id") {
                None => {}
                Some(Value::Array(several)) => {
                    let numbers = several.iter().map(|number| u32::try_from(number.as_u64()?).ok());
                    let numbers = numbers.collect::<Option<Vec<_>>>();
                    ends.extend(numbers.ok_or_else(|| {
                        object.inconsistent("the entry \"eos_token_id\" is not an integer or an array of them")
                    })?);
                }
                Some(_) => ends.extend(object.u32_or_none("eos_token_id")?),
            }
        }
        Ok(ends)
    }
}

/// The text of a token: a string, or an object with the string as its content.
fn token_text(config: Object<'_>, key: &str) -> Result<String, ModelError> {
    let text = match config.value(key) {
        Some(Value::Object(_)) => match config.object_or_none(key, "")? {
            Some(token) => Some(token.string("content")?),
            None => None,
        },
        _ => config.string_or_none(key)?,
    };
    Ok(text.unwrap_or_default().to_owned())
}

/// Of several named templates, the one for chats without tools or documents.
fn default_template(several: &[Value]) -> Option<&str> {
    let named = |template: &&Value| template.get("name").and_then(Value::as_str) == Some("default");
    several.iter().find(named)?.get("template")?.as_str()
}
