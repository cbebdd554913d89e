//! `init`: makes the root key, the first seal, the store, the log and the first API key.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use claviger_vault_memory::SecretBytes;
use claviger_vault_protocol::admin::{AUTH_PURPOSE, Init, Initialized, SEAL_PURPOSE, SealChoice};
use claviger_vault_protocol::{KeyPair, Principal, Refusal};

use super::unsealed::{StoredKeyPair, signer};
use super::{Asker, CHANGE, Unsealed, Vault, blocking};
use crate::api_key;
use crate::audit::{Decision, Entry, Kind, Label, Op};
use crate::error::VaultError;
use crate::keys::{Keyring, Keys};
use crate::operator::Verifier;
use crate::permit::Policy;
use crate::seal::{Input, Stanza, commitment, key_file};
use crate::store::{self, Change, Class, Front, Header};

/// What `init` made.
pub(super) struct Made {
    pub(super) answer: Initialized,
    pub(super) front: Front,
    pub(super) unsealed: Unsealed,
}

pub(super) async fn make(vault: &Vault, asker: &Asker, query: Init) -> Result<Made, Refusal> {
    api_key::check_label(&query.first_key_label)?;
    let verifier = match &query.operator_passphrase {
        None => None,
        Some(sealed) => {
            let passphrase = vault.open_input(sealed, AUTH_PURPOSE, b"init")?;
            Some(blocking(move || Verifier::new(&passphrase)).await?)
        }
    };
    let passphrase = match &query.seal {
        SealChoice::KeyFile => None,
        SealChoice::Passphrase { passphrase } => {
            Some(vault.open_input(passphrase, SEAL_PURPOSE, b"passphrase")?)
        }
        _ => {
            return Err(Refusal::new(
                "malformed_request",
                "this vault knows no such seal",
            ));
        }
    };
    let directory = vault.directory.clone();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .map_err(VaultError::file(&directory))?;

    let id = format!("vault_{}", uuid::Uuid::new_v4().simple());
    let root = SecretBytes::random(32).map_err(VaultError::from)?;
    let keys = Keys::derive(&id, &root)?;
    let key_pair = KeyPair::generate().map_err(VaultError::from)?;
    let now = vault.clock.wall_ms();
    let header = Header {
        format: 1,
        vault: id.clone(),
        key: key_pair.public().to_string(),
        commitment: commitment(&root)?,
        operator_passphrase: verifier.is_some(),
        demo: query.demo,
        created_at_ms: now,
    };
    let (root, stanza) = {
        let (id, directory) = (id.clone(), directory.clone());
        blocking(move || {
            let input = match &passphrase {
                Some(passphrase) => Input::Passphrase(passphrase),
                None => {
                    // A key file without a store is what an init that was cut short leaves behind.
                    if !key_file::path(&directory).exists() {
                        key_file::create(&directory)?;
                    }
                    Input::KeyFile(&directory)
                }
            };
            let stanza = Stanza::wrap(&id, input, &root)?;
            Ok((root, stanza))
        })
        .await?
    };

    let (first_key, text) = api_key::generate(&query.first_key_label, now)?;
    let mut change = Change::default();
    let private = keys.wrap(&id, "key-pair", "private", key_pair.private())?;
    change.put(Class::Vault, "key-pair", &StoredKeyPair { private })?;
    change.put(
        Class::Kek,
        "1",
        &Keyring::default().generate(&keys, &id, 1)?,
    )?;
    change.put(Class::ApiKey, &first_key.id, &first_key)?;
    change.put(
        Class::Policy,
        "policy",
        &Policy {
            version: 1,
            first_key: Principal::key(&first_key.id),
        },
    )?;
    if let Some(verifier) = &verifier {
        change.put(Class::Operator, "verifier", verifier)?;
    }
    let entry = Entry {
        decision: Decision::Allow,
        request_id: Some(Label::new(&format!(
            "{CHANGE}{}",
            uuid::Uuid::new_v4().simple()
        ))),
        credential_id: Some(Label::new(&first_key.id)),
        ..asker.entry(Kind::Admin, Op::Init)
    };
    change.record(
        serde_json::to_value(&entry).map_err(|error| VaultError::Audit(error.to_string()))?,
    );
    let front = store::create(&directory, &keys, &header, &[stanza], change)?;
    // Opening what was just written appends the record of `init` to the log, as after any crash.
    let unsealed = vault.load(&front, &root).await?;
    let answer = Initialized {
        vault: id.clone(),
        key: header.key,
        audit_vkey: signer(&id, &keys)?.vkey().to_string(),
        first_key: text,
        first_key_id: first_key.id,
    };
    Ok(Made {
        answer,
        front,
        unsealed,
    })
}

/// Writes the public key where those look who seal to the vault; a different one that stands there
/// would have them seal to somebody else.
pub(super) fn check_public_key(path: &Path, key: &str) -> Result<(), VaultError> {
    match std::fs::read_to_string(path) {
        Ok(text) if text.trim() == key => Ok(()),
        Ok(_) => Err(VaultError::StoreTampered(format!(
            "{} holds another key than the store",
            path.display()
        ))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let beside = path.with_extension("pub.new");
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o644)
                .open(&beside)
                .map_err(VaultError::file(&beside))?;
            file.write_all(format!("{key}\n").as_bytes())
                .map_err(VaultError::file(&beside))?;
            file.sync_all().map_err(VaultError::file(&beside))?;
            std::fs::rename(&beside, path).map_err(VaultError::file(path))?;
            if let Some(parent) = path.parent() {
                File::open(parent)
                    .and_then(|folder| folder.sync_all())
                    .map_err(VaultError::file(parent))?;
            }
            Ok(())
        }
        Err(error) => Err(VaultError::file(path)(error)),
    }
}
