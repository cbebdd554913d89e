//! The architecture, checked: which crate may know which, what a role's build links, what may be in
//! the lock file, where secrets are opened and where unsafe code stands.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test panics where it fails and says what it skipped"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Allowed arrows between our packages; no other may exist.
const ARROWS: [(&str, &[&str]); 9] = [
    (
        "claviger",
        &[
            "claviger-api",
            "claviger-harness",
            "claviger-mcp-tools",
            "claviger-sandbox",
            "claviger-session",
            "claviger-vault",
            "claviger-vault-memory",
            "claviger-vault-protocol",
        ],
    ),
    (
        "claviger-api",
        &["claviger-session", "claviger-vault-protocol"],
    ),
    (
        "claviger-harness",
        &[
            "claviger-sandbox",
            "claviger-session",
            "claviger-vault-protocol",
        ],
    ),
    (
        "claviger-mcp-tools",
        &[
            "claviger-sandbox",
            "claviger-vault-memory",
            "claviger-vault-protocol",
        ],
    ),
    ("claviger-sandbox", &[]),
    ("claviger-session", &[]),
    (
        "claviger-vault",
        &["claviger-vault-memory", "claviger-vault-protocol"],
    ),
    ("claviger-vault-memory", &[]),
    ("claviger-vault-protocol", &["claviger-vault-memory"]),
];

/// What a binary with one role links of ours, and what it must not link of others'. Every binary
/// has the wiping allocator of `vault/memory`.
const ROLES: [(&str, &[&str], &[&str]); 6] = [
    (
        "api",
        &[
            "claviger-api",
            "claviger-session",
            "claviger-vault-protocol",
        ],
        &["rustls", "tokio-rustls", "reqwest", "landlock"],
    ),
    (
        "hands",
        &["claviger-sandbox"],
        &[
            "axum", "h2", "hpke", "hyper", "reqwest", "ring", "rmcp", "rusqlite", "rustls",
        ],
    ),
    (
        "harness",
        &[
            "claviger-harness",
            "claviger-sandbox",
            "claviger-session",
            "claviger-vault-protocol",
        ],
        &[
            "axum",
            "rustls",
            "tokio-rustls",
            "reqwest",
            "rustls-native-certs",
        ],
    ),
    (
        "session",
        &["claviger-session"],
        &[
            "axum", "h2", "hpke", "hyper", "landlock", "reqwest", "rmcp", "rustls",
        ],
    ),
    (
        "tools",
        &[
            "claviger-mcp-tools",
            "claviger-sandbox",
            "claviger-vault-protocol",
        ],
        &["rusqlite", "reqwest", "argon2"],
    ),
    (
        "vault",
        &["claviger-vault", "claviger-vault-protocol"],
        &[
            "axum",
            "h2",
            "hyper",
            "hyper-util",
            "landlock",
            "reqwest",
            "rustls",
            "tokio-rustls",
        ],
    ),
];

/// Tools that a build must not need: Rust and a C compiler are enough.
const BANNED: [&str; 8] = [
    "aws-lc-rs",
    "aws-lc-sys",
    "bindgen",
    "cmake",
    "native-tls",
    "openssl",
    "openssl-src",
    "openssl-sys",
];

/// Crates that look for installed libraries are build dependencies of SQLite's bindings alone, which
/// never call them when they compile the SQLite that they bring.
const PROBES: [&str; 2] = ["pkg-config", "vcpkg"];
const PROBES_OF: &str = "libsqlite3-sys";

const MAX_PACKAGES: usize = 500;

/// Licences that need nothing from who ships a binary but a notice.
const LICENCES: [&str; 9] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];

