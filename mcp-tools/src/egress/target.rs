//! Where a request goes: one canonical destination, and the URL that is dialled, from one parse.

use claviger_vault_protocol::Destination;
use http::header::HOST;
use url::Url;

use super::head::Head;
use super::refused::Refused;

/// Where a request goes. `url` is rebuilt from `destination`, so that decision and dial share their bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Target {
    pub(super) destination: Destination,
    pub(super) url: Url,
}

impl Target {
    /// Reads the target of a request that is not `CONNECT`: an absolute URL, or a path with the Host header.
    pub(super) fn of(head: &Head) -> Result<Self, Refused> {
        let host = head
            .headers
            .get(HOST)
            .map(|value| value.to_str().unwrap_or("?"));
        if head.target.starts_with('/') {
            let host = host.ok_or_else(|| {
                Refused::malformed("malformed_request", "a path without a Host header")
            })?;
            return Self::parse("http", host, &head.target);
        }
        let (scheme, rest) = split_scheme(&head.target)?;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let target = Self::parse(scheme, authority, path)?;
        match host.map(|host| destination(scheme, host)) {
            None => Ok(target),
            Some(Ok(named)) if named == target.destination => Ok(target),
            Some(_) => Err(Refused::malformed(
                "host_mismatch",
                "the Host header names another destination than the request's URL",
            )
            .with_fix("send the host and port of the URL as Host, as HTTP clients do on their own")
            .alarming()),
        }
    }

    /// The same request to `destination`, which differs in scheme and port alone.
    pub(super) fn moved_to(&self, destination: &Destination) -> Result<Self, Refused> {
        let path = self.url.path();
        let rest = self
            .url
            .query()
            .map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
        Self::build(destination.clone(), &rest)
    }

    fn parse(scheme: &str, authority: &str, path: &str) -> Result<Self, Refused> {
        if path.contains(['#', '\\']) {
            return Err(Refused::malformed(
                "malformed_request",
                "a fragment or a backslash in the request's URL",
            ));
        }
        let destination = destination(scheme, authority)?;
        let before_query = path.split('?').next().unwrap_or("");
        if is_ambiguous(before_query) {
            return Err(Refused::malformed(
                "path_ambiguous",
                "the path has dot segments, plain or encoded, which servers resolve in different ways",
            )
            .with_fix("send the path that you mean"));
        }
        Self::build(destination, path)
    }

    fn build(destination: Destination, path: &str) -> Result<Self, Refused> {
        let slash = if path.starts_with('/') { "" } else { "/" };
        let url = Url::parse(&format!("{}{slash}{path}", destination.origin()))
            .ok()
            .filter(|url| Destination::of(url).as_ref() == Some(&destination))
            .ok_or_else(|| {
                Refused::malformed("malformed_request", "the request's URL does not parse")
            })?;
        Ok(Self { destination, url })
    }
}

fn split_scheme(target: &str) -> Result<(&'static str, &str), Refused> {
    let (scheme, rest) = target.split_once("://").ok_or_else(|| {
        Refused::malformed(
            "malformed_request",
            "the target is neither a URL nor a path that starts with a slash",
        )
    })?;
    if scheme.eq_ignore_ascii_case("http") {
        Ok(("http", rest))
    } else if scheme.eq_ignore_ascii_case("https") {
        Ok(("https", rest))
    } else {
        Err(Refused::malformed(
            "scheme_not_allowed",
            "only http and https URLs are forwarded",
        ))
    }
}

