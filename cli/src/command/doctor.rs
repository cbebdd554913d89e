//! `claviger doctor`: checks this machine and says what to do about what is missing.

use std::process::ExitCode;
use std::time::Instant;

use claviger_sandbox::doctor::Probe;
use serde_json::json;

use super::connect::answers;
use crate::config::Config;
use crate::error::{CliError, Exit};
use crate::home::Home;
use crate::output::Output;

/// Least free space that is not worth a warning.
const ROOMY: u64 = 1024 * 1024 * 1024;
/// Least free space to run at all.
const ENOUGH: u64 = 64 * 1024 * 1024;

struct Check {
    name: &'static str,
    verdict: Verdict,
    found: String,
    fix: Option<String>,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Verdict {
    Fail,
    Ok,
    Warn,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Ok => "ok",
            Self::Warn => "warn",
        }
    }
}

/// Tries the sandbox's layers; must run while the process has one thread.
pub(crate) fn probe() -> Probe {
    claviger_sandbox::doctor::probe()
}

pub(crate) async fn run(probe: Option<Probe>, output: Output) -> Result<ExitCode, CliError> {
    let home = Home::from_environment()?;
    let mut checks = vec![home_check(&home), config_check(&home)];
    checks.push(disk_check(&home));
    checks.push(flush_check(&home));
    checks.push(sockets_check(&home).await);
    for layer in probe.iter().flat_map(|probe| &probe.layers) {
        let verdict = if layer.works {
            Verdict::Ok
        } else {
            Verdict::Fail
        };
        checks.push(Check {
            name: "sandbox",
            verdict,
            found: format!("{}: {}", layer.name, layer.found),
            fix: layer.fix.clone(),
        });
    }
    let protection = claviger_vault_memory::Arena::global().start();
    let protected = matches!(protection, Ok(ref found) if !matches!(found, claviger_vault_memory::Protection::None));
    checks.push(Check {
        name: "secret memory",
        verdict: if protected {
            Verdict::Ok
        } else {
            Verdict::Warn
        },
        found: protection.map_or_else(|error| error.to_string(), |found| format!("{found:?}")),
        fix: (!protected).then(|| {
            "raise RLIMIT_MEMLOCK (ulimit -l) or use a kernel with memfd_secret".to_owned()
        }),
    });
    let failed = checks
        .iter()
        .filter(|check| check.verdict == Verdict::Fail)
        .count();
    let rows: Vec<_> = checks.iter().map(|check| json!({"check": check.name, "verdict": check.verdict.name(), "found": check.found, "fix": check.fix})).collect();
    let mut text = String::new();
    for check in &checks {
        text.push_str(&format!(
            "{:<5} {:<14} {}\n",
            check.verdict.name(),
            check.name,
            check.found
        ));
        if let Some(fix) = &check.fix {
            text.push_str(&format!("      {:<14} -> {fix}\n", ""));
        }
    }
    text.push_str("level shared-uid: protects against sandboxes, harnesses and agents; not against programs that run unconfined as this user\n");
    output.result(&json!({"schema": "claviger.doctor/v1", "checks": rows, "failed": failed, "isolation": "shared-uid"}), &text);
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(Exit::Doctor as u8)
    })
}

fn home_check(home: &Home) -> Check {
    use std::os::unix::fs::MetadataExt as _;
    let (verdict, found, fix) = match std::fs::metadata(&home.data) {
        Err(_) => (
            Verdict::Warn,
            format!("{} does not exist yet", home.data.display()),
            Some("claviger init".to_owned()),
        ),
        Ok(_) if !home.is_initialised() => (
            Verdict::Warn,
            format!("{} has no vault yet", home.data.display()),
            Some("claviger init".to_owned()),
        ),
        Ok(metadata) if metadata.mode() & 0o077 != 0 => (
            Verdict::Fail,
            format!(
                "{} is open to others (mode {:o})",
                home.data.display(),
                metadata.mode() & 0o777
            ),
            Some(format!("chmod 700 {}", home.data.display())),
        ),
        Ok(metadata) if metadata.uid() != rustix::process::getuid().as_raw() => (
            Verdict::Fail,
            format!("{} belongs to user {}", home.data.display(), metadata.uid()),
            Some("run as its owner, or set CLAVIGER_HOME".to_owned()),
        ),
        Ok(_) => (Verdict::Ok, home.data.display().to_string(), None),
    };
    Check {
        name: "home",
        verdict,
        found,
        fix,
    }
}

