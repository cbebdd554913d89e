//! What the demo's two programs share: a script file, a listener, an address file.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::CliError;

pub(super) fn read_script<T: DeserializeOwned>(path: &Path) -> Result<T, CliError> {
    let text =
        std::fs::read_to_string(path).map_err(|error| CliError::file("reading", path, &error))?;
    serde_json::from_str(&text).map_err(|error| {
        CliError::usage("script_malformed", format!("{}: {error}", path.display()))
    })
}

/// Serves until the process is ended; writes its address first.
pub(super) async fn listen(
    address: &str,
    address_file: &Path,
    router: Router,
) -> Result<(), CliError> {
    let failed = |error: std::io::Error| {
        CliError::internal(format!("listening on {address}")).because(error)
    };
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    crate::home::write_private(address_file, bound.to_string().as_bytes())?;
    // Small streamed events must not wait for the peer's acknowledgement.
    let listener = listener.tap_io(|stream| {
        drop(stream.set_nodelay(true));
    });
    axum::serve(listener, router).await.map_err(failed)
}

/// A program of the demo in a process of its own; it ends when this is dropped.
pub(super) struct Program {
    child: tokio::process::Child,
    /// Where it listens.
    pub(super) address: String,
}

impl Program {
    /// Starts `claviger stage NAME` with a script and waits for its address.
    pub(super) async fn start<T: Serialize>(
        name: &str,
        directory: &Path,
        script: &T,
        address_file: &Path,
    ) -> Result<Self, CliError> {
        let script_file = directory.join("script.json");
        let text =
            serde_json::to_vec(script).map_err(|error| CliError::internal(error.to_string()))?;
        crate::home::write_private(&script_file, &text)?;
        let log_file = directory.join("log");
        let log = std::fs::File::create(&log_file)
            .map_err(|error| CliError::file("writing", &log_file, &error))?;
        let program = std::env::current_exe()
            .map_err(|error| CliError::internal("finding this program").because(error))?;
        let child = tokio::process::Command::new(program)
            .args(["stage", name])
            .arg(&script_file)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| CliError::internal(format!("starting the {name}")).because(error))?;
        for _ in 0..500 {
            if let Ok(address) = std::fs::read_to_string(address_file) {
                return Ok(Self { child, address });
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err(CliError::internal(format!("the {name} did not start"))
            .because(std::fs::read_to_string(&log_file).unwrap_or_default()))
    }

    pub(super) async fn stop(mut self) {
        drop(self.child.kill().await);
    }
}
