//! Writing: numbers are given inside a lock, bytes are written by one thread, synced by another.
//!
//! Everything written while a sync runs is covered by the next one: that is the group commit, and it needs no
//! waiting time. A checkpoint is signed only over what a sync has made durable, so that it never promises more
//! than the disk holds.

mod threads;

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::merkle::{self, Frontier};
use super::note::Signer;
use super::record::{Entry, Kind, Op, Record};
use super::segment::{self, CHECKPOINTS, Segment, VKEY};
use super::{AuditError, Head, recover};

/// Records that may be under way at once; more wait before they are numbered.
const MAX_IN_FLIGHT: usize = 4096;
/// Size from which a segment is closed and the next one started.
const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;

/// Where a log is and who signs it.
#[derive(Debug)]
pub struct Options {
    /// The log's directory; made if absent.
    pub directory: PathBuf,
    /// The signer; none while the vault is sealed.
    pub signer: Option<Signer>,
    /// What the store remembers of the log.
    pub expected_head: Option<Head>,
    /// Size from which a new segment is started.
    pub segment_bytes: u64,
}

impl Options {
    /// A log in `directory`, unsigned, nothing known about it.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            signer: None,
            expected_head: None,
            segment_bytes: SEGMENT_BYTES,
        }
    }
}

/// A log that was opened.
#[derive(Debug)]
pub struct Opened {
    /// To append with; cheap to clone.
    pub log: AuditLog,
    /// Ends the log's threads when dropped.
    pub writer: Writer,
    /// Intents without outcome, from before a crash: the vault records `unknown` outcomes for them.
    pub open_intents: Vec<Record>,
    /// Bytes of an unfinished last line or checkpoint that were cut off.
    pub torn_bytes: u64,
    /// Records after the newest checkpoint; they are covered by the next one, and a `recover` record says so.
    pub uncovered: u64,
}

/// A record's place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Number of the record.
    pub seq: u64,
    /// Leaf hash of the record: together with the number a [`Head`].
    pub leaf: [u8; 32],
}

/// How the log is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The newest durable record.
    pub durable: Head,
    /// Number of records that the newest checkpoint covers.
    pub checkpointed: u64,
    /// Whether a signer is installed.
    pub is_signed: bool,
    /// Why the log takes no more records.
    pub failed: Option<String>,
}

/// The writing end of the audit log.
#[derive(Clone, Debug)]
pub struct AuditLog {
    shared: Arc<Shared>,
}

/// Owner of the log's threads; dropping it writes, syncs and signs what is left.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    threads: Vec<std::thread::JoinHandle<()>>,
    _lock: File,
}

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    segment_bytes: u64,
    clock: Clock,
    state: Mutex<State>,
    /// Signals the writing thread.
    to_write: Condvar,
    /// Signals the syncing thread.
    to_sync: Condvar,
    permits: Arc<Semaphore>,
    durable: watch::Sender<Head>,
}

#[derive(Debug)]
struct State {
    /// The newest numbered record and the tree up to it.
    head: Head,
    frontier: Frontier,
    /// Lines that are numbered and not yet written, and who waits for them.
    buffer: Vec<u8>,
    buffered: Vec<Waiter>,
    /// The newest written record, the tree up to it, and who waits for its sync.
    written: Head,
    written_frontier: Frontier,
    unsynced: VecDeque<Waiter>,
    durable: Head,
    /// The segment that was written to last.
    file: Option<Arc<File>>,
    checkpointed: u64,
    signer: Option<Arc<Signer>>,
    failed: Option<String>,
    is_closing: bool,
    is_writer_done: bool,
}

#[derive(Debug)]
struct Waiter {
    appended: Appended,
    is_durable: bool,
    answer: oneshot::Sender<Result<Appended, AuditError>>,
    _permit: OwnedSemaphorePermit,
}

