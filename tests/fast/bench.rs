//! `tallow bench` as a user calls it, against the real server and engine on the stub model: what it counts is what the
//! server did.

use crate::http::common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::{Setup, TestServer, post};
use serde_json::{Value, json};
use tallow::engine::{Engine, EngineConfig};
use tallow::metrics::Metrics;
use tallow::model::stub::{StubConfig, StubGate, StubModel};
use tallow::service::LocalBackend;
use tallow::text::Tokenizer;

type Server = TestServer<LocalBackend>;

async fn start(config: EngineConfig, stub: StubConfig) -> Server {
    let metrics = Arc::new(Metrics::default());
    let tokenizer = Arc::new(Tokenizer::byte_level());
    let engine = Engine::start(config, StubModel::factory(stub), tokenizer, metrics.clone()).unwrap();
    let setup = Setup { spec: engine.spec().clone(), ..Setup::default() };
    TestServer::around(Arc::new(LocalBackend::new(engine)), setup, metrics).await
}

async fn plain() -> Server {
    start(EngineConfig::default(), StubConfig::default()).await
}

/// What the command printed and wrote.
struct Outcome {
    code: Option<i32>,
    out: String,
    err: String,
    json: Value,
    html: String,
}

impl Outcome {
    /// The only server's only level.
    fn level(&self) -> &Value {
        &self.json["servers"][0]["levels"][0]
    }
}

/// Runs the binary; short prompts, as a word is five tokens of the stub.
async fn bench(address: SocketAddr, args: &[&str]) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tallow"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TALLOW_")) {
        command.env_remove(name);
    }
    command.args(["bench", "--url", &format!("http://{address}")]);
    let defaults =
        [("--prompt-tokens", "2..5"), ("--warmup", "0"), ("--json", "report.json"), ("--html", "report.html")];
    for (flag, value) in defaults.into_iter().filter(|(flag, _)| !args.contains(flag)) {
        command.args([flag, value]);
    }
    command.args(args).current_dir(dir.path()).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let file = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Outcome {
        code: output.status.code(),
        out: text(output.stdout),
        err: text(output.stderr),
        json: serde_json::from_str(&file("report.json")).unwrap_or_default(),
        html: file("report.html"),
    }
}

#[tokio::test]
async fn a_closed_loop_counts_what_the_server_counted() {
    let server = plain().await;
    let args = ["--concurrency", "1,3", "--requests", "6", "--output-tokens", "5..20", "--slo-ttft-ms", "1e9"];
    let run = bench(server.address, &args).await;
    assert_eq!((run.code, run.err.as_str()), (Some(0), ""), "{}", run.out);
    let levels = run.json["servers"][0]["levels"].as_array().unwrap();
    assert_eq!(levels.len(), 2);
    let sum = |pointer: &str| levels.iter().map(|level| level.pointer(pointer).unwrap().as_u64().unwrap()).sum::<u64>();
    let metrics = server.service.metrics();
    assert_eq!(sum("/tokens/completion"), metrics.completion_tokens.get());
    assert_eq!(sum("/tokens/prompt"), metrics.prompt_tokens.get());
    assert_eq!((sum("/requests"), sum("/completed"), sum("/failed")), (12, 12, 0));
    assert_eq!(sum("/tokens/requests_without_usage"), 0);
    assert_eq!((metrics.requests_done.get(), sum("/queue_wait_ms/count")), (12, 12));
    for (level, concurrency) in levels.iter().zip([1, 3]) {
        assert_eq!(level["level"], json!({ "concurrency": concurrency }));
        assert_eq!(level["goodput"]["fraction"], 1.0);
        assert!(level["tokens_per_s"].as_f64().unwrap() > 0.0);
        let p = |name: &str| level["ttft_ms"][name].as_f64().unwrap();
        assert!(p("p50") > 0.0 && p("p50") <= p("p90") && p("p90") <= p("p99") && p("p99") <= p("max"));
    }
    assert!(run.out.contains("concurrency") && run.out.contains("TTFT, ms"), "{}", run.out);
    assert!(run.html.contains("<svg") && run.html.contains("Throughput"));
    for external in ["src=", "href=", "url(", "<script", "@import"] {
        assert!(!run.html.contains(external), "the page must need nothing else, but has {external}");
    }
}

#[tokio::test]
async fn json_on_standard_output_is_alone_there() {
    let server = plain().await;
    let run = bench(server.address, &["--concurrency", "1", "--requests", "1", "--json", "-"]).await;
    let report: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!((run.code, &report["servers"][0]["levels"][0]["completed"]), (Some(0), &json!(1)));
}

