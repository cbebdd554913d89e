//! What is found when a log is opened: everything is read once, and only a torn end is mended.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::Path;

use serde::Deserialize;

use super::merkle::{self, Frontier};
use super::note::{Checkpoint, NOTE_LINES, Vkey};
use super::record::{Kind, Record};
use super::segment::{self, CHECKPOINTS, Segment, VKEY};
use super::{AuditError, Head};

/// The state that writing goes on from.
#[derive(Debug)]
pub(super) struct Replayed {
    pub(super) frontier: Frontier,
    pub(super) head: Head,
    /// The segment to go on with, and its length; none in an empty log.
    pub(super) segment: Option<(Segment, u64)>,
    /// Intents without outcome.
    pub(super) open_intents: Vec<Record>,
    /// Bytes of an unfinished last line that were cut off.
    pub(super) torn_bytes: u64,
}

/// The two fields that replay needs; the hashes vouch for the rest.
#[derive(Deserialize)]
struct Sketch {
    kind: Kind,
    #[serde(rename = "ref")]
    intent: Option<u64>,
}

/// Reads all records, checks numbers, chain, checkpoint and what is expected, and cuts off a torn last line.
pub(super) fn replay(
    directory: &Path,
    checkpoint: Option<&Checkpoint>,
    expected: Option<Head>,
) -> Result<Replayed, AuditError> {
    let covered = checkpoint.map_or(0, |checkpoint| checkpoint.size);
    let segments = segment::list(directory)?;
    let mut state = Replayed {
        frontier: Frontier::default(),
        head: Head::default(),
        segment: None,
        open_intents: Vec::new(),
        torn_bytes: 0,
    };
    let mut open = BTreeMap::<u64, Vec<u8>>::new();
    let mut line = Vec::new();
    for (index, segment) in segments.iter().enumerate() {
        let first = state.head.size + 1;
        if segment.first != first {
            return Err(AuditError::tampered(
                first,
                format!("the next segment starts at record {}", segment.first),
            ));
        }
        let mut lines = segment.lines(0)?;
        let mut length = 0;
        while lines.next_into(&mut line)? {
            let seq = state.head.size + 1;
            let Some(text) = line.strip_suffix(b"\n") else {
                if index + 1 < segments.len() || seq <= covered {
                    return Err(AuditError::tampered(seq, "the line is not finished"));
                }
                state.torn_bytes = line.len() as u64;
                cut(&segment.path, length)?;
                break;
            };
            accept(&mut state, &mut open, text)?;
            length += line.len() as u64;
            if checkpoint
                .is_some_and(|known| known.size == seq && known.root != state.frontier.root())
            {
                return Err(AuditError::tampered(
                    seq,
                    "the records are not those that the checkpoint signed",
                ));
            }
            if expected.is_some_and(|known| known.size == seq && known.leaf != state.head.leaf) {
                return Err(AuditError::RolledBack {
                    known: seq,
                    found: seq - 1,
                });
            }
        }
        state.segment = Some((segment.clone(), length));
    }
    if state.head.size < covered {
        return Err(AuditError::tampered(
            state.head.size + 1,
            format!("missing; the checkpoint covers {covered} records"),
        ));
    }
    if let Some(known) = expected.filter(|known| known.size > state.head.size) {
        return Err(AuditError::RolledBack {
            known: known.size,
            found: state.head.size,
        });
    }
    let parse = |(seq, line): (u64, Vec<u8>)| {
        Record::parse(&line).ok_or_else(|| AuditError::tampered(seq, "this is no record"))
    };
    state.open_intents = open.into_iter().map(parse).collect::<Result<_, _>>()?;
    Ok(state)
}

fn accept(
    state: &mut Replayed,
    open: &mut BTreeMap<u64, Vec<u8>>,
    text: &[u8],
) -> Result<(), AuditError> {
    let seq = state.head.size + 1;
    let start = format!("{{\"v\":1,\"seq\":{seq},");
    let end = format!(",\"prev\":\"{}\"}}", hex::encode(state.head.leaf));
    if !text.starts_with(start.as_bytes()) {
        return Err(AuditError::tampered(
            seq,
            "this is not the record of that number",
        ));
    }
    if !text.ends_with(end.as_bytes()) {
        return Err(AuditError::tampered(
            seq,
            "it does not follow the record before it",
        ));
    }
    let sketch: Sketch =
        serde_json::from_slice(text).map_err(|_| AuditError::tampered(seq, "this is no record"))?;
    if sketch.kind == Kind::Intent {
        open.insert(seq, text.to_vec());
    }
    if let (Kind::Outcome, Some(intent)) = (sketch.kind, sketch.intent) {
        open.remove(&intent);
    }
    let leaf = merkle::leaf(text);
    state.frontier.push(leaf);
    state.head = Head { size: seq, leaf };
    Ok(())
}

/// Finds the newest checkpoint and cuts off an unfinished one after it; answers how many bytes were cut.
pub(super) fn newest_checkpoint(
    directory: &Path,
    vkey: Option<&Vkey>,
) -> Result<(Option<Checkpoint>, u64), AuditError> {
    let path = directory.join(CHECKPOINTS);
    let bytes = match tail(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((None, 0)),
        Err(error) => return Err(AuditError::file(&path)(error)),
    };
    let length = std::fs::metadata(&path)
        .map_err(AuditError::file(&path))?
        .len();
    let mut finished = 0;
    let mut starts = Vec::new();
    let mut at = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        starts.push(at);
        at += line.len();
        if line.starts_with("\u{2014} ".as_bytes()) && line.ends_with(b"\n") {
            finished = at;
        }
    }
    let torn = (bytes.len() - finished) as u64;
    if torn > 0 {
        cut(&path, length - torn)?;
    }
    if finished == 0 {
        return Ok((None, torn));
    }
    starts.retain(|start| *start < finished);
    let start = starts
        .len()
        .checked_sub(NOTE_LINES)
        .map_or(0, |index| starts[index]);
    let malformed = || AuditError::tampered(0, "the newest checkpoint is malformed");
    let note = std::str::from_utf8(&bytes[start..finished]).map_err(|_| malformed())?;
    let checkpoint = match vkey {
        Some(vkey) => Checkpoint::parse(note, vkey)?,
        None => Checkpoint::split(note).ok_or_else(malformed)?.0,
    };
    Ok((Some(checkpoint), torn))
}

/// Reads the key that the log says verifies it; none if the log was never signed.
pub(super) fn stored_vkey(directory: &Path) -> Result<Option<Vkey>, AuditError> {
    let path = directory.join(VKEY);
    match std::fs::read_to_string(&path) {
        Ok(text) => text
            .strip_suffix('\n')
            .unwrap_or_default()
            .parse()
            .map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(AuditError::file(path)(error)),
    }
}

/// The last 4 KiB of a file: room for several checkpoints.
fn tail(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(4096)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn cut(path: &Path, length: u64) -> Result<(), AuditError> {
    let shorten = || {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(length)?;
        file.sync_all()
    };
    shorten().map_err(AuditError::file(path))
}
