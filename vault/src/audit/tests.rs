use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use claviger_vault_memory::SecretBytes;
use tempfile::TempDir;

use super::*;
use crate::cipher::SigningKey;

mod child;
mod surgery;

fn signer_of(byte: u8) -> Signer {
    let seed = SecretBytes::copy_of(&[byte; 32]).unwrap();
    Signer::new("claviger/test", SigningKey::from_seed(seed).unwrap()).unwrap()
}

fn signed(directory: &Path) -> Options {
    Options {
        signer: Some(signer_of(1)),
        ..Options::new(directory)
    }
}

fn intent(number: usize) -> Entry {
    Entry {
        session: Some(Label::new("sesn_1")),
        credential_name: Some(Label::new(&format!("credential-{number}"))),
        destination: Some(Destination {
            scheme: "https".into(),
            host: "api.example.com".into(),
            port: 443,
        }),
        method: Some("POST".into()),
        path: Some(Entry::path_of("/v1/messages?beta=true")),
        digest: Some(Digest([7; 32])),
        decision: Decision::Allow,
        ..Entry::new(Kind::Intent, Op::AuthorizeUse)
    }
}

/// A signed log of `records`, each with its own checkpoint.
async fn log_of(records: usize) -> TempDir {
    let home = tempfile::tempdir().unwrap();
    let opened = AuditLog::open(signed(home.path())).unwrap();
    for number in 0..records {
        opened.log.append(intent(number)).await.unwrap();
    }
    drop(opened);
    home
}

fn pinned() -> VerifyOptions {
    VerifyOptions {
        vkey: Some(signer_of(1).vkey().clone()),
        ..VerifyOptions::default()
    }
}

fn is_whole(directory: &Path) -> Verdict {
    let verdict = verify(directory, &pinned()).unwrap();
    assert_eq!(verdict.integrity, Integrity::Ok);
    verdict
}

#[tokio::test]
async fn appended_records_are_numbered_chained_signed_and_read_back() {
    let home = tempfile::tempdir().unwrap();
    let opened = AuditLog::open(signed(home.path())).unwrap();
    let log = opened.log.clone();
    for number in 0..5 {
        assert_eq!(
            log.append(intent(number)).await.unwrap().seq,
            number as u64 + 1
        );
    }
    let first = read(home.path(), 0, 1).unwrap().remove(0);
    let outcome = Entry {
        status: Some(200),
        ..Entry::outcome_of(&first, Outcome::Ok)
    };
    assert_eq!(log.append_lazy(outcome).await.unwrap().seq, 6);
    assert_eq!(
        read(home.path(), 4, 10).unwrap().len(),
        2,
        "lazy records are written when they are answered"
    );
    drop(opened);
    let records = read(home.path(), 0, 100).unwrap();
    assert_eq!(records.len(), 6);
    assert_eq!(
        records[0].entry.path.as_ref().unwrap().as_str(),
        "/v1/messages"
    );
    assert_eq!(records[5].entry.intent, Some(1));
    assert!(
        records
            .windows(2)
            .all(|pair| pair[0].mono_ns <= pair[1].mono_ns && pair[0].ts <= pair[1].ts)
    );
    assert_eq!(records[0].ts.len(), "2026-11-22T10:00:00.000000001Z".len());
    let verdict = is_whole(home.path());
    assert_eq!(
        (
            verdict.records,
            verdict.checkpointed,
            verdict.uncovered,
            verdict.open_intents
        ),
        (6, 6, 0, 4)
    );
    assert_eq!(
        (verdict.key, verdict.completeness),
        (KeyTrust::Pinned, Completeness::Unproven)
    );
    assert_eq!(
        verify(home.path(), &VerifyOptions::default()).unwrap().key,
        KeyTrust::Unpinned
    );
}

#[tokio::test]
async fn a_record_with_hostile_text_stays_one_line() {
    let home = tempfile::tempdir().unwrap();
    let opened = AuditLog::open(signed(home.path())).unwrap();
    let hostile = "x\"}\n{\"v\":1,\"seq\":2}\n\u{2028}";
    opened
        .log
        .append(Entry {
            tool: Some(hostile.into()),
            ..Entry::new(Kind::Intent, Op::Put)
        })
        .await
        .unwrap();
    drop(opened);
    assert_eq!(read(home.path(), 0, 9).unwrap().len(), 1);
    assert_eq!(is_whole(home.path()).records, 1);
}

