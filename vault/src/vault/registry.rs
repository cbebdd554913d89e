//! Who is at the other end of the tools connections: instances and their keys.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use claviger_vault_protocol::PublicKey;

/// A tools instance as registered on its own connection.
#[derive(Clone, Debug)]
pub(crate) struct Registered {
    /// Its name for itself, `tools_..`.
    pub(crate) instance: String,
    /// Its ephemeral key: what is released to it opens nowhere else.
    pub(crate) key: PublicKey,
    /// Number of the registration, new for each connection.
    pub(crate) registration: u64,
}

/// The newest registration of each process.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    count: AtomicU64,
    by_connection: Mutex<HashMap<String, Registered>>,
}

impl Registry {
    /// Takes a registration in; it replaces the former one of the same process.
    ///
    /// None where another live connection has the same instance under another key.
    pub(crate) fn register(
        &self,
        connection: &str,
        instance: &str,
        key: PublicKey,
    ) -> Option<Registered> {
        let mut by_connection = self.lock();
        let is_taken = by_connection.iter().any(|(other, known)| {
            other != connection && known.instance == instance && known.key != key
        });
        if is_taken {
            return None;
        }
        let registration = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let registered = Registered {
            instance: instance.to_owned(),
            key,
            registration,
        };
        by_connection.insert(connection.to_owned(), registered.clone());
        Some(registered)
    }

    /// Takes a registration out, unless a newer one replaced it.
    pub(crate) fn leave(&self, connection: &str, registration: u64) {
        let mut by_connection = self.lock();
        if by_connection
            .get(connection)
            .is_some_and(|known| known.registration == registration)
        {
            by_connection.remove(connection);
        }
    }

    /// Whether a registration is the newest of its process.
    pub(crate) fn is_newest(&self, connection: &str, registration: u64) -> bool {
        self.lock()
            .get(connection)
            .is_some_and(|known| known.registration == registration)
    }

    /// Whether an instance is connected.
    pub(crate) fn is_current(&self, instance: &str) -> bool {
        self.lock().values().any(|known| known.instance == instance)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Registered>> {
        self.by_connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
