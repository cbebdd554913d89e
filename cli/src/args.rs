//! The command line, as the help shows it.

#[cfg(feature = "operate")]
use std::ffi::OsString;
use std::fmt;
#[cfg(feature = "operate")]
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::error::{CliError, Exit};

/// Self-hosted managed agents whose keys never leave the vault.
#[derive(Debug, Parser)]
#[command(
    name = "claviger",
    version,
    about,
    propagate_version = true,
    disable_help_subcommand = true
)]
#[command(after_help = "See it work, with no key and no set-up:  claviger demo")]
pub(crate) struct Arguments {
    /// Prints one JSON document on stdout; errors as one object on stderr.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows the whole system at work on this machine, with no key and no set-up.
    #[cfg(feature = "demo")]
    Demo(Demo),
    #[cfg(feature = "operate")]
    /// Makes a home: vault, first API key, configuration.
    Init(Init),
    #[cfg(feature = "operate")]
    /// Starts every role on this machine and restarts what dies.
    Up(Up),
    #[cfg(feature = "operate")]
    /// Stops a running `up`.
    Down,
    /// Runs one role by itself, for systemd or Kubernetes; `up` runs them all.
    Serve(Serve),
    #[cfg(feature = "operate")]
    /// Shows what runs and in what state.
    Status,
    #[cfg(feature = "operate")]
    /// Checks this machine: home, sockets, user namespaces, disk.
    Doctor,
    #[cfg(feature = "operate")]
    /// Gives, lists, rotates, archives and deletes credentials. There is no get.
    #[command(subcommand)]
    Secret(Secret),
    #[cfg(feature = "operate")]
    /// Adds, lists, tests and removes tools that spend credentials.
    #[command(subcommand)]
    Tool(Tool),
    #[cfg(feature = "operate")]
    /// Connects an MCP client: the stdio shim that a client starts.
    Mcp,
    #[cfg(feature = "operate")]
    /// Writes and removes this server's entry in MCP clients' configurations.
    #[command(subcommand)]
    Client(Client),
    #[cfg(feature = "operate")]
    /// Starts, lists and follows agent sessions.
    #[command(subcommand)]
    Session(Session),
    #[cfg(feature = "operate")]
    /// Reads and verifies the audit log.
    #[command(subcommand)]
    Audit(Audit),
    #[cfg(feature = "operate")]
    /// Shows the vault's state, seals it and unseals it.
    #[command(subcommand)]
    Vault(Vault),
    /// Explains an error code.
    Explain {
        /// A code as an error shows it, or `exit-codes`.
        code: Option<String>,
    },
    /// Prints the version.
    Version,
    /// One of the demo's own programs.
    #[cfg(feature = "demo")]
    #[command(hide = true, subcommand)]
    Stage(Stage),
}

#[cfg(feature = "demo")]
#[derive(Args, Clone, Debug)]
pub(crate) struct Demo {
    /// Keeps everything that the demo wrote in this new directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
    /// Reads the demo's key from stdin instead of making one: search for it yourself.
    #[arg(long)]
    pub(crate) secret_from_stdin: bool,
    /// Uses the real Messages API with this model; needs ANTHROPIC_API_KEY.
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
}

#[cfg(feature = "operate")]
#[derive(Args, Debug)]
pub(crate) struct Init {
    /// How the root key is sealed.
    #[arg(long, value_enum, default_value_t = SealKind::KeyFile)]
    pub(crate) seal: SealKind,
    /// Asks nothing: no operator passphrase, key-file seal unless --seal says otherwise.
    #[arg(long)]
    pub(crate) no_input: bool,
    /// Reads the passphrase of --seal passphrase from stdin instead of asking for it.
    #[arg(long)]
    pub(crate) passphrase_stdin: bool,
}

#[cfg(feature = "operate")]
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum SealKind {
    /// A 32-byte file beside the store; the vault unseals itself.
    KeyFile,
    /// A passphrase, asked on the terminal; the vault stays sealed until it is given.
    Passphrase,
}

