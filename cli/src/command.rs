//! One file a command.

mod audit;
mod client;
mod connect;
mod doctor;
mod down;
mod init;
mod mcp;
mod model_key;
mod secret;
mod session;
mod status;
mod tool;
mod up;
mod vault;

use std::process::ExitCode;

use crate::args::Command;
use crate::error::CliError;
use crate::output::Output;

#[cfg(feature = "demo")]
pub(crate) use audit::verify as verify_audit;
#[cfg(feature = "demo")]
pub(crate) use connect::{Events, admin_at, api_request};
#[cfg(feature = "demo")]
pub(crate) use init::{Initial, initialise, model_key_from_environment};
#[cfg(feature = "demo")]
pub(crate) use session::{create as create_session, describe};
#[cfg(feature = "demo")]
pub(crate) use tool::add as add_tool;
#[cfg(feature = "demo")]
pub(crate) use up::Instance;

/// Runs a command that is not a role.
pub(crate) fn run(command: Command, output: Output) -> Result<ExitCode, CliError> {
    // A sandbox can be tried only while this process has a single thread.
    let probe = matches!(command, Command::Doctor).then(doctor::probe);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| CliError::internal("starting the runtime").because(error))?;
    let done = ExitCode::SUCCESS;
    runtime.block_on(async {
        match command {
            #[cfg(feature = "demo")]
            Command::Demo(options) => Box::pin(crate::demo::run(options, output)).await,
            #[cfg(feature = "demo")]
            Command::Stage(stage) => crate::demo::stage(stage).await.map(|()| done),
            Command::Init(options) => init::run(options, output).await.map(|()| done),
            Command::Up(options) => Box::pin(up::run(options, output)).await.map(|()| done),
            Command::Down => down::run(output).await.map(|()| done),
            Command::Status => status::run(output).await.map(|()| done),
            Command::Doctor => doctor::run(probe, output).await,
            Command::Secret(secret) => secret::run(secret, output).await.map(|()| done),
            Command::Tool(tool) => tool::run(tool, output).await.map(|()| done),
            Command::Mcp => mcp::run().await.map(|()| done),
            Command::Client(client) => client::run(client, output).map(|()| done),
            Command::Session(session) => session::run(session, output).await.map(|()| done),
            Command::Audit(audit) => audit::run(audit, output).await,
            Command::Vault(verb) => vault::run(verb, output).await.map(|()| done),
            Command::Explain { .. } | Command::Serve(_) | Command::Version => {
                Err(CliError::internal("handled before any runtime exists"))
            }
        }
    })
}
