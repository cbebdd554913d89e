//! Who runs in a home: one `up`, or each role by itself, never both.
//!
//! The files stay; what counts is the lock on them, which the kernel takes back when its holder ends.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::args::RoleName;
use crate::error::{CliError, Exit};
use crate::home::Home;

/// Locks held as long as this lives.
#[derive(Debug)]
pub(crate) struct Locks(#[expect(dead_code, reason = "held, not read")] Vec<OwnedFd>);

/// Takes the home and every role in it, for `up`.
#[cfg(feature = "operate")]
pub(crate) fn take_all(home: &Home) -> Result<Locks, CliError> {
    const ALL: [RoleName; 6] = [
        RoleName::Api,
        RoleName::Hands,
        RoleName::Harness,
        RoleName::Session,
        RoleName::Tools,
        RoleName::Vault,
    ];
    let running = || {
        CliError::new(
            Exit::Conflict,
            "already_running",
            "another `claviger up` runs in this home",
        )
        .fix("claviger status; claviger down")
    };
    let mut held = vec![take(
        &home.lock_file(),
        FlockOperation::NonBlockingLockExclusive,
        running,
    )?];
    for role in ALL {
        let path = home.role_lock(&role.to_string());
        held.push(take(
            &path,
            FlockOperation::NonBlockingLockExclusive,
            || is_running(role),
        )?);
    }
    Ok(Locks(held))
}

/// Takes one role; harnesses share theirs and are told apart by their instance.
pub(crate) fn take_role(home: &Home, role: RoleName, instance: &str) -> Result<Locks, CliError> {
    let path = home.role_lock(&role.to_string());
    if role != RoleName::Harness {
        let exclusive = FlockOperation::NonBlockingLockExclusive;
        return Ok(Locks(vec![take(&path, exclusive, || is_running(role))?]));
    }
    let shared = take(&path, FlockOperation::NonBlockingLockShared, || {
        is_running(role)
    })?;
    let own = home.role_lock(&format!("{role}-{instance}"));
    let own = take(&own, FlockOperation::NonBlockingLockExclusive, || {
        is_running(role).fix("claviger serve harness --instance NAME, another one for each")
    })?;
    Ok(Locks(vec![shared, own]))
}

fn is_running(role: RoleName) -> CliError {
    CliError::new(
        Exit::Conflict,
        "already_running",
        format!("the role {role} runs in this home already"),
    )
    .because("`claviger up` runs all roles and `claviger serve` one; a home is for one of both")
    .fix("end the one or the other: claviger down, or the role's service")
}

fn take(
    path: &Path,
    operation: FlockOperation,
    refused: impl FnOnce() -> CliError,
) -> Result<OwnedFd, CliError> {
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|error| CliError::file("opening", path, &error))?;
    flock(&file, operation).map_err(|_| refused())?;
    Ok(file.into())
}

#[cfg(test)]
#[cfg(feature = "operate")]
mod tests {
    use super::*;

    fn home() -> (tempfile::TempDir, Home) {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        (directory, home)
    }

    #[test]
    fn up_is_refused_beside_a_role_and_a_role_beside_up() {
        let (_directory, home) = home();
        let role = take_role(&home, RoleName::Tools, "0").unwrap();
        assert_eq!(take_all(&home).unwrap_err().code, "already_running");
        drop(role);
        let all = take_all(&home).unwrap();
        for role in [RoleName::Tools, RoleName::Harness] {
            let refused = take_role(&home, role, "0").unwrap_err();
            assert_eq!(refused.code, "already_running");
        }
        drop(all);
        take_role(&home, RoleName::Tools, "0").unwrap();
    }

    #[test]
    fn a_role_runs_once_and_a_harness_once_an_instance() {
        let (_directory, home) = home();
        let _tools = take_role(&home, RoleName::Tools, "0").unwrap();
        take_role(&home, RoleName::Tools, "1").unwrap_err();
        let _first = take_role(&home, RoleName::Harness, "0").unwrap();
        let _second = take_role(&home, RoleName::Harness, "1").unwrap();
        take_role(&home, RoleName::Harness, "1").unwrap_err();
    }
}
