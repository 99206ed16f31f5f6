//! Several models in one server, as a user starts it.

use serde_json::{Value, json};

use crate::server::Server;

const MODELS: [&str; 5] = ["stub", "stub:1", "--served-name", "a", "--served-name=b"];

async fn post(server: &Server, path: &str, body: &Value) -> (u16, Value) {
    let response = server.http.post(format!("{}{path}", server.url)).json(body).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

async fn states(server: &Server) -> Vec<(String, String)> {
    let list: Value = server.http.get(format!("{}/v1/models", server.url)).send().await.unwrap().json().await.unwrap();
    let word = |model: &Value, key: &str| model[key].as_str().unwrap().to_owned();
    list["data"].as_array().unwrap().iter().map(|model| (word(model, "id"), word(model, "state"))).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(name, state)| ((*name).to_owned(), (*state).to_owned())).collect()
}

#[tokio::test]
async fn each_request_gets_the_model_that_it_names_which_is_loaded_for_it() {
    let server = Server::start(&MODELS);
    assert_eq!(states(&server).await, pairs(&[("a", "unloaded"), ("b", "unloaded")]));
    let ask = |model: Option<&str>| json!({"model": model, "prompt": "x", "max_tokens": 2, "seed": 1});
    let (status, answer) = post(&server, "/v1/completions", &ask(Some("b"))).await;
    assert_eq!((status, answer["model"].as_str()), (200, Some("b")), "{answer}");
    assert_eq!(states(&server).await, pairs(&[("a", "unloaded"), ("b", "loaded")]));
    let (status, answer) = post(&server, "/v1/completions", &ask(None)).await;
    assert_eq!((status, answer["model"].as_str()), (200, Some("a")), "without a name it is the first: {answer}");
    let (status, answer) = post(&server, "/v1/completions", &ask(Some("c"))).await;
    let message = answer["error"]["message"].as_str().unwrap();
    assert_eq!((status, message), (404, "`model` must be \"a\" or \"b\", got \"c\""));
    // A stream that was kept is read with its own model's vocabulary, and each counts for itself.
    let text = server.http.get(format!("{}/metrics", server.url)).send().await.unwrap().text().await.unwrap();
    for model in ["a", "b"] {
        assert!(text.contains(&format!("tallow_requests_done_total{{model=\"{model}\"}} 1\n")), "{text}");
    }
}

#[tokio::test]
async fn a_model_in_use_is_not_unloaded_and_an_idle_one_is() {
    let server = Server::start(&["stub", "stub:20", "--served-name", "a,b"]);
    let body = json!({"model": "b", "prompt": "x", "max_tokens": 2000, "ignore_eos": true});
    let (status, created) = post(&server, "/v1/streams", &body).await;
    assert_eq!(status, 201, "{created}");
    let (status, answer) = post(&server, "/v1/models/b/unload", &json!({})).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (409, Some("model_in_use")), "{answer}");
    let stream = format!("{}/v1/streams/{}", server.url, created["id"].as_str().unwrap());
    assert!(server.http.delete(&stream).send().await.unwrap().status().is_success());
    // Until its slot is free.
    while post(&server, "/v1/models/b/unload", &json!({})).await.0 == 409 {
        tokio::task::yield_now().await;
    }
    assert_eq!(states(&server).await, pairs(&[("a", "unloaded"), ("b", "unloaded")]));
    let (status, loaded) = post(&server, "/v1/models/a/load", &json!({})).await;
    assert_eq!((status, loaded["state"].as_str()), (200, Some("loaded")), "{loaded}");
    assert_eq!(post(&server, "/v1/models/a/paint", &json!({})).await.0, 404);
    assert_eq!(post(&server, "/v1/models/c/load", &json!({})).await.0, 404);
}

#[test]
fn models_that_are_loaded_at_start_must_fit_together() {
    let args = [&["serve"], &MODELS[..], &["--preload", "--memory-max", "1MiB", "--port", "0"]].concat();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tallow")).args(args).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && err.contains("--memory-max must hold the models"), "{err}");
}

/// A stub takes a mebibyte, so there is room for one of them.
#[tokio::test]
async fn models_that_do_not_fit_together_take_turns_and_who_waits_is_told() {
    let more = ["--memory-max", "1MiB", "--stay-min-ms", "0"];
    let server = Server::start(&[&MODELS[..], &more].concat());
    for model in ["a", "b", "a", "b"] {
        let body = json!({"model": model, "prompt": "x", "max_tokens": 2, "stream": true});
        let response = server.http.post(format!("{}/v1/completions", server.url)).json(&body).send().await.unwrap();
        let text = response.text().await.unwrap();
        assert!(text.contains("[DONE]"), "{model}: {text}");
    }
    assert_eq!(states(&server).await.iter().filter(|(_, state)| state == "loaded").count(), 1);
}

#[tokio::test]
async fn the_file_says_more_of_each() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t.toml");
    let text = "[[models]]\nname = \"stub\"\nserved_name = \"small\"\naliases = [\"s\", \"tiny\"]\npreload = true\n\n\
                [[models]]\nname = \"stub:1\"\nserved_name = \"large\"\npinned = true\n";
    std::fs::write(&file, text).unwrap();
    let server = Server::start(&["--config", file.to_str().unwrap()]);
    assert_eq!(states(&server).await, pairs(&[("small", "loaded"), ("large", "unloaded")]));
    let (status, answer) =
        post(&server, "/v1/completions", &json!({"model": "tiny", "prompt": "x", "max_tokens": 1})).await;
    assert_eq!((status, answer["model"].as_str()), (200, Some("small")), "{answer}");
}

/// A stream of a model that is not loaded goes on with it after a crash.
#[tokio::test]
async fn after_a_crash_each_stream_goes_on_with_its_own_model() {
    let folder = tempfile::tempdir().unwrap();
    let store = ["--stream-store", folder.path().to_str().unwrap()];
    let models = ["stub:20", "stub:20", "--served-name", "a,b"];
    let mut server = Server::start(&[&models[..], &store].concat());
    let body = json!({"model": "b", "prompt": "x", "max_tokens": 40, "ignore_eos": true, "seed": 7, "on_disconnect": "detach"});
    let (status, created) = post(&server, "/v1/streams", &body).await;
    assert_eq!(status, 201, "{created}");
    let path = format!("/v1/streams/{}", created["id"].as_str().unwrap());
    server.signal("KILL");
    server.wait();
    let server = Server::start(&[&models[..], &store].concat());
    let text = server.http.get(format!("{}{path}", server.url)).send().await.unwrap().text().await.unwrap();
    assert!(text.contains("event: done"), "{text}");
    assert_eq!(states(&server).await, pairs(&[("a", "unloaded"), ("b", "loaded")]));
}
