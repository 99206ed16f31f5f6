//! A small server on loopback that answers as the model hub does: `/api/models/...` lists files, `/resolve/...`
//! redirects to storage with the hash in a header, storage serves ranges. Tests tell it how to misbehave, up to the
//! bytes of each answer. A second one on another port is what a hub redirects to.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use sha2::{Digest, Sha256};

pub(super) const REPO: &str = "acme/tiny-GGUF";
pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the server behaves. The default is flawless.
#[derive(Debug, Default)]
pub(super) struct Behaviour {
    /// For each of the next answers with file data: the bytes after which the connection is cut.
    pub(super) cut_after: VecDeque<usize>,
    /// Answers a range with the whole file, as a server without ranges does.
    pub(super) ignore_range: bool,
    /// Only this bearer token gets an answer other than 401.
    pub(super) token: Option<String>,
    /// What is sent instead of the true hash.
    pub(super) linked_etag: Option<String>,
    /// Status of every answer.
    pub(super) status: Option<u16>,
    /// Answers with file data wait until [`FakeHub::open_gate`].
    pub(super) gate: bool,
    /// Where the storage is, if on another server: its address without a trailing slash.
    pub(super) storage: Option<String>,
    /// Paths that are redirected, without another word, and where to. A prefix of a path stands for all under it.
    pub(super) redirects: Vec<(String, String)>,
    /// Names neither size nor hash of a file, and sends it without its length.
    pub(super) without_size: bool,
    /// What is sent instead of the true size.
    pub(super) linked_size: Option<u64>,
    /// Sends file data without its length, and this many bytes more than there are.
    pub(super) surplus: usize,
    /// The listing, instead of the true one.
    pub(super) listing: Option<String>,
}

/// Makes the bytes of an answer, head and all.
pub(super) type Script = dyn Fn(&Request) -> Vec<u8> + Send + Sync;

/// One request as it came in.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) path: String,
    pub(super) headers: HashMap<String, String>,
}

pub(super) struct FakeHub {
    address: SocketAddr,
    shared: Arc<FakeHubState>,
    thread: Option<JoinHandle<()>>,
}

struct FakeHubState {
    script: Option<Box<Script>>,
    files: HashMap<String, Vec<u8>>,
    behaviour: Mutex<Behaviour>,
    gate_changed: Condvar,
    requests: Mutex<Vec<Request>>,
    stopped: AtomicBool,
}

impl FakeHub {
    /// Serves `files` as the only repository, [`REPO`].
    pub(super) fn start(files: &[(&str, &[u8])], behaviour: Behaviour) -> Self {
        Self::begin(files, behaviour, None)
    }

    /// Answers with the bytes that `script` makes.
    pub(super) fn scripted(script: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::begin(&[], Behaviour::default(), Some(Box::new(script)))
    }

    fn begin(files: &[(&str, &[u8])], behaviour: Behaviour, script: Option<Box<Script>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(FakeHubState {
            script,
            files: files.iter().map(|(name, data)| ((*name).to_owned(), data.to_vec())).collect(),
            behaviour: Mutex::new(behaviour),
            gate_changed: Condvar::new(),
            requests: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || accept(&listener, &for_thread));
        Self { address, shared, thread: Some(thread) }
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All requests so far.
    pub(super) fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// Requests that asked for file data.
    pub(super) fn data_requests(&self) -> Vec<Request> {
        self.requests().into_iter().filter(|r| r.path.starts_with("/storage/")).collect()
    }

    /// The bearer tokens that came, each as often as it came.
    pub(super) fn tokens(&self) -> Vec<String> {
        self.requests().iter().filter_map(|r| r.headers.get("authorization").cloned()).collect()
    }

    /// Changes how it goes on.
    pub(super) fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.shared.behaviour.lock().unwrap());
    }

