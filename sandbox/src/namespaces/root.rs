//! The file tree of a sandbox: programs of the host read-only, everything else its own.

use std::ffi::{CStr, CString};
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::missing::Missing;
use crate::{Limits, inside, sys};

const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// Directories of programs that, on a merged system, are links into `/usr`.
const PROGRAM_DIRECTORIES: [&str; 6] = ["/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin"];

/// The few places under `/etc` that programs need and that say nothing about the machine: where alternatives point,
/// where libraries are, which authorities to trust.
const ETC: [&str; 5] = [
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/pki/tls/certs",
    "/etc/ssl/certs",
];

const DEVICES: [&str; 5] = ["full", "null", "random", "urandom", "zero"];

/// Files of a fresh /proc that tell about the machine rather than about the sandbox.
const HIDDEN_PROC_FILES: [&str; 22] = [
    "cmdline",
    "config.gz",
    "consoles",
    "devices",
    "diskstats",
    "interrupts",
    "iomem",
    "ioports",
    "kallsyms",
    "kcore",
    "key-users",
    "keys",
    "kmsg",
    "latency_stats",
    "modules",
    "partitions",
    "sched_debug",
    "slabinfo",
    "softirqs",
    "sysrq-trigger",
    "timer_list",
    "vmallocinfo",
];
const HIDDEN_PROC_DIRECTORIES: [&str; 8] = [
    "acpi", "asound", "bus", "driver", "fs", "irq", "scsi", "tty",
];

/// What was found on this machine.
#[derive(Debug)]
pub(super) struct Plan {
    /// Where the new root is mounted while it is built; the host's tree is not touched.
    base: PathBuf,
    /// Directories bound read-only.
    binds: Vec<PathBuf>,
    /// Links like `/bin -> usr/bin`.
    links: Vec<(PathBuf, PathBuf)>,
    /// Entries of `/etc` bound read-only.
    etc: Vec<(PathBuf, bool)>,
    hidden_files: Vec<&'static str>,
    hidden_directories: Vec<&'static str>,
}

impl Plan {
    pub(super) fn of_this_machine() -> Self {
        let mut binds = vec![PathBuf::from("/usr")];
        let mut links = Vec::new();
        for directory in PROGRAM_DIRECTORIES.map(PathBuf::from) {
            match fs::symlink_metadata(&directory) {
                Ok(found) if found.is_symlink() => {
                    if let Ok(target) = fs::read_link(&directory) {
                        links.push((directory, target));
                    }
                }
                Ok(found) if found.is_dir() => binds.push(directory),
                _ => {}
            }
        }
        let etc = ETC
            .map(PathBuf::from)
            .into_iter()
            .filter_map(|path| fs::metadata(&path).ok().map(|found| (path, found.is_dir())))
            .collect();
        let base = ["/tmp", "/mnt", "/var"]
            .into_iter()
            .find(|path| Path::new(path).is_dir())
            .unwrap_or("/tmp")
            .into();
        let in_proc = |name: &&str| Path::new("/proc").join(name).exists();
        Self {
            base,
            binds,
            links,
            etc,
            hidden_files: HIDDEN_PROC_FILES.into_iter().filter(in_proc).collect(),
            hidden_directories: HIDDEN_PROC_DIRECTORIES
                .into_iter()
                .filter(in_proc)
                .collect(),
        }
    }
}

/// Forbids user namespaces below this one, for good: the only way from here to new capabilities.
pub(super) fn close_user_namespaces() -> Result<(), Missing> {
    fs::write("/proc/sys/user/max_user_namespaces", "0")
        .map_err(|error| Missing::rights("an end to nested user namespaces", error))
}

/// Builds the tree and makes it the root.
pub(super) fn build(plan: &Plan, limits: &Limits) -> Result<(), Missing> {
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
    )
    .map_err(|error| Missing::rights("a mount namespace with rights", error))?;
    let new = Tree {
        root: plan.base.clone(),
    };
    new.tmpfs("", "mode=755,size=4m,nr_inodes=512")?;

    for directory in &plan.binds {
        new.directory(directory)?;
        new.bind(directory, directory)?;
        new.restrict(directory, READ_ONLY)?;
    }
    for (link, target) in &plan.links {
        new.link(target, link)?;
    }
    etc(&new, plan)?;
    scratch(&new, limits)?;
    devices(&new)?;
    proc(&new, plan)?;
    new.directory(Path::new("/var"))?;
    new.link(Path::new("/tmp"), Path::new("/var/tmp"))?;

    let step = |error: rustix::io::Errno| Missing::step("a root of its own", error);
    std::env::set_current_dir(&new.root)
        .map_err(|error| Missing::step("a root of its own", error))?;
    rustix::process::pivot_root(".", ".").map_err(step)?;
    // The old root now lies on top of the new one at "."; detach it and the host's tree is out of reach.
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(step)?;
    sys::restrict_mount(c"/", READ_ONLY, false)
        .map_err(|error| Missing::step("a read-only root", error))?;
    std::env::set_current_dir(inside::WORKSPACE)
        .map_err(|error| Missing::step("a workspace", error))
}

fn etc(new: &Tree, plan: &Plan) -> Result<(), Missing> {
    let (uid, home) = (inside::UID, inside::WORKSPACE);
    let files: [(&str, String); 7] = [
        ("group", format!("sandbox:x:{uid}:\nnogroup:x:65534:\n")),
        ("hostname", "sandbox\n".to_owned()),
        ("hosts", "127.0.0.1 localhost sandbox\n".to_owned()),
        ("host.conf", "multi on\n".to_owned()),
        (
            "nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files\n".to_owned(),
        ),
        (
            "passwd",
            format!(
                "sandbox:x:{uid}:{uid}:sandbox:{home}:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n"
            ),
        ),
        ("resolv.conf", String::new()),
    ];
    new.directory(Path::new("/etc"))?;
    for (name, text) in files {
        new.file(&Path::new("/etc").join(name), &text)?;
    }
    for (path, is_directory) in &plan.etc {
        if *is_directory {
            new.directory(path)?;
        } else {
            new.file(path, "")?;
        }
        new.bind(path, path)?;
        new.restrict(path, READ_ONLY | libc::MOUNT_ATTR_NOEXEC)?;
    }
    Ok(())
}