#[tokio::test]
async fn the_same_seed_asks_the_same() {
    let server = plain().await;
    let args = ["--concurrency", "2", "--requests", "5", "--output-tokens", "normal:9,4"];
    let first = bench(server.address, &args).await;
    let again = bench(server.address, &args).await;
    let other = bench(server.address, &[&args[..], &["--seed", "2"]].concat()).await;
    assert_eq!(first.level()["tokens"]["prompt"], again.level()["tokens"]["prompt"]);
    assert_eq!(first.level()["tokens"]["completion"], again.level()["tokens"]["completion"]);
    assert_ne!(first.level()["tokens"]["prompt"], other.level()["tokens"]["prompt"]);
}

#[tokio::test]
async fn an_open_loop_sends_exactly_its_requests() {
    let server = plain().await;
    let run = bench(server.address, &["--rate", "400", "--requests", "21", "--output-tokens", "4"]).await;
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert_eq!(run.level()["requests"], 21);
    assert_eq!(run.level()["completed"], 21);
    assert_eq!(run.level()["level"], json!({ "rate_per_s": 400.0 }));
    assert_eq!(server.service.metrics().requests_accepted.get(), 21);
}

#[tokio::test]
async fn clients_that_leave_free_their_generations() {
    let endless = StubConfig { eos_probability: 0.0, step_delay: Duration::from_millis(1), ..StubConfig::default() };
    let server = start(EngineConfig::default(), endless).await;
    let args = ["--mode", "cancel", "--concurrency", "4", "--requests", "12", "--output-tokens", "3000"];
    let run = bench(server.address, &args).await;
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert_eq!((&run.level()["cancelled"], &run.level()["completed"]), (&json!(12), &json!(0)));
    assert_eq!((&run.level()["left"]["looked_up"], &run.level()["left"]["freed"]), (&json!(12), &json!(12)));
    server.service.drained().await;
    let metrics = server.service.metrics();
    assert_eq!((metrics.requests_cancelled.get(), metrics.num_running.get(), metrics.kv_blocks_used.get()), (12, 0, 0));
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_over_many_cuts() {
    let server = plain().await;
    let args = ["--mode", "reconnect", "--concurrency", "1,4", "--requests", "8", "--output-tokens", "40"];
    let run = bench(server.address, &[&args[..], &["--cut-bytes", "1..400", "--ignore-eos"]].concat()).await;
    assert_eq!(run.code, Some(0), "{}", run.err);
    for level in run.json["servers"][0]["levels"].as_array().unwrap() {
        let resumed = &level["resumed"];
        assert_eq!(resumed["streams"], 8);
        for count in ["lost", "doubled", "different", "gaps", "not_dense"] {
            assert_eq!(resumed[count], 0, "{count}");
        }
        assert!(resumed["cuts"].as_u64().unwrap() >= 8 * 10, "{resumed}");
        assert!(resumed["events"].as_u64().unwrap() > 8 * 20, "{resumed}");
        assert_eq!(level["completed"], 8);
        assert_eq!(level["tokens"]["completion"], 8 * 40);
    }
}

#[tokio::test]
async fn slow_readers_hold_up_nobody() {
    let server = plain().await;
    let args = ["--mode", "slow-reader", "--slow-readers", "3", "--concurrency", "2", "--requests", "6"];
    let run = bench(server.address, &args).await;
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert_eq!(run.level()["completed"], 6);
    let slow = &run.level()["slow_readers"];
    assert_eq!((&slow["readers"], &slow["ended_early"]), (&json!(3), &json!(0)), "{slow}");
}

#[tokio::test]
async fn two_servers_get_the_same_requests_and_are_compared() {
    let (first, second) = (plain().await, plain().await);
    let other = format!("http://{}", second.address);
    let args = ["--compare", &other, "--concurrency", "1,2", "--requests", "4", "--warmup", "1"];
    let run = bench(first.address, &args).await;
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert!(run.out.contains(&format!("ratios: http://{} / {other}\n", first.address)), "{}", run.out);
    let servers = &run.json["servers"];
    for i in 0..2 {
        assert_eq!(servers[0]["levels"][i]["tokens"], servers[1]["levels"][i]["tokens"], "level {i}");
        let rate = |server: usize| servers[server]["levels"][i]["tokens_per_s"].as_f64().unwrap();
        let ratio = run.json["ratios"][i]["tokens_per_s"].as_f64().unwrap();
        assert!((ratio - rate(0) / rate(1)).abs() < 1e-9);
    }
    let counts = |server: &Server| server.service.metrics().completion_tokens.get();
    assert_eq!(counts(&first), counts(&second));
    assert!(run.html.contains("Ratios"));
}

#[tokio::test]
async fn a_data_set_is_asked_in_turn() {
    let server = plain().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let lines = [
        json!({"prompt": "one", "max_tokens": 1}),
        json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "two"}], "max_tokens": 2}),
    ];
    std::fs::write(file.path(), lines.map(|line| line.to_string()).join("\n")).unwrap();
    let path = file.path().to_str().unwrap();
    let args = ["--dataset", path, "--concurrency", "1", "--requests", "5", "--ignore-eos"];
    let run = bench(server.address, &args).await;
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert_eq!(run.level()["tokens"]["completion"], 1 + 2 + 1 + 2 + 1);
    assert_eq!(run.json["load"]["prompts"], "data set of 2 lines");
}