#[tokio::test]
async fn while_sealed_records_are_chained_and_the_first_checkpoint_covers_them() {
    let home = tempfile::tempdir().unwrap();
    let opened = AuditLog::open(Options::new(home.path())).unwrap();
    for number in 0..3 {
        opened.log.append(intent(number)).await.unwrap();
    }
    let verdict = verify(home.path(), &VerifyOptions::default()).unwrap();
    assert_eq!(
        (verdict.checkpointed, verdict.uncovered, verdict.integrity),
        (0, 3, Integrity::Ok)
    );
    assert!(!opened.log.status().is_signed);
    opened.log.install_signer(signer_of(1)).unwrap();
    drop(opened);
    assert_eq!(is_whole(home.path()).checkpointed, 3);
    // Opened sealed again, with checkpoints there.
    let opened = AuditLog::open(Options::new(home.path())).unwrap();
    opened.log.append(intent(4)).await.unwrap();
    assert!(matches!(
        opened.log.install_signer(signer_of(2)),
        Err(AuditError::OtherKey)
    ));
    opened.log.install_signer(signer_of(1)).unwrap();
    drop(opened);
    assert_eq!(is_whole(home.path()).checkpointed, 4);
}

#[tokio::test]
async fn a_log_signed_by_another_key_is_not_continued() {
    let home = log_of(2).await;
    let other = Options {
        signer: Some(signer_of(2)),
        ..Options::new(home.path())
    };
    assert!(matches!(
        AuditLog::open(other),
        Err(AuditError::Tampered { .. } | AuditError::OtherKey)
    ));
    std::fs::remove_file(home.path().join("vkey")).unwrap();
    let other = Options {
        signer: Some(signer_of(2)),
        ..Options::new(home.path())
    };
    assert!(matches!(
        AuditLog::open(other),
        Err(AuditError::Tampered { .. })
    ));
}

#[tokio::test]
async fn segments_follow_each_other_and_none_can_be_missing() {
    let home = tempfile::tempdir().unwrap();
    let small = |signer| Options {
        segment_bytes: 2000,
        signer,
        ..Options::new(home.path())
    };
    for round in 0..3 {
        let opened = AuditLog::open(small(Some(signer_of(1)))).unwrap();
        for number in 0..10 {
            opened
                .log
                .append(intent(round * 10 + number))
                .await
                .unwrap();
        }
    }
    let segments = segment::list(home.path()).unwrap();
    assert!(segments.len() > 4, "{segments:?}");
    assert_eq!(is_whole(home.path()).records, 30);
    assert_eq!(read(home.path(), 0, 100).unwrap().len(), 30);
    assert_eq!(read(home.path(), 17, 5).unwrap()[0].seq, 18);
    for (index, gone) in segments.iter().enumerate() {
        let bytes = std::fs::read(&gone.path).unwrap();
        std::fs::remove_file(&gone.path).unwrap();
        let verdict = verify(home.path(), &pinned()).unwrap();
        assert!(
            matches!(verdict.integrity, Integrity::FirstBad { seq, .. } if seq == gone.first),
            "{index}: {verdict:?}"
        );
        assert!(
            matches!(AuditLog::open(small(None)), Err(AuditError::Tampered { seq, .. }) if seq == gone.first),
            "{index}"
        );
        std::fs::write(&gone.path, bytes).unwrap();
    }
    is_whole(home.path());
}

#[tokio::test]
async fn a_follower_gets_every_record_once_across_segments() {
    let home = tempfile::tempdir().unwrap();
    let opened = AuditLog::open(Options {
        segment_bytes: 1500,
        ..signed(home.path())
    })
    .unwrap();
    let mut follower = Follower::new(home.path(), 0);
    assert!(follower.poll(10).unwrap().is_empty());
    let mut seen = Vec::new();
    for number in 0..20 {
        opened.log.append(intent(number)).await.unwrap();
        if number % 3 == 0 {
            seen.extend(
                follower
                    .poll(2)
                    .unwrap()
                    .into_iter()
                    .map(|record| record.seq),
            );
        }
    }
    seen.extend(
        follower
            .poll(100)
            .unwrap()
            .into_iter()
            .map(|record| record.seq),
    );
    assert_eq!(seen, (1..=20).collect::<Vec<_>>());
    assert!(follower.poll(100).unwrap().is_empty());
}

