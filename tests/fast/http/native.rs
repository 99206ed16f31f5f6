//! `/v1/streams`: exact bytes, and resuming from anywhere.

use std::time::Duration;

use serde_json::{Value, json};
use tallow::error::{Error, ErrorKind};
use tallow::protocol::{FinishReason, OnDisconnect};
use tallow::stream::CancelCause;

use crate::http::common::sse::{SseEvent, SseParser};
use crate::http::common::{Client, Job, Reply, TestServer, get, post, request};

/// Posts a stream and returns its path and job.
pub(crate) async fn create(server: &TestServer, on_disconnect: Value) -> (String, Job) {
    let body = json!({"prompt": "hi", "on_disconnect": on_disconnect});
    let reply = post(server.address, "/v1/streams", &body).await;
    assert_eq!(reply.status, 201, "{}", reply.body);
    let job = server.backend.job().await;
    assert_eq!(reply.headers["location"], format!("/v1/streams/{}", job.log.id()));
    (reply.headers["location"].clone(), job)
}

/// The frames of a stream body, without the opening (cursor and retry), and the opening's cursor.
fn frames(body: &str) -> (String, String) {
    let (cursor, rest) = body.split_once("\n\n").expect("an id-only block first");
    let (retry, rest) = rest.split_once("\n\n").expect("then the retry");
    let retry: u64 = retry.strip_prefix("retry: ").expect("a retry").parse().expect("digits");
    assert!((1000..2000).contains(&retry), "{retry}");
    (cursor.strip_prefix("id: ").expect("an id").to_owned(), rest.to_owned())
}

async fn delete(server: &TestServer, path: &str) -> Reply {
    Client::connect(server.address).await.exchange(&request("DELETE", path, &[], "")).await
}

/// Replaces the value of each `"ts":`.
fn without_times(text: &str) -> String {
    let mut parts = text.split("\"ts\":");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str("\"ts\":T");
        out.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    out
}

#[tokio::test]
async fn a_stream_is_these_bytes() {
    let server = TestServer::start().await;
    let (path, job) = create(&server, json!("detach")).await;
    job.run(&["H", "é\n"]);
    let reply = get(server.address, &path, &[]).await;
    assert_eq!(reply.headers["content-type"], "text/event-stream");
    let epoch = format!("{:x}", server.service.table().epoch().0);
    let (cursor, body) = frames(&reply.body);
    assert_eq!(cursor, format!("{epoch}-start"));
    let expect = r#"id: E-0
event: queued
data: {"stream":"ID","seq":0,"type":"queued","ts":T,"position":0,"estimated_wait_ms":null}

id: E-1
event: started
data: {"stream":"ID","seq":1,"type":"started","ts":T,"prompt_tokens":2,"cached_tokens":2}

id: E-2
event: token
data: {"stream":"ID","seq":2,"type":"token","ts":T,"text":"H","tokens":[72]}

id: E-3
event: token
data: {"stream":"ID","seq":3,"type":"token","ts":T,"text":"é\n","tokens":[195,169,10]}

id: E-4
event: done
data: {"stream":"ID","seq":4,"type":"done","ts":T,"finish_reason":"stop","usage":{"prompt_tokens":2,"cached_tokens":2,"completion_tokens":3}}

"#;
    let got = without_times(&body).replace(&job.log.id().to_string(), "ID").replace(&format!("id: {epoch}-"), "id: E-");
    assert_eq!(got, expect.replace("é\n\"", "é\\n\""));
}

#[tokio::test]
async fn a_new_stream_is_described() {
    let server = TestServer::start().await;
    let body = json!({"tokens": [1, 2, 3], "max_tokens": 4, "seed": 77, "on_disconnect": {"linger": 1.5}});
    let reply = post(server.address, "/v1/streams", &body).await;
    let job = server.backend.job().await;
    assert_eq!(job.request.prompt, [1, 2, 3]);
    assert_eq!(job.request.on_disconnect, OnDisconnect::Linger { grace_ms: 1500 });
    let expect = json!({
        "id": job.log.id().to_string(), "object": "stream", "status": "queued", "created": job.log.created_ms(),
        "events": 1, "on_disconnect": {"linger": 1.5},
        "start_event_id": format!("{:x}-start", server.service.table().epoch().0),
        "model": "stub", "prompt_tokens": 3, "seed": 77,
    });
    assert_eq!(reply.json(), expect);
    assert_eq!(reply.headers["x-stream-id"], job.log.id().to_string());

    job.run(&["x"]);
    let list = get(server.address, "/v1/streams", &[]).await.json();
    assert_eq!(list["data"][0]["status"], "done");
    assert_eq!(list["data"][0]["events"], 4);
    assert_eq!(list["has_more"], false);
}

