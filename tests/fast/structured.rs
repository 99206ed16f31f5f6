//! Structured output through the real engine on the stub model, which says anything: what comes must keep to its schema,
//! by a validator that is not ours, and must be the same alone, in a batch, after preemption and after a restart.

use std::sync::Arc;

use jsonschema::Validator;
use serde_json::{Map, Value, json};
use tallow::engine::{Engine, EngineConfig};
use tallow::error::ErrorKind;
use tallow::metrics::Metrics;
use tallow::model::stub::{StubConfig, StubGate, StubModel};
use tallow::protocol::{
    Constraint, Event, FinishReason, OnDisconnect, QueueTerms, Resumed, SamplingParams, StopParams, StreamId, Tenant,
    TokenId, ValidRequest,
};
use tallow::sampling::random_u64;
use tallow::stream::StreamLog;
use tallow::text::Tokenizer;

const NUM_SCHEMAS: u64 = 200;
/// Room for any one request of these tests, and for few more.
const NUM_BLOCKS_TIGHT: usize = 14;

/// Schemas of every kind that the grammar compiler knows.
struct Random {
    seed: u64,
    position: u64,
}

impl Random {
    fn pick(&mut self, below: u64) -> u64 {
        self.position += 1;
        random_u64(self.seed, self.position) % below
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.pick(choices.len() as u64) as usize]
    }

    fn schema(&mut self, depth: u64) -> Value {
        let kind = self.pick(if depth == 0 { 10 } else { 17 });
        match kind {
            0 | 1 => self.number(),
            2..=4 => self.string(),
            5 => json!({"enum": [1, "two", null, [true], {"a": "b"}]}),
            6 => json!({"const": ([json!({"x": [1, 2]}), json!("c"), json!(-3)])[self.pick(3) as usize]}),
            7 => json!({"type": "boolean"}),
            8 => json!({"type": ["null", "boolean"]}),
            9 => json!({"$ref": self.of(&["#/$defs/id", "#/$defs/tree"])}),
            10 => {
                let (min, more) = (self.pick(3), self.pick(3));
                json!({"type": "array", "items": self.schema(depth - 1), "minItems": min, "maxItems": min + more})
            }
            11 => json!({
                "type": "array", "prefixItems": [self.schema(depth - 1), self.schema(depth - 1)], "items": false, "minItems": 1,
            }),
            12 => json!({"anyOf": [self.schema(depth - 1), self.schema(depth - 1), {"type": "null"}]}),
            13 => json!({"allOf": [{"type": "integer", "minimum": 0}, {"maximum": 1 + self.pick(500)}]}),
            _ => self.object(depth),
        }
    }

    fn number(&mut self) -> Value {
        let (low, wide) = (self.pick(2000) as i64 - 1000, self.pick(3000) as i64);
        match self.pick(4) {
            0 => json!({"type": "integer", "minimum": low, "maximum": low + wide}),
            1 => json!({"type": "number", "minimum": low, "exclusiveMaximum": low + wide + 1}),
            2 => json!({"type": "integer", "multipleOf": 1 + self.pick(9), "minimum": 0, "maximum": 1000}),
            _ => json!({"type": "integer", "exclusiveMinimum": low, "maximum": low + wide + 1}),
        }
    }

    fn string(&mut self) -> Value {
        match self.pick(3) {
            0 => json!({"type": "string", "minLength": self.pick(4), "maxLength": 4 + self.pick(12)}),
            1 => {
                json!({"type": "string", "pattern": self.of(&["^[a-f0-9]{4,8}$", "^(ab|c)+x{2}$", "^\\d{3}-\\d{4}$", "^[^a-z]{1,3}é?$"])})
            }
            // Not `time`: the grammar has a leap second in every minute, as RFC 3339's own does, and validators have not.
            _ => json!({"type": "string", "format": self.of(&["date", "uuid", "ipv4"])}),
        }
    }

    fn object(&mut self, depth: u64) -> Value {
        let names: Vec<String> =
            (0..=self.pick(4)).map(|i| format!("{}{i}", self.of(&["name", "a b", "é", "\"q\""]))).collect();
        let required: Vec<&String> = names.iter().filter(|_| self.pick(3) > 0).collect();
        let required = json!(required);
        let properties: Map<String, Value> = names.iter().map(|n| (n.clone(), self.schema(depth - 1))).collect();
        let mut schema = json!({"type": "object", "properties": properties, "required": required});
        match self.pick(4) {
            0 => schema["additionalProperties"] = json!({"type": "boolean"}),
            1 => schema["patternProperties"] = json!({"^x[0-9]$": {"type": "integer", "minimum": 0, "maximum": 9}}),
            _ => {}
        }
        if schema.get("additionalProperties").is_none() {
            schema["additionalProperties"] = json!(false);
        }
        schema
    }
}

