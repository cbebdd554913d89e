//! The head of a request, read strictly.
//!
//! An HTTP library forgives: it joins folded lines, takes a bare line feed for a line end and drops a Content-Length that
//! stands beside a Transfer-Encoding before its user sees either. The gateway must see those to refuse them, so it reads
//! heads itself (RFC 9112 without its leniencies). What is forwarded is rebuilt from the parts found here.

use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::refused::Refused;

/// Longest head.
pub(super) const MAX_HEAD_BYTES: usize = 64 * 1024;
const MAX_HEADERS: usize = 100;

/// One request's head.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) method: Method,
    /// The request target as sent: visible ASCII, nothing else.
    pub(super) target: String,
    pub(super) headers: HeaderMap,
    pub(super) framing: Framing,
    /// Whether the client speaks HTTP/1.1, and so understands a chunked answer.
    pub(super) chunks: bool,
    pub(super) keeps_alive: bool,
    pub(super) expects_continue: bool,
}

/// Where the body ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Framing {
    Chunked,
    Length(u64),
}

/// Reads a head: everything up to and including its empty line.
pub(super) fn parse(bytes: &[u8]) -> Result<Head, Refused> {
    let bad = |message: &str| Refused::malformed("malformed_request", message);
    let text = bytes
        .strip_suffix(b"\r\n\r\n")
        .ok_or_else(|| bad("the head does not end with an empty line"))?;
    let mut lines = Lines(Some(text));
    let first = lines
        .next()
        .ok_or_else(|| bad("there is no request line"))??;
    let (method, target, chunks) = request_line(first)?;

    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = header(line?)?;
        if headers.len() == MAX_HEADERS {
            return Err(
                Refused::malformed("head_too_large", "more than 100 header lines")
                    .with_status(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
            );
        }
        headers.append(name, value);
    }

    let hosts = headers.get_all(HOST).iter().count();
    if hosts > 1 {
        return Err(Refused::malformed(
            "duplicate_host",
            "more than one Host header",
        ));
    }
    if hosts == 0 && chunks {
        return Err(bad("an HTTP/1.1 request has a Host header"));
    }
    let framing = framing(&headers, chunks)?;
    let keeps_alive = chunks && !lists(&headers, &CONNECTION, "close");
    let expects_continue = match headers.get(EXPECT) {
        None => false,
        Some(value) if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => chunks,
        Some(_) => {
            return Err(Refused::malformed(
                "malformed_request",
                "an expectation other than 100-continue",
            )
            .with_status(StatusCode::EXPECTATION_FAILED));
        }
    };
    Ok(Head {
        method,
        target,
        headers,
        framing,
        chunks,
        keeps_alive,
        expects_continue,
    })
}

/// Lines that end with CR LF and hold neither alone.
struct Lines<'a>(Option<&'a [u8]>);

impl<'a> Iterator for Lines<'a> {
    type Item = Result<&'a [u8], Refused>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.0.take()?;
        let end = rest
            .iter()
            .position(|byte| matches!(byte, b'\r' | b'\n' | 0));
        let Some(end) = end else {
            return Some(Ok(rest));
        };
        let (line, after) = rest.split_at(end);
        let Some(after) = after.strip_prefix(b"\r\n") else {
            return Some(Err(Refused::malformed(
                "malformed_request",
                "a carriage return, line feed or NUL stands alone in the head",
            )));
        };
        self.0 = Some(after);
        Some(Ok(line))
    }
}

fn request_line(line: &[u8]) -> Result<(Method, String, bool), Refused> {
    let bad = |message: &str| Refused::malformed("malformed_request", message);
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(bad(
            "the request line is not METHOD TARGET VERSION with single spaces",
        ));
    };
    if method.is_empty() || method.len() > 20 || !method.iter().all(u8::is_ascii_uppercase) {
        return Err(bad("the method is not a word of capital letters"));
    }
    let method = Method::from_bytes(method)
        .map_err(|_| bad("the method is not a word of capital letters"))?;
    if target.is_empty() || !target.iter().all(u8::is_ascii_graphic) {
        return Err(bad(
            "the target has control characters or is not ASCII; percent-encode it",
        ));
    }
    let target = String::from_utf8(target.to_vec()).map_err(|_| bad("the target is not ASCII"))?;
    let chunks = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        _ => {
            return Err(Refused::malformed(
                "malformed_request",
                "the version is neither HTTP/1.1 nor HTTP/1.0",
            )
            .with_status(StatusCode::HTTP_VERSION_NOT_SUPPORTED));
        }
    };
    Ok((method, target, chunks))
}

fn header(line: &[u8]) -> Result<(HeaderName, HeaderValue), Refused> {
    let bad = |message: &str| Refused::malformed("malformed_request", message);
    if line
        .first()
        .is_some_and(|byte| matches!(byte, b' ' | b'\t'))
    {
        return Err(Refused::malformed(
            "folded_header",
            "a header line is folded",
        ));
    }
    let colon = line
        .iter()
        .position(|byte| *byte == b':')
        .ok_or_else(|| bad("a header line has no colon"))?;
    let (name, value) = line.split_at(colon);
    // `from_bytes` takes tokens only, so a space before the colon is refused with it.
    let name = HeaderName::from_bytes(name).map_err(|_| bad("a header's name is not a token"))?;
    let value = value.strip_prefix(b":").unwrap_or_default().trim_ascii();
    let value = HeaderValue::from_bytes(value)
        .map_err(|_| bad("a header's value has control characters"))?;
    Ok((name, value))
}