/// The rooms where a secret's bytes are opened.
const ROOMS: [&str; 16] = [
    // The type itself, and HPKE over it.
    "vault/memory/src/secret_bytes.rs",
    "vault/protocol/src/sealed.rs",
    // The vault: encryption, the forms of a value, keys, seals.
    "vault/src/cipher.rs",
    "vault/src/credential/check.rs",
    "vault/src/keys.rs",
    "vault/src/seal.rs",
    "vault/src/seal/",
    "vault/src/store.rs",
    // Where a use is made, and what must not come back.
    "mcp-tools/src/inject.rs",
    "mcp-tools/src/spend.rs",
    // Cut out of a request before a parser sees it.
    "api/src/secret_field.rs",
    // Read from a person or stdin, sealed to the vault; the demo's own keys.
    "cli/src/command/init.rs",
    "cli/src/command/secret.rs",
    "cli/src/demo/leaks.rs",
    "cli/src/demo/play.rs",
    // What roles by themselves prove who they are with.
    "cli/src/role_key.rs",
];

/// Crates that may open `unsafe_code`, and the only files of theirs that may.
const UNSAFE_ROOMS: [(&str, &[&str]); 2] = [
    (
        "sandbox",
        &[
            "sandbox/src/lib.rs",
            "sandbox/src/sys.rs",
            "sandbox/src/sys/",
        ],
    ),
    ("vault/memory", &["vault/memory/"]),
];

const MAX_LINES: usize = 600;
const LONG_LINES: usize = 400;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap()
}

fn output(program: &str, arguments: &[&str]) -> String {
    let done = Command::new(program)
        .args(arguments)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8(done.stdout).unwrap()
}

fn metadata() -> Value {
    let version = output("rustc", &["-vV"]);
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .unwrap();
    let text = output(
        env!("CARGO"),
        &[
            "metadata",
            "--offline",
            "--locked",
            "--filter-platform",
            host,
            "--format-version",
            "1",
        ],
    );
    serde_json::from_str(&text).unwrap()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("")
}

fn array<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// Our packages: name to metadata.
fn ours(metadata: &Value) -> BTreeMap<String, Value> {
    array(metadata, "packages")
        .iter()
        .filter(|package| package["source"].is_null())
        .map(|package| (text(package, "name").to_owned(), package.clone()))
        .collect()
}

/// Names of the packages of a normal build of `claviger` with one feature.
fn linked(feature: &str) -> BTreeSet<String> {
    let tree = output(
        env!("CARGO"),
        &[
            "tree",
            "--offline",
            "--locked",
            "-p",
            "claviger",
            "--no-default-features",
            "--features",
            feature,
            "-e",
            "normal",
            "--prefix",
            "none",
        ],
    );
    tree.lines()
        .filter_map(|line| line.split(' ').next())
        .map(ToOwned::to_owned)
        .collect()
}

