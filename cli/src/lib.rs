//! The program `claviger`: parses, configures, composes and reports.
//!
//! It decides nothing: what a credential may do is the vault's, what an event means the session's,
//! what runs where the sandbox's. Here are the command line, the configuration, the supervisor
//! that starts every role as a process of its own, and the demo.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(feature = "demo"),
    allow(
        dead_code,
        reason = "a build of one role uses a part of what all roles share; the whole build is checked"
    )
)]

mod args;
#[cfg(feature = "operate")]
mod command;
#[cfg(any(feature = "api", feature = "operate", feature = "tools"))]
mod config;
mod control;
#[cfg(feature = "demo")]
mod demo;
mod error;
mod explain;
mod home;
mod links;
mod listen;
mod lock;
mod output;
mod role_key;
mod serve;
#[cfg(feature = "operate")]
mod supervisor;
mod telemetry;
#[cfg(feature = "operate")]
mod terminal;

use std::process::ExitCode;

use clap::Parser as _;

/// Runs the command that the arguments name and turns its result into an exit code.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = match args::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return args::report(&error),
    };
    let output = output::Output::new(arguments.json);
    let result = match arguments.command {
        // Before anything else: the hands' zygote is forked while this process has a single thread.
        args::Command::Serve(serve) => serve::run(&serve),
        args::Command::Explain { code } => {
            explain::run(code.as_deref(), output).map(|()| ExitCode::SUCCESS)
        }
        args::Command::Version => {
            output.version();
            Ok(ExitCode::SUCCESS)
        }
        #[cfg(feature = "operate")]
        command => command::run(command, output),
    };
    match result {
        Ok(code) => code,
        Err(error) => output.error(&error),
    }
}
