//! The one way to a socket that leaves the machine.
//!
//! A name is resolved once, every address is checked, and one of exactly those addresses is
//! connected: what was decided is what is dialed. A destination comes from a binding; its own address
//! literal is dialed whatever it is, a name must lead to public addresses (`localhost` to loopback).
//! No redirect is followed here and no connection is
//! kept, because there is nothing here that could.

mod public;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use claviger_vault_protocol::{Destination, Refusal};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tracing::debug;

pub(crate) use public::is_public;

use crate::error::ToolsError;

/// A future of the [`Network`].
pub(crate) type NetworkFuture<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// Name service and TCP; tests put their own here.
pub(crate) trait Network: Send + Sync + 'static {
    /// All addresses of a name.
    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> NetworkFuture<'a, Vec<SocketAddr>>;

    /// A TCP connection to one address.
    fn connect(&self, address: SocketAddr) -> NetworkFuture<'_, TcpStream>;
}

/// The machine's own network.
#[derive(Debug)]
pub(crate) struct System;

impl Network for System {
    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> NetworkFuture<'a, Vec<SocketAddr>> {
        Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) })
    }

    fn connect(&self, address: SocketAddr) -> NetworkFuture<'_, TcpStream> {
        Box::pin(TcpStream::connect(address))
    }
}

/// A connection, plain or TLS.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Resolves, checks, connects.
pub(crate) struct Dialer {
    network: Arc<dyn Network>,
    tls: OnceCell<Arc<rustls::ClientConfig>>,
}

impl Dialer {
    /// The machine's network and trust roots; the roots are read at the first TLS connection.
    pub(crate) fn new() -> Self {
        Self::over(Arc::new(System))
    }

    /// Another network.
    pub(crate) fn over(network: Arc<dyn Network>) -> Self {
        Self {
            network,
            tls: OnceCell::new(),
        }
    }

    /// Resolves a destination once and answers its addresses, all of them allowed.
    async fn addresses(&self, destination: &Destination) -> Result<Vec<SocketAddr>, Refusal> {
        let port = destination.port;
        if let Ok(literal) = destination.host.parse::<IpAddr>() {
            // Only a binding leads here: its own literal is allowed, whatever it is.
            return Ok(vec![SocketAddr::new(literal, port)]);
        }
        let addresses = self
            .network
            .resolve(&destination.host, port)
            .await
            .map_err(|error| {
                debug!(host = %destination.host, %error, "name does not resolve");
                Refusal::new(
                    "upstream_unreachable",
                    format!("{} does not resolve", destination.host),
                )
            })?;
        let is_allowed = |address: &SocketAddr| {
            let ip = address.ip().to_canonical();
            if destination.host == "localhost" {
                ip.is_loopback()
            } else {
                is_public(ip)
            }
        };
        // One bad address among good ones is what rebinding looks like: refuse them all.
        if !addresses.iter().all(is_allowed) {
            return Err(not_allowed(destination));
        }
        if addresses.is_empty() {
            return Err(Refusal::new(
                "upstream_unreachable",
                format!("{} has no address", destination.host),
            ));
        }
        Ok(addresses)
    }

    /// Connects a destination: TCP, and TLS where its scheme is https.
    pub(crate) async fn open(
        &self,
        destination: &Destination,
        deadline: Duration,
    ) -> Result<Box<dyn Duplex>, Refusal> {
        let work = async {
            let stream = self.tcp(destination).await?;
            if destination.scheme == "https" {
                self.tls(destination, stream).await
            } else {
                Ok(Box::new(stream) as Box<dyn Duplex>)
            }
        };
        tokio::time::timeout(deadline, work).await.map_err(|_| {
            Refusal::new(
                "upstream_timeout",
                format!(
                    "{} did not accept a connection in time",
                    destination.origin()
                ),
            )
        })?
    }

    /// Connects a destination by TCP alone; the caller sets the deadline.
    pub(crate) async fn tcp(&self, destination: &Destination) -> Result<TcpStream, Refusal> {
        let addresses = self.addresses(destination).await?;
        for address in addresses {
            match self.network.connect(address).await {
                Ok(stream) => {
                    if let Err(error) = stream.set_nodelay(true) {
                        debug!(%error, "TCP_NODELAY was not set");
                    }
                    return Ok(stream);
                }
                Err(error) => debug!(host = %destination.host, %error, "address does not connect"),
            }
        }
        Err(unreachable(destination))
    }

    async fn tls(
        &self,
        destination: &Destination,
        stream: TcpStream,
    ) -> Result<Box<dyn Duplex>, Refusal> {
        let config = self
            .tls
            .get_or_try_init(native_config)
            .await
            .map_err(|error| {
                Refusal::new("tls_not_usable", error.to_string())
                    .with_fix("install the system's CA certificates")
            })?;
        let name =
            ServerName::try_from(destination.host.clone()).map_err(|_| unreachable(destination))?;
        let connected = TlsConnector::from(Arc::clone(config))
            .connect(name, stream)
            .await;
        match connected {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => {
                debug!(host = %destination.host, %error, "tls handshake");
                Err(Refusal::new(
                    "upstream_not_verified",
                    format!("{} did not prove who it is over TLS", destination.origin()),
                ))
            }
        }
    }
}

/// A client configuration that trusts `roots`, speaks TLS 1.2 or 1.3 and offers HTTP/1.1 alone.
fn config_trusting(roots: rustls::RootCertStore) -> Result<rustls::ClientConfig, ToolsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ToolsError::Tls {
            reason: error.to_string(),
        })?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

async fn native_config() -> Result<Arc<rustls::ClientConfig>, ToolsError> {
    let loaded = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs)
        .await
        .map_err(|error| ToolsError::Tls {
            reason: error.to_string(),
        })?;
    let mut roots = rustls::RootCertStore::empty();
    let (added, ignored) = roots.add_parsable_certificates(loaded.certs);
    debug!(added, ignored, "trust roots read");
    if added == 0 {
        return Err(ToolsError::Tls {
            reason: "this host has no trust roots".to_owned(),
        });
    }
    config_trusting(roots).map(Arc::new)
}

fn not_allowed(destination: &Destination) -> Refusal {
    Refusal::new(
        "address_not_allowed",
        format!(
            "{} leads to a private, local or metadata address",
            destination.host
        ),
    )
    .with_fix("bind the credential to that address itself, as a literal, if that is what you want")
}

fn unreachable(destination: &Destination) -> Refusal {
    Refusal::new(
        "upstream_unreachable",
        format!("{} does not accept connections", destination.origin()),
    )
}

#[cfg(test)]
mod tests;
