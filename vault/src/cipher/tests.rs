use claviger_vault_memory::scan::{Fingerprints, scan_self};
use sha2::{Digest as _, Sha512};

use super::*;

fn key(byte: u8) -> SecretBytes {
    SecretBytes::copy_of(&[byte; KEY_BYTES]).unwrap()
}

#[test]
fn what_is_sealed_opens_only_with_the_same_key_and_context() {
    let sealed = seal(&key(1), b"here", b"a stored secret").unwrap();
    assert_eq!(sealed.len(), NONCE_BYTES + 15 + TAG_BYTES);
    assert_eq!(
        open(&key(1), b"here", &sealed).unwrap().expose(),
        b"a stored secret"
    );
    assert!(matches!(
        open(&key(2), b"here", &sealed),
        Err(CipherError::Refused)
    ));
    assert!(matches!(
        open(&key(1), b"there", &sealed),
        Err(CipherError::Refused)
    ));
    for bit in 0..sealed.len() * 8 {
        let mut changed = sealed.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(
            matches!(open(&key(1), b"here", &changed), Err(CipherError::Refused)),
            "bit {bit}"
        );
    }
    for length in 0..sealed.len() {
        assert!(
            matches!(
                open(&key(1), b"here", &sealed[..length]),
                Err(CipherError::Refused)
            ),
            "length {length}"
        );
    }
}

#[test]
fn the_same_text_never_seals_to_the_same_bytes() {
    assert_ne!(
        seal(&key(1), b"", b"text").unwrap(),
        seal(&key(1), b"", b"text").unwrap()
    );
}

#[test]
fn an_empty_secret_is_authenticated_too() {
    let sealed = seal(&key(1), b"x", b"").unwrap();
    assert!(open(&key(1), b"x", &sealed).unwrap().is_empty());
    assert!(open(&key(1), b"y", &sealed).is_err());
}

#[test]
fn a_key_of_another_length_is_refused() {
    let short = SecretBytes::copy_of(&[1; 16]).unwrap();
    assert!(matches!(
        seal(&short, b"", b"x"),
        Err(CipherError::KeyLength)
    ));
    assert!(matches!(
        SigningKey::from_seed(short),
        Err(CipherError::KeyLength)
    ));
}

#[test]
fn hkdf_is_rfc_5869_without_salt() {
    // RFC 5869, appendix A.3: 22 bytes of 0x0b, no salt, no info; the first 32 bytes of the output.
    let input = SecretBytes::copy_of(&[0x0b; 22]).unwrap();
    let expected = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d";
    assert_eq!(hex::encode(hkdf(&input, b"").unwrap().expose()), expected);
    assert_ne!(
        hkdf(&input, b"a").unwrap().expose(),
        hkdf(&input, b"b").unwrap().expose()
    );
}

#[test]
fn hmac_is_rfc_4231() {
    // RFC 4231, test case 2.
    let key = SecretBytes::copy_of(b"Jefe").unwrap();
    let tag = hmac(&key, b"what do ya want for nothing?");
    assert_eq!(
        hex::encode(tag),
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    );
    verify_hmac(&key, b"what do ya want for nothing?", &tag).unwrap();
    assert!(verify_hmac(&key, b"what do ya want for nothing!", &tag).is_err());
    assert!(verify_hmac(&key, b"what do ya want for nothing?", &tag[..31]).is_err());
}

