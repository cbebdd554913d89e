//! The two threads of an open log.

use std::fs::File;
use std::io::{self, Write as _};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Files, Shared, State, Waiter};
use crate::audit::AuditError;
use crate::audit::segment::{self, Segment};

/// How long records that nobody waits for may stay unsynced.
const LAZY: Duration = Duration::from_millis(100);
/// How long written checkpoints may stay unsynced under load; a lost one is made again from the records.
const CHECKPOINTS: Duration = Duration::from_secs(1);

pub(super) fn start(
    shared: &Arc<Shared>,
    found: Option<(Segment, u64)>,
) -> Result<Vec<JoinHandle<()>>, AuditError> {
    let (segment, length) = found.unwrap_or_else(|| (Segment::new(&shared.directory, 1), 0));
    let file = Arc::new(segment::open_for_append(&segment.path)?);
    let checkpoints = super::open_checkpoints(&shared.directory)?;
    segment::sync_directory(&shared.directory)?;
    // What was found may have been written by a process that died before its sync.
    file.sync_data().map_err(AuditError::file(&segment.path))?;
    let mut state = shared.lock();
    state.file = Some(Arc::clone(&file));
    state.durable = state.written;
    shared.durable.send_replace(state.durable);
    drop(state);
    let files = Files {
        segment,
        length,
        file,
    };
    let (writing, syncing) = (Arc::clone(shared), Arc::clone(shared));
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new()
            .name(name.into())
            .spawn(work)
            .map_err(AuditError::file(&shared.directory))
    };
    Ok(vec![
        spawn("audit-write", Box::new(move || write(&writing, files)))?,
        spawn("audit-sync", Box::new(move || sync(&syncing, checkpoints)))?,
    ])
}

/// Writes what was numbered, in order.
fn write(shared: &Shared, mut files: Files) {
    loop {
        let mut state = shared.lock();
        while state.buffer.is_empty() && !state.is_closing {
            state = shared
                .to_write
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.buffer.is_empty() {
            state.is_writer_done = true;
            drop(state);
            return shared.to_sync.notify_one();
        }
        let bytes = std::mem::take(&mut state.buffer);
        let waiters = std::mem::take(&mut state.buffered);
        let (head, frontier) = (state.head, state.frontier.clone());
        let first = state.written.size + 1;
        drop(state);

        let done =
            rotate(shared, &mut files, first).and_then(|()| (&*files.file).write_all(&bytes));
        files.length += bytes.len() as u64;
        let mut state = shared.lock();
        if let Err(error) = done {
            state.buffered.extend(waiters);
            drop(state);
            shared.fail(&format!("{}: {error}", files.segment.path.display()));
            continue;
        }
        state.written = head;
        state.written_frontier = frontier;
        state.file = Some(Arc::clone(&files.file));
        let (durable, lazy): (Vec<Waiter>, Vec<Waiter>) =
            waiters.into_iter().partition(|waiter| waiter.is_durable);
        state.unsynced.extend(durable);
        drop(state);
        shared.to_sync.notify_one();
        answer(lazy);
    }
}

/// Closes a full segment, durably, and starts the next.
fn rotate(shared: &Shared, files: &mut Files, first: u64) -> io::Result<()> {
    if files.length < shared.segment_bytes {
        return Ok(());
    }
    files.file.sync_data()?;
    let segment = Segment::new(&shared.directory, first);
    files.file = Arc::new(segment::open_for_append(&segment.path).map_err(io::Error::other)?);
    segment::sync_directory(&shared.directory).map_err(io::Error::other)?;
    files.segment = segment;
    files.length = 0;
    Ok(())
}

/// Makes what was written durable, tells who waits, and signs it.
fn sync(shared: &Shared, mut checkpoints: File) {
    let mut unsynced_since: Option<Instant> = None;
    while let Some(round) = next_round(shared, &mut unsynced_since, &checkpoints) {
        let Round {
            waiters,
            head,
            frontier,
            file,
            signer,
            is_new,
        } = round;
        if is_new && let Err(error) = file.sync_data() {
            shared.lock().unsynced.extend(waiters);
            shared.fail(&format!("{}: {error}", shared.directory.display()));
            continue;
        }
        let mut state = shared.lock();
        state.durable = head;
        let is_unsigned = state.checkpointed < frontier.size();
        drop(state);
        shared.durable.send_replace(head);
        answer(waiters);
        let Some(signer) = signer.filter(|_| is_unsigned) else {
            continue;
        };
        let note = signer.sign(frontier.size(), frontier.root());
        if let Err(error) = checkpoints.write_all(note.as_bytes()) {
            shared.fail(&format!("{}: {error}", shared.directory.display()));
            continue;
        }
        shared.lock().checkpointed = frontier.size();
        unsynced_since.get_or_insert_with(Instant::now);
    }
    drop(checkpoints.sync_data());
}

struct Round {
    waiters: Vec<Waiter>,
    head: crate::audit::Head,
    frontier: crate::audit::merkle::Frontier,
    file: Arc<File>,
    signer: Option<Arc<crate::audit::note::Signer>>,
    /// False if there is nothing to sync, only to sign.
    is_new: bool,
}

/// Waits until there is something to make durable or to sign; none when the log is closed or failed.
fn next_round(
    shared: &Shared,
    unsynced_since: &mut Option<Instant>,
    checkpoints: &File,
) -> Option<Round> {
    let mut is_late = false;
    if unsynced_since.is_some_and(|since| since.elapsed() > CHECKPOINTS) {
        sync_checkpoints(shared, unsynced_since, checkpoints);
    }
    let mut state = shared.lock();
    loop {
        if state.failed.is_some() {
            // Nothing is retried. The thread stays until the log is closed, so that closing finds it.
            if state.is_closing && state.is_writer_done {
                return None;
            }
            state = shared
                .to_sync
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        let is_new = state.written != state.durable;
        let must_sign = state.signer.is_some() && state.checkpointed < state.written.size;
        let is_ending = state.is_closing && state.is_writer_done;
        let is_first_signature = must_sign && !is_new;
        if !state.unsynced.is_empty() || is_first_signature || (is_new && (is_late || is_ending)) {
            return round(&mut state, is_new);
        }
        if is_ending {
            return None;
        }
        if is_new || unsynced_since.is_some() {
            let (again, waited) = shared
                .to_sync
                .wait_timeout(state, LAZY)
                .unwrap_or_else(PoisonError::into_inner);
            state = again;
            is_late = waited.timed_out();
            if is_late && unsynced_since.is_some() {
                drop(state);
                sync_checkpoints(shared, unsynced_since, checkpoints);
                state = shared.lock();
            }
        } else {
            state = shared
                .to_sync
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn round(state: &mut State, is_new: bool) -> Option<Round> {
    Some(Round {
        waiters: state.unsynced.drain(..).collect(),
        head: state.written,
        frontier: state.written_frontier.clone(),
        file: Arc::clone(state.file.as_ref()?),
        signer: state.signer.clone(),
        is_new,
    })
}

fn sync_checkpoints(shared: &Shared, unsynced_since: &mut Option<Instant>, checkpoints: &File) {
    *unsynced_since = None;
    if let Err(error) = checkpoints.sync_data() {
        shared.fail(&format!("{}: {error}", shared.directory.display()));
    }
}

fn answer(waiters: Vec<Waiter>) {
    for waiter in waiters {
        drop(waiter.answer.send(Ok(waiter.appended)));
    }
}
