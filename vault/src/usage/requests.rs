//! Answers by request id: a repeat gets the same decision, whichever connection it comes over.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use claviger_vault_protocol::Refusal;
use claviger_vault_protocol::usage::Authorized;
use tokio::sync::OnceCell;

/// A decision that is made once.
pub(super) type Slot = Arc<OnceCell<Result<Authorized, Refusal>>>;

/// Requests that are remembered; the oldest are forgotten first.
const MOST: usize = 8192;

/// The recent requests of all tools instances.
#[derive(Debug, Default)]
pub(super) struct Requests {
    slots: HashMap<(String, String), ([u8; 32], Slot)>,
    order: VecDeque<(String, String)>,
}

impl Requests {
    /// The slot of a request; none where the id was used for a different one.
    pub(super) fn slot(
        &mut self,
        instance: &str,
        request_id: &str,
        fingerprint: [u8; 32],
    ) -> Option<Slot> {
        let key = (instance.to_owned(), request_id.to_owned());
        if let Some((known, slot)) = self.slots.get(&key) {
            return (*known == fingerprint).then(|| Arc::clone(slot));
        }
        if self.order.len() >= MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.slots.remove(&oldest);
        }
        let slot = Slot::default();
        self.slots
            .insert(key.clone(), (fingerprint, Arc::clone(&slot)));
        self.order.push_back(key);
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_belongs_to_one_request_of_one_instance() {
        let mut requests = Requests::default();
        let slot = requests.slot("tools_1", "r", [1; 32]).unwrap();
        assert!(Arc::ptr_eq(
            &slot,
            &requests.slot("tools_1", "r", [1; 32]).unwrap()
        ));
        assert!(requests.slot("tools_1", "r", [2; 32]).is_none());
        assert!(!Arc::ptr_eq(
            &slot,
            &requests.slot("tools_2", "r", [1; 32]).unwrap()
        ));
    }

    #[test]
    fn memory_is_bounded() {
        let mut requests = Requests::default();
        for number in 0..MOST * 2 {
            requests
                .slot("tools_1", &number.to_string(), [0; 32])
                .unwrap();
        }
        assert_eq!((requests.slots.len(), requests.order.len()), (MOST, MOST));
    }
}
