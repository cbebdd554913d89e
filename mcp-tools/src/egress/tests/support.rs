//! Sessions with credentials, as the tests of the gateway and of the model route open them.

use std::sync::Arc;

use claviger_vault_protocol::{Binding, Destination, Envelope, Opening, Slot};

use crate::shared::Shared;
use crate::testing::{self, FakeVault, Upstream};

/// A credential to open a session with.
#[derive(Clone)]
pub(crate) struct Credential {
    name: String,
    binding: Binding,
    placeholder: String,
    has_variable: bool,
}

impl Credential {
    pub(crate) fn with_slot(name: &str, origin: &str, slot: Slot) -> Self {
        let destination = Destination::parse(origin).unwrap();
        let binding = Binding {
            destination,
            methods: Vec::new(),
            path_prefixes: Vec::new(),
            slot,
        };
        Self {
            name: name.to_owned(),
            binding,
            placeholder: placeholder(name),
            has_variable: true,
        }
    }

    pub(crate) fn bearer(name: &str, origin: &str) -> Self {
        let slot = Slot::Header {
            name: "authorization".to_owned(),
            prefix: "Bearer ".to_owned(),
        };
        Self::with_slot(name, origin, slot)
    }

    pub(crate) fn placeholder(mut self, placeholder: &str) -> Self {
        placeholder.clone_into(&mut self.placeholder);
        self
    }

    /// One that sandboxes get no placeholder of.
    pub(crate) fn for_tools_alone(mut self) -> Self {
        self.has_variable = false;
        self
    }

    fn grant(&self, vault: &FakeVault, session: &str, epoch: u64) -> Envelope {
        let mut envelope = vault.grant(
            session,
            epoch,
            &self.name,
            testing::SECRET,
            self.binding.clone(),
        );
        envelope.placeholder.clone_from(&self.placeholder);
        envelope.variable = self
            .has_variable
            .then(|| format!("{}_TOKEN", self.name.to_uppercase()));
        envelope
    }
}

/// The placeholder that a credential of this name gets in every session of these tests.
pub(crate) fn placeholder(name: &str) -> String {
    let random: String = hex::encode(name.as_bytes())
        .chars()
        .cycle()
        .take(32)
        .collect();
    format!("clvp_{random}")
}

/// An opening with grants of these names and placeholders, bound nowhere.
pub(crate) fn opening_with(grants: &[(&str, &str)]) -> Opening {
    let vault = FakeVault::new();
    let grant = |(name, placeholder): &(&str, &str)| {
        Credential::bearer(name, "http://127.0.0.1:1")
            .placeholder(placeholder)
            .grant(&vault, "sesn_1", 1)
    };
    vault.opening("sesn_1", 1, grants.iter().map(grant).collect())
}

/// A tools instance with its vault.
pub(crate) struct World {
    pub(crate) shared: Arc<Shared>,
    pub(crate) vault: Arc<FakeVault>,
}

impl World {
    pub(crate) async fn new() -> Self {
        let vault = FakeVault::new();
        Self {
            shared: testing::shared(&vault).await,
            vault,
        }
    }

    /// Opens a session at an epoch and presents it, as a harness does. A credential named `anthropic` is the model's.
    pub(crate) async fn present(&self, session: &str, epoch: u64, credentials: &[Credential]) {
        let grants = credentials
            .iter()
            .map(|credential| credential.grant(&self.vault, session, epoch))
            .collect();
        let opening = self.vault.opening(session, epoch, grants);
        self.shared.openings.present(opening).await.unwrap();
    }

    /// Reason codes reported so far.
    pub(crate) fn reports(&self) -> Vec<String> {
        self.vault
            .seen()
            .reports
            .iter()
            .map(|report| report.reason.clone())
            .collect()
    }
}

/// An upstream that answers with the whole request as the body: an echo of everything it was sent.
pub(crate) async fn echo() -> Upstream {
    Upstream::answering(|request| testing::ok("x-echo: yes\r\n", request)).await
}

/// `http://ADDRESS` of an upstream.
pub(crate) fn origin(upstream: &Upstream) -> String {
    format!("http://{}", upstream.address)
}
