//! The daemon's state: uninitialised, sealed, open or failed, and the way from one to the next.

mod init;
mod registry;
mod unsealed;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use claviger_vault_memory::{Arena, Protection, SecretBytes};
use claviger_vault_protocol::admin::{
    AUTH_PURPOSE, Authentication, Init, Initialized, SEAL_PURPOSE, Status, Unseal,
};
use claviger_vault_protocol::{KeyPair, Principal, Refusal, Role, Sealed};
use tokio::sync::{Mutex, RwLock, RwLockReadGuard};

use crate::audit::{Entry, Kind, Label, Op};
use crate::clock::Clock;
use crate::error::VaultError;
use crate::operator::Attempts;
use crate::seal::{Input, key_file};
use crate::store::{self, Front};
use crate::trail::{self, Trail, denied};

pub(crate) use registry::{Registered, Registry};
pub(crate) use unsealed::{Pending, State, Unsealed};

/// What the request ids of changes begin with in the audit log.
pub(crate) const CHANGE: &str = "change_";

/// Whoever is at the other end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    pub(crate) role: Role,
    /// Which process, by the supervisor's word; the operator's socket by its own name.
    pub(crate) instance: String,
    /// User and process behind the operator's socket, by the kernel's word.
    pub(crate) peer: Option<(u32, Option<u32>)>,
}

impl Asker {
    pub(crate) fn is_api(&self) -> bool {
        self.role == Role::Api
    }

    /// An entry that says who asked.
    pub(crate) fn entry(&self, kind: Kind, op: Op) -> Entry {
        let principal = match self.peer {
            Some((uid, _)) => Principal::operator(uid).as_str().to_owned(),
            None => format!("role:{}", self.instance),
        };
        Entry {
            principal: Some(Label::new(&principal)),
            peer_uid: self.peer.map(|peer| peer.0),
            peer_pid: self.peer.and_then(|peer| peer.1),
            ..Entry::new(kind, op)
        }
    }
}

/// What the vault can do at the moment.
#[derive(Debug)]
enum Phase {
    Failed(Option<Front>, Refusal),
    Open(Box<(Front, Unsealed)>),
    Sealed(Front, Option<Trail>),
    Uninitialized,
}

/// The daemon, shared by its connections.
#[derive(Debug)]
pub(crate) struct Vault {
    directory: PathBuf,
    public_key_file: PathBuf,
    pub(crate) clock: Arc<dyn Clock>,
    /// Made at each start: seal inputs and the operator's passphrase are sealed to it.
    session_key: KeyPair,
    /// Verbs hold it for reading; sealing waits for those under way, and none begins after.
    phase: RwLock<Phase>,
    attempts: Mutex<Attempts>,
    pub(crate) registry: Registry,
    is_demo: AtomicBool,
}

impl Vault {
    /// Looks at the home and unseals by key file where there is one.
    pub(crate) async fn start(
        directory: &Path,
        public_key_file: &Path,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, VaultError> {
        let vault = Self {
            directory: directory.to_owned(),
            public_key_file: public_key_file.to_owned(),
            clock,
            session_key: KeyPair::generate()?,
            phase: RwLock::new(Phase::Uninitialized),
            attempts: Mutex::default(),
            registry: Registry::default(),
            is_demo: AtomicBool::new(false),
        };
        let Some(front) = store::front(directory)? else {
            let audit = trail::directory(directory);
            if std::fs::read_dir(&audit).is_ok_and(|mut files| files.next().is_some()) {
                return Err(VaultError::StoreRolledBack(
                    "there is an audit log and no store".to_owned(),
                ));
            }
            return Ok(vault);
        };
        vault.is_demo.store(front.header.demo, Ordering::Relaxed);
        let input = Input::KeyFile(directory);
        if front.stanzas.iter().any(|stanza| stanza.takes(input))
            && key_file::path(directory).exists()
        {
            if let Some(root) = unwrap(&front, input)? {
                let unsealed = vault.load(&front, &root).await?;
                unsealed
                    .trail
                    .append(unsealed::system(Op::Start, None))
                    .await?;
                *vault.phase.write().await = Phase::Open(Box::new((front, unsealed)));
                return Ok(vault);
            }
            return Err(VaultError::Seal(
                "the key file is not the one of this store".to_owned(),
            ));
        }
        if front.stanzas.iter().all(|stanza| stanza.takes(input)) {
            let path = key_file::path(directory);
            let what = "the key file, the only seal of this vault, is missing".to_owned();
            return Err(VaultError::File { path, what });
        }
        // While sealed the log is chained and not signed; without it the vault still says its status.
        let found = trail::open(directory, None, None);
        let trail = match found {
            Ok(found) => {
                found
                    .trail
                    .append(unsealed::system(Op::Start, None))
                    .await?;
                Some(found.trail)
            }
            Err(error) => {
                tracing::error!(%error, "nothing is recorded until the vault is unsealed");
                None
            }
        };
        *vault.phase.write().await = Phase::Sealed(front, trail);
        Ok(vault)
    }

    async fn load(&self, front: &Front, root: &SecretBytes) -> Result<Unsealed, VaultError> {
        let unsealed =
            Unsealed::load(&self.directory, front, root, Arc::clone(&self.clock)).await?;
        init::check_public_key(
            &self.public_key_file,
            &unsealed.key_pair.public().to_string(),
        )?;
        Ok(unsealed)
    }

    /// Whether the store was made as a demo's.
    pub(crate) fn is_demo(&self) -> bool {
        self.is_demo.load(Ordering::Relaxed)
    }

    /// The open vault, for the time of one verb.
    pub(crate) async fn unsealed(&self) -> Result<RwLockReadGuard<'_, Unsealed>, Refusal> {
        let phase = self.phase.read().await;
        RwLockReadGuard::try_map(phase, |phase| match phase {
            Phase::Open(open) => Some(&open.1),
            _ => None,
        })
        .map_err(|phase| match &*phase {
            Phase::Failed(_, refusal) => refusal.clone(),
            Phase::Uninitialized => {
                Refusal::new("vault_uninitialized", "there is no vault in this home")
                    .with_fix("claviger init")
            }
            Phase::Open(_) | Phase::Sealed(..) => {
                Refusal::new("vault_sealed", "the vault is sealed")
                    .with_fix("claviger vault unseal")
            }
        })
    }