/// The canonical destination of `HOST[:PORT]` as it stands in a URL or a Host header.
///
/// Only letters, digits, hyphens and dots, or an IPv6 literal: what the URL parser would decode or map first (percent
/// signs, full-width letters) does not reach it. Numeric address forms it does make canonical.
fn destination(scheme: &str, authority: &str) -> Result<Destination, Refused> {
    let bad = |message: &str| Refused::malformed("malformed_host", message);
    if authority.contains('@') {
        return Err(Refused::malformed("userinfo_not_allowed", "user information before the host")
            .with_fix("send the placeholder in the credential's slot, an Authorization header usually"));
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest
                .split_once(']')
                .ok_or_else(|| bad("an IPv6 literal without its end"))?;
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(bad("not an IPv6 literal"));
            }
            (format!("[{address}]"), port)
        }
        None => {
            let (host, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
            let host = host.strip_suffix('.').unwrap_or(host);
            let is_plain = |label: &str| {
                !label.is_empty()
                    && label
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            };
            if host.len() > 253 || !host.split('.').all(is_plain) {
                return Err(bad("the host is not of letters, digits, hyphens and dots"));
            }
            (host.to_owned(), port)
        }
    };
    let digits = match port.strip_prefix(':') {
        None if port.is_empty() => "",
        Some(digits)
            if (1..=5).contains(&digits.len())
                && digits.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            digits
        }
        _ => return Err(bad("the port is not a number")),
    };
    let colon = if digits.is_empty() { "" } else { ":" };
    Url::parse(&format!("{scheme}://{host}{colon}{digits}/"))
        .ok()
        .and_then(|url| Destination::of(&url))
        .filter(|destination| destination.port != 0)
        .ok_or_else(|| bad("the host or port does not parse"))
}