#[tokio::test]
async fn the_list_comes_by_pages() {
    let server = TestServer::start().await;
    for _ in 0..5 {
        create(&server, json!("detach")).await;
    }
    let page = async |query: &str| get(server.address, &format!("/v1/streams?{query}"), &[]).await;
    let ids = |list: &Value| -> Vec<String> {
        list["data"].as_array().unwrap().iter().map(|stream| stream["id"].as_str().unwrap().to_owned()).collect()
    };
    let all = ids(&page("").await.json());
    assert_eq!(all.len(), 5);
    let (mut seen, mut after) = (Vec::new(), String::new());
    for has_more in [true, true, false] {
        let list = page(&format!("limit=2&after={after}")).await.json();
        assert_eq!(list["has_more"], has_more, "{list}");
        seen.extend(ids(&list));
        after.clone_from(&seen[seen.len() - 1]);
    }
    assert_eq!(seen, all, "none twice, none left out");
    for (query, param) in [("limit=0", "limit"), ("limit=101", "limit"), ("after=nonsense", "after")] {
        let reply = page(query).await;
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!(param)), "{query}");
    }
}

#[tokio::test]
async fn a_policy_is_spelled_in_the_body_as_in_the_header_too() {
    let server = TestServer::start().await;
    let (_, job) = create(&server, json!("linger=1.5")).await;
    assert_eq!(job.request.on_disconnect, OnDisconnect::Linger { grace_ms: 1500 });
    for bad in ["linger=", "linger=-1", "linger=soon", "cancel=1", "stay"] {
        let reply = post(server.address, "/v1/streams", &json!({"prompt": "hi", "on_disconnect": bad})).await;
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("on_disconnect")), "{bad}");
    }
}

#[tokio::test]
async fn the_default_policy_lingers_half_a_minute() {
    let server = TestServer::start().await;
    post(server.address, "/v1/streams", &json!({"prompt": "hi"})).await;
    assert_eq!(server.backend.job().await.request.on_disconnect, OnDisconnect::Linger { grace_ms: 30_000 });
}

#[tokio::test]
async fn every_cut_resumes_with_the_same_bytes() {
    let server = TestServer::start().await;
    let (path, job) = create(&server, json!("detach")).await;
    // The readers below attach while it runs; the cuts are of a live stream.
    let (mut live, _) = Client::open(server.address, &path, &[]).await;
    job.start();
    job.say("one ");
    let mut live_body = live.until("one ").await;
    job.say("two ");
    live_body += &live.until("two ").await;
    job.finish(FinishReason::Stop);
    live_body += &live.rest().await;
    let (_, whole) = frames(&live_body);
    let events = SseParser::parse(&live_body).events;
    assert_eq!(events.len(), 5);
    let blocks: Vec<&str> = whole.split_inclusive("\n\n").collect();
    for (i, event) in events.iter().enumerate() {
        let id = event.last_id.as_str();
        for (query, headers) in [
            (String::new(), vec![("last-event-id", id)]),
            (format!("?last_event_id={id}"), vec![]),
            (format!("?last_event_id={}", events[0].last_id), vec![("last-event-id", id)]),
        ] {
            let reply = get(server.address, &(path.clone() + &query), &headers).await;
            if i + 1 == events.len() {
                assert_eq!((reply.status, reply.body.as_str()), (204, ""), "after the terminal event");
                continue;
            }
            let (cursor, rest) = frames(&reply.body);
            assert_eq!(cursor, id, "the cursor stays where the client says it is");
            assert_eq!(rest, blocks[i + 1..].concat());
        }
    }
}

#[tokio::test]
async fn a_cursor_that_cannot_be_honoured_gets_a_gap_and_everything() {
    let server = TestServer::start().await;
    let (path, job) = create(&server, json!("detach")).await;
    job.run(&["a", "b"]);
    let epoch = server.service.table().epoch().0;
    let whole = frames(&get(server.address, &path, &[]).await.body).1;
    let foreign = (format!("{:x}-2", epoch ^ 1), "foreign_epoch");
    let past_end = [5, 99, 999_999, u64::MAX].map(|seq| (format!("{epoch:x}-{seq}"), "past_end"));
    for (id, reason) in std::iter::once(foreign).chain(past_end) {
        let reply = get(server.address, &path, &[("last-event-id", &id)]).await;
        assert_eq!(reply.status, 200);
        let events = SseParser::parse(&reply.body).events;
        assert_eq!(events[0].name, "gap");
        assert_eq!(events[0].last_id, format!("{epoch:x}-start"), "a client cut here starts at the beginning");
        let gap = events[0].json();
        assert_eq!((gap["reason"].as_str(), gap["seq"].as_u64()), (Some(reason), Some(0)));
        assert_eq!(gap["stream"], job.log.id().to_string());
        assert!(reply.body.ends_with(&whole));
    }
    // Nothing was had, so nothing was missed.
    let start = get(server.address, &path, &[("last-event-id", &format!("{:x}-start", epoch ^ 1))]).await;
    assert_eq!(frames(&start.body).1, whole);
}