#[tokio::test]
async fn intents_without_outcome_are_handed_back_at_opening() {
    let home = log_of(3).await;
    let opened = AuditLog::open(signed(home.path())).unwrap();
    assert_eq!(
        opened
            .open_intents
            .iter()
            .map(|record| record.seq)
            .collect::<Vec<_>>(),
        [1, 2, 3]
    );
    opened
        .log
        .append(Entry::outcome_of(&opened.open_intents[1], Outcome::Unknown))
        .await
        .unwrap();
    drop(opened);
    let opened = AuditLog::open(signed(home.path())).unwrap();
    assert_eq!(
        opened
            .open_intents
            .iter()
            .map(|record| record.seq)
            .collect::<Vec<_>>(),
        [1, 3]
    );
    assert_eq!((opened.torn_bytes, opened.uncovered), (0, 0));
}

#[tokio::test]
async fn only_one_process_writes() {
    let home = log_of(1).await;
    let _opened = AuditLog::open(signed(home.path())).unwrap();
    assert!(matches!(
        AuditLog::open(signed(home.path())),
        Err(AuditError::InUse { .. })
    ));
}

#[tokio::test]
async fn a_torn_end_after_the_last_checkpoint_is_cut_and_recorded() {
    let home = log_of(3).await;
    let segment = segment::list(home.path()).unwrap().remove(0).path;
    let whole = std::fs::read(&segment).unwrap();
    let torn = [whole.as_slice(), b"{\"v\":1,\"seq\":4,\"ts\""].concat();
    std::fs::write(&segment, torn).unwrap();
    let verdict = is_whole(home.path());
    assert_eq!((verdict.records, verdict.pending_bytes), (3, 19));
    let opened = AuditLog::open(signed(home.path())).unwrap();
    assert_eq!(opened.torn_bytes, 19);
    drop(opened);
    let record = read(home.path(), 3, 9).unwrap().remove(0);
    assert_eq!(
        (record.seq, record.entry.op, record.entry.bytes),
        (4, Op::Recover, Some(19))
    );
    assert_eq!(is_whole(home.path()).checkpointed, 4);
    // The same tear inside what a checkpoint covers is no accident.
    std::fs::write(&segment, &whole[..whole.len() - 5]).unwrap();
    assert!(matches!(
        AuditLog::open(signed(home.path())),
        Err(AuditError::Tampered { seq: 3, .. })
    ));
}

#[tokio::test]
async fn records_whose_checkpoint_was_lost_are_kept_and_counted() {
    let home = log_of(4).await;
    let path = home.path().join("checkpoints");
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    // Two whole notes and half of the third.
    std::fs::write(&path, lines[..12].concat()).unwrap();
    let opened = AuditLog::open(signed(home.path())).unwrap();
    assert_eq!(opened.uncovered, 2);
    assert!(opened.torn_bytes > 0);
    drop(opened);
    let verdict = is_whole(home.path());
    assert_eq!((verdict.records, verdict.checkpointed), (5, 5));
}

#[tokio::test]
async fn a_log_behind_what_the_store_remembers_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let opened = AuditLog::open(signed(home.path())).unwrap();
    opened.log.append(intent(0)).await.unwrap();
    let earlier = snapshot(home.path());
    opened.log.append(intent(1)).await.unwrap();
    let known = *opened.log.durable_head().borrow();
    assert_eq!(known.size, 2);
    drop(opened);
    let at = |expected_head| Options {
        expected_head: Some(expected_head),
        ..signed(home.path())
    };
    drop(AuditLog::open(at(known)).unwrap());
    let forged = Head {
        leaf: [0; 32],
        ..known
    };
    assert!(matches!(
        AuditLog::open(at(forged)),
        Err(AuditError::RolledBack { known: 2, .. })
    ));
    restore(home.path(), &earlier);
    assert!(matches!(
        AuditLog::open(at(known)),
        Err(AuditError::RolledBack { known: 2, found: 1 })
    ));
}

