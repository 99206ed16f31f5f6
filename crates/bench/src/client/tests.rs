//! The client against a server that answers with the bytes a test wrote down, cut where the test says.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use super::*;
use tallow_stream::error::{Error, ErrorKind};

/// One answer: raw bytes of an HTTP response, written piece by piece.
struct Script {
    pieces: Vec<Vec<u8>>,
    /// Keep the connection open afterwards and report when the client has closed it.
    then_hold: Option<oneshot::Sender<()>>,
}

impl Script {
    fn new<P: AsRef<[u8]>>(pieces: impl IntoIterator<Item = P>) -> Self {
        Self { pieces: pieces.into_iter().map(|p| p.as_ref().to_vec()).collect(), then_hold: None }
    }

    /// A stream with these SSE bytes in one piece.
    fn stream(sse: &str) -> Self {
        Self::new([stream_head(), sse.to_owned()])
    }
}

fn stream_head() -> String {
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n".to_owned()
}

fn response(status: &str, headers: &str, body: &str) -> Script {
    Script::new([format!(
        "HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )])
}

/// A server that plays one script per connection and keeps the requests.
struct Server {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

fn serve(scripts: Vec<Script>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = requests.clone();
    std::thread::spawn(move || {
        for script in scripts {
            let (mut socket, _) = listener.accept().expect("a client");
            // Pieces must leave as they are written.
            socket.set_nodelay(true).expect("a TCP socket");
            seen.lock().expect("no panic while held").push(read_request(&mut socket));
            for piece in script.pieces {
                // A client that left early is what some tests are about.
                if socket.write_all(&piece).is_err() {
                    break;
                }
            }
            if let Some(closed) = script.then_hold {
                while matches!(socket.read(&mut [0; 64]), Ok(n) if n > 0) {}
                let _ = closed.send(());
            }
        }
    });
    Server { url, requests }
}

/// Head and body; the clients of these tests always send a length.
fn read_request(socket: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return text.into_owned();
            }
        }
        let num_read = socket.read(&mut buffer).expect("the request goes on");
        assert!(num_read > 0, "the request was cut off");
        bytes.extend_from_slice(&buffer[..num_read]);
    }
}

fn chunk(text: &str) -> String {
    let delta = serde_json::json!({ "choices": [{ "index": 0, "delta": { "content": text }, "finish_reason": null }] });
    format!("data: {delta}\n\n")
}

const FINISH: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"completion_tokens\":7}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

fn session(url: &str) -> ChatSession {
    let client = ChatClient::new(url, Some("sesame".to_owned())).expect("a good address");
    ChatSession::new(
        client,
        ChatParams { model: "m".into(), seed: Some(3), ..Default::default() },
        Some("be brief".into()),
    )
}

/// A turn that nobody stops: its end, the text it wrote, and what it told of waits.
async fn turn(session: &mut ChatSession, text: &str) -> (Result<TurnEnd, Error>, String, Vec<String>) {
    let (mut out, mut notices) = (Vec::new(), Vec::new());
    let mut notice = |text: &str| notices.push(text.to_owned());
    let end = session.turn(text, &mut out, &mut notice, std::future::pending()).await;
    (end, String::from_utf8(out).expect("text"), notices)
}

#[tokio::test]
async fn an_answer_is_the_same_however_the_network_cuts_it() {
    let sse = format!(":\n\n{}{}:\n{}{FINISH}{USAGE}{DONE}", chunk("Grüße, "), chunk("🦀"), chunk(" Welt"));
    for size in [1, 2, 3, 7, 64, sse.len()] {
        let pieces = std::iter::once(stream_head().into_bytes()).chain(sse.as_bytes().chunks(size).map(<[u8]>::to_vec));
        let server = serve(vec![Script::new(pieces)]);
        let (end, text, _) = turn(&mut session(&server.url), "hi").await;
        assert_eq!(text, "Grüße, 🦀 Welt", "pieces of {size}");
        let Ok(TurnEnd::Finished(stats)) = end else { panic!("{end:?}") };
        assert_eq!((stats.num_tokens, stats.finish_reason.as_str()), (7, "stop"));
    }
}

#[tokio::test]
async fn history_and_parameters_are_sent_with_every_turn() {
    let answer = || Script::stream(&format!("{}{FINISH}{DONE}", chunk("yes")));
    let server = serve(vec![answer(), answer(), answer()]);
    let mut session = session(&server.url);
    for text in ["one", "two"] {
        turn(&mut session, text).await.0.expect("a good turn");
    }
    session.reset();
    session.set_system("");
    turn(&mut session, "three").await.0.expect("a good turn");
    let requests = server.requests.lock().expect("no panic while held").clone();
    let body = |i: usize| -> serde_json::Value {
        serde_json::from_str(requests[i].split_once("\r\n\r\n").expect("a body").1).expect("JSON")
    };
    assert!(requests[0].starts_with("POST /v1/chat/completions "), "{}", requests[0]);
    assert!(requests[0].contains("authorization: Bearer sesame"), "{}", requests[0]);
    assert_eq!(body(0)["seed"], 3);
    assert!(body(0).get("temperature").is_none(), "what was not asked for is the server's to choose");
    let said = |i: usize| -> Vec<String> {
        let messages = body(i)["messages"].as_array().expect("messages").clone();
        messages
            .iter()
            .map(|m| format!("{}: {}", m["role"].as_str().unwrap(), m["content"].as_str().unwrap()))
            .collect()
    };
    assert_eq!(said(1), ["system: be brief", "user: one", "assistant: yes", "user: two"]);
    assert_eq!(said(2), ["user: three"]);
}

#[tokio::test]
async fn stopping_closes_the_connection_and_keeps_what_was_read() {
    let (closed_tx, closed) = oneshot::channel();
    let script = Script { then_hold: Some(closed_tx), ..Script::stream(&chunk("half an ans")) };
    let server = serve(vec![script]);
    let mut session = session(&server.url);
    // Stops as soon as the first text is out.
    let (stop, stopped) = oneshot::channel();
    let mut out = StopOnWrite { stop: Some(stop), text: Vec::new() };
    let stop = async { stopped.await.expect("the writer lives") };
    let end = session.turn("hi", &mut out, &mut |_| {}, stop).await.expect("stopping is no failure");
    assert!(matches!(end, TurnEnd::Stopped(_)), "{end:?}");
    closed.await.expect("the server saw the connection close");
    let said: Vec<&str> = session.history().iter().map(|m| m.content.as_str()).collect();
    assert_eq!(said, ["hi", "half an ans"]);
}

struct StopOnWrite {
    stop: Option<oneshot::Sender<()>>,
    text: Vec<u8>,
}

impl Write for StopOnWrite {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.text.extend_from_slice(bytes);
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_failure_in_the_middle_is_told_and_leaves_no_trace() {
    let cases = [
        ("data: {\"error\":{\"message\":\"worker restarted\"}}\n\n", "the server gave up: worker restarted"),
        ("", "the stream ended in the middle of the answer"),
        ("data: {oops\n\n", "no JSON"),
    ];
    for (tail, expect) in cases {
        let server = serve(vec![Script::stream(&format!("{}{tail}", chunk("so far")))]);
        let mut session = session(&server.url);
        let (end, text, _) = turn(&mut session, "hi").await;
        assert_eq!(text, "so far");
        let error = end.expect_err("the stream was cut");
        assert!(error.message().contains(expect), "{error}");
        assert!(session.history().is_empty());
    }
}

#[tokio::test]
async fn a_finished_answer_without_done_is_an_answer() {
    let server = serve(vec![Script::stream(&format!("{}{FINISH}", chunk("ok")))]);
    let (end, text, _) = turn(&mut session(&server.url), "hi").await;
    assert!(matches!(end, Ok(TurnEnd::Finished(_))), "{end:?}");
    assert_eq!(text, "ok");
}

#[tokio::test]
async fn a_busy_server_is_asked_again_when_it_said() {
    let busy = || {
        response(
            "429 Too Many Requests",
            "retry-after: 1\r\nretry-after-ms: 1\r\n",
            r#"{"error":{"message":"queue full"}}"#,
        )
    };
    let server = serve(vec![busy(), Script::stream(&format!("{}{FINISH}{DONE}", chunk("ok")))]);
    let (end, text, notices) = turn(&mut session(&server.url), "hi").await;
    end.expect("the second try works");
    assert_eq!(text, "ok");
    assert_eq!(notices, ["queue full (429 Too Many Requests); trying again in 0.0 s"]);

    let server = serve(vec![busy(), busy(), busy(), busy()]);
    let (end, _, notices) = turn(&mut session(&server.url), "hi").await;
    let error = end.expect_err("it stays busy");
    assert_eq!(error.message(), "queue full (429 Too Many Requests); try again in 1 s");
    assert_eq!(notices.len(), 3);

    let server = serve(vec![response("429 Too Many Requests", "retry-after: 90\r\n", "")]);
    let (end, _, notices) = turn(&mut session(&server.url), "hi").await;
    let error = end.expect_err("too long to wait for");
    assert!(error.message().ends_with("try again in 90 s"), "{error}");
    assert!(notices.is_empty());
}

#[tokio::test]
async fn refusals_are_told_in_the_servers_words() {
    let not_found =
        r#"{"error":{"message":"no model m","type":"invalid_request_error","param":null,"code":"model_not_found"}}"#;
    let cases = [
        (response("404 Not Found", "", not_found), ErrorKind::ModelNotFound, "no model m (404 Not Found)"),
        (response("400 Bad Request", "", "plain words"), ErrorKind::InvalidRequest, "plain words (400 Bad Request)"),
        (response("502 Bad Gateway", "", ""), ErrorKind::Internal, "the server answered 502 Bad Gateway"),
        (response("503 Service Unavailable", "", ""), ErrorKind::Unavailable, "503 Service Unavailable"),
        (response("200 OK", "content-type: text/html\r\n", "<p>"), ErrorKind::Io, "answered with text/html"),
    ];
    for (script, kind, expect) in cases {
        let server = serve(vec![script]);
        let error = turn(&mut session(&server.url), "hi").await.0.expect_err("refused");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(expect), "{error}");
    }
}

#[tokio::test]
async fn no_server_says_how_to_start_one() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    drop(listener);
    let client = ChatClient::new(&url, None).expect("a good address");
    let error = client.first_model().await.expect_err("nobody listens");
    assert!(error.message().contains(&url), "{error}");
    assert!(error.message().contains("refused"), "{error}");
    assert!(error.message().contains("`tallow serve`"), "{error}");
}

