use super::*;

async fn open() -> (SqliteStore, tempfile::TempDir) {
    let home = tempfile::tempdir().unwrap();
    (SqliteStore::open(home.path()).unwrap(), home)
}

mod conformance {
    crate::conformance_tests!(super::open);
}
