//! Hardening attacked from outside and inside, each in a process of its own.

#[path = "support/child.rs"]
mod child;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, Stdio};

use claviger_vault_memory::{Arena, MemoryError, Protection, SecretBytes, harden, scan};
use rustix::process::{Resource, Rlimit, setrlimit};

#[test]
fn aborting_writes_no_core_file() {
    const NAME: &str = "aborting_writes_no_core_file";
    if let Some(role) = child::role() {
        let everything = rustix::process::getrlimit(Resource::Core).maximum;
        setrlimit(
            Resource::Core,
            Rlimit {
                current: everything,
                maximum: everything,
            },
        )
        .unwrap();
        match role.to_str().unwrap() {
            "control" => {}
            "core-limit" => harden::forbid_core_files().unwrap(),
            "undumpable" => harden::forbid_debuggers().unwrap(),
            _ => drop(harden::process().unwrap()),
        }
        std::process::abort();
    }
    let dumped = |role| {
        let directory = tempfile::tempdir().unwrap();
        let output = child::command(NAME, role)
            .current_dir(directory.path())
            .output()
            .unwrap();
        assert_eq!(
            output.status.signal(),
            Some(6),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.status.core_dumped()
            || std::fs::read_dir(directory.path())
                .unwrap()
                .next()
                .is_some()
    };
    if !dumped("control") {
        println!("this system writes no core files at all: nothing to compare with");
    }
    assert!(!dumped("core-limit"));
    assert!(!dumped("undumpable"));
    assert!(!dumped("hardened"));
}

#[test]
fn another_program_of_the_same_user_reads_nothing() {
    const NAME: &str = "another_program_of_the_same_user_reads_nothing";
    const MARK: &[u8] = b"planted-in-plain-memory-of-the-target";
    match child::role().as_ref().map(|role| role.to_str().unwrap()) {
        None => child::assert_success(&mut child::command_unprivileged(NAME, "reader")),
        Some("reader") => {
            // The reader is the target's parent, which the strictest common ptrace rule still allows.
            let look = |role| {
                let mut target = child::command(NAME, role)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap();
                let mut output = BufReader::new(target.stdout.take().unwrap());
                let ready = output
                    .by_ref()
                    .lines()
                    .any(|line| line.unwrap().contains("READY"));
                assert!(ready);
                let found = scan::scan_process(target.id(), &[("mark", MARK)]);
                target.stdin.take().unwrap().write_all(b"end\n").unwrap();
                target.wait().unwrap();
                found
            };
            let control = look("plain").unwrap();
            assert!(
                control.total_hits() > 0,
                "control: without hardening the memory is readable"
            );
            assert!(matches!(look("hardened"), Err(MemoryError::System { .. })));
        }
        Some(role) => {
            if role == "hardened" {
                harden::process().unwrap();
            }
            let heap = std::hint::black_box(MARK.to_vec());
            println!("READY");
            std::io::stdin().read_line(&mut String::new()).unwrap();
            assert_eq!(heap, MARK);
        }
    }
}

#[test]
fn no_process_and_no_program_can_be_started() {
    const NAME: &str = "no_process_and_no_program_can_be_started";
    if child::role().is_none() {
        child::assert_success(&mut child::command_unprivileged(NAME, "child"));
        return child::assert_success(&mut child::command(NAME, "child"));
    }
    assert!(
        Command::new("/bin/true").status().unwrap().success(),
        "control"
    );
    let before = std::thread::spawn(|| {
        std::thread::park();
        Command::new("/bin/true")
            .status()
            .unwrap_err()
            .raw_os_error()
    });
    harden::forbid_new_processes().unwrap();
    assert_eq!(
        Command::new("/bin/true")
            .status()
            .unwrap_err()
            .raw_os_error(),
        Some(libc::EPERM)
    );
    assert_eq!(
        Command::new("/bin/true").exec().raw_os_error(),
        Some(libc::EPERM)
    );
    assert_eq!(raw(libc::SYS_clone, libc::SIGCHLD.into()), libc::EPERM);
    assert_eq!(raw(libc::SYS_clone3, 0), libc::ENOSYS);
    #[cfg(target_arch = "x86_64")]
    for call in [
        libc::SYS_fork,
        libc::SYS_vfork,
        0x4000_0000 + libc::SYS_fork,
        0x4000_0000 + 520,
    ] {
        assert_eq!(raw(call, 0), libc::EPERM, "call {call:#x}");
    }
    before.thread().unpark();
    assert_eq!(
        before.join().unwrap(),
        Some(libc::EPERM),
        "a thread that was there before"
    );
    assert_eq!(
        std::thread::spawn(|| 7).join().unwrap(),
        7,
        "threads can still be started"
    );
}

#[test]
fn no_network_socket_can_be_opened() {
    const NAME: &str = "no_network_socket_can_be_opened";
    if child::role().is_none() {
        return child::assert_success(&mut child::command(NAME, "child"));
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("control");
    let address = listener.local_addr().unwrap();
    drop(TcpStream::connect(address).expect("control"));
    harden::forbid_network().unwrap();
    let refused = |error: std::io::Error| assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    refused(TcpStream::connect(address).unwrap_err());
    refused(TcpListener::bind("127.0.0.1:0").unwrap_err());
    refused(TcpListener::bind("[::1]:0").unwrap_err());
    refused(UdpSocket::bind("127.0.0.1:0").unwrap_err());
    for family in [libc::AF_PACKET, libc::AF_NETLINK, libc::AF_VSOCK] {
        assert_eq!(
            raw(libc::SYS_socket, family.into()),
            libc::EPERM,
            "family {family}"
        );
    }
    assert_eq!(raw(libc::SYS_io_uring_setup, 1), libc::EPERM);
    drop(UnixStream::pair().unwrap());
}

#[test]
fn locked_memory_ends_with_a_clear_error_and_comes_back() {
    const NAME: &str = "locked_memory_ends_with_a_clear_error_and_comes_back";
    if child::role().is_none() {
        return child::assert_success(&mut child::command_unprivileged(NAME, "child"));
    }
    let limit = 3 * 1024 * 1024;
    setrlimit(
        Resource::Memlock,
        Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        },
    )
    .unwrap();
    let protection = Arena::global().start().unwrap();
    assert!(protection > Protection::None);
    let mut held = Vec::new();
    let error = loop {
        match SecretBytes::new_zeroed(100_000) {
            Ok(bytes) => held.push(bytes),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, MemoryError::LockLimit { limit_bytes, .. } if limit_bytes == limit),
        "{error}"
    );
    assert!(error.to_string().contains("RLIMIT_MEMLOCK"));
    assert!(held.len() > 20);
    held.pop();
    SecretBytes::new_zeroed(100_000).unwrap();
}

#[test]
fn without_any_locked_memory_the_arena_says_so() {
    const NAME: &str = "without_any_locked_memory_the_arena_says_so";
    if child::role().is_none() {
        return child::assert_success(&mut child::command_unprivileged(NAME, "child"));
    }
    setrlimit(
        Resource::Memlock,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )
    .unwrap();
    assert_eq!(harden::process().unwrap().memory, Protection::None);
    assert_eq!(
        SecretBytes::copy_of(b"still works").unwrap().expose(),
        b"still works"
    );
}

/// Makes a system call that must be refused and returns the reason.
fn raw(call: libc::c_long, argument: libc::c_long) -> i32 {
    #[expect(unsafe_code, reason = "the filter is attacked by number")]
    // SAFETY: refused before it acts; the null pointers that the other arguments are would be refused too.
    let answer = unsafe { libc::syscall(call, argument, 0, 0, 0, 0) };
    assert_eq!(answer, -1, "call {call:#x} was not refused");
    std::io::Error::last_os_error()
        .raw_os_error()
        .expect("an error of the kernel")
}