#[tokio::test]
async fn cutting_back_to_an_earlier_checkpoint_needs_outside_knowledge_to_be_seen() {
    let home = tempfile::tempdir().unwrap();
    let opened = AuditLog::open(signed(home.path())).unwrap();
    opened.log.append(intent(0)).await.unwrap();
    let earlier = snapshot_closed(home.path(), 1).await;
    opened.log.append(intent(1)).await.unwrap();
    let known = *opened.log.durable_head().borrow();
    drop(opened);
    let notes = std::fs::read_to_string(home.path().join("checkpoints")).unwrap();
    let lines: Vec<&str> = notes.split_inclusive('\n').collect();
    let newest = lines[lines.len() - 5..].concat();
    let knowing_head = VerifyOptions {
        expected_head: Some(known),
        ..pinned()
    };
    let knowing_note = VerifyOptions {
        since: Some(newest),
        ..pinned()
    };
    for options in [&knowing_head, &knowing_note] {
        let verdict = verify(home.path(), options).unwrap();
        assert!(verdict.is_ok());
        assert_eq!(verdict.completeness, Completeness::Complete { known: 2 });
    }
    restore(home.path(), &earlier);
    let unknowing = verify(home.path(), &pinned()).unwrap();
    assert_eq!(
        (unknowing.integrity, unknowing.completeness),
        (Integrity::Ok, Completeness::Unproven)
    );
    for options in [&knowing_head, &knowing_note] {
        let verdict = verify(home.path(), options).unwrap();
        assert_eq!(
            verdict.completeness,
            Completeness::Truncated { known: 2, found: 1 }
        );
        assert!(!verdict.is_ok());
    }
}

#[tokio::test]
async fn many_callers_share_one_sync() {
    const CALLERS: usize = 256;
    let home = tempfile::tempdir().unwrap();
    let mut file = std::fs::File::create(home.path().join("raw")).unwrap();
    let raw_start = Instant::now();
    for _ in 0..50 {
        file.write_all(&[b'x'; 400]).unwrap();
        file.sync_data().unwrap();
    }
    let raw = raw_start.elapsed() / 50;
    let opened = AuditLog::open(signed(&home.path().join("audit"))).unwrap();
    let start = Instant::now();
    for number in 0..50 {
        opened.log.append(intent(number)).await.unwrap();
    }
    let single = start.elapsed() / 50;
    let start = Instant::now();
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..CALLERS {
        let log = opened.log.clone();
        callers.spawn(async move {
            for number in 0..20 {
                log.append(intent(caller * 100 + number)).await.unwrap();
            }
        });
    }
    callers.join_all().await;
    let rate = (CALLERS * 20) as f64 / start.elapsed().as_secs_f64();
    drop(opened);
    println!(
        "audit: fdatasync {raw:?}, one caller {single:?} a record, {CALLERS} callers {rate:.0} records/s"
    );
    let verdict = is_whole(&home.path().join("audit"));
    assert_eq!(verdict.records, 50 + 20 * CALLERS as u64);
    assert!(
        rate * raw.as_secs_f64() > 2.0,
        "records do not share syncs: {rate:.0}/s at {raw:?} each"
    );
}

/// All files of a directory.
fn snapshot(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect()
}

/// The same, once the checkpoint of record `size` is there.
async fn snapshot_closed(directory: &Path, size: u64) -> Vec<(PathBuf, Vec<u8>)> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while verify(directory, &pinned()).unwrap().checkpointed < size {
        assert!(Instant::now() < deadline, "no checkpoint");
        tokio::task::yield_now().await;
    }
    snapshot(directory)
}

fn restore(directory: &Path, files: &[(PathBuf, Vec<u8>)]) {
    for (path, _) in snapshot(directory) {
        std::fs::remove_file(path).unwrap();
    }
    for (path, bytes) in files {
        std::fs::write(path, bytes).unwrap();
    }
}
