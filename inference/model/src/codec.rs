//! Text to tokens and back for one model: its tokenizer and chat template behind [`TextCodec`].

use std::path::Path;

use parlance_inference_engine::{
    ChatMessage, ChatRole, EngineError, ReplicaInfo, TextCodec, TokenId, ToolPrompt, ToolSyntax,
};

use crate::{ModelError, template::ChatTemplate, tokenizer::Tokenizer};

/// The tokenizer and chat template of a model.
pub struct ChatCodec {
    info: ReplicaInfo,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    /// A control token that begins calls of tools: it stands for its own text, since calls are found in text.
    call_mark: Option<(TokenId, &'static str)>,
}

impl ChatCodec {
    pub(crate) fn new(info: ReplicaInfo, tokenizer: Tokenizer, template: ChatTemplate) -> Self {
        let mark = template.tool_syntax().map(ToolSyntax::mark).unwrap_or_default();
        let call_mark = tokenizer.control_token(mark).map(|token| (token, mark));
        Self { info, tokenizer, template, call_mark }
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
        self.encode_with_tools(messages, ToolPrompt::default())
    }

    fn tool_syntax(&self) -> Option<ToolSyntax> {
        self.template.tool_syntax()
    }

    fn encode_with_tools(
        &self,
        messages: &[ChatMessage<'_>],
        tools: ToolPrompt<'_>,
    ) -> Result<Vec<TokenId>, EngineError> {
        let rendered = self.template.render_with_tools(messages, tools).map_err(EngineError::Template)?;
        let text = rendered.text + tools.lead;
        self.tokenizer.encode_with_control(&text, rendered.guard).map_err(EngineError::Template)
    }

    fn token_bytes(&self, token: TokenId) -> &[u8] {
        if let Some((_, mark)) = self.call_mark.filter(|(mark, _)| *mark == token) {
            return mark.as_bytes();
        }
        self.tokenizer.token_bytes(token)
    }

    fn is_end(&self, token: TokenId) -> bool {
        self.tokenizer.is_end(token)
    }
}

/// Compiles the chat template `source` of the model in `file`, and tries it on one message.
///
/// # Errors
///
/// [`ModelError::Inconsistent`] if it does not compile or fails.
pub(crate) fn template(file: &Path, source: &str, tokenizer: &Tokenizer) -> Result<ChatTemplate, ModelError> {
    let control = tokenizer.control_texts().map(str::to_owned).collect();
    let inconsistent = |problem: String| ModelError::inconsistent(file, problem);
    let template =
        ChatTemplate::new(source, control, tokenizer.bos_text(), tokenizer.eos_text()).map_err(inconsistent)?;
    let probe = ChatMessage { role: ChatRole::User, content: "Hello" };
    template
        .render(std::slice::from_ref(&probe))
        .map_err(|problem| inconsistent(format!("its chat template fails on a greeting: {problem}")))?;
    Ok(template)
}
