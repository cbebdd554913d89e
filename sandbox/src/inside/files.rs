//! `read`, `write` and `edit`.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use base64::Engine as _;
use serde::Deserialize;
use serde_json::json;

use super::tail::printable;
use super::tool::{Answer, resolve};

/// Text of one `read`.
const MAX_TEXT_BYTES: usize = 256 << 10;
/// An image, as base64.
const MAX_IMAGE_BYTES: u64 = (5 << 20) / 4 * 3;
/// A PDF document.
const MAX_DOCUMENT_BYTES: u64 = 20 << 20;
/// The largest file that `edit` takes.
const MAX_EDIT_BYTES: u64 = 32 << 20;

#[derive(Debug, Deserialize)]
pub(super) struct Read {
    file_path: String,
    #[serde(default)]
    view_range: Option<[i64; 2]>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Write {
    file_path: String,
    content: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Edit {
    file_path: String,
    old_string: String,
    new_string: String,
    #[serde(default)]
    replace_all: bool,
}

/// Opens a regular file without ever waiting for a pipe's other end.
fn open(path: &Path) -> Result<(File, u64), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if found.is_dir() {
        return Err(format!("{} is a directory", path.display()));
    }
    if !found.is_file() {
        return Err(format!("{} is not a regular file", path.display()));
    }
    Ok((file, found.len()))
}

pub(super) fn read(input: &Read) -> Result<Answer, String> {
    let path = resolve(&input.file_path);
    let (mut file, length) = open(&path)?;
    if let Some((kind, media_type, most)) = media(&path) {
        if length > most {
            return Err(format!(
                "{} has {length} bytes; at most {most} can be shown",
                path.display()
            ));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let data = base64::engine::general_purpose::STANDARD.encode(bytes);
        let source = json!({ "type": "base64", "media_type": media_type, "data": data });
        return Ok(Answer {
            content: vec![json!({ "type": kind, "source": source })],
            is_error: false,
        });
    }
    let [first, last] = input.view_range.unwrap_or([1, 0]);
    let first = u64::try_from(first).unwrap_or(1).max(1);
    let last = u64::try_from(last)
        .ok()
        .filter(|last| *last > 0)
        .unwrap_or(u64::MAX);
    if last < first {
        return Err(format!(
            "view_range ends at line {last}, before it starts at line {first}"
        ));
    }
    let (text, truncated) =
        lines(file, first, last).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut text = printable(&text);
    if truncated {
        text.push_str(&format!(
            "\n[only {MAX_TEXT_BYTES} bytes are shown of a file of {length} bytes; use view_range for the rest]"
        ));
    }
    Ok(Answer::text(text))
}

/// Lines `first` to `last`, up to the limit; whether there was more.
fn lines(file: File, first: u64, last: u64) -> std::io::Result<(Vec<u8>, bool)> {
    let mut reader = BufReader::with_capacity(64 << 10, file);
    let mut text = Vec::new();
    let mut number = 1;
    while number <= last {
        let chunk = reader.fill_buf()?;
        if chunk.is_empty() {
            return Ok((text, false));
        }
        let (used, ends_line) = match chunk.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (chunk.len(), false),
        };
        if number >= first {
            let room = MAX_TEXT_BYTES - text.len();
            text.extend(chunk.iter().take(used.min(room)));
            if used > room {
                return Ok((text, true));
            }
        }
        reader.consume(used);
        number += u64::from(ends_line);
    }
    Ok((text, false))
}

fn media(path: &Path) -> Option<(&'static str, &'static str, u64)> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    match extension.as_str() {
        "gif" => Some(("image", "image/gif", MAX_IMAGE_BYTES)),
        "jpeg" | "jpg" => Some(("image", "image/jpeg", MAX_IMAGE_BYTES)),
        "pdf" => Some(("document", "application/pdf", MAX_DOCUMENT_BYTES)),
        "png" => Some(("image", "image/png", MAX_IMAGE_BYTES)),
        "webp" => Some(("image", "image/webp", MAX_IMAGE_BYTES)),
        _ => None,
    }
}

pub(super) fn write(input: &Write) -> Result<Answer, String> {
    let path = resolve(&input.file_path);
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    fs::write(&path, &input.content).map_err(failed)?;
    Ok(Answer::text(format!(
        "wrote {} bytes to {}",
        input.content.len(),
        input.file_path
    )))
}

pub(super) fn edit(input: &Edit) -> Result<Answer, String> {
    let path = resolve(&input.file_path);
    let shown = path.display();
    let (mut file, length) = open(&path)?;
    if length > MAX_EDIT_BYTES {
        return Err(format!(
            "{shown} has {length} bytes; at most {MAX_EDIT_BYTES} can be edited"
        ));
    }
    let mut text = String::new();
    file.read_to_string(&mut text)
        .map_err(|error| format!("{shown}: {error}"))?;
    if input.old_string.is_empty() {
        return Err("old_string is empty; use write for a new file".to_owned());
    }
    if input.old_string == input.new_string {
        return Err("old_string and new_string are the same".to_owned());
    }
    let found = text.matches(&input.old_string).count();
    let edited = match (found, input.replace_all) {
        (0, _) => return Err(format!("old_string was not found in {shown}")),
        (1, _) | (_, true) => text.replace(&input.old_string, &input.new_string),
        (_, false) => {
            return Err(format!(
                "old_string was found {found} times in {shown}; make it longer or set replace_all"
            ));
        }
    };
    fs::write(&path, edited).map_err(|error| format!("{shown}: {error}"))?;
    let times = if found == 1 {
        "once".to_owned()
    } else {
        format!("{found} times")
    };
    Ok(Answer::text(format!(
        "replaced {times} in {}",
        input.file_path
    )))
}
