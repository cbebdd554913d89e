//! `glob` and `grep`.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use globset::GlobBuilder;
use regex::bytes::RegexBuilder;
use serde::Deserialize;

use super::WORKSPACE;
use super::tail::printable;
use super::tool::{Answer, resolve};

/// Paths of one `glob`.
const MAX_PATHS: usize = 200;
/// Text of one `grep`.
const MAX_GREP_BYTES: usize = 100 << 10;
/// Characters of one line of it.
const MAX_LINE_CHARS: usize = 2000;
/// How far into a file a NUL byte is looked for, which makes it binary.
const BINARY_LOOK_BYTES: usize = 8 << 10;
/// How deep directories are followed.
const MAX_DEPTH: usize = 128;

#[derive(Debug, Deserialize)]
pub(super) struct Glob {
    pattern: String,
    #[serde(default)]
    path: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Grep {
    pattern: String,
    #[serde(default)]
    path: Option<String>,
}

/// Visits every file below a directory, in name order, following no link.
fn walk(
    directory: &Path,
    depth: usize,
    visit: &mut impl FnMut(PathBuf, SystemTime) -> bool,
) -> bool {
    // A directory that vanished or may not be read has nothing to show.
    let Ok(entries) = fs::read_dir(directory) else {
        return true;
    };
    let mut entries: Vec<_> = entries.filter_map(Result::ok).collect();
    entries.sort_unstable_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let Ok(found) = entry.metadata() else {
            continue;
        };
        let goes_on = if found.is_dir() {
            depth >= MAX_DEPTH || walk(&entry.path(), depth + 1, visit)
        } else {
            visit(
                entry.path(),
                found.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            )
        };
        if !goes_on {
            return false;
        }
    }
    true
}

/// Where a pattern starts to vary: an absolute one brings its own directory.
fn base(pattern: &str, path: Option<&str>) -> (PathBuf, String) {
    if !pattern.starts_with('/') {
        return (resolve(path.unwrap_or(WORKSPACE)), pattern.to_owned());
    }
    let parts: Vec<&str> = pattern.split('/').skip(1).collect();
    let varies = |part: &&str| part.contains(['*', '?', '[', '{', '\\']);
    let fixed = parts
        .iter()
        .position(varies)
        .unwrap_or_else(|| parts.len().saturating_sub(1));
    let (directory, rest) = parts.split_at(fixed);
    (
        PathBuf::from(format!("/{}", directory.join("/"))),
        rest.join("/"),
    )
}

pub(super) fn glob(input: &Glob) -> Result<Answer, String> {
    let (directory, pattern) = base(&input.pattern, input.path.as_deref());
    let matcher = GlobBuilder::new(pattern.trim_start_matches("./"))
        .literal_separator(true)
        .build()
        .map_err(|error| format!("the pattern is wrong: {error}"))?
        .compile_matcher();
    if !directory.is_dir() {
        return Err(format!("{} is not a directory", directory.display()));
    }
    let mut found = Vec::new();
    walk(&directory, 0, &mut |path, modified| {
        if path
            .strip_prefix(&directory)
            .is_ok_and(|relative| matcher.is_match(relative))
        {
            found.push((modified, path));
        }
        true
    });
    if found.is_empty() {
        return Ok(Answer::text("no file matches"));
    }
    let total = found.len();
    found.sort_by(|(a_time, a), (b_time, b)| b_time.cmp(a_time).then_with(|| a.cmp(b)));
    let mut text: Vec<String> = found
        .into_iter()
        .take(MAX_PATHS)
        .map(|(_, path)| printable(path.as_os_str().as_encoded_bytes()))
        .collect();
    if total > MAX_PATHS {
        text.push(format!("[the {MAX_PATHS} newest of {total} files]"));
    }
    Ok(Answer::text(text.join("\n")))
}

pub(super) fn grep(input: &Grep) -> Result<Answer, String> {
    let pattern = RegexBuilder::new(&input.pattern)
        .size_limit(8 << 20)
        .build()
        .map_err(|error| format!("the pattern is wrong: {error}"))?;
    let start = resolve(input.path.as_deref().unwrap_or(WORKSPACE));
    let found = fs::metadata(&start).map_err(|error| format!("{}: {error}", start.display()))?;
    let mut text = String::new();
    let mut search = |path: PathBuf, _: SystemTime| {
        let inside_git = path.components().any(|part| part.as_os_str() == ".git");
        // A file that vanished, or that may not be read, has no line to show.
        inside_git || search_file(&path, &pattern, &mut text).unwrap_or(true)
    };
    let is_complete = if found.is_dir() {
        walk(&start, 0, &mut search)
    } else {
        search(start, SystemTime::UNIX_EPOCH)
    };
    if text.is_empty() {
        return Ok(Answer::text("no line matches"));
    }
    if !is_complete {
        text.push_str(&format!(
            "[more lines match; only the first {MAX_GREP_BYTES} bytes are shown]"
        ));
    }
    Ok(Answer::text(text))
}

/// Adds the matching lines of a file; false when there is no room for more.
fn search_file(
    path: &Path,
    pattern: &regex::bytes::Regex,
    text: &mut String,
) -> std::io::Result<bool> {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Ok(true);
    }
    let mut reader = BufReader::with_capacity(64 << 10, file);
    if reader
        .fill_buf()?
        .iter()
        .take(BINARY_LOOK_BYTES)
        .any(|byte| *byte == 0)
    {
        return Ok(true);
    }
    let mut line = Vec::new();
    let mut number = 0_u64;
    while {
        line.clear();
        reader.read_until(b'\n', &mut line)?
    } > 0
    {
        number += 1;
        while line
            .last()
            .is_some_and(|byte| matches!(byte, b'\n' | b'\r'))
        {
            line.pop();
        }
        if pattern.is_match(&line) {
            let shown = printable(&line);
            let cut: String = shown.chars().take(MAX_LINE_CHARS).collect();
            let more = if cut.len() < shown.len() { "..." } else { "" };
            let added = format!("{}:{number}:{cut}{more}\n", path.display());
            if text.len() + added.len() > MAX_GREP_BYTES {
                return Ok(false);
            }
            text.push_str(&added);
        }
    }
    Ok(true)
}
