//! The supervisor's control channel to a role: a socketpair on the role's stdin.
//!
//! Messages are single datagrams of JSON (`SOCK_SEQPACKET`); one that carries a link carries its
//! descriptor. The channel's end is the role's end: no role outlives its supervisor.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Largest control message.
const MAX_BYTES: usize = 16 * 1024;

/// Which end of a link a role holds.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum End {
    Client,
    Server,
}

/// What the supervisor says to a role.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", tag = "say")]
pub(crate) enum ToRole {
    /// Here is a fresh connection; its descriptor comes with the message.
    Link {
        link: String,
        peer: String,
        end: End,
    },
    /// Here is a bound listener; the supervisor keeps it, so that clients of a restarting role wait
    /// in its queue and are not refused.
    Listener { name: String },
    /// Finish what you are doing and end.
    Stop,
}

/// What a role says to the supervisor.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", tag = "say")]
pub(crate) enum FromRole {
    /// Serving; with the addresses that it listens on.
    Ready { detail: Value },
    /// Cannot serve, and trying again will not help.
    Failed {
        code: String,
        what: String,
        fix: Option<String>,
    },
}

/// One end of a control channel.
#[derive(Debug)]
pub(crate) struct Control(OwnedFd);

impl Control {
    /// Makes both ends: the supervisor's and the one that becomes a role's stdin.
    pub(crate) fn pair() -> std::io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(ours), theirs))
    }

    /// The role's end, on its stdin.
    pub(crate) fn on_stdin() -> std::io::Result<Self> {
        Ok(Self(std::io::stdin().as_fd().try_clone_to_owned()?))
    }

    /// A second handle on the same end.
    pub(crate) fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Ends the channel for both ends, whatever other handles on it are open.
    #[cfg(feature = "operate")]
    pub(crate) fn close(&self) {
        // It may be closed already, which is what is wanted.
        rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both).ok();
    }

    /// Sends a message, with a descriptor where there is one.
    pub(crate) fn send<T: Serialize>(
        &self,
        message: &T,
        descriptor: Option<OwnedFd>,
    ) -> std::io::Result<()> {
        let bytes = serde_json::to_vec(message).map_err(std::io::Error::other)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let borrowed = descriptor.as_ref().map(AsFd::as_fd);
        let list = borrowed.as_slice();
        if !list.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(list)) {
            return Err(std::io::Error::other("no room for a descriptor"));
        }
        rustix::net::sendmsg(
            &self.0,
            &[IoSlice::new(&bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    /// Waits for a message; none when the other end is closed.
    pub(crate) fn receive<T: for<'de> Deserialize<'de>>(
        &self,
    ) -> std::io::Result<Option<(T, Option<OwnedFd>)>> {
        let mut bytes = vec![0_u8; MAX_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match rustix::net::recvmsg(
                &self.0,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other?,
            }
        };
        if received.bytes == 0 {
            return Ok(None);
        }
        let mut descriptor = None;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
                descriptor = descriptors.next();
            }
        }
        bytes.truncate(received.bytes);
        let message = serde_json::from_slice(&bytes).map_err(std::io::Error::other)?;
        Ok(Some((message, descriptor)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_link_arrives_with_its_descriptor_and_the_end_is_seen() {
        let (supervisor, role) = Control::pair().unwrap();
        let role = Control(role);
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let link = ToRole::Link {
            link: "session".into(),
            peer: "api-0".into(),
            end: End::Server,
        };
        supervisor.send(&link, Some(theirs.into())).unwrap();
        supervisor.send(&ToRole::Stop, None).unwrap();
        drop(supervisor);
        let (message, descriptor) = role.receive::<ToRole>().unwrap().unwrap();
        assert!(
            matches!(message, ToRole::Link { link, peer, end: End::Server } if link == "session" && peer == "api-0")
        );
        ours.write_all(b"hello").unwrap();
        drop(ours);
        let mut text = String::new();
        UnixStream::from(descriptor.unwrap())
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "hello");
        assert!(matches!(
            role.receive::<ToRole>().unwrap().unwrap(),
            (ToRole::Stop, None)
        ));
        assert!(role.receive::<ToRole>().unwrap().is_none());
    }
}
