//! Which layers of isolation this machine offers, and what to do about those that are missing.

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::missing::{Missing, namespaces_fix, sysctl};
use crate::namespaces::landlock_abi;
use crate::zygote::{Launch, Launched, is_single_threaded, start_zygote};
use crate::{HandsError, Resources, inside, passing, sys};

/// What was found about one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// The layer: `user namespaces`, `landlock`, `seccomp`, `shell`, `limits`, `sandbox`.
    pub name: String,
    /// Whether it works here.
    pub works: bool,
    /// What was found.
    pub found: String,
    /// What to do when it does not work.
    pub fix: Option<String>,
}

impl Layer {
    fn works(name: &str, found: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            works: true,
            found: found.into(),
            fix: None,
        }
    }

    fn fails(name: &str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            works: false,
            found: found.into(),
            fix: Some(fix.into()),
        }
    }
}

/// What was found about all layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// Every layer, in the order in which a sandbox needs them.
    pub layers: Vec<Layer>,
}

impl Probe {
    /// Whether a sandbox can be provisioned.
    pub fn is_ready(&self) -> bool {
        self.layers.iter().all(|layer| layer.works)
    }
}

/// Tries every layer; called before any thread exists it also starts a real sandbox and ends it.
pub fn probe() -> Probe {
    let mut layers = vec![user_namespaces(), landlock(), seccomp(), shell(), limits()];
    if is_single_threaded() {
        layers.push(match try_sandbox() {
            Ok(()) => Layer::works("sandbox", "one was started with every layer and ended"),
            Err(HandsError::Unsupported { what, fix }) => {
                Layer::fails("sandbox", format!("no {what}"), fix)
            }
            Err(error) => Layer::fails("sandbox", error.to_string(), "look at the layers above"),
        });
    }
    Probe { layers }
}

fn user_namespaces() -> Layer {
    let name = "user namespaces";
    match sys::try_user_namespace() {
        Ok(()) => {
            let most = sysctl("user.max_user_namespaces")
                .map_or_else(String::new, |most| format!(", at most {most}"));
            Layer::works(name, format!("allowed{most}"))
        }
        Err(error) => Layer::fails(
            name,
            format!("refused: {error}"),
            namespaces_fix(error.raw_os_error()),
        ),
    }
}

fn landlock() -> Layer {
    match landlock_abi() {
        Some(abi) => Layer::works(
            "landlock",
            format!("version {} of the 6 that are used", abi as u8),
        ),
        None => Layer::fails(
            "landlock",
            "not in this kernel, or switched off",
            "use a kernel from 5.13 on with `landlock` in its `lsm=` list",
        ),
    }
}

fn seccomp() -> Layer {
    let path = "/proc/sys/kernel/seccomp/actions_avail";
    match fs::read_to_string(path) {
        Ok(actions) if actions.contains("errno") => Layer::works("seccomp", actions.trim()),
        Ok(actions) => Layer::fails(
            "seccomp",
            actions,
            "use a kernel with CONFIG_SECCOMP_FILTER",
        ),
        Err(error) => Layer::fails(
            "seccomp",
            format!("{path}: {error}"),
            "use a kernel with CONFIG_SECCOMP_FILTER",
        ),
    }
}

fn shell() -> Layer {
    if Path::new("/bin/bash").exists() {
        Layer::works("shell", "/bin/bash")
    } else {
        Layer::fails(
            "shell",
            "there is no /bin/bash for the tool `bash`",
            "install bash",
        )
    }
}

/// What bounds a sandbox; said here because it is less than some expect.
fn limits() -> Layer {
    let found = "memory per process, processes, descriptors and files; no control group, so memory is not bounded as a sum";
    Layer::works("limits", found)
}

/// Starts one sandbox as the hands do, and lets it end with its socket.
fn try_sandbox() -> Result<(), HandsError> {
    let broken = |error: std::io::Error| HandsError::internal("a trial sandbox", error);
    let ended = || HandsError::internal("a trial sandbox", "it ended while it started");
    let mut zygote = start_zygote()?;
    let link = zygote.take_link().ok_or_else(ended)?;
    let resources = Resources {
        listeners: true,
        ..Resources::default()
    };
    passing::send_frame(&link, &Launch { resources }, &[]).map_err(broken)?;
    let mut inbox = passing::Inbox::default();
    match inbox.wait(&link).map_err(broken)?.ok_or_else(ended)? {
        Launched::Failed(missing) => return Err(missing.into()),
        Launched::Launched { .. } => {}
    }
    let control = inbox.descriptor().map_err(broken)?;
    let mut said = passing::Inbox::default();
    match said.wait(&control).map_err(broken)?.ok_or_else(ended)? {
        inside::Says::Ready => Ok(()),
        inside::Says::Failed(missing) => Err(Missing::into(missing)),
        inside::Says::Answer { .. } => Err(ended()),
    }
}
