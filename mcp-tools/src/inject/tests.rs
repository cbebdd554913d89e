use super::*;

fn secret(text: &[u8]) -> SecretBytes {
    SecretBytes::copy_of(text).unwrap()
}

fn header_slot(name: &str, prefix: &str) -> Slot {
    Slot::Header {
        name: name.to_owned(),
        prefix: prefix.to_owned(),
    }
}

fn injected(slot: &Slot, target: &str, value: &[u8]) -> Result<(Uri, HeaderMap), Refusal> {
    let (mut uri, mut headers) = (target.parse().unwrap(), HeaderMap::new());
    inject(&mut uri, &mut headers, slot, &secret(value)).map(|()| (uri, headers))
}

#[test]
fn each_slot_holds_the_secret_and_nothing_else_does() {
    let (uri, headers) = injected(
        &header_slot("authorization", "Bearer "),
        "/a?b=c",
        b"s3cr3t-s3cr3t",
    )
    .unwrap();
    assert_eq!(headers["authorization"], "Bearer s3cr3t-s3cr3t");
    assert!(headers["authorization"].is_sensitive());
    assert_eq!((uri.to_string().as_str(), headers.len()), ("/a?b=c", 1));

    let slot = Slot::Basic {
        username: "user".to_owned(),
    };
    let (_, headers) = injected(&slot, "/", b"pass word").unwrap();
    assert_eq!(
        headers["authorization"],
        format!("Basic {}", BASE64.encode("user:pass word"))
    );

    let slot = Slot::Query {
        name: "key".to_owned(),
    };
    let (uri, headers) = injected(&slot, "/a?b=c", b"s&=# +%").unwrap();
    assert_eq!(uri.to_string(), "/a?b=c&key=s%26%3D%23%20%2B%25");
    assert!(headers.is_empty());
    assert_eq!(
        injected(&slot, "/a", b"xyz").unwrap().0.to_string(),
        "/a?key=xyz"
    );
}

#[test]
fn a_secret_with_a_line_break_or_nul_is_refused_in_every_slot() {
    for slot in [
        header_slot("x-key", ""),
        Slot::Basic {
            username: "u".into(),
        },
        Slot::Query { name: "k".into() },
    ] {
        for bad in [
            b"a\r\nx: y".as_slice(),
            b"a\nb",
            b"a\rb",
            b"a\0b",
            b"",
            b"a\x7fb",
        ] {
            assert_eq!(
                injected(&slot, "/", bad).unwrap_err().code,
                "secret_unusable"
            );
        }
    }
    assert!(injected(&header_slot("x-key", "a\r\nb: "), "/", b"secret").is_err());
    assert!(injected(&header_slot("host", ""), "/", b"secret").is_err());
    assert!(
        injected(
            &Slot::Basic {
                username: "a:b".into()
            },
            "/",
            b"secret"
        )
        .is_err()
    );
}

fn stripped(url: &str, slot: &Slot, pairs: &[(&str, &str)]) -> (Url, HeaderMap, Vec<String>) {
    let mut url = Url::parse(url).unwrap();
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            value.parse().unwrap(),
        );
    }
    let dropped = strip(&mut url, &mut headers, slot);
    (url, headers, dropped)
}

#[test]
fn client_supplied_credentials_are_dropped_whatever_their_case_and_number() {
    let pairs = [
        ("Authorization", "Bearer mine"),
        ("AUTHORIZATION", "Bearer another"),
        ("X-Api-Key", "mine"),
        ("Cookie", "a=b"),
        ("Proxy-Authorization", "Basic x"),
        ("Proxy-Anything", "x"),
        ("Accept", "*/*"),
    ];
    let (_, headers, mut dropped) = stripped("https://h/", &header_slot("x-api-key", ""), &pairs);
    dropped.sort();
    assert_eq!(
        dropped,
        [
            "authorization",
            "cookie",
            "proxy-anything",
            "proxy-authorization",
            "x-api-key"
        ]
    );
    assert_eq!(headers.len(), 1);
    assert_eq!(headers["accept"], "*/*");
}

#[test]
fn a_query_slot_given_by_the_client_is_dropped_in_every_spelling() {
    let slot = Slot::Query {
        name: "key".to_owned(),
    };
    let (url, _, dropped) = stripped(
        "https://u:p@h/p?key=1&a=b%20c&%6Bey=2&KEY=3&key&x#f",
        &slot,
        &[],
    );
    assert_eq!(url.as_str(), "https://h/p?a=b%20c&x");
    assert_eq!(dropped, ["userinfo", "?key"]);
    let (url, _, dropped) = stripped("https://h/p?key=1", &slot, &[]);
    assert_eq!((url.as_str(), dropped.len()), ("https://h/p", 1));
}

#[test]
fn hop_by_hop_headers_and_those_that_connection_names_do_not_pass() {
    let pairs = [
        ("Connection", "x-secret-hop, close"),
        ("X-Secret-Hop", "1"),
        ("Transfer-Encoding", "chunked"),
        ("Content-Length", "4"),
        ("Host", "evil"),
        ("Range", "bytes=0-3"),
        ("Accept-Encoding", "br"),
        ("Upgrade", "websocket"),
        ("Content-Type", "text/plain"),
    ];
    let (_, headers, dropped) = stripped("https://h/", &Slot::None, &pairs);
    assert_eq!(
        headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(),
        ["content-type"]
    );
    assert!(dropped.is_empty());
}
