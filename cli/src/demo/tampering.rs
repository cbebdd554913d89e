//! The audit log, judged as it is and with one byte changed.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::CliError;
use crate::home::Home;

/// The verdict on the audit log and on an altered copy of it.
pub(super) struct Audit {
    pub(super) records: u64,
    pub(super) verified: bool,
    pub(super) tampered_copy_detected: bool,
}

pub(super) fn audit(home: &Home, root: &Path) -> Result<Audit, CliError> {
    let kept = root.join("audit");
    copy_directory(&home.audit(), &kept)?;
    let (document, _, verified) = crate::command::verify_audit(&kept, None)?;
    let copy = root.join("audit-tampered");
    copy_directory(&kept, &copy)?;
    let altered = alter_one_byte(&copy)?;
    let tampered_copy_detected = altered
        && crate::command::verify_audit(&copy, None).map_or(true, |(_, _, verified)| !verified);
    drop(std::fs::remove_dir_all(&copy));
    Ok(Audit {
        records: document.get("records").and_then(Value::as_u64).unwrap_or(0),
        verified,
        tampered_copy_detected,
    })
}

fn copy_directory(from: &Path, to: &Path) -> Result<(), CliError> {
    let failed = |error: std::io::Error| CliError::file("copying", from, &error);
    std::fs::create_dir_all(to).map_err(failed)?;
    for entry in std::fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let target = to.join(entry.file_name());
        if entry.file_type().map_err(failed)?.is_dir() {
            copy_directory(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target).map_err(failed)?;
        }
    }
    Ok(())
}

/// Changes one letter in the middle of the first segment.
fn alter_one_byte(directory: &Path) -> Result<bool, CliError> {
    let mut segments: Vec<PathBuf> = std::fs::read_dir(directory)
        .map_err(|error| CliError::file("reading", directory, &error))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "jsonl")
        })
        .collect();
    segments.sort();
    let Some(path) = segments.first() else {
        return Ok(false);
    };
    let mut bytes = std::fs::read(path).map_err(|error| CliError::file("reading", path, &error))?;
    let middle = bytes.len() / 2;
    let Some(position) = bytes
        .iter()
        .skip(middle)
        .position(u8::is_ascii_lowercase)
        .map(|found| middle + found)
    else {
        return Ok(false);
    };
    if let Some(byte) = bytes.get_mut(position) {
        *byte = if *byte == b'a' { b'b' } else { b'a' };
    }
    std::fs::write(path, bytes).map_err(|error| CliError::file("writing", path, &error))?;
    Ok(true)
}
