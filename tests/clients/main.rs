//! Clients that people have already, unchanged, against the real binary: OpenAI's and Anthropic's own, async-openai,
//! Vercel's AI SDK and lm-evaluation-harness, with the stub and with a real model, and a fuzzer that reads our description
//! of the API.
//!
//! `TALLOW_CLIENTS=all` (`make clients`) runs all of them. Without it the evaluation harness, which is large and asks for
//! nothing that the others do not, and the real model are skipped.

mod async_openai;
#[path = "../common/packages.rs"]
mod packages;
mod schema_suite;
#[path = "../common/server.rs"]
mod server;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;
use server::Server;
use tallow::api::openapi::ROUTES;

/// Whether all are wanted; says so where they are not.
fn are_all_wanted(what: &str) -> bool {
    let is_wanted = std::env::var("TALLOW_CLIENTS").is_ok_and(|word| word == "all");
    if !is_wanted {
        println!("skipped: {what} runs in `make clients`");
    }
    is_wanted
}

/// Where the packages are, installed where they are not yet.
fn python_packages() -> &'static Path {
    static READY: OnceLock<PathBuf> = OnceLock::new();
    READY.get_or_init(|| {
        let (folder, list) = if are_all_wanted("the evaluation harness") {
            ("clients_all", "requirements_all.txt")
        } else {
            ("clients", "requirements.txt")
        };
        let (to, list) = (Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder), beside(list));
        let wanted =
            ["requirements.txt", "requirements_all.txt"].map(|name| std::fs::read(beside(name)).unwrap()).concat();
        packages::once(&to, &wanted, || {
            let to = to.to_string_lossy();
            packages::pip(&["install", "--no-compile", "--upgrade", "--target", &to, "-r", &list]);
        });
        to
    })
}

/// What is beside this file, in its folder.
fn beside(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
    folder.join(name).to_string_lossy().into_owned()
}

fn python(args: &[&str], env: &[(&str, &str)]) -> String {
    let path = std::env::join_paths([python_packages(), Path::new(&beside(""))]).unwrap();
    let mut python = Command::new("python3");
    // What was installed is compiled once, when it is first used.
    python.env_remove("PYTHONDONTWRITEBYTECODE");
    python.env("PYTHONPATH", path).env("NO_PROXY", "127.0.0.1").envs(env.iter().copied()).args(args);
    output(python.current_dir(env!("CARGO_TARGET_TMPDIR")))
}

#[track_caller]
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}\n{out}\n{err}");
    out.into_owned()
}

/// Runs a client's checks; each says its name.
#[track_caller]
fn check(script: &str, server: &Server, model: &str, num_checks: usize) {
    let out = python(&[&beside(script), &server.url, model], &[]);
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
    if !are_all_wanted("the evaluation harness") {
        return;
    }
    check("harness.py", &Server::start(&["--model", "stub"]), "stub", 4);
}

#[test]
fn vercels_ai_sdk_works_as_it_does_elsewhere() {
    let (from, to) = (beside("ai_sdk"), Path::new(env!("CARGO_TARGET_TMPDIR")).join("ai_sdk"));
    let lock = std::fs::read(Path::new(&from).join("package-lock.json")).unwrap();
    packages::once(&to, &lock, || packages::npm(Path::new(&from), &to));
    std::fs::copy(Path::new(&from).join("check.mjs"), to.join("check.mjs")).unwrap();
    let server = Server::start(&["--model", "stub"]);
    let out = output(Command::new("node").arg(to.join("check.mjs")).args([&server.url, "stub"]));
    assert_eq!(out.lines().filter(|line| line.starts_with("ok ")).count(), 4, "{out}");
}

#[tokio::test]
async fn real_models_serve_every_client() {
    if !are_all_wanted("a real model") {
        return;
    }
    let model = "smollm2-135m-instruct";
    let server = Server::start(&["--model", model]);
    check("openai_client.py", &server, model, 10);
    check("anthropic_client.py", &server, model, 5);
    check("harness.py", &server, model, 4);
    async_openai::check(&server, model).await;
}

/// Runs the fuzzer, which fails by its exit code. Event streams that have no end of their own are left out, since it
/// reads to the end.
fn fuzz(settings: &[&str], more: &[&str], hooks: &str) -> String {
    let server = Server::start(&["--model", "stub", "--max-tokens-default", "8", "--max-model-len", "64"]);
    let url = format!("{}/openapi.json", server.url);
    let mut args = vec!["-m", "schemathesis.cli"];
    args.extend(settings.iter().copied().chain(["run", &url, "--checks", "not_a_server_error", "--seed", "1"]));
    args.extend(["--request-timeout", "20", "--exclude-path", "/v1/events", "--suppress-health-check", "all"]);
    args.extend(more);
    python(&args, &[("SCHEMATHESIS_HOOKS", hooks)])
}

/// Whatever the description allows, and much that it does not: never a server error.
#[test]
fn a_fuzzer_with_our_description_finds_no_server_error() {
    let more = ["--max-examples", "25", "--phases", "examples,coverage,fuzzing"];
    let out = fuzz(&[], &more, "fuzz_hooks");
    assert!(out.contains("Fuzzing (in") && out.contains("passed"), "{out}");
}

/// From what was created along the description's links: every operation that is about one thing is asked for one that is
/// there, and does what it is for.
#[test]
fn a_fuzzer_that_follows_our_links_reaches_every_operation() {
    let report = format!("{}/walk.ndjson", env!("CARGO_TARGET_TMPDIR"));
    let report_to = ["--report", "ndjson", "--report-ndjson-path", &report];
    let more = [&["--phases", "stateful", "--max-examples", "200"], &report_to[..]].concat();
    fuzz(&["--config-file", &beside("schemathesis.toml")], &more, "walk_hooks");
    let mut reached = BTreeSet::new();
    for line in std::fs::read_to_string(&report).unwrap().lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        let recorder = &event["ScenarioFinished"]["recorder"];
        for (id, interaction) in recorder["interactions"].as_object().into_iter().flatten() {
            if interaction["response"]["status_code"].as_u64().is_some_and(|status| (200..300).contains(&status)) {
                let case = &recorder["cases"][id]["value"];
                let word = |name: &str| case[name].as_str().unwrap().to_owned();
                reached.insert((word("method").to_lowercase(), word("path")));
            }
        }
    }
    for route in ROUTES.iter().filter(|route| route.path.contains("{id}")) {
        let operation = (route.method.to_owned(), route.path.to_owned());
        assert!(reached.contains(&operation), "{operation:?} only failed; these did not: {reached:?}");
    }
}
