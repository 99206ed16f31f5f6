//! The description of the API against the API itself: every route is there, every field is read, and the document is
//! one that programs can use.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tallow::api::openapi::{BodyKind, FIELDS, ROUTES, document};
use tallow::engine::EngineConfig;
use tallow::model::stub::StubConfig;

use crate::http::common::{Client, Setup, TestServer, get, post, request};
use crate::http::engine::start;

#[tokio::test]
async fn every_route_is_described_and_every_description_is_a_route() {
    // The router as it is written: nothing else can tell what it has.
    let source = include_str!("../../../src/api/mod.rs");
    let written = source.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap());
    let written: BTreeSet<String> = written.map(|path| path.replace("{*name}", "{model}")).collect();
    // A name may contain slashes, so what is done to a model is the end of the same pattern.
    let pattern = |path: &str| path.trim_end_matches("/load").trim_end_matches("/unload").to_owned();
    let described: BTreeSet<String> = ROUTES.iter().map(|route| pattern(route.path)).collect();
    assert_eq!(described, written);

    let server = TestServer::start().await;
    for route in ROUTES {
        let path = route.path.replace("{id}", "00000000000000000000000000000000").replace("{model}", "stub");
        let mut client = Client::connect(server.address).await;
        client.send(&request(&route.method.to_uppercase(), &path, &[], "{}")).await;
        let head = client.head().await;
        assert_ne!(head.status, 405, "{} {}", route.method, route.path);
        if head.status == 404 {
            assert!(path.contains("0000"), "{} {}", route.method, route.path);
        }
    }
    assert_eq!(get(server.address, "/openapi.json", &[]).await.json(), document("stub", &[]));
}

#[tokio::test]
async fn every_field_is_accepted_and_no_other_that_would_matter() {
    let server = start(EngineConfig::default(), StubConfig::default(), Setup::default()).await;
    for body in BodyKind::ALL {
        let names: BTreeSet<&str> = FIELDS.iter().filter(|f| f.on.contains(&body)).map(|f| f.name).collect();
        for field in FIELDS.iter().filter(|f| f.on.contains(&body) && !f.example.is_empty()) {
            let mut asked = body.minimum();
            if let Some(bound) = body.bound() {
                asked[bound] = json!(4);
            }
            match (field.name, body) {
                ("top_logprobs", BodyKind::Responses) => asked["include"] = json!(["message.output_text.logprobs"]),
                ("top_logprobs", _) => asked["logprobs"] = json!(true),
                _ => {}
            }
            asked[field.name] = serde_json::from_str(field.example).unwrap();
            let reply = post(server.address, body.path(), &asked).await;
            assert!(reply.status < 300, "{asked} on {}: {}", body.path(), reply.json());
            // A wrong type is found, so the field is read; those without effect may be anything.
            if !field.summary.contains("without effect") {
                let is_object = field.schema.contains("\"object\"");
                asked[field.name] = if is_object { json!(1.5) } else { json!({"no such": ["thing"]}) };
                let reply = post(server.address, body.path(), &asked).await;
                assert_eq!(reply.status, 400, "{asked} on {}", body.path());
            }
        }
        let is_checked = BodyKind::GENERATING.contains(&body) || body == BodyKind::CountTokens;
        let others = ["suffix", "best_of", "echo", "bad_words", "use_beam_search", "truncate_prompt_tokens"];
        for name in others.into_iter().filter(|name| is_checked && !names.contains(name)) {
            let mut asked = body.minimum();
            asked[name] = json!(3);
            let status = post(server.address, body.path(), &asked).await.status;
            assert_eq!(status, 400, "`{name}` on {}", body.path());
        }
    }
}

#[test]
fn values_outside_the_schema_are_the_ones_that_are_refused() {
    let document = document("stub", &[]);
    for body in BodyKind::ALL {
        let schema = json!({
            "$ref": format!("#/components/schemas/{}", body.name()),
            "components": document["components"],
        });
        let validator = jsonschema::validator_for(&schema).expect("a schema");
        for field in FIELDS.iter().filter(|f| f.on.contains(&body) && !f.example.is_empty()) {
            let mut asked = body.minimum();
            asked[field.name] = serde_json::from_str(field.example).unwrap();
            assert!(validator.is_valid(&asked), "{asked}");
        }
        let mut hot = body.minimum();
        hot["temperature"] = json!(3);
        assert_eq!(validator.is_valid(&hot), !BodyKind::GENERATING.contains(&body), "{hot}");
        assert!(!validator.is_valid(&json!(7)));
    }
}

#[test]
fn references_lead_somewhere() {
    fn check(value: &Value, document: &Value) {
        match value {
            Value::Object(object) => {
                if let Some(Value::String(reference)) = object.get("$ref") {
                    let place = reference.strip_prefix('#').expect("a place in this document");
                    assert!(document.pointer(place).is_some(), "{reference}");
                }
                object.values().for_each(|v| check(v, document));
            }
            Value::Array(array) => array.iter().for_each(|v| check(v, document)),
            _ => {}
        }
    }
    let document = document("stub", &[]);
    check(&document, &document);
    let ids: BTreeSet<&str> = ROUTES.iter().map(|route| route.id).collect();
    assert_eq!(ids.len(), ROUTES.len(), "operation ids are unique");
    for link in ROUTES.iter().flat_map(|route| route.links) {
        let to = ROUTES.iter().find(|route| route.id == link.to).expect("an operation");
        assert!(to.path.contains("{id}"), "{} has no id in its path", to.id);
    }
}
