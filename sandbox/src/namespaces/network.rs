//! The sandbox's network: a loopback interface and two listeners that the host answers.

use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd as _;

use rustix::net::{AddressFamily, SocketType};

use crate::inside::{EGRESS_PORT, MCP_PORT};
use crate::missing::Missing;
use crate::sys;

/// Brings loopback up and opens the listeners (`mcp`, `egress`) if they are asked for.
pub(super) fn bring_up(listeners: bool) -> Result<Vec<TcpListener>, Missing> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)
        .map_err(|error| Missing::step("a network namespace", error))?;
    sys::loopback_up(socket.as_fd())
        .map_err(|error| Missing::rights("a network namespace with rights", error))?;
    if !listeners {
        return Ok(Vec::new());
    }
    [MCP_PORT, EGRESS_PORT]
        .into_iter()
        .map(|port| {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port))
                .map_err(|error| Missing::step("a listener inside the sandbox", error))
        })
        .collect()
}
