//! P1: the bytes of an event stream are exact. Golden bytes of a scripted generation; what is written is what a strict
//! parser reads, however the bytes are cut; our own client reads the same.

use std::path::Path;

use serde_json::{Value, json};
use tallow::error::ErrorKind;
use tallow::protocol::FinishReason;

use crate::common::host::{CHAT, STREAMS, chat, create, native};
use crate::common::{Figure, Host, Options, Random, SseEvent, SseParser, Wire, http, scale};
use crate::scripted::{GatedBackend, Job};

const SEED: u64 = 101;
/// Ordinary, and everything that could be mistaken for syntax.
const PIECES: &[&str] = &[
    "plain ",
    "a\nb",
    "\r\n",
    "\r",
    "\n\n",
    "data: x\n\n",
    ":\n",
    "id: 1",
    "\u{feff}",
    "\0",
    "\u{2028}\u{2029}",
    "é",
    "漢字",
    "👩\u{200d}🔬",
    "\"quoted\\\"",
    "</script>",
    "\u{7f}\u{1b}[0m",
    "[DONE]",
    "\t",
    "0",
];

/// A response's whole body.
async fn body(host: &Host, method: &str, path: &str, request: Option<Value>) -> Vec<u8> {
    let text = request.map(|r| r.to_string()).unwrap_or_default();
    let (mut wire, head) = Wire::open(host.address, method, path, &[], &text).await.unwrap();
    assert_eq!((head.status, head.headers["content-type"].as_str()), (200, "text/event-stream"));
    wire.rest().await.unwrap()
}

