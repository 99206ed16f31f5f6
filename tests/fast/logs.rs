//! The log of the real binary: a line per request and per generation that belong together, and never a prompt unless asked.

use crate::server;

use std::io::Read;
use std::process::Stdio;

use serde_json::{Value, json};
use server::Server;

const PROMPT: &str = "a-secret-that-no-log-may-hold";

/// The log of a server that was asked once, as JSON lines.
async fn log_of(args: &[&str]) -> (String, String) {
    log_of_prompt(&[&["--log-format", "json"], args].concat(), PROMPT).await
}

async fn log_of_prompt(args: &[&str], prompt: &str) -> (String, String) {
    let all = [&["--model", "stub"], args].concat();
    let (mut server, mut log) = Server::start_piped(&all, Stdio::piped());
    let reply = server
        .http
        .post(format!("{}/v1/chat/completions", server.url))
        .header("x-request-id", "req-of-the-test")
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .json(&json!({"messages": [{"role": "user", "content": prompt}], "max_tokens": 5, "ignore_eos": true}))
        .send()
        .await
        .unwrap();
    assert_eq!((reply.status().as_u16(), &reply.headers()["x-request-id"]), (200, &"req-of-the-test".parse().unwrap()));
    let stream = reply.headers()["x-stream-id"].to_str().unwrap().to_owned();
    server.signal("TERM");
    server.wait();
    let mut text = String::new();
    log.read_to_string(&mut text).unwrap();
    (text, stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_and_its_generation_are_one_line_each_and_no_prompt() {
    let (text, stream) = log_of(&[]).await;
    assert!(!text.contains(PROMPT), "{text}");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let [answered] = &lines.iter().filter(|l| l["message"] == "answered").collect::<Vec<_>>()[..] else {
        panic!("one answer: {text}")
    };
    assert_eq!((&answered["status"], &answered["stream"]), (&json!(200), &json!(stream)));
    let span = &answered["span"];
    assert_eq!((&span["id"], &span["path"]), (&json!("req-of-the-test"), &json!("/v1/chat/completions")));
    assert_eq!(span["trace"], "4bf92f3577b34da6a3ce929d0e0e4736");
    let ended = lines.iter().find(|l| l["message"] == "generation ended").expect("its end");
    assert_eq!((&ended["stream"], &ended["completion_tokens"]), (&json!(stream), &json!(5)));
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_are_logged_when_asked_for() {
    let (text, _) = log_of(&["--log-prompts"]).await;
    assert_eq!(text.matches(PROMPT).count(), 1, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_in_the_log_is_one_line_and_drives_no_terminal() {
    let forged = "a\n2030-01-01T00:00:00Z ERROR forged \u{1b}]0;pwned\u{7}\u{9b}2J";
    for format in ["text", "json"] {
        let (text, _) = log_of_prompt(&["--log-format", format, "--log-prompts"], forged).await;
        assert!(text.contains("forged") && !text.lines().any(|line| line.starts_with("2030")), "{text}");
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    }
}
