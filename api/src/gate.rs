//! What every request passes first: a name for it, where it came from, who asks.

use std::net::SocketAddr;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use claviger_vault_protocol::Principal;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::app::{Caller, Shared};
use crate::body::HeldSecret;
use crate::problem::{Answer, Problem};

const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Peer {
    /// Came over TCP to this address of ours.
    Tcp { local: SocketAddr },
    /// Came over the unix socket; the uid is the kernel's word.
    Unix { uid: u32 },
}

/// The request's own name, for its answer and our log.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub(crate) String);

/// Names the request, renders refusals, closes connections that carried a secret.
pub(crate) async fn frame(mut request: Request, next: Next) -> Response {
    let id = format!("req_{}", uuid::Uuid::now_v7().simple());
    let held = HeldSecret::default();
    request.extensions_mut().insert(RequestId(id.clone()));
    request.extensions_mut().insert(held.clone());
    let method = request.method().clone();
    let response = next.run(request).await;
    let problem = response.extensions().get::<Problem>().cloned().or_else(|| {
        // The router's own answers have no body.
        let status = response.status();
        match status.as_u16() {
            404 => Some(Problem::new(status, "unknown_path", "no such path")),
            405 => Some(Problem::new(
                status,
                "unknown_method",
                "this path does not take this method",
            )),
            400.. => Some(Problem::new(
                status,
                "refused",
                "the request cannot be served",
            )),
            _ => None,
        }
    });
    let mut response = match &problem {
        Some(problem) => {
            tracing::debug!(%method, status = problem.status.as_u16(), code = problem.code(), request = id, "refused");
            problem.render(&id)
        }
        None => response,
    };
    if let Ok(id) = HeaderValue::try_from(id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response.headers_mut().insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    if held.is_set() {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Refuses requests from elsewhere and asks who it is.
pub(crate) async fn admit(State(app): State<Shared>, mut request: Request, next: Next) -> Response {
    let Some(peer) = request.extensions().get::<Peer>().copied() else {
        return Problem::unauthenticated().into_response();
    };
    let headers = request.headers().clone();
    let admitted = async {
        if let Peer::Tcp { local } = peer {
            is_local(&headers, local)?;
        }
        identify(&app, &headers, peer).await
    };
    match admitted.await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}

async fn identify(app: &Shared, headers: &HeaderMap, peer: Peer) -> Answer<Caller> {
    // A key that is given decides, over the unix socket too: it can only narrow what an operator may.
    if let Some(key) = presented_key(headers)? {
        let principal = app.keys.holder(&app.vault, key).await?;
        return Ok(Caller {
            principal,
            is_operator: false,
        });
    }
    match peer {
        Peer::Unix { uid } if app.operators.contains(&uid) => Ok(Caller {
            principal: Principal::operator(uid),
            is_operator: true,
        }),
        _ => Err(Problem::unauthenticated()),
    }
}

/// The key of a request, in either of the places where the SDKs put it.
fn presented_key(headers: &HeaderMap) -> Answer<Option<&[u8]>> {
    let one = |name: HeaderName| {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (Some(_), Some(_)) => Err(Problem::unauthenticated()),
            (value, _) => Ok(value.map(HeaderValue::as_bytes)),
        }
    };
    let bearer = match one(header::AUTHORIZATION)? {
        None => None,
        Some(value) => {
            let (scheme, key) = value
                .split_at_checked(7)
                .ok_or_else(Problem::unauthenticated)?;
            if !scheme.eq_ignore_ascii_case(b"Bearer ") {
                return Err(Problem::unauthenticated());
            }
            Some(key.trim_ascii())
        }
    };
    match (one(HeaderName::from_static("x-api-key"))?, bearer) {
        // Two different keys in one request: nobody can say whose request it is.
        (Some(key), Some(other)) if key != other => Err(Problem::unauthenticated()),
        (Some(key), _) | (None, Some(key)) if key.is_empty() => Err(Problem::unauthenticated()),
        (key, other) => Ok(key.or(other)),
    }
}

/// Refuses a Host that is not this listener's address and an Origin that is not its own page: a browser on this
/// machine may be sent here by any site (DNS rebinding, cross-site requests).
fn is_local(headers: &HeaderMap, local: SocketAddr) -> Answer<()> {
    let one = |name: HeaderName| {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => value.to_str().map(Some).map_err(|_| foreign()),
            _ => Err(foreign()),
        }
    };
    let host = one(header::HOST)?.ok_or_else(foreign)?;
    if !names_us(host, local) {
        return Err(foreign());
    }
    if let Some(origin) = one(header::ORIGIN)?
        && !origin
            .strip_prefix("http://")
            .is_some_and(|host| names_us(host, local))
    {
        return Err(foreign());
    }
    match one(HeaderName::from_static("sec-fetch-site"))? {
        Some("cross-site" | "same-site") => Err(foreign()),
        _ => Ok(()),
    }
}

fn names_us(host: &str, local: SocketAddr) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port.parse::<u16>().ok()),
        _ => (host, Some(80)),
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let is_ours = name.eq_ignore_ascii_case("localhost") && local.ip().to_canonical().is_loopback()
        || name.parse().is_ok_and(|ip: std::net::IpAddr| {
            let ours = local.ip().to_canonical();
            ip == ours || ip.is_loopback() && ours.is_loopback()
        });
    is_ours && port == Some(local.port())
}

