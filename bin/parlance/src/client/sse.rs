//! Server-sent events, as far as the public API uses them (WHATWG HTML, section 9.2.6): `event` and `data` fields in UTF-8.

/// A line past this is no event of ours.
const MAX_LINE_BYTES: usize = 16 * 1024 * 1024;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Event {
    pub(super) kind: String,
    pub(super) data: String,
}

/// Turns bytes, however they are cut, into events.
#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    event: Event,
}

/// The stream has a line that nobody would send.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Parser {
    /// Takes the next bytes and gives the events that they complete.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLong> {
        let mut events = Vec::new();
        for &byte in bytes {
            if byte != b'\n' {
                if self.line.len() == MAX_LINE_BYTES {
                    return Err(TooLong);
                }
                self.line.push(byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(&line)).into_owned();
            if line.is_empty() {
                let event = std::mem::take(&mut self.event);
                events.extend((!event.data.is_empty()).then_some(event));
            } else {
                self.field(&line);
            }
        }
        Ok(events)
    }

    fn field(&mut self, line: &str) {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "event" => value.clone_into(&mut self.event.kind),
            "data" => {
                if !self.event.data.is_empty() {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            // A comment keeps the connection alive; ids and retry times are not used here.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, data: &str) -> Event {
        Event { kind: kind.into(), data: data.into() }
    }

    #[test]
    fn events_come_out_whole_however_the_bytes_are_cut() {
        let text = ": alive\n\nevent: a\ndata: {\"x\":\"ü\"}\n\ndata:one\r\ndata: two\r\n\r\nid: 7\nevent: empty\n\ndata: [DONE]\n\n";
        let expected = vec![event("a", "{\"x\":\"ü\"}"), event("", "one\ntwo"), event("", "[DONE]")];
        for size in 1..=text.len() {
            let mut parser = Parser::default();
            let pieces = text.as_bytes().chunks(size).map(|piece| parser.push(piece).expect("short lines"));
            assert_eq!(pieces.flatten().collect::<Vec<_>>(), expected, "in pieces of {size}");
        }
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; 1024 * 1024];
        let refused = (0..17).map(|_| parser.push(&piece)).find(Result::is_err);
        assert_eq!(refused, Some(Err(TooLong)));
    }
}
