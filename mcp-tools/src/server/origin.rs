//! Which Host and Origin headers a local listener answers.
//!
//! A web page can make the user's browser send requests to this port under a name of the page's
//! owner (DNS rebinding); such requests are recognised by these two headers.

use std::net::{IpAddr, SocketAddr};

use claviger_vault_protocol::Refusal;
use http::uri::Authority;
use http::{HeaderMap, Uri, header};

/// Refuses a request whose Host is not this listener's, or that comes from a foreign web page.
pub(super) fn check(headers: &HeaderMap, uri: &Uri, local: SocketAddr) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(foreign("Host", "missing or there twice"));
    };
    let host = host
        .to_str()
        .ok()
        .and_then(|host| host.parse::<Authority>().ok());
    if !host.is_some_and(|host| is_ours(&host, local)) {
        return Err(foreign("Host", "not this listener's"));
    }
    if uri
        .authority()
        .is_some_and(|authority| !is_ours(authority, local))
    {
        return Err(foreign("request target", "not this listener's"));
    }
    for origin in headers.get_all(header::ORIGIN) {
        let origin = origin
            .to_str()
            .ok()
            .and_then(|origin| origin.parse::<Uri>().ok());
        let is_same = origin.as_ref().is_some_and(|origin| {
            origin.scheme_str() == Some("http")
                && matches!(origin.path(), "" | "/")
                && origin
                    .authority()
                    .is_some_and(|authority| is_ours(authority, local))
        });
        if !is_same {
            return Err(foreign("Origin", "foreign"));
        }
    }
    let site = headers
        .get("sec-fetch-site")
        .map(http::HeaderValue::as_bytes);
    if site.is_some_and(|site| !matches!(site, b"same-origin" | b"none")) {
        return Err(foreign("Sec-Fetch-Site", "cross-site"));
    }
    Ok(())
}

fn is_ours(authority: &Authority, local: SocketAddr) -> bool {
    if authority.as_str().contains('@') || authority.port_u16().unwrap_or(80) != local.port() {
        return false;
    }
    let host = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
    if host.eq_ignore_ascii_case("localhost") {
        return true;
    }
    host.parse::<IpAddr>()
        .is_ok_and(|address| address.is_loopback() || address == local.ip())
}

fn foreign(what: &str, why: &str) -> Refusal {
    Refusal::new("origin_not_allowed", format!("{what} is {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(port: u16, uri: &str, pairs: &[(&str, &str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(
                http::HeaderName::from_bytes(name.as_bytes()).unwrap(),
                value.parse().unwrap(),
            );
        }
        check(
            &headers,
            &uri.parse().unwrap(),
            SocketAddr::from(([127, 0, 0, 1], port)),
        )
        .is_ok()
    }

    #[test]
    fn only_loopback_names_with_this_port_are_hosts() {
        for good in [
            "127.0.0.1:2529",
            "localhost:2529",
            "LOCALHOST:2529",
            "[::1]:2529",
            "127.9.9.9:2529",
        ] {
            assert!(verdict(2529, "/mcp", &[("host", good)]), "{good}");
        }
        for bad in [
            "127.0.0.1",
            "localhost",
            "localhost:80",
            "evil.com:2529",
            "evil.com",
            "localhost.evil.com:2529",
            "127.0.0.1.evil.com:2529",
            "user@localhost:2529",
            "10.0.0.1:2529",
            "169.254.169.254:2529",
            "",
        ] {
            assert!(!verdict(2529, "/mcp", &[("host", bad)]), "{bad}");
        }
        assert!(!verdict(2529, "/mcp", &[]));
        assert!(!verdict(
            2529,
            "/mcp",
            &[("host", "localhost:2529"), ("host", "evil.com")]
        ));
        assert!(!verdict(
            2529,
            "http://evil.com:2529/mcp",
            &[("host", "localhost:2529")]
        ));
        assert!(verdict(80, "/mcp", &[("host", "localhost")]));
    }

    #[test]
    fn only_this_listener_is_an_origin() {
        let with = |origin| {
            verdict(
                2529,
                "/mcp",
                &[("host", "localhost:2529"), ("origin", origin)],
            )
        };
        for good in [
            "http://localhost:2529",
            "http://127.0.0.1:2529",
            "http://[::1]:2529",
        ] {
            assert!(with(good), "{good}");
        }
        for bad in [
            "null",
            "http://evil.com",
            "http://evil.com:2529",
            "https://localhost:2529",
            "http://localhost:3000",
            "http://localhost:2529.evil.com",
            "file://",
            "http://localhost",
        ] {
            assert!(!with(bad), "{bad}");
        }
        for (site, is_good) in [
            ("same-origin", true),
            ("none", true),
            ("cross-site", false),
            ("same-site", false),
        ] {
            assert_eq!(
                verdict(
                    2529,
                    "/mcp",
                    &[("host", "localhost:2529"), ("sec-fetch-site", site)]
                ),
                is_good
            );
        }
    }
}
