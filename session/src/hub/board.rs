//! Who holds which session until when, and which sessions wait for somebody.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Instant;

use crate::id::SessionId;

/// Ended leases that are remembered before they are cleared out.
const REMEMBERED: usize = 4096;

/// Leases and offers. An offer has a position; a session that is offered again gets a new, greater one, so that a
/// reader with a cursor misses nothing and nothing queues up for a slow one.
#[derive(Debug, Default)]
pub(crate) struct Board {
    leases: HashMap<SessionId, Held>,
    deadlines: BTreeSet<(Instant, SessionId)>,
    working: HashSet<SessionId>,
    offers: BTreeMap<u64, SessionId>,
    offered: HashMap<SessionId, u64>,
    newest_offer: u64,
}

#[derive(Debug)]
struct Held {
    owner: String,
    epoch: u64,
    /// Absent once it has run out or was released.
    deadline: Option<Instant>,
}

impl Board {
    /// Returns the newest epoch granted here, if it is remembered.
    pub(crate) fn epoch(&self, session: &SessionId) -> Option<u64> {
        self.leases.get(session).map(|held| held.epoch)
    }

    /// Returns who else holds the session and for how many more milliseconds.
    pub(crate) fn held_by_other(
        &self,
        session: &SessionId,
        owner: &str,
        now: Instant,
    ) -> Option<(String, u64)> {
        let held = self.leases.get(session)?;
        let left = held.deadline?.checked_duration_since(now)?;
        let millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
        (held.owner != owner).then(|| (held.owner.clone(), millis))
    }

    /// Grants or extends a lease.
    pub(crate) fn lease(
        &mut self,
        session: &SessionId,
        owner: &str,
        epoch: u64,
        deadline: Instant,
    ) {
        self.clear_deadline(session);
        if self.leases.len() > REMEMBERED + 2 * self.deadlines.len() {
            self.leases.retain(|_, held| held.deadline.is_some());
        }
        let held = Held {
            owner: owner.to_owned(),
            epoch,
            deadline: Some(deadline),
        };
        self.leases.insert(session.clone(), held);
        self.deadlines.insert((deadline, session.clone()));
        self.offer(session, false);
    }

    /// Ends a lease; the session is on offer again if it has work.
    pub(crate) fn release(&mut self, session: &SessionId) {
        self.clear_deadline(session);
        self.offer(session, true);
    }

    /// Notes whether a session has work; `news` offers it anew even if it is on offer already.
    pub(crate) fn set_work(&mut self, session: &SessionId, has_work: bool, news: bool) {
        if has_work {
            self.working.insert(session.clone());
        } else {
            self.working.remove(session);
        }
        self.offer(session, news);
    }

    /// Ends the leases whose time has run out.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some((deadline, session)) = self.deadlines.first().cloned() {
            if deadline > now {
                return;
            }
            self.release(&session);
        }
    }

    /// Returns the first offer after this position.
    pub(crate) fn offer_after(&self, cursor: u64) -> Option<(u64, SessionId)> {
        let (position, session) = self.offers.range(cursor.saturating_add(1)..).next()?;
        Some((*position, session.clone()))
    }

    /// Returns when the next lease runs out.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    fn clear_deadline(&mut self, session: &SessionId) {
        if let Some(held) = self.leases.get_mut(session)
            && let Some(deadline) = held.deadline.take()
        {
            self.deadlines.remove(&(deadline, session.clone()));
        }
    }

    /// Puts the session on offer or takes it off, as its work and lease say.
    fn offer(&mut self, session: &SessionId, again: bool) {
        let is_held = self
            .leases
            .get(session)
            .is_some_and(|held| held.deadline.is_some());
        let is_due = self.working.contains(session) && !is_held;
        if is_due && !again && self.offered.contains_key(session) {
            return;
        }
        if let Some(position) = self.offered.remove(session) {
            self.offers.remove(&position);
        }
        if is_due {
            self.newest_offer += 1;
            self.offers.insert(self.newest_offer, session.clone());
            self.offered.insert(session.clone(), self.newest_offer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn id(name: &str) -> SessionId {
        format!("sesn_{name}").parse().unwrap()
    }

    fn on_offer(board: &Board) -> Vec<String> {
        board.offers.values().map(ToString::to_string).collect()
    }

    #[test]
    fn work_is_on_offer_only_while_nobody_holds_it() {
        let now = Instant::now();
        let mut board = Board::default();
        board.set_work(&id("a"), true, true);
        assert_eq!(on_offer(&board), ["sesn_a"]);
        board.lease(&id("a"), "one", 1, now + Duration::from_secs(1));
        assert!(on_offer(&board).is_empty());
        board.set_work(&id("a"), true, true);
        assert!(
            on_offer(&board).is_empty(),
            "the holder sees new input itself"
        );
        board.expire(now + Duration::from_millis(999));
        assert!(on_offer(&board).is_empty());
        board.expire(now + Duration::from_secs(1));
        assert_eq!(on_offer(&board), ["sesn_a"]);
        assert_eq!(
            board.epoch(&id("a")),
            Some(1),
            "an expired lease still fences older ones"
        );
    }

    #[test]
    fn a_renewed_lease_runs_out_at_its_new_deadline_only() {
        let now = Instant::now();
        let mut board = Board::default();
        board.set_work(&id("a"), true, true);
        board.lease(&id("a"), "one", 1, now + Duration::from_secs(1));
        board.lease(&id("a"), "one", 1, now + Duration::from_secs(5));
        board.expire(now + Duration::from_secs(2));
        assert!(on_offer(&board).is_empty());
        assert!(
            board
                .held_by_other(&id("a"), "two", now + Duration::from_secs(2))
                .is_some()
        );
        assert!(
            board
                .held_by_other(&id("a"), "one", now + Duration::from_secs(2))
                .is_none()
        );
        board.expire(now + Duration::from_secs(5));
        assert_eq!(on_offer(&board), ["sesn_a"]);
    }

    #[test]
    fn a_reader_with_a_cursor_sees_every_renewed_offer_once() {
        let mut board = Board::default();
        board.set_work(&id("a"), true, true);
        board.set_work(&id("b"), true, true);
        let (first, a) = board.offer_after(0).unwrap();
        let (second, b) = board.offer_after(first).unwrap();
        assert_eq!((a, b), (id("a"), id("b")));
        assert!(board.offer_after(second).is_none());
        board.set_work(&id("a"), true, false);
        assert!(board.offer_after(second).is_none(), "nothing new happened");
        board.release(&id("a"));
        assert_eq!(board.offer_after(second).unwrap().1, id("a"));
    }

    #[test]
    fn handled_work_is_taken_off() {
        let mut board = Board::default();
        board.set_work(&id("a"), true, true);
        board.set_work(&id("a"), false, false);
        assert!(on_offer(&board).is_empty());
        board.release(&id("a"));
        assert!(on_offer(&board).is_empty());
    }
}
