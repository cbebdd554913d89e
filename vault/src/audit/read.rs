//! Reading records back, while the log is written or not.

use std::path::{Path, PathBuf};

use super::AuditError;
use super::record::Record;
use super::segment::{self, Segment};

/// Reads up to `limit` records after number `after`.
///
/// Reads what the files say; only [`super::verify()`] judges whether they were changed.
///
/// # Errors
/// [`AuditError::File`]; [`AuditError::Tampered`] for a line that is no record.
pub fn read(directory: &Path, after: u64, limit: usize) -> Result<Vec<Record>, AuditError> {
    Follower::new(directory, after).poll(limit)
}

/// A place in the log from which to read on.
#[derive(Debug)]
pub struct Follower {
    directory: PathBuf,
    /// Number of the last record that was given out.
    after: u64,
    /// Where the next line starts.
    place: Option<(Segment, u64)>,
}

impl Follower {
    /// Starts after record `after`; 0 is the beginning.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>, after: u64) -> Self {
        Self {
            directory: directory.into(),
            after,
            place: None,
        }
    }

    /// Gives the records that are there by now, at most `limit`; empty if there is none yet.
    ///
    /// # Errors
    /// As [`read`].
    pub fn poll(&mut self, limit: usize) -> Result<Vec<Record>, AuditError> {
        let mut found = Vec::new();
        let mut line = Vec::new();
        while found.len() < limit {
            let Some((segment, start)) = self.here()? else {
                break;
            };
            let mut lines = segment.lines(start)?;
            let mut at = start;
            while found.len() < limit && lines.next_into(&mut line)? {
                // A line without its end is still being written.
                let Some(text) = line.strip_suffix(b"\n") else {
                    break;
                };
                let expected = self.after + 1;
                at += line.len() as u64;
                let record = Record::parse(text)
                    .ok_or_else(|| AuditError::tampered(expected, "this is no record"))?;
                if record.seq > self.after {
                    self.after = record.seq;
                    found.push(record);
                }
            }
            self.place = Some((segment.clone(), at));
            let next = Segment::new(&self.directory, self.after + 1);
            if next == segment || !next.path.exists() {
                break;
            }
            self.place = Some((next, 0));
        }
        Ok(found)
    }

    fn here(&self) -> Result<Option<(Segment, u64)>, AuditError> {
        if self.place.is_some() {
            return Ok(self.place.clone());
        }
        let segments = segment::list(&self.directory)?;
        Ok(segments
            .into_iter()
            .rfind(|segment| segment.first <= self.after + 1)
            .map(|segment| (segment, 0)))
    }
}
