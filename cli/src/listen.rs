//! Binding what a role listens on, for the supervisor and for a role that runs by itself.

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::error::{CliError, Exit};

/// Binds a TCP address; `fix` says how to name another one.
pub(crate) fn tcp(address: &str, fix: String) -> Result<std::net::TcpListener, CliError> {
    std::net::TcpListener::bind(address).map_err(|error| {
        let taken = error.kind() == std::io::ErrorKind::AddrInUse;
        let code = if taken {
            "port_taken"
        } else {
            "address_unusable"
        };
        CliError::new(Exit::Conflict, code, format!("cannot listen on {address}"))
            .because(error)
            .fix(fix)
    })
}

/// Binds a socket for its owner alone. The home's or the role's lock is held, so a leftover path is
/// stale.
pub(crate) fn unix(path: &Path) -> Result<OwnedFd, CliError> {
    drop(std::fs::remove_file(path));
    let failed = |error: std::io::Error| CliError::file("listening on", path, &error);
    let listener = std::os::unix::net::UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener.into())
}
