//! An HTTP/1.1 client that hides nothing: what was written and what came back, byte by byte.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tokio::net::{TcpSocket, TcpStream};

/// One connection.
pub(crate) struct Client {
    stream: Option<TcpStream>,
    received: Vec<u8>,
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
    pub body: String,
}

impl Reply {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }
}

/// The text of a request.
pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        text.push_str(&format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()));
    }
    text + "\r\n" + body
}

pub(crate) async fn get(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Reply {
    Client::connect(address).await.exchange(&request("GET", path, headers, "")).await
}

pub(crate) async fn post(address: SocketAddr, path: &str, body: &serde_json::Value) -> Reply {
    Client::connect(address).await.exchange(&request("POST", path, &[], &body.to_string())).await
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self { stream: Some(TcpStream::connect(address).await.unwrap()), received: Vec::new() }
    }

    /// Connects with a receive buffer as small as the system allows, so that not reading is soon felt.
    pub(crate) async fn connect_narrow(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(2048).unwrap();
        Self { stream: Some(socket.connect(address).await.unwrap()), received: Vec::new() }
    }

    /// Sends a GET and returns with the head of the answer.
    pub(crate) async fn open(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> (Self, Head) {
        let mut client = Self::connect(address).await;
        client.send(&request("GET", path, headers, "")).await;
        let head = client.head().await;
        (client, head)
    }

    /// Sends a POST and returns with the head of the answer.
    pub(crate) async fn open_post(address: SocketAddr, path: &str, body: &serde_json::Value) -> (Self, Head) {
        let mut client = Self::connect(address).await;
        client.send(&request("POST", path, &[], &body.to_string())).await;
        let head = client.head().await;
        (client, head)
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.send_bytes(text.as_bytes()).await;
    }

    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        let stream = self.stream.as_ref().unwrap();
        let mut rest = bytes;
        while !rest.is_empty() {
            stream.writable().await.unwrap();
            match stream.try_write(rest) {
                Ok(n) => rest = &rest[n..],
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => panic!("{e}"),
            }
        }
    }

    /// Closes in the ordinary way.
    pub(crate) fn close(mut self) {
        self.stream = None;
    }

    /// Closes the sending half only.
    pub(crate) fn close_sending(&mut self) -> &mut Self {
        let std_stream = self.stream.take().unwrap().into_std().unwrap();
        std_stream.shutdown(std::net::Shutdown::Write).unwrap();
        self.stream = Some(TcpStream::from_std(std_stream).unwrap());
        self
    }

    /// Closes with a reset, like a killed machine that comes back.
    pub(crate) fn reset(mut self) {
        self.stream.take().unwrap().set_zero_linger().unwrap();
    }

    pub(crate) async fn exchange(&mut self, text: &str) -> Reply {
        self.send(text).await;
        let Head { status, headers } = self.head().await;
        let body = if text.starts_with("HEAD ") || status == 204 { String::new() } else { self.body(&headers).await };
        Reply { status, headers, body }
    }

    /// The next response's head.
    pub(crate) async fn head(&mut self) -> Head {
        self.any_head().await.expect("a response")
    }

    /// The same; `None` if the connection ends without one.
    pub(crate) async fn any_head(&mut self) -> Option<Head> {
        let text = self.take_through("\r\n\r\n").await?;
        let mut lines = text.trim_end().split("\r\n");
        let status = lines.next().and_then(|l| l.split(' ').nth(1)?.parse().ok()).expect("a status line");
        let headers = lines.map(|l| {
            let (name, value) = l.split_once(": ").expect("a header");
            (name.to_ascii_lowercase(), value.to_owned())
        });
        Some(Head { status, headers: headers.collect() })
    }

    /// The body that follows a head with these headers.
    pub(crate) async fn body(&mut self, headers: &BTreeMap<String, String>) -> String {
        let Some(len) = headers.get("content-length") else { return self.rest().await };
        let len: usize = len.parse().unwrap();
        while self.received.len() < len {
            assert!(self.fill().await, "the body was cut");
        }
        String::from_utf8(self.received.drain(..len).collect()).unwrap()
    }

    /// The next chunk of a chunked body; `None` after the last, and when the connection ends without one.
    pub(crate) async fn chunk(&mut self) -> Option<String> {
        self.any_chunk().await.filter(|chunk| !chunk.is_empty())
    }

    /// The same, but the last, which is empty, is one too; `None` only when the connection ends without it.
    async fn any_chunk(&mut self) -> Option<String> {
        let size = self.take_through("\r\n").await?;
        let size = usize::from_str_radix(size.trim_end(), 16).expect("a chunk size");
        while self.received.len() < size + 2 {
            if !self.fill().await {
                return None;
            }
        }
        let chunk: Vec<u8> = self.received.drain(..size).collect();
        self.received.drain(..2);
        Some(String::from_utf8(chunk).expect("no half characters in a write"))
    }

    /// Chunks until `text` has come.
    pub(crate) async fn until(&mut self, text: &str) -> String {
        let mut all = String::new();
        while !all.contains(text) {
            all.push_str(&self.chunk().await.unwrap_or_else(|| panic!("ended before {text:?}: {all:?}")));
        }
        all
    }

    /// The rest of a chunked body.
    pub(crate) async fn rest(&mut self) -> String {
        let mut all = String::new();
        while let Some(chunk) = self.chunk().await {
            all.push_str(&chunk);
        }
        all
    }

    /// The rest of a chunked body that must end as a whole one does.
    pub(crate) async fn whole_rest(&mut self) -> String {
        let mut all = String::new();
        loop {
            let chunk = self.any_chunk().await.unwrap_or_else(|| panic!("the body was cut after {all:?}"));
            if chunk.is_empty() {
                return all;
            }
            all.push_str(&chunk);
        }
    }

    /// Whether the server closes the connection; anything it still sends is dropped.
    pub(crate) async fn closed(&mut self) {
        while self.fill().await {}
    }

    async fn take_through(&mut self, end: &str) -> Option<String> {
        loop {
            if let Some(at) = self.received.windows(end.len()).position(|w| w == end.as_bytes()) {
                return Some(String::from_utf8(self.received.drain(..at + end.len()).collect()).unwrap());
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// Reads some; `false` at the end.
    async fn fill(&mut self) -> bool {
        let stream = self.stream.as_ref().unwrap();
        let mut buf = [0; 4096];
        loop {
            stream.readable().await.unwrap();
            match stream.try_read(&mut buf) {
                Ok(0) => return false,
                Ok(n) => {
                    self.received.extend_from_slice(&buf[..n]);
                    return true;
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return false,
                Err(e) => panic!("{e}"),
            }
        }
    }
}