/// Comes to a live stream with cursors that it is far from: each reader is told so, and gets everything, to the end.
pub(crate) async fn follow_from_far_ahead(server: &TestServer) {
    let (path, job) = create(server, json!("detach")).await;
    job.start();
    job.say("before ");
    let epoch = server.service.table().epoch().0;
    let mut readers = Vec::new();
    for seq in [999_999, u64::MAX] {
        let id = format!("{epoch:x}-{seq}");
        let (reader, head) = Client::open(server.address, &path, &[("last-event-id", &id)]).await;
        assert_eq!(head.status, 200, "{id}");
        readers.push(reader);
    }
    job.say("after");
    job.finish(FinishReason::Stop);
    let (start, whole) = frames(&get(server.address, &path, &[]).await.body);
    for mut reader in readers {
        let body = reader.whole_rest().await;
        let first = SseParser::parse(&body).events[0].clone();
        let gap = first.json();
        assert_eq!((first.name.as_str(), first.last_id.as_str()), ("gap", start.as_str()), "{body}");
        assert_eq!((gap["reason"].as_str(), gap["seq"].as_u64()), (Some("past_end"), Some(0)));
        assert!(body.ends_with(&whole), "{body}");
    }
}

#[tokio::test]
async fn a_cursor_far_ahead_of_a_live_stream_gets_a_gap_and_everything() {
    follow_from_far_ahead(&TestServer::start().await).await;
}

#[tokio::test]
async fn wrong_cursors_and_names_have_statuses() {
    let server = TestServer::with(|s| {
        s.table.retention_ms = 0;
        s.api.sweep_interval = Duration::from_millis(1);
    })
    .await;
    let (path, job) = create(&server, json!("detach")).await;
    for bad in ["garbage", "12", "-1", "1f-", "ab-start-2"] {
        let reply = get(server.address, &path, &[("last-event-id", bad)]).await;
        assert_eq!(reply.status, 400, "{bad}");
        assert_eq!(reply.json()["error"]["param"], "last_event_id");
    }
    for unknown in ["/v1/streams/0123456789abcdef0123456789abcdef", "/v1/streams/nonsense", "/v1/streams/%ff"] {
        assert_eq!(get(server.address, unknown, &[]).await.status, 404, "{unknown}");
        assert_eq!(delete(&server, unknown).await.status, 404, "{unknown}");
    }
    job.run(&[]);
    while !server.service.table().is_empty() {
        tokio::task::yield_now().await;
    }
    for reply in [get(server.address, &path, &[]).await, delete(&server, &path).await] {
        assert_eq!(reply.status, 410);
        assert_eq!(reply.json()["error"]["code"], "expired");
    }
}

#[tokio::test]
async fn many_readers_get_the_same_bytes() {
    let server = TestServer::start().await;
    let (path, job) = create(&server, json!("detach")).await;
    let mut readers = Vec::new();
    for _ in 0..16 {
        readers.push(Client::open(server.address, &path, &[]).await.0);
    }
    assert_eq!(server.service.metrics().readers.get(), 16);
    for i in 0..50 {
        if i == 0 {
            job.start();
        }
        job.say(&format!("{i} "));
        tokio::task::yield_now().await;
    }
    job.finish(FinishReason::Length);
    let expect = frames(&get(server.address, &path, &[]).await.body).1;
    for mut reader in readers {
        assert_eq!(frames(&reader.rest().await).1, expect);
    }
}

#[tokio::test]
async fn delete_cancels_once_and_answers_alike() {
    let server = TestServer::start().await;
    let (path, mut job) = create(&server, json!("detach")).await;
    let (mut reader, _) = Client::open(server.address, &path, &[]).await;
    for _ in 0..3 {
        assert_eq!(delete(&server, &path).await.status, 204);
    }
    assert_eq!(job.cancelled().await, CancelCause::Requested);
    let events = SseParser::parse(&reader.rest().await).events;
    let last: &SseEvent = events.last().unwrap();
    assert_eq!(last.name, "error");
    assert_eq!(last.json()["error"]["code"], "cancelled");
    assert_eq!(get(server.address, "/v1/streams", &[]).await.json()["data"][0]["status"], "cancelled");
}

