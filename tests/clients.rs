//! Clients that people have already, unchanged, against the real binary: OpenAI's and Anthropic's own, async-openai and
//! lm-evaluation-harness, with the stub and with a real model, and a fuzzer that reads our description of the API.

#[path = "clients/async_openai.rs"]
mod async_openai;
#[path = "common/pip.rs"]
mod pip;
#[path = "common/server.rs"]
mod server;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use server::Server;

/// Where the packages are, installed where they are not yet. Python need not compile them before they are used.
fn packages() -> &'static Path {
    static READY: OnceLock<PathBuf> = OnceLock::new();
    READY.get_or_init(|| {
        let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients");
        let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/requirements.txt");
        pip::once(&to, &std::fs::read(&list).unwrap(), || {
            let (to, list) = (to.to_string_lossy(), list.to_string_lossy());
            pip::run(&["install", "--no-compile", "--upgrade", "--target", &to, "-r", &list]);
        });
        to
    })
}

fn python(args: &[&str]) -> String {
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", packages()).env("NO_PROXY", "127.0.0.1").current_dir(env!("CARGO_TARGET_TMPDIR"));
    let output = python.args(args).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{args:?}\n{out}\n{err}");
    out.into_owned()
}

/// Runs a client's checks; each says its name.
#[track_caller]
fn check(script: &str, server: &Server, model: &str, num_checks: usize) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script);
    let out = python(&[&script.to_string_lossy(), &server.url, model]);
    assert_eq!(out.lines().filter(|line| line.starts_with("ok ")).count(), num_checks, "{out}");
}

#[test]
fn openais_client_works_as_it_does_elsewhere() {
    check("openai_client.py", &Server::start(&["--model", "stub"]), "stub", 10);
}

#[test]
fn anthropics_client_works_as_it_does_elsewhere() {
    check("anthropic_client.py", &Server::start(&["--model", "stub"]), "stub", 5);
}

/// Two milliseconds a step, so that what is left in the middle has not come to its end by itself.
#[tokio::test]
async fn async_openai_reads_every_answer_into_its_types() {
    async_openai::check(&Server::start(&["--model", "stub:2"]), "stub").await;
}

/// As many refusals as clients: each waited as it was told, and was let in then.
#[tokio::test]
async fn clients_that_are_refused_come_back() {
    let server = Server::start(&["--model", "stub:20", "--max-num-seqs", "1", "--queue-requests-max", "1"]);
    async_openai::comes_back(&server).await;
    check("retries.py", &server, "stub", 2);
    assert_eq!(server.metric("tallow_requests_rejected_total").await, 3.0);
}

#[test]
fn the_evaluation_harness_measures_what_is_served() {
    check("harness.py", &Server::start(&["--model", "stub"]), "stub", 4);
}

#[tokio::test]
async fn real_models_serve_every_client() {
    let model = "smollm2-135m-instruct";
    let server = Server::start(&["--model", model]);
    check("openai_client.py", &server, model, 10);
    check("anthropic_client.py", &server, model, 5);
    check("harness.py", &server, model, 4);
    async_openai::check(&server, model).await;
}

/// Whatever the description allows, and much that it does not: never a server error. Event streams that have no end of
/// their own are left out, since the fuzzer reads to the end.
#[test]
fn a_fuzzer_with_our_description_finds_no_server_error() {
    let server = Server::start(&["--model", "stub", "--max-tokens-default", "8", "--max-model-len", "64"]);
    let url = format!("{}/openapi.json", server.url);
    let args = [
        "-m",
        "schemathesis.cli",
        "run",
        &url,
        "--checks",
        "not_a_server_error",
        "--max-examples",
        "25",
        "--seed",
        "1",
        "--phases",
        "examples,coverage,fuzzing",
        "--request-timeout",
        "20",
        "--exclude-path",
        "/v1/events",
        "--suppress-health-check",
        "all",
    ];
    let out = python(&args);
    // It fails by its exit code; this is that it did something.
    assert!(out.contains("Fuzzing (in") && out.contains("passed"), "{out}");
}
