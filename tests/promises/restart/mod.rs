//! `kill -9` of the real binary at any moment: what clients have seen and what they get after the restart is, number by
//! number and byte by byte, what they would have got from a server that was never killed.
//!
//! `TALLOW_RESTARTS` is the number of kills with the stub (12), `TALLOW_RESTARTS_REAL` with the real model (2).

mod kills;
use crate::real;
use crate::server;

use std::collections::BTreeMap;
use std::io::Read;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use serde_json::{Value, json};
use server::Server;

/// Where a text ends if a request does not say otherwise.
const STOP: &[&str] = &["zq", "the end"];

/// What a client of one stream has: its events by number, and its cursor.
#[derive(Debug, Default, Clone)]
struct Seen {
    events: BTreeMap<u64, Value>,
    last_id: String,
    is_over: bool,
}

impl Seen {
    /// Takes whole blocks off the front of `text`.
    fn take(&mut self, text: &mut String) {
        while let Some(end) = text.find("\n\n") {
            let block: String = text.drain(..end + 2).collect();
            for line in block.lines() {
                if let Some(id) = line.strip_prefix("id: ") {
                    id.clone_into(&mut self.last_id);
                } else if let Some(data) = line.strip_prefix("data: ") {
                    self.event(serde_json::from_str(data).expect("JSON"));
                }
            }
        }
    }

    fn event(&mut self, mut data: Value) {
        let seq = data["seq"].as_u64().expect("a number");
        data.as_object_mut().expect("an object").remove("ts");
        assert_ne!(data["type"], "gap", "{data}");
        assert_ne!(data["type"], "error", "{data}");
        self.is_over |= data["type"] == "done";
        // A merged event has the number of its last: it is taken apart by its tokens below.
        let before = self.events.insert(seq, data);
        assert_eq!(before, None, "event {seq} came twice");
    }

    /// The events that do not depend on how a reader lagged: text and tokens in one, and the end.
    fn transcript(&self) -> (String, Vec<Value>, Value) {
        let tokens = || self.events.values().filter(|e| e["type"] == "token");
        let text = tokens().map(|e| e["text"].as_str().expect("text")).collect();
        let ids = tokens().flat_map(|e| e["tokens"].as_array().expect("tokens").clone()).collect();
        let mut done = self.events.values().last().expect("an end").clone();
        done.as_object_mut().expect("an object").remove("stream");
        (text, ids, done)
    }
}

/// Requests that use what must be rebuilt: draws, penalties, stop strings, log-probabilities, held-back text, grammars.
fn requests(num: usize, max_tokens: usize) -> Vec<Value> {
    let request = |i: usize| {
        // Each `a` forces a `b`, which is held back, since the stop string might begin with it.
        let (guided, stop) = match i % 8 {
            3 | 7 => (Some("([a-z ]{3,40}[.] And then, all of a sudden: )+"), STOP),
            4 => (Some("(ab[cd])+"), &["bz"][..]),
            _ => (None, STOP),
        };
        json!({
            "prompt": format!("The {i}th story begins with a very long road and ").repeat(1 + i % 3),
            "seed": i, "max_tokens": max_tokens + i, "temperature": if i.is_multiple_of(3) { 0.0 } else { 0.9 },
            "repetition_penalty": if i % 2 == 1 { 1.2 } else { 1.0 }, "frequency_penalty": 0.3 * (i % 4) as f64,
            "stop": stop, "ignore_eos": true, "on_disconnect": "detach", "guided_regex": guided,
            "logprobs": i % 5 == 2, "top_logprobs": (i % 5 == 2).then_some(2),
        })
    };
    (0..num).map(request).collect()
}

async fn create(server: &Server, request: &Value) -> String {
    let reply = server.http.post(format!("{}/v1/streams", server.url)).json(request).send().await.unwrap();
    assert_eq!(reply.status(), 201, "{}", reply.text().await.unwrap());
    reply.headers()["location"].to_str().unwrap().to_owned()
}

