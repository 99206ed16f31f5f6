//! P18: nothing grows. Clients of every manner and dialect come for a while: whole readers, cut and resumed ones, slow
//! ones, such as cancel, such as leave, such as send nonsense, such as want a grammar kept to, and such as watch what the
//! others do. Afterwards every gauge, thread and open file is back to where it was.
//! `TALLOW_SOAK_SECONDS` says for how long (`make soak`: ten minutes).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::host::{CHAT, STREAMS, chat, create, metric, native};
use crate::common::{
    ChildServer, Fault, Figure, Options, Proxy, Random, SseEvent, SseParser, Wire, http, is_long, memory, quantile,
};

const SEED: u64 = 118;
const NUM_CLIENTS: usize = 32;
/// Zero when nothing is going on, and what was has been forgotten.
const GAUGES: [&str; 7] = [
    "tallow_num_running",
    "tallow_num_waiting",
    "tallow_queue_tokens",
    "tallow_readers",
    "tallow_kv_blocks_used",
    "tallow_streams",
    "tallow_stream_bytes",
];
/// Grammars that are wanted, so that some are compiled and most are found.
const NUM_GRAMMARS: usize = 12;
/// Events after which who watches the feed leaves it.
const NUM_FEED_EVENTS: usize = 20;
/// How long the last streams, connections and threads may take to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of a long soak: the last third may not need more than this much more than the first.
const GROWTH_MAX: f64 = 1.10;

fn soak_time() -> Duration {
    let text = std::env::var("TALLOW_SOAK_SECONDS").unwrap_or_else(|_| if is_long() { "600" } else { "12" }.to_owned());
    Duration::from_secs(text.parse().unwrap_or_else(|_| panic!("TALLOW_SOAK_SECONDS must be a number, got {text}")))
}

struct Client {
    server: SocketAddr,
    proxy: SocketAddr,
    random: Random,
    until: Instant,
    /// Events that were lost or doubled, answers that should not be.
    num_wrong: usize,
    num_requests: usize,
}

impl Client {
    async fn soak(mut self) -> Self {
        while Instant::now() < self.until {
            self.num_requests += 1;
            match self.random.below(11) {
                0 | 1 => self.resumes().await,
                2 => self.leaves().await,
                3 => self.cancels().await,
                4 => self.reads_slowly().await,
                5 => self.wants_the_whole().await,
                6 => self.abandons().await,
                7 => self.speaks_another_dialect().await,
                8 => self.keeps_to_a_grammar().await,
                9 => self.watches_the_feed().await,
                _ => self.talks_nonsense().await,
            }
        }
        self
    }

    fn max_tokens(&mut self) -> usize {
        1 + self.random.below(120)
    }

    /// Follows a stream through cuts, and compares with what it was.
    async fn resumes(&mut self) {
        let path = create(self.server, &native(self.max_tokens(), self.random.next() % 1000, &json!("detach"))).await;
        let (mut events, mut last_id) = (Vec::<SseEvent>::new(), String::new());
        while !events.last().is_some_and(SseEvent::is_terminal) {
            // A cut connection is tried again.
            let _ = follow(self.proxy, &path, &mut last_id, &mut events).await;
        }
        let whole = http(self.server, "GET", &path, &[], "").await.unwrap().body;
        self.num_wrong += usize::from(SseParser::parse(&whole) != events);
    }

    /// Leaves a chat somewhere in the middle.
    async fn leaves(&mut self) {
        let body = chat("leaves", self.max_tokens(), self.random.one_in(2)).to_string();
        let mut wire = Wire::connect(self.server).await.unwrap();
        wire.send("POST", CHAT, &[], &body).await.unwrap();
        tokio::time::sleep(Duration::from_millis(self.random.below(60) as u64)).await;
        if self.random.one_in(2) { wire.reset() } else { wire.close() }
    }

    async fn cancels(&mut self) {
        let path = create(self.server, &native(self.max_tokens(), 1, &json!("linger"))).await;
        tokio::time::sleep(Duration::from_millis(self.random.below(30) as u64)).await;
        let status = http(self.server, "DELETE", &path, &[], "").await.unwrap().status;
        let body = http(self.server, "GET", &path, &[], "").await.unwrap().body;
        self.num_wrong +=
            usize::from(status != 204 || !SseParser::parse(&body).last().is_some_and(SseEvent::is_terminal));
    }

