//! API keys as an operator gives them to the real binary: by flag, by file, by the environment; and whose streams are
//! whose after a restart with other keys.

use crate::server;

use reqwest::Method;
use serde_json::{Value, json};
use server::Server;

const FIRST: &str = "sk-first-0123456789";
const SECOND: &str = "sk-second-0123456789";
const THIRD: &str = "sk-third-0123456789";

/// Asks with a key or without one; gives the status and the body.
async fn ask(server: &Server, key: Option<&str>, method: Method, path: &str) -> (u16, String) {
    let request = server.http.request(method, format!("{}{path}", server.url));
    let request = match key {
        Some(key) => request.bearer_auth(key),
        None => request,
    };
    let reply = request.send().await.unwrap();
    (reply.status().as_u16(), reply.text().await.unwrap())
}

async fn status(server: &Server, key: Option<&str>, path: &str) -> u16 {
    ask(server, key, Method::GET, path).await.0
}

/// Runs a stream to its end; gives its path.
async fn run(server: &Server, key: &str) -> String {
    let body = json!({"prompt": "hi", "max_tokens": 4, "ignore_eos": true, "on_disconnect": "detach"});
    let request = server.http.post(format!("{}/v1/streams", server.url)).bearer_auth(key).json(&body);
    let reply = request.send().await.unwrap();
    assert_eq!(reply.status(), 201, "{}", reply.text().await.unwrap());
    let path = reply.headers()["location"].to_str().unwrap().to_owned();
    let (status, text) = ask(server, Some(key), Method::GET, &path).await;
    assert!(status == 200 && text.contains("event: done"), "{path}: {status} {text}");
    path
}

/// The paths of a key's own streams.
async fn list(server: &Server, key: &str) -> Vec<String> {
    let (_, text) = ask(server, Some(key), Method::GET, "/v1/streams").await;
    let list: Value = serde_json::from_str(&text).unwrap();
    let ids = list["data"].as_array().unwrap().iter().map(|stream| stream["id"].as_str().unwrap().to_owned());
    ids.map(|id| format!("/v1/streams/{id}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_come_by_flag_by_file_and_by_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let lines = file("keys", format!("# people\nann {FIRST} weight=2\n"));
    let toml = file("keys.toml", format!("[[key]]\nname = \"ann\"\nkey = \"{FIRST}\"\n"));
    let named = format!("ann:{FIRST}");
    for (name, value) in [
        ("--api-keys", FIRST),
        ("--api-keys", named.as_str()),
        ("--api-keys-file", lines.as_str()),
        ("--api-keys-file", toml.as_str()),
        ("TALLOW_API_KEYS", FIRST),
        ("TALLOW_API_KEYS_FILE", lines.as_str()),
    ] {
        let server = if name.starts_with("--") {
            Server::start(&["--model", "stub", name, value])
        } else {
            Server::start_with(&["--model", "stub"], &[(name, value)])
        };
        for path in ["/v1/models", "/v1/streams", "/metrics"] {
            // What sums over everybody is an admin's.
            let with_key = if path == "/metrics" { 403 } else { 200 };
            for (key, expect) in [(None, 401), (Some(SECOND), 401), (Some(FIRST), with_key)] {
                assert_eq!(status(&server, key, path).await, expect, "{name} {value}: {path} with {key:?}");
            }
        }
        for probe in ["/health/live", "/health/ready", "/health", "/ping", "/version"] {
            assert_eq!(status(&server, None, probe).await, 200, "{probe}");
        }
        let path = run(&server, FIRST).await;
        assert_eq!(list(&server, FIRST).await, [path], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_without_names_of_flag_and_file_stand_together_and_are_two_owners() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys");
    std::fs::write(&file, format!("{SECOND}\n")).unwrap();
    let server = Server::start(&["--model", "stub", "--api-keys", FIRST, "--api-keys-file", file.to_str().unwrap()]);
    let (first, second) = (run(&server, FIRST).await, run(&server, SECOND).await);
    assert_eq!(status(&server, Some(SECOND), &first).await, 404);
    assert_eq!(status(&server, Some(FIRST), &second).await, 404);
    assert_eq!((list(&server, FIRST).await, list(&server, SECOND).await), (vec![first], vec![second]));
}

/// Keys without names were named by their places, and owners follow from names: whoever moved up got the streams of the
/// one that was there before.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_the_place_of_a_revoked_one_does_not_get_its_streams() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().to_str().unwrap();
    let start =
        |keys: &[&str]| Server::start(&["--model", "stub", "--stream-store", store, "--api-keys", &keys.join(",")]);
    let end = |mut server: Server| {
        server.signal("TERM");
        assert!(server.wait().success());
    };
    let server = start(&[FIRST, SECOND]);
    let (first, second) = (run(&server, FIRST).await, run(&server, SECOND).await);
    end(server);

    // The second key moves up, and a new one comes behind it.
    let server = start(&[SECOND, THIRD]);
    assert_eq!(status(&server, Some(FIRST), &first).await, 401, "it is revoked");
    for key in [SECOND, THIRD] {
        for method in [Method::GET, Method::DELETE] {
            assert_eq!(ask(&server, Some(key), method, &first).await.0, 404, "{key}");
        }
    }
    assert_eq!((status(&server, Some(SECOND), &second).await, status(&server, Some(THIRD), &second).await), (200, 404));
    assert_eq!((list(&server, SECOND).await, list(&server, THIRD).await), (vec![second.clone()], Vec::new()));
    end(server);

    // One that is put back finds its own again, wherever it stands.
    let server = start(&[THIRD, SECOND, FIRST]);
    assert_eq!((list(&server, FIRST).await, list(&server, SECOND).await), (vec![first], vec![second]));
}
