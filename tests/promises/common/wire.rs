//! HTTP/1.1 over one socket, hiding nothing: bytes as they come, cut where they are cut.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// Room for at least so much when a socket is read.
const READ_BYTES_MIN: usize = 4 << 10;

/// One connection.
pub(crate) struct Wire {
    pub stream: TcpStream,
    received: Vec<u8>,
    body: Body,
}

/// Where in a response's body the connection stands.
#[derive(Debug)]
enum Body {
    Sized(usize),
    ChunkSize(Vec<u8>),
    Chunk(usize),
    /// The line end behind a chunk, the last one's too.
    ChunkEnd {
        num_left: usize,
        is_last: bool,
    },
    Over,
}

/// The head of a response.
#[derive(Debug)]
pub(crate) struct Head {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
}

/// A whole response.
#[derive(Debug)]
pub(crate) struct Reply {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Reply {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {} {:?}", self.status, String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn text(self) -> String {
        String::from_utf8(self.body).unwrap()
    }
}

/// A request on a connection of its own.
pub(crate) async fn http(
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> io::Result<Reply> {
    Wire::connect(to).await?.exchange(method, path, headers, body).await
}

impl Wire {
    pub(crate) async fn connect(to: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, received: Vec::new(), body: Body::Over })
    }

    /// With a receive buffer of about this size, so that not reading is felt at the other end soon.
    pub(crate) async fn connect_narrow(to: SocketAddr, num_bytes: u32) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(num_bytes)?;
        Ok(Self { stream: socket.connect(to).await?, received: Vec::new(), body: Body::Over })
    }

    /// Connects, asks, and returns with the head of the answer.
    pub(crate) async fn open(
        to: SocketAddr,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> io::Result<(Self, Head)> {
        let mut wire = Self::connect(to).await?;
        wire.send(method, path, headers, body).await?;
        let head = wire.head().await?;
        Ok((wire, head))
    }

    pub(crate) async fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> io::Result<()> {
        let mut text = format!("{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n");
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            text.push_str(&format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()));
        }
        text.push_str("\r\n");
        text.push_str(body);
        self.stream.write_all(text.as_bytes()).await
    }

    pub(crate) async fn exchange(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> io::Result<Reply> {
        self.send(method, path, headers, body).await?;
        let Head { status, headers } = self.head().await?;
        Ok(Reply { status, headers, body: self.rest().await? })
    }

    /// The next response's head.
    pub(crate) async fn head(&mut self) -> io::Result<Head> {
        let end = loop {
            if let Some(at) = self.received.windows(4).position(|w| w == b"\r\n\r\n") {
                break at;
            }
            self.fill().await?;
        };
        let text = String::from_utf8(self.received.drain(..end + 4).collect()).expect("a head is ASCII");
        let mut lines = text.trim_end().split("\r\n");
        let status = lines.next().and_then(|l| l.split(' ').nth(1)?.parse().ok()).expect("a status line");
        let headers = lines.map(|l| {
            let (name, value) = l.split_once(": ").expect("a header");
            (name.to_ascii_lowercase(), value.to_owned())
        });
        let headers: BTreeMap<_, _> = headers.collect();
        self.body = match headers.get("content-length") {
            Some(len) => Body::Sized(len.parse().expect("a length")),
            None if headers.contains_key("transfer-encoding") => Body::ChunkSize(Vec::new()),
            None => Body::Sized(0),
        };
        Ok(Head { status, headers })
    }

    /// What has come of the body, at least a byte; `None` once it is whole.
    ///
    /// # Errors
    /// If the connection ends before the body does.
    pub(crate) async fn some(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let bytes = self.decode();
            if !bytes.is_empty() {
                return Ok(Some(bytes));
            }
            if matches!(self.body, Body::Over | Body::Sized(0)) {
                return Ok(None);
            }
            self.fill().await?;
        }
    }

    /// The rest of the body.
    pub(crate) async fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(bytes) = self.some().await? {
            all.extend(bytes);
        }
        Ok(all)
    }

    /// Closes in the ordinary way, also when there is something unread, of which the kernel would make a reset.
    pub(crate) fn close(self) {
        let stream = self.stream.into_std().expect("a socket");
        // Fails only if the other end was faster.
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }

    /// Closes with a reset, like a killed machine that comes back.
    pub(crate) fn reset(self) {
        self.stream.set_zero_linger().expect("a socket");
    }

    async fn fill(&mut self) -> io::Result<()> {
        self.received.reserve(READ_BYTES_MIN);
        match self.stream.read_buf(&mut self.received).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Takes from what was received all that is body.
    fn decode(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut at = 0;
        while at < self.received.len() {
            let rest = &self.received[at..];
            match &mut self.body {
                Body::Over | Body::Sized(0) => break,
                Body::Sized(num_left) | Body::Chunk(num_left) => {
                    let n = rest.len().min(*num_left);
                    out.extend_from_slice(&rest[..n]);
                    *num_left -= n;
                    at += n;
                    if let Body::Chunk(0) = self.body {
                        self.body = Body::ChunkEnd { num_left: 2, is_last: false };
                    }
                }
                Body::ChunkSize(line) => {
                    line.push(rest[0]);
                    at += 1;
                    if let Some(size) = line.strip_suffix(b"\r\n") {
                        let size = std::str::from_utf8(size).ok().and_then(|s| usize::from_str_radix(s, 16).ok());
                        self.body = match size.expect("a chunk size") {
                            0 => Body::ChunkEnd { num_left: 2, is_last: true },
                            n => Body::Chunk(n),
                        };
                    }
                }
                Body::ChunkEnd { num_left, is_last } => {
                    assert!(matches!(rest[0], b'\r' | b'\n'), "a chunk ends with its line");
                    *num_left -= 1;
                    at += 1;
                    if *num_left == 0 {
                        self.body = if *is_last { Body::Over } else { Body::ChunkSize(Vec::new()) };
                    }
                }
            }
        }
        self.received.drain(..at);
        out
    }
}
