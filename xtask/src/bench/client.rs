//! A minimal HTTP/1.1 client: keep-alive, one request at a time, prepared request bytes, a reused buffer.
//!
//! The generator shares the machine with the server, so it must cost little: it understands a status, a `Content-Length`
//! and `Connection: close`, and refuses everything else.

use std::{io, ops::Range, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const READ_BYTES: usize = 32 * 1024;

/// A request with every header it needs, as bytes.
pub(super) fn request(method: &str, path: &str, api_key: &str, body: &str) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {api_key}\r\nAccept: */*\r\n");
    if method != "GET" {
        text.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    text.push_str(body);
    text.into_bytes()
}

/// The head of a response, as far as the generator looks at it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    pub(super) body: Range<usize>,
    pub(super) close: bool,
}

/// Reads the head of a response; `None` while it is incomplete.
pub(super) fn parse_head(bytes: &[u8]) -> Result<Option<Head>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        ensure!(bytes.len() < 64 * 1024, "a response head of more than 64 KiB");
        return Ok(None);
    };
    let text = std::str::from_utf8(&bytes[..end]).context("a response head that is not UTF-8")?;
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .and_then(|digits| digits.parse().ok())
        .with_context(|| format!("not a status line: {first:?}"))?;
    let (mut length, mut close) = (None, false);
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { bail!("not a header: {line:?}") };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.parse::<usize>().with_context(|| format!("not a length: {value:?}"))?);
        } else if name.eq_ignore_ascii_case("connection") {
            close = value.eq_ignore_ascii_case("close");
        }
    }
    let length = length.with_context(|| format!("a {status} without Content-Length"))?;
    let start = end + 4;
    Ok(Some(Head { status, body: start..start + length, close }))
}

/// A response; its body lives in the connection's buffer until the next exchange.
#[derive(Debug)]
pub(super) struct Response<'a> {
    pub(super) status: u16,
    pub(super) body: &'a [u8],
}

impl Response<'_> {
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Status and the beginning of the body, for an error message.
    pub(super) fn describe(&self) -> String {
        let shown = &self.body[..self.body.len().min(300)];
        format!("{} {}", self.status, String::from_utf8_lossy(shown))
    }
}

/// A keep-alive connection that reconnects after the server closed it.
pub(super) struct Connection {
    port: u16,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

impl Connection {
    pub(super) fn new(port: u16) -> Self {
        Self { port, stream: None, buffer: Vec::with_capacity(READ_BYTES) }
    }

    /// Connects now, so that a measurement does not begin with it.
    pub(super) async fn connect(&mut self) -> Result<()> {
        let connecting = TcpStream::connect(("127.0.0.1", self.port));
        let stream = timeout(CONNECT_TIMEOUT, connecting).await.context("connecting took too long")??;
        stream.set_nodelay(true)?;
        self.stream = Some(stream);
        Ok(())
    }

    /// Sends one request and reads its whole response.
    pub(super) async fn exchange(&mut self, request: &[u8]) -> Result<Response<'_>> {
        if self.stream.is_none() {
            self.connect().await?;
        }
        let stream = self.stream.as_mut().context("not connected")?;
        let head = match exchange_on(stream, &mut self.buffer, request).await {
            Ok(head) => head,
            Err(error) => {
                self.stream = None;
                return Err(error);
            }
        };
        if head.close {
            self.stream = None;
        }
        Ok(Response { status: head.status, body: &self.buffer[head.body] })
    }
}

async fn exchange_on(stream: &mut TcpStream, buffer: &mut Vec<u8>, request: &[u8]) -> Result<Head> {
    buffer.clear();
    stream.write_all(request).await?;
    let mut head = None;
    loop {
        buffer.reserve(READ_BYTES);
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        if head.is_none() {
            head = parse_head(buffer)?;
        }
        if let Some(found) = head.take() {
            if buffer.len() >= found.body.end {
                ensure!(buffer.len() == found.body.end, "bytes after the end of a response");
                return Ok(found);
            }
            head = Some(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complete_head_gives_status_and_the_place_of_the_body() {
        let bytes = b"HTTP/1.1 201 Created\r\ncontent-type: a/b\r\nContent-Length: 5\r\n\r\nhello";
        let head = parse_head(bytes).unwrap().unwrap();
        assert_eq!((head.status, head.close), (201, false));
        assert_eq!(&bytes[head.body], b"hello");
    }

    #[test]
    fn an_incomplete_head_waits_for_more() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        for cut in 0..bytes.len() {
            assert_eq!(parse_head(&bytes[..cut]).unwrap(), None, "cut at {cut}");
        }
        assert!(parse_head(bytes).unwrap().is_some());
    }

    #[test]
    fn a_closing_response_says_so() {
        let bytes = b"HTTP/1.1 503 Service Unavailable\r\nConnection: Close\r\nContent-Length: 0\r\n\r\n";
        assert!(parse_head(bytes).unwrap().unwrap().close);
    }

    #[test]
    fn what_the_client_does_not_speak_is_an_error() {
        for bytes in [
            &b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
        ] {
            assert!(parse_head(bytes).is_err(), "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_request_carries_key_and_length() {
        let text = String::from_utf8(request("POST", "/a", "k", "{}")).unwrap();
        assert!(text.starts_with("POST /a HTTP/1.1\r\n") && text.ends_with("Content-Length: 2\r\n\r\n{}"));
        assert!(text.contains("X-API-Key: k\r\n"));
        assert!(!String::from_utf8(request("GET", "/a", "k", "")).unwrap().contains("Content-"));
    }
}
