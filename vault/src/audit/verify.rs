//! Judging a log from its directory alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::merkle::{self, Frontier, Hash};
use super::note::{Checkpoint, Vkey};
use super::record::{Kind, Record};
use super::segment::{self, CHECKPOINTS, Lines, Segment};
use super::{AuditError, Head, recover};

/// What is known about the log from elsewhere.
#[derive(Clone, Debug, Default)]
pub struct VerifyOptions {
    /// The key that must have signed; without it the key beside the log is believed.
    pub vkey: Option<Vkey>,
    /// A head that somebody remembers.
    pub expected_head: Option<Head>,
    /// An older checkpoint, as signed note.
    pub since: Option<String>,
}

/// The two verdicts, and what they rest on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Good records, counted to the first bad one.
    pub records: u64,
    /// Is everything that is there what was written?
    pub integrity: Integrity,
    /// Is everything there?
    pub completeness: Completeness,
    /// Whose word the signatures are.
    pub key: KeyTrust,
    /// Number of records that the newest good checkpoint covers.
    pub checkpointed: u64,
    /// Root that it signed, in hexadecimal.
    pub root: Option<String>,
    /// Records after it: chained, not yet signed.
    pub uncovered: u64,
    /// Bytes of a line that is still being written.
    pub pending_bytes: u64,
    /// Intents without outcome.
    pub open_intents: u64,
}

impl Verdict {
    /// True if neither verdict found anything wrong.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.integrity == Integrity::Ok
            && !matches!(self.completeness, Completeness::Truncated { .. })
    }
}

/// Is everything that is there what was written?
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
pub enum Integrity {
    /// Yes.
    Ok,
    /// No.
    FirstBad {
        /// Number of the first record that is not what was written; 0 for the log's key.
        seq: u64,
        /// Which rule is broken.
        why: String,
    },
}

/// Is everything there?
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
pub enum Completeness {
    /// Up to the size that is known from elsewhere, yes.
    Complete {
        /// That size.
        known: u64,
    },
    /// Records that are known from elsewhere are missing.
    Truncated {
        /// How many there were at least.
        known: u64,
        /// How many are there.
        found: u64,
    },
    /// Nothing is known from elsewhere: newer records and their checkpoints could have been cut off together.
    Unproven,
}

/// Whose word the signatures are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyTrust {
    /// A key that the caller knew before.
    Pinned,
    /// The key that lies beside the log: whoever replaced both is not found out.
    Unpinned,
}

/// Verifies a log.
///
/// # Errors
/// [`AuditError::File`] if it cannot be read; [`AuditError::Signer`] or [`AuditError::Tampered`] if `since` is no
/// checkpoint of this key. A bad log is a verdict, not an error.
pub fn verify(directory: &Path, options: &VerifyOptions) -> Result<Verdict, AuditError> {
    let mut judge = Judge::new(if options.vkey.is_some() {
        KeyTrust::Pinned
    } else {
        KeyTrust::Unpinned
    });
    let vkey = judge.key(directory, options)?;
    let since = match (&options.since, &vkey) {
        (Some(note), Some(vkey)) => Some(Checkpoint::parse(note, vkey)?),
        (Some(_), None) => {
            return Err(AuditError::Signer(
                "without a key no checkpoint can be compared".into(),
            ));
        }
        (None, _) => None,
    };
    // Checkpoints are read first: whatever they cover is on the disk by then.
    let checkpoints = judge.checkpoints(directory, vkey.as_ref())?;
    judge.records(
        directory,
        &checkpoints,
        since.as_ref(),
        options.expected_head,
    )?;
    Ok(judge.verdict(since.as_ref(), options.expected_head))
}

#[derive(Debug)]
struct Judge {
    key: KeyTrust,
    bad: Option<(u64, String)>,
    frontier: Frontier,
    leaf: Hash,
    /// Size and root of the newest checkpoint that fits.
    good: Option<(u64, Hash)>,
    pending_bytes: u64,
    open: BTreeMap<u64, ()>,
}

impl Judge {
    fn new(key: KeyTrust) -> Self {
        Self {
            key,
            bad: None,
            frontier: Frontier::default(),
            leaf: [0; 32],
            good: None,
            pending_bytes: 0,
            open: BTreeMap::new(),
        }
    }