/// Every Rust file of ours: its path from the root, its text.
fn sources() -> Vec<(String, String)> {
    let root = root();
    let (mut found, mut rest) = (Vec::new(), vec![root.clone()]);
    while let Some(directory) = rest.pop() {
        for entry in std::fs::read_dir(&directory).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_str().unwrap();
            if entry.file_type().unwrap().is_dir() {
                if name != "target" && !name.starts_with('.') {
                    rest.push(path);
                }
            } else if Path::new(name)
                .extension()
                .is_some_and(|extension| extension == "rs")
            {
                let relative = path
                    .strip_prefix(&root)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                found.push((relative, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn is_test_file(path: &str) -> bool {
    path.starts_with("tests/")
        || path.contains("/tests/")
        || path.ends_with("/tests.rs")
        || path.ends_with("/testing.rs")
        || path.contains("/testing/")
        || path.contains("/benches/")
        || path.contains("/fuzz/")
}

/// A file's text without its inline tests, which stand last.
fn without_tests(text: &str) -> &str {
    text.find("\n#[cfg(test)]\nmod ")
        .map_or(text, |start| text.get(..start).unwrap_or(text))
}

#[test]
fn only_the_allowed_arrows_exist() {
    let packages = ours(&metadata());
    let named: BTreeSet<&str> = packages.keys().map(String::as_str).collect();
    let known: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    assert_eq!(named, known, "every package of the workspace has its row");
    for (name, allowed) in ARROWS {
        for dependency in array(&packages[name], "dependencies") {
            let target = text(dependency, "name");
            // Tests may use what the crate may use, and themselves with another feature.
            if named.contains(target) && target != name {
                assert!(
                    allowed.contains(&target),
                    "{name} -> {target} is no allowed arrow"
                );
            }
        }
    }
}

#[test]
fn users_of_the_sandbox_know_its_client_and_handover_only() {
    for (path, text) in sources() {
        if !path.starts_with("harness/") && !path.starts_with("mcp-tools/") {
            continue;
        }
        for room in ["hands", "doctor", "sys", "namespaces", "zygote"] {
            assert!(
                !text.contains(&format!("claviger_sandbox::{room}")),
                "{path} uses claviger_sandbox::{room}"
            );
        }
    }
}

#[test]
fn a_binary_with_one_role_links_that_role_alone() {
    let packages = ours(&metadata());
    for (role, own, foreign) in ROLES {
        let linked = linked(role);
        let linked_own: BTreeSet<&str> = linked
            .iter()
            .map(String::as_str)
            .filter(|name| packages.contains_key(*name))
            .collect();
        let mut expected: BTreeSet<&str> = own.iter().copied().collect();
        expected.extend(["claviger", "claviger-vault-memory"]);
        assert_eq!(
            linked_own, expected,
            "packages of ours in a build with only {role}"
        );
        for name in foreign {
            assert!(
                !linked.contains(*name),
                "a build with only {role} links {name}"
            );
        }
    }
}

#[test]
fn the_build_needs_rust_and_a_c_compiler_and_nothing_else() {
    let metadata = metadata();
    let names: BTreeMap<&str, &str> = array(&metadata, "packages")
        .iter()
        .map(|package| (text(package, "id"), text(package, "name")))
        .collect();
    for name in names.values() {
        assert!(!BANNED.contains(name), "{name} is in the build");
    }
    for node in array(&metadata["resolve"], "nodes") {
        let parent = names[text(node, "id")];
        for id in array(node, "dependencies") {
            let name = names[id.as_str().unwrap()];
            assert!(
                !PROBES.contains(&name) || parent == PROBES_OF,
                "{parent} depends on {name}"
            );
        }
    }
    let sqlite = array(&metadata["resolve"], "nodes")
        .iter()
        .find(|node| names[text(node, "id")] == PROBES_OF)
        .unwrap();
    assert!(
        array(sqlite, "features").contains(&Value::from("bundled")),
        "SQLite comes from its own source"
    );
}

#[test]
fn the_lock_file_stays_within_its_budget_and_its_registry() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let packages = lock.matches("[[package]]").count();
    println!("packages in the lock file: {packages} of {MAX_PACKAGES}");
    assert!(packages > 100, "the lock file was read");
    assert!(
        packages <= MAX_PACKAGES,
        "{packages} packages in the lock file"
    );
    let sources: BTreeSet<&str> = lock
        .lines()
        .filter(|line| line.starts_with("source = "))
        .collect();
    assert_eq!(sources.len(), 1, "one registry: {sources:?}");
    let only = sources.first().unwrap();
    assert!(only.starts_with("source = \"registry+"), "{only}");
}

#[test]
fn every_licence_is_on_the_list() {
    for package in array(&metadata(), "packages") {
        let licence = text(package, "license");
        assert!(
            is_allowed(licence),
            "{} has the licence '{licence}'",
            text(package, "name")
        );
    }
    assert!(!is_allowed("GPL-3.0-only"));
    assert!(!is_allowed("MIT AND GPL-3.0-only"));
    assert!(!is_allowed(""));
    assert!(is_allowed("(MIT OR GPL-3.0-only) AND ISC"));
}

/// Whether an SPDX expression can be satisfied by licences on the list.
fn is_allowed(expression: &str) -> bool {
    let expression = expression.trim().replace('/', " OR ");
    split(&expression, " AND ").iter().all(|part| {
        split(part, " OR ").iter().any(|one| {
            let one = one.trim();
            one.strip_prefix('(')
                .and_then(|inner| inner.strip_suffix(')'))
                .map_or_else(
                    || {
                        LICENCES.contains(
                            &one.split_whitespace()
                                .collect::<Vec<_>>()
                                .join(" ")
                                .as_str(),
                        )
                    },
                    is_allowed,
                )
        })
    })
}

/// Splits at a separator outside parentheses.
fn split(text: &str, separator: &str) -> Vec<String> {
    let (mut parts, mut depth, mut current) = (vec![], 0, String::new());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if depth == 0
            && let Some(after) = rest.strip_prefix(separator)
        {
            parts.push(std::mem::take(&mut current));
            rest = after;
            continue;
        }
        match first {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        current.push(first);
        rest = rest.get(first.len_utf8()..).unwrap_or("");
    }
    parts.push(current);
    parts
}

#[test]
fn unsafe_code_stands_in_its_rooms_only() {
    let sources = sources();
    for (name, package) in ours(&metadata()) {
        let manifest = Path::new(text(&package, "manifest_path"))
            .parent()
            .unwrap()
            .to_owned();
        let folder = manifest
            .strip_prefix(root())
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let (_, lib) = sources
            .iter()
            .find(|(path, _)| *path == format!("{folder}/src/lib.rs"))
            .unwrap();
        let opened = UNSAFE_ROOMS.iter().any(|(room, _)| *room == folder);
        let wanted = if opened {
            "#![deny(unsafe_code)]"
        } else {
            "#![forbid(unsafe_code)]"
        };
        assert!(lib.contains(wanted), "{name} says {wanted}");
    }
    for (path, text) in &sources {
        let opens = code(text).any(|line| {
            line.contains("unsafe {") || line.contains("unsafe impl") || line.contains("unsafe fn")
        });
        let allowed = UNSAFE_ROOMS
            .iter()
            .flat_map(|(_, rooms)| rooms.iter())
            .any(|room| path.starts_with(room));
        assert!(
            !opens || allowed || path == "tests/architecture.rs",
            "{path} has unsafe code"
        );
    }
}

/// Lines that are not comments.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
}

#[test]
fn secrets_are_opened_in_their_rooms_only() {
    let mut rooms_used: BTreeSet<&str> = BTreeSet::new();
    for (path, text) in sources() {
        if is_test_file(&path) {
            continue;
        }
        let text = without_tests(&text);
        let opens = code(text).any(|line| {
            line.contains(".expose()")
                || line.contains(".expose_mut()")
                || line.contains("expose_secret")
        });
        let room = ROOMS.iter().find(|room| path.starts_with(**room));
        if opens {
            assert!(room.is_some(), "{path} opens a secret outside the rooms");
            rooms_used.extend(room.copied());
        }
        if text.contains("clippy::disallowed_methods") {
            assert!(
                room.is_some() || path.starts_with("cli/src/"),
                "{path} opens a disallowed method"
            );
        }
    }
    let idle: Vec<&str> = ROOMS
        .iter()
        .copied()
        .filter(|room| !rooms_used.contains(room))
        .collect();
    assert!(idle.is_empty(), "rooms without a use close: {idle:?}");
}

#[test]
fn nothing_is_left_for_later() {
    // Spelt apart, so that this file does not find itself.
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("#[ig", "nore"),
        concat!("todo", "!("),
        concat!("unimplemen", "ted!("),
    ];
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            for word in words {
                assert!(!line.contains(word), "{path}:{}: {word}", number + 1);
            }
        }
    }
}

#[test]
fn every_file_is_one_idea() {
    let mut long = Vec::new();
    for (path, text) in sources() {
        assert!(
            !path.ends_with("/mod.rs"),
            "{path}: modules are foo.rs + foo/bar.rs"
        );
        if is_test_file(&path) {
            continue;
        }
        let lines = without_tests(&text).lines().count();
        if lines > LONG_LINES {
            println!("long: {path} has {lines} lines");
        }
        if lines > MAX_LINES {
            long.push(format!("{path} ({lines})"));
        }
    }
    assert!(long.is_empty(), "over {MAX_LINES} lines: {long:?}");
}
