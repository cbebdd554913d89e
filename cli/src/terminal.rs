//! Asking a person: a hidden prompt on the controlling terminal, or nothing at all.

use std::io::{IsTerminal as _, Read as _, Write as _};

use claviger_vault_memory::SecretBytes;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use zeroize::Zeroize as _;

use crate::error::{CliError, Exit};

/// Largest secret that is read.
const MAX_BYTES: usize = 64 * 1024;

/// Reads a secret from stdin to its end; one trailing line break is not part of it.
pub(crate) fn secret_from_stdin() -> Result<SecretBytes, CliError> {
    let mut buffer = vec![0_u8; MAX_BYTES + 2];
    let mut length = 0;
    // No buffered reader: its buffer would keep a copy.
    let mut stdin = std::fs::File::from(
        rustix::io::dup(std::io::stdin())
            .map_err(|error| CliError::internal("reading stdin").because(error))?,
    );
    loop {
        let free = buffer.get_mut(length..).unwrap_or_default();
        let read = stdin
            .read(free)
            .map_err(|error| CliError::internal("reading stdin").because(error))?;
        length += read;
        if read == 0 || length == buffer.len() {
            break;
        }
    }
    if length > MAX_BYTES {
        buffer.zeroize();
        return Err(CliError::usage(
            "secret_too_long",
            format!("a secret has at most {MAX_BYTES} bytes"),
        ));
    }
    finish(&mut buffer, length)
}

fn finish(buffer: &mut Vec<u8>, mut length: usize) -> Result<SecretBytes, CliError> {
    if length > 0 && buffer.get(length - 1) == Some(&b'\n') {
        length -= 1;
        if length > 0 && buffer.get(length - 1) == Some(&b'\r') {
            length -= 1;
        }
    }
    let secret = SecretBytes::from_mut_slice_wiping(buffer.get_mut(..length).unwrap_or_default());
    buffer.zeroize();
    secret.map_err(|error| CliError::internal("keeping a secret").because(error))
}

/// Whether a person can be asked although stdin may carry something else.
pub(crate) fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok_and(|tty| tty.is_terminal())
}

/// Asks on the controlling terminal without echo.
pub(crate) fn ask_hidden(prompt: &str, flag: &str) -> Result<SecretBytes, CliError> {
    let mut tty = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/tty")
        .map_err(|_| {
            CliError::new(
                Exit::Usage,
                "no_terminal",
                format!("{prompt}: there is no terminal to ask on"),
            )
            .fix(flag)
        })?;
    let failed = |error: rustix::io::Errno| CliError::internal("the terminal").because(error);
    let before = tcgetattr(&tty).map_err(failed)?;
    let mut hidden = before.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    hidden.local_modes.insert(LocalModes::ECHONL);
    drop(write!(tty, "{prompt}: "));
    tcsetattr(&tty, OptionalActions::Flush, &hidden).map_err(failed)?;
    let mut buffer = vec![0_u8; 4096];
    let read = tty.read(&mut buffer);
    tcsetattr(&tty, OptionalActions::Flush, &before).map_err(failed)?;
    let length = read.map_err(|error| CliError::internal("the terminal").because(error))?;
    finish(&mut buffer, length)
}
