//! How two roles that run by themselves prove to each other who they are, before anything else is
//! said on their link.
//!
//! The server sends a nonce; the client answers with its role, its instance, a nonce of its own and
//! a tag over all of it; the server answers with a tag of its own. Tags are HMAC-SHA-256 under the
//! link's role key, which is never sent. Both nonces, the link, both roles and the direction are
//! under each tag: an answer fits one connection, and a key fits one client role. The kernel says
//! beforehand that the peer is of this user, or root.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum as _;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::args::RoleName;
use crate::error::CliError;
use crate::home::Home;
use crate::links::{LINKS, LinkRule};
use crate::role_key::RoleKey;

/// First bytes of a link: name and version of this protocol.
const GREETING: [u8; 8] = *b"clvlink1";
const NONCE_BYTES: usize = 32;
const TAG_BYTES: usize = 32;
const MAX_NAME_BYTES: usize = 32;
/// How long the whole proof may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// Why a connection was not taken.
#[derive(Debug)]
pub(super) enum Refused {
    /// The connection broke, or what came is not this protocol.
    Broken(String),
    /// An instance's name has other characters than letters, digits, `-` and `_`.
    Instance,
    /// The peer does not know the role key.
    Key,
    /// The proof took too long.
    Late,
    /// No such role connects to this link.
    Role,
    /// The peer belongs to another user.
    User(u32),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(why) => write!(f, "the connection broke: {why}"),
            Self::Instance => f.write_str("the peer's instance has no proper name"),
            Self::Key => f.write_str("the peer does not know the role key"),
            Self::Late => f.write_str("the proof took too long"),
            Self::Role => f.write_str("no such role connects to this link"),
            Self::User(user) => write!(f, "the peer belongs to user {user}"),
        }
    }
}

impl From<std::io::Error> for Refused {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// The tag of one direction; each part with its length: no two sequences of parts look alike.
fn tag(key: &RoleKey, direction: &str, said: &Said<'_>) -> Result<Hmac<Sha256>, Refused> {
    let mut mac = key
        .mac()
        .ok_or_else(|| Refused::Broken("the key has no bytes".into()))?;
    let (client, server) = (said.rule.client.to_string(), said.rule.server.to_string());
    for part in [
        GREETING.as_slice(),
        direction.as_bytes(),
        said.rule.link.as_bytes(),
        client.as_bytes(),
        server.as_bytes(),
        said.instance.as_bytes(),
        said.server_nonce,
        said.client_nonce,
    ] {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    Ok(mac)
}

/// What a tag is over.
struct Said<'a> {
    rule: &'a LinkRule,
    instance: &'a str,
    server_nonce: &'a [u8],
    client_nonce: &'a [u8],
}

const FROM_CLIENT: &str = "client";
const FROM_SERVER: &str = "server";

/// Whose process is at the other end; a test says something else.
pub(super) type User = fn(&UnixStream) -> std::io::Result<u32>;

/// What the kernel says.
pub(super) fn kernel_user(stream: &UnixStream) -> std::io::Result<u32> {
    Ok(stream.peer_cred()?.uid())
}

fn check_user(user: User, stream: &UnixStream) -> Result<(), Refused> {
    let found = user(stream)?;
    if found == 0 || found == rustix::process::getuid().as_raw() {
        Ok(())
    } else {
        Err(Refused::User(found))
    }
}

/// Whether a name can be an instance's.
pub(super) fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(allowed)
}

fn nonce() -> Result<[u8; NONCE_BYTES], Refused> {
    let mut bytes = [0_u8; NONCE_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| Refused::Broken(error.to_string()))?;
    Ok(bytes)
}

/// The server's side of a link: one key for each role that may connect.
#[derive(Debug)]
pub(super) struct Door {
    keys: BTreeMap<RoleName, (LinkRule, RoleKey)>,
    user: User,
}