    pub(super) fn open_gate(&self) {
        self.shared.behaviour.lock().unwrap().gate = false;
        self.shared.gate_changed.notify_all();
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.open_gate();
        // Wakes the accept loop.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<FakeHubState>) {
    for stream in listener.incoming() {
        if shared.stopped.load(Ordering::SeqCst) {
            return;
        }
        let shared = Arc::clone(shared);
        // A client that hangs up early is no fault of the server.
        std::thread::spawn(move || stream.map(|stream| shared.serve(stream)));
    }
}

impl FakeHubState {
    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let request = read_request(&stream)?;
        self.requests.lock().unwrap().push(request.clone());
        if let Some(script) = &self.script {
            return stream.write_all(&script(&request));
        }
        let mut head: Vec<(String, String)> = Vec::new();
        let (status, body) = self.answer(&request, &mut head);
        let is_data = request.path.starts_with("/storage/") && status < 300;
        let mut cut = body.len();
        let mut surplus = None;
        if is_data {
            let behaviour = self.behaviour.lock().unwrap();
            let mut behaviour = self.gate_changed.wait_while(behaviour, |b| b.gate).unwrap();
            cut = behaviour.cut_after.pop_front().unwrap_or(cut).min(cut);
            surplus = (behaviour.without_size || behaviour.surplus > 0).then_some(behaviour.surplus);
        }
        let mut text = format!("HTTP/1.1 {status} X\r\nconnection: close\r\n");
        if surplus.is_none() {
            text.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        for (name, value) in head {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{text}\r\n").as_bytes())?;
        stream.write_all(&body[..cut])?;
        stream.write_all(&vec![b'x'; surplus.unwrap_or(0)])
    }

    fn answer(&self, request: &Request, head: &mut Vec<(String, String)>) -> (u16, Vec<u8>) {
        let behaviour = self.behaviour.lock().unwrap();
        if let Some(status) = behaviour.status {
            return (status, Vec::new());
        }
        for (path, to) in &behaviour.redirects {
            if let Some(rest) = request.path.strip_prefix(path) {
                head.push(("location".to_owned(), format!("{to}{rest}")));
                return (307, b"moved".to_vec());
            }
        }
        let bearer = behaviour.token.as_ref().map(|token| format!("Bearer {token}"));
        if bearer.is_some() && request.headers.get("authorization") != bearer.as_ref() {
            return (401, Vec::new());
        }
        if request.path == format!("/api/models/{REPO}/revision/main") {
            if let Some(listing) = &behaviour.listing {
                return (200, listing.clone().into_bytes());
            }
            let mut names: Vec<&String> = self.files.keys().collect();
            names.sort();
            let siblings: Vec<_> = names.iter().map(|name| serde_json::json!({ "rfilename": name })).collect();
            return (200, serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string().into_bytes());
        }
        for revision in ["main", COMMIT] {
            let name = request.path.strip_prefix(&format!("/{REPO}/resolve/{revision}/"));
            if let Some((name, data)) = name.and_then(|name| self.files.get_key_value(name)) {
                let storage = behaviour.storage.as_deref().unwrap_or_default();
                head.push(("location".to_owned(), format!("{storage}/storage/{name}")));
                head.push(("x-repo-commit".to_owned(), COMMIT.to_owned()));
                if !behaviour.without_size {
                    let etag = behaviour.linked_etag.clone().unwrap_or_else(|| sha256_hex(data));
                    let size = behaviour.linked_size.unwrap_or(data.len() as u64);
                    head.push(("x-linked-etag".to_owned(), format!("\"{etag}\"")));
                    head.push(("x-linked-size".to_owned(), size.to_string()));
                }
                return (302, b"moved".to_vec());
            }
        }
        match request.path.strip_prefix("/storage/").and_then(|name| self.files.get(name)) {
            Some(data) => storage(data, request, behaviour.ignore_range, head),
            None => (404, b"Entry not found".to_vec()),
        }
    }
}

fn storage(data: &[u8], request: &Request, ignore_range: bool, head: &mut Vec<(String, String)>) -> (u16, Vec<u8>) {
    head.push(("etag".to_owned(), "\"some-storage-etag\"".to_owned()));
    let range = request.headers.get("range").filter(|_| !ignore_range);
    let Some((start, end)) = range.and_then(|r| r.strip_prefix("bytes=")?.split_once('-')) else {
        return (200, data.to_vec());
    };
    let start: usize = start.parse().unwrap();
    let end: usize = end.parse().map_or(data.len(), |end: usize| (end + 1).min(data.len()));
    if start >= data.len() {
        return (416, Vec::new());
    }
    head.push(("content-range".to_owned(), format!("bytes {start}-{}/{}", end - 1, data.len())));
    (206, data[start..end].to_vec())
}

fn read_request(stream: &TcpStream) -> std::io::Result<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = HashMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    Ok(Request { path, headers })
}

pub(super) fn sha256_hex(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect()
}
