//! Calls of tools in what a model writes: a reply comes in pieces, cut anywhere, and leaves as text and whole calls.
//!
//! | syntax | what a call looks like |
//! |---|---|
//! | Hermes, Qwen | `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, anywhere, any number |
//! | Mistral | `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]` |
//! | Llama 3 | `{"name": …, "parameters": {…}}` as the whole reply, several with `;` between them |
//! | forced | one JSON object of the above, which a grammar held the whole reply to |
//!
//! What looks like a call and is none is text: nothing of a reply is lost.

use parlance_inference_engine::ToolSyntax;
use serde_json::{Map, Value};

/// The longest call that is waited for; what goes on past it is text.
const MAX_CALL_BYTES: usize = 256 * 1024;

/// A call, as a model wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenCall {
    /// The tool's name.
    pub name: String,
    /// Its arguments: the text of a JSON object.
    pub arguments: String,
}

/// A piece of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Text for the reader.
    Text(String),
    /// A call.
    Call(WrittenCall),
}

/// How the calls of one reply are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallSyntax {
    /// As the model's family writes them, between text.
    Free(ToolSyntax),
    /// The whole reply is one call.
    Forced,
}

/// Reads one reply.
///
/// Invariant: the texts and calls that came out are those of the whole text, however it was cut.
#[derive(Debug)]
pub struct CallReader {
    syntax: CallSyntax,
    /// What is not decided yet.
    held: String,
    /// Whether a call has begun: `held` is behind its beginning mark.
    in_call: bool,
    /// Whether anything came before, which ends the syntax that has calls at the beginning alone.
    begun: bool,
}

impl CallReader {
    /// A reader of a reply with calls in this syntax.
    pub fn new(syntax: CallSyntax) -> Self {
        let in_call = syntax == CallSyntax::Forced;
        Self { syntax, held: String::new(), in_call, begun: false }
    }

    /// Takes more of the reply, and gives what is certain now.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while self.advance(&mut parts) {}
        joined(parts)
    }

    /// Gives what is left at the end of the reply.
    pub fn finish(&mut self) -> Vec<Part> {
        let held = std::mem::take(&mut self.held);
        let mark = if self.in_call { self.mark() } else { "" };
        // Small models forget to close the last one. Without a mark the whole reply may be a call.
        let may_be_call = self.in_call || (self.mark().is_empty() && !self.begun);
        self.in_call = false;
        match may_be_call.then(|| self.calls(&held)).flatten() {
            Some(calls) => calls.into_iter().map(Part::Call).collect(),
            None => joined(vec![Part::Text(format!("{mark}{held}"))]),
        }
    }

    /// The calls that a text between marks is, if it is nothing else.
    fn calls(&self, text: &str) -> Option<Vec<WrittenCall>> {
        match self.syntax {
            CallSyntax::Forced | CallSyntax::Free(ToolSyntax::Hermes) => {
                Some(vec![call(serde_json::from_str(text.trim()).ok()?)?])
            }
            CallSyntax::Free(ToolSyntax::Mistral) => mistral_calls(text),
            CallSyntax::Free(ToolSyntax::Llama) => llama_calls(text),
        }
    }

    /// What begins a call.
    fn mark(&self) -> &'static str {
        match self.syntax {
            CallSyntax::Free(syntax) => syntax.mark(),
            CallSyntax::Forced => "",
        }
    }

    /// One step. Whether another may follow.
    fn advance(&mut self, parts: &mut Vec<Part>) -> bool {
        match self.syntax {
            CallSyntax::Forced => false,
            CallSyntax::Free(ToolSyntax::Llama) => self.advance_llama(parts),
            CallSyntax::Free(_) if self.in_call => self.advance_call(parts),
            CallSyntax::Free(_) => self.advance_text(parts),
        }
    }

    /// Outside a call: text up to the mark, or up to where one may have begun.
    fn advance_text(&mut self, parts: &mut Vec<Part>) -> bool {
        let mark = self.mark();
        if let Some(at) = self.held.find(mark) {
            parts.push(Part::Text(self.held[..at].to_owned()));
            self.held.drain(..at + mark.len());
            self.in_call = true;
            return true;
        }
        let certain = self.held.len() - overlap(&self.held, mark);
        parts.push(Part::Text(self.held.drain(..certain).collect()));
        false
    }

    /// Inside a call: everything up to its end.
    fn advance_call(&mut self, parts: &mut Vec<Part>) -> bool {
        let whole = match self.syntax {
            CallSyntax::Free(ToolSyntax::Hermes) => self.held.find(HERMES_END).map(|at| (at, at + HERMES_END.len())),
            _ => array_end(&self.held).map(|end| (end, end)),
        };
        let Some((body, end)) = whole else {
            if self.held.len() > MAX_CALL_BYTES {
                self.in_call = false;
                parts.push(Part::Text(format!("{}{}", self.mark(), std::mem::take(&mut self.held))));
            }
            return false;
        };
        let calls = self.calls(&self.held[..body]);
        let written: String = self.held.drain(..end).collect();
        self.in_call = false;
        match calls {
            Some(calls) => parts.extend(calls.into_iter().map(Part::Call)),
            None => parts.push(Part::Text(format!("{}{written}", self.mark()))),
        }
        true
    }

    /// A reply that does not begin as an object is text from there on.
    fn advance_llama(&mut self, parts: &mut Vec<Part>) -> bool {
        let begins = self.held.trim_start();
        let may_be_call = begins.is_empty() || begins.starts_with('{');
        if !self.begun && may_be_call && self.held.len() <= MAX_CALL_BYTES {
            return false;
        }
        self.begun = true;
        parts.push(Part::Text(std::mem::take(&mut self.held)));
        false
    }
}