impl AuditLog {
    /// Opens a log, checks all of it and starts its threads.
    ///
    /// # Errors
    /// [`AuditError::Tampered`], [`AuditError::RolledBack`] and [`AuditError::OtherKey`] if it is not the log that
    /// was written; [`AuditError::InUse`] if another process writes it; [`AuditError::File`].
    pub fn open(options: Options) -> Result<Opened, AuditError> {
        let Options {
            directory,
            signer,
            expected_head,
            segment_bytes,
        } = options;
        let lock = lock_directory(&directory)?;
        let stored = recover::stored_vkey(&directory)?;
        let vkey = signer.as_ref().map(Signer::vkey).cloned().or(stored);
        let (checkpoint, torn_note) = recover::newest_checkpoint(&directory, vkey.as_ref())?;
        let replayed = recover::replay(&directory, checkpoint.as_ref(), expected_head)?;
        let checkpointed = checkpoint.map_or(0, |checkpoint| checkpoint.size);
        let uncovered = replayed.head.size - checkpointed;
        let torn_bytes = replayed.torn_bytes + torn_note;
        let shared = Arc::new(Shared {
            clock: Clock::start(),
            segment_bytes,
            state: Mutex::new(State {
                head: replayed.head,
                frontier: replayed.frontier.clone(),
                buffer: Vec::new(),
                buffered: Vec::new(),
                written: replayed.head,
                written_frontier: replayed.frontier,
                unsynced: VecDeque::new(),
                durable: Head::default(),
                file: None,
                checkpointed,
                signer: None,
                failed: None,
                is_closing: false,
                is_writer_done: false,
            }),
            to_write: Condvar::new(),
            to_sync: Condvar::new(),
            permits: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            durable: watch::Sender::new(Head::default()),
            directory,
        });
        let log = Self {
            shared: Arc::clone(&shared),
        };
        if let Some(signer) = signer {
            log.install_signer(signer)?;
        }
        let threads = threads::start(&shared, replayed.segment)?;
        let writer = Writer {
            shared,
            threads,
            _lock: lock,
        };
        let is_mended = torn_bytes > 0 || (uncovered > 0 && checkpointed > 0);
        if is_mended {
            let entry = Entry {
                count: Some(uncovered),
                bytes: Some(torn_bytes),
                ..Entry::new(Kind::System, Op::Recover)
            };
            drop(log.enqueue(&entry, false, log.permit_now()?)?);
        }
        Ok(Opened {
            log,
            writer,
            open_intents: replayed.open_intents,
            torn_bytes,
            uncovered,
        })
    }

    /// Appends a record and returns when it is durable: nothing that it announces may happen earlier.
    ///
    /// # Errors
    /// [`AuditError::Failed`] once any write or sync failed; [`AuditError::Closed`].
    ///
    /// # Cancel safety
    /// Once polled, the record is written whether or not the future is polled again.
    pub async fn append(&self, entry: Entry) -> Result<Appended, AuditError> {
        self.append_as(entry, true).await
    }

    /// Appends a record and returns when it is written; a crash of the process does not lose it, one of the
    /// machine may.
    ///
    /// # Errors
    /// As [`AuditLog::append`].
    ///
    /// # Cancel safety
    /// As [`AuditLog::append`].
    pub async fn append_lazy(&self, entry: Entry) -> Result<Appended, AuditError> {
        self.append_as(entry, false).await
    }

    async fn append_as(&self, entry: Entry, is_durable: bool) -> Result<Appended, AuditError> {
        let permit = Arc::clone(&self.shared.permits)
            .acquire_owned()
            .await
            .map_err(|_| AuditError::Closed)?;
        let answer = self.enqueue(&entry, is_durable, permit)?;
        answer.await.unwrap_or(Err(AuditError::Closed))
    }

    /// Gives the log its signer, at unsealing; what was appended before is covered by the first checkpoint.
    ///
    /// # Errors
    /// [`AuditError::OtherKey`] if the log was signed by another key; [`AuditError::Tampered`] if its newest checkpoint
    /// does not bear this key's signature.
    pub fn install_signer(&self, signer: Signer) -> Result<(), AuditError> {
        let directory = &self.shared.directory;
        match recover::stored_vkey(directory)? {
            Some(stored) if stored != *signer.vkey() => return Err(AuditError::OtherKey),
            Some(_) => {}
            None => store_vkey(directory, &signer)?,
        }
        let mut state = self.shared.lock();
        if state.signer.is_none() {
            // Before the first checkpoint of this process nobody else writes the file.
            recover::newest_checkpoint(directory, Some(signer.vkey()))?;
        }
        state.signer = Some(Arc::new(signer));
        self.shared.to_sync.notify_one();
        Ok(())
    }

    /// How the log is.
    #[must_use]
    pub fn status(&self) -> Status {
        let state = self.shared.lock();
        Status {
            durable: state.durable,
            checkpointed: state.checkpointed,
            is_signed: state.signer.is_some(),
            failed: state.failed.clone(),
        }
    }

    /// Follows the newest durable record, for the store to remember.
    #[must_use]
    pub fn durable_head(&self) -> watch::Receiver<Head> {
        self.shared.durable.subscribe()
    }

    fn permit_now(&self) -> Result<OwnedSemaphorePermit, AuditError> {
        Arc::clone(&self.shared.permits)
            .try_acquire_owned()
            .map_err(|_| AuditError::Closed)
    }