/// Follows a stream from where `seen` stands, until its end or the server's.
async fn follow(server: &Server, path: &str, seen: &mut Seen) {
    let mut request = server.http.get(format!("{}{path}", server.url));
    if !seen.last_id.is_empty() {
        request = request.header("last-event-id", seen.last_id.clone());
    }
    let Ok(reply) = request.send().await else { return };
    assert!(matches!(reply.status().as_u16(), 200 | 204), "{path}: {}", reply.status());
    let (mut body, mut text) = (reply.bytes_stream(), Vec::new());
    let mut rest = String::new();
    while let Some(Ok(bytes)) = body.next().await {
        text.extend_from_slice(&bytes);
        // Whole characters only; what is cut waits for its rest.
        let whole = std::str::from_utf8(&text).map_or_else(|e| e.valid_up_to(), str::len);
        rest.push_str(std::str::from_utf8(&text[..whole]).expect("checked"));
        text.drain(..whole);
        seen.take(&mut rest);
    }
}

fn count(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |n| n.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_store_a_dead_processs_stream_is_gone_and_said_to_be() {
    let server = Server::start(&["--model", "stub:5"]);
    let path = create(&server, &requests(1, 50)[0]).await;
    server.signal("KILL");
    drop(server);
    let server = Server::start(&["--model", "stub"]);
    let reply = server.http.get(format!("{}{path}", server.url)).send().await.unwrap();
    assert_eq!(reply.status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gentle_end_leaves_streams_to_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--model", "stub:20", "--stream-store", dir.path().to_str().unwrap(), "--drain-timeout-ms", "100"];
    let mut server = Server::start(&args);
    let path = create(&server, &requests(1, 120)[0]).await;
    let mut seen = Seen::default();
    let ended = tokio::join!(follow(&server, &path, &mut seen), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.signal("TERM");
    });
    let ((), ()) = ended;
    assert!(!seen.is_over && seen.events.len() > 2, "{seen:?}");
    server.wait();
    let server = Server::start(&args);
    follow(&server, &path, &mut seen).await;
    assert!(seen.is_over);
    let seqs: Vec<u64> = seen.events.keys().copied().collect();
    assert_eq!(seqs, (0..seqs.len() as u64).collect::<Vec<_>>(), "nothing lost, nothing twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_model_does_not_go_on_with_a_text() {
    let dir = tempfile::tempdir().unwrap();
    let store = ["--stream-store", dir.path().to_str().unwrap()];
    let server = Server::start(&[&["--model", "stub:50"], &store[..]].concat());
    let path = create(&server, &requests(1, 100)[0]).await;
    server.signal("KILL");
    drop(server);
    real::path(real::SMOLLM2);
    let server = Server::start(&[&["--model", real::SMOLLM2], &store[..]].concat());
    let text = server.http.get(format!("{}{path}", server.url)).send().await.unwrap().text().await.unwrap();
    assert!(text.contains("event: error") && text.contains("another model"), "{text}");
}

fn chat(stream: bool) -> Value {
    json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 200, "ignore_eos": true, "stream": stream})
}

