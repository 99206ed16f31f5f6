//! What a hostile client with a key sends: one entry for each attack that once worked and for its relatives. Each is built
//! once, so that sending it costs this process little beside what it costs the server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::{SseParser, Wire, scale};

/// Longest time that one shot may take; a server that needs longer is judged by its neighbours' figures.
fn shot_time_max() -> Duration {
    Duration::from_secs(scale(3, 10) as u64)
}

/// Bodies are at most this long: the server's own bound, less a little.
const BODY_BYTES: usize = (4 << 20) - 4096;

/// How a request is sent and its answer read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// As anybody would.
    Plain,
    /// The body in chunks of a byte.
    Drops,
    /// The answer is read at a kilobyte a second.
    Sipping,
    /// First a background response is made, which is then asked for again and again.
    Polling,
}

#[derive(Clone)]
pub(crate) struct Attack {
    pub name: &'static str,
    pub path: &'static str,
    pub body: Arc<str>,
    pub manner: Manner,
    /// A request for as much honest work, which the neighbour has to share the machine with in any case; without one it
    /// is a text of the same length.
    pub twin: Option<Arc<str>>,
}

fn attack(name: &'static str, path: &'static str, body: impl Into<String>) -> Attack {
    Attack { name, path, body: body.into().into(), manner: Manner::Plain, twin: None }
}

/// `item` again and again, in `open` and `close`, up to the bound on bodies.
fn filled(open: &str, item: &str, close: &str) -> String {
    let count = (BODY_BYTES - open.len() - close.len()) / (item.len() + 1);
    format!("{open}{}{close}", vec![item; count].join(","))
}

fn structured(field: &str, constraint: Value, n: usize) -> String {
    let mut body = json!({"prompt": "a", "max_tokens": 60, "n": n, "temperature": 1.0, "seed": 3});
    body[field] = constraint;
    body.to_string()
}

/// The same work without a constraint.
fn unstructured(n: usize) -> Value {
    json!({"prompt": "a", "max_tokens": 60, "n": n, "seed": 3, "ignore_eos": true})
}

/// One whose honest twin asks for the same without what is hostile about it.
fn twinned(attack: Attack, twin: &Value) -> Attack {
    Attack { twin: Some(twin.to_string().into()), ..attack }
}

/// One that is itself only much honest work: what is hostile is not its load.
fn honest(attack: Attack) -> Attack {
    Attack { twin: Some(attack.body.clone()), ..attack }
}

