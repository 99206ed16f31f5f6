//! Clients that do not read: what they cost, how they end, and that nobody else notices.

use std::time::Duration;

use serde_json::{Value, json};
use tallow::protocol::FinishReason;
use tallow::stream::CancelCause;

use crate::http::common::sse::{SseEvent, SseParser};
use crate::http::common::{Client, Job, Setup, TestServer, get, post, request};

const CHAT: &str = "/v1/chat/completions";
/// With this many kilobytes every buffer on the way is full.
const NUM_PIECES: usize = 2000;

fn narrow(setup: &mut Setup) {
    setup.api.send_buffer_bytes = 4096;
}

fn chat(stream: bool) -> String {
    json!({"messages": [{"role": "user", "content": "hi"}], "stream": stream}).to_string()
}

fn piece(i: usize) -> String {
    format!("{i:04}{}", "x".repeat(300))
}

/// Says more than the buffers hold, so that a client that does not read is behind.
async fn say_much(job: &Job) {
    job.start();
    for i in 0..NUM_PIECES {
        // A reader that stalls may have ended it already: a slow build says little within its patience.
        if job.log.is_finished() {
            return;
        }
        job.say(&piece(i));
        tokio::task::yield_now().await;
    }
}

async fn create(server: &TestServer, on_disconnect: Value) -> (String, Job) {
    let reply = post(server.address, "/v1/streams", &json!({"prompt": "hi", "on_disconnect": on_disconnect})).await;
    (reply.headers["location"].clone(), server.backend.job().await)
}

/// Opens a stream and reads its head, then nothing.
async fn open_narrow(server: &TestServer, text: &str) -> Client {
    let mut client = Client::connect_narrow(server.address).await;
    client.send(text).await;
    assert_eq!(client.head().await.status, 200);
    client
}