    /// `status`.
    pub(crate) async fn status(&self) -> Status {
        let phase = self.phase.read().await;
        let (state, front, reason) = match &*phase {
            Phase::Failed(front, refusal) => ("failed", front.as_ref(), Some(refusal.to_string())),
            Phase::Open(open) => match open.1.check_health() {
                Ok(()) => ("open", Some(&open.0), None),
                Err(error) => ("failed", Some(&open.0), Some(error.to_string())),
            },
            Phase::Sealed(front, _) => ("sealed", Some(front), None),
            Phase::Uninitialized => ("uninitialized", None, None),
        };
        let audit_records = match &*phase {
            Phase::Open(open) => open.1.trail.head().records,
            Phase::Sealed(_, Some(trail)) => trail.head().records,
            _ => 0,
        };
        let openings = match &*phase {
            Phase::Open(open) => open.1.state().openings.count_live(),
            _ => 0,
        };
        let memory_protection = match Arena::global().status().protection {
            Protection::MemfdSecret => "memfd_secret",
            Protection::Locked => "locked",
            _ => "none",
        };
        Status {
            state: state.to_owned(),
            vault: front.map(|front| front.header.vault.clone()),
            seals: front
                .map(|front| {
                    front
                        .stanzas
                        .iter()
                        .map(|stanza| stanza.kind().to_owned())
                        .collect()
                })
                .unwrap_or_default(),
            session_key: self.session_key.public().to_string(),
            key: front.map(|front| front.header.key.clone()),
            operator_passphrase: front.is_some_and(|front| front.header.operator_passphrase),
            memory_protection: memory_protection.to_owned(),
            audit_records,
            reason,
            openings,
        }
    }

    /// `init`.
    pub(crate) async fn init(&self, asker: &Asker, query: Init) -> Result<Initialized, Refusal> {
        let mut phase = self.phase.write().await;
        if !matches!(*phase, Phase::Uninitialized) {
            return Err(
                Refusal::new("already_initialized", "this home has a vault already")
                    .with_fix("give another home, or use the vault that is there"),
            );
        }
        let made = init::make(self, asker, query).await?;
        self.is_demo
            .store(made.front.header.demo, Ordering::Relaxed);
        *phase = Phase::Open(Box::new((made.front, made.unsealed)));
        Ok(made.answer)
    }

    /// `unseal`.
    pub(crate) async fn unseal(&self, asker: &Asker, query: Unseal) -> Result<Status, Refusal> {
        {
            let mut attempts = self.attempts.lock().await;
            let mut phase = self.phase.write().await;
            let front = match &*phase {
                Phase::Sealed(front, _) => front.clone(),
                Phase::Open(_) => {
                    drop(phase);
                    drop(attempts);
                    return Ok(self.status().await);
                }
                Phase::Failed(_, refusal) => return Err(refusal.clone()),
                Phase::Uninitialized => {
                    return Err(Refusal::new(
                        "vault_uninitialized",
                        "there is no vault in this home",
                    )
                    .with_fix("claviger init"));
                }
            };
            attempts.check(self.clock.monotonic_ms())?;
            let passphrase = self.open_input(&query.passphrase, SEAL_PURPOSE, b"passphrase")?;
            let root = blocking(move || unwrap(&front, Input::Passphrase(&passphrase))).await;
            let root = match root {
                Ok(root) => root,
                Err(error) => return Err(error.into()),
            };
            let Some(root) = root else {
                attempts.failed(self.clock.monotonic_ms());
                if let Phase::Sealed(_, Some(trail)) = &*phase {
                    let entry = denied(asker.entry(Kind::Auth, Op::Unseal), "wrong_passphrase");
                    trail.append(entry).await?;
                }
                return Err(Refusal::new(
                    "wrong_passphrase",
                    "the passphrase opens no seal of this vault",
                ));
            };
            attempts.succeeded();
            let front = match std::mem::replace(&mut *phase, Phase::Uninitialized) {
                // The log of the sealed time is closed here and opened anew, with its signer.
                Phase::Sealed(front, _) => front,
                other => {
                    *phase = other;
                    return Err(Refusal::new(
                        "internal",
                        "the vault changed while it was being unsealed",
                    ));
                }
            };
            match self.load(&front, &root).await {
                Ok(unsealed) => {
                    let recorded = unsealed
                        .trail
                        .append(unsealed::system(Op::Unseal, Some(asker)))
                        .await;
                    *phase = Phase::Open(Box::new((front, unsealed)));
                    recorded?;
                }
                Err(error) => {
                    let refusal = Refusal::from(error);
                    *phase = Phase::Failed(Some(front), refusal.clone());
                    return Err(refusal);
                }
            }
        }
        Ok(self.status().await)
    }

