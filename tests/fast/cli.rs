//! The binary as a user meets it: what it prints, where, and with which exit code.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tallow::config::SETTINGS;

/// `tallow` in a folder of its own, without any of this machine's settings.
fn tallow(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tallow"));
    let foreign =
        std::env::vars_os().map(|(name, _)| name).filter(|name| name.to_string_lossy().starts_with("TALLOW_"));
    foreign.for_each(|name| {
        command.env_remove(name);
    });
    command.env_remove("RUST_LOG").env("TALLOW_CACHE_DIR", dir.join("cache")).current_dir(dir).stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> (Output, String, String) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    output(tallow(dir.path()).args(args))
}

fn output(command: &mut Command) -> (Output, String, String) {
    let output = command.output().expect("the binary runs");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    (output, out, err)
}

#[track_caller]
fn check(args: &[&str], code: i32, in_out: &str, in_err: &str) {
    let (output, out, err) = run(args);
    assert_eq!(output.status.code(), Some(code), "{args:?}\n{out}\n{err}");
    assert!(out.contains(in_out), "{args:?}: `{in_out}` is not in\n{out}");
    assert!(err.contains(in_err), "{args:?}: `{in_err}` is not in\n{err}");
}

#[test]
fn plain_tallow_prints_help_and_succeeds() {
    check(&[], 0, "Usage: tallow", "");
    check(&["--help"], 0, "Commands:", "");
    check(&["--version"], 0, concat!("tallow ", env!("CARGO_PKG_VERSION")), "");
    check(&["serve", "--help"], 0, "--max-num-seqs", "");
}

/// A screen has about fifty lines.
#[test]
fn the_help_of_serve_fits_two_screens_and_there_is_one_with_every_setting() {
    let (short, all) = (run(&["serve", "--help"]).1, run(&["serve", "--help-all"]).1);
    assert!(short.lines().count() <= 100, "{} lines:\n{short}", short.lines().count());
    // As it would stand without a width.
    let all: String = all.split_whitespace().collect::<Vec<_>>().join(" ");
    for (setting, _) in SETTINGS.iter() {
        let has_flag = all.contains(&format!("--{} ", setting.flag)) || all.contains(&format!("--{}[", setting.flag));
        assert!(has_flag && all.contains(&format!("[env: {}]", setting.env())), "{}: {all}", setting.flag);
    }
    assert!(short.contains("--help-all") && !short.contains("--heartbeat-ms"), "{short}");
}

#[test]
fn config_shows_every_setting_and_no_key() {
    let (output, out, err) = run(&["config", "--port", "9", "--api-keys", "alice:sk-alice-0123456789"]);
    assert!(output.status.success(), "{err}");
    assert!(SETTINGS.iter().all(|(setting, _)| out.contains(setting.key)), "{out}");
    assert!(!out.contains("sk-alice"), "{out}");
    check(&["config", "--port", "x"], 2, "", "--port must be a whole number");
}

#[test]
fn wrong_calls_end_with_code_2_and_name_the_flag() {
    check(&["bake"], 2, "", "unrecognized subcommand 'bake'");
    check(&["serve", "--colour"], 2, "", "'--colour'");
    check(&["serve", "--max-num-seqs", "0"], 2, "", "tallow: --max-num-seqs must be at least 1, got 0\n");
    check(&["serve", "--max-num-seqs", "-3"], 2, "", "--max-num-seqs must be a whole number, got `-3`");
    check(&["serve", "--config", "none.toml"], 2, "", "tallow: none.toml: ");
    check(&["serve", "--log-level", "tallow=loud"], 2, "", "--log-level must be");
    check(&["chat", "--temperature", "3", "hi"], 2, "", "--temperature must be from 0 to 2, got 3");
    check(&["chat", "--url", "nowhere", "hi"], 2, "", "--url must be an address");
}

#[test]
fn a_configuration_file_in_the_working_directory_is_read() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(dir.path().join("tallow.toml"), "[server]\nprot = 1\n").expect("the file is written");
    let (result, _, err) = output(tallow(dir.path()).args(["serve"]));
    assert_eq!(result.status.code(), Some(2));
    assert!(err.contains("tallow.toml: unknown key `server.prot`; did you mean `server.port`?"), "{err}");
}