fn config_check(home: &Home) -> Check {
    match Config::load(&home.config_file)
        .and_then(|config| config.model_url().map(|url| (config, url)))
    {
        Ok((_, url)) => Check {
            name: "configuration",
            verdict: Verdict::Ok,
            found: format!("{} (model at {url})", home.config_file.display()),
            fix: None,
        },
        Err(error) => Check {
            name: "configuration",
            verdict: Verdict::Fail,
            found: format!(
                "{} {}",
                error.what,
                error.why.unwrap_or_default().replace('\n', " ")
            ),
            fix: error.fix,
        },
    }
}

/// The nearest directory that exists.
fn existing(path: &std::path::Path) -> &std::path::Path {
    path.ancestors()
        .find(|ancestor| ancestor.is_dir())
        .unwrap_or(path)
}

fn disk_check(home: &Home) -> Check {
    let path = existing(&home.data);
    match rustix::fs::statvfs(path) {
        Ok(stat) => {
            let free = stat.f_bavail * stat.f_frsize;
            let read_only = stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
            let (verdict, fix) = if read_only {
                (
                    Verdict::Fail,
                    Some("choose a writable place: CLAVIGER_HOME=DIR".to_owned()),
                )
            } else if free < ENOUGH {
                (Verdict::Fail, Some("free some space: the audit log must be writable for any credential to be used".to_owned()))
            } else if free < ROOMY {
                (Verdict::Warn, Some("free some space".to_owned()))
            } else {
                (Verdict::Ok, None)
            };
            Check {
                name: "disk",
                verdict,
                found: format!(
                    "{} MiB free{}",
                    free / (1024 * 1024),
                    if read_only { ", read-only" } else { "" }
                ),
                fix,
            }
        }
        Err(error) => Check {
            name: "disk",
            verdict: Verdict::Fail,
            found: format!("{}: {error}", path.display()),
            fix: Some("check the path".to_owned()),
        },
    }
}

/// What one durable write costs here: every use of a credential waits for one.
fn flush_check(home: &Home) -> Check {
    let path = existing(&home.data).join(format!(".claviger-doctor-{}", std::process::id()));
    let measure = || -> std::io::Result<u128> {
        let file = std::fs::OpenOptions::new()
            .create_new(true)
            .write(true)
            .open(&path)?;
        let mut times = Vec::new();
        for number in 0..20_u64 {
            std::os::unix::fs::FileExt::write_all_at(&file, &[0; 512], number * 512)?;
            let started = Instant::now();
            file.sync_data()?;
            times.push(started.elapsed().as_micros());
        }
        times.sort_unstable();
        Ok(times.get(times.len() / 2).copied().unwrap_or(0))
    };
    let result = measure();
    drop(std::fs::remove_file(&path));
    match result {
        Ok(median) => Check {
            name: "durable write",
            verdict: if median > 50_000 {
                Verdict::Warn
            } else {
                Verdict::Ok
            },
            found: format!("{median} us (median fdatasync)"),
            fix: (median > 50_000).then(|| "move the home to a faster disk".to_owned()),
        },
        Err(error) => Check {
            name: "durable write",
            verdict: Verdict::Fail,
            found: error.to_string(),
            fix: Some("the home must be writable".to_owned()),
        },
    }
}

async fn sockets_check(home: &Home) -> Check {
    let names = ["admin", "api", "mcp"];
    let mut up = Vec::new();
    for name in names {
        if answers(&home.socket(name)).await {
            up.push(name);
        }
    }
    let long = home.socket("tools-scan").as_os_str().len() > 100;
    let (verdict, found, fix) = if long {
        (
            Verdict::Fail,
            "the path of the sockets is longer than the kernel allows".to_owned(),
            Some("use a shorter CLAVIGER_HOME".to_owned()),
        )
    } else if up.len() == names.len() {
        (
            Verdict::Ok,
            format!("{} answer in {}", up.join(", "), home.run.display()),
            None,
        )
    } else if up.is_empty() {
        (
            Verdict::Warn,
            "no daemon runs in this home".to_owned(),
            Some("claviger up --detach".to_owned()),
        )
    } else {
        (
            Verdict::Fail,
            format!("only {} answer", up.join(", ")),
            Some("claviger down; claviger up --detach".to_owned()),
        )
    };
    Check {
        name: "sockets",
        verdict,
        found,
        fix,
    }
}
