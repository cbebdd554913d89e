//! The only place that writes to the terminal: results on stdout, everything else on stderr.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the one place that prints"
)]

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::error::CliError;

/// How results are shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether one JSON document is wanted.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Prints a result: the document under `--json`, else the text.
    pub(crate) fn result(self, document: &Value, text: &str) {
        if self.json {
            self.line(&document.to_string());
        } else {
            self.line(text.trim_end());
        }
    }

    /// Prints one line of a result.
    pub(crate) fn line(self, text: &str) {
        // A closed pipe (`claviger session tail | head`) is the reader's choice, not a failure.
        drop(writeln!(std::io::stdout().lock(), "{text}"));
    }

    /// Prints the version.
    pub(crate) fn version(self) {
        let version = env!("CARGO_PKG_VERSION");
        self.result(
            &json!({"schema": "claviger.version/v1", "version": version}),
            &format!("claviger {version}"),
        );
    }

    /// Says something that is not part of the result.
    pub(crate) fn note(self, text: &str) {
        if !self.json {
            eprintln!("{text}");
        }
    }

    /// Reports a failure on stderr and gives its exit code. What the failure itself does not say
    /// about its cause and its remedy, the page of its code says.
    pub(crate) fn error(self, error: &CliError) -> ExitCode {
        let (page_why, page_fix) = crate::explain::advice(&error.code);
        let (why, fix) = (
            error.why.clone().or(page_why),
            error.fix.clone().or(page_fix),
        );
        if self.json {
            eprintln!(
                "{}",
                json!({"schema": "claviger.error/v1", "code": error.code, "what": error.what, "why": why, "fix": fix, "exit": error.exit as u8})
            );
        } else {
            let bold = if colour(std::io::stderr().is_terminal()) {
                ("\x1b[1;31m", "\x1b[0m")
            } else {
                ("", "")
            };
            eprintln!("{}error[{}]{}: {}", bold.0, error.code, bold.1, error.what);
            if let Some(why) = why {
                eprintln!("  why   {why}");
            }
            if let Some(fix) = fix {
                eprintln!("  fix   {fix}");
            }
            eprintln!("  more  claviger explain {}", error.code);
        }
        ExitCode::from(error.exit as u8)
    }
}

/// Whether colour is wanted on a stream that is (or is not) a terminal.
pub(crate) fn colour(is_terminal: bool) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    set("CLICOLOR_FORCE") || (is_terminal && !set("NO_COLOR") && !dumb)
}

/// Prints clap's own text (help, version) where it belongs.
pub(crate) fn plain(text: &str, to_stderr: bool) {
    if to_stderr {
        eprint!("{text}");
    } else {
        print!("{text}");
    }
}
