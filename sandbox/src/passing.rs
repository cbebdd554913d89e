//! Frames that may carry descriptors: a 32-bit big-endian length and JSON, with SCM_RIGHTS beside the first byte.
//!
//! The kernel keeps the order of bytes and descriptors of a stream socket, and descriptors never arrive later than the
//! first byte they were sent with; so a reader may queue both and take as many descriptors as a frame names.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::wire::MAX_FRAME_BYTES;

/// The most descriptors that one frame carries.
const MAX_DESCRIPTORS: usize = 4;

/// Encodes a value as one frame.
pub(crate) fn frame<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, value).map_err(io::Error::other)?;
    let length = u32::try_from(bytes.len() - 4).map_err(io::Error::other)?;
    for (to, from) in bytes.iter_mut().zip(length.to_be_bytes()) {
        *to = from;
    }
    Ok(bytes)
}

/// Sends bytes once, with descriptors beside the first; returns how many bytes went.
pub(crate) fn send(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors for one frame"));
    }
    loop {
        match rustix::net::sendmsg(
            &socket,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        ) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map_err(Into::into),
        }
    }
}

/// Sends a whole frame on a blocking socket.
pub(crate) fn send_frame<T: Serialize>(
    socket: impl AsFd,
    value: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = frame(value)?;
    let mut sent = send(&socket, &bytes, descriptors)?;
    while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
        sent += send(&socket, rest, &[])?;
    }
    Ok(())
}

/// What has arrived and has not been taken.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    bytes: VecDeque<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Inbox {
    /// Receives once; `Ok(0)` is the end.
    pub(crate) fn receive(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut chunk = [0; 16 * 1024];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = loop {
            let mut into = [IoSliceMut::new(&mut chunk)];
            match rustix::net::recvmsg(&socket, &mut into, &mut control, flags) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other?,
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        self.bytes.extend(chunk.iter().take(received.bytes));
        Ok(received.bytes)
    }

    /// Takes the next frame if it is complete.
    pub(crate) fn take<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        if self.bytes.len() < 4 {
            return Ok(None);
        }
        let mut length = [0; 4];
        for (to, from) in length.iter_mut().zip(&self.bytes) {
            *to = *from;
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_FRAME_BYTES {
            return Err(io::Error::other("a frame is longer than any we send"));
        }
        if self.bytes.len() - 4 < length {
            return Ok(None);
        }
        self.bytes.drain(..4);
        let body: Vec<u8> = self.bytes.drain(..length).collect();
        serde_json::from_slice(&body)
            .map(Some)
            .map_err(io::Error::other)
    }

    /// Takes the next descriptor.
    pub(crate) fn descriptor(&mut self) -> io::Result<OwnedFd> {
        self.descriptors
            .pop_front()
            .ok_or_else(|| io::Error::other("a frame came without its descriptor"))
    }

    /// Receives one frame from a blocking socket; `None` is the end.
    pub(crate) fn wait<T: DeserializeOwned>(&mut self, socket: impl AsFd) -> io::Result<Option<T>> {
        loop {
            if let Some(value) = self.take()? {
                return Ok(Some(value));
            }
            if self.receive(&socket)? == 0 {
                return Ok(None);
            }
        }
    }

    /// Receives one frame from a stream of the runtime; `None` is the end.
    ///
    /// # Cancel safety
    /// What has arrived stays in the inbox.
    pub(crate) async fn wait_async<T: DeserializeOwned>(
        &mut self,
        stream: &tokio::net::UnixStream,
    ) -> io::Result<Option<T>> {
        loop {
            if let Some(value) = self.take()? {
                return Ok(Some(value));
            }
            if stream
                .async_io(tokio::io::Interest::READABLE, || self.receive(stream))
                .await?
                == 0
            {
                return Ok(None);
            }
        }
    }
}

/// Sends a whole frame on a stream of the runtime.
pub(crate) async fn send_frame_async<T: Serialize>(
    stream: &tokio::net::UnixStream,
    value: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = frame(value)?;
    let writable = tokio::io::Interest::WRITABLE;
    let mut sent = stream
        .async_io(writable, || send(stream, &bytes, descriptors))
        .await?;
    while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
        sent += stream
            .async_io(writable, || send(stream, rest, &[]))
            .await?;
    }
    Ok(())
}
