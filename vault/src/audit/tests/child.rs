//! The log under a process that is killed, and on a disk that is full.

use std::io::{BufRead as _, BufReader};

use super::*;

const DIRECTORY: &str = "CLAVIGER_TEST_AUDIT";

/// This test binary, running one test again as a child with a log in `directory`.
fn again(test: &str, directory: &Path, program: &[&str]) -> Command {
    let this = std::env::current_exe().unwrap();
    let mut command = match program {
        [] => Command::new(&this),
        [shell, rest @ ..] => {
            let mut command = Command::new(shell);
            command.args(rest).arg(&this);
            command
        }
    };
    command.args([
        "--exact",
        &format!("audit::tests::child::{test}"),
        "--nocapture",
        "--test-threads=1",
    ]);
    command
        .env(DIRECTORY, directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn directory_of_child() -> Option<PathBuf> {
    std::env::var_os(DIRECTORY).map(PathBuf::from)
}

/// Appends until killed, from several tasks, and tells each acknowledged number.
fn append_for_ever(directory: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    runtime.block_on(async {
        let opened = AuditLog::open(Options {
            segment_bytes: 100_000,
            ..signed(directory)
        })
        .unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..8 {
            let log = opened.log.clone();
            tasks.spawn(async move {
                for number in task * 1_000_000.. {
                    let seq = log.append(intent(number)).await.unwrap().seq;
                    println!("ACK {seq} credential-{number} END");
                }
            });
        }
        tasks.join_all().await;
    });
}

#[test]
fn killed_at_any_moment_no_acknowledged_record_is_lost() {
    if let Some(directory) = directory_of_child() {
        return append_for_ever(&directory);
    }
    let home = tempfile::tempdir().unwrap();
    let mut acknowledged: Vec<(u64, String)> = Vec::new();
    for round in 0..20u64 {
        let mut child = again(
            "killed_at_any_moment_no_acknowledged_record_is_lost",
            home.path(),
            &[],
        )
        .spawn()
        .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let until = acknowledged.len() + usize::try_from(1 + round * 37 % 400).unwrap();
        for line in lines {
            let line = line.unwrap();
            let Some((_, told)) = line.split_once("ACK ") else {
                continue;
            };
            // The last line may be torn by the kill itself.
            if let Some(told) = told.strip_suffix(" END") {
                let (seq, name) = told.split_once(' ').unwrap();
                acknowledged.push((seq.parse().unwrap(), name.to_owned()));
            }
            if acknowledged.len() == until {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(acknowledged.len() >= until, "the child ended by itself");
        let records = read(home.path(), 0, usize::MAX).unwrap();
        for (seq, name) in &acknowledged {
            let record = &records[usize::try_from(*seq).unwrap() - 1];
            assert_eq!(
                record.entry.credential_name.as_ref().unwrap().as_str(),
                name,
                "round {round}"
            );
        }
        drop(AuditLog::open(signed(home.path())).unwrap());
        let verdict = is_whole(home.path());
        assert_eq!(
            (verdict.uncovered, verdict.pending_bytes),
            (0, 0),
            "round {round}"
        );
    }
    println!(
        "audit: 20 kills, {} acknowledged records, none lost",
        acknowledged.len()
    );
}

#[test]
fn on_a_full_disk_nothing_is_acknowledged_any_more() {
    if let Some(directory) = directory_of_child() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        return runtime.block_on(async {
            let opened = AuditLog::open(signed(&directory)).unwrap();
            let mut acknowledged = 0;
            let error = loop {
                match opened.log.append(intent(acknowledged)).await {
                    Ok(_) => acknowledged += 1,
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, AuditError::Failed { .. }), "{error}");
            for _ in 0..3 {
                assert!(matches!(
                    opened.log.append(intent(0)).await,
                    Err(AuditError::Failed { .. })
                ));
                assert!(matches!(
                    opened.log.append_lazy(intent(0)).await,
                    Err(AuditError::Failed { .. })
                ));
            }
            assert!(opened.log.status().failed.is_some());
            println!("ACKNOWLEDGED {acknowledged} END");
        });
    }
    let home = tempfile::tempdir().unwrap();
    // 24 KiB a file; the signal that the limit sends is ignored, so that writing answers an error.
    let limited = ["sh", "-c", "trap '' XFSZ; ulimit -f 48; exec \"$0\" \"$@\""];
    let output = again(
        "on_a_full_disk_nothing_is_acknowledged_any_more",
        home.path(),
        &limited,
    )
    .output()
    .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let (_, rest) = text.split_once("ACKNOWLEDGED ").unwrap();
    let acknowledged: u64 = rest.split(' ').next().unwrap().parse().unwrap();
    assert!(acknowledged > 10);
    // With room again: every acknowledged record is there, the torn one is cut, writing goes on.
    let opened = AuditLog::open(signed(home.path())).unwrap();
    assert!(opened.torn_bytes > 0 || opened.uncovered > 0);
    drop(opened);
    let verdict = is_whole(home.path());
    assert!(verdict.records > acknowledged);
    assert_eq!(
        read(home.path(), 0, usize::MAX)
            .unwrap()
            .last()
            .unwrap()
            .entry
            .op,
        Op::Recover
    );
}
