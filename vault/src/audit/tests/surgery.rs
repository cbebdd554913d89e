//! The log attacked by whoever can write its directory.

use super::*;

const RECORDS: usize = 50;

fn lines(path: &Path) -> Vec<Vec<u8>> {
    std::fs::read(path)
        .unwrap()
        .split_inclusive(|byte| *byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect()
}

/// Writes records anew from `from` on, as somebody would who knows the format but not the key.
fn chained(mut lines: Vec<Vec<u8>>, from: usize) -> Vec<Vec<u8>> {
    for index in from..lines.len() {
        let mut record: Record = serde_json::from_slice(lines[index].trim_ascii_end()).unwrap();
        record.seq = index as u64 + 1;
        record.prev = Digest(index.checked_sub(1).map_or([0; 32], |before| {
            merkle::leaf(lines[before].trim_ascii_end())
        }));
        lines[index] = [serde_json::to_vec(&record).unwrap(), b"\n".to_vec()].concat();
    }
    lines
}

fn altered(line: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(line).unwrap();
    let other = text.replacen("\"allow\"", "\"deny\"", 1);
    assert_ne!(text, other);
    other.into_bytes()
}

/// Every edit of every record: name of the edit, the lines after it, number of the first bad record.
fn edits(whole: &[Vec<u8>]) -> Vec<(String, Vec<Vec<u8>>, u64)> {
    let mut edits = Vec::new();
    for index in 0..whole.len() {
        let seq = index as u64 + 1;
        let mut add = |name: &str, edit: &dyn Fn(&mut Vec<Vec<u8>>), bad: u64| {
            let mut lines = whole.to_vec();
            edit(&mut lines);
            edits.push((format!("{name} at {seq}"), lines.clone(), bad));
            edits.push((
                format!("{name} at {seq}, chained anew"),
                chained(lines, index),
                bad,
            ));
        };
        add(
            "change",
            &|lines| lines[index] = altered(&lines[index]),
            seq,
        );
        add("delete", &|lines| drop(lines.remove(index)), seq);
        add("cut", &|lines| lines.truncate(index), seq);
        add(
            "insert",
            &|lines| lines.insert(index, altered(&whole[index])),
            seq,
        );
        add(
            "repeat",
            &|lines| lines.insert(index + 1, whole[index].clone()),
            seq + 1,
        );
        if index + 1 < whole.len() {
            add("swap", &|lines| lines.swap(index, index + 1), seq);
        }
    }
    edits
}

#[tokio::test]
async fn every_edit_of_every_record_is_named_by_the_first_bad_number() {
    let home = log_of(RECORDS).await;
    is_whole(home.path());
    let segment = segment::list(home.path()).unwrap().remove(0).path;
    let whole = lines(&segment);
    assert_eq!(whole.len(), RECORDS);
    let mut count = 0;
    for (name, lines, bad) in edits(&whole) {
        std::fs::write(&segment, lines.concat()).unwrap();
        let verdict = verify(home.path(), &pinned()).unwrap();
        // A record added behind the last checkpoint, well chained, is not yet signed: nobody can tell.
        let is_appended = lines.len() > RECORDS && lines[..RECORDS] == whole;
        match verdict.integrity {
            Integrity::FirstBad { seq, why } => assert_eq!(seq, bad, "{name}: {why}"),
            Integrity::Ok => {
                assert!(is_appended, "{name} is not noticed");
                assert_eq!(verdict.uncovered, 1);
            }
        }
        if !is_appended {
            assert!(
                AuditLog::open(signed(home.path())).is_err(),
                "{name}: such a log is not continued"
            );
        }
        count += 1;
    }
    assert_eq!(count, RECORDS * 12 - 2);
}

#[tokio::test]
async fn under_one_checkpoint_for_all_the_chain_names_the_changed_record() {
    let home = tempfile::tempdir().unwrap();
    let opened = AuditLog::open(Options::new(home.path())).unwrap();
    for number in 0..12 {
        opened.log.append(intent(number)).await.unwrap();
    }
    opened.log.install_signer(signer_of(1)).unwrap();
    drop(opened);
    let segment = segment::list(home.path()).unwrap().remove(0).path;
    let whole = lines(&segment);
    for index in 0..whole.len() {
        let mut changed = whole.clone();
        changed[index] = altered(&changed[index]);
        std::fs::write(&segment, changed.concat()).unwrap();
        let verdict = verify(home.path(), &pinned()).unwrap();
        // The last record has nothing after it that remembers it: only the root tells that one of all is bad.
        let expected = if index + 1 == whole.len() {
            1
        } else {
            index as u64 + 1
        };
        assert!(
            matches!(verdict.integrity, Integrity::FirstBad { seq, .. } if seq == expected),
            "{index}: {verdict:?}"
        );
    }
}

#[tokio::test]
async fn one_changed_byte_anywhere_is_noticed() {
    let home = log_of(3).await;
    is_whole(home.path());
    let mut count = 0;
    for (path, whole) in snapshot(home.path()) {
        for at in 0..whole.len() {
            for flip in [1, 0x20, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                std::fs::write(&path, &bytes).unwrap();
                for options in [pinned(), VerifyOptions::default()] {
                    let is_noticed =
                        verify(home.path(), &options).map_or(true, |verdict| !verdict.is_ok());
                    assert!(is_noticed, "{} byte {at} xor {flip:#x}", path.display());
                }
                count += 1;
            }
        }
        std::fs::write(&path, &whole).unwrap();
    }
    assert!(count > 3 * 2000, "{count}");
    is_whole(home.path());
}

#[tokio::test]
async fn a_log_signed_anew_by_an_attacker_fails_the_pinned_key() {
    let home = log_of(5).await;
    let segment = segment::list(home.path()).unwrap().remove(0).path;
    let forged = tempfile::tempdir().unwrap();
    let name = forged.path().join(segment.file_name().unwrap());
    let mut changed = lines(&segment);
    changed[2] = altered(&changed[2]);
    std::fs::write(name, chained(changed, 3).concat()).unwrap();
    drop(
        AuditLog::open(Options {
            signer: Some(signer_of(9)),
            ..Options::new(forged.path())
        })
        .unwrap(),
    );
    let unpinned = verify(forged.path(), &VerifyOptions::default()).unwrap();
    assert_eq!(
        (unpinned.integrity, unpinned.key),
        (Integrity::Ok, KeyTrust::Unpinned),
        "the key beside it is the forger's"
    );
    assert!(matches!(
        verify(forged.path(), &pinned()).unwrap().integrity,
        Integrity::FirstBad { seq: 0, .. }
    ));
}

#[tokio::test]
async fn checkpoints_cannot_be_dropped_or_moved_unnoticed() {
    let home = log_of(4).await;
    let path = home.path().join("checkpoints");
    let text = std::fs::read_to_string(&path).unwrap();
    let notes: Vec<String> = text
        .split_inclusive('\n')
        .collect::<Vec<_>>()
        .chunks(5)
        .map(|note| note.concat())
        .collect();
    let judge = |notes: &[&String]| {
        std::fs::write(
            &path,
            notes.iter().map(|note| note.as_str()).collect::<String>(),
        )
        .unwrap();
        verify(home.path(), &pinned()).unwrap()
    };
    assert!(judge(&[&notes[1], &notes[0], &notes[2], &notes[3]]).integrity != Integrity::Ok);
    assert!(judge(&[&notes[0], &notes[0], &notes[2], &notes[3]]).integrity != Integrity::Ok);
    let shortened = judge(&[&notes[0], &notes[1]]);
    assert_eq!(
        (shortened.integrity, shortened.uncovered),
        (Integrity::Ok, 2),
        "shown as records without signature"
    );
    std::fs::remove_file(home.path().join("vkey")).unwrap();
    assert!(
        verify(home.path(), &VerifyOptions::default())
            .unwrap()
            .integrity
            != Integrity::Ok
    );
}
