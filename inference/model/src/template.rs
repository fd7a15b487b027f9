//! The chat template of a model, rendered so that message content cannot pass for the template's own control tokens.
//!
//! Templates may trim, compare and cut contents, so contents go through the template as they are, with one exception: where a
//! content spells a control token, or its edge could complete one together with the template's text next to it, a guard
//! character is put in. The guard occurs nowhere else, keeps the spelling from being recognised, and is taken out again before
//! the text is encoded.

mod tools;

use std::{borrow::Cow, collections::HashSet, ops::RangeInclusive};

use minijinja::{Environment, ErrorKind, Value, context, syntax::SyntaxConfig};
use parlance_inference_engine::{ChatMessage, ChatRole, ToolPrompt, ToolSyntax};

/// The most work that one rendering may take, in minijinja's units (about an instruction or 64 bytes each): enough for
/// megabytes of messages, and an end to a template that loops.
const RENDER_FUEL: u64 = 4_000_000;
const TEMPLATE_NAME: &str = "chat";
/// Guards are taken from the private use planes, where no text has characters by agreement.
const GUARDS: RangeInclusive<char> = '\u{F0000}'..='\u{FFFFD}';

/// A compiled chat template.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    control: Vec<String>,
    bos_text: String,
    eos_text: String,
}

/// A rendered prompt.
pub(crate) struct Rendered {
    pub(crate) text: String,
    /// The character to drop once the control tokens were found, if any was needed.
    pub(crate) guard: Option<char>,
}

impl ChatTemplate {
    /// Compiles `source`. `control` are the spellings of the control tokens.
    ///
    /// # Errors
    ///
    /// What is wrong with the template.
    pub(crate) fn new(source: &str, control: Vec<String>, bos_text: &str, eos_text: &str) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(RENDER_FUEL));
        // As in transformers, which templates are written for.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| error.to_string())?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", tools::to_json);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment
            .add_template_owned(TEMPLATE_NAME, source.to_owned())
            .map_err(|error| format!("the chat template does not compile: {error}"))?;
        Ok(Self {
            environment,
            source: source.to_owned(),
            control,
            bos_text: bos_text.to_owned(),
            eos_text: eos_text.to_owned(),
        })
    }

    /// Renders `messages` up to where the assistant speaks.
    ///
    /// # Errors
    ///
    /// What the template objects to.
    pub(crate) fn render(&self, messages: &[ChatMessage<'_>]) -> Result<Rendered, String> {
        self.render_with_tools(messages, ToolPrompt::default())
    }

    /// How the model is told to write calls of tools; nothing if the template has none.
    pub(crate) fn tool_syntax(&self) -> Option<ToolSyntax> {
        ToolSyntax::of_template(&self.source)
    }

    /// As [`render`](Self::render), with tools.
    ///
    /// # Errors
    ///
    /// What the template objects to.
    pub(crate) fn render_with_tools(
        &self,
        messages: &[ChatMessage<'_>],
        tools: ToolPrompt<'_>,
    ) -> Result<Rendered, String> {
        let texts = || messages.iter().map(|message| message.content).chain(tools::texts(tools));
        // JSON can spell a control token by escapes, which only its decoded texts show.
        let has_json = !tools.tools.is_empty() || !tools.messages.is_empty();
        let needed = has_json || texts().any(|text| !self.guard_places(text).is_empty());
        let guard = if needed { Some(self.unused_guard(texts())?) } else { None };
        let guarded = |text: &str| self.guarded(text, guard).into_owned();
        let views: Vec<_> = messages
            .iter()
            .enumerate()
            .map(|(number, message)| {
                let own = [
                    ("role", Value::from(role_name(message.role))),
                    ("content", Value::from(guarded(message.content))),
                ];
                let of_tools = tools.messages.get(number).map(|said| tools::fields(said, &guarded)).transpose()?;
                Ok(Value::from_pairs(own.into_iter().chain(of_tools.unwrap_or_default())))
            })
            .collect::<Result<_, String>>()?;
        let offered = tools::offered(tools, &guarded)?;
        let template = self.environment.get_template(TEMPLATE_NAME).map_err(|error| error.to_string())?;
        let context = context! {
            messages => views,
            add_generation_prompt => true,
            bos_token => &self.bos_text,
            eos_token => &self.eos_text,
            tools => offered,
        };
        let text = template.render(context).map_err(|error| error.to_string())?;
        Ok(Rendered { text, guard })
    }

    fn guarded<'a>(&self, content: &'a str, guard: Option<char>) -> Cow<'a, str> {
        let Some(guard) = guard else { return content.into() };
        let places = self.guard_places(content);
        let mut out = String::with_capacity(content.len() + places.len() * guard.len_utf8());
        let mut done = 0;
        for place in places {
            out.push_str(&content[done..place]);
            out.push(guard);
            done = place;
        }
        out.push_str(&content[done..]);
        out.into()
    }

    /// Where the guard must go into `content`: inside every spelling of a control token, and at an edge that could be part of
    /// one. Edges are those of the trimmed content, as most templates trim.
    fn guard_places(&self, content: &str) -> Vec<usize> {
        let mut places = Vec::new();
        for control in &self.control {
            let inside = control.chars().next().map_or(0, char::len_utf8);
            // Spellings may overlap, so the search goes on one character later.
            let mut from = 0;
            while let Some(found) = content[from..].find(control.as_str()) {
                places.push(from + found + inside);
                from += found + inside;
            }
        }
        let trimmed = content.trim();
        let begin = content.len() - content.trim_start().len();
        if self.control.iter().any(|control| begins_with_part_of(trimmed, control)) {
            places.push(begin);
        }
        if self.control.iter().any(|control| ends_with_part_of(trimmed, control)) {
            places.push(begin + trimmed.len());
        }
        places.sort_unstable();
        places.dedup();
        places
    }

    /// A character that neither the messages nor the template have.
    fn unused_guard<'a>(&'a self, texts: impl Iterator<Item = &'a str>) -> Result<char, String> {
        let texts = texts.chain([self.source.as_str()]);
        let used: HashSet<char> = texts.flat_map(str::chars).filter(|char| GUARDS.contains(char)).collect();
        let mut guards = GUARDS;
        guards
            .find(|guard| !used.contains(guard))
            .ok_or_else(|| "the messages use every private use character and spell a control token".to_owned())
    }
}

/// The names that templates compare with.
fn role_name(role: ChatRole) -> &'static str {
    match role {
        ChatRole::System => "system",
        ChatRole::User => "user",
        ChatRole::Assistant => "assistant",
        ChatRole::Tool => "tool",
    }
}

/// Whether `text` could be the end of `control`, or a part from its middle, where the template wrote what comes before.
fn begins_with_part_of(text: &str, control: &str) -> bool {
    !text.is_empty()
        && control.char_indices().skip(1).any(|(at, _)| {
            let rest = &control[at..];
            text.starts_with(rest) || rest.starts_with(text)
        })
}

/// Whether `text` could be the beginning of `control`, where the template writes what comes after.
fn ends_with_part_of(text: &str, control: &str) -> bool {
    control.char_indices().skip(1).any(|(at, _)| text.ends_with(&control[..at]))
}
