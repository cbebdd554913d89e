//! What a person reads when something did not work: what, why, fix, a stable code, an exit code.

use std::fmt;

/// Exit codes; scripts may rely on them (`claviger explain exit-codes`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Anything that has no code of its own.
    Internal = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The configuration or a definition file is wrong.
    Config = 3,
    /// No daemon answers.
    Unreachable = 4,
    /// Not authenticated.
    Unauthenticated = 5,
    /// Denied by policy.
    Denied = 6,
    /// No such thing.
    NotFound = 8,
    /// It exists already, or two writers met.
    Conflict = 9,
    /// Something did not verify.
    Verification = 10,
    /// The vault is sealed.
    Locked = 11,
    /// An upstream failed.
    Upstream = 12,
    /// `doctor` found a failure.
    Doctor = 14,
    /// The store was rolled back.
    RolledBack = 15,
}

/// A failure as the command line reports it; never holds a secret.
#[derive(Debug)]
pub(crate) struct CliError {
    /// Stable code; `claviger explain CODE` has its page.
    pub(crate) code: String,
    /// What happened.
    pub(crate) what: String,
    /// Why, where known.
    pub(crate) why: Option<String>,
    /// What would help, usually a command.
    pub(crate) fix: Option<String>,
    /// The process's exit code.
    pub(crate) exit: Exit,
}

impl CliError {
    pub(crate) fn new(exit: Exit, code: &str, what: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            what: what.into(),
            why: None,
            fix: None,
            exit,
        }
    }

    pub(crate) fn usage(code: &str, what: impl Into<String>) -> Self {
        Self::new(Exit::Usage, code, what)
    }

    pub(crate) fn internal(what: impl Into<String>) -> Self {
        Self::new(Exit::Internal, "internal", what)
    }

    pub(crate) fn because(mut self, why: impl fmt::Display) -> Self {
        self.why = Some(why.to_string());
        self
    }

    pub(crate) fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// A file that could not be used, with the fix that its error suggests.
    pub(crate) fn file(doing: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        let failed = Self::new(
            Exit::Config,
            "file_unusable",
            format!("{doing} {}", path.display()),
        )
        .because(error);
        match error.kind() {
            std::io::ErrorKind::StorageFull => Self {
                code: "disk_full".into(),
                ..failed
            }
            .fix("free some space and run the command again"),
            std::io::ErrorKind::ReadOnlyFilesystem => Self {
                code: "disk_read_only".into(),
                ..failed
            }
            .fix("choose a writable place: CLAVIGER_HOME=DIR claviger init"),
            std::io::ErrorKind::PermissionDenied => {
                failed.fix("check the owner and mode of the path")
            }
            _ => failed,
        }
    }

    /// The exit code that a refusal's code stands for.
    pub(crate) fn refused(code: &str, message: &str, fix: Option<&str>) -> Self {
        let exit = match code {
            "vault_sealed" => Exit::Locked,
            "store_rolled_back" => Exit::RolledBack,
            "store_tampered" | "audit_failed" => Exit::Verification,
            "wrong_passphrase" | "operator_authentication_required" | "key_unknown" => {
                Exit::Unauthenticated
            }
            "name_taken" | "already_initialized" | "already_open" => Exit::Conflict,
            "peer_unreachable" | "peer_timeout" => Exit::Unreachable,
            "credential_not_found" | "charter_not_found" => Exit::NotFound,
            "empty_secret"
            | "secret_has_line_break"
            | "secret_too_short"
            | "malformed_request"
            | "bad_name" => Exit::Usage,
            code if code.contains("not_permitted") || code.contains("not_bound") => Exit::Denied,
            _ => Exit::Internal,
        };
        let mut error = Self::new(exit, code, message);
        error.fix = fix.map(ToOwned::to_owned);
        error
    }
}

#[cfg(any(feature = "operate", feature = "vault"))]
impl From<claviger_vault_protocol::WireError> for CliError {
    fn from(error: claviger_vault_protocol::WireError) -> Self {
        match &error {
            claviger_vault_protocol::WireError::Refused(refusal) => {
                Self::refused(&refusal.code, &refusal.message, refusal.fix.as_deref())
            }
            other => Self::refused(other.code(), &other.to_string(), Some("claviger status")),
        }
    }
}