/// Whether a path has a segment `.` or `..`, also where it is percent-encoded up to three times over, ends with a
/// parameter (`..;x`), or is cut by an encoded slash or backslash.
fn is_ambiguous(path: &str) -> bool {
    let mut bytes = path.as_bytes().to_vec();
    for _ in 0..4 {
        let has_dots = bytes
            .split(|byte| matches!(byte, b'/' | b'\\'))
            .any(|segment| {
                let name = segment
                    .split(|byte| *byte == b';')
                    .next()
                    .unwrap_or_default();
                matches!(name, b"." | b"..")
            });
        if has_dots || bytes.contains(&0) {
            return true;
        }
        let decoded: Vec<u8> = percent_encoding::percent_decode(&bytes).collect();
        if decoded == bytes {
            return false;
        }
        bytes = decoded;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::super::head;
    use super::*;

    fn of(target: &str, host: &str) -> Result<String, String> {
        let text = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let head = head::parse(text.as_bytes()).map_err(|refused| refused.refusal.code)?;
        let target = Target::of(&head).map_err(|refused| refused.refusal.code)?;
        assert_eq!(
            Destination::of(&target.url).as_ref(),
            Some(&target.destination)
        );
        Ok(target.url.to_string())
    }

    #[test]
    fn url_and_path_forms_name_the_same_destination() {
        for (target, host) in [
            ("http://api.test/x?y=1", "api.test"),
            ("http://api.test:80/x?y=1", "api.test"),
            ("HTTP://API.Test./x?y=1", "api.test:80"),
            ("/x?y=1", "api.test"),
            ("/x?y=1", "API.TEST.:80"),
        ] {
            assert_eq!(
                of(target, host).as_deref(),
                Ok("http://api.test/x?y=1"),
                "{target} {host}"
            );
        }
        assert_eq!(
            of("https://api.test", "api.test").as_deref(),
            Ok("https://api.test/")
        );
        assert_eq!(
            of("https://api.test?q", "api.test:443").as_deref(),
            Ok("https://api.test/?q")
        );
        assert_eq!(
            of("http://[::1]:8080/x", "[::1]:8080").as_deref(),
            Ok("http://[::1]:8080/x")
        );
    }

    #[test]
    fn numeric_address_forms_become_the_address() {
        for host in [
            "127.0.0.1",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "127.1",
            "127.0.0.1.",
        ] {
            assert_eq!(
                of(&format!("http://{host}:81/"), "127.0.0.1:81").as_deref(),
                Ok("http://127.0.0.1:81/"),
                "{host}"
            );
        }
        let mapped = of("http://[::ffff:127.0.0.1]:81/", "[::ffff:127.0.0.1]:81");
        assert_eq!(
            mapped.as_deref(),
            Ok("http://[::ffff:7f00:1]:81/"),
            "a mapped address is not the plain one"
        );
    }

    #[test]
    fn a_host_header_that_disagrees_is_refused() {
        for host in [
            "evil.test",
            "api.test:8080",
            "api.test.evil.test",
            "evil.test, api.test",
            "",
        ] {
            assert_eq!(
                of("http://api.test/", host),
                Err("host_mismatch".to_owned()),
                "{host}"
            );
        }
        assert_eq!(
            of("https://api.test/", "api.test:80"),
            Err("host_mismatch".to_owned())
        );
    }

    #[test]
    fn hosts_that_two_parsers_could_read_differently_are_refused() {
        for host in [
            "api%2etest",
            "api.test%00.evil.test",
            "api_x.test",
            "api..test",
            ".api.test",
            "api.test..",
            "",
            ":80",
            "api.test:",
            "api.test:0",
            "api.test:99999",
            "api.test:+80",
            "api.test:80:81",
            "[::1",
            "[fe80::1%25eth0]",
            "[::1]x",
        ] {
            assert_eq!(
                of(&format!("http://{host}/"), "api.test"),
                Err("malformed_host".to_owned()),
                "{host}"
            );
            assert_eq!(of("/", host), Err("malformed_host".to_owned()), "{host}");
        }
        assert_eq!(
            of("http://user@api.test/", "api.test"),
            Err("userinfo_not_allowed".to_owned())
        );
        assert_eq!(
            of("http://api.test@evil.test/", "evil.test"),
            Err("userinfo_not_allowed".to_owned())
        );
        assert_eq!(
            of("ftp://api.test/", "api.test"),
            Err("scheme_not_allowed".to_owned())
        );
        assert_eq!(
            of("api.test/", "api.test"),
            Err("malformed_request".to_owned())
        );
        assert_eq!(
            of("http://api.test\\@evil.test/", "api.test"),
            Err("userinfo_not_allowed".to_owned())
        );
        assert_eq!(
            of("http://api.test\\evil/", "api.test"),
            Err("malformed_host".to_owned())
        );
        assert_eq!(
            of("http://api.test/a#b", "api.test"),
            Err("malformed_request".to_owned())
        );
        assert_eq!(
            of("http://api.test/a\\..\\b", "api.test"),
            Err("malformed_request".to_owned())
        );
    }

    #[test]
    fn paths_with_dot_segments_in_any_encoding_are_refused() {
        for path in [
            "/a/../b",
            "/a/./b",
            "/a/..",
            "/%2e%2e/b",
            "/a/%2E./b",
            "/a%2f..%2fb",
            "/a/%252e%252e/b",
            "/a/..;x/b",
            "/a%5c..%5cb",
            "/a/..%00/b",
            "/a%00b",
            "/%25252e%25252e/b",
        ] {
            assert_eq!(
                of(path, "api.test"),
                Err("path_ambiguous".to_owned()),
                "{path}"
            );
        }
        for path in [
            "/a..b/c",
            "/.well-known/x",
            "/a/b%2Fc",
            "/a/...",
            "/a?b=../c",
        ] {
            assert_eq!(
                of(path, "api.test"),
                Ok(format!("http://api.test{path}")),
                "{path}"
            );
        }
    }

    #[test]
    fn a_target_moves_to_a_bound_destination_with_its_path_and_query() {
        let head =
            head::parse(b"GET http://api.test/a?b=c HTTP/1.1\r\nHost: api.test\r\n\r\n").unwrap();
        let secure = Destination::parse("https://api.test").unwrap();
        let moved = Target::of(&head).unwrap().moved_to(&secure).unwrap();
        assert_eq!(moved.url.as_str(), "https://api.test/a?b=c");
    }
}
