//! The files of a log: their names and their lines.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::AuditError;

pub(super) const CHECKPOINTS: &str = "checkpoints";
pub(super) const VKEY: &str = "vkey";

/// One file of records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Number of its first record, by its name.
    pub(super) first: u64,
    pub(super) path: PathBuf,
}

impl Segment {
    pub(super) fn new(directory: &Path, first: u64) -> Self {
        Self {
            first,
            path: directory.join(format!("{first:012}.jsonl")),
        }
    }

    pub(super) fn lines(&self, from: u64) -> Result<Lines, AuditError> {
        let mut file = File::open(&self.path).map_err(AuditError::file(&self.path))?;
        file.seek(SeekFrom::Start(from))
            .map_err(AuditError::file(&self.path))?;
        Ok(Lines {
            reader: BufReader::with_capacity(256 * 1024, file),
            path: self.path.clone(),
        })
    }
}

/// Lists the segments of a log in order; an absent directory has none.
pub(super) fn list(directory: &Path) -> Result<Vec<Segment>, AuditError> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(AuditError::file(directory)(error)),
    };
    let mut segments = Vec::new();
    for entry in entries {
        let name = entry.map_err(AuditError::file(directory))?.file_name();
        let first = name
            .to_str()
            .and_then(|name| name.strip_suffix(".jsonl"))
            .and_then(|first| first.parse().ok());
        if let Some(first) = first {
            let segment = Segment::new(directory, first);
            if segment.path.file_name() == Some(&name) {
                segments.push(segment);
            }
        }
    }
    segments.sort_by_key(|segment| segment.first);
    Ok(segments)
}

/// The lines of one segment.
#[derive(Debug)]
pub(super) struct Lines {
    reader: BufReader<File>,
    path: PathBuf,
}

impl Lines {
    /// Reads the next line with its newline into `line`; false at the end of the file.
    pub(super) fn next_into(&mut self, line: &mut Vec<u8>) -> Result<bool, AuditError> {
        line.clear();
        let read = self
            .reader
            .read_until(b'\n', line)
            .map_err(AuditError::file(&self.path))?;
        Ok(read > 0)
    }
}

/// Opens a file of the log for appending, readable by nobody else.
pub(super) fn open_for_append(path: &Path) -> Result<File, AuditError> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(AuditError::file(path))
}

/// Makes new names in a directory durable.
pub(super) fn sync_directory(directory: &Path) -> Result<(), AuditError> {
    File::open(directory)
        .and_then(|handle| handle.sync_all())
        .map_err(AuditError::file(directory))
}
