//! What the real models say is what they said: prompts in a batch, greedy ones and seeded ones in turn, on every
//! instruction set of this CPU, compared with the texts in `tests/golden/`, and among the sets to the bit of every
//! log-probability.
//!
//! `TALLOW_GOLDEN=write cargo test --test real golden` writes the texts anew, after a change that is meant to change them.
//! How many of the 64 prompts each set does is bounded by the time that every change can wait, unless
//! `TALLOW_GOLDEN_PROMPTS` says otherwise (`make prove` gives 64 to all, and a quarter to plain loops).

use crate::real;
use crate::server;

use std::path::{Path, PathBuf};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use server::Server;
use tallow::kernels::Isa;
use tallow::model::decoder::ARITHMETIC;
use xxhash_rust::xxh3::xxh3_64;

const NUM_PROMPTS: usize = 64;
/// Of the widest set: three of each opening.
const NUM_PROMPTS_WIDEST: usize = 24;
/// Of a set that is not the widest.
const NUM_PROMPTS_NARROW: usize = 4;
/// Of plain loops, which are forty times slower than vectors: a greedy one and a seeded one.
const NUM_PROMPTS_PORTABLE: usize = 2;
/// And so many tokens of each.
const NUM_TOKENS_PORTABLE: usize = 4;

const OPENINGS: [&str; 8] = [
    "The most important thing about",
    "Once upon a time there was a story of",
    "Here is a list of three facts about",
    "Q: What should a child know about",
    "Dear editor, I am writing to you because of",
    "def describe():\n    \"\"\"Returns a sentence about",
    "In 1887, scientists first wrote of",
    "¿Qué es",
];
const SUBJECTS: [&str; 8] =
    ["the sea", "bread", "a small dog", "numbers", "night trains", "the Moon", "rain in Lisbon", "old clocks"];

/// A prompt and what came of it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Golden {
    prompt: String,
    temperature: f64,
    top_p: f64,
    seed: u64,
    max_tokens: usize,
    f32: String,
    int8: String,
}

impl Golden {
    fn new(index: usize) -> Self {
        let is_greedy = index.is_multiple_of(2);
        // An opening's eight subjects begin with another one each, so that also a few prompts have variety.
        let (opening, subject) = (OPENINGS[index % 8], SUBJECTS[(index / 8 + index) % 8]);
        Self {
            prompt: format!("{opening} {subject}"),
            temperature: if is_greedy { 0.0 } else { 0.8 },
            top_p: if is_greedy { 1.0 } else { 0.9 },
            seed: index as u64,
            max_tokens: 16 + index % 17,
            f32: String::new(),
            int8: String::new(),
        }
    }

    /// `num_tokens_max` cuts the text short.
    fn request(&self, num_tokens_max: usize) -> Value {
        json!({
            "prompt": self.prompt,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "max_tokens": self.max_tokens.min(num_tokens_max),
            "ignore_eos": true,
            "logprobs": true,
            "on_disconnect": "detach",
        })
    }

    fn text(&mut self, activations: &str) -> &mut String {
        if activations == "f32" { &mut self.f32 } else { &mut self.int8 }
    }
}

/// A generation: its text, and each token with the digits of its log-probability, which tell any two apart.
#[derive(Debug, Clone, PartialEq, Default)]
struct Said {
    text: String,
    tokens: Vec<(String, String)>,
}

/// All requests at once to a server of their own.
async fn say(model: &str, activations: &str, isa: Isa, prompts: &[Golden]) -> Vec<Said> {
    let mut args = vec!["--model", model, "--activations", activations, "--max-num-seqs", "64"];
    // A step of plain loops takes half a minute with 64 sequences, and a part of it seconds: nothing hangs.
    args.extend(["--step-time-max-ms", "600000"]);
    let server = Server::start_with(&args, &[("TALLOW_ISA", &isa.to_string())]);
    let streams = format!("{}/v1/streams", server.url);
    let answers = join_all(prompts.iter().map(async |prompt| {
        let created = server.http.post(&streams).json(&prompt.request(num_tokens_max(isa))).send().await.unwrap();
        assert_eq!(created.status(), 201, "{}", created.text().await.unwrap());
        let place = created.headers()["location"].to_str().unwrap().to_owned();
        server.http.get(format!("{}{place}", server.url)).send().await.unwrap().text().await.unwrap()
    }));
    let said = answers.await.iter().map(|answer| said(answer)).collect();
    let steps = server.metric("tallow_steps_total").await;
    let mean_batch = server.metric("tallow_step_sequences_total").await / steps;
    assert!(prompts.len() < NUM_PROMPTS_WIDEST || mean_batch > 8.0, "{isa}: {mean_batch} sequences per step");
    said
}