fn framing(headers: &HeaderMap, chunks: bool) -> Result<Framing, Refused> {
    let ambiguous = |message: &str| Refused::malformed("ambiguous_length", message);
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    match (lengths.next(), encodings.next()) {
        (Some(_), Some(_)) => Err(ambiguous("both Content-Length and Transfer-Encoding")),
        (None, None) => Ok(Framing::Length(0)),
        (None, Some(encoding)) => {
            if !chunks
                || encodings.next().is_some()
                || !encoding.as_bytes().eq_ignore_ascii_case(b"chunked")
            {
                return Err(ambiguous(
                    "a Transfer-Encoding that is not one plain `chunked` of HTTP/1.1",
                ));
            }
            Ok(Framing::Chunked)
        }
        (Some(length), None) => {
            if lengths.next().is_some() {
                return Err(ambiguous("more than one Content-Length"));
            }
            let digits = length.as_bytes();
            let length = std::str::from_utf8(digits)
                .ok()
                .filter(|text| text.len() <= 18 && text.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| ambiguous("a Content-Length that is not a plain number"))?;
            Ok(Framing::Length(length))
        }
    }
}

/// Whether a comma-separated header names `word`.
pub(super) fn lists(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    words(headers, name).any(|listed| listed.eq_ignore_ascii_case(word))
}

/// The words of a comma-separated header; values that are not ASCII text have none.
pub(super) fn words<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn code(text: &str) -> String {
        match parse(text.as_bytes()) {
            Ok(head) => format!("accepted {head:?}"),
            Err(refused) => refused.refusal.code,
        }
    }

    #[test]
    fn a_plain_head_is_read() {
        let head = parse(b"POST http://a.test/x?y HTTP/1.1\r\nHost: a.test\r\nX:  v \r\nContent-Length: 3\r\n\r\n").unwrap();
        assert_eq!(head.method, Method::POST);
        assert_eq!(head.target, "http://a.test/x?y");
        assert_eq!(head.headers["x"], "v");
        assert_eq!(head.framing, Framing::Length(3));
        assert!(head.keeps_alive && head.chunks && !head.expects_continue);
    }

    #[test]
    fn an_old_client_gets_one_answer_per_connection() {
        let head =
            parse(b"GET /x HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\n\r\n").unwrap();
        assert!(!head.keeps_alive && !head.chunks);
    }

    #[test]
    fn two_lengths_are_refused_whatever_their_order_and_value() {
        for lines in [
            "Content-Length: 3\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 3",
            "Content-Length: 3\r\nContent-Length: 3",
            "Content-Length: 3\r\nContent-Length: 4",
            "Content-Length: 3, 3",
            "Content-Length: +3",
            "Content-Length: 0x3",
            "Content-Length: ",
            "Content-Length: 99999999999999999999",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding:\x0bchunked",
        ] {
            let found = code(&format!(
                "POST / HTTP/1.1\r\nHost: a.test\r\n{lines}\r\n\r\n"
            ));
            assert!(
                found == "ambiguous_length" || found == "malformed_request",
                "{lines:?}: {found}"
            );
        }
        assert_eq!(
            code("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
            "ambiguous_length"
        );
    }

    #[test]
    fn a_second_host_is_refused_even_if_equal() {
        assert_eq!(
            code("GET / HTTP/1.1\r\nHost: a.test\r\nHost: a.test\r\n\r\n"),
            "duplicate_host"
        );
        assert_eq!(code("GET / HTTP/1.1\r\nX: y\r\n\r\n"), "malformed_request");
    }

    #[test]
    fn folded_lines_are_refused() {
        assert_eq!(
            code("GET / HTTP/1.1\r\nHost: a.test\r\nX: y\r\n z\r\n\r\n"),
            "folded_header"
        );
        assert_eq!(
            code("GET / HTTP/1.1\r\n Host: a.test\r\n\r\n"),
            "folded_header"
        );
        assert_eq!(
            code("GET / HTTP/1.1\r\nHost: a.test\r\nX: y\r\n\tz: w\r\n\r\n"),
            "folded_header"
        );
    }

    #[test]
    fn lone_line_ends_and_control_characters_are_refused() {
        for text in [
            "GET / HTTP/1.1\nHost: a.test\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.test\nX: y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.test\rX: y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.test\r\nX: y\0z\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.test\r\nX: y\x01z\r\n\r\n",
            "GET /a\0b HTTP/1.1\r\nHost: a.test\r\n\r\n",
            "GET /a\rb HTTP/1.1\r\nHost: a.test\r\n\r\n",
            "GET /a\tb HTTP/1.1\r\nHost: a.test\r\n\r\n",
            "GET /\u{e9} HTTP/1.1\r\nHost: a.test\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a.test\r\n\r\n",
            "GET / x HTTP/1.1\r\nHost: a.test\r\n\r\n",
            "get / HTTP/1.1\r\nHost: a.test\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: a.test\r\n\r\n",
            "GET /\r\nHost: a.test\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a.test\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.test\r\nnonsense\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.test\r\n: empty\r\n\r\n",
            "\r\n\r\n",
        ] {
            assert_eq!(code(text), "malformed_request", "{text:?}");
        }
    }

    #[test]
    fn a_hundred_and_one_headers_are_too_many() {
        let lines: String = (0..100).map(|n| format!("x-{n}: y\r\n")).collect();
        assert_eq!(
            code(&format!("GET / HTTP/1.1\r\nHost: a.test\r\n{lines}\r\n")),
            "head_too_large"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_let_control_characters_through(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut text = b"GET http://a.test/".to_vec();
            text.extend_from_slice(&bytes);
            text.extend_from_slice(b"\r\n\r\n");
            if let Ok(head) = parse(&text) {
                prop_assert!(head.target.bytes().all(|byte| byte.is_ascii_graphic()));
                for value in head.headers.values() {
                    prop_assert!(value.as_bytes().iter().all(|byte| *byte == b'\t' || (*byte >= 0x20 && *byte != 0x7f)));
                }
            }
        }
    }
}
