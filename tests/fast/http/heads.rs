//! Heads and request lines as bytes on a socket: those that two programs may read differently are refused with 400 and a
//! closed connection, and nothing of them is handled; all others are answered in the shape of their dialect.

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tallow::api::openapi::ROUTES;

use crate::http::common::{Client, TestServer, request};

/// Far longer than any answer takes.
const FAR: Duration = Duration::from_secs(30);
const HOST: &str = "host: localhost\r\n";
const JSON: &str = "content-type: application/json\r\n";

/// Heads that hyper itself would take, or refuse in its own way; `{h}` stands for good lines.
const REFUSED: &[&str] = &[
    "POST /v1/streams HTTP/1.1\n{h}content-length: 15\r\n\r\n{\"prompt\": \"a\"}",
    "POST /v1/streams HTTP/1.1\r\n{h}content-length: 15\n\r\n{\"prompt\": \"a\"}",
    "POST /v1/streams HTTP/1.1\r\n{h}content-length: 15\r\n\n{\"prompt\": \"a\"}",
    "\nPOST /v1/streams HTTP/1.1\r\n{h}content-length: 15\r\n\r\n{\"prompt\": \"a\"}",
    "POST /v1/streams HTTP/1.1\r\n{h}content-length: 15\r\ncontent-length: 15\r\n\r\n{\"prompt\": \"a\"}",
    "POST /v1/streams HTTP/1.1\r\n{h}content-length: 15\r\nContent-Length: 15\r\n\r\n{\"prompt\": \"a\"}",
    "POST /v1/streams HTTP/1.1\r\n{h}content-length: 15\r\ntransfer-encoding: chunked\r\n\r\n{\"prompt\": \"a\"}",
    "POST /v1/streams HTTP/1.1\r\n{h}transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\nf\r\n{\"prompt\": \"a\"}\r\n0\r\n\r\n",
    "POST /v1/streams HTTP/1.1\r\n{h}transfer-encoding: gzip, chunked\r\n\r\nf\r\n{\"prompt\": \"a\"}\r\n0\r\n\r\n",
    "POST /v1/streams HTTP/1.1\r\n{h}transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\nf\r\n{\"prompt\": \"a\"}\r\n0\r\n\r\n",
    "POST /v1/streams HTTP/1.1\r\n{h}host: localhost\r\ncontent-length: 15\r\n\r\n{\"prompt\": \"a\"}",
    "POST /v1/streams HTTP/1.1\r\n{h}x: a\r\n b\r\ncontent-length: 15\r\n\r\n{\"prompt\": \"a\"}",
    "POST /v1/streams HTTP/1.1\r\n{h}x: a\0b\r\ncontent-length: 15\r\n\r\n{\"prompt\": \"a\"}",
    "POST /v1/streams HTTP/1.1\r\n{h}x: a\rb\r\ncontent-length: 15\r\n\r\n{\"prompt\": \"a\"}",
    "POST /v1/streams HTTP/1.1\r\n{h}content-length: +15\r\n\r\n{\"prompt\": \"a\"}",
    "POST /v1/streams HTTP/1.1\r\n{h}content-length : 15\r\n\r\n{\"prompt\": \"a\"}",
];

/// The same within a body in chunks.
const BROKEN_CHUNKS: &[&str] = &[
    "f\n{\"prompt\": \"a\"}\r\n0\r\n\r\n",
    "f\r\n{\"prompt\": \"a\"}\n0\r\n\r\n",
    "f \r\n{\"prompt\": \"a\"}\r\n0\r\n\r\n",
    "0xf\r\n{\"prompt\": \"a\"}\r\n0\r\n\r\n",
    "f\r\n{\"prompt\": \"a\"}x\r\n0\r\n\r\n",
    "f\r\n{\"prompt\": \"a\"}\r\n0\r\n\n",
    "f\r\n{\"prompt\": \"a\"}\r\n0\r\na: b\n\r\n",
    "f\r\n{\"prompt\": \"a\"}\r\n11111111111111111\r\n",
];