/// What an answer of Chat Completions that was cut short by a restart says; gives the stream's path.
#[track_caller]
fn resumable(error: &Value, id: &str) -> String {
    assert_eq!((&error["code"], &error["type"]), (&json!("unavailable"), &json!("server_error")), "{error}");
    let message = error["message"].as_str().expect("a message");
    let path = format!("/v1/streams/{id}");
    assert!(message.contains("restarting") && message.ends_with(&path), "{message}");
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn chats_that_a_restart_cuts_are_told_where_they_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--model", "stub:20", "--stream-store", dir.path().to_str().unwrap(), "--drain-timeout-ms", "100"];
    let mut server = Server::start(&args);
    let streamed = server.chat(&chat(true)).await;
    let id = streamed.headers()["x-stream-id"].to_str().unwrap().to_owned();
    let url = format!("{}/v1/chat/completions", server.url);
    let whole = tokio::spawn(server.http.post(url).json(&chat(false)).send());
    while server.metric("tallow_num_running").await < 2.0 {
        tokio::task::yield_now().await;
    }
    server.signal("TERM");
    let text = streamed.text().await.expect("a whole body");
    let whole = whole.await.unwrap().expect("an answer");
    server.wait();
    let blocks: Vec<&str> = text.split_terminator("\n\n").collect();
    let (last, before) = blocks.split_last().expect("blocks");
    assert!(before.len() > 1 && before.iter().all(|block| !block.contains("error")), "{text}");
    let last: Value = serde_json::from_str(last.strip_prefix("data: ").expect("data")).expect("JSON");
    let path = resumable(&last["error"], &id);
    assert_eq!(whole.status(), 503);
    assert!(whole.headers().contains_key("retry-after"));
    let error: Value = whole.json().await.expect("JSON");
    let message = error["error"]["message"].as_str().expect("a message");
    let whole_path = resumable(&error["error"], message.rsplit('/').next().expect("an id"));

    let server = Server::start(&args);
    for path in [path, whole_path] {
        let mut seen = Seen::default();
        follow(&server, &path, &mut seen).await;
        assert!(seen.is_over, "a chat that was sent away was not cancelled by leaving");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cancelled_stays_cancelled_after_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    // So long that a commit would not come by itself before the kill; the queue holds what has no slot.
    let interval = ["--stream-store-interval-ms", "5000", "--max-num-seqs", "2"];
    let store = ["--model", "stub:5", "--stream-store", dir.path().to_str().unwrap()];
    let args = [&store[..], &interval[..]].concat();
    let mut server = Server::start(&args);
    for kill in 0..count("TALLOW_RESTARTS", 12) / 3 {
        let (running, chat_stream) = (create(&server, &requests(1, 2000)[0]).await, server.chat(&chat(true)).await);
        let queued = create(&server, &requests(1, 2000)[0]).await;
        let chat_id = chat_stream.headers()["x-stream-id"].to_str().unwrap().to_owned();
        let (url, http) = (&server.url, &server.http);
        let delete = |path: &str| http.delete(format!("{url}{path}")).send();
        let chat_cancel = http.post(format!("{url}/v1/chat/completions/chatcmpl-{chat_id}/cancel")).send();
        let answers = tokio::join!(delete(&running), delete(&queued), chat_cancel);
        server.signal("KILL");
        for answer in [answers.0, answers.1, answers.2] {
            assert_eq!(answer.expect("an answer").status(), 204);
        }
        drop(server);
        server = Server::start(&args);
        for path in [running, queued, format!("/v1/streams/{chat_id}")] {
            let text = server.http.get(format!("{}{path}", server.url)).send().await.unwrap().text().await.unwrap();
            assert!(
                text.contains("event: error") && text.contains("\"cancelled\""),
                "{path} after {kill} kills: {text}"
            );
        }
        assert_eq!(server.metric("tallow_requests_accepted_total").await, 0.0, "none came back to life");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_the_keeping_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--model", "stub:2", "--stream-store", dir.path().to_str().unwrap(), "--drain-timeout-ms", "100"];
    // No file beyond 512 KiB; a write beyond fails as on a full disk.
    let (mut server, mut log) = Server::start_bounded("trap '' XFSZ; ulimit -f 512", &args);
    let mut num_streams = 0;
    while server.metric("tallow_stream_store_failed").await == 0.0 {
        assert!(num_streams < 400, "the disk is never full");
        let mut request = requests(1, 20)[0].clone();
        request["prompt"] = "a long way ".repeat(300).into();
        let paths = join_all((0..8).map(|_| create(&server, &request))).await;
        for path in paths {
            let mut seen = Seen::default();
            follow(&server, &path, &mut seen).await;
            assert!(seen.is_over, "{path}");
            num_streams += 1;
        }
    }
    // As if there had never been a store: streams begin, end, are replayed and cancelled.
    let path = create(&server, &requests(1, 20)[0]).await;
    for _ in 0..2 {
        let mut seen = Seen::default();
        follow(&server, &path, &mut seen).await;
        assert!(seen.is_over);
    }
    let path = create(&server, &requests(1, 2000)[0]).await;
    assert_eq!(server.http.delete(format!("{}{path}", server.url)).send().await.unwrap().status(), 204);
    // What is left at the end is told so, since no process will go on with it.
    let path = create(&server, &requests(1, 2000)[0]).await;
    let reading = server.http.get(format!("{}{path}", server.url)).send().await.unwrap();
    server.signal("TERM");
    let text = reading.text().await.expect("a whole body");
    assert!(text.contains("event: error") && text.contains("shutting down"), "{text}");
    assert!(server.wait().success());
    let mut said = String::new();
    log.read_to_string(&mut said).unwrap();
    assert_eq!(said.matches("streams go on in memory alone").count(), 1, "{said}");
    assert!(!said.contains("panicked"), "{said}");
    // With room again, what had been kept is there.
    let server = Server::start(&args);
    assert!(server.metric("tallow_streams").await > 0.0);
    assert_eq!(server.metric("tallow_stream_store_failed").await, 0.0);
}

/// What was under way when the disk failed went on in memory, past what is on disk. Nobody may get the old state for it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_failed_disk_has_only_in_part_does_not_come_back_to_life() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--model", "stub:20", "--stream-store", dir.path().to_str().unwrap()];
    let (mut server, _log) = Server::start_bounded("trap '' XFSZ; ulimit -f 512", &args);
    let long = requests(1, 2000)[0].clone();
    let (read, cancelled) = (create(&server, &long).await, create(&server, &long).await);
    let mut num_streams = 0;
    while server.metric("tallow_stream_store_failed").await == 0.0 {
        assert!(num_streams < 400, "the disk is never full");
        let mut request = requests(1, 1)[0].clone();
        request["prompt"] = "a long way ".repeat(300).into();
        num_streams += join_all((0..8).map(|_| create(&server, &request))).await.len();
    }
    let answer = server.http.delete(format!("{}{cancelled}", server.url)).send().await.unwrap();
    assert_eq!(answer.status(), 204);
    let mut reading = server.http.get(format!("{}{read}", server.url)).send().await.unwrap().bytes_stream();
    let (mut text, mut seen) = (String::new(), Seen::default());
    while seen.events.len() < 20 {
        text += std::str::from_utf8(&reading.next().await.expect("more").expect("bytes")).unwrap();
        seen.take(&mut text);
    }
    assert!(!seen.is_over, "it was under way");
    server.signal("KILL");
    server.wait();

    let mut server = Server::start(&args);
    for (path, is_gap) in [(&read, true), (&cancelled, false)] {
        let mut request = server.http.get(format!("{}{path}", server.url));
        if is_gap {
            request = request.header("last-event-id", &seen.last_id);
        }
        let text = request.send().await.unwrap().text().await.unwrap();
        assert_eq!(text.contains("event: gap") && text.contains("foreign_epoch"), is_gap, "{text}");
        assert!(text.contains("event: error") && text.contains("the text cannot go on"), "{text}");
    }
    assert_eq!(server.metric("tallow_num_running").await, 0.0, "none came back to life");
    // Nor with the next process, which may take what it finds for whole.
    server.signal("KILL");
    server.wait();
    let server = Server::start(&args);
    let whole = server.http.get(format!("{}{read}", server.url)).send().await.unwrap().text().await.unwrap();
    assert!(whole.contains("event: error") && whole.contains("the text cannot go on"), "{whole}");
    assert_eq!(server.metric("tallow_requests_accepted_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bound_on_open_files_is_raised_and_one_that_is_too_low_is_told() {
    let soft = |server: &Server| {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("the bound").to_owned();
        line.split_whitespace().nth(3).expect("the soft one").parse::<u64>().unwrap()
    };
    for (connections, is_told) in [("100", false), ("1000", true)] {
        let args = ["--model", "stub", "--connections-max", connections];
        let (mut server, mut log) = Server::start_bounded("ulimit -Sn 128; ulimit -Hn 512", &args);
        assert_eq!(soft(&server), 512);
        server.signal("TERM");
        server.wait();
        let mut said = String::new();
        log.read_to_string(&mut said).unwrap();
        assert_eq!(said.contains("--connections-max 1000 does not fit into 512 open files"), is_told, "{said}");
    }
}