    /// Notes a fault; the one with the lowest number counts.
    fn fault(&mut self, seq: u64, why: impl Into<String>) {
        if self.bad.as_ref().is_none_or(|(earlier, _)| seq < *earlier) {
            self.bad = Some((seq, why.into()));
        }
    }

    fn key(
        &mut self,
        directory: &Path,
        options: &VerifyOptions,
    ) -> Result<Option<Vkey>, AuditError> {
        let stored = match recover::stored_vkey(directory) {
            Ok(stored) => stored,
            Err(AuditError::Signer(why)) => {
                self.fault(0, why);
                return Ok(options.vkey.clone());
            }
            Err(AuditError::File { .. }) if directory.is_dir() => {
                self.fault(0, "the key beside the log cannot be read");
                return Ok(options.vkey.clone());
            }
            Err(error) => return Err(error),
        };
        if let (Some(pinned), Some(stored)) = (&options.vkey, &stored)
            && pinned != stored
        {
            self.fault(0, "the key beside the log is not the pinned one");
        }
        Ok(options.vkey.clone().or(stored))
    }

    /// Reads all checkpoints and returns those whose signature fits.
    fn checkpoints(
        &mut self,
        directory: &Path,
        vkey: Option<&Vkey>,
    ) -> Result<BTreeMap<u64, Hash>, AuditError> {
        let mut good = BTreeMap::new();
        let bytes = read_checkpoints(&directory.join(CHECKPOINTS))?;
        if bytes.is_empty() {
            return Ok(good);
        }
        let Some(vkey) = vkey else {
            self.fault(
                0,
                "the log has checkpoints, but the key that verifies them is missing",
            );
            return Ok(good);
        };
        let mut newest = 0;
        for note in notes(&bytes) {
            let parsed = std::str::from_utf8(note)
                .ok()
                .and_then(|note| Checkpoint::parse(note, vkey).ok());
            match parsed {
                Some(checkpoint) if checkpoint.size > newest => {
                    newest = checkpoint.size;
                    good.insert(checkpoint.size, checkpoint.root);
                }
                Some(_) => self.fault(newest + 1, "a checkpoint is out of order"),
                None => self.fault(
                    newest + 1,
                    format!("the checkpoint after that of record {newest} is not what was signed"),
                ),
            }
        }
        Ok(good)
    }

    /// Reads all records up to the first bad one.
    fn records(
        &mut self,
        directory: &Path,
        checkpoints: &BTreeMap<u64, Hash>,
        since: Option<&Checkpoint>,
        expected: Option<Head>,
    ) -> Result<(), AuditError> {
        let covered = checkpoints.keys().next_back().copied().unwrap_or(0);
        let mut stream = Stream::new(directory)?;
        let mut next = stream.next()?;
        let mut is_proven = true;
        while let Some(line) = next.take() {
            let seq = self.frontier.size() + 1;
            if line.starts_segment.is_some_and(|first| first != seq) {
                self.fault(
                    seq,
                    format!(
                        "missing: the next segment starts at record {}",
                        line.starts_segment.unwrap_or(0)
                    ),
                );
                return Ok(());
            }
            next = stream.next()?;
            let Some(text) = line.bytes.strip_suffix(b"\n") else {
                if next.is_some() || seq <= covered {
                    self.fault(seq, "the line is not finished");
                }
                self.pending_bytes = line.bytes.len() as u64;
                return Ok(());
            };
            let Some(record) = Record::parse(text) else {
                self.fault(seq, "this is no record");
                return Ok(());
            };
            if record.seq != seq {
                self.fault(seq, format!("record {} stands in its place", record.seq));
                return Ok(());
            }
            let leaf = merkle::leaf(text);
            if record.prev.0 != self.leaf {
                // Either the record before was changed, or this one's memory of it. The next record vouches
                // for this one, a checkpoint for the one before.
                let is_vouched = next
                    .as_ref()
                    .and_then(|line| Record::parse(line.bytes.strip_suffix(b"\n")?))
                    .is_some_and(|after| after.prev.0 == leaf);
                let before = if is_vouched || next.is_none() {
                    seq.saturating_sub(1).max(1)
                } else {
                    seq
                };
                let blamed = if is_proven { seq } else { before };
                self.fault(blamed, "the chain of hashes breaks here");
                return Ok(());
            }
            self.frontier.push(leaf);
            self.leaf = leaf;
            match (record.entry.kind, record.entry.intent) {
                (Kind::Intent, _) => drop(self.open.insert(seq, ())),
                (Kind::Outcome, Some(intent)) => drop(self.open.remove(&intent)),
                _ => {}
            }
            is_proven = false;
            if let Some(signed) = checkpoints.get(&seq) {
                let root = self.frontier.root();
                if *signed != root {
                    self.fault(
                        self.good.map_or(1, |(size, _)| size + 1),
                        format!("the records up to {seq} are not those that were signed"),
                    );
                    return Ok(());
                }
                self.good = Some((seq, root));
                is_proven = true;
            }
            if since.is_some_and(|known| known.size == seq && known.root != self.frontier.root())
                || expected.is_some_and(|known| known.size == seq && known.leaf != leaf)
            {
                self.fault(seq, "the log is not the one that was known before");
                return Ok(());
            }
        }
        if covered > self.frontier.size() {
            self.fault(
                self.frontier.size() + 1,
                format!("missing: {covered} records were signed"),
            );
        }
        Ok(())
    }

