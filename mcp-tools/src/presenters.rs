//! Which harness presented what: the right to speak for a session, shared by a harness's two links.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The openings that one harness connection presented, each at its session's newest epoch there.
#[derive(Debug, Default)]
pub(crate) struct Presented(Mutex<HashSet<(String, u64)>>);

impl Presented {
    /// Notes an opening; an older epoch of the session is spoken for no more.
    pub(crate) fn insert(&self, session: &str, epoch: u64) {
        let mut presented = self.set();
        presented.retain(|(known, _)| known != session);
        presented.insert((session.to_owned(), epoch));
    }

    /// Forgets an opening.
    pub(crate) fn remove(&self, session: &str, epoch: u64) {
        self.set().remove(&(session.to_owned(), epoch));
    }

    /// Whether this very opening was presented.
    pub(crate) fn has(&self, session: &str, epoch: u64) -> bool {
        self.set().contains(&(session.to_owned(), epoch))
    }

    fn set(&self) -> MutexGuard<'_, HashSet<(String, u64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What each harness presented over its newest connection, by the name that the supervisor gave the harness.
#[derive(Debug, Default)]
pub(crate) struct Presenters(Mutex<HashMap<String, Arc<Presented>>>);

impl Presenters {
    /// A new connection of a harness: what it presents counts from now on, and nothing of before.
    pub(crate) fn enter(&self, peer: &str) -> Arc<Presented> {
        let presented = Arc::<Presented>::default();
        self.all().insert(peer.to_owned(), Arc::clone(&presented));
        presented
    }

    /// The connection is over; a newer one of the same harness is left alone.
    pub(crate) fn leave(&self, peer: &str, presented: &Arc<Presented>) {
        let mut all = self.all();
        if all
            .get(peer)
            .is_some_and(|current| Arc::ptr_eq(current, presented))
        {
            all.remove(peer);
        }
    }

    /// Whether this harness presented this very opening.
    pub(crate) fn has(&self, peer: &str, session: &str, epoch: u64) -> bool {
        self.all()
            .get(peer)
            .is_some_and(|presented| presented.has(session, epoch))
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, Arc<Presented>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_harness_has_what_its_newest_connection_presented_and_nobody_elses() {
        let presenters = Presenters::default();
        let first = presenters.enter("harness-0");
        first.insert("sesn_1", 3);
        assert!(presenters.has("harness-0", "sesn_1", 3));
        assert!(!presenters.has("harness-1", "sesn_1", 3));
        assert!(!presenters.has("harness-0", "sesn_1", 4));
        first.insert("sesn_1", 4);
        assert!(!presenters.has("harness-0", "sesn_1", 3));
        let second = presenters.enter("harness-0");
        assert!(!presenters.has("harness-0", "sesn_1", 4));
        second.insert("sesn_2", 1);
        presenters.leave("harness-0", &first);
        assert!(presenters.has("harness-0", "sesn_2", 1));
        presenters.leave("harness-0", &second);
        assert!(!presenters.has("harness-0", "sesn_2", 1));
    }
}
