//! All links between roles: who connects, who serves, and where both find each other when they run
//! without a supervisor.

use std::path::{Path, PathBuf};

use crate::args::RoleName;
use crate::error::CliError;
use crate::home::Home;

/// One link.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct LinkRule {
    /// Its name.
    pub(crate) link: &'static str,
    /// Who connects.
    pub(crate) client: RoleName,
    /// Who serves.
    pub(crate) server: RoleName,
}

const fn rule(link: &'static str, client: RoleName, server: RoleName) -> LinkRule {
    LinkRule {
        link,
        client,
        server,
    }
}

/// All links there are (design section 3).
pub(crate) const LINKS: [LinkRule; 9] = [
    rule("attach", RoleName::Hands, RoleName::Tools),
    rule("hands", RoleName::Harness, RoleName::Hands),
    rule("model", RoleName::Harness, RoleName::Tools),
    rule("session", RoleName::Api, RoleName::Session),
    rule("session", RoleName::Harness, RoleName::Session),
    rule("tools", RoleName::Harness, RoleName::Tools),
    rule("vault", RoleName::Api, RoleName::Vault),
    rule("vault", RoleName::Harness, RoleName::Vault),
    rule("vault", RoleName::Tools, RoleName::Vault),
];

impl LinkRule {
    /// The socket that the server binds; all clients of the link use the same one.
    pub(crate) fn socket(&self, home: &Home) -> PathBuf {
        home.links()
            .join(format!("{}-{}.sock", self.server, self.link))
    }

    /// The file of the key that both ends know and nobody else.
    pub(crate) fn key_file(&self, home: &Home) -> PathBuf {
        let Self {
            link,
            client,
            server,
        } = self;
        home.role_keys().join(format!("{client}-{server}-{link}"))
    }
}

/// Makes a directory that its owner alone can enter.
pub(crate) fn make_private_directory(path: &Path) -> Result<(), CliError> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        // One that was there may be wider; one of somebody else refuses this.
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)))
        .map_err(|error| CliError::file("creating", path, &error))
}