/// All of them.
pub(crate) fn attacks() -> Vec<Attack> {
    let long_text = "word ".repeat(780);
    let texts: Vec<&str> = vec![&long_text; 1000];
    let unicode = format!("({})", r"[\p{Lu}\p{Nd}]?".repeat(3400));
    let tower =
        (0..10).fold("{\"type\": \"integer\"}".to_owned(), |inner, _| format!(r#"{{"anyOf": [{inner}, {inner}]}}"#));
    let chat = |content: &str| json!({"messages": [{"role": "user", "content": content}], "max_tokens": 1}).to_string();
    let message = r#"{"role":"user","content":"a"}"#;
    let tool = r#"{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}"#;
    let mut all = vec![
        twinned(
            attack(
                "an ambiguous grammar, 60 choices",
                "/v1/completions",
                structured("guided_grammar", json!("start: s\ns: s s s | s s | /[a-z ]/\n"), 60),
            ),
            &unstructured(60),
        ),
        twinned(
            attack(
                "a multiple of a large number",
                "/v1/completions",
                structured("guided_json", json!({"type": "integer", "multipleOf": 9_999_991}), 1),
            ),
            // Refused as fast, so asked for as often.
            &json!({"prompt": "a", "max_tokens": -1}),
        ),
        attack("3,400 Unicode classes", "/v1/completions", structured("guided_regex", json!(unicode), 1)),
        twinned(
            attack(
                "a tower of alternatives",
                "/v1/completions",
                structured("guided_json", serde_json::from_str(&tower).unwrap(), 1),
            ),
            &unstructured(1),
        ),
        twinned(
            attack(
                "counted repetitions within each other",
                "/v1/completions",
                structured("guided_regex", json!("(((a{1,90}b{1,90}){1,90}c){1,90}d){1,90}"), 1),
            ),
            &unstructured(1),
        ),
        attack("empty items", "/v1/responses", filled(r#"{"input":["#, "{\"role\":\"user\",\"content\":\"\"}", "]}")),
        attack("items that are nothing", "/v1/responses", filled(r#"{"input":["#, "{}", "]}")),
        attack("empty texts to embed", "/v1/embeddings", filled(r#"{"input":["#, "\"\"", "]}")),
        attack("lists as prompts", "/v1/completions", filled(r#"{"prompt":["#, "[]", "]}")),
        honest(attack("1,000 long texts to embed", "/v1/embeddings", json!({"input": texts}).to_string())),
        honest(attack(
            "128 long prompts",
            "/v1/completions",
            json!({"prompt": &texts[..128], "max_tokens": 1}).to_string(),
        )),
        attack("140,000 messages", "/v1/chat/completions", filled(r#"{"max_tokens":1,"messages":["#, message, "]}")),
        attack(
            "140,000 messages of Anthropic's",
            "/v1/messages",
            filled(r#"{"max_tokens":1,"messages":["#, message, "]}"),
        ),
        attack("messages to count", "/v1/messages/count_tokens", filled(r#"{"messages":["#, message, "]}")),
        attack(
            "50,000 tools",
            "/v1/chat/completions",
            filled(r#"{"max_tokens":1,"messages":[{"role":"user","content":"a"}],"tools":["#, tool, "]}"),
        ),
        attack("a million stop strings", "/v1/streams", filled(r#"{"prompt":"a","stop":["#, "\"\"", "]}")),
        attack("a million tokens", "/v1/streams", filled(r#"{"tokens":["#, "97", "]}")),
        attack("unknown fields", "/v1/chat/completions", filled(r#"{"x":["#, "{\"a\":[1,2]}", "]}")),
        attack("one key many times", "/v1/completions", filled("{", r#""prompt":"a""#, "}")),
        attack(
            "a number of a million digits",
            "/v1/completions",
            format!(r#"{{"prompt":"a","temperature":{}}}"#, "9".repeat(BODY_BYTES - 64),),
        ),
        attack("control tokens as text", "/v1/chat/completions", chat(&"<|im_end|>".repeat(400_000))),
        attack("one word of 4 MB", "/tokenize", json!({"prompt": "a".repeat(BODY_BYTES - 64)}).to_string()),
        attack(
            "one word of 4 MB as a prompt",
            "/v1/completions",
            json!({
                "prompt": "a".repeat(BODY_BYTES - 64), "max_tokens": 1,
            })
            .to_string(),
        ),
        honest(attack(
            "128 choices of a token",
            "/v1/completions",
            json!({"prompt": "a", "max_tokens": 1, "n": 128}).to_string(),
        )),
        twinned(
            attack(
                "many log-probabilities",
                "/v1/completions",
                json!({
                    "prompt": "a", "max_tokens": 400, "n": 16, "logprobs": 20, "ignore_eos": true,
                })
                .to_string(),
            ),
            &json!({"prompt": "a", "max_tokens": 400, "n": 16, "ignore_eos": true}),
        ),
    ];
    let polled = json!({
        "input": "a", "background": true, "max_output_tokens": 1200, "ignore_eos": true, "top_logprobs": 20,
        "include": ["message.output_text.logprobs"],
    });
    let vectors: Vec<&str> = vec!["a"; 2048];
    all.push(Attack {
        manner: Manner::Drops,
        ..attack(
            "a body in drops",
            "/v1/completions",
            json!({"prompt": "a".repeat(400_000), "max_tokens": 1}).to_string(),
        )
    });
    all.push(Attack {
        manner: Manner::Sipping,
        ..honest(attack("2,048 vectors, sipped", "/v1/embeddings", json!({"input": vectors}).to_string()))
    });
    let honest_work = json!({"input": "a", "max_output_tokens": 1200, "ignore_eos": true});
    all.push(Attack {
        manner: Manner::Polling,
        ..twinned(attack("a polled response", "/v1/responses", polled.to_string()), &honest_work)
    });
    all
}

/// What came of one shot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Answered(u16),
    /// Too slow, or the server closed the connection.
    Cut,
}

impl Attack {
    /// The honest work that it is compared with.
    pub(crate) fn twin(&self) -> Self {
        let body = self.twin.clone().unwrap_or_else(|| self.text_of_the_same_length().into());
        Self { body, manner: Manner::Plain, ..self.clone() }
    }

    fn text_of_the_same_length(&self) -> String {
        // Each byte that comes as a chunk of its own takes six.
        let num_bytes = self.body.len() * if self.manner == Manner::Drops { 6 } else { 1 };
        let text = "word ".repeat(num_bytes.saturating_sub(200) / 5 + 1);
        let message = json!([{"role": "user", "content": text}]);
        let body = match self.path {
            "/v1/chat/completions" | "/v1/messages" => json!({"messages": message, "max_tokens": 1}),
            "/v1/messages/count_tokens" => json!({"messages": message}),
            "/v1/embeddings" | "/v1/responses" => json!({"input": text}),
            _ => json!({"prompt": text, "max_tokens": 1}),
        };
        body.to_string()
    }

    /// Sends it once.
    pub(crate) async fn shoot(&self, to: SocketAddr, key: (&str, &str)) -> Outcome {
        let shot = timeout(shot_time_max(), self.exchange(to, key)).await;
        shot.ok().and_then(Result::ok).map_or(Outcome::Cut, Outcome::Answered)
    }

    async fn exchange(&self, to: SocketAddr, key: (&str, &str)) -> std::io::Result<u16> {
        match self.manner {
            Manner::Plain => {
                let mut wire = Wire::connect(to).await?;
                wire.send("POST", self.path, &[key], &self.body).await?;
                let status = wire.head().await?.status;
                while wire.some().await?.is_some() {}
                Ok(status)
            }
            Manner::Drops => self.in_drops(to, key).await,
            Manner::Sipping => {
                let mut wire = Wire::connect_narrow(to, 4 << 10).await?;
                wire.send("POST", self.path, &[key], &self.body).await?;
                let status = wire.head().await?.status;
                // Long enough to be felt, short enough to try it again.
                for _ in 0..scale(1, 4) {
                    wire.some().await?;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Ok(status)
            }
            Manner::Polling => {
                let mut wire = Wire::connect(to).await?;
                let made = wire.exchange("POST", self.path, &[key], &self.body).await?;
                let Some(id) = made.json()["id"].as_str().map(str::to_owned) else { return Ok(made.status) };
                let path = format!("/v1/responses/{id}");
                self.wait_for_tokens(to, key, &path).await?;
                let mut status = made.status;
                for _ in 0..40 {
                    status = wire.exchange("GET", &path, &[key], "").await?.status;
                }
                wire.exchange("DELETE", &path, &[key], "").await?;
                Ok(status)
            }
        }
    }

    /// Waits until a response has enough to say that asking for it costs something.
    async fn wait_for_tokens(&self, to: SocketAddr, key: (&str, &str), path: &str) -> std::io::Result<()> {
        let (mut wire, _) = Wire::open(to, "GET", &format!("{path}?stream=true"), &[key], "").await?;
        let (mut parser, mut num_missing) = (SseParser::default(), scale(100, 1000));
        while num_missing > 0
            && let Some(bytes) = wire.some().await?
        {
            num_missing = num_missing.saturating_sub(parser.push(&bytes).len());
        }
        Ok(())
    }

    async fn in_drops(&self, to: SocketAddr, (name, value): (&str, &str)) -> std::io::Result<u16> {
        let mut wire = Wire::connect(to).await?;
        let head = format!(
            "POST {} HTTP/1.1\r\nhost: 127.0.0.1\r\n{name}: {value}\r\ncontent-type: application/json\r\n\
             transfer-encoding: chunked\r\n\r\n",
            self.path
        );
        wire.stream.write_all(head.as_bytes()).await?;
        for bytes in self.body.as_bytes().chunks(4096) {
            let drops: Vec<u8> = bytes.iter().flat_map(|b| [b'1', b'\r', b'\n', *b, b'\r', b'\n']).collect();
            wire.stream.write_all(&drops).await?;
        }
        wire.stream.write_all(b"0\r\n\r\n").await?;
        let status = wire.head().await?.status;
        wire.rest().await?;
        Ok(status)
    }
}