#[cfg(feature = "operate")]
#[derive(Args, Clone, Debug)]
pub(crate) struct Up {
    /// Goes to the background once everything is ready.
    #[arg(long)]
    pub(crate) detach: bool,
    /// Address of the API; port 0 picks one.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<String>,
    /// Address of the MCP server; port 0 picks one.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) mcp_listen: Option<String>,
    /// How many harnesses to run.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) harnesses: u16,
    /// Set by --detach on the process that stays.
    #[arg(long, hide = true)]
    pub(crate) detached: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Serve {
    /// Which role.
    #[arg(value_enum)]
    pub(crate) role: RoleName,
    /// Name of this harness among several; 0 unless given.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) instance: String,
    /// The control channel is on stdin.
    #[arg(long, hide = true)]
    pub(crate) control: bool,
    /// The home is a demo's.
    #[arg(long, hide = true)]
    pub(crate) demo: bool,
}

/// The roles that are processes.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, ValueEnum)]
pub(crate) enum RoleName {
    Api,
    Hands,
    Harness,
    Session,
    Tools,
    Vault,
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Api => "api",
            Self::Hands => "hands",
            Self::Harness => "harness",
            Self::Session => "session",
            Self::Tools => "tools",
            Self::Vault => "vault",
        })
    }
}

#[cfg(feature = "operate")]
#[derive(Debug, Subcommand)]
pub(crate) enum Secret {
    /// Gives a new credential; the value comes by stdin or a hidden prompt.
    Add(SecretAdd),
    /// Lists credentials, never values.
    List {
        /// Archived ones too.
        #[arg(long)]
        archived: bool,
    },
    /// Shows one credential's metadata.
    Show { name: String },
    /// Gives a new value for a credential.
    Rotate {
        name: String,
        /// Allows a value under 12 bytes, which is not scrubbed from answers.
        #[arg(long)]
        short: bool,
        #[arg(hide = true, num_args = 0..)]
        value: Vec<OsString>,
    },
    /// Ends a credential's use; the record stays.
    Archive { name: String },
    /// Deletes a credential and its sealed value.
    Delete { name: String },
    /// There is no get.
    #[command(hide = true)]
    Get { name: Option<String> },
}

#[cfg(feature = "operate")]
#[derive(Args, Debug)]
pub(crate) struct SecretAdd {
    /// Name of the credential.
    pub(crate) name: String,
    /// What it is: bearer, basic, header or query.
    #[arg(long, value_name = "KIND")]
    pub(crate) kind: String,
    /// Where it may be used: `[SCHEME://]HOST[:PORT]`, exactly one.
    #[arg(long, value_name = "HOST")]
    pub(crate) host: String,
    /// Only paths under this prefix (repeatable).
    #[arg(long, value_name = "/PREFIX")]
    pub(crate) path: Vec<String>,
    /// Only these methods (repeatable).
    #[arg(long, value_name = "METHOD")]
    pub(crate) method: Vec<String>,
    /// Header name for --kind header, parameter for --kind query.
    #[arg(long, value_name = "NAME")]
    pub(crate) slot: Option<String>,
    /// User name for --kind basic.
    #[arg(long, value_name = "NAME")]
    pub(crate) username: Option<String>,
    /// Environment variable that carries the placeholder into sandboxes.
    #[arg(long, value_name = "VARIABLE")]
    pub(crate) variable: Option<String>,
    /// Allows a value under 12 bytes, which is not scrubbed from answers.
    #[arg(long)]
    pub(crate) short: bool,
    #[arg(hide = true, num_args = 0..)]
    pub(crate) value: Vec<OsString>,
}