    /// `seal`: waits for the verbs under way, then wipes every key.
    pub(crate) async fn seal(&self, asker: &Asker) -> Result<Status, Refusal> {
        {
            let mut phase = self.phase.write().await;
            match std::mem::replace(&mut *phase, Phase::Uninitialized) {
                Phase::Open(open) => {
                    let (front, unsealed) = *open;
                    let recorded = unsealed
                        .trail
                        .append(unsealed::system(Op::Seal, Some(asker)))
                        .await;
                    let flushed = unsealed.tick().await;
                    drop(unsealed);
                    let trail = trail::open(&self.directory, None, None)
                        .ok()
                        .map(|found| found.trail);
                    *phase = Phase::Sealed(front, trail);
                    // Sealing is narrowing: it happens whatever the disk says, and the failure is told.
                    recorded?;
                    flushed?;
                }
                other => *phase = other,
            }
        }
        Ok(self.status().await)
    }

    /// Asks for the operator's passphrase where the vault has one.
    pub(crate) async fn authenticate(
        &self,
        open: &Unsealed,
        asker: &Asker,
        verb: &str,
        authentication: &Authentication,
    ) -> Result<(), Refusal> {
        let Some(verifier) = &open.verifier else {
            return Ok(());
        };
        let Some(sealed) = &authentication.passphrase else {
            return Err(Refusal::new(
                "operator_authentication_required",
                format!("{verb} asks for the operator's passphrase"),
            ));
        };
        let mut attempts = self.attempts.lock().await;
        attempts.check(self.clock.monotonic_ms())?;
        let passphrase = self.open_input(sealed, AUTH_PURPOSE, verb.as_bytes())?;
        if !attempts.spend(&sealed.enc) {
            return Err(Refusal::new(
                "operator_authentication_required",
                "this authentication has served already",
            ));
        }
        let verifier = verifier.clone();
        if blocking(move || verifier.admits(&passphrase)).await? {
            attempts.succeeded();
            return Ok(());
        }
        attempts.failed(self.clock.monotonic_ms());
        open.trail
            .append(denied(
                asker.entry(Kind::Auth, Op::Authenticate),
                "wrong_passphrase",
            ))
            .await?;
        Err(Refusal::new(
            "wrong_passphrase",
            "the operator's passphrase is another one",
        ))
    }

    /// Opens what was sealed to the key of this start.
    fn open_input(
        &self,
        sealed: &Sealed,
        purpose: &str,
        associated: &[u8],
    ) -> Result<SecretBytes, Refusal> {
        self.session_key
            .open(sealed, purpose, associated)
            .map_err(|_| {
                Refusal::new(
                    "malformed_request",
                    "the input was not sealed to this start of the vault for this verb",
                )
                .with_fix("ask for the status again and seal to its session_key")
            })
    }

    /// Does what is due once a second.
    pub(crate) async fn tick(&self) {
        if let Ok(open) = self.unsealed().await
            && let Err(error) = open.tick().await
        {
            tracing::error!(%error, "the vault cannot keep its books");
        }
    }

    /// Ends: flushes what is in memory, and leaves a record.
    pub(crate) async fn stop(&self) {
        let mut phase = self.phase.write().await;
        if let Phase::Open(open) = &*phase {
            drop(open.1.trail.append(unsealed::system(Op::Stop, None)).await);
            drop(open.1.tick().await);
        }
        *phase = Phase::Uninitialized;
    }

    #[cfg(test)]
    pub(crate) async fn fail_audit(&self, is_failing: bool) {
        if let Phase::Open(open) = &*self.phase.read().await {
            open.1.trail.is_failing.store(is_failing, Ordering::SeqCst);
        }
    }
}

fn unwrap(front: &Front, input: Input<'_>) -> Result<Option<SecretBytes>, VaultError> {
    for stanza in &front.stanzas {
        if let Some(root) = stanza.unwrap(&front.header.vault, input)? {
            return Ok(Some(root));
        }
    }
    Ok(None)
}

/// Runs slow work off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VaultError> + Send + 'static,
) -> Result<T, VaultError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(VaultError::Seal(format!(
            "the derivation was interrupted: {error}"
        ))),
    }
}

#[cfg(test)]
mod tests;