async fn no_reader_is_left(server: &TestServer) {
    while server.service.metrics().readers.get() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn text_of(events: &[SseEvent]) -> String {
    events.iter().filter(|e| e.name == "token").map(|e| e.json()["text"].as_str().unwrap().to_owned()).collect()
}

fn whole_text() -> String {
    (0..NUM_PIECES).map(piece).collect()
}

/// Checks that every event follows the one before, a merged one by its `first_seq`.
fn check_dense(events: &[SseEvent], mut next: u64) {
    for event in events {
        let data = event.json();
        assert_eq!(data["first_seq"].as_u64().or(data["seq"].as_u64()), Some(next), "{}", event.last_id);
        next = data["seq"].as_u64().unwrap() + 1;
    }
}

#[tokio::test]
async fn a_native_reader_that_stalls_is_ended_and_resumes_without_loss() {
    let server = TestServer::with(|s| {
        narrow(s);
        s.api.write_stall_timeout = Duration::from_millis(20);
    })
    .await;
    let (path, job) = create(&server, json!("detach")).await;
    let mut stalled = open_narrow(&server, &request("GET", &path, &[], "")).await;
    say_much(&job).await;
    no_reader_is_left(&server).await;
    assert_eq!(job.log.cancelled(), None);

    // What was sent is still there to be read; then the connection ends within the body.
    let mut parser = SseParser::default();
    stalled.rest().await.bytes().for_each(|b| parser.push(b));
    let had = parser.events;
    assert!(had.len() > 2 && had.iter().all(|e| e.name != "done"), "no terminal event: an EventSource comes back");
    job.finish(FinishReason::Stop);
    let reply = get(server.address, &path, &[("last-event-id", &had.last().unwrap().last_id)]).await;
    let rest = SseParser::parse(&reply.body).events;
    let events = [had, rest].concat();
    check_dense(&events, 0);
    assert_eq!(text_of(&events), whole_text());
}

#[tokio::test]
async fn a_chat_whose_only_reader_stalls_is_cancelled() {
    let server = TestServer::with(|s| {
        narrow(s);
        s.api.write_stall_timeout = Duration::from_millis(20);
    })
    .await;
    let stalled = open_narrow(&server, &request("POST", CHAT, &[], &chat(true))).await;
    let mut job = server.backend.job().await;
    say_much(&job).await;
    assert_eq!(job.cancelled().await, CancelCause::ReaderLeft);
    no_reader_is_left(&server).await;
    drop(stalled);
}

#[tokio::test]
async fn what_piles_up_for_a_connected_reader_comes_in_few_events() {
    let server = TestServer::with(narrow).await;
    let (path, job) = create(&server, json!("detach")).await;
    let mut lagging = open_narrow(&server, &request("GET", &path, &[], "")).await;
    let (mut quick, _) = Client::open(server.address, &path, &[]).await;
    say_much(&job).await;
    job.finish(FinishReason::Stop);
    let lagging = SseParser::parse(&lagging.rest().await).events;
    assert!(lagging.len() < NUM_PIECES / 4, "{} events", lagging.len());
    check_dense(&lagging, 0);
    assert_eq!(text_of(&lagging), whole_text());
    assert_eq!(text_of(&SseParser::parse(&quick.rest().await).events), whole_text());
    // What is replayed is what was said, event by event.
    let replay = SseParser::parse(&get(server.address, &path, &[]).await.body).events;
    assert_eq!(replay.len(), NUM_PIECES + 3);
    assert!(replay.iter().all(|e| e.json().get("first_seq").is_none()));
}

#[tokio::test]
async fn an_overtaken_native_reader_gets_a_gap_and_goes_on() {
    let server = TestServer::with(|s| {
        narrow(s);
        s.table.stream_bytes_max = 200 << 10;
    })
    .await;
    let (path, job) = create(&server, json!("detach")).await;
    let mut overtaken = open_narrow(&server, &request("GET", &path, &[], "")).await;
    say_much(&job).await;
    job.finish(FinishReason::Stop);
    assert!(job.log.num_bytes() <= 200 << 10);
    let events = SseParser::parse(&overtaken.rest().await).events;
    let gaps: Vec<usize> = (0..events.len()).filter(|&i| events[i].name == "gap").collect();
    assert_eq!(gaps.len(), 1, "it fell behind once");
    let (before, after) = (&events[..gaps[0]], &events[gaps[0] + 1..]);
    check_dense(before, 0);
    let gap = events[gaps[0]].json();
    assert_eq!(gap["reason"], "trimmed");
    check_dense(after, gap["seq"].as_u64().unwrap());
    assert_eq!(after.last().unwrap().name, "done");
    assert!(whole_text().ends_with(&text_of(after)));

    // Who comes late to history that is gone is told alike, with a cursor and without.
    let epoch = server.service.table().epoch().0;
    for headers in [vec![], vec![("last-event-id", format!("{epoch:x}-1"))]] {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let events = SseParser::parse(&get(server.address, &path, &headers).await.body).events;
        assert_eq!(events[0].name, "gap");
        let first_seq = job.log.first_seq();
        assert_eq!(events[0].json()["seq"], first_seq);
        assert_eq!(events[0].last_id, format!("{epoch:x}-{}", first_seq - 1), "a client cut here comes back to it");
        check_dense(&events[1..], first_seq);
    }
}

#[tokio::test]
async fn an_overtaken_chat_ends_in_an_error_and_never_in_a_wrong_text() {
    let server = TestServer::with(|s| {
        narrow(s);
        s.table.stream_bytes_max = 200 << 10;
    })
    .await;
    let mut overtaken = open_narrow(&server, &request("POST", CHAT, &[], &chat(true))).await;
    let job = server.backend.job().await;
    say_much(&job).await;
    job.finish(FinishReason::Stop);
    let events = SseParser::parse(&overtaken.rest().await).events;
    assert_eq!(events.last().unwrap().json()["error"]["code"], "expired");
    let content = |e: &SseEvent| e.json()["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned();
    let text: String = events[..events.len() - 1].iter().map(content).collect();
    assert!(whole_text().starts_with(&text) && text.len() < whole_text().len());

    // A whole answer is the same log folded: it has no hole either.
    let mut client = Client::connect(server.address).await;
    client.send(&request("POST", CHAT, &[], &chat(false))).await;
    let job = server.backend.job().await;
    job.start();
    // Without yielding, so that the fold stands still meanwhile.
    (0..NUM_PIECES).for_each(|i| job.say(&piece(i)));
    job.finish(FinishReason::Stop);
    let reply = client.exchange("").await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (410, &json!("expired")));
}