fn schema_of(seed: u64) -> Value {
    let mut random = Random { seed, position: 0 };
    let mut schema = random.object(3);
    schema["$defs"] = json!({
        "id": {"type": "string", "pattern": "^id-[0-9]{2}$"},
        "tree": {
            "type": "object", "required": ["leaf"], "additionalProperties": false,
            "properties": {"leaf": {"type": "boolean"}, "left": {"$ref": "#/$defs/tree"}},
        },
    });
    schema
}

struct Server {
    engine: Arc<Engine>,
    metrics: Arc<Metrics>,
}

impl Server {
    fn start(config: EngineConfig, stub: StubConfig) -> Self {
        let metrics = Arc::new(Metrics::default());
        let tokenizer = Arc::new(Tokenizer::byte_level());
        let engine = Engine::start(config, StubModel::factory(stub), tokenizer, metrics.clone()).expect("it starts");
        Self { engine, metrics }
    }

    fn plain() -> Self {
        Self::start(EngineConfig::default(), StubConfig::default())
    }

    #[track_caller]
    fn submit(&self, request: ValidRequest) -> Arc<StreamLog> {
        let log = StreamLog::new(request.id, request.tenant, request.on_disconnect);
        self.engine.submit(request, log.clone()).expect("accepted");
        log
    }
}

fn request(number: u64, constraint: Option<Constraint>) -> ValidRequest {
    ValidRequest {
        constraint,
        leader: None,
        resumed: None,
        id: StreamId(u128::from(number) + 1),
        tenant: Tenant(0),
        prompt: (0..20 + number % 50).map(|i| 97 + ((i * 31 + number) % 26) as TokenId).collect(),
        max_tokens: 600,
        sampling: SamplingParams {
            seed: Some(number),
            // What ends a text is rare in what the stub says.
            logit_bias: [b'"', b'}', b']', b','].map(|byte| (TokenId::from(byte), 6.0)).to_vec(),
            ..SamplingParams::default()
        },
        stop: StopParams::default(),
        on_disconnect: OnDisconnect::Detach,
        queue: QueueTerms::default(),
    }
}

/// A constrained one for most numbers, each of another kind; one in five goes free.
fn mixed(number: u64) -> ValidRequest {
    let constraint = match number % 5 {
        0 => None,
        1 => Some(Constraint::JsonSchema(schema_of(number).to_string())),
        2 => Some(Constraint::Regex("([a-z]{2,9} ){3,12}(the end|fin)".to_owned())),
        3 => Some(Constraint::Lark("start: \"<\" (WORD | start)+ \">\"\nWORD: /[a-zé€😀]+/".to_owned())),
        _ => Some(Constraint::Choice(vec!["a long first choice".to_owned(), "a long second choice".to_owned()])),
    };
    let mut request = request(number, constraint);
    request.max_tokens = 120;
    request.sampling.temperature = if number.is_multiple_of(4) { 0.0 } else { 1.0 };
    request.sampling.frequency_penalty = 0.1 * (number % 3) as f32;
    request.sampling.top_logprobs = number.is_multiple_of(6).then_some(2);
    request.stop.strings = if number.is_multiple_of(7) { vec!["zz".to_owned(), "cond".to_owned()] } else { Vec::new() };
    request
}

#[track_caller]
fn events(log: &Arc<StreamLog>) -> Vec<Event> {
    let began = std::time::Instant::now();
    while !log.is_finished() {
        assert!(began.elapsed().as_secs() < 120, "waited in vain for the end of a stream");
        std::thread::yield_now();
    }
    let mut reader = log.reader(0);
    std::iter::from_fn(|| reader.try_next()).map(|(_, event)| event).collect()
}

#[track_caller]
fn transcript(log: &Arc<StreamLog>) -> (String, Vec<TokenId>, FinishReason, usize) {
    let events = events(log);
    let Some(Event::Done { finish_reason, usage, .. }) = events.last() else {
        panic!("ended with {:?}", events.last())
    };
    let tokens = events.iter().filter_map(|e| if let Event::Token(t) = e { Some(t) } else { None });
    let (text, ids): (Vec<_>, Vec<_>) = tokens.map(|t| (t.text.clone(), t.tokens.clone())).unzip();
    (text.concat(), ids.concat(), *finish_reason, usage.completion_tokens)
}

#[test]
fn what_two_hundred_schemas_make_is_valid_or_said_to_be_cut() {
    let server = Server::plain();
    let streams: Vec<_> = (0..NUM_SCHEMAS)
        .map(|seed| {
            let schema = schema_of(seed);
            let constraint = Constraint::JsonSchema(schema.to_string());
            (seed, schema, server.submit(request(seed, Some(constraint))))
        })
        .collect();
    let mut num_whole = 0;
    for (seed, schema, log) in streams {
        let (text, tokens, finish_reason, num_tokens) = transcript(&log);
        assert!((1..=num_tokens).contains(&tokens.len()), "schema {seed}: {} of {num_tokens} tokens", tokens.len());
        if finish_reason == FinishReason::Length {
            continue;
        }
        num_whole += 1;
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("schema {seed}: {e}: {text}"));
        let validator: Validator =
            jsonschema::options().should_validate_formats(true).build(&schema).expect("a schema");
        let errors: Vec<String> = validator.iter_errors(&value).map(|e| e.to_string()).collect();
        assert!(errors.is_empty(), "schema {seed}, {schema}: {text}: {errors:?}");
    }
    assert!(num_whole > 150, "only {num_whole} of {NUM_SCHEMAS} were not cut");
}