#[test]
fn serve_prints_its_configuration_and_fails_at_once_on_a_taken_port() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port().to_string();
    let (output, out, err) = run(&["serve", "--port", &port, "no-such-model"]);
    assert_eq!(output.status.code(), Some(1), "{err}");
    let line = out.lines().find(|line| line.contains("server.port")).expect("a line of the table");
    assert!(line.contains(&port) && line.ends_with("flag"), "{line}");
    assert!(out.lines().any(|line| line.contains("registry.cache_dir") && line.ends_with("env")), "{out}");
    assert!(!out.contains("engine.max_num_seqs") && out.contains("`tallow config` shows all"), "{out}");
    assert!(err.starts_with(&format!("tallow: cannot listen on 127.0.0.1:{port} (--host, --port): ")), "{err}");
}

#[test]
fn models_lists_the_default_model_as_not_cached() {
    let (output, out, err) = run(&["models"]);
    assert!(output.status.success(), "{err}");
    let line = out.lines().find(|line| line.starts_with("smollm2-135m-instruct ")).expect("the default model");
    assert!(line.contains("93.8 MiB") && line.contains(" no "), "{line}");
}

#[test]
fn pull_of_an_unknown_name_fails_with_the_known_ones() {
    check(&["pull", "smolm"], 1, "", "smollm2-135m-instruct");
}

#[test]
fn chat_without_a_server_says_how_to_start_one() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    drop(listener);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut child = tallow(dir.path())
        .args(["chat", "--url", &url])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    child.stdin.take().expect("piped").write_all(b"hi").expect("the child reads");
    let output = child.wait_with_output().expect("it ends");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.starts_with(&format!("tallow: cannot reach {url}/v1: ")), "{err}");
    assert!(err.contains("start a server with `tallow serve`"), "{err}");
}

#[test]
fn empty_standard_input_is_no_question() {
    check(&["chat"], 2, "", "tallow: standard input is empty");
}

/// A server that answers every request alike.
fn one_answer(status: &str, body: &serde_json::Value) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let body = body.to_string();
    let answer = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.expect("a client");
            // One read is the whole request; a client that left early is no fault.
            let _ = std::io::Read::read(&mut socket, &mut [0; 64 << 10]);
            let _ = socket.write_all(answer.as_bytes());
        }
    });
    url
}

#[test]
fn what_a_server_says_does_not_drive_the_terminal() {
    let (evil, shown) = ("\u{1b}]0;pwned\u{7}\u{9b}2J", r"\u{1b}]0;pwned\u{7}\u{9b}2J");
    let url = one_answer("400 Bad Request", &serde_json::json!({ "error": { "message": evil } }));
    let chat = ["chat", "--url", &url, "--model", "m", "hi"];
    let bench = ["bench", "--url", &url, "--model", "m", "--concurrency", "1", "--requests", "2"];
    for args in [&chat[..], &bench] {
        let (_, out, err) = run(args);
        assert!(out.contains(shown) || err.contains(shown), "{args:?}: `{shown}` is not in\n{out:?}\n{err:?}");
        for text in [out, err] {
            assert!(!text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t')), "{args:?}: {text:?}");
        }
    }
}

#[test]
fn what_a_hub_or_a_manifest_says_does_not_drive_the_terminal() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let listing = serde_json::json!({ "sha": "x", "siblings": [{ "rfilename": "\u{1b}[2J\u{9b}2J.gguf" }] });
    let hub = one_answer("200 OK", &listing);
    let (_, _, err) =
        output(tallow(dir.path()).args(["pull", "hub:evil/repo"]).env("HF_ENDPOINT", hub).env("HF_HOME", "none"));
    assert!(err.contains(r"\u{1b}[2J\u{9b}2J.gguf") && !err.contains(['\u{1b}', '\u{9b}']), "{err:?}");

    let manifest = |description: &str| {
        let zeros = "0".repeat(64);
        let text = format!(
            "name = \"m\"\ndescription = {description}\nlicence = \"l\"\nsize_bytes = 1\nsha256 = \"{zeros}\"\n\
             [[sources]]\nhub = {{ repo = \"a/b\", file = \"c\" }}\n"
        );
        std::fs::write(dir.path().join("m.toml"), text).expect("a file");
        output(tallow(dir.path()).args(["models", "--models-dir", "."]))
    };
    let (_, out, _) = manifest(r#""a\u001b[2J\nb""#);
    assert!(out.contains(r"a\u{1b}[2J\nb") && !out.contains('\u{1b}'), "{out:?}");
    let (_, _, err) = manifest("\"a\" \u{1b}[2J");
    assert!(err.contains(r"\u{1b}[2J") && !err.contains('\u{1b}'), "{err:?}");
}
