//! Clients that people have already, unchanged, against the real binary: OpenAI's and Anthropic's own, with the stub and
//! with a real model, and a fuzzer that reads our description of the API.

#[path = "common/server.rs"]
mod server;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use server::Server;

/// Where the packages are, installed where they are not yet. `.ci/tools` sees to pip. One test process installs at a
/// time: others wait for the lock's file.
fn packages() -> PathBuf {
    static READY: OnceLock<PathBuf> = OnceLock::new();
    let install = || {
        let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients");
        let wanted = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/requirements.txt");
        std::fs::create_dir_all(&to).unwrap();
        let lock = std::fs::File::create(to.join("lock")).unwrap();
        lock.lock().unwrap();
        let mark = to.join("installed.txt");
        if std::fs::read(&mark).ok() != std::fs::read(&wanted).ok() {
            let mut pip = Command::new("python3");
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade", "--target"]);
            let status =
                pip.arg(&to).arg("-r").arg(&wanted).status().expect("python3 is here: `make tools` installs it");
            assert!(status.success(), "pip could not install the clients");
            std::fs::copy(&wanted, &mark).unwrap();
        }
        to
    };
    READY.get_or_init(install).clone()
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

#[test]
fn real_models_serve_both_clients() {
    let model = "smollm2-135m-instruct";
    let server = Server::start(&["--model", model]);
    check("openai_client.py", &server, model, 10);
    check("anthropic_client.py", &server, model, 5);
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