#[tokio::test]
async fn a_full_server_is_counted_by_its_status() {
    let gate = StubGate::new();
    let config = EngineConfig { max_num_seqs: 1, queue_requests_max: 1, ..EngineConfig::default() };
    let server = start(config, StubConfig { gate: Some(gate.clone()), ..StubConfig::default() }).await;
    let detached = json!({"prompt": "hi", "max_tokens": 3, "on_disconnect": "detach"});
    assert_eq!(post(server.address, "/v1/streams", &detached).await.status, 201);
    let arrived = gate.clone();
    tokio::task::spawn_blocking(move || arrived.wait_arrived(1)).await.unwrap();
    assert_eq!(post(server.address, "/v1/streams", &detached).await.status, 201);
    let run = bench(server.address, &["--concurrency", "2", "--requests", "5"]).await;
    assert_eq!(run.code, Some(1));
    assert_eq!(run.level()["errors"]["http_429"]["count"], 5);
    assert_eq!(run.level()["failed"], 5);
    assert!(run.out.contains("5 failed, http_429: "), "{}", run.out);
    assert!(run.err.contains("no request to"), "{}", run.err);
    gate.open();
}

#[tokio::test]
async fn newcomers_and_probes_come_beside_the_load() {
    let server = plain().await;
    let args = ["--mode", "newcomer", "--newcomer-tokens", "40", "--newcomer-pause-ms", "1", "--probe", "/health/live"];
    let more = ["--concurrency", "2", "--requests", "2", "--output-tokens", "50"];
    let run = bench(server.address, &[&args[..], &more].concat()).await;
    assert_eq!((run.code, run.err.as_str()), (Some(0), ""), "{}", run.out);
    let (level, metrics) = (run.level(), server.service.metrics());
    let count = |pointer: &str| level.pointer(pointer).and_then(Value::as_u64).unwrap();
    let answered = count("/newcomers/answered");
    assert!(answered > 0 && level["newcomers"]["error"].is_null(), "{level}");
    assert_eq!(metrics.requests_done.get(), count("/completed") + answered);
    assert_eq!(metrics.prompt_tokens.get(), count("/tokens/prompt") + count("/newcomers/prompt_tokens"));
    assert!(count("/newcomers/prompt_tokens") >= 40 * answered);
    let gaps = count("/newcomers/itl_beside_ms/count") + count("/newcomers/itl_quiet_ms/count");
    assert!(gaps <= count("/itl_ms/count"), "{level}");
    assert!(count("/probe/ms/count") > 0 && count("/probe/failed") == 0);
    assert!(run.out.contains(" newcomers with ") && run.out.contains("/health/live x "), "{}", run.out);

    let run = bench(server.address, &["--probe", "/no/such", "--concurrency", "1", "--requests", "1"]).await;
    let probe = &run.level()["probe"];
    assert!(probe["failed"].as_u64() > Some(0) && probe["ms"]["count"] == 0, "{probe}");
    assert_eq!(probe["last_failure"], "404 Not Found");
}

#[tokio::test]
async fn a_request_that_is_not_done_in_time_is_counted_and_freed() {
    let gate = StubGate::new();
    let server = start(EngineConfig::default(), StubConfig { gate: Some(gate.clone()), ..StubConfig::default() }).await;
    let run = bench(server.address, &["--concurrency", "2", "--requests", "2", "--timeout", "0.05"]).await;
    assert_eq!(run.level()["errors"]["timed_out"]["count"], 2);
    gate.open();
    server.service.drained().await;
    assert_eq!(server.service.metrics().requests_cancelled.get(), 2);
}

