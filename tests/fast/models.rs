//! Several models in one server, as a user starts it.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use candle_nn::{VarBuilder, VarMap};
use candle_transformers::models::bert::{BertModel, Config};
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

/// What the feed has told from the beginning of moves of models, once there are so many; each with its model.
async fn moves(server: &Server, num_moves: usize) -> Vec<(String, String)> {
    let mut feed =
        server.http.get(format!("{}/v1/events", server.url)).header("last-event-id", "ab-1").send().await.unwrap();
    let mut text = String::new();
    loop {
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let events = data.filter_map(|data| serde_json::from_str::<Value>(data).ok());
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let told = events.map(|event| (word(&event["type"]), word(&event["data"]["model"])));
        let told: Vec<_> = told.filter(|(kind, _)| kind.starts_with("model_")).collect();
        if told.len() >= num_moves {
            return told;
        }
        let chunk = feed.chunk().await.unwrap().expect("the feed goes on");
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
}

/// Only those that were loaded at start were told.
#[tokio::test]
async fn operators_hear_of_models_that_are_loaded_on_demand_and_unloaded() {
    let server = Server::start(&MODELS);
    let ask = json!({"model": "b", "prompt": "x", "max_tokens": 2});
    assert_eq!(post(&server, "/v1/completions", &ask).await.0, 200);
    while post(&server, "/v1/models/b/unload", &json!({})).await.0 == 409 {
        tokio::task::yield_now().await;
    }
    assert_eq!(post(&server, "/v1/models/a/load", &json!({})).await.0, 200);
    let expect = [("model_loaded", "b"), ("model_unloaded", "b"), ("model_loaded", "a")];
    assert_eq!(moves(&server, expect.len()).await, pairs(&expect));
}

/// A BERT of random weights, with one token for each small letter; the path of its weights.
fn tiny_encoder(folder: &Path) -> PathBuf {
    let config = json!({
        "model_type": "bert", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "max_position_embeddings": 24,
        "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0,
    });
    let mut vocab: serde_json::Map<String, Value> =
        ["[UNK]", "[CLS]", "[SEP]"].into_iter().zip(0u32..).map(|(token, id)| (token.to_owned(), id.into())).collect();
    vocab.extend(('a'..='z').zip(3u32..).map(|(letter, id)| (letter.to_string(), id.into())));
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
        "added_tokens": [special(0, "[UNK]"), special(1, "[CLS]"), special(2, "[SEP]")],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    });
    let weights = VarMap::new();
    let parsed: Config = serde_json::from_value(config.clone()).unwrap();
    BertModel::load(VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu), &parsed).unwrap();
    let path = folder.join("model.safetensors");
    weights.save(&path).unwrap();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    path
}

#[tokio::test]
async fn an_encoder_is_one_of_the_models() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("tiny-bert");
    std::fs::create_dir(&inner).unwrap();
    let path = tiny_encoder(&inner);
    let server = Server::start(&["stub", "--embedding-model", path.to_str().unwrap()]);
    assert_eq!(states(&server).await, pairs(&[("stub", "loaded"), ("tiny-bert", "loaded")]));
    assert_eq!(moves(&server, 2).await, pairs(&[("model_loaded", "stub"), ("model_loaded", "tiny-bert")]));
    let ask = json!({"model": "tiny-bert", "input": ["a b", "c d e"]});
    let (status, first) = post(&server, "/v1/embeddings", &ask).await;
    assert_eq!((status, first["model"].as_str()), (200, Some("tiny-bert")), "{first}");
    // Each text stands between two tokens more.
    assert_eq!(first["usage"], json!({"prompt_tokens": 9, "total_tokens": 9}));
    let (_, alone) = post(&server, "/v1/embeddings", &json!({"model": "tiny-bert", "input": [[1, 3, 4, 2]]})).await;
    assert_eq!(alone["data"][0]["embedding"], first["data"][0]["embedding"], "alone and by tokens, the same bytes");

    // It is unloaded like any other, and comes back when it is asked, with the same bytes.
    while post(&server, "/v1/models/tiny-bert/unload", &json!({})).await.0 == 409 {
        tokio::task::yield_now().await;
    }
    assert_eq!(states(&server).await, pairs(&[("stub", "loaded"), ("tiny-bert", "unloaded")]));
    assert_eq!(post(&server, "/v1/embeddings", &ask).await, (200, first));
    assert_eq!(states(&server).await, pairs(&[("stub", "loaded"), ("tiny-bert", "loaded")]));

    // It goes on from no text, and the model beside it embeds as what it is.
    for path in ["/v1/completions", "/v1/streams", "/tokenize"] {
        let (status, answer) =
            post(&server, path, &json!({"model": "tiny-bert", "prompt": "a", "max_tokens": 1})).await;
        assert_eq!(status, 400, "{path}: {answer}");
        assert!(answer.to_string().contains("only embeds"), "{path}: {answer}");
    }
    let (status, answer) = post(&server, "/v1/embeddings", &json!({"model": "other", "input": "a"})).await;
    let message = answer["error"]["message"].as_str().unwrap();
    assert_eq!((status, message), (404, "`model` must be \"stub\" or \"tiny-bert\", got \"other\""));
    let (status, answer) = post(&server, "/v1/completions", &json!({"model": "other", "prompt": "a"})).await;
    let message = answer["error"]["message"].as_str().unwrap();
    assert_eq!((status, message), (404, "`model` must be \"stub\", got \"other\""));
    let long = json!({"model": "tiny-bert", "input": "a ".repeat(30)});
    let (status, answer) = post(&server, "/v1/embeddings", &long).await;
    assert!(status == 400 && answer.to_string().contains("at most the model's 24 tokens, got 32"), "{answer}");
    assert_eq!(server.metric("tallow_embeddings_total").await, 5.0);
}

/// Its weights are about 36 KB, beside which a stub's mebibyte does not fit.
#[tokio::test]
async fn an_encoder_s_memory_counts() {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny_encoder(folder.path());
    let more = ["--embedding-model", path.to_str().unwrap(), "--memory-max", "1MiB", "--stay-min-ms", "0"];
    let args = [&["serve", "stub", "--port", "0"], &more[..]].concat();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tallow")).args(args).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && err.contains("--memory-max must hold the models"), "{err}");
}