/// What the events of a native stream add up to.
fn said(events: &str) -> Said {
    let mut said = Said::default();
    let mut is_done = false;
    for line in events.lines().filter_map(|line| line.strip_prefix("data: ")) {
        let event: Value = serde_json::from_str(line).unwrap();
        is_done |= event["type"] == "done";
        said.text += event["text"].as_str().unwrap_or_default();
        let logprobs = event["logprobs"].as_array().into_iter().flatten();
        said.tokens.extend(logprobs.map(|l| (l["token"].to_string(), l["logprob"].to_string())));
    }
    assert!(is_done, "{events}");
    said
}

fn num_prompts_given() -> Option<usize> {
    let given = std::env::var("TALLOW_GOLDEN_PROMPTS").ok();
    given.map(|n| n.parse().expect("TALLOW_GOLDEN_PROMPTS is a number"))
}

fn num_tokens_max(isa: Isa) -> usize {
    if isa == Isa::portable() && num_prompts_given().is_none() { NUM_TOKENS_PORTABLE } else { usize::MAX }
}

fn num_prompts(isa: Isa) -> usize {
    let given = num_prompts_given();
    match isa {
        isa if isa == Isa::portable() => given.map_or(NUM_PROMPTS_PORTABLE, |given| given.div_ceil(4)),
        isa if isa == Isa::detect() => given.unwrap_or(if is_writing() { NUM_PROMPTS } else { NUM_PROMPTS_WIDEST }),
        _ => given.unwrap_or(NUM_PROMPTS_NARROW),
    }
    .min(NUM_PROMPTS)
}

fn is_writing() -> bool {
    std::env::var("TALLOW_GOLDEN").is_ok_and(|word| word == "write")
}

fn golden_file(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real/golden").join(format!("{model}.json"))
}

async fn check(model: &str) {
    let path = golden_file(model);
    real::path(model);
    let is_writing = is_writing();
    let mut prompts: Vec<Golden> = (0..NUM_PROMPTS).map(Golden::new).collect();
    if is_writing {
        assert_ne!(Isa::detect(), Isa::portable(), "texts are written where there are vectors: in minutes, not hours");
    } else {
        prompts = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(prompts.len(), NUM_PROMPTS, "{}", path.display());
    }
    // What the widest set said, in f32 and in int8.
    let mut widest: [Vec<Said>; 2] = Default::default();
    for isa in Isa::all_here() {
        let num = num_prompts(isa);
        for (activations, widest) in ["f32", "int8"].into_iter().zip(&mut widest) {
            println!("{model} {activations} {isa}: {num} of {NUM_PROMPTS} prompts");
            let said = say(model, activations, isa, &prompts[..num]).await;
            if widest.is_empty() {
                widest.clone_from(&said);
            }
            for (i, (said, widest)) in said.iter().zip(&*widest).enumerate() {
                let place = format!("{model} {activations} {isa}, prompt {i}; see tests/real/golden.rs");
                // As far as it was asked for.
                let num_tokens = widest.tokens.len().min(num_tokens_max(isa));
                assert_eq!(said.tokens, widest.tokens[..num_tokens], "against the widest set: {place}");
                if is_writing {
                    prompts[i].text(activations).clone_from(&said.text);
                }
                let golden = &*prompts[i].text(activations);
                let is_whole = num_tokens == widest.tokens.len();
                assert!(golden.starts_with(&said.text) && (!is_whole || &said.text == golden), "{said:?}: {place}");
            }
        }
    }
    if is_writing {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, serde_json::to_string_pretty(&prompts).unwrap() + "\n").unwrap();
    }
}

/// The arithmetic, and a hash of the texts that it gives. A kept stream of other arithmetic must not be gone on with, so what
/// changes the texts raises the number.
const ARITHMETIC_OF_TEXTS: (u32, u64) = (1, 0x173d_f5f4_331b_9f82);

#[test]
fn golden_texts_change_with_the_arithmetic_and_with_nothing_else() {
    let texts = [real::SMOLLM2, real::GEMMA3].map(|model| std::fs::read(golden_file(model)).unwrap()).concat();
    let found = (ARITHMETIC, xxh3_64(&texts));
    assert_eq!(
        found, ARITHMETIC_OF_TEXTS,
        "{found:#x?}: after a change of the texts raise `ARITHMETIC` in model/decoder/mod.rs, and note both here"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn real_smollm2_says_the_same_on_every_instruction_set() {
    check(real::SMOLLM2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn real_gemma3_says_the_same_on_every_instruction_set() {
    check(real::GEMMA3).await;
}
