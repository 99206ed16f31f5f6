//! P19: SIGTERM under load. Within the drain time no stream is cut; what is left at its end hears so, in an event from
//! which a client can come back, on a connection that ends as it should.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;

use crate::common::host::{CHAT, chat, create, native};
use crate::common::{ChildServer, Figure, Options, SseParser, Wire, http, scale};

const STEP_MS: u64 = 5;

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Whole,
    /// With the server's word that it goes down, and for native streams an id to come back with.
    Told,
    Cut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Chat,
    Whole,
    Native,
}

const KINDS: [Kind; 3] = [Kind::Chat, Kind::Whole, Kind::Native];

/// An answer under way.
struct Answer {
    kind: Kind,
    wire: Wire,
    begun: Vec<u8>,
}

impl Answer {
    /// Asks, and waits for the first bytes where there are some before the end.
    async fn begin(to: SocketAddr, kind: Kind, seed: u64, max_tokens: usize) -> Self {
        if kind == Kind::Whole {
            let mut wire = Wire::connect(to).await.unwrap();
            wire.send("POST", CHAT, &[], &chat("whole", max_tokens, false).to_string()).await.unwrap();
            return Self { kind, wire, begun: Vec::new() };
        }
        let (mut wire, head) = if kind == Kind::Native {
            let path = create(to, &native(max_tokens, seed, &json!("detach"))).await;
            Wire::open(to, "GET", &path, &[], "").await.unwrap()
        } else {
            Wire::open(to, "POST", CHAT, &[], &chat("stream", max_tokens, true).to_string()).await.unwrap()
        };
        assert_eq!(head.status, 200);
        let begun = wire.some().await.unwrap().expect("a beginning");
        Self { kind, wire, begun }
    }

    async fn end(mut self) -> End {
        if self.kind == Kind::Whole {
            let Ok(head) = self.wire.head().await else { return End::Cut };
            let is_whole = self.wire.rest().await.is_ok();
            return match head.status {
                200 if is_whole => End::Whole,
                503 if is_whole && head.headers.contains_key("retry-after") => End::Told,
                _ => End::Cut,
            };
        }
        let Ok(rest) = self.wire.rest().await else { return End::Cut };
        let mut bytes = self.begun;
        bytes.extend(rest);
        let events = SseParser::parse(&bytes);
        let last = events.last().expect("events");
        let is_unavailable = |data: &str| data.contains("\"unavailable\"");
        match self.kind {
            Kind::Native => {
                let is_dense = events.iter().enumerate().all(|(n, e)| e.seq() == n as u64);
                match last.name.as_str() {
                    "done" if is_dense => End::Whole,
                    "error" if is_dense && is_unavailable(&last.data) => End::Told,
                    _ => End::Cut,
                }
            }
            _ if last.data == "[DONE]" && !is_unavailable(&events[events.len() - 2].data) => End::Whole,
            _ if events.iter().any(|e| is_unavailable(&e.data)) => End::Told,
            _ => End::Cut,
        }
    }
}

/// Terminates a server under `num_answers` answers of `max_tokens`; how many ended in which way, and whether it ended well.
async fn terminate(options: &Options, num_answers: usize, max_tokens: usize) -> [usize; 3] {
    let server = ChildServer::start(options);
    let beginnings: Vec<_> = (0..num_answers)
        .map(|n| tokio::spawn(Answer::begin(server.address, KINDS[n % KINDS.len()], n as u64, max_tokens)))
        .collect();
    let mut answers = Vec::new();
    for beginning in beginnings {
        answers.push(beginning.await.unwrap());
    }
    while crate::common::host::metric(server.address, "tallow_requests_accepted_total").await < num_answers as f64 {
        tokio::task::yield_now().await;
    }
    server.terminate();
    // From the signal on, newcomers are sent elsewhere; the signal itself may take a moment.
    loop {
        let reply = http(server.address, "POST", CHAT, &[], &chat("late", 1, false).to_string()).await.unwrap();
        if reply.status == 503 {
            assert!(reply.headers.contains_key("retry-after"));
            break;
        }
        assert_eq!(reply.status, 200);
    }
    let mut ends = [0; 3];
    for answer in answers.into_iter().map(|answer| tokio::spawn(answer.end())).collect::<Vec<_>>() {
        ends[answer.await.unwrap() as usize] += 1;
    }
    let ended = tokio::time::timeout(Duration::from_secs(60), server.ended()).await.expect("it ends");
    assert!(ended.success(), "{ended}");
    ends
}

#[tokio::test(flavor = "multi_thread")]
async fn p19_sigterm_cuts_no_stream_within_the_drain_time() {
    let num_answers = scale(48, 192);
    let options = Options { max_num_seqs: 32, step_delay_us: STEP_MS * 1000, ..Options::default() };
    let [whole, told, cut] = terminate(&options, num_answers, 100).await;
    let measured = format!("{cut} cut, {told} told, {whole} whole of {num_answers}");
    let (what, asked) = ("answers under way at SIGTERM, time to drain", "0 cut");
    Figure { promise: "P19", what, asked, measured, is_reached: whole == num_answers }.record();
    assert_eq!([whole, told, cut], [num_answers, 0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn p19_what_is_left_after_the_drain_time_has_an_end_to_come_back_from() {
    let num_answers = scale(48, 192);
    let options = Options { max_num_seqs: 32, step_delay_us: STEP_MS * 1000, drain_ms: 150, ..Options::default() };
    let [whole, told, cut] = terminate(&options, num_answers, 2_000).await;
    let measured = format!("{cut} cut, {told} told, {whole} whole of {num_answers}");
    let (what, asked) = ("answers under way at SIGTERM, no time left", "the rest get a resumable end");
    Figure { promise: "P19", what, asked, measured, is_reached: told == num_answers }.record();
    assert_eq!([whole, told, cut], [0, num_answers, 0]);
}