    fn verdict(self, since: Option<&Checkpoint>, expected: Option<Head>) -> Verdict {
        let found = self.frontier.size();
        let known = since
            .map(|known| known.size)
            .into_iter()
            .chain(expected.map(|known| known.size))
            .max();
        let completeness = match known {
            None => Completeness::Unproven,
            Some(known) if known > found => Completeness::Truncated { known, found },
            Some(known) => Completeness::Complete { known },
        };
        let checkpointed = self.good.map_or(0, |(size, _)| size);
        Verdict {
            records: found,
            integrity: self
                .bad
                .map_or(Integrity::Ok, |(seq, why)| Integrity::FirstBad { seq, why }),
            completeness,
            key: self.key,
            checkpointed,
            root: self.good.map(|(_, root)| hex::encode(root)),
            uncovered: found - checkpointed,
            pending_bytes: self.pending_bytes,
            open_intents: self.open.len() as u64,
        }
    }
}

/// Reads the checkpoints, again if one is just being written.
fn read_checkpoints(path: &PathBuf) -> Result<Vec<u8>, AuditError> {
    for _ in 0..3 {
        match std::fs::read(path) {
            Ok(bytes) if bytes.is_empty() || bytes.ends_with(b"\n") => return Ok(bytes),
            Ok(_) => std::thread::yield_now(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(AuditError::file(path)(error)),
        }
    }
    std::fs::read(path).map_err(AuditError::file(path))
}

/// Splits a file of notes after every signature line.
fn notes(bytes: &[u8]) -> Vec<&[u8]> {
    let mut notes = Vec::new();
    let (mut start, mut at) = (0, 0);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        at += line.len();
        if line.starts_with("\u{2014} ".as_bytes()) {
            notes.push(&bytes[start..at]);
            start = at;
        }
    }
    if start < bytes.len() {
        notes.push(&bytes[start..]);
    }
    notes
}

struct Line {
    bytes: Vec<u8>,
    /// Number in the segment's name, if this is its first line.
    starts_segment: Option<u64>,
}

/// All lines of all segments.
struct Stream {
    segments: std::vec::IntoIter<Segment>,
    lines: Option<Lines>,
}

impl Stream {
    fn new(directory: &Path) -> Result<Self, AuditError> {
        if !directory.is_dir() {
            let absent = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(AuditError::file(directory)(absent));
        }
        Ok(Self {
            segments: segment::list(directory)?.into_iter(),
            lines: None,
        })
    }

    fn next(&mut self) -> Result<Option<Line>, AuditError> {
        let mut starts_segment = None;
        let mut bytes = Vec::new();
        loop {
            if let Some(lines) = &mut self.lines
                && lines.next_into(&mut bytes)?
            {
                return Ok(Some(Line {
                    bytes,
                    starts_segment,
                }));
            }
            let Some(segment) = self.segments.next() else {
                return Ok(None);
            };
            starts_segment = Some(segment.first);
            self.lines = Some(segment.lines(0)?);
        }
    }
}
