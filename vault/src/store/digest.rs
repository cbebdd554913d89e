//! The digest over all rows: kept in memory, changed with each row, compared at open.
//!
//! Rows fall into buckets by a hash of their name; changing one costs one bucket and its class, not
//! the whole store.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Class;
use crate::encoding::length_prefixed;

const BUCKETS: usize = 256;

/// What the store root says of one class.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct ClassDigest {
    pub(super) rows: u64,
    /// Hex.
    pub(super) digest: String,
}

/// The rows of all classes by the hash of what is stored.
#[derive(Debug, Default)]
pub(super) struct Digests {
    classes: BTreeMap<Class, Buckets>,
}

#[derive(Debug)]
struct Buckets {
    rows: u64,
    hashes: Vec<BTreeMap<String, [u8; 32]>>,
    digests: Vec<[u8; 32]>,
}

impl Digests {
    /// Takes a row in, in place of one of the same name.
    pub(super) fn insert(&mut self, class: Class, id: &str, sealed: &[u8]) {
        let buckets = self.classes.entry(class).or_insert_with(Buckets::new);
        let bucket = bucket_of(id);
        if buckets.hashes[bucket]
            .insert(id.to_owned(), Sha256::digest(sealed).into())
            .is_none()
        {
            buckets.rows += 1;
        }
        buckets.refresh(bucket);
    }

    /// Takes a row out.
    pub(super) fn remove(&mut self, class: Class, id: &str) {
        let Some(buckets) = self.classes.get_mut(&class) else {
            return;
        };
        let bucket = bucket_of(id);
        if buckets.hashes[bucket].remove(id).is_some() {
            buckets.rows -= 1;
            buckets.refresh(bucket);
        }
        if buckets.rows == 0 {
            self.classes.remove(&class);
        }
    }

    /// What the store root records.
    pub(super) fn summary(&self) -> BTreeMap<Class, ClassDigest> {
        let digest = |buckets: &Buckets| {
            let mut hash = Sha256::new();
            for bucket in &buckets.digests {
                hash.update(bucket);
            }
            ClassDigest {
                rows: buckets.rows,
                digest: hex::encode(hash.finalize()),
            }
        };
        self.classes
            .iter()
            .map(|(class, buckets)| (*class, digest(buckets)))
            .collect()
    }
}

impl Buckets {
    fn new() -> Self {
        Self {
            rows: 0,
            hashes: vec![BTreeMap::new(); BUCKETS],
            digests: vec![[0; 32]; BUCKETS],
        }
    }

    fn refresh(&mut self, bucket: usize) {
        let entries = &self.hashes[bucket];
        self.digests[bucket] = if entries.is_empty() {
            [0; 32]
        } else {
            let mut hash = Sha256::new();
            for (id, digest) in entries {
                hash.update(length_prefixed(&[id.as_bytes(), digest]));
            }
            hash.finalize().into()
        };
    }
}

fn bucket_of(id: &str) -> usize {
    usize::from(Sha256::digest(id.as_bytes())[0])
}

/// Says in which way the rows differ from what was recorded, or nothing where they do not.
pub(super) fn difference(
    recorded: &BTreeMap<Class, ClassDigest>,
    found: &BTreeMap<Class, ClassDigest>,
) -> Option<String> {
    let classes: std::collections::BTreeSet<&Class> = recorded.keys().chain(found.keys()).collect();
    for class in classes {
        let rows =
            |of: &BTreeMap<Class, ClassDigest>| of.get(class).map_or(0, |digest| digest.rows);
        if rows(recorded) != rows(found) {
            return Some(format!(
                "class {}: {} rows where {} were recorded",
                class.as_str(),
                rows(found),
                rows(recorded)
            ));
        }
        if recorded.get(class) != found.get(class) {
            return Some(format!(
                "class {}: rows are not those that were recorded",
                class.as_str()
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_depends_on_the_rows_and_not_on_the_way_there() {
        let (mut one, mut other) = (Digests::default(), Digests::default());
        for number in 0..600_u32 {
            one.insert(Class::Session, &number.to_string(), &number.to_be_bytes());
        }
        for number in (0..700_u32).rev() {
            other.insert(Class::Session, &number.to_string(), b"first");
            other.insert(Class::Session, &number.to_string(), &number.to_be_bytes());
        }
        assert!(
            difference(&one.summary(), &other.summary())
                .unwrap()
                .contains("700 rows")
        );
        for number in 600..700_u32 {
            other.remove(Class::Session, &number.to_string());
        }
        assert_eq!(one.summary(), other.summary());
    }

    #[test]
    fn swapped_and_replayed_rows_are_told() {
        let mut before = Digests::default();
        before.insert(Class::Permit, "a", b"1");
        before.insert(Class::Permit, "b", b"2");
        let mut swapped = Digests::default();
        swapped.insert(Class::Permit, "a", b"2");
        swapped.insert(Class::Permit, "b", b"1");
        assert!(
            difference(&before.summary(), &swapped.summary())
                .unwrap()
                .contains("class permit")
        );
        let mut emptied = before.summary();
        emptied.clear();
        assert!(
            difference(&before.summary(), &emptied)
                .unwrap()
                .contains("0 rows where 2")
        );
    }
}