fn foreign() -> Problem {
    Problem::forbidden(
        "foreign_host",
        "Host or Origin is not this server's own address",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn only_the_listeners_own_names_are_local() {
        let local: SocketAddr = "127.0.0.1:2528".parse().unwrap();
        for host in [
            "127.0.0.1:2528",
            "localhost:2528",
            "LOCALHOST:2528",
            "[::1]:2528",
        ] {
            assert!(
                is_local(&headers(&[("host", host)]), local).is_ok(),
                "{host}"
            );
        }
        for host in [
            "127.0.0.1",
            "127.0.0.1:2529",
            "evil.example:2528",
            "localhost.evil.example:2528",
            "10.0.0.1:2528",
            "",
            "localhost:",
            "localhost:2528:2528",
            "0.0.0.0:2528",
            "localhost@evil.example:2528",
        ] {
            assert!(
                is_local(&headers(&[("host", host)]), local).is_err(),
                "{host}"
            );
        }
        assert!(is_local(&headers(&[]), local).is_err());
        assert!(
            is_local(
                &headers(&[("host", "localhost:2528"), ("host", "localhost:2528")]),
                local
            )
            .is_err()
        );
    }

    #[test]
    fn a_foreign_page_is_refused() {
        let local: SocketAddr = "127.0.0.1:2528".parse().unwrap();
        let from = |name, value| {
            is_local(
                &headers(&[("host", "localhost:2528"), (name, value)]),
                local,
            )
        };
        assert!(from("origin", "http://localhost:2528").is_ok());
        assert!(from("sec-fetch-site", "same-origin").is_ok());
        for origin in [
            "null",
            "https://localhost:2528",
            "http://localhost:3000",
            "http://evil.example",
        ] {
            assert!(from("origin", origin).is_err(), "{origin}");
        }
        assert!(from("sec-fetch-site", "cross-site").is_err());
    }

    #[test]
    fn a_key_counts_in_either_header_and_two_must_agree() {
        let key = |pairs: &[(&'static str, &str)]| {
            presented_key(&headers(pairs)).map(|key| key.map(<[u8]>::to_vec))
        };
        assert_eq!(key(&[("x-api-key", "k")]).unwrap(), Some(b"k".to_vec()));
        assert_eq!(
            key(&[("authorization", "bearer k")]).unwrap(),
            Some(b"k".to_vec())
        );
        assert_eq!(
            key(&[("authorization", "Bearer k"), ("x-api-key", "k")]).unwrap(),
            Some(b"k".to_vec())
        );
        assert_eq!(key(&[]).unwrap(), None);
        assert!(key(&[("authorization", "Bearer k"), ("x-api-key", "other")]).is_err());
        assert!(key(&[("authorization", "Basic k")]).is_err());
        assert!(key(&[("authorization", "Bearer ")]).is_err());
        assert!(key(&[("x-api-key", "")]).is_err());
        assert!(key(&[("x-api-key", "k"), ("x-api-key", "k")]).is_err());
    }
}