    /// Numbers a record and hands its line to the writing thread.
    fn enqueue(
        &self,
        entry: &Entry,
        is_durable: bool,
        permit: OwnedSemaphorePermit,
    ) -> Result<oneshot::Receiver<Result<Appended, AuditError>>, AuditError> {
        let body =
            serde_json::to_string(entry).map_err(|error| AuditError::Signer(error.to_string()))?;
        let body = body
            .strip_prefix('{')
            .and_then(|body| body.strip_suffix('}'))
            .unwrap_or_default();
        let (answer, waiting) = oneshot::channel();
        let mut state = self.shared.lock();
        if let Some(reason) = &state.failed {
            return Err(AuditError::Failed {
                reason: reason.clone(),
            });
        }
        if state.is_closing {
            return Err(AuditError::Closed);
        }
        let seq = state.head.size + 1;
        let stamp = self.shared.clock.stamp();
        let prev = hex::encode(state.head.leaf);
        let line = format!("{{\"v\":1,\"seq\":{seq},{stamp},{body},\"prev\":\"{prev}\"}}");
        let leaf = merkle::leaf(line.as_bytes());
        state.head = Head { size: seq, leaf };
        state.frontier.push(leaf);
        state.buffer.extend_from_slice(line.as_bytes());
        state.buffer.push(b'\n');
        state.buffered.push(Waiter {
            appended: Appended { seq, leaf },
            is_durable,
            answer,
            _permit: permit,
        });
        drop(state);
        self.shared.to_write.notify_one();
        Ok(waiting)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the log's work for good: nobody is told that anything more is durable.
    fn fail(&self, reason: &str) {
        let mut state = self.lock();
        let reason = state
            .failed
            .get_or_insert_with(|| reason.to_owned())
            .clone();
        state.buffer.clear();
        let waiting: Vec<Waiter> = state.buffered.drain(..).collect();
        let waiting: Vec<Waiter> = waiting
            .into_iter()
            .chain(state.unsynced.drain(..))
            .collect();
        drop(state);
        tracing::error!(reason, "the audit log failed");
        for waiter in waiting {
            drop(waiter.answer.send(Err(AuditError::Failed {
                reason: reason.clone(),
            })));
        }
        self.to_write.notify_one();
        self.to_sync.notify_one();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.lock().is_closing = true;
        self.shared.permits.close();
        self.shared.to_write.notify_one();
        self.shared.to_sync.notify_one();
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

/// Wall clock and time since the machine started.
#[derive(Debug)]
struct Clock {
    /// Names the machine's start; half of a hash, since the kernel's own identifier is known to everyone on it.
    boot_id: String,
    uptime_ns: u128,
    start: Instant,
}

impl Clock {
    fn start() -> Self {
        let boot_id = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
        let seconds = uptime
            .split([' ', '.'])
            .next()
            .and_then(|seconds| seconds.parse::<u128>().ok());
        Self {
            boot_id: hex::encode(&merkle::leaf(&boot_id)[..8]),
            uptime_ns: seconds.unwrap_or(0) * 1_000_000_000,
            start: Instant::now(),
        }
    }

    fn stamp(&self) -> String {
        let now = jiff::Timestamp::now();
        let mono = self.uptime_ns + self.start.elapsed().as_nanos();
        format!(
            "\"ts\":\"{now:.9}\",\"mono_ns\":{mono},\"boot_id\":\"{}\"",
            self.boot_id
        )
    }
}

fn lock_directory(directory: &Path) -> Result<File, AuditError> {
    use std::fs::{DirBuilder, TryLockError};
    use std::os::unix::fs::DirBuilderExt as _;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(AuditError::file(directory))?;
    let handle = File::open(directory).map_err(AuditError::file(directory))?;
    match handle.try_lock() {
        Ok(()) => Ok(handle),
        Err(TryLockError::WouldBlock) => Err(AuditError::InUse {
            path: directory.to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(AuditError::file(directory)(error)),
    }
}

fn store_vkey(directory: &Path, signer: &Signer) -> Result<(), AuditError> {
    let path = directory.join(VKEY);
    std::fs::write(&path, format!("{}\n", signer.vkey())).map_err(AuditError::file(&path))?;
    File::open(&path)
        .and_then(|file| file.sync_all())
        .map_err(AuditError::file(&path))?;
    segment::sync_directory(directory)
}

/// The files that the threads write.
#[derive(Debug)]
struct Files {
    segment: Segment,
    length: u64,
    file: Arc<File>,
}

fn open_checkpoints(directory: &Path) -> Result<File, AuditError> {
    segment::open_for_append(&directory.join(CHECKPOINTS))
}
