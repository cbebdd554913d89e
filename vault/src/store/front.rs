//! What stands in front of the sealed rows: the header and the seals.

use rusqlite::{Connection, OptionalExtension as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::schema;
use crate::encoding::length_prefixed;
use crate::error::VaultError;
use crate::seal::Stanza;

/// What may be known while sealed; authenticated once the root key is there.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Header {
    pub(crate) format: u32,
    pub(crate) vault: String,
    /// The vault's long-lived public key, base64.
    pub(crate) key: String,
    /// Commitment to the root key, hex.
    pub(crate) commitment: String,
    /// Whether widening verbs ask for a passphrase.
    pub(crate) operator_passphrase: bool,
    pub(crate) demo: bool,
    pub(crate) created_at_ms: u64,
}

/// Header and seals, read before unsealing.
#[derive(Clone, Debug)]
pub(crate) struct Front {
    pub(crate) header: Header,
    pub(crate) stanzas: Vec<Stanza>,
    /// SHA-256 over both as stored, hex.
    pub(super) hash: String,
    /// What the MAC is over.
    pub(super) bytes: Vec<u8>,
    pub(super) mac: Vec<u8>,
}

/// Reads header and stanzas; nothing of it is believed yet.
pub(super) fn read_front(connection: &Connection) -> Result<Front, VaultError> {
    let tampered = |what: &str| VaultError::StoreTampered(what.to_owned());
    let found: Option<(Vec<u8>, Vec<u8>)> = connection
        .query_row("SELECT body, mac FROM header WHERE id = 1", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()
        .map_err(schema::as_read)?;
    let (body, mac) = found.ok_or_else(|| tampered("the header is missing"))?;
    let header: Header =
        serde_json::from_slice(&body).map_err(|_| tampered("the header is not of this version"))?;
    let mut statement = connection
        .prepare("SELECT id, body FROM stanza ORDER BY id")
        .map_err(schema::as_read)?;
    let rows: Vec<(String, Vec<u8>)> = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .map_err(schema::as_read)?
        .collect::<Result<_, _>>()
        .map_err(schema::as_read)?;
    let stanzas: Vec<Stanza> = rows
        .iter()
        .map(|(_, body)| {
            serde_json::from_slice(body).map_err(|_| tampered("a stanza is not of this version"))
        })
        .collect::<Result<_, _>>()?;
    let bytes = front_bytes(
        &body,
        rows.iter().map(|(id, body)| (id.as_str(), body.as_slice())),
    );
    Ok(Front {
        header,
        stanzas,
        hash: hex::encode(Sha256::digest(&bytes)),
        bytes,
        mac,
    })
}

/// What the header's MAC is over.
pub(super) fn front_bytes<'a>(
    header: &'a [u8],
    stanzas: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = vec![b"claviger/front/v1", header];
    for (id, body) in stanzas {
        parts.push(id.as_bytes());
        parts.push(body);
    }
    length_prefixed(&parts)
}
