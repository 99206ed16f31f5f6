//! P2 with the real model: requests join a batch at random moments, with every kind of option, and some leave it. What
//! each said is what it says alone, to the digits of its log-probabilities. The stub's schedules are in
//! `tests/simulation/`.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tallow::model::decoder::{ActivationType, Compute, DecoderOptions, DecoderWeights};
use tallow::model::gguf::Gguf;
use tallow::model::load;
use tallow::model::stub::StubGate;
use tokio::sync::watch;

use crate::common::host::{OtherModel, create};
use crate::common::{Figure, Host, Options, Random, SseParser, Wire, http, is_long, scale};
use crate::real;

const SEED: u64 = 102;
/// Most of a schedule; not all of them have a place, and there are too few blocks for those that have.
const AT_ONCE: usize = 10;
const PLACES: usize = 6;
/// Of 32 tokens; sequences take up to four, so that some are preempted.
const NUM_BLOCKS: usize = 6;

fn options() -> Options {
    Options { max_num_seqs: PLACES, max_num_batched_tokens: 48, num_streams_max: 64, ..Options::default() }
}

/// The `n`th of the requests that schedules are made of.
fn request(n: usize, random: &mut Random) -> Value {
    let subject = ["bread", "the sea", "night trains", "a small dog", "the Moon"][n % 5];
    let mut request = json!({
        "prompt": format!("Request {n} is about {subject}.{}", " Tell me more.".repeat(random.below(10))),
        "max_tokens": 6 + random.below(64),
        "temperature": random.of(&[0.0, 0.7, 1.0, 1.6]),
        "seed": n,
        "ignore_eos": random.one_in(2),
        "logprobs": true,
        "top_logprobs": random.below(4),
        "on_disconnect": "cancel",
    });
    match random.below(8) {
        0 => request["top_p"] = json!(0.9),
        1 => request["top_k"] = json!(20),
        2 => request["min_p"] = json!(0.05),
        3 => request["repetition_penalty"] = json!(1.2),
        4 => request["stop"] = json!(["the", "\n"]),
        5 => request["guided_regex"] = json!("[a-z ]{10,30}\\."),
        6 => request["response_format"] = json!({"type": "json_object"}),
        _ => {}
    }
    request
}

/// What a generation said: every token as its event has it, and how it ended, if it did.
#[derive(Debug, Default, PartialEq)]
struct Said {
    text: String,
    tokens: Vec<String>,
    end: Option<String>,
}

impl Said {
    fn take(&mut self, event: &Value) {
        match event["type"].as_str().unwrap() {
            "token" => {
                self.text += event["text"].as_str().unwrap();
                self.tokens.extend(event["logprobs"].as_array().unwrap().iter().map(Value::to_string));
            }
            "done" => self.end = Some(format!("{} {}", event["finish_reason"], event["usage"]["completion_tokens"])),
            "error" => self.end = Some(event["error"]["code"].to_string()),
            _ => {}
        }
    }

    fn is_beginning_of(&self, whole: &Self) -> bool {
        whole.text.starts_with(&self.text) && whole.tokens.starts_with(&self.tokens)
    }
}

/// How a request's client behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Stays,
    /// Closes its connection after so many tokens.
    Leaves(usize),
    /// Asks for the end after so many tokens.
    Cancels(usize),
}

/// Follows a generation; tells how many tokens have come.
async fn follow(host: Arc<Host>, request: Value, way: Way, num_tokens: watch::Sender<usize>) -> Said {
    let path = create(host.address, &request).await;
    let (mut wire, head) = Wire::open(host.address, "GET", &path, &[], "").await.unwrap();
    assert_eq!(head.status, 200);
    let (mut said, mut parser) = (Said::default(), SseParser::default());
    while let Some(bytes) = wire.some().await.unwrap() {
        parser.push(&bytes).iter().for_each(|event| said.take(&event.json()));
        num_tokens.send_replace(said.tokens.len());
        match way {
            Way::Leaves(after) if said.tokens.len() >= after && said.end.is_none() => {
                wire.close();
                return said;
            }
            Way::Cancels(after) if said.tokens.len() >= after && said.end.is_none() => {
                assert_eq!(http(host.address, "DELETE", &path, &[], "").await.unwrap().status, 204);
            }
            _ => {}
        }
    }
    said
}

