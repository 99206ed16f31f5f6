//! The real encoder: its vectors beside those of another implementation, its queue, and the binary that serves it.

use crate::real;
use crate::server;

use std::sync::Arc;

use serde_json::{Value, json};
use server::Server;
use tallow::engine::encoder::{EncoderLimits, EncoderPool};
use tallow::metrics::Metrics;
use tallow::model::encoder::{self, Encoder};
use tallow::protocol::{Event, QueueTerms, StreamId, Tenant, ValidInput};

const MINILM: &str = "all-minilm-l6-v2";

/// Texts with their tokens, and the first six values and the last of their vectors. From a program of forty lines of
/// numpy that reads the same safetensors and computes in f64, with a tokenizer of its own over the model's `vocab.txt`:
/// nothing of it is candle's or the tokenizers library's.
const ORACLE: [(&str, &[u32], [f32; 7]); 4] = [
    (
        "A man is eating food.",
        &[101, 1037, 2158, 2003, 5983, 2833, 1012, 102],
        [0.033242, 0.004406, -0.006277, 0.048379, -0.138702, -0.033617, -0.037564],
    ),
    (
        "Somebody is having a meal.",
        &[101, 8307, 2003, 2383, 1037, 7954, 1012, 102],
        [-0.007466, 0.031042, -0.025265, 0.005801, -0.120748, -0.031957, -0.021404],
    ),
    (
        "The compiler rejects unsafe code.",
        &[101, 1996, 21624, 19164, 25135, 3642, 1012, 102],
        [-0.057336, 0.053555, -0.071324, -0.014663, -0.001983, -0.030056, 0.022916],
    ),
    (
        "Der H\u{f6}hlenb\u{e4}r, 12,000 years old & fa\u{e7}ade-like: unaffordably \u{2014} e-mail!",
        &[
            101, 4315, 7570, 7317, 2368, 8237, 1010, 2260, 1010, 2199, 2086, 2214, 1004, 8508, 1011, 2066, 1024, 14477,
            4246, 8551, 8231, 1517, 1041, 1011, 5653, 999, 102,
        ],
        [-0.058231, 0.162622, 0.018697, -0.029112, 0.01647, -0.068085, 0.055877],
    ),
];

/// The cosine of the first two texts by the same program; every other pair is below 0.05.
const NEAR: f32 = 0.66864;

fn pool() -> (EncoderPool, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::default());
    let pool = EncoderPool::open(EncoderLimits { queue_max: 8, priority_step_tokens: 4096 }, metrics.clone());
    let encoder = Encoder::load(&real::path(MINILM)).unwrap();
    pool.load(Box::new(move |tokens| encoder.hidden_states(tokens))).unwrap();
    (pool, metrics)
}

async fn embed(pool: &EncoderPool, tokens: &[u32]) -> Vec<f32> {
    let tokens = tokens.to_vec();
    let input = ValidInput { id: StreamId::random(), tenant: Tenant(0), tokens, queue: QueueTerms::default() };
    let mut embedding = pool.embed(input).unwrap();
    while let Some((_, event)) = embedding.reader.next().await {
        assert!(!matches!(event, Event::Error(_)), "{event:?}");
    }
    embedding.take().unwrap()
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[tokio::test]
async fn vectors_are_those_of_another_implementation() {
    let (pool, metrics) = pool();
    let open = encoder::open(&real::path(MINILM)).unwrap();
    let mut vectors = Vec::new();
    for (text, tokens, expect) in ORACLE {
        assert_eq!(open.tokenizer.encode(text, false).unwrap(), tokens, "{text}");
        let vector = embed(&pool, tokens).await;
        assert_eq!(vector.len(), 384);
        let told = vector[..6].iter().chain(&vector[383..]);
        // f32 against f64, six layers.
        assert!(told.zip(expect).all(|(a, b)| (a - b).abs() < 2e-5), "{text}: {:?}", &vector[..6]);
        assert!((cosine(&vector, &vector) - 1.0).abs() < 1e-5);
        vectors.push(vector);
    }
    assert!((cosine(&vectors[0], &vectors[1]) - NEAR).abs() < 1e-4);
    for (i, j) in [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)] {
        assert!(cosine(&vectors[i], &vectors[j]) < 0.05, "texts {i} and {j} have nothing in common");
    }
    assert_eq!((metrics.embeddings.get(), metrics.embedding_tokens.get()), (4, 51));
}