#[cfg(feature = "operate")]
#[derive(Debug, Subcommand)]
pub(crate) enum Tool {
    /// Adds a tool definition and the one permit that it implies.
    Add {
        /// Kind: http.
        kind: String,
        /// The definition, a TOML file.
        file: PathBuf,
        /// Principal that may use it directly (repeatable); the operator and the first key unless given.
        #[arg(long = "for", value_name = "PRINCIPAL")]
        principals: Vec<String>,
    },
    /// Lists tools.
    List,
    /// Shows one definition and its permit.
    Show { name: String },
    /// Says whether a call would be sent, with what, and why not; with --call sends it.
    Test {
        /// Full name of an operation, or a definition's.
        name: String,
        /// Arguments as a JSON object.
        #[arg(long, default_value = "{}")]
        args: String,
        /// Sends the request.
        #[arg(long)]
        call: bool,
    },
    /// Takes the permit back and removes the definition.
    Remove { name: String },
}

#[cfg(feature = "operate")]
#[derive(Debug, Subcommand)]
pub(crate) enum Client {
    /// Writes the entry.
    Install {
        #[arg(value_enum)]
        client: ClientName,
        /// Shows the change and writes nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Removes the entry; an untouched file is restored byte for byte.
    Uninstall {
        #[arg(value_enum)]
        client: ClientName,
        /// Shows the change and writes nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Shows which clients have the entry.
    Status,
    /// Prints the entry to paste by hand.
    Snippet {
        #[arg(value_enum)]
        client: ClientName,
    },
}

#[cfg(feature = "operate")]
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum ClientName {
    ClaudeCode,
    ClaudeDesktop,
}

#[cfg(feature = "operate")]
#[derive(Debug, Subcommand)]
pub(crate) enum Session {
    /// Starts a session with a first message.
    New {
        /// The message; stdin where it is `-`.
        prompt: String,
        /// Model of the new agent.
        #[arg(long)]
        model: Option<String>,
        /// Follows the session until it is idle.
        #[arg(long)]
        follow: bool,
    },
    /// Lists sessions.
    List,
    /// Shows one session.
    Show { id: String },
    /// Follows a session's events.
    Tail {
        id: String,
        /// Only events after this sequence number.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// Goes on when the session is idle.
        #[arg(long)]
        follow: bool,
    },
}

#[cfg(feature = "operate")]
#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// Shows the newest records.
    Tail {
        /// How many.
        #[arg(long, default_value_t = 20)]
        limit: u64,
        /// Goes on as records arrive.
        #[arg(long)]
        follow: bool,
    },
    /// Verifies the log offline: chain, tree, checkpoints.
    Verify {
        /// The audit directory; this home's unless given.
        directory: Option<PathBuf>,
        /// The verification key that you trust.
        #[arg(long, value_name = "KEY")]
        vkey: Option<String>,
    },
}

#[cfg(feature = "demo")]
#[derive(Debug, Subcommand)]
pub(crate) enum Stage {
    /// The issue tracker that the demo's agent works with.
    Upstream {
        /// File of its options, JSON.
        script: PathBuf,
    },
    /// A Messages API that plays a script.
    Model {
        /// The script, JSON.
        script: PathBuf,
    },
}

#[cfg(feature = "operate")]
#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum Vault {
    /// Shows the vault's state, which can be asked while it is sealed.
    Status,
    /// Wipes every key from memory; nothing can be used until it is unsealed.
    Seal,
    /// Unseals; the passphrase comes by stdin or a hidden prompt.
    Unseal,
}

/// Reports what clap found: help and version to stdout, mistakes to stderr with exit code 2.
pub(crate) fn report(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    if !error.use_stderr() {
        crate::output::plain(&text, false);
        return ExitCode::SUCCESS;
    }
    if std::env::args_os().any(|argument| argument == "--json") {
        let what = text.lines().next().unwrap_or("");
        let what = what.strip_prefix("error: ").unwrap_or(what);
        return crate::output::Output::new(true).error(&CliError::usage("usage", what));
    }
    crate::output::plain(&text, true);
    ExitCode::from(Exit::Usage as u8)
}
