//! Whether a session waits for a harness.

use serde_json::Value;

/// `handled` of a session that has ended: no event has a greater number.
const ENDED: u64 = u64::MAX >> 1;

/// The part of a session's past that decides whether it has unhandled work.
///
/// A session has work when input came after what the newest idle or terminated status says was handled, or when its
/// newest status says that it runs (then its harness died on the way). A terminated session never has work again, whatever
/// comes late.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Work {
    /// Number of the newest input event.
    pub last_input: u64,
    /// The `handled_seq` of the newest status that names one.
    pub handled: u64,
    /// The newest status is running or rescheduled.
    pub running: bool,
}

impl Work {
    /// Says whether events of this type are input.
    pub fn is_input(kind: &str) -> bool {
        matches!(
            kind,
            "session.wake"
                | "user.custom_tool_result"
                | "user.interrupt"
                | "user.message"
                | "user.tool_confirmation"
        )
    }

    /// Takes the next event of the session.
    pub fn fold(&mut self, seq: u64, kind: &str, payload: &Value) {
        if Self::is_input(kind) {
            self.last_input = seq;
        } else if self.handled == ENDED {
            // Nothing brings a session back from its end.
        } else if let Some(status) = kind.strip_prefix("session.status_") {
            self.running = matches!(status, "rescheduled" | "running");
            let named = payload["handled_seq"].as_u64();
            match status {
                "idle" => self.handled = named.unwrap_or(self.handled),
                // Neither what came before the end of a session nor what comes after it will be handled.
                "terminated" => self.handled = ENDED,
                _ => {}
            }
        }
    }

    /// Says whether the session waits for a harness.
    pub fn is_open(&self) -> bool {
        self.running || self.last_input > self.handled
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn work(events: &[(&str, Value)]) -> bool {
        let mut work = Work::default();
        for (seq, (kind, payload)) in (1..).zip(events) {
            work.fold(seq, kind, payload);
        }
        work.is_open()
    }

    #[test]
    fn a_created_session_has_no_work_until_input_comes() {
        assert!(!work(&[("session.created", json!({}))]));
        for input in [
            "user.message",
            "user.interrupt",
            "user.tool_confirmation",
            "user.custom_tool_result",
            "session.wake",
        ] {
            assert!(
                work(&[("session.created", json!({})), (input, json!({}))]),
                "{input}"
            );
        }
    }

    #[test]
    fn idle_ends_the_work_that_it_says_it_handled_and_no_more() {
        let turn = |handled: u64| {
            work(&[
                ("user.message", json!({})),
                ("session.status_running", json!({})),
                ("user.message", json!({})),
                ("session.status_idle", json!({"handled_seq": handled})),
            ])
        };
        assert!(!turn(3));
        assert!(
            turn(1),
            "the second message came while the first was handled"
        );
    }

    #[test]
    fn a_session_that_was_left_running_has_work() {
        assert!(work(&[("session.status_running", json!({}))]));
        assert!(work(&[("session.status_rescheduled", json!({}))]));
    }

    #[test]
    fn a_terminated_session_has_no_work() {
        assert!(!work(&[
            ("user.message", json!({})),
            ("session.status_terminated", json!({}))
        ]));
    }

    #[test]
    fn what_comes_after_the_end_of_a_session_is_no_work() {
        let ended = |late: &[(&str, Value)]| {
            let mut events = vec![
                ("user.message", json!({})),
                ("session.status_terminated", json!({"handled_seq": 1})),
            ];
            events.extend_from_slice(late);
            work(&events)
        };
        assert!(!ended(&[("user.message", json!({}))]));
        assert!(!ended(&[("session.status_running", json!({}))]));
        assert!(!ended(&[
            ("session.status_idle", json!({"handled_seq": 0})),
            ("user.message", json!({})),
        ]));
    }

    #[test]
    fn an_idle_status_that_names_nothing_handles_nothing() {
        assert!(work(&[
            ("user.message", json!({})),
            ("session.status_idle", json!({}))
        ]));
    }
}