#[test]
fn control_tokens_come_from_no_text_and_nothing_is_cut() {
    let open = encoder::open(&real::path(MINILM)).unwrap();
    let tokens = open.tokenizer.encode("a [SEP] b", false).unwrap();
    assert_eq!(tokens.iter().filter(|token| [101, 102].contains(*token)).count(), 2, "{tokens:?}");
    assert_eq!(open.tokenizer.encode(&"word ".repeat(1000), false).unwrap().len(), 1002);
    assert_eq!((open.spec.max_model_len, open.spec.vocab_size), (256, 30_522));
}

async fn ask(server: &Server, body: &Value) -> (u16, Value) {
    let response = server.http.post(format!("{}/v1/embeddings", server.url)).json(body).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

fn vector(answer: &Value, index: usize) -> Vec<f32> {
    let values = answer["data"][index]["embedding"].as_array().unwrap();
    values.iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_served_beside_a_model() {
    real::path(MINILM);
    let server = Server::start(&["--model", "stub", "--embedding-model", MINILM]);
    let models = server.http.get(format!("{}/v1/models", server.url)).send().await.unwrap();
    let models: Value = models.json().await.unwrap();
    let ids: Vec<_> = models["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["stub", MINILM]);
    let one = server.http.get(format!("{}/v1/models/{MINILM}", server.url)).send().await.unwrap();
    let one: Value = one.json().await.unwrap();
    assert_eq!((&one["max_model_len"], &one["chat"]), (&json!(256), &json!(false)));

    let texts: Vec<&str> = ORACLE.iter().map(|(text, ..)| *text).collect();
    let (status, answer) = ask(&server, &json!({"model": MINILM, "input": texts})).await;
    assert_eq!((status, &answer["model"]), (200, &json!(MINILM)), "{answer}");
    assert_eq!(answer["usage"], json!({"prompt_tokens": 51, "total_tokens": 51}));
    assert!((cosine(&vector(&answer, 0), &vector(&answer, 1)) - NEAR).abs() < 1e-4);
    // Alone, by tokens and by another name, the same bytes.
    let (_, alone) = ask(&server, &json!({"model": "minilm", "input": ORACLE[0].1})).await;
    assert_eq!(alone["data"][0], answer["data"][0]);
    // The served model embeds too, as what it is.
    let (status, other) = ask(&server, &json!({"model": "stub", "input": texts[0]})).await;
    assert_eq!((status, vector(&other, 0).len()), (200, 16));

    for (body, status, message) in [
        (
            json!({"model": "other", "input": "a"}),
            404,
            "`model` must be \"stub\" or \"all-minilm-l6-v2\", got \"other\"",
        ),
        (json!({"model": MINILM, "input": "a ".repeat(300)}), 400, "at most the model's 256 tokens, got 302"),
        (json!({"model": MINILM, "input": ["a", ""]}), 400, "`input[1]` must not be empty"),
        (json!({"model": MINILM, "input": [40_000]}), 400, "`input[0]` must be a token id below 30522, got 40000"),
        (
            json!({"model": MINILM, "input": "a", "dimensions": 64}),
            400,
            "`dimensions` must be the 384 that this model's vectors have, got 64",
        ),
    ] {
        let (got, answer) = ask(&server, &body).await;
        assert_eq!(got, status, "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(message), "{answer}");
    }
    // One more for the length that was refused: it is known once there is a vector.
    assert_eq!(server.metric("tallow_embeddings_total").await, 7.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_model_embeds_near_texts_nearer() {
    real::path(real::SMOLLM2);
    let server = Server::start(&["--model", real::SMOLLM2]);
    let texts = ["A man is eating food.", "A man is eating a meal.", "The compiler rejects unsafe code."];
    let (status, all) = ask(&server, &json!({"input": texts})).await;
    assert_eq!(status, 200, "{all}");
    let [a, b, c] = [0, 1, 2].map(|i| vector(&all, i));
    println!("near {:.4}, far {:.4}", cosine(&a, &b), cosine(&a, &c));
    assert!(cosine(&a, &b) > cosine(&a, &c), "near texts are nearer");
    for (index, text) in texts.iter().enumerate() {
        let (_, alone) = ask(&server, &json!({"input": text})).await;
        assert_eq!(alone["data"][0]["embedding"], all["data"][index]["embedding"], "{text}");
    }
}
