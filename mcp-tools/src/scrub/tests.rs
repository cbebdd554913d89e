use proptest::prelude::*;

use super::*;

fn scrubber(secret: &[u8]) -> Scrubber {
    Scrubber::new(&[Known {
        name: "key",
        secret,
        basic_username: Some("user"),
    }])
}

fn in_pieces(scrubber: &mut Scrubber, text: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut from = 0;
    for cut in cuts
        .iter()
        .map(|cut| cut % (text.len() + 1))
        .collect::<std::collections::BTreeSet<_>>()
    {
        out.extend_from_slice(&scrubber.push(Bytes::copy_from_slice(&text[from..cut])));
        from = cut;
    }
    out.extend_from_slice(&scrubber.push(Bytes::copy_from_slice(&text[from..])));
    out.extend_from_slice(&scrubber.finish());
    out
}

fn is_in(form: &[u8], text: &[u8]) -> bool {
    text.windows(form.len()).any(|part| part == form)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn no_form_of_a_secret_survives_any_split(
        secret in proptest::collection::vec(prop_oneof![33_u8..127, 32_u8..=255], 12..80),
        before in proptest::collection::vec(any::<u8>(), 0..40),
        after in proptest::collection::vec(any::<u8>(), 0..40),
        which in 0_usize..64,
        cuts in proptest::collection::vec(any::<usize>(), 0..12),
    ) {
        let forms = claviger_vault_memory::forms::of(&secret);
        let (name, form) = &forms[which % forms.len()];
        let text = [before.as_slice(), form, &after].concat();
        let mut scrubber = scrubber(&secret);
        let out = in_pieces(&mut scrubber, &text, &cuts);
        prop_assert!(!is_in(form, &out), "{name}");
        prop_assert!(scrubber.hits() > 0);
    }

    #[test]
    fn base64_at_any_alignment_inside_other_bytes_is_found(
        secret in proptest::collection::vec(any::<u8>(), 16..60),
        before in proptest::collection::vec(any::<u8>(), 0..8),
        after in proptest::collection::vec(any::<u8>(), 0..8),
        cuts in proptest::collection::vec(any::<usize>(), 0..6),
    ) {
        use base64::Engine as _;
        use base64::engine::general_purpose::{STANDARD, URL_SAFE};
        for engine in [&STANDARD, &URL_SAFE] {
            let text = engine.encode([before.as_slice(), &secret, &after].concat());
            let mut scrubber = scrubber(&secret);
            let out = in_pieces(&mut scrubber, text.as_bytes(), &cuts);
            prop_assert!(String::from_utf8_lossy(&out).contains("[scrubbed:key]"));
            prop_assert_eq!(scrubber.hits(), 1);
        }
    }

    #[test]
    fn text_without_the_secret_is_unchanged_by_any_split(
        text in proptest::collection::vec(prop_oneof![Just(b's'), Just(b'e'), Just(b'c'), any::<u8>()], 0..300),
        cuts in proptest::collection::vec(any::<usize>(), 0..12),
    ) {
        let mut scrubber = scrubber(b"secsecsecsec-0123456789");
        prop_assume!(scrubber.value(&text).is_none());
        prop_assert_eq!(in_pieces(&mut scrubber, &text, &cuts), text);
    }
}

#[test]
fn only_what_can_still_become_a_secret_is_held_back() {
    let mut scrubber = scrubber(b"tok_abcdefghijklmnop");
    assert_eq!(
        scrubber.push(Bytes::from_static(b"data: hello\n\n")),
        "data: hello\n\n"
    );
    assert_eq!(
        scrubber.push(Bytes::from_static(b"data: tok_abcdefghi")),
        "data: "
    );
    assert_eq!(
        scrubber.push(Bytes::from_static(b"X\n\n")),
        "tok_abcdefghiX\n\n"
    );
    assert_eq!(scrubber.push(Bytes::from_static(b"tok_abcdefghij")), "");
    assert_eq!(
        scrubber.push(Bytes::from_static(b"klmnop.")),
        "[scrubbed:key]."
    );
    assert_eq!(scrubber.push(Bytes::from_static(b"tok_")), "");
    assert_eq!(scrubber.finish(), "tok_");
}

#[test]
fn repeated_and_overlapping_beginnings_do_not_hide_a_secret() {
    let mut scrubber = scrubber(b"aaaaaaaaaaaaab");
    let text = [
        b"a".repeat(40),
        b"b and ".to_vec(),
        b"a".repeat(13),
        b"b".to_vec(),
    ]
    .concat();
    let out = in_pieces(&mut scrubber, &text, &[3, 20, 41, 50]);
    assert!(!is_in(b"aaaaaaaaaaaaab", &out));
    assert_eq!(scrubber.hits(), 2);
}

#[test]
fn a_short_secret_is_not_scrubbed_and_an_empty_set_passes_all() {
    let mut scrubber = scrubber(b"short");
    assert_eq!(
        scrubber.push(Bytes::from_static(b"a short text")),
        "a short text"
    );
    let mut nothing = Scrubber::new(&[]);
    assert_eq!(nothing.push(Bytes::from_static(b"anything")), "anything");
}

#[test]
fn many_secrets_at_once_are_each_named() {
    let secrets: Vec<(String, String)> = (0..20)
        .map(|n| {
            (
                format!("name{n}"),
                format!("{n:02}-secret/with+special&<chars>-{n}"),
            )
        })
        .collect();
    let known: Vec<Known<'_>> = secrets
        .iter()
        .map(|(name, secret)| Known {
            name,
            secret: secret.as_bytes(),
            basic_username: None,
        })
        .collect();
    let mut scrubber = Scrubber::new(&known);
    for (name, secret) in &secrets {
        let out = scrubber.value(format!("<{secret}>").as_bytes()).unwrap();
        assert_eq!(out, format!("<[scrubbed:{name}]>").into_bytes());
    }
}

#[test]
fn a_header_named_after_the_secret_is_dropped_whatever_its_case() {
    let mut scrubber = scrubber(b"Sk-Live-0123456789");
    let mut headers = HeaderMap::new();
    headers.insert("x-sk-live-0123456789", HeaderValue::from_static("1"));
    headers.insert(
        "x-fine",
        HeaderValue::from_static("Bearer Sk-Live-0123456789"),
    );
    scrubber.headers(&mut headers);
    assert_eq!(headers.len(), 1);
    assert_eq!(headers["x-fine"], "Bearer [scrubbed:key]");
}

#[test]
fn debug_shows_nothing() {
    assert_eq!(
        format!("{:?}", scrubber(b"tok_abcdefghijklmnop")),
        "Scrubber([redacted])"
    );
}

#[test]
fn a_byte_that_json_leaves_alone_is_left_alone_beside_one_that_it_escapes() {
    let mut scrubber = scrubber(b"quote\"delete\x7fend-0123");
    let out = scrubber.value(b"<quote\\\"delete\x7fend-0123>").unwrap();
    assert_eq!(out, b"<[scrubbed:key]>");
}