/// One size-limited file system for everything that can be written. A zero would mean no limit to the kernel.
fn scratch(new: &Tree, limits: &Limits) -> Result<(), Missing> {
    let scratch = Path::new("/scratch");
    new.directory(scratch)?;
    new.tmpfs(
        "/scratch",
        &format!(
            "mode=755,size={},nr_inodes={}",
            limits.disk_bytes.max(1),
            limits.files.max(16)
        ),
    )?;
    new.directory(Path::new("/dev"))?;
    for (name, at, mode) in [
        ("workspace", "/workspace", 0o755),
        ("tmp", "/tmp", 0o1777),
        ("shm", "/dev/shm", 0o1777),
    ] {
        let part = scratch.join(name);
        new.directory(&part)?;
        new.permissions(&part, mode)?;
        new.directory(Path::new(at))?;
        rustix::mount::mount_bind(new.at(&part), new.at(Path::new(at)))
            .map_err(|error| Missing::step("a workspace", error))?;
    }
    let gone = |error: &dyn std::fmt::Display| Missing::step("a workspace", error);
    rustix::mount::unmount(new.at(scratch), UnmountFlags::DETACH).map_err(|error| gone(&error))?;
    fs::remove_dir(new.at(scratch)).map_err(|error| gone(&error))
}

fn devices(new: &Tree) -> Result<(), Missing> {
    for device in DEVICES {
        let path = Path::new("/dev").join(device);
        new.file(&path, "")?;
        new.bind(&path, &path)?;
        new.restrict(&path, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC)?;
    }
    for (link, target) in [
        ("fd", ""),
        ("stdin", "/0"),
        ("stdout", "/1"),
        ("stderr", "/2"),
    ] {
        new.link(
            Path::new(&format!("/proc/self/fd{target}")),
            &Path::new("/dev").join(link),
        )?;
    }
    Ok(())
}

fn proc(new: &Tree, plan: &Plan) -> Result<(), Missing> {
    let proc = Path::new("/proc");
    new.directory(proc)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("proc", new.at(proc), "proc", flags, None::<&CStr>).map_err(|error| {
        Missing::new(
            "a /proc of its own",
            error,
            "a container hides parts of /proc: run outside it, or allow it an unmasked /proc",
        )
    })?;
    let nothing = Path::new("/none");
    new.directory(nothing)?;
    for file in &plan.hidden_files {
        rustix::mount::mount_bind(new.at(Path::new("/dev/null")), new.at(&proc.join(file)))
            .map_err(|error| Missing::step("a /proc without the host", error))?;
    }
    for directory in &plan.hidden_directories {
        rustix::mount::mount_bind(new.at(nothing), new.at(&proc.join(directory)))
            .map_err(|error| Missing::step("a /proc without the host", error))?;
    }
    let settings = Path::new("/proc/sys");
    rustix::mount::mount_bind(new.at(settings), new.at(settings))
        .map_err(|error| Missing::step("a read-only /proc/sys", error))?;
    new.restrict(settings, READ_ONLY)
}

/// The tree under construction; paths are those of the sandbox.
struct Tree {
    root: PathBuf,
}

impl Tree {
    fn at(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn directory(&self, path: &Path) -> Result<(), Missing> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(self.at(path))
            .map_err(|error| Missing::step(&format!("{} in the new root", path.display()), error))
    }

    fn file(&self, path: &Path, text: &str) -> Result<(), Missing> {
        let step = |error| Missing::step(&format!("{} in the new root", path.display()), error);
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        fs::write(self.at(path), text).map_err(step)
    }

    fn permissions(&self, path: &Path, mode: u32) -> Result<(), Missing> {
        fs::set_permissions(self.at(path), fs::Permissions::from_mode(mode))
            .map_err(|error| Missing::step(&format!("{} in the new root", path.display()), error))
    }

    fn link(&self, target: &Path, link: &Path) -> Result<(), Missing> {
        symlink(target, self.at(link))
            .map_err(|error| Missing::step(&format!("{} in the new root", link.display()), error))
    }

    fn bind(&self, from: &Path, to: &Path) -> Result<(), Missing> {
        rustix::mount::mount_bind_recursive(from, self.at(to))
            .map_err(|error| Missing::rights(&format!("{} in the new root", to.display()), error))
    }

    fn restrict(&self, path: &Path, attributes: u64) -> Result<(), Missing> {
        let step = |error: std::io::Error| {
            Missing::step(&format!("a restricted {}", path.display()), error)
        };
        let at = CString::new(self.at(path).into_os_string().into_encoded_bytes())
            .map_err(|error| step(std::io::Error::other(error)))?;
        sys::restrict_mount(&at, attributes, true).map_err(step)
    }

    fn tmpfs(&self, path: &str, options: &str) -> Result<(), Missing> {
        let step =
            |error: &dyn std::fmt::Display| Missing::rights("a file system of its own", error);
        let options = CString::new(options).map_err(|error| step(&error))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount(
            "tmpfs",
            self.at(Path::new(path)),
            "tmpfs",
            flags,
            options.as_c_str(),
        )
        .map_err(|error| step(&error))
    }
}
