//! Server-sent events from bytes, however they are cut.
//!
//! After the WHATWG event stream grammar: lines end in LF, CR or CRLF; a leading byte order mark,
//! comments and unknown fields are ignored; `data` lines join with LF; a blank line dispatches.

/// Longest line, and longest sum of `data` lines of one event.
const MAX_EVENT_BYTES: usize = 32 << 20;

/// One dispatched event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ServerEvent {
    /// The `event` field; empty where there was none.
    pub(crate) event: String,
    /// The `data` lines, joined with LF.
    pub(crate) data: String,
}

/// An event that never ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("an event exceeds {MAX_EVENT_BYTES} bytes")]
pub(crate) struct EventTooLong;

/// Turns chunks of bytes into events.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    event: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was CR: an LF that follows belongs to it.
    after_cr: bool,
    /// A line has ended before, so that no byte order mark can come any more.
    is_started: bool,
}

impl Parser {
    /// Takes the next chunk and returns the events that it completes.
    pub(crate) fn push(&mut self, chunk: &[u8]) -> Result<Vec<ServerEvent>, EventTooLong> {
        let mut events = Vec::new();
        for &byte in chunk {
            let follows_cr = std::mem::take(&mut self.after_cr);
            match byte {
                b'\n' if follows_cr => {}
                b'\n' => self.end_line(&mut events),
                b'\r' => {
                    self.after_cr = true;
                    self.end_line(&mut events);
                }
                _ => self.line.push(byte),
            }
            if self.line.len() + self.data.len() > MAX_EVENT_BYTES {
                return Err(EventTooLong);
            }
        }
        Ok(events)
    }

    fn end_line(&mut self, events: &mut Vec<ServerEvent>) {
        let line = std::mem::take(&mut self.line);
        let mut text: &[u8] = &line;
        if !std::mem::replace(&mut self.is_started, true) {
            text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        }
        if text.is_empty() {
            self.dispatch(events);
            return;
        }
        let (field, value) = match text.iter().position(|&byte| byte == b':') {
            Some(at) => text.split_at(at),
            None => (text, &b""[..]),
        };
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"event" => self.event = value.to_vec(),
            b"data" => {
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.has_data = true;
                self.data.extend_from_slice(value);
            }
            _ => {}
        }
    }

    fn dispatch(&mut self, events: &mut Vec<ServerEvent>) {
        let event = std::mem::take(&mut self.event);
        let data = std::mem::take(&mut self.data);
        if std::mem::take(&mut self.has_data) {
            events.push(ServerEvent {
                event: String::from_utf8_lossy(&event).into_owned(),
                data: String::from_utf8_lossy(&data).into_owned(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(bytes: &[u8]) -> Vec<ServerEvent> {
        Parser::default().push(bytes).unwrap()
    }

    fn event(event: &str, data: &str) -> ServerEvent {
        ServerEvent {
            event: event.to_owned(),
            data: data.to_owned(),
        }
    }

    #[test]
    fn lines_end_in_lf_cr_or_crlf() {
        for end in ["\n", "\r", "\r\n"] {
            let text = format!("event: ping{end}data: {{}}{end}{end}data: 2{end}{end}");
            assert_eq!(
                whole(text.as_bytes()),
                [event("ping", "{}"), event("", "2")]
            );
        }
    }

    #[test]
    fn comments_unknown_fields_and_a_byte_order_mark_are_ignored() {
        let events = whole(b"\xef\xbb\xbf: hello\nid: 7\nretry: 1\ndata:a\ndata\ndata: b\n\n\n\n");
        assert_eq!(events, [event("", "a\n\nb")]);
    }

    #[test]
    fn an_event_without_data_or_without_its_blank_line_is_not_dispatched() {
        assert_eq!(whole(b"event: x\n\ndata: cut"), []);
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut parser = Parser::default();
        let chunk = vec![b'a'; 1 << 20];
        let refused = (0..40).any(|_| parser.push(&chunk).is_err());
        assert!(refused);
    }

    proptest! {
        #[test]
        fn any_split_of_any_bytes_gives_the_same_events(
            bytes in prop::collection::vec(
                prop_oneof![Just(b'\n'), Just(b'\r'), Just(b':'), Just(b' '), Just(b'd'), any::<u8>()], 0..200),
            cuts in prop::collection::vec(1usize..7, 0..200),
        ) {
            let mut text = b"event: e\ndata: x\n\n".to_vec();
            text.extend_from_slice(&bytes);
            text.extend_from_slice("\ndata: é€😀\r\n\r\n".as_bytes());
            let expected = whole(&text);
            let mut parser = Parser::default();
            let mut events = Vec::new();
            let mut rest: &[u8] = &text;
            for cut in cuts {
                let (chunk, left) = rest.split_at(cut.min(rest.len()));
                events.extend(parser.push(chunk).unwrap());
                rest = left;
            }
            events.extend(parser.push(rest).unwrap());
            prop_assert_eq!(events, expected);
        }

        #[test]
        fn rendered_events_survive_one_byte_at_a_time(texts in prop::collection::vec("[^\r\n]{0,20}", 1..8)) {
            let mut text = String::new();
            for data in &texts {
                text.push_str(&format!("event: m\r\ndata: {data}\r\n\r\n"));
            }
            let mut parser = Parser::default();
            let mut events = Vec::new();
            for byte in text.as_bytes() {
                events.extend(parser.push(std::slice::from_ref(byte)).unwrap());
            }
            let expected: Vec<_> = texts.iter().map(|data| event("m", data)).collect();
            prop_assert_eq!(events, expected);
        }
    }
}