    async fn reads_slowly(&mut self) {
        let path = create(self.server, &native(self.max_tokens(), 2, &json!("cancel"))).await;
        let mut wire = Wire::connect_narrow(self.server, 2048).await.unwrap();
        wire.send("GET", &path, &[], "").await.unwrap();
        wire.head().await.unwrap();
        for _ in 0..self.random.below(20) {
            if wire.some().await.unwrap().is_none() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn wants_the_whole(&mut self) {
        let body = chat("whole", self.max_tokens(), false).to_string();
        let reply = http(self.server, "POST", CHAT, &[], &body).await.unwrap();
        self.num_wrong += usize::from(reply.status != 200);
    }

    /// Starts a stream that lingers, and never comes.
    async fn abandons(&mut self) {
        let policy = self.random.of(&["detach", "short"]);
        let policy = if policy == "short" { json!({"linger": 0.05}) } else { json!(policy) };
        create(self.server, &native(self.max_tokens(), 3, &policy)).await;
    }

    async fn speaks_another_dialect(&mut self) {
        let (num, is_stream) = (self.max_tokens(), self.random.one_in(2));
        let messages = [json!({"role": "user", "content": "hi"})];
        let (path, mut body, ends) = match self.random.below(3) {
            0 => ("/v1/messages", json!({"model": "stub", "max_tokens": num, "messages": messages}), "message_stop"),
            1 => ("/v1/completions", json!({"prompt": "complete", "max_tokens": num}), "[DONE]"),
            _ => ("/v1/responses", json!({"input": "respond", "max_output_tokens": num}), "event: response.incomplete"),
        };
        body["stream"] = json!(is_stream);
        let reply = http(self.server, "POST", path, &[], &body.to_string()).await.unwrap();
        let is_whole = reply.status == 200 && (!is_stream || reply.text().contains(ends));
        self.num_wrong += usize::from(!is_whole);
    }

    /// Wants small letters, so many at most: the stub would go on for ever.
    async fn keeps_to_a_grammar(&mut self) {
        let most = 5 + self.random.below(NUM_GRAMMARS);
        let mut request = native(200, self.random.next() % 1000, &json!("detach"));
        request["guided_regex"] = json!(format!("[a-z]{{3,{most}}}"));
        let created = http(self.server, "POST", STREAMS, &[], &request.to_string()).await.unwrap();
        if created.status == 429 {
            // Only so many are compiled at once.
            return;
        }
        assert_eq!(created.status, 201);
        let body = http(self.server, "GET", &created.headers["location"], &[], "").await.unwrap().body;
        let events = SseParser::parse(&body);
        let tokens = events.iter().filter(|event| event.name == "token");
        let text: String = tokens.map(|event| event.json()["text"].as_str().expect("text").to_owned()).collect();
        let is_kept = (3..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_lowercase());
        self.num_wrong += usize::from(!is_kept || events.last().is_none_or(|event| event.name != "done"));
    }

    /// Follows what happens to everybody for a while, leaves, and comes back: nothing is missing but what a gap tells.
    async fn watches_the_feed(&mut self) {
        let (mut last_id, mut next_seq) = (String::new(), None);
        for _ in 0..2 {
            let headers = [("last-event-id", last_id.as_str())];
            let (mut wire, head) = Wire::open(self.server, "GET", "/v1/events", &headers, "").await.unwrap();
            assert_eq!(head.status, 200);
            let (mut parser, mut num_events) = (SseParser::resumed(&last_id), 0);
            // When everybody has gone there are heartbeats, so that this ends too.
            while num_events < NUM_FEED_EVENTS && Instant::now() < self.until {
                let events = parser.push(&wire.some().await.unwrap().expect("it has no end"));
                num_events += events.len();
                for event in events {
                    let is_gap = event.name == "gap";
                    self.num_wrong += usize::from(!is_gap && next_seq.is_some_and(|seq| seq != event.seq()));
                    next_seq = (!is_gap).then(|| event.seq() + 1);
                }
            }
            last_id = parser.last_id;
        }
    }

    async fn talks_nonsense(&mut self) {
        let id = format!("{STREAMS}/{:032x}", self.random.next());
        let (method, path, body, expect) = match self.random.below(4) {
            0 => ("POST", CHAT, "{\"messages\": 7}", 400),
            1 => ("GET", id.as_str(), "", 404),
            2 => ("DELETE", id.as_str(), "", 404),
            _ => ("POST", STREAMS, "{\"prompt\": \"x\", \"max_tokens\": 0}", 400),
        };
        let reply = http(self.server, method, path, &[], body).await.unwrap();
        self.num_wrong += usize::from(reply.status != expect);
    }
}

async fn follow(to: SocketAddr, path: &str, last_id: &mut String, events: &mut Vec<SseEvent>) -> std::io::Result<()> {
    let headers = [("last-event-id", last_id.as_str())];
    let (mut wire, head) = Wire::open(to, "GET", path, &headers, "").await?;
    assert_eq!(head.status, 200);
    let mut parser = SseParser::resumed(last_id);
    while let Some(bytes) = wire.some().await? {
        events.extend(parser.push(&bytes));
        last_id.clone_from(&parser.last_id);
    }
    Ok(())
}

/// Resident memory, sampled until then.
async fn watch(pid: u32, until: Instant) -> Vec<f64> {
    let mut samples = Vec::new();
    while Instant::now() < until {
        samples.push(memory::resident(pid) as f64);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    samples
}

/// Waits until nothing is held any more; gives what still is when patience ends.
async fn settle(server: &ChildServer, num_files: usize, num_threads: u64) -> Vec<String> {
    let began = Instant::now();
    loop {
        let mut held = Vec::new();
        for gauge in GAUGES {
            let value = metric(server.address, gauge).await;
            if value != 0.0 {
                held.push(format!("{gauge} {value}"));
            }
        }
        let files = memory::open_files(server.pid());
        if files > num_files {
            held.push(format!("{files} open files, {num_files} before"));
        }
        // Those that wait for grammars to be compiled end a while after their last one.
        let threads = memory::threads(server.pid());
        if threads > num_threads {
            held.push(format!("{threads} threads, {num_threads} before"));
        }
        if held.is_empty() || began.elapsed() > PATIENCE {
            return held;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn plan(mut random: Random) -> impl FnMut() -> Fault + Send {
    move || Fault {
        cut_at: Some(300 + random.below(6000)),
        by_reset: random.one_in(2),
        stall_at: random.one_in(10).then(|| (random.below(2000), Duration::from_millis(20))),
        is_trickle: random.one_in(10),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p18_after_a_soak_everything_is_back_to_where_it_was() {
    println!("seed {SEED}");
    let options = Options {
        max_num_seqs: 16,
        num_blocks: 512,
        step_delay_us: 1_000,
        retention_ms: 2_000,
        heartbeat_ms: 100,
        ..Options::default()
    };
    let server = ChildServer::start(&options);
    // What a first request needs once is not growth.
    let body = chat("warm", 5, false).to_string();
    assert_eq!(http(server.address, "POST", CHAT, &[], &body).await.unwrap().status, 200);
    let mut guided = native(5, 1, &json!("detach"));
    guided["guided_regex"] = json!("[a-z]{5}");
    let path = create(server.address, &guided).await;
    assert_eq!(http(server.address, "GET", &path, &[], "").await.unwrap().status, 200);
    // And one more may be on its way in or out.
    let (num_files, num_threads) = (memory::open_files(server.pid()) + 1, memory::threads(server.pid()) + 1);
    let proxy = Arc::new(Proxy::start(server.address, plan(Random::new(SEED))).await);

    let until = Instant::now() + soak_time();
    let watching = tokio::spawn(watch(server.pid(), until));
    let clients: Vec<_> = (0..NUM_CLIENTS)
        .map(|n| {
            let random = Random::new(SEED + 1 + n as u64);
            let (server, proxy) = (server.address, proxy.address);
            tokio::spawn(Client { server, proxy, random, until, num_wrong: 0, num_requests: 0 }.soak())
        })
        .collect();
    let (mut num_wrong, mut num_requests) = (0, 0);
    for client in clients {
        let client = client.await.unwrap();
        (num_wrong, num_requests) = (num_wrong + client.num_wrong, num_requests + client.num_requests);
    }
    let held = settle(&server, num_files, num_threads).await;
    let m = async |name: &str| metric(server.address, name).await;
    let accepted = m("tallow_requests_accepted_total").await;
    let ended = m("tallow_requests_done_total").await
        + m("tallow_requests_cancelled_total").await
        + m("tallow_requests_failed_total").await;

    let minutes = soak_time().as_secs_f64() / 60.0;
    let cuts = proxy.num_cuts();
    let measured = format!("{held:?} held after {num_requests} clients, {cuts} cuts, {minutes:.1} min");
    let (what, asked) = ("running, waiting, readers, blocks, streams, files, threads", "back to start");
    Figure { promise: "P18", what, asked, measured, is_reached: held.is_empty() }.record();
    let samples = watching.await.unwrap();
    let third = samples.len() / 3;
    let median = |range: &[f64]| quantile(&mut range.to_vec(), 0.5);
    let (first, last) = (median(&samples[..third]), median(&samples[samples.len() - third..]));
    let growth = last / first;
    let mib = f64::from(1 << 20);
    let measured =
        format!("x {growth:.3} from the first third to the last ({:.0} to {:.0} MiB)", first / mib, last / mib);
    let (what, asked) = ("resident memory", "flat (x 1.10 of ten minutes)");
    Figure { promise: "P18", what, asked, measured, is_reached: growth <= GROWTH_MAX }.record();

    assert_eq!(held, [""; 0]);
    assert_eq!(num_wrong, 0, "answers");
    assert_eq!(accepted, ended, "every accepted request ended once");
    assert!(!is_long() || growth <= GROWTH_MAX, "memory grew by x {growth:.3}");
}
