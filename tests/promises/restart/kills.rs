//! Streams that are followed while the server is killed again and again: while it streams, while it accepts more of
//! them, and while it starts. The same ones were left in peace before, and what both say is compared.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::Value;

use super::{Seen, count, create, follow, requests};
use crate::real;
use crate::record::Figure;
use crate::server::{Launched, Server};

/// Most creates of one client around a kill; what they make is to be followed too.
const CREATES_MAX: usize = 3;
/// A create takes as long as the store gathers, 20 ms; the kill comes so long after the first at most.
const CREATE_MS: u64 = 30;

/// What a kill meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meets {
    /// Readers, and creates under way.
    Creates,
    /// A start.
    Start,
    /// Readers.
    Readers,
}

impl Meets {
    /// Each in turn.
    fn of(kill: usize) -> Self {
        [Self::Creates, Self::Start, Self::Readers][kill % 3]
    }
}

/// Text, tokens, and the end.
type Transcript = (String, Vec<Value>, Value);

/// What of a stream must be the same however often its server was killed.
fn transcript(seen: &Seen) -> Transcript {
    let (text, tokens, mut done) = seen.transcript();
    // How many events waited in the queue, and what the cache had, is not the text's.
    done["seq"].take();
    done["usage"]["cached_tokens"].take();
    (text, tokens, done)
}

/// What is to be killed, how often, and beside what.
struct Plan<'a> {
    model: &'a [&'a str],
    requests: Vec<Value>,
    num_kills: usize,
    /// A kill comes so long after a start at most.
    up_ms: u64,
    /// Clients that create around a kill.
    num_creators: usize,
}

/// What each request of a plan gives in peace, and how long a start takes.
struct Peace {
    transcripts: Vec<Transcript>,
    start_time: Duration,
}

impl Peace {
    async fn of(plan: &Plan<'_>) -> Self {
        let began = Instant::now();
        let server = Server::start(plan.model);
        let start_time = began.elapsed();
        let mut transcripts = Vec::new();
        for request in &plan.requests {
            let mut seen = Seen::default();
            let path = create(&server, request).await;
            follow(&server, &path, &mut seen).await;
            assert!(seen.is_over, "{path}");
            transcripts.push(transcript(&seen));
        }
        Self { transcripts, start_time }
    }
}

/// A stream, and what its client has of it.
struct Followed {
    /// Which of the requests it answers.
    request_index: usize,
    path: String,
    seen: Seen,
}

impl Followed {
    fn new(request_index: usize, path: String) -> Self {
        Self { request_index, path, seen: Seen::default() }
    }
}

async fn follow_all(server: &Server, streams: &mut [Followed]) {
    join_all(streams.iter_mut().map(|stream| follow(server, &stream.path, &mut stream.seen))).await;
}

/// What a client has created until it had no answer.
struct Created {
    /// Those that were answered, with the request's index.
    paths: Vec<(usize, String)>,
    num_asked: usize,
}

/// Creates one stream after another.
async fn create_until_killed(http: reqwest::Client, url: String, requests: Vec<(usize, Value)>) -> Created {
    let mut paths = Vec::new();
    for (num_before, (request_index, request)) in requests.iter().enumerate() {
        let Ok(reply) = http.post(format!("{url}/v1/streams")).json(request).send().await else {
            return Created { paths, num_asked: num_before + 1 };
        };
        assert_eq!(reply.status(), 201);
        paths.push((*request_index, reply.headers()["location"].to_str().unwrap().to_owned()));
    }
    Created { paths, num_asked: requests.len() }
}