#[test]
fn a_constrained_text_is_the_same_alone_batched_and_preempted() {
    let alone: Vec<_> = {
        let server = Server::plain();
        (0..40).map(|n| transcript(&server.submit(mixed(n)))).collect()
    };
    assert!(alone.iter().any(|(text, ..)| !text.is_ascii()), "some have characters of several bytes");
    let gate = StubGate::new();
    let stub = StubConfig { gate: Some(gate.clone()), poison: true, ..StubConfig::default() };
    let tight = StubConfig { num_blocks: NUM_BLOCKS_TIGHT, ..stub.clone() };
    let narrow = EngineConfig { max_num_batched_tokens: 64, prefill_tokens_per_step_max: 5, ..EngineConfig::default() };
    for (config, stub) in
        [(EngineConfig::default(), stub), (EngineConfig::default(), tight), (narrow, StubConfig::default())]
    {
        let is_tight = stub.num_blocks == NUM_BLOCKS_TIGHT;
        let server = Server::start(config, stub);
        let logs: Vec<_> = (0..40).map(|n| server.submit(mixed(n))).collect();
        gate.open();
        for (n, (log, expect)) in logs.iter().zip(&alone).enumerate() {
            assert_eq!(transcript(log), *expect, "request {n}");
        }
        assert!(!is_tight || server.metrics.preemptions.get() > 0, "somebody was preempted");
        assert!(server.metrics.forced_tokens.get() > 0);
        assert_eq!(server.metrics.kv_blocks_used.get(), 0);
    }
}

#[test]
fn a_constrained_text_goes_on_after_a_restart_from_any_event() {
    let server = Server::plain();
    for number in 0..20 {
        let whole = events(&server.submit(mixed(number)));
        let tokens_of = |events: &[Event]| -> Vec<TokenId> {
            let tokens =
                events.iter().filter_map(|e| if let Event::Token(t) = e { Some(t.tokens.clone()) } else { None });
            tokens.flatten().collect()
        };
        // Behind every event but the last, as if the process had ended there.
        for cut in (2..whole.len()).step_by(1 + whole.len() / 12) {
            let emitted = tokens_of(&whole[..cut]);
            let mut request = mixed(number);
            request.prompt.extend_from_slice(&emitted);
            let shown = whole[..cut].iter().map(|e| if let Event::Token(t) = e { t.text.len() } else { 0 });
            let (num_emitted, text_bytes) = (emitted.len(), shown.sum());
            request.resumed = Some(Resumed { num_emitted, text_bytes, cached_tokens: Some(0) });
            let rest = events(&server.submit(request));
            assert_eq!(tokens_of(&rest), tokens_of(&whole[cut..]), "request {number} behind event {cut}");
            let reason = |events: &[Event]| match events.last() {
                Some(Event::Done { finish_reason, usage, .. }) => (*finish_reason, usage.completion_tokens),
                other => panic!("ended with {other:?}"),
            };
            assert_eq!(reason(&rest), reason(&whole), "request {number} behind event {cut}");
        }
    }
}

#[test]
fn a_grammar_that_fails_ends_its_own_request_only() {
    let stub = StubConfig { eos_probability: 0.0, ..StubConfig::default() };
    let server = Server::start(EngineConfig::default(), stub);
    // Every part can be cut into parts in more ways than the one before: at some length it is too much.
    let hostile = Constraint::Lark("start: a\na: a a | \"x\" | \"y\"".to_owned());
    let mut poisoned = request(0, Some(hostile));
    poisoned.max_tokens = 3000;
    let before: Vec<_> = (1..9).map(|n| transcript(&server.submit(mixed(n)))).collect();
    let poisoned = server.submit(poisoned);
    let logs: Vec<_> = (1..9).map(|n| server.submit(mixed(n))).collect();
    for (log, expect) in logs.iter().zip(&before) {
        assert_eq!(transcript(log), *expect);
    }
    let Some(Event::Error(info)) = events(&poisoned).pop() else { panic!("the hostile grammar came to an end") };
    assert_eq!(info.kind, ErrorKind::InvalidRequest);
    assert!(info.message.starts_with("the text cannot go on by its grammar: "), "{}", info.message);
    assert_eq!((server.metrics.worker_restarts.get(), server.metrics.kv_blocks_used.get()), (0, 0));
}
