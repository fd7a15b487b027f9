//! Text to tokens and back for one model: its tokenizer and chat template behind [`TextCodec`].

use std::path::Path;

use parlance_inference_engine::{ChatMessage, ChatRole, EngineError, ReplicaInfo, TextCodec, TokenId};

use crate::{ModelError, gguf::Metadata, template::ChatTemplate, tokenizer::Tokenizer};

/// The tokenizer and chat template of a model.
pub struct ChatCodec {
    info: ReplicaInfo,
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

impl ChatCodec {
    pub(crate) fn new(info: ReplicaInfo, tokenizer: Tokenizer, template: ChatTemplate) -> Self {
        Self { info, tokenizer, template }
    }

    /// Encodes text in which nothing counts as a control token.
    ///
    /// # Errors
    ///
    /// [`EngineError::Template`] if the tokenizer fails.
    pub fn encode_text(&self, text: &str) -> Result<Vec<TokenId>, EngineError> {
        let mut tokens = Vec::new();
        self.tokenizer.encode_text(text, &mut tokens).map_err(EngineError::Template)?;
        Ok(tokens)
    }
}

impl TextCodec for ChatCodec {
    fn info(&self) -> &ReplicaInfo {
        &self.info
    }

    fn encode_chat(&self, messages: &[ChatMessage<'_>]) -> Result<Vec<TokenId>, EngineError> {
        let rendered = self.template.render(messages).map_err(EngineError::Template)?;
        self.tokenizer.encode_with_control(&rendered.text, rendered.guard).map_err(EngineError::Template)
    }

    fn token_bytes(&self, token: TokenId) -> &[u8] {
        self.tokenizer.token_bytes(token)
    }

    fn is_end(&self, token: TokenId) -> bool {
        self.tokenizer.is_end(token)
    }
}

/// Builds the tokenizer and the chat template that `metadata` describes, and tries them on one message.
///
/// # Errors
///
/// [`ModelError`] if either is missing, of an unsupported kind or unusable.
pub(crate) fn read(file: &Path, metadata: &Metadata<'_>) -> Result<(Tokenizer, ChatTemplate), ModelError> {
    let tokenizer = Tokenizer::from_metadata(metadata)?;
    let source = metadata.string("tokenizer.chat_template")?;
    let control = tokenizer.control_texts().map(str::to_owned).collect();
    let inconsistent = |problem| ModelError::Inconsistent { file: file.to_path_buf(), problem };
    let template =
        ChatTemplate::new(source, control, tokenizer.bos_text(), tokenizer.eos_text()).map_err(inconsistent)?;
    let probe = ChatMessage { role: ChatRole::User, content: "Hello" };
    template
        .render(std::slice::from_ref(&probe))
        .map_err(|problem| inconsistent(format!("its chat template fails on a greeting: {problem}")))?;
    Ok((tokenizer, template))
}