/// One schedule; returns how many were compared to their end, and how many left before it.
async fn schedule(host: &Arc<Host>, pool: &[(Value, Said)], random: &mut Random) -> (usize, usize) {
    let mut under_way: Vec<(usize, Way, _, watch::Receiver<usize>)> = Vec::new();
    for _ in 0..3 + random.below(AT_ONCE - 2) {
        // Joins when one of the others has come as far as chance has it, or has ended.
        if !under_way.is_empty() {
            let at = random.below(under_way.len());
            let min = random.below(12);
            // Fails when it has ended.
            let _ = under_way[at].3.wait_for(|num| *num >= min).await;
        }
        let index = random.below(pool.len());
        let way = match random.below(6) {
            0 => Way::Leaves(random.below(8)),
            1 => Way::Cancels(random.below(8)),
            _ => Way::Stays,
        };
        let (sender, num_tokens) = watch::channel(0);
        let following = tokio::spawn(follow(host.clone(), pool[index].0.clone(), way, sender));
        under_way.push((index, way, following, num_tokens));
    }
    let (mut num_whole, mut num_left) = (0, 0);
    for (index, way, following, _) in under_way {
        let (said, (request, alone)) = (following.await.unwrap(), &pool[index]);
        if said.end == alone.end {
            assert_eq!(&said, alone, "{request}");
            num_whole += 1;
        } else {
            assert!(way != Way::Stays, "{request}: {said:?} beside others, {alone:?} alone");
            assert!(said.is_beginning_of(alone), "{request}: {said:?} beside others, {alone:?} alone");
            num_left += 1;
        }
    }
    host.idle().await;
    (num_whole, num_left)
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_a_real_model_says_in_a_batch_what_it_says_alone() {
    let (pool_size, num_schedules) = (scale(8, 60), scale(6, 200));
    println!("seed {SEED}");
    let compute = Compute::Cpu { num_threads: 2, activations: ActivationType::Int8 };
    let mut decoder = DecoderOptions { compute, max_model_len: None, kv_bytes_max: 1 << 30, max_num_seqs: PLACES };
    let path = real::path(real::SMOLLM2);
    decoder.kv_bytes_max = NUM_BLOCKS * block_bytes(&path, &decoder);
    let loaded = load::open(&path, &decoder).unwrap();
    let model = OtherModel { factory: loaded.load().unwrap(), tokenizer: loaded.tokenizer };
    let host = Arc::new(Host::with_model(&options(), model, StubGate::new()).await);
    let mut random = Random::new(SEED);
    let mut pool = Vec::new();
    for n in 0..pool_size {
        let request = request(n, &mut random);
        let alone = follow(host.clone(), request.clone(), Way::Stays, watch::Sender::new(0)).await;
        assert!(alone.end.is_some(), "{request}: {alone:?}");
        pool.push((request, alone));
    }
    assert_eq!(host.metrics().preemptions.get(), 0, "alone there is room");
    let (mut num_whole, mut num_left) = (0, 0);
    for _ in 0..num_schedules {
        let (whole, left) = schedule(&host, &pool, &mut random).await;
        num_whole += whole;
        num_left += left;
    }
    let num_preempted = host.metrics().preemptions.get();
    Figure {
        promise: "P2",
        what: "the same with SmolLM2, over sockets",
        asked: "0 in 200 schedules",
        measured: format!(
            "0 in {num_schedules}: {num_whole} requests to their end, {num_left} that left, {num_preempted} preemptions"
        ),
        is_reached: true,
    }
    .record();
    assert!(num_whole > num_schedules && num_left > 0);
    assert!(num_preempted > 0 || !is_long(), "nobody was preempted");
}

fn block_bytes(path: &Path, options: &DecoderOptions) -> usize {
    let gguf = Arc::new(Gguf::open(path).unwrap());
    DecoderWeights::load(&gguf, options).unwrap().config().kv_block_bytes()
}