/// What ends a call of Hermes' syntax.
const HERMES_END: &str = "</tool_call>";

/// Texts that follow each other as one, and none that are empty.
fn joined(parts: Vec<Part>) -> Vec<Part> {
    let mut out: Vec<Part> = Vec::new();
    for part in parts {
        match (out.last_mut(), part) {
            (_, Part::Text(text)) if text.is_empty() => {}
            (Some(Part::Text(before)), Part::Text(text)) => before.push_str(&text),
            (_, part) => out.push(part),
        }
    }
    out
}

/// How many bytes at the end of `text` may be the beginning of `mark`.
fn overlap(text: &str, mark: &str) -> usize {
    (1..mark.len()).rev().find(|&length| mark.is_char_boundary(length) && text.ends_with(&mark[..length])).unwrap_or(0)
}

/// Where the JSON array that `text` begins with ends, once it is whole; 0 where none can come any more, so that what follows the mark is
/// looked through anew, wherever the text was cut when that became certain.
fn array_end(text: &str) -> Option<usize> {
    let begins = text.trim_start();
    if !begins.is_empty() && !begins.starts_with('[') {
        return Some(0);
    }
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<serde::de::IgnoredAny>();
    match values.next() {
        Some(Ok(_)) => Some(values.byte_offset()),
        Some(Err(error)) if !error.is_eof() => Some(0),
        _ => None,
    }
}

fn mistral_calls(text: &str) -> Option<Vec<WrittenCall>> {
    let calls: Vec<Map<String, Value>> = serde_json::from_str(text.trim()).ok()?;
    calls
        .into_iter()
        .map(|fields| call(Value::Object(fields)))
        .collect::<Option<Vec<_>>>()
        .filter(|calls| !calls.is_empty())
}

fn llama_calls(text: &str) -> Option<Vec<WrittenCall>> {
    let mut rest = text.trim();
    let mut calls = Vec::new();
    while !rest.is_empty() {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        calls.push(call(values.next()?.ok()?)?);
        let behind = rest[values.byte_offset()..].trim_start();
        rest = match behind.strip_prefix(';') {
            Some(next) if !next.trim().is_empty() => next.trim_start(),
            Some(_) => "",
            None if behind.is_empty() => "",
            None => return None,
        };
    }
    Some(calls).filter(|calls| !calls.is_empty())
}

/// An object with a name and arguments, which some write as the text of an object.
fn call(value: Value) -> Option<WrittenCall> {
    let Value::Object(mut fields) = value else { return None };
    let Some(Value::String(name)) = fields.remove("name") else { return None };
    let arguments = match fields.remove("arguments").or_else(|| fields.remove("parameters")) {
        None => Map::new(),
        Some(Value::Object(arguments)) => arguments,
        Some(Value::String(text)) => serde_json::from_str(&text).ok()?,
        Some(_) => return None,
    };
    let arguments = Value::Object(arguments).to_string();
    Some(WrittenCall { name, arguments }).filter(|call| !call.name.is_empty())
}

#[cfg(test)]
mod tests;
