//! Clients that go away, in every way and at every stage: each cancels its generation.

use std::time::Duration;

use serde_json::{Value, json};
use tallow::stream::CancelCause;

use crate::http::common::{Client, TestServer, get, request};

const CHAT: &str = "/v1/chat/completions";

fn body(stream: bool) -> Value {
    json!({"messages": [{"role": "user", "content": "hi"}], "stream": stream})
}

#[derive(Debug, Clone, Copy)]
enum Leave {
    Close,
    CloseSending,
    Reset,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    Queued,
    Started,
    Speaking,
}

#[tokio::test]
async fn whoever_leaves_cancels_at_every_stage() {
    let server = TestServer::start().await;
    for stream in [true, false] {
        for stage in [Stage::Queued, Stage::Started, Stage::Speaking] {
            for leave in [Leave::Close, Leave::CloseSending, Leave::Reset] {
                let mut client = Client::connect(server.address).await;
                client.send(&request("POST", CHAT, &[], &body(stream).to_string())).await;
                let mut job = server.backend.job().await;
                match stage {
                    Stage::Queued => {}
                    Stage::Started => job.start(),
                    Stage::Speaking => {
                        job.start();
                        job.say("so far");
                    }
                }
                assert_eq!(job.log.cancelled(), None);
                match leave {
                    Leave::Close => client.close(),
                    Leave::CloseSending => {
                        client.close_sending();
                    }
                    Leave::Reset => client.reset(),
                }
                println!("stream: {stream}, {stage:?}, {leave:?}");
                assert_eq!(job.cancelled().await, CancelCause::ReaderLeft);
            }
        }
    }
    assert_eq!(server.service.metrics().readers.get(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_after_sending_too_much_is_noticed() {
    let server = TestServer::start().await;
    for stream in [true, false] {
        let mut client = Client::connect(server.address).await;
        // A second request behind the first: the server has unread bytes when the connection closes.
        let text = request("POST", CHAT, &[], &body(stream).to_string());
        client.send(&(text + &request("GET", "/health/live", &[], ""))).await;
        let mut job = server.backend.job().await;
        client.close();
        assert_eq!(job.cancelled().await, CancelCause::ReaderLeft);
    }
}

#[tokio::test]
async fn the_header_lets_a_chat_outlive_its_connection() {
    let server = TestServer::start().await;
    for (policy, stream) in [("detach", true), ("linger=60", true), ("linger", false)] {
        let mut client = Client::connect(server.address).await;
        let headers = [("x-stream-on-disconnect", policy)];
        client.send(&request("POST", CHAT, &headers, &body(stream).to_string())).await;
        let job = server.backend.job().await;
        client.close();
        while server.service.metrics().readers.get() > 0 {
            tokio::task::yield_now().await;
        }
        job.run(&["on and on"]);
        let reply = get(server.address, &format!("/v1/streams/{}", job.log.id()), &[]).await;
        assert!(reply.body.contains("on and on"), "{policy}");
    }
}

#[tokio::test]
async fn one_reader_of_two_may_leave() {
    let server = TestServer::start().await;
    let (chat, head) = Client::open_post(server.address, CHAT, &body(true)).await;
    let mut job = server.backend.job().await;
    let path = format!("/v1/streams/{}", head.headers["x-stream-id"]);
    let (mut watcher, _) = Client::open(server.address, &path, &[]).await;
    chat.close();
    while server.service.metrics().readers.get() > 1 {
        tokio::task::yield_now().await;
    }
    job.start();
    job.say("still here");
    watcher.until("still here").await;
    assert_eq!(job.log.cancelled(), None);
    watcher.close();
    assert_eq!(job.cancelled().await, CancelCause::ReaderLeft);
}

#[tokio::test]
async fn a_connection_serves_one_request_after_another() {
    let server = TestServer::start().await;
    let mut client = Client::connect(server.address).await;
    for _ in 0..3 {
        assert_eq!(client.exchange(&request("GET", "/health/live", &[], "")).await.status, 200);
        client.send(&request("POST", CHAT, &[], &body(true).to_string())).await;
        server.backend.job().await.run(&["x"]);
        assert_eq!(client.head().await.status, 200);
        assert!(client.rest().await.ends_with("data: [DONE]\n\n"));
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = TestServer::start().await;
    let mut client = Client::connect(server.address).await;
    let (first, second) = (request("GET", "/health/live", &[], ""), request("GET", "/v1/models", &[], ""));
    assert!(client.exchange(&(first + &second)).await.body.contains("live"));
    assert!(client.exchange("").await.body.contains("stub"));
}

#[tokio::test]
async fn one_connection_too_many_waits_for_another_to_close() {
    let server = TestServer::with(|s| s.api.connections_max = 1).await;
    let (first, _) = Client::open_post(server.address, CHAT, &body(true)).await;
    let mut second = Client::connect(server.address).await;
    second.send(&request("GET", "/health/live", &[], "")).await;
    let mut job = server.backend.job().await;
    assert_eq!(job.log.cancelled(), None);
    first.close();
    assert_eq!(job.cancelled().await, CancelCause::ReaderLeft);
    assert_eq!(second.head().await.status, 200);
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut() {
    let server = TestServer::with(|s| s.api.header_read_timeout = Duration::from_millis(5)).await;
    let mut slow = Client::connect(server.address).await;
    slow.send("GET / HTTP/1.1\r\nhost:").await;
    slow.closed().await;
    let mut idle = Client::connect(server.address).await;
    idle.closed().await;
}