/// What differs from run to run, by name: the stream's id, the epoch, times, the pause before a reconnection.
fn named(bytes: &[u8], id: &str, epoch: &str) -> String {
    let text = std::str::from_utf8(bytes).expect("UTF-8").replace(id, "STREAM").replace(epoch, "EPOCH");
    let mut out = String::new();
    let mut rest = text.as_str();
    let numbers = ["\"ts\":", "retry: ", "\"created\":"];
    while let Some((at, key)) = numbers.iter().filter_map(|key| Some((rest.find(key)?, key))).min() {
        let (before, after) = rest.split_at(at + key.len());
        out.push_str(before);
        out.push_str("TIME");
        rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    out + rest
}

#[track_caller]
fn check_golden(name: &str, got: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/promises/golden").join(name);
    if std::env::var_os("TALLOW_GOLDEN").is_some_and(|v| v == "write") {
        std::fs::write(&path, got).unwrap();
    }
    let expect = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(got, expect, "{name}: TALLOW_GOLDEN=write writes it anew");
}

fn script(job: &Job) {
    job.start();
    for piece in PIECES {
        job.say(piece);
    }
    job.finish(FinishReason::Stop);
}

#[tokio::test]
async fn p1_a_scripted_generation_has_golden_bytes() {
    let backend = GatedBackend::new();
    let host = Host::around(&Options::default(), backend.clone()).await;
    let epoch = format!("{:x}", host.service.table().epoch().0);

    let path = create(host.address, &native(50, 1, &json!("detach"))).await;
    script(&backend.job().await);
    let id = path.rsplit_once('/').unwrap().1;
    check_golden("native.sse", &named(&body(&host, "GET", &path, None).await, id, &epoch));

    let path = create(host.address, &native(50, 1, &json!("detach"))).await;
    backend.job().await.fail(ErrorKind::Internal, "a failure, \"quoted\"\n");
    let id = path.rsplit_once('/').unwrap().1;
    check_golden("native_error.sse", &named(&body(&host, "GET", &path, None).await, id, &epoch));

    let foreign = format!("{:x}-0", host.service.table().epoch().0.wrapping_add(1));
    for (cursor, reason) in [(foreign, "foreign_epoch"), (format!("{epoch}-99"), "past_end")] {
        let bytes = body(&host, "GET", &format!("{path}?last_event_id={cursor}"), None).await;
        check_golden("native_gap.sse", &named(&bytes, id, &epoch).replace(reason, "REASON"));
    }

    let mut request = chat("hi", 50, true);
    request["stream_options"] = json!({"include_usage": true});
    let (bytes, id) = tokio::join!(body(&host, "POST", CHAT, Some(request)), async {
        let job = backend.job().await;
        script(&job);
        job.log.id().to_string()
    });
    check_golden("chat.sse", &named(&bytes, &id, &epoch));
}

#[tokio::test]
async fn p1_a_heartbeat_is_a_line_between_blocks() {
    let backend = GatedBackend::new();
    let host = Host::around(&Options { heartbeat_ms: 20, ..Options::default() }, backend.clone()).await;
    let epoch = format!("{:x}", host.service.table().epoch().0);
    let path = create(host.address, &native(50, 1, &json!("detach"))).await;
    let id = path.rsplit_once('/').unwrap().1;
    let job = backend.job().await;
    let (mut wire, _) = Wire::open(host.address, "GET", &path, &[], "").await.unwrap();
    let mut bytes = Vec::<u8>::new();
    while !bytes.ends_with(b"\n:\n") {
        bytes.extend(wire.some().await.unwrap().expect("the generation has not begun"));
    }
    let first = bytes.windows(3).position(|window| window == b"\n:\n").expect("one has come") + 3;
    check_golden("native_heartbeat.sse", &named(&bytes[..first], id, &epoch));
    script(&job);
    bytes.extend(wire.rest().await.unwrap());
    SseParser::parse(&bytes);
    let text = named(&bytes, id, &epoch);
    let without: String = text.split_inclusive('\n').filter(|line| *line != ":\n").collect();
    check_golden("native.sse", &without);
}

/// Events by our own client.
fn by_client(bytes: &[u8], cuts: &mut Random) -> Vec<(String, String, String)> {
    let mut parser = tallow::client::SseParser::new(1 << 20);
    let (mut events, mut rest) = (Vec::new(), bytes);
    while !rest.is_empty() {
        let (now, later) = rest.split_at(1 + cuts.below(rest.len().min(40)));
        parser.push(now).unwrap();
        while let Some(event) = parser.next_event() {
            // It leaves an event without a name nameless.
            let name = if event.name.is_empty() { "message".to_owned() } else { event.name };
            events.push((name, event.data, event.id));
        }
        rest = later;
    }
    events
}

#[tokio::test]
async fn p1_what_is_written_is_what_is_read_however_it_is_cut() {
    let num_streams = scale(100, 2000);
    println!("seed {SEED}");
    let mut random = Random::new(SEED);
    let backend = GatedBackend::new();
    let host = Host::around(&Options::default(), backend.clone()).await;
    let mut num_differences = 0;
    for n in 0..num_streams {
        let texts: Vec<String> = (0..random.below(30))
            .map(|_| (0..1 + random.below(4)).map(|_| random.of(PIECES)).collect::<String>())
            .collect();
        let is_native = n % 2 == 0;
        let reply = match is_native {
            true => http(host.address, "POST", STREAMS, &[], &native(50, 1, &json!("detach")).to_string()).await.ok(),
            false => None,
        };
        let tell = async {
            let job = backend.job().await;
            job.start();
            texts.iter().for_each(|text| job.say(text));
            job.finish(FinishReason::Length);
        };
        let bytes = match reply {
            Some(created) => {
                tell.await;
                body(&host, "GET", &created.headers["location"], None).await
            }
            None => tokio::join!(body(&host, "POST", CHAT, Some(chat("hi", 50, true))), tell).0,
        };
        let events = SseParser::parse(&bytes);
        let read: Vec<String> = events.iter().filter_map(|e| text_of(e, is_native)).collect();
        if read != texts {
            num_differences += 1;
            println!("stream {n}: read {read:?}\nwritten {texts:?}");
        }
        let ours: Vec<_> = events.into_iter().map(|e| (e.name, e.data, e.id)).collect();
        let theirs = by_client(&bytes, &mut random);
        if theirs != ours {
            num_differences += 1;
            println!("stream {n}: our client read {theirs:?}\nthe standard's {ours:?}");
        }
    }
    let measured = format!("{num_differences} in {num_streams} streams");
    let (what, asked) = ("parse(write(x)) = x, bytes cut anywhere", "0 differences");
    Figure { promise: "P1", what, asked, measured, is_reached: num_differences == 0 }.record();
    assert_eq!(num_differences, 0);
}

fn text_of(event: &SseEvent, is_native: bool) -> Option<String> {
    if event.data == "[DONE]" {
        return None;
    }
    let json = event.json();
    let text = match is_native {
        true if event.name == "token" => json["text"].as_str(),
        true => None,
        false => json["choices"][0]["delta"]["content"].as_str().filter(|text| !text.is_empty()),
    };
    text.map(str::to_owned)
}