#[tokio::test]
async fn a_head_that_two_programs_may_read_differently_is_refused() {
    let server = TestServer::start().await;
    for text in REFUSED {
        let text = text.replace("{h}", &format!("{HOST}{JSON}"));
        for before in ["", "GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"] {
            let mut client = Client::connect(server.address).await;
            // Behind it a whole request, which must not be handled either.
            client
                .send(&(before.to_owned() + &text + &request("POST", "/v1/streams", &[], r#"{"prompt": "b"}"#)))
                .await;
            if !before.is_empty() {
                let head = client.head().await;
                assert_eq!(head.status, 200, "the request before it: {text:?}");
                client.body(&head.headers).await;
            }
            assert_eq!(client.head().await.status, 400, "{text:?}");
            tokio::time::timeout(FAR, client.closed()).await.expect("the connection is closed");
        }
    }
    assert!(server.backend.has_no_job().await, "something was handled");
}

#[tokio::test]
async fn a_chunked_body_that_breaks_its_framing_is_refused() {
    let server = TestServer::start().await;
    let flood = format!("f;{}\r\n{{\"prompt\": \"a\"}}\r\n0\r\n\r\n", "a=b;".repeat(8 << 10));
    for body in BROKEN_CHUNKS.iter().copied().chain([flood.as_str()]) {
        let mut client = Client::connect(server.address).await;
        let text = format!("POST /v1/streams HTTP/1.1\r\n{HOST}{JSON}transfer-encoding: chunked\r\n\r\n{body}");
        client.send(&text).await;
        assert_eq!(client.head().await.status, 400, "{:?}", &text[..text.len().min(200)]);
        tokio::time::timeout(FAR, client.closed()).await.expect("the connection is closed");
    }
    assert!(server.backend.has_no_job().await, "something was handled");
}

#[tokio::test]
async fn bodies_in_chunks_and_by_length_follow_each_other_on_one_connection() {
    let server = TestServer::start().await;
    let mut client = Client::connect(server.address).await;
    let chunked = format!(
        "POST /v1/streams HTTP/1.1\r\n{HOST}{JSON}transfer-encoding: chunked\r\n\r\n\
         5;x=y\r\n{{\"pro\r\nA\r\nmpt\": \"a\"}}\r\n000\r\nx-trailer: 1\r\n\r\n"
    );
    let by_length = request("POST", "/v1/streams", &[], "{\"prompt\":\r\n\r\n\"a\"}");
    for text in [&chunked, &by_length, &chunked, &chunked, &by_length] {
        client.send(text).await;
        let head = client.head().await;
        assert_eq!(head.status, 201, "{text:?}");
        client.body(&head.headers).await;
        server.backend.job().await.run(&["x"]);
    }
}

/// What `text` is answered: its status, and whether its body is an error of `path`'s dialect. `None` without an answer.
async fn answer(server: &TestServer, path: &str, text: &[u8]) -> Option<(u16, bool)> {
    let mut client = Client::connect(server.address).await;
    client.send_bytes(text).await;
    let head = client.any_head().await?;
    if head.headers.get("content-type").is_none_or(|kind| kind != "application/json") {
        return Some((head.status, false));
    }
    let is_anthropic = path == "/v1/messages" || path.starts_with("/v1/messages/");
    let body: serde_json::Value = serde_json::from_str(&client.body(&head.headers).await).ok()?;
    let message = &body["error"]["message"];
    let has_shape = message.is_string() && (body["type"] == "error") == is_anthropic;
    Some((head.status, has_shape))
}

#[tokio::test]
async fn a_path_that_is_no_text_is_answered_in_the_errors_shape_on_every_route() {
    let server = TestServer::start().await;
    let mut paths = vec!["/%ff".to_owned(), "/v1/%C3%28/x".to_owned(), "/v1/messages/%ff".to_owned()];
    for route in ROUTES.iter().filter(|route| route.path.contains('{')) {
        let at = (route.path.find('{').unwrap(), route.path.find('}').unwrap());
        for name in ["%ff", "%C3%28", "%00", "%zz", "%", "%f", "resp_%ff", "%2e%2e%2f", "%ed%a0%80"] {
            paths.push(format!("{}{name}{}", &route.path[..at.0], &route.path[at.1 + 1..]));
        }
    }
    for path in &paths {
        for method in ["GET", "POST", "DELETE", "PUT", "OPTIONS", "FROB"] {
            let text = request(method, path, &[], "");
            let (status, has_shape) = answer(&server, path, text.as_bytes()).await.expect("an answer");
            assert!(has_shape && (400..500).contains(&status), "{method} {path}: {status}");
        }
    }
}

#[tokio::test]
async fn targets_of_other_forms_and_lengths_are_answered() {
    let server = TestServer::start().await;
    for (line, expect) in [
        ("OPTIONS * HTTP/1.1", (404, true)),
        ("GET * HTTP/1.1", (404, true)),
        ("CONNECT localhost:80 HTTP/1.1", (404, true)),
        ("GET http://localhost/nowhere HTTP/1.1", (404, true)),
        ("FROB /v1/messages HTTP/1.1", (405, true)),
        ("GET /v1/models HTTP/2.0", (400, false)),
        ("GET  /v1/models HTTP/1.1", (400, false)),
        ("GET /v1/models", (400, false)),
        ("GET /v1 models HTTP/1.1", (400, false)),
        ("get\t/v1/models HTTP/1.1", (400, false)),
    ] {
        let path = line.split(' ').nth(1).unwrap();
        let got = answer(&server, path, format!("{line}\r\n{HOST}\r\n").as_bytes()).await;
        assert_eq!(got, Some(expect), "{line}");
    }
    for (num_bytes, status) in [(4000, 404), (20_000, 431), (200_000, 431)] {
        let path = format!("/v1/models/{}", "a".repeat(num_bytes));
        let text = format!("GET {path} HTTP/1.1\r\n{HOST}\r\n");
        let sent = &text.as_bytes()[..text.len().min(17 << 10)];
        assert_eq!(answer(&server, &path, sent).await.map(|got| got.0), Some(status), "{num_bytes}");
    }
}

#[test]
fn no_request_line_is_answered_by_a_failure_or_by_nothing() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = runtime.block_on(TestServer::start());
    let method = prop_oneof![Just("GET".to_owned()), Just("POST".to_owned()), "[A-Z!#%a-z]{1,9}"];
    let roots = ROUTES.iter().map(|route| route.path).collect::<Vec<_>>();
    let piece = prop_oneof![
        prop::sample::select(roots).prop_map(|path| path.as_bytes().to_vec()),
        "[/?#%&=.:;@a-f0-9{}|\\\\^`\"<>\\[\\]]{0,12}".prop_map(String::into_bytes),
        prop::sample::select(vec!["%ff", "%00", "%", "http://localhost", "*", "//", "/../"])
            .prop_map(|text| text.as_bytes().to_vec()),
        prop::collection::vec(prop_oneof![9 => 0x21..0x7f_u8, 1 => any::<u8>()], 0..8),
    ];
    let target = prop::collection::vec(piece, 1..5).prop_map(|pieces| pieces.concat());
    let version = prop::sample::select(vec!["HTTP/1.1", "HTTP/1.0", "HTTP/1.2", "http/1.1", ""]);
    // No failures are kept: the seed is the runner's own, and it prints the case.
    let config = Config { cases: 400, failure_persistence: None, ..Config::default() };
    let mut runner =
        TestRunner::new_with_rng(config, proptest::test_runner::TestRng::deterministic_rng(Default::default()));
    let ran = runner.run(&(method, target, version), |(method, target, version)| {
        let text =
            [method.as_bytes(), b" ", &target, b" ", version.as_bytes(), b"\r\n", HOST.as_bytes(), b"\r\n"].concat();
        let shown = String::from_utf8_lossy(&text).into_owned();
        let path = String::from_utf8_lossy(&target).into_owned();
        let got = runtime.block_on(async { tokio::time::timeout(FAR, answer(&server, &path, &text)).await });
        let status = match got {
            Err(_) => return Err(TestCaseError::fail(format!("no answer and no end: {shown:?}"))),
            // Closed without an answer, as HTTP/0.9 and HTTP/2 are.
            Ok(None) => return Ok(()),
            Ok(Some((status, _))) => status,
        };
        prop_assert!(status < 500, "{} for {:?}", status, shown);
        Ok(())
    });
    ran.unwrap_or_else(|e| panic!("{e}"));
}
