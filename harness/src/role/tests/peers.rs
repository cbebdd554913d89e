//! Scripted vault and tools on their real wire.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use claviger_vault_protocol::Refusal;
use claviger_vault_protocol::opening::{EndOpening, OpenSession};
use claviger_vault_protocol::present::{At, Call, NameSandbox, Present};
use claviger_vault_protocol::wire::{Verbs, arguments, unknown_verb};
use serde_json::{Value, json};

/// What the harness carries and cannot read.
pub(super) const CIPHERTEXT: &str = "Y2FuYXJ5IG9mIHRoZSB0cmFja2Vy";

/// A vault that opens every session, at ascending epochs.
#[derive(Default)]
pub(super) struct FakeVault {
    epochs: Mutex<HashMap<String, u64>>,
    pub(super) ended: Mutex<Vec<EndOpening>>,
    /// Answers `open_session` with this refusal while it is set.
    pub(super) refusal: Mutex<Option<&'static str>>,
}

impl Verbs for FakeVault {
    fn names(&self) -> Vec<&'static str> {
        vec!["end_opening", "open_session"]
    }

    async fn call(&self, verb: &str, query: Value) -> Result<Value, Refusal> {
        match verb {
            "open_session" => {
                let query: OpenSession = arguments(verb, query)?;
                if let Some(code) = *self.refusal.lock().unwrap() {
                    return Err(Refusal::new(code, "as the test wants it"));
                }
                let mut epochs = self.epochs.lock().unwrap();
                let newest = epochs.entry(query.session.clone()).or_default();
                if query.epoch < *newest {
                    return Err(Refusal::new("epoch_stale", "a newer epoch is open"));
                }
                *newest = query.epoch;
                Ok(
                    json!({"opening": format!("open_{}", query.epoch), "session": query.session, "epoch": query.epoch,
                    "principal": "key:key_1", "tools": ["*"], "model_grant": "grant_m", "expires_at_ms": u64::MAX,
                    "grants": [{"grant": "grant_t", "credential": "vcrd_t", "name": "tracker", "version": 1, "kind": "bearer",
                        "binding": {"destination": {"scheme": "https", "host": "tracker.example", "port": 443},
                            "slot": {"in": "header", "name": "authorization", "prefix": "Bearer "}},
                        "placeholder": "placeholder-of-tracker", "variable": "TRACKER_TOKEN", "ciphertext": CIPHERTEXT}]}),
                )
            }
            "end_opening" => {
                self.ended.lock().unwrap().push(arguments(verb, query)?);
                Ok(json!({}))
            }
            _ => Err(unknown_verb(verb)),
        }
    }
}

#[derive(Default)]
struct Known {
    presented: HashMap<String, u64>,
    named: Vec<NameSandbox>,
    /// Effects: key, epoch.
    calls: Vec<(String, u64)>,
    presents: usize,
    carried: Vec<String>,
}

/// Tools with a read-only `tracker_list`, a non-idempotent `tracker_create`, and `tracker_hang`.
#[derive(Clone, Default)]
pub(super) struct FakeTools {
    known: Arc<Mutex<Known>>,
}

impl FakeTools {
    pub(super) fn calls(&self, key: &str) -> usize {
        self.known
            .lock()
            .unwrap()
            .calls
            .iter()
            .filter(|(called, _)| called == key)
            .count()
    }

    pub(super) fn named(&self) -> Vec<NameSandbox> {
        self.known.lock().unwrap().named.clone()
    }

    pub(super) fn presents(&self) -> usize {
        self.known.lock().unwrap().presents
    }

    /// Ciphertexts that were presented.
    pub(super) fn carried(&self) -> Vec<String> {
        self.known.lock().unwrap().carried.clone()
    }

    /// As after a restart of tools.
    pub(super) fn forget(&self) {
        self.known.lock().unwrap().presented.clear();
    }

    /// Whether the session is presented at this epoch.
    pub(super) fn knows(&self, session: &str, epoch: u64) -> bool {
        self.known.lock().unwrap().presented.get(session) == Some(&epoch)
    }

    fn require(&self, session: &str, epoch: u64) -> Result<(), Refusal> {
        match self.known.lock().unwrap().presented.get(session) {
            Some(newest) if *newest == epoch => Ok(()),
            Some(newest) if *newest > epoch => {
                Err(Refusal::new("epoch_stale", "a newer epoch was presented"))
            }
            _ => Err(Refusal::new("opening_not_accepted", "not presented")),
        }
    }
}

impl Verbs for FakeTools {
    fn names(&self) -> Vec<&'static str> {
        vec!["call", "list_tools", "name_sandbox", "present", "withdraw"]
    }

    async fn call(&self, verb: &str, query: Value) -> Result<Value, Refusal> {
        match verb {
            "present" => {
                let Present { opening } = arguments(verb, query)?;
                let mut known = self.known.lock().unwrap();
                known.presents += 1;
                known
                    .carried
                    .extend(opening.grants.iter().map(|grant| grant.ciphertext.clone()));
                let newest = known.presented.entry(opening.session.clone()).or_default();
                if opening.epoch < *newest {
                    return Err(Refusal::new("epoch_stale", "a newer epoch was presented"));
                }
                *newest = opening.epoch;
                Ok(json!({"session": opening.session, "epoch": opening.epoch}))
            }
            "withdraw" => {
                let at: At = arguments(verb, query)?;
                let mut known = self.known.lock().unwrap();
                if known.presented.get(&at.session) == Some(&at.epoch) {
                    known.presented.remove(&at.session);
                }
                Ok(json!({}))
            }
            "name_sandbox" => {
                let name: NameSandbox = arguments(verb, query)?;
                self.require(&name.session, name.epoch)?;
                self.known.lock().unwrap().named.push(name);
                Ok(json!({}))
            }
            "list_tools" => {
                let at: At = arguments(verb, query)?;
                self.require(&at.session, at.epoch)?;
                let row = |name: &str, read_only: bool| {
                    json!({"name": name, "definition": "tracker", "description": name,
                        "input_schema": {"type": "object"}, "read_only": read_only, "idempotent": false})
                };
                Ok(
                    json!({"tools": [row("tracker_create", false), row("tracker_hang", false), row("tracker_list", true)]}),
                )
            }
            "call" => {
                let call: Call = arguments(verb, query)?;
                self.require(&call.session, call.epoch)?;
                self.known
                    .lock()
                    .unwrap()
                    .calls
                    .push((call.key.clone(), call.epoch));
                if call.tool == "tracker_hang" {
                    std::future::pending::<()>().await;
                }
                Ok(
                    json!({"content": [{"type": "text", "text": format!("{} {}", call.tool, call.arguments)}], "is_error": false}),
                )
            }
            _ => Err(unknown_verb(verb)),
        }
    }
}