#[tokio::test]
async fn the_first_listed_model_is_taken() {
    let server =
        serve(vec![response("200 OK", "", r#"{"data":[{"id":"a"},{"id":"b"}]}"#), response("200 OK", "", "{}")]);
    let client = ChatClient::new(&format!("{}/v1/", server.url), None).expect("a good address");
    assert_eq!(client.first_model().await.as_deref(), Ok("a"));
    let error = client.first_model().await.expect_err("none listed");
    assert!(error.message().contains("--model"), "{error}");
}

#[test]
fn addresses_are_checked() {
    let error = ChatClient::new("https://a.test/v1", None).expect_err("no TLS");
    assert!(error.message().contains("no TLS"), "{error}");
    for bad in ["", "localhost:80", "ftp://x", "/v1", "http://"] {
        let error = ChatClient::new(bad, None).expect_err(bad);
        assert!(error.message().starts_with("--url must be"), "{error}");
    }
}

#[tokio::test]
async fn a_redirect_stays_at_the_server_that_was_named() {
    let moved = |to: &str| response("307 Temporary Redirect", &format!("location: {to}\r\n"), "");
    let answer = || Script::stream(&format!("{}{FINISH}{DONE}", chunk("yes")));
    let server = serve(vec![moved("/v2/chat"), answer()]);
    let (end, text, _) = turn(&mut session(&server.url), "hi").await;
    end.expect("the server's own redirect is followed");
    assert_eq!(text, "yes");

    let other = serve(vec![answer()]);
    let server = serve(vec![moved(&format!("{}/v1/chat/completions", other.url))]);
    let error = turn(&mut session(&server.url), "a secret").await.0.expect_err("another port is another server");
    assert!(error.message().contains("307"), "{error}");
    assert!(other.requests.lock().expect("no panic while held").is_empty(), "neither key nor text went there");
}

#[tokio::test]
async fn what_a_server_says_of_an_error_is_cut() {
    let body = serde_json::json!({ "error": { "message": "x".repeat(100_000) } }).to_string();
    let server = serve(vec![response("400 Bad Request", "", &body)]);
    let error = turn(&mut session(&server.url), "hi").await.0.expect_err("refused");
    assert!(error.message().len() < 2100, "{} bytes", error.message().len());
}

#[tokio::test]
async fn an_answer_without_an_end_is_ended() {
    let text = "x".repeat(1 << 19);
    let pieces = std::iter::once(stream_head()).chain((0..40).map(|_| chunk(&text)));
    let server = serve(vec![Script::new(pieces)]);
    let (end, text, _) = turn(&mut session(&server.url), "hi").await;
    let error = end.expect_err("40 pieces of half a mebibyte are too much");
    assert!(error.message().contains("at most 16777216 bytes"), "{error}");
    assert!(text.len() <= 17 << 20);
}
