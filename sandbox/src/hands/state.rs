//! Sessions with their epochs and keys, sandboxes with their owners, and what may be done to them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::Options;
use super::ledger::Book;
use super::live::Sandbox;
use crate::{HandsError, SandboxId};

/// Sessions remembered without a sandbox; the longest unused are forgotten first.
const MAX_SESSIONS: usize = 10_000;
/// The longest name of a session or key.
pub(super) const MAX_NAME_BYTES: usize = 512;
/// Lost sandboxes remembered per session.
const MAX_LOST: usize = 64;

#[derive(Debug)]
pub(super) struct Session {
    pub(super) epoch: u64,
    pub(super) book: Book,
    pub(super) lost: VecDeque<SandboxId>,
    pub(super) provisioning: usize,
    pub(super) used: Instant,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) sessions: HashMap<String, Session>,
    pub(super) sandboxes: HashMap<SandboxId, Arc<Sandbox>>,
}

impl State {
    /// Lets an epoch in: the newest or a newer one, which fences all below it.
    pub(super) fn claimed(&mut self, session: &str, epoch: u64) -> Result<&mut Self, HandsError> {
        if session.len() > MAX_NAME_BYTES {
            return Err(HandsError::refused(format!(
                "a session's name has at most {MAX_NAME_BYTES} bytes"
            )));
        }
        if !self.sessions.contains_key(session) && self.sessions.len() >= MAX_SESSIONS {
            self.forget_a_session();
        }
        let entry = self
            .sessions
            .entry(session.to_owned())
            .or_insert_with(|| Session {
                epoch,
                book: Book::default(),
                lost: VecDeque::new(),
                provisioning: 0,
                used: Instant::now(),
            });
        if epoch < entry.epoch {
            return Err(HandsError::Fenced { epoch: entry.epoch });
        }
        entry.epoch = epoch;
        entry.used = Instant::now();
        Ok(self)
    }

    fn forget_a_session(&mut self) {
        let in_use = |name: &String, session: &Session| {
            session.provisioning > 0
                || session.book.is_busy()
                || self.sandboxes.values().any(|s| s.session == *name)
        };
        let idle = self
            .sessions
            .iter()
            .filter(|(name, session)| !in_use(name, session));
        if let Some(name) = idle
            .min_by_key(|(_, session)| session.used)
            .map(|(name, _)| name.clone())
        {
            self.sessions.remove(&name);
        }
    }

    pub(super) fn sandbox(
        &self,
        session: &str,
        id: &SandboxId,
    ) -> Result<Arc<Sandbox>, HandsError> {
        if let Some(sandbox) = self
            .sandboxes
            .get(id)
            .filter(|sandbox| sandbox.session == session)
        {
            return Ok(Arc::clone(sandbox));
        }
        if self
            .sessions
            .get(session)
            .is_some_and(|entry| entry.lost.contains(id))
        {
            return Err(HandsError::Lost {
                sandbox: id.clone(),
            });
        }
        Err(HandsError::NotFound)
    }

    pub(super) fn reserve(
        &mut self,
        session: &str,
        epoch: u64,
        options: &Options,
    ) -> Result<(), HandsError> {
        self.claimed(session, epoch)?;
        let provisioning: usize = self.sessions.values().map(|entry| entry.provisioning).sum();
        if self.sandboxes.len() + provisioning >= options.max_sandboxes {
            return Err(HandsError::refused(format!(
                "{} sandboxes are alive already",
                options.max_sandboxes
            )));
        }
        let alive = self
            .sandboxes
            .values()
            .filter(|sandbox| sandbox.session == session)
            .count();
        let most = options.max_sandboxes_per_session;
        if let Some(entry) = self.sessions.get_mut(session) {
            if alive + entry.provisioning >= most {
                return Err(HandsError::refused(format!(
                    "this session has {most} sandboxes already"
                )));
            }
            entry.provisioning += 1;
        }
        Ok(())
    }

    pub(super) fn unreserve<T>(
        &mut self,
        session: &str,
        made: Result<T, HandsError>,
    ) -> Result<T, HandsError> {
        if let Some(entry) = self.sessions.get_mut(session) {
            entry.provisioning = entry.provisioning.saturating_sub(1);
        }
        made
    }

    /// Takes note that a sandbox ended; whether nobody had asked for that.
    pub(super) fn bury(&mut self, sandbox: &Sandbox) -> bool {
        if self.sandboxes.remove(&sandbox.id).is_none() {
            return false;
        }
        if let Some(session) = self.sessions.get_mut(&sandbox.session) {
            session.lost.push_back(sandbox.id.clone());
            if session.lost.len() > MAX_LOST {
                session.lost.pop_front();
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::State;
    use crate::HandsError;
    use crate::hands::Options;

    #[test]
    fn a_lower_epoch_is_fenced_and_a_greater_one_takes_over() {
        let mut state = State::default();
        assert!(state.claimed("sesn_a", 3).is_ok());
        assert!(state.claimed("sesn_a", 3).is_ok());
        assert!(state.claimed("sesn_a", 5).is_ok());
        assert_eq!(
            state.claimed("sesn_a", 4).err(),
            Some(HandsError::Fenced { epoch: 5 })
        );
        assert!(
            state.claimed("sesn_b", 1).is_ok(),
            "sessions do not fence each other"
        );
    }

    #[test]
    fn quotas_count_what_is_being_made() {
        let mut state = State::default();
        let options = Options {
            max_sandboxes: 3,
            max_sandboxes_per_session: 2,
            ..Options::default()
        };
        assert!(state.reserve("sesn_a", 1, &options).is_ok());
        assert!(state.reserve("sesn_a", 1, &options).is_ok());
        assert!(matches!(
            state.reserve("sesn_a", 1, &options),
            Err(HandsError::Refused { .. })
        ));
        assert!(state.reserve("sesn_b", 1, &options).is_ok());
        assert!(matches!(
            state.reserve("sesn_c", 1, &options),
            Err(HandsError::Refused { .. })
        ));
        assert_eq!(state.unreserve("sesn_b", Ok(7)), Ok(7));
        assert!(state.reserve("sesn_c", 1, &options).is_ok());
    }
}