/// Not random, but irregular.
fn irregular(i: usize, below: u64) -> u64 {
    ((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % below.max(1)
}

/// A plan under way.
struct Killing<'a> {
    plan: Plan<'a>,
    peace: Peace,
    num_kills: usize,
    num_killed_unready: usize,
    num_creates_unanswered: usize,
    num_streams: usize,
    num_different: usize,
}

impl<'a> Killing<'a> {
    async fn of(plan: Plan<'a>) -> Self {
        let peace = Peace::of(&plan).await;
        Self {
            plan,
            peace,
            num_kills: 0,
            num_killed_unready: 0,
            num_creates_unanswered: 0,
            num_streams: 0,
            num_different: 0,
        }
    }

    fn is_over(&self) -> bool {
        self.num_kills == self.plan.num_kills
    }

    /// One folder, and as many kills as it takes until the streams in it are over.
    async fn folder(&mut self) {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().to_str().unwrap().to_owned();
        let model = self.plan.model.iter().copied();
        let args: Vec<&str> = model.chain(["--stream-store", &store, "--max-num-seqs", "4"]).collect();
        let mut server = Server::start(&args);
        let paths = join_all(self.plan.requests.iter().map(|request| create(&server, request))).await;
        let mut streams: Vec<_> =
            paths.into_iter().enumerate().map(|(index, path)| Followed::new(index, path)).collect();
        let mut num_asked = streams.len();
        while streams.iter().any(|stream| !stream.seen.is_over) {
            if self.is_over() {
                follow_all(&server, &mut streams).await;
                continue;
            }
            num_asked += self.kill(&server, &mut streams).await;
            drop(server);
            if !self.is_over() && Meets::of(self.num_kills) == Meets::Start {
                self.kill_in_start(&args).await;
            }
            server = Server::start(&args);
        }
        // Of those whose answer nobody got, any number may be there.
        let num_there = server.metric("tallow_streams").await as usize;
        assert!((streams.len()..=num_asked).contains(&num_there), "{num_there}: {} to {num_asked}", streams.len());
        self.compare(&server, &streams).await;
    }

    /// Kills the server beside its readers, and perhaps amid creates: those that were answered are streams like the
    /// others. Returns how many were asked for.
    async fn kill(&mut self, server: &Server, streams: &mut Vec<Followed>) -> usize {
        let number = self.num_kills;
        let num_creators = if Meets::of(number) == Meets::Creates { self.plan.num_creators } else { 0 };
        let killing = async {
            tokio::time::sleep(Duration::from_millis(1 + irregular(number, self.plan.up_ms))).await;
            let creating: Vec<_> = (0..num_creators).map(|n| tokio::spawn(self.creator(server, number + n))).collect();
            if num_creators > 0 {
                tokio::time::sleep(Duration::from_millis(irregular(number, CREATE_MS))).await;
            }
            server.signal("KILL");
            join_all(creating).await
        };
        let ((), created) = tokio::join!(follow_all(server, streams), killing);
        self.num_kills += 1;
        let mut num_asked = 0;
        for created in created {
            let Created { paths, num_asked: num } = created.unwrap();
            num_asked += num;
            self.num_creates_unanswered += num - paths.len();
            streams.extend(paths.into_iter().map(|(index, path)| Followed::new(index, path)));
        }
        num_asked
    }

    fn creator(&self, server: &Server, first: usize) -> impl Future<Output = Created> + use<> {
        let indices = (first..first + CREATES_MAX).map(|n| n % self.plan.requests.len());
        let requests = indices.map(|index| (index, self.plan.requests[index].clone())).collect();
        create_until_killed(server.http.clone(), server.url.clone(), requests)
    }

    /// Kills a server while it starts, or a little after.
    async fn kill_in_start(&mut self, args: &[&str]) {
        let most_us = 2 * self.peace.start_time.as_micros() as u64;
        let launched = Launched::start(args);
        tokio::time::sleep(Duration::from_micros(irregular(self.num_kills, most_us))).await;
        self.num_killed_unready += usize::from(!launched.kill());
        self.num_kills += 1;
    }

    /// Counts the streams that are not as in peace: what their clients have, or what is on the disk.
    async fn compare(&mut self, server: &Server, streams: &[Followed]) {
        for Followed { request_index, path, seen } in streams {
            let (got, expected) = (transcript(seen), &self.peace.transcripts[*request_index]);
            let mut again = Seen::default();
            follow(server, path, &mut again).await;
            let again = transcript(&again);
            self.num_streams += 1;
            if got != *expected || again != *expected {
                self.num_different += 1;
                println!("request {request_index} after {} kills: {got:?}\nread again: {again:?}", self.num_kills);
                println!("in peace: {expected:?}");
            }
        }
    }
}

async fn check(plan: Plan<'_>, what: &str, asked: &str) {
    let mut killing = Killing::of(plan).await;
    while !killing.is_over() {
        killing.folder().await;
    }
    let Killing { num_kills, num_killed_unready, num_creates_unanswered, num_streams, num_different, .. } = killing;
    let measured = format!(
        "{num_different} of {num_streams} streams in {num_kills} kills, {num_killed_unready} of them before it was ready; \
         {num_creates_unanswered} creates without an answer"
    );
    Figure { promise: "P3", what, asked, measured, is_reached: num_different == 0 }.record();
    assert_eq!(num_different, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_go_on_after_kill_9_as_if_nothing_had_happened() {
    let plan = Plan {
        model: &["--model", "stub:2"],
        requests: requests(7, 150),
        num_kills: count("TALLOW_RESTARTS", 12),
        up_ms: 400,
        num_creators: 3,
    };
    check(plan, "transcripts that differ after kill -9 and restart (stub)", "0 in 100").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn real_streams_go_on_after_kill_9_as_if_nothing_had_happened() {
    real::path(real::SMOLLM2);
    let plan = Plan {
        model: &["--model", real::SMOLLM2],
        requests: requests(5, 120),
        num_kills: count("TALLOW_RESTARTS_REAL", 2),
        up_ms: 1500,
        num_creators: 1,
    };
    check(plan, "transcripts that differ after kill -9 and restart (SmolLM2)", "0 in 10").await;
}
