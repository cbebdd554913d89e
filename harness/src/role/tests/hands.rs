//! Scripted hands on their real wire: fenced by epoch, a ledger by key, effects counted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use claviger_sandbox::SandboxId;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::codec::LengthDelimitedCodec;

#[derive(Default)]
struct Kept {
    epochs: HashMap<String, u64>,
    sandboxes: HashMap<String, Vec<String>>,
    ledger: HashMap<String, watch::Receiver<Option<Value>>>,
    /// Effects by key.
    runs: HashMap<String, usize>,
    environment: Value,
    interrupts: usize,
}

/// Hands whose sandboxes are lists of names; `bash` answers with its command.
#[derive(Clone, Default)]
pub(super) struct FakeHands {
    kept: Arc<Mutex<Kept>>,
    interrupted: Arc<Notify>,
}

impl FakeHands {
    pub(super) async fn serve(self, stream: UnixStream) {
        let framed = LengthDelimitedCodec::builder()
            .max_frame_length(32 << 20)
            .new_framed(stream);
        let (mut sink, mut requests) = framed.split();
        let (answers, mut answered) = mpsc::unbounded_channel::<Value>();
        let writer = async move {
            while let Some(answer) = answered.recv().await {
                if sink
                    .send(bytes::Bytes::from(answer.to_string()))
                    .await
                    .is_err()
                {
                    break;
                }
            }
        };
        let reader = async move {
            while let Some(Ok(frame)) = requests.next().await {
                let asked: Value = serde_json::from_slice(&frame).unwrap();
                let (hands, answers) = (self.clone(), answers.clone());
                tokio::spawn(async move {
                    let answer = hands.answer(&asked["request"]).await;
                    let answer = match answer {
                        Ok(ok) => json!({"Ok": ok}),
                        Err(error) => json!({"Err": error}),
                    };
                    answers
                        .send(json!({"id": asked["id"], "answer": answer}))
                        .ok();
                });
            }
        };
        tokio::join!(writer, reader);
    }

    pub(super) fn runs(&self, key: &str) -> usize {
        self.kept
            .lock()
            .unwrap()
            .runs
            .get(key)
            .copied()
            .unwrap_or(0)
    }

    pub(super) fn sandboxes(&self, session: &str) -> Vec<String> {
        self.kept
            .lock()
            .unwrap()
            .sandboxes
            .get(session)
            .cloned()
            .unwrap_or_default()
    }

    pub(super) fn interrupts(&self) -> usize {
        self.kept.lock().unwrap().interrupts
    }

    pub(super) fn environment(&self) -> Value {
        self.kept.lock().unwrap().environment.clone()
    }

    /// All sandboxes die, and with them what ran; the ledger is gone as after a restart.
    pub(super) fn die(&self) {
        let mut kept = self.kept.lock().unwrap();
        kept.sandboxes.clear();
        kept.ledger.clear();
        kept.epochs.clear();
    }

    async fn answer(&self, request: &Value) -> Result<Value, Value> {
        let op = request["op"].as_str().unwrap();
        let at = if op == "execute" {
            &request["call"]
        } else {
            request
        };
        let session = at["session"].as_str().unwrap_or("").to_owned();
        let epoch = at["epoch"].as_u64().unwrap_or(0);
        {
            let mut kept = self.kept.lock().unwrap();
            let newest = kept.epochs.get(&session).copied().unwrap_or(0);
            if epoch < newest {
                return Err(json!({"type": "fenced", "epoch": newest}));
            }
            if op == "list" {
                let rows: Vec<Value> = kept
                    .sandboxes
                    .iter()
                    .flat_map(|(session, names)| names.iter().map(move |name| (session, name)))
                    .map(|(session, name)| {
                        json!({"sandbox": name, "session": session, "epoch": kept.epochs[session], "pid": 1, "running": 0,
                               "age_ms": 0, "provision_us": 0})
                    })
                    .collect();
                return Ok(json!({"rows": rows}));
            }
            if op == "attach" {
                kept.epochs.insert(session.clone(), epoch);
            } else if newest == 0 {
                return Err(json!({"type": "not_found"}));
            }
        }
        match op {
            "attach" => Ok(json!({"attached": self.sandboxes(&session)})),
            "provision" => {
                let sandbox = SandboxId::random().to_string();
                let mut kept = self.kept.lock().unwrap();
                kept.environment = request["resources"]["environment"].clone();
                kept.sandboxes
                    .entry(session)
                    .or_default()
                    .push(sandbox.clone());
                Ok(json!({"provisioned": sandbox}))
            }
            "execute" => self.execute(&request["call"], &session).await,
            "result" => {
                let kept = self.kept.lock().unwrap();
                Ok(match kept.ledger.get(request["key"].as_str().unwrap()) {
                    None => json!({"ledger": "unknown"}),
                    Some(entry) => match &*entry.borrow() {
                        None => json!({"ledger": "running"}),
                        Some(output) => json!({"ledger": {"done": output}}),
                    },
                })
            }
            "interrupt" => {
                self.kept.lock().unwrap().interrupts += 1;
                self.interrupted.notify_waiters();
                Ok(json!("done"))
            }
            "destroy" => {
                let mut kept = self.kept.lock().unwrap();
                kept.sandboxes
                    .entry(session)
                    .or_default()
                    .retain(|name| request["sandbox"] != name.as_str());
                Ok(json!("done"))
            }
            _ => Err(json!({"type": "refused", "reason": op})),
        }
    }

    async fn execute(&self, call: &Value, session: &str) -> Result<Value, Value> {
        let key = call["key"].as_str().unwrap().to_owned();
        if !self
            .sandboxes(session)
            .iter()
            .any(|name| call["sandbox"] == name.as_str())
        {
            return Err(json!({"type": "lost", "sandbox": call["sandbox"]}));
        }
        let known = self.kept.lock().unwrap().ledger.get(&key).cloned();
        let mut entry = match known {
            Some(entry) => entry,
            None => {
                let (done, entry) = watch::channel(None);
                let mut kept = self.kept.lock().unwrap();
                kept.ledger.insert(key.clone(), entry.clone());
                *kept.runs.entry(key).or_default() += 1;
                drop(kept);
                let (input, interrupted) = (call["input"].clone(), Arc::clone(&self.interrupted));
                tokio::spawn(async move {
                    let hangs = input["command"] == "hang";
                    let work =
                        tokio::time::sleep(Duration::from_millis(if hangs { 60_000 } else { 2 }));
                    let (text, is_error) = tokio::select! {
                        () = work => (format!("ran {input}"), false),
                        () = interrupted.notified() => ("stopped half way".to_owned(), true),
                    };
                    let output = json!({"content": [{"type": "text", "text": text}], "is_error": is_error, "elapsed_ms": 2});
                    done.send_replace(Some(output));
                });
                entry
            }
        };
        let output = entry
            .wait_for(Option::is_some)
            .await
            .map(|output| output.clone());
        Ok(json!({"output": output.map_err(|_| json!({"type": "disconnected"}))?}))
    }
}
