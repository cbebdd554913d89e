//! Files put back, cut off or changed while the vault was down.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use claviger_vault_protocol::admin::OfCredential;
use rusqlite::Connection;

use crate::fixture::{Home, World};

/// All files below a directory.
fn copy(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(copy(&path));
        } else {
            files.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    files
}

fn put_back(files: &BTreeMap<PathBuf, Vec<u8>>, of: impl Fn(&Path) -> bool) {
    for (path, bytes) in files.iter().filter(|(path, _)| of(path)) {
        drop(std::fs::remove_file(path));
        std::fs::write(path, bytes).unwrap();
    }
}

fn is_store(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with("vault.db"))
}

fn is_log(path: &Path) -> bool {
    path.parent()
        .is_some_and(|parent| parent.ends_with("audit"))
}

async fn stopped(world: World) -> Home {
    let World {
        home,
        running,
        admin,
        api,
        ..
    } = world;
    drop((admin, api));
    running.stop().await.unwrap();
    home
}

async fn started(home: Home) -> (Home, crate::fixture::Running) {
    let running = home.start();
    (home, running)
}

#[tokio::test]
async fn a_store_from_before_an_archive_is_refused() {
    let world = World::new().await;
    let tracker = world.tracker.id.clone();
    let home = stopped(world).await;
    let before = copy(&home.vault());
    let (home, running) = started(home).await;
    let admin = running.admin().await;
    admin
        .client
        .archive(&OfCredential {
            credential: tracker,
            principal: None,
        })
        .await
        .unwrap();
    drop(admin);
    running.stop().await.unwrap();
    let after = copy(&home.vault());
    put_back(&before, is_store);
    let error = home.refusal().await;
    assert_eq!(error.code(), "store_rolled_back");
    assert!(error.to_string().contains("tells of a change"), "{error}");
    // The true files still start.
    for path in copy(&home.vault()).keys().filter(|path| is_store(path)) {
        std::fs::remove_file(path).unwrap();
    }
    put_back(&after, |path| is_store(path) || is_log(path));
    let running = home.start();
    running
        .admin()
        .await
        .client
        .status(&claviger_vault_protocol::admin::Nothing {})
        .await
        .unwrap();
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_log_from_before_is_refused() {
    let world = World::new().await;
    let tracker = world.tracker.id.clone();
    let home = stopped(world).await;
    let before = copy(&home.vault());
    let (home, running) = started(home).await;
    let admin = running.admin().await;
    admin
        .client
        .archive(&OfCredential {
            credential: tracker,
            principal: None,
        })
        .await
        .unwrap();
    drop(admin);
    running.stop().await.unwrap();
    put_back(&before, is_log);
    assert_eq!(home.refusal().await.code(), "store_rolled_back");
}

#[tokio::test]
async fn a_missing_log_and_a_missing_store_are_refused() {
    let home = stopped(World::new().await).await;
    let all = copy(&home.vault());
    std::fs::remove_dir_all(home.vault().join("audit")).unwrap();
    assert_eq!(home.refusal().await.code(), "store_rolled_back");
    std::fs::create_dir_all(home.vault().join("audit")).unwrap();
    put_back(&all, is_log);
    for path in copy(&home.vault()).keys().filter(|path| is_store(path)) {
        std::fs::remove_file(path).unwrap();
    }
    let error = home.refusal().await;
    assert_eq!(error.code(), "store_rolled_back");
}

#[tokio::test]
async fn row_surgery_is_refused_and_named() {
    let home = stopped(World::new().await).await;
    let all = copy(&home.vault());
    for (surgery, named) in [
        (
            "UPDATE record SET sealed = zeroblob(length(sealed)) WHERE class = 'credential'",
            "row credential/",
        ),
        (
            "DELETE FROM record WHERE class = 'permit'",
            "class permit: 0 rows where 1",
        ),
        (
            "DELETE FROM record WHERE class = 'session'",
            "class session: 0 rows where 1",
        ),
        (
            "INSERT INTO record SELECT class, 'vcrd_planted', sealed FROM record WHERE class = 'secret' LIMIT 1",
            "row secret/vcrd_planted",
        ),
        (
            "UPDATE record SET sealed = (SELECT sealed FROM record AS o WHERE o.class = 'secret' AND o.id != record.id) WHERE class = 'secret'",
            "row secret/",
        ),
        ("UPDATE root SET sealed = zeroblob(300)", "store root"),
        ("DELETE FROM stanza", "header or stanza"),
        ("CREATE TABLE planted (x)", "table 'planted'"),
    ] {
        Connection::open(home.vault().join("vault.db"))
            .unwrap()
            .execute_batch(surgery)
            .unwrap();
        let error = home.refusal().await;
        assert_eq!(error.code(), "store_tampered", "{surgery}: {error}");
        assert!(error.to_string().contains(named), "{surgery}: {error}");
        for path in copy(&home.vault()).keys().filter(|path| is_store(path)) {
            std::fs::remove_file(path).unwrap();
        }
        put_back(&all, is_store);
    }
}

#[tokio::test]
async fn a_replaced_public_key_is_refused() {
    let home = stopped(World::new().await).await;
    let other = claviger_vault_protocol::KeyPair::generate().unwrap();
    std::fs::write(
        home.directory.path().join("vault.pub"),
        other.public().to_string(),
    )
    .unwrap();
    let error = home.refusal().await;
    assert_eq!(error.code(), "store_tampered");
    assert!(error.to_string().contains("vault.pub"), "{error}");
}