/// Answers every connection with these bytes, and closes it.
fn canned(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // The whole request first: closing with unread bytes would reset the connection.
            let mut request = Vec::new();
            let is_whole = |request: &[u8]| {
                let text = String::from_utf8_lossy(request);
                let length = text.split("content-length: ").nth(1).and_then(|t| t.split("\r\n").next()?.parse().ok());
                text.split_once("\r\n\r\n").is_some_and(|(_, body)| length == Some(body.len()))
            };
            let mut buffer = [0; 4096];
            while !is_whole(&request) {
                let n = stream.read(&mut buffer).unwrap();
                assert!(n > 0, "the client left in the middle of its request");
                request.extend_from_slice(&buffer[..n]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    address
}

const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn failures_are_told_apart() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let chunk = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    let stream = |events: &str| -> &'static str { Box::leak(format!("{STREAM}{events}").into_boxed_str()) };
    let json = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n{}";
    for (address, kind) in [
        (closed, "connect"),
        (canned(stream(chunk)), "truncated"),
        (canned(stream("data: nonsense\n\n")), "protocol"),
        (canned(json), "protocol"),
        (canned(stream("data: {\"error\":{\"message\":\"broken\"}}\n\n")), "server_error"),
        (canned("HTTP/1.1 503 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"), "http_503"),
    ] {
        let run = bench(address, &["--model", "m", "--concurrency", "1", "--requests", "2"]).await;
        assert_eq!(run.level()["errors"][kind]["count"], 2, "{kind}: {}\n{}", run.out, run.err);
        assert_eq!(run.code, Some(1), "{kind}");
    }
    let unreachable = bench(closed, &["--requests", "2"]).await;
    assert_eq!(unreachable.code, Some(1));
    assert!(unreachable.err.starts_with("tallow: --url: cannot reach http://127.0.0.1:"), "{}", unreachable.err);
}

#[tokio::test]
async fn answers_without_usage_are_counted_by_pieces_and_said_so() {
    for (api, choice) in [("chat", "\"delta\":{\"content\":\"a\"}"), ("completions", "\"text\":\"a\"")] {
        let chunk = format!("data: {{\"choices\":[{{{choice}}}]}}\n\n");
        let answer = format!("{STREAM}{chunk}{chunk}{chunk}data: [DONE]\n\n");
        let address = canned(Box::leak(answer.into_boxed_str()));
        let run = bench(address, &["--model", "m", "--api", api, "--concurrency", "1", "--requests", "2"]).await;
        assert_eq!(run.code, Some(0), "{}", run.err);
        assert_eq!(run.level()["tokens"]["completion"], 6);
        assert_eq!(run.level()["tokens"]["requests_without_usage"], 2);
        assert!(run.out.contains("2 answers without usage"), "{}", run.out);
        assert!(run.out.contains("queue wait: not reported by this server"), "{}", run.out);
    }
}

#[tokio::test]
async fn wrong_flags_end_with_code_2_and_are_named() {
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (args, expect) in [
        (&["--concurrency", "0"][..], "--concurrency must be from 1 to 1024, got 0"),
        (&["--concurrency", "1,x"], "--concurrency"),
        (&["--concurrency", "1", "--rate", "2"], "--rate"),
        (&["--rate", "0"], "--rate must be above 0"),
        (&["--requests", "0"], "--requests must be from 1 to 100000, got 0"),
        (&["--prompt-tokens", "9..3"], "--prompt-tokens"),
        (&["--output-tokens", "many"], "must be like 64, 40..120 or normal:80,20"),
        (&["--timeout", "0"], "--timeout must be above 0"),
        (&["--slo-ttft-ms", "NaN"], "--slo-ttft-ms must be above 0"),
        (&["--mode", "fast"], "--mode"),
        (&["--compare", "nowhere"], "--compare must be an address"),
        (&["--compare-model", "m"], "--compare"),
        (&["--dataset", "none.jsonl"], "--dataset: none.jsonl: "),
        (&["--slow-readers", "0"], "--slow-readers must be from 1"),
        (&["--probe", "health"], "--probe must begin with /, got health"),
    ] {
        let run = bench(nowhere, args).await;
        assert_eq!(run.code, Some(2), "{args:?}: {}", run.err);
        assert!(run.err.contains(expect), "{args:?}: {}", run.err);
    }
    let unwritable = bench(nowhere, &["--html", "none/report.html"]).await;
    assert_eq!(unwritable.code, Some(1));
    assert!(unwritable.err.contains("none/report.html"), "{}", unwritable.err);
}