#[tokio::test]
async fn a_chat_can_be_followed_natively() {
    let server = TestServer::start().await;
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "stream": true});
    let (mut chat, head) = Client::open_post(server.address, "/v1/chat/completions", &body).await;
    let path = format!("/v1/streams/{}", head.headers["x-stream-id"]);
    let (mut native, _) = Client::open(server.address, &path, &[]).await;
    server.backend.job().await.run(&["same ", "text"]);
    let texts = |events: &[SseEvent]| {
        events.iter().filter(|e| e.name == "token").map(|e| e.json()["text"].clone()).collect::<Vec<_>>()
    };
    let native = SseParser::parse(&native.rest().await).events;
    assert_eq!(texts(&native), ["same ", "text"]);
    assert!(chat.rest().await.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn logprobs_come_with_ids() {
    let server = TestServer::start().await;
    post(server.address, "/v1/streams", &json!({"prompt": "hi", "logprobs": true, "top_logprobs": 2})).await;
    let job = server.backend.job().await;
    job.run(&["A"]);
    let body = get(server.address, &format!("/v1/streams/{}", job.log.id()), &[]).await.body;
    let token = SseParser::parse(&body).events[2].json();
    let top = json!([{"token": 65, "bytes": [65], "logprob": -0.5}, {"token": 33, "bytes": [33], "logprob": -1.25}]);
    assert_eq!(token["logprobs"], json!([{"token": 65, "bytes": [65], "logprob": -0.5, "top": top}]));
}

#[tokio::test]
async fn a_lingering_stream_ends_after_its_grace_and_a_detached_one_does_not() {
    let server = TestServer::with(|s| s.api.sweep_interval = Duration::from_millis(1)).await;
    let (path, mut job) = create(&server, json!({"linger": 0.01})).await;
    assert_eq!(job.cancelled().await, CancelCause::ReaderLeft, "nobody ever came");
    assert_eq!(get(server.address, &path, &[]).await.status, 200, "what it said stays readable");

    let (path, detached) = create(&server, json!("detach")).await;
    Client::open(server.address, &path, &[]).await.0.close();
    // A second lingering stream outlives its grace while the detached one has been alone for longer.
    let (path, mut job) = create(&server, json!({"linger": 0.01})).await;
    let (reader, _) = Client::open(server.address, &path, &[]).await;
    job.start();
    reader.close();
    assert_eq!(job.cancelled().await, CancelCause::ReaderLeft);
    assert_eq!(detached.log.cancelled(), None);
}

/// Its grace was over before anybody could have come, so that it was cancelled unread.
#[tokio::test]
async fn a_stream_that_does_not_linger_waits_for_its_first_reader_and_for_no_other() {
    // Swept when the test says so.
    let server = TestServer::with(|s| s.api.sweep_interval = Duration::from_secs(3600)).await;
    let (path, mut job) = create(&server, json!({"linger": 0})).await;
    (0..3).for_each(|_| server.service.sweep());
    assert_eq!(job.log.cancelled(), None, "who made it has yet to come");
    let (reader, _) = Client::open(server.address, &path, &[]).await;
    server.service.sweep();
    assert_eq!(job.log.cancelled(), None, "somebody reads");
    reader.close();
    while server.service.metrics().readers.get() > 0 {
        tokio::task::yield_now().await;
    }
    server.service.sweep();
    assert_eq!(job.cancelled().await, CancelCause::ReaderLeft);
}

#[tokio::test]
async fn asking_for_the_head_is_not_reading() {
    let server = TestServer::start().await;
    let (path, job) = create(&server, json!("cancel")).await;
    let head = Client::connect(server.address).await.exchange(&request("HEAD", &path, &[], "")).await;
    assert_eq!((head.status, head.headers["content-type"].as_str()), (200, "text/event-stream"));
    assert_eq!(job.log.cancelled(), None);
}

#[tokio::test]
async fn a_refused_request_leaves_no_stream() {
    let server = TestServer::start().await;
    server.backend.refuse_next(Error::overloaded("the queue is full", 1234));
    let reply = post(server.address, "/v1/streams", &json!({"prompt": "hi"})).await;
    assert_eq!(reply.status, 429);
    server.backend.refuse_next(Error::new(ErrorKind::Unavailable, "loading"));
    assert_eq!(post(server.address, "/v1/streams", &json!({"prompt": "hi"})).await.status, 503);
    assert!(server.service.table().is_empty());
}
