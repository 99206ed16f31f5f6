//! Random damage to valid bodies of every route that takes one. Whatever comes, the answer is a result or an error in the
//! route's shape, never a fault of the server's, and the server goes on.
//!
//! `TALLOW_FUZZ_CASES` sets the number of cases (a thousandth of it, as each is a request); a failure prints the case,
//! which replays from its number.

use serde_json::{Value, json};
use tallow::engine::EngineConfig;
use tallow::model::stub::StubConfig;
use tallow::sampling::random_u64;

use crate::http::common::{Client, Setup, get, request};
use crate::http::engine;

const CASES_DEFAULT: u64 = 400;
const SEED: u64 = 16;

/// Valid bodies, with the fields that have rules.
fn corpus() -> Vec<(&'static str, Value)> {
    let messages = json!([
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}},
        ]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]);
    let schema =
        json!({"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 3}}, "required": ["a"]});
    let sampling = json!({
        "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.5,
        "frequency_penalty": -0.5, "logit_bias": {"97": 5}, "seed": 7, "max_tokens": 4, "min_tokens": 1, "stop": ["x"],
        "stop_token_ids": [1], "ignore_eos": true,
    });
    let with = |more: Value| {
        let mut body = sampling.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let tools = json!([{"type": "function", "function": {"name": "f", "description": "d", "parameters": schema}}]);
    vec![
        (
            "/v1/chat/completions",
            with(json!({"messages": messages, "tools": tools, "n": 2, "logprobs": true, "top_logprobs": 2})),
        ),
        (
            "/v1/chat/completions",
            with(json!({
                "messages": [{"role": "user", "content": "a"}],
                "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
            })),
        ),
        ("/v1/completions", with(json!({"prompt": ["a", "b"], "n": 2, "best_of": 3, "echo": true, "logprobs": 2}))),
        ("/v1/completions", with(json!({"prompt": [97, 98], "guided_regex": "(a|b){2}c?"}))),
        ("/v1/completions", with(json!({"prompt": "a", "guided_grammar": "start: A\nA: /[a-z]+/\n"}))),
        ("/v1/streams", with(json!({"tokens": [97, 98], "on_disconnect": {"linger_ms": 10}, "priority": 1}))),
        ("/v1/embeddings", json!({"input": ["a", "b c"], "encoding_format": "base64"})),
        (
            "/v1/messages",
            json!({
                "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "system": "s", "max_tokens": 4,
                "stop_sequences": ["x"], "tools": [{"name": "f", "input_schema": schema}], "temperature": 0.5,
            }),
        ),
        ("/v1/messages/count_tokens", json!({"messages": [{"role": "user", "content": "a"}]})),
        (
            "/v1/responses",
            json!({
                "input": [{"role": "user", "content": "a"}, {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                    {"type": "function_call_output", "call_id": "c", "output": "1"}],
                "max_output_tokens": 4, "store": true, "instructions": "i", "text": {"format": {"type": "json_schema", "name": "n", "schema": schema}},
            }),
        ),
        ("/tokenize", json!({"prompt": "a b", "return_token_strs": true})),
        ("/detokenize", json!({"tokens": [97, 98, 99]})),
    ]
}

struct Random {
    seed: u64,
    position: u64,
}

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.position += 1;
        (random_u64(self.seed, self.position) % n.max(1) as u64) as usize
    }
}

/// What is put in the place of a value.
fn extreme(r: &mut Random) -> Value {
    let deep = (0..60).fold(json!(1), |inner, _| json!([inner]));
    let all = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(1e308),
        json!(-1e308),
        json!(1e-45),
        json!(0.1),
        json!(""),
        json!("\u{0}"),
        json!("a".repeat(5000)),
        json!("\u{1f600}<|im_end|>"),
        json!([]),
        json!({}),
        json!([[]]),
        json!({"a": {}}),
        json!(vec![0; 3000]),
        json!(vec![""; 3000]),
        deep,
        json!("["),
        json!("start: start"),
    ];
    all[r.below(all.len())].clone()
}

/// Changes one value somewhere in `value`.
fn damage(value: &mut Value, r: &mut Random) {
    let is_leaf = !matches!(value, Value::Array(_) | Value::Object(_));
    if is_leaf || r.below(4) == 0 {
        *value = extreme(r);
        return;
    }
    match value {
        Value::Array(items) if !items.is_empty() => {
            let at = r.below(items.len());
            match r.below(4) {
                0 => drop(items.remove(at)),
                1 => {
                    let copy = items[at].clone();
                    items.extend(vec![copy; 1 + r.below(300)]);
                }
                _ => damage(&mut items[at], r),
            }
        }
        Value::Object(fields) if !fields.is_empty() => {
            let name = fields.keys().nth(r.below(fields.len())).unwrap().clone();
            match r.below(4) {
                0 => drop(fields.shift_remove(&name)),
                1 => drop(fields.insert(format!("{name}_"), extreme(r))),
                _ => damage(&mut fields[&name], r),
            }
        }
        other => *other = extreme(r),
    }
}

/// Damages the text itself.
fn scratch(text: String, r: &mut Random) -> String {
    let mut bytes = text.into_bytes();
    for _ in 0..1 + r.below(3) {
        let at = r.below(bytes.len());
        match r.below(3) {
            0 => bytes.truncate(at.max(1)),
            1 => bytes[at] = b"{}[],:\"\\0-e\x01"[r.below(12)],
            _ => {
                let rest = bytes[at..].to_vec();
                bytes.extend(rest);
            }
        }
    }
    // What is sent is text; bytes that are not UTF-8 are the connection tests' business.
    String::from_utf8_lossy(&bytes).into_owned()
}

fn check_error(path: &str, body: &Value) -> bool {
    let error = &body["error"];
    let is_anthropic = path.starts_with("/v1/messages");
    error["message"].as_str().is_some_and(|message| message.len() > 7)
        && error["type"].is_string()
        && (!is_anthropic || body["type"] == "error")
}

#[tokio::test]
async fn damaged_bodies_get_an_answer_in_the_right_shape() {
    let cases = std::env::var("TALLOW_FUZZ_CASES").ok().and_then(|n| n.parse::<u64>().ok());
    let cases = cases.map_or(CASES_DEFAULT, |n| n.div_ceil(1000));
    let server = engine::start(EngineConfig::default(), StubConfig::default(), Setup::default()).await;
    let (corpus, mut num_good) = (corpus(), 0);
    for case in 0..cases {
        let mut r = Random { seed: SEED, position: case << 20 };
        let (path, mut body) = corpus[r.below(corpus.len())].clone();
        for _ in 0..r.below(3) {
            damage(&mut body, &mut r);
        }
        let text = if r.below(4) == 0 { scratch(body.to_string(), &mut r) } else { body.to_string() };
        let reply = Client::connect(server.address).await.exchange(&request("POST", path, &[], &text)).await;
        let shown = text.chars().take(300).collect::<String>();
        match reply.status {
            200 | 201 => num_good += 1,
            400 | 404 | 413 | 429 => {
                let is_right = serde_json::from_str(&reply.body).is_ok_and(|body| check_error(path, &body));
                assert!(is_right, "case {case}: {path} {shown}\n{}", reply.body);
            }
            status => panic!("case {case}: {path} {shown}\n{status} {}", reply.body),
        }
    }
    assert!(num_good > cases / 20, "only {num_good} of {cases} were good: the damage says nothing");
    assert_eq!(get(server.address, "/health/ready", &[]).await.status, 200);
    assert_eq!(server.service.metrics().worker_restarts.get(), 0);
}
