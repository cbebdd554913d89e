//! What must be refused, and what must not.

use super::*;

const HARNESS: LinkRule = LINKS[7];
const TOOLS: LinkRule = LINKS[8];

fn door() -> Door {
    assert_eq!((HARNESS.client, HARNESS.link), (RoleName::Harness, "vault"));
    assert_eq!((TOOLS.client, TOOLS.link), (RoleName::Tools, "vault"));
    Door::with(
        [(HARNESS, RoleKey::of(1)), (TOOLS, RoleKey::of(2))],
        kernel_user,
    )
}

fn caller(rule: LinkRule, key: u8) -> Caller {
    Caller {
        rule,
        path: PathBuf::new(),
        instance: "1".into(),
        key: RoleKey::of(key),
        user: kernel_user,
    }
}

/// Both sides of one proof.
async fn meet(door: &Door, caller: &Caller) -> (Result<String, Refused>, Result<(), Refused>) {
    let (mut server, mut client) = UnixStream::pair().unwrap();
    let admitted = async {
        let admitted = door.admit(&mut server).await;
        drop(server);
        admitted
    };
    tokio::join!(admitted, caller.prove(&mut client))
}

#[tokio::test]
async fn who_knows_the_key_is_admitted_under_its_role_and_instance() {
    for (rule, key, name) in [(HARNESS, 1, "harness-1"), (TOOLS, 2, "tools-1")] {
        let (admitted, proven) = meet(&door(), &caller(rule, key)).await;
        assert_eq!(admitted.unwrap(), name);
        proven.unwrap();
    }
}

#[tokio::test]
async fn a_wrong_key_is_refused() {
    let (admitted, proven) = meet(&door(), &caller(HARNESS, 3)).await;
    assert!(matches!(admitted, Err(Refused::Key)));
    assert!(matches!(proven, Err(Refused::Key)));
}

#[tokio::test]
async fn the_right_key_of_another_role_is_refused() {
    // A harness poses as tools with the key that it has.
    let (admitted, proven) = meet(&door(), &caller(TOOLS, 1)).await;
    assert!(matches!(admitted, Err(Refused::Key)));
    assert!(proven.is_err());
}

#[tokio::test]
async fn a_role_that_the_link_does_not_know_is_refused() {
    let hands = LinkRule {
        client: RoleName::Hands,
        ..HARNESS
    };
    let (admitted, _) = meet(&door(), &caller(hands, 1)).await;
    assert!(matches!(admitted, Err(Refused::Role)));
}

#[tokio::test]
async fn the_same_key_does_not_fit_another_link() {
    let other = LinkRule {
        link: "tools",
        ..HARNESS
    };
    let (admitted, _) = meet(&door(), &caller(other, 1)).await;
    assert!(matches!(admitted, Err(Refused::Key)));
}

#[tokio::test]
async fn a_server_without_the_key_is_refused_by_the_client() {
    // It echoes the client's own tag, the only one that it ever sees.
    let (mut server, mut client) = UnixStream::pair().unwrap();
    let pretend = async {
        server.write_all(&GREETING).await.unwrap();
        server.write_all(&[7; NONCE_BYTES]).await.unwrap();
        let mut answer = vec![0_u8; 1 + 7 + 1 + 1 + NONCE_BYTES + TAG_BYTES];
        server.read_exact(&mut answer).await.unwrap();
        let tag = answer.split_off(answer.len() - TAG_BYTES);
        server.write_all(&tag).await.unwrap();
    };
    let caller = caller(HARNESS, 1);
    let ((), proven) = tokio::join!(pretend, caller.prove(&mut client));
    assert!(matches!(proven, Err(Refused::Key)));
}

#[tokio::test]
async fn a_replayed_answer_is_refused() {
    let (mut server, mut listening) = UnixStream::pair().unwrap();
    let (mut relayed, mut client) = UnixStream::pair().unwrap();
    let (door, caller) = (door(), caller(HARNESS, 1));
    let length = 1 + 7 + 1 + 1 + NONCE_BYTES + TAG_BYTES;
    let mut answer = vec![0_u8; length];
    // Somebody between the two passes everything on and keeps the answer.
    let between = async {
        let mut challenge = [0_u8; GREETING.len() + NONCE_BYTES];
        listening.read_exact(&mut challenge).await.unwrap();
        relayed.write_all(&challenge).await.unwrap();
        relayed.read_exact(&mut answer).await.unwrap();
        listening.write_all(&answer).await.unwrap();
        let mut tag = [0_u8; TAG_BYTES];
        listening.read_exact(&mut tag).await.unwrap();
        relayed.write_all(&tag).await.unwrap();
    };
    let (admitted, proven, ()) =
        tokio::join!(door.admit(&mut server), caller.prove(&mut client), between);
    assert_eq!(admitted.unwrap(), "harness-1");
    proven.unwrap();

    let (mut server, mut again) = UnixStream::pair().unwrap();
    let replay = async {
        let mut challenge = [0_u8; GREETING.len() + NONCE_BYTES];
        again.read_exact(&mut challenge).await.unwrap();
        again.write_all(&answer).await.unwrap();
    };
    let (admitted, ()) = tokio::join!(door.admit(&mut server), replay);
    assert!(matches!(admitted, Err(Refused::Key)));
}

#[tokio::test]
async fn another_user_is_refused_before_a_word_is_said() {
    let door = Door::with([(HARNESS, RoleKey::of(1))], |_| Ok(4_294_967_000));
    let (mut server, mut client) = UnixStream::pair().unwrap();
    assert!(matches!(
        door.admit(&mut server).await,
        Err(Refused::User(4_294_967_000))
    ));
    drop(server);
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn root_is_let_in() {
    let door = Door::with([(HARNESS, RoleKey::of(1))], |_| Ok(0));
    let (admitted, _) = meet(&door, &caller(HARNESS, 1)).await;
    admitted.unwrap();
}

#[tokio::test]
async fn a_client_does_not_talk_to_another_users_server() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("link.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let caller = Caller {
        path,
        user: |_| Ok(4_294_967_000),
        ..caller(HARNESS, 1)
    };
    let (accepted, refused) = tokio::join!(listener.accept(), caller.connect());
    assert!(matches!(refused, Err(Refused::User(_))));
    let (mut stream, _) = accepted.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

#[test]
fn names_are_short_and_plain() {
    assert!(is_name("0") && is_name("blue_2"));
    for name in ["", "a b", "é", "../x", &"x".repeat(MAX_NAME_BYTES + 1)] {
        assert!(!is_name(name), "{name}");
    }
}