#[test]
fn signatures_are_rfc_8032() {
    // RFC 8032, 7.1, test 1.
    let mut seed =
        hex::decode("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
    let signer =
        SigningKey::from_seed(SecretBytes::from_mut_slice_wiping(&mut seed).unwrap()).unwrap();
    assert_eq!(
        hex::encode(signer.public()),
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    );
    let signature = signer.sign(b"");
    assert_eq!(hex::encode(&signature[..8]), "e5564300c360ac72");
    verify_signature(signer.public(), b"", &signature).unwrap();
    assert!(verify_signature(signer.public(), b"x", &signature).is_err());
    assert!(verify_signature(signer.public(), b"", &signature[..63]).is_err());
    assert!(!format!("{signer:?}").contains("9d61"));
}

/// Uses a secret key in every way there is; nothing of it may stay outside the arena.
#[inline(never)]
fn use_everywhere(key: &SecretBytes, secret: &SecretBytes) {
    let sealed = seal(key, b"context", secret.expose()).unwrap();
    assert!(
        open(key, b"context", &sealed)
            .unwrap()
            .is_equal(secret.expose())
    );
    assert!(open(key, b"other", &sealed).is_err());
    let derived = hkdf(key, b"info").unwrap();
    assert!(verify_hmac(&derived, b"message", &hmac(&derived, b"message")).is_ok());
    assert_ne!(hmac(key, b"message"), [0; 32]);
    let signer = SigningKey::from_seed(SecretBytes::copy_of(key.expose()).unwrap()).unwrap();
    verify_signature(signer.public(), b"message", &signer.sign(b"message")).unwrap();
}

#[test]
fn after_use_no_copy_of_a_key_or_secret_is_outside_the_arena() {
    let key = random_key().unwrap();
    let secret = SecretBytes::random(200).unwrap();
    let turned = |with: u8| {
        let mut turned = SecretBytes::copy_of(key.expose()).unwrap();
        turned
            .expose_mut()
            .iter_mut()
            .for_each(|byte| *byte ^= with);
        turned
    };
    let (inner, outer) = (turned(0x36), turned(0x5c));
    let mut expanded = SecretBytes::new_zeroed(64).unwrap();
    wiping(|| {
        expanded
            .expose_mut()
            .copy_from_slice(&Sha512::digest(key.expose()));
    });
    let derived = hkdf(&key, b"info").unwrap();
    let patterns = [
        ("key", key.expose()),
        ("first half of the key schedule", &key.expose()[..16]),
        ("second half of the key schedule", &key.expose()[16..]),
        ("inner pad", inner.expose()),
        ("outer pad", outer.expose()),
        ("signing prefix", &expanded.expose()[32..]),
        ("middle of the signing scalar", &expanded.expose()[1..31]),
        ("derived key", derived.expose()),
        ("secret", secret.expose()),
        ("middle of the secret", &secret.expose()[100..140]),
    ];
    let fingerprints = Fingerprints::new([5; 32], patterns).unwrap();
    let before = scan_self(&fingerprints).unwrap();
    assert_eq!(before.total_hits(), 0, "{:?}", before.places);
    for _ in 0..3 {
        use_everywhere(&key, &secret);
    }
    let after = scan_self(&fingerprints).unwrap();
    assert_eq!(after.total_hits(), 0, "{:?}", after.places);
    assert!(after.arena_hits["key"] >= 1 && after.arena_hits["secret"] == 1);

    let planted = std::hint::black_box(key.expose().to_vec());
    assert_eq!(
        scan_self(&fingerprints).unwrap().hits["key"],
        1,
        "control: a planted copy is found"
    );
    drop(planted);
}

#[test]
fn without_the_wipe_the_library_leaves_copies() {
    #[inline(never)]
    fn careless(key: &SecretBytes) {
        let mut text = *b"some text";
        let key = aead_key(key).unwrap();
        let nonce = Nonce::assume_unique_for_key([0; NONCE_BYTES]);
        let tag = key
            .seal_in_place_separate_tag(nonce, Aad::empty(), &mut text)
            .unwrap();
        assert_eq!(tag.as_ref().len(), TAG_BYTES);
    }
    let key = random_key().unwrap();
    let fingerprints = Fingerprints::new([5; 32], [("key", key.expose())]).unwrap();
    careless(&key);
    let report = scan_self(&fingerprints).unwrap();
    assert!(
        report.total_hits() > 0,
        "if the library wipes now, this module can be simpler"
    );
}
