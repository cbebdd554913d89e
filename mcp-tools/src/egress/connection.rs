//! One connection of a program inside the sandbox: reads requests, writes answers.

use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::head::{self, Framing, Head, MAX_HEAD_BYTES};
use super::refused::Refused;

/// Largest body that a program may send: it is read to its end and searched before anything leaves.
pub(super) const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;
/// How long a connection may be idle between requests.
const IDLE: Duration = Duration::from_secs(75);
/// How long any one read or write of a request or answer may take.
const STALL: Duration = Duration::from_secs(30);
const MAX_CHUNK_LINE_BYTES: usize = 18;
/// Headers of an answer that belong to the upstream's hop.
const HOP: &[&str] = &[
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Why nothing more comes of a connection.
#[derive(Debug)]
pub(super) enum Fault {
    /// The program is gone or stalls.
    Gone,
    /// What it sent is refused, and the connection with it.
    Refused(Refused),
}

impl From<std::io::Error> for Fault {
    fn from(_: std::io::Error) -> Self {
        Self::Gone
    }
}

impl From<Refused> for Fault {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// A connection and what was read of it but not used.
#[derive(Debug)]
pub(super) struct Connection<S> {
    stream: S,
    buffer: BytesMut,
}

/// How the body of the answer being written ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ending {
    Chunked,
    /// With the connection: for clients of HTTP/1.0.
    Close,
    /// There is no body.
    None,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
        }
    }

    /// Reads the next head; none where the program closed between requests.
    pub(super) async fn head(&mut self) -> Result<Option<Head>, Fault> {
        let mut seen = 0;
        loop {
            let from = seen_from(seen);
            if let Some(at) = self
                .buffer
                .get(from..)
                .and_then(|new| find(new, b"\r\n\r\n"))
            {
                let head = self.buffer.split_to(from + at + 4);
                return Ok(Some(head::parse(&head)?));
            }
            seen = self.buffer.len();
            if seen > MAX_HEAD_BYTES {
                return Err(
                    Refused::malformed("head_too_large", "the head is larger than 64 KiB")
                        .with_status(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
                        .into(),
                );
            }
            // A lone line feed never becomes an empty line: say so now instead of waiting for more.
            if find(self.buffer.get(from..).unwrap_or_default(), b"\n\n").is_some() {
                return Err(Refused::malformed("malformed_request", "lines end with CR LF").into());
            }
            let patience = if seen == 0 { IDLE } else { STALL };
            if self.fill(patience).await? == 0 {
                return if seen == 0 {
                    Ok(None)
                } else {
                    Err(Fault::Gone)
                };
            }
        }
    }

    /// Reads the body that belongs to `head`, to its end.
    pub(super) async fn body(&mut self, head: &Head) -> Result<Bytes, Fault> {
        if let Framing::Length(length) = head.framing
            && length > MAX_BODY_BYTES as u64
        {
            return Err(too_large().into());
        }
        if head.expects_continue && head.framing != Framing::Length(0) && self.buffer.is_empty() {
            self.write(Bytes::from_static(b"HTTP/1.1 100 Continue\r\n\r\n"))
                .await?;
        }
        match head.framing {
            Framing::Chunked => self.chunks().await,
            Framing::Length(length) => {
                let length = usize::try_from(length).map_err(|_| too_large())?;
                self.exactly(length).await
            }
        }
    }

    async fn chunks(&mut self) -> Result<Bytes, Fault> {
        let mut body = BytesMut::new();
        loop {
            let line = self.line().await?;
            let size = std::str::from_utf8(&line)
                .ok()
                .filter(|digits| {
                    (1..=8).contains(&digits.len())
                        && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
                })
                .and_then(|digits| usize::from_str_radix(digits, 16).ok())
                .ok_or_else(|| {
                    Refused::malformed("malformed_request", "a chunk's size is not a plain number")
                })?;
            if size == 0 {
                if !self.line().await?.is_empty() {
                    return Err(Refused::malformed(
                        "malformed_request",
                        "trailers are not forwarded",
                    )
                    .into());
                }
                return Ok(body.freeze());
            }
            if body.len() + size > MAX_BODY_BYTES {
                return Err(too_large().into());
            }
            body.extend_from_slice(&self.exactly(size).await?);
            if !self.line().await?.is_empty() {
                return Err(Refused::malformed(
                    "malformed_request",
                    "a chunk is longer than its size",
                )
                .into());
            }
        }
    }

    /// Reads one short line and its CR LF.
    async fn line(&mut self) -> Result<BytesMut, Fault> {
        loop {
            let end = self
                .buffer
                .iter()
                .take(MAX_CHUNK_LINE_BYTES + 1)
                .position(|byte| *byte == b'\n');
            if let Some(end) = end {
                let mut line = self.buffer.split_to(end + 1);
                if !line.ends_with(b"\r\n") {
                    return Err(
                        Refused::malformed("malformed_request", "lines end with CR LF").into(),
                    );
                }
                line.truncate(end - 1);
                return Ok(line);
            }
            if self.buffer.len() > MAX_CHUNK_LINE_BYTES {
                return Err(Refused::malformed(
                    "malformed_request",
                    "a chunk's size line is too long",
                )
                .into());
            }
            if self.fill(STALL).await? == 0 {
                return Err(Fault::Gone);
            }
        }
    }

    async fn exactly(&mut self, length: usize) -> Result<Bytes, Fault> {
        while self.buffer.len() < length {
            self.buffer.reserve(length - self.buffer.len());
            if self.fill(STALL).await? == 0 {
                return Err(Fault::Gone);
            }
        }
        Ok(self.buffer.split_to(length).freeze())
    }

    async fn fill(&mut self, patience: Duration) -> Result<usize, Fault> {
        self.buffer.reserve(8 * 1024);
        tokio::time::timeout(patience, self.stream.read_buf(&mut self.buffer))
            .await
            .map_or(Err(Fault::Gone), |read| Ok(read?))
    }

    /// Writes an answer's head and says how its body is to end. The upstream's own framing is not taken over, because the
    /// body that follows is scrubbed and may differ in length.
    pub(super) async fn answer(
        &mut self,
        request: &Head,
        status: StatusCode,
        headers: &HeaderMap,
        keeps_alive: bool,
    ) -> Result<Ending, Fault> {
        let bodiless = request.method == http::Method::HEAD
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let ending = match (bodiless, request.chunks) {
            (true, _) => Ending::None,
            (false, true) => Ending::Chunked,
            (false, false) => Ending::Close,
        };
        let mut out = start(status);
        for (name, value) in headers {
            if !HOP.contains(&name.as_str()) && !head::lists(headers, &CONNECTION, name.as_str()) {
                line(&mut out, name, value);
            }
        }
        if ending == Ending::Chunked {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        finish(&mut out, keeps_alive && ending != Ending::Close);
        self.write(out.freeze()).await?;
        Ok(ending)
    }

    /// Writes a piece of the answer's body and lets it go at once.
    pub(super) async fn chunk(&mut self, ending: Ending, data: Bytes) -> Result<(), Fault> {
        if data.is_empty() || ending == Ending::None {
            return Ok(());
        }
        if ending == Ending::Close {
            return self.write(data).await;
        }
        let size = Bytes::from(format!("{:x}\r\n", data.len()));
        self.write(size.chain(data).chain(Bytes::from_static(b"\r\n")))
            .await
    }

    /// Ends the answer's body.
    pub(super) async fn end(&mut self, ending: Ending) -> Result<(), Fault> {
        if ending == Ending::Chunked {
            self.write(Bytes::from_static(b"0\r\n\r\n")).await?;
        }
        Ok(())
    }

    /// Writes a refusal.
    pub(super) async fn refuse(
        &mut self,
        request: Option<&Head>,
        refused: &Refused,
    ) -> Result<(), Fault> {
        let body = refused.body();
        let mut out = start(refused.status);
        out.extend_from_slice(b"content-type: application/json\r\n");
        if let Ok(code) = HeaderValue::from_str(&refused.refusal.code) {
            line(
                &mut out,
                &HeaderName::from_static("claviger-refusal"),
                &code,
            );
        }
        line(&mut out, &CONTENT_LENGTH, &HeaderValue::from(body.len()));
        finish(
            &mut out,
            !refused.closes && request.is_some_and(|head| head.keeps_alive),
        );
        if request.is_none_or(|head| head.method != http::Method::HEAD) {
            out.extend_from_slice(&body);
        }
        self.write(out.freeze()).await
    }

    /// Ends the connection so that what was written last still arrives: half-closes, then reads what the program had
    /// already sent, for a bounded time and amount, so that no reset overtakes the answer.
    pub(super) async fn close(mut self) {
        let lingering = async {
            self.stream.shutdown().await?;
            for _ in 0..64 {
                self.buffer.clear();
                self.buffer.reserve(16 * 1024);
                if self.stream.read_buf(&mut self.buffer).await? == 0 {
                    break;
                }
            }
            std::io::Result::Ok(())
        };
        // Whatever comes of it, the connection is over.
        drop(tokio::time::timeout(Duration::from_millis(500), lingering).await);
    }

    async fn write(&mut self, mut bytes: impl bytes::Buf) -> Result<(), Fault> {
        let work = async {
            self.stream.write_all_buf(&mut bytes).await?;
            self.stream.flush().await
        };
        tokio::time::timeout(STALL, work)
            .await
            .map_or(Err(Fault::Gone), |written| Ok(written?))
    }
}

impl Connection<TcpStream> {
    /// Ends the connection with a reset, so that nothing written before passes for a whole answer.
    pub(super) fn abort(self) {
        if let Err(error) = self.stream.set_zero_linger() {
            tracing::debug!(%error, "a connection could not be reset");
        }
    }
}

fn too_large() -> Refused {
    Refused::malformed("body_too_large", "the body is larger than 8 MiB")
        .with_status(StatusCode::PAYLOAD_TOO_LARGE)
        .with_fix("send it in parts, or through a tool")
}

fn start(status: StatusCode) -> BytesMut {
    let reason = status.canonical_reason().unwrap_or("-");
    BytesMut::from(format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).as_bytes())
}