impl Door {
    /// The doors of a role: one for each link that it serves, with the socket's path.
    pub(super) fn of(
        home: &Home,
        role: RoleName,
    ) -> Result<Vec<(PathBuf, &'static str, Self)>, CliError> {
        let mut doors: Vec<(PathBuf, &'static str, Self)> = Vec::new();
        for rule in LINKS.iter().filter(|rule| rule.server == role) {
            let key = RoleKey::read(&rule.key_file(home))?;
            let path = rule.socket(home);
            match doors.iter_mut().find(|(known, ..)| *known == path) {
                Some((.., door)) => {
                    door.keys.insert(rule.client, (*rule, key));
                }
                None => doors.push((path, rule.link, Self::with([(*rule, key)], kernel_user))),
            }
        }
        Ok(doors)
    }

    pub(super) fn with<const N: usize>(keys: [(LinkRule, RoleKey); N], user: User) -> Self {
        let keys = keys
            .into_iter()
            .map(|(rule, key)| (rule.client, (rule, key)))
            .collect();
        Self { keys, user }
    }

    /// Lets the client in or not; answers its proven name, `ROLE-INSTANCE`.
    pub(super) async fn admit(&self, stream: &mut UnixStream) -> Result<String, Refused> {
        check_user(self.user, stream)?;
        tokio::time::timeout(DEADLINE, self.challenge(stream))
            .await
            .map_err(|_| Refused::Late)?
    }

    async fn challenge(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> Result<String, Refused> {
        let server_nonce = nonce()?;
        stream.write_all(&GREETING).await?;
        stream.write_all(&server_nonce).await?;
        let role = read_name(stream).await?.ok_or(Refused::Role)?;
        let instance = read_name(stream).await?.ok_or(Refused::Instance)?;
        let (mut client_nonce, mut given) = ([0_u8; NONCE_BYTES], [0_u8; TAG_BYTES]);
        stream.read_exact(&mut client_nonce).await?;
        stream.read_exact(&mut given).await?;
        let role = RoleName::from_str(&role, false).map_err(|_| Refused::Role)?;
        let (rule, key) = self.keys.get(&role).ok_or(Refused::Role)?;
        let said = Said {
            rule,
            instance: &instance,
            server_nonce: &server_nonce,
            client_nonce: &client_nonce,
        };
        // Compared in constant time.
        tag(key, FROM_CLIENT, &said)?
            .verify_slice(&given)
            .map_err(|_| Refused::Key)?;
        let answer = tag(key, FROM_SERVER, &said)?.finalize().into_bytes();
        stream.write_all(&answer).await?;
        Ok(format!("{role}-{instance}"))
    }
}

/// A name with its length in front; none where it is no name.
async fn read_name(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<String>, Refused> {
    let length = usize::from(stream.read_u8().await?);
    if length > MAX_NAME_BYTES {
        return Ok(None);
    }
    let mut bytes = vec![0_u8; length];
    stream.read_exact(&mut bytes).await?;
    Ok(String::from_utf8(bytes).ok().filter(|name| is_name(name)))
}

/// The client's side of a link.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) rule: LinkRule,
    pub(super) path: PathBuf,
    pub(super) instance: String,
    pub(super) key: RoleKey,
    pub(super) user: User,
}

impl Caller {
    /// The callers of a role: one for each link that it uses.
    pub(super) fn of(home: &Home, role: RoleName, instance: &str) -> Result<Vec<Self>, CliError> {
        LINKS
            .iter()
            .filter(|rule| rule.client == role)
            .map(|rule| {
                Ok(Self {
                    rule: *rule,
                    path: rule.socket(home),
                    instance: instance.to_owned(),
                    key: RoleKey::read(&rule.key_file(home))?,
                    user: kernel_user,
                })
            })
            .collect()
    }

    /// Connects and proves; a server that does not prove itself gets nothing more.
    pub(super) async fn connect(&self) -> Result<UnixStream, Refused> {
        tokio::time::timeout(DEADLINE, async {
            let mut stream = UnixStream::connect(&self.path).await?;
            check_user(self.user, &stream)?;
            self.prove(&mut stream).await?;
            Ok(stream)
        })
        .await
        .map_err(|_| Refused::Late)?
    }

    async fn prove(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> Result<(), Refused> {
        let (mut greeting, mut server_nonce) = ([0_u8; GREETING.len()], [0_u8; NONCE_BYTES]);
        stream.read_exact(&mut greeting).await?;
        if greeting != GREETING {
            return Err(Refused::Broken("the server speaks another protocol".into()));
        }
        stream.read_exact(&mut server_nonce).await?;
        let client_nonce = nonce()?;
        let said = Said {
            rule: &self.rule,
            instance: &self.instance,
            server_nonce: &server_nonce,
            client_nonce: &client_nonce,
        };
        let mut answer = Vec::new();
        for name in [&self.rule.client.to_string(), &self.instance] {
            answer.push(u8::try_from(name.len()).map_err(|_| Refused::Instance)?);
            answer.extend_from_slice(name.as_bytes());
        }
        answer.extend_from_slice(&client_nonce);
        answer.extend_from_slice(&tag(&self.key, FROM_CLIENT, &said)?.finalize().into_bytes());
        stream.write_all(&answer).await?;
        let mut given = [0_u8; TAG_BYTES];
        // A server that refuses says nothing and closes.
        stream
            .read_exact(&mut given)
            .await
            .map_err(|_| Refused::Key)?;
        tag(&self.key, FROM_SERVER, &said)?
            .verify_slice(&given)
            .map_err(|_| Refused::Key)
    }
}

#[cfg(test)]
mod tests;