fn line(out: &mut BytesMut, name: &HeaderName, value: &HeaderValue) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn finish(out: &mut BytesMut, keeps_alive: bool) {
    if !keeps_alive {
        out.extend_from_slice(b"connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes
        .windows(pattern.len())
        .position(|window| window == pattern)
}

/// Where to look again after `seen` bytes had no end of head in them: the end may lie across the reads.
fn seen_from(seen: usize) -> usize {
    seen.saturating_sub(3)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::duplex;

    use super::*;

    async fn read(pieces: &[&[u8]]) -> Result<(Head, Bytes), String> {
        let (mut program, ours) = duplex(64);
        let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
        let writing = tokio::spawn(async move {
            for piece in pieces {
                if program.write_all(&piece).await.is_err() {
                    return;
                }
            }
        });
        let mut connection = Connection::new(ours);
        let code = |fault| match fault {
            Fault::Gone => "gone".to_owned(),
            Fault::Refused(refused) => refused.refusal.code,
        };
        let work = async {
            let head = connection.head().await.map_err(code)?.ok_or("closed")?;
            let body = connection.body(&head).await.map_err(code)?;
            Ok((head, body))
        };
        let result = work.await;
        drop(connection);
        writing.await.unwrap();
        result
    }

    const HEAD: &[u8] = b"POST / HTTP/1.1\r\nHost: a.test\r\n";

    #[tokio::test]
    async fn a_body_is_read_by_length_and_by_chunks() {
        let (_, body) = read(&[HEAD, b"Content-Length: 5\r\n\r\nhel", b"lo"])
            .await
            .unwrap();
        assert_eq!(body, "hello");
        let (_, body) = read(&[
            HEAD,
            b"Transfer-Encoding: chunked\r\n\r\n3\r",
            b"\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
        ])
        .await
        .unwrap();
        assert_eq!(body, "hello");
    }

    #[tokio::test]
    async fn malformed_chunks_are_refused() {
        for chunks in [
            "5;ext=1\r\nhello\r\n0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            " 5\r\nhello\r\n0\r\n\r\n",
            "5\nhello\r\n0\r\n\r\n",
            "4\r\nhello\r\n0\r\n\r\n",
            "fffffffff\r\nhello\r\n0\r\n\r\n",
            "\r\nhello\r\n0\r\n\r\n",
            "5\r\nhello\r\n0\r\nX: y\r\n\r\n",
            "00000000000000000000000005\r\nhello\r\n0\r\n\r\n",
        ] {
            let found = read(&[
                HEAD,
                b"Transfer-Encoding: chunked\r\n\r\n",
                chunks.as_bytes(),
            ])
            .await;
            assert_eq!(found.unwrap_err(), "malformed_request", "{chunks:?}");
        }
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_by_its_length_or_when_it_gets_there() {
        assert_eq!(
            read(&[HEAD, b"Content-Length: 8388609\r\n\r\n"])
                .await
                .unwrap_err(),
            "body_too_large"
        );
        let chunk = [
            b"400000\r\n".to_vec(),
            vec![b'x'; 0x40_0000],
            b"\r\n".to_vec(),
        ]
        .concat();
        let found = read(&[
            HEAD,
            b"Transfer-Encoding: chunked\r\n\r\n",
            &chunk,
            &chunk,
            b"1\r\nx\r\n",
        ])
        .await;
        assert_eq!(found.unwrap_err(), "body_too_large");
    }

    #[tokio::test]
    async fn a_head_that_does_not_end_is_refused() {
        let long = vec![b'x'; MAX_HEAD_BYTES + 9000];
        assert_eq!(read(&[HEAD, &long]).await.unwrap_err(), "head_too_large");
        assert_eq!(
            read(&[b"GET / HTTP/1.1\nHost: a.test\n\n"])
                .await
                .unwrap_err(),
            "malformed_request"
        );
        assert_eq!(read(&[HEAD]).await.unwrap_err(), "gone");
    }

    #[tokio::test]
    async fn a_client_that_waits_for_leave_to_send_gets_it() {
        let (mut program, ours) = duplex(1024);
        let reading = tokio::spawn(async move {
            let mut connection = Connection::new(ours);
            let head = connection.head().await.ok().flatten().unwrap();
            connection.body(&head).await.ok().unwrap()
        });
        program.write_all(HEAD).await.unwrap();
        program
            .write_all(b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
            .await
            .unwrap();
        let mut answer = [0; 25];
        program.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 100 Continue\r\n\r\n");
        program.write_all(b"ok").await.unwrap();
        assert_eq!(reading.await.unwrap(), "ok");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn however_the_bytes_are_cut_the_same_request_is_read(cuts in proptest::collection::vec(0_usize..90, 0..6)) {
            let whole = b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n";
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(whole.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts {
                pieces.push(&whole[from..cut]);
                from = cut;
            }
            pieces.push(&whole[from..]);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let (_, body) = runtime.block_on(read(&pieces)).unwrap();
            prop_assert_eq!(body, "hello");
        }
    }
}
