//! The tables as an OpenAPI 3.1 document.

use serde_json::{Map, Value, json};

use super::fields::FIELDS;
use super::routes::{BodyKind, Link, ROUTES, Route};

/// The whole document of a server that serves `model`, and `encoders` beside it.
///
/// # Panics
/// If a schema in the tables is no JSON; a test makes the document.
pub fn document(model: &str, encoders: &[&str]) -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method] = operation(route);
    }
    let mut schemas = Map::new();
    schemas.insert("Error".to_owned(), error_schema());
    schemas.insert("AnthropicError".to_owned(), anthropic_error_schema());
    schemas.insert("Message".to_owned(), message_schema());
    let names = |body| -> Vec<&str> {
        let encoders = if body == BodyKind::Embeddings { encoders } else { &[] };
        std::iter::once(model).chain(encoders.iter().copied()).collect()
    };
    schemas.extend(BodyKind::ALL.map(|body| (body.name().to_owned(), body_schema(body, &names(body)))));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "tallow",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Serves language models as token streams.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        // Without keys on the server, none is needed.
        "security": [{}, {"bearer": []}, {"header": []}],
    })
}

fn operation(route: &Route) -> Value {
    let (status, types) = route.success;
    let content: Map<String, Value> = types.iter().map(|t| ((*t).to_owned(), json!({"schema": {}}))).collect();
    let mut success = json!({"description": "Success"});
    if !content.is_empty() {
        success["content"] = content.into();
    }
    if !route.links.is_empty() {
        let link = |link: &Link| (link.to.to_owned(), json!({"operationId": link.to, "parameters": {"id": link.id}}));
        success["links"] = route.links.iter().map(link).collect::<Map<_, _>>().into();
    }
    let mut responses = Map::from_iter([(status.to_owned(), success)]);
    responses.extend(route.others.iter().map(|(status, text)| ((*status).to_owned(), json!({"description": text}))));
    let error = if route.path.starts_with("/v1/messages") { "AnthropicError" } else { "Error" };
    let error = json!({"schema": {"$ref": format!("#/components/schemas/{error}")}});
    responses.insert(
        "default".to_owned(),
        json!({"description": "What is wrong, by name, rule and value", "content": {"application/json": error}}),
    );
    let mut operation = json!({"operationId": route.id, "summary": route.summary, "responses": responses});
    let names = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let parameters: Vec<Value> = names
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}}))
        .chain(query(route.id).iter().map(|(name, schema)| optional(name, "query", schema)))
        .chain(headers(route).iter().map(|(name, schema)| optional(name, "header", schema)))
        .collect();
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(body) = route.body {
        let schema = json!({"$ref": format!("#/components/schemas/{}", body.name())});
        operation["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": schema}}});
    }
    operation
}

fn optional(name: &str, place: &str, schema: &str) -> Value {
    let schema: Value = serde_json::from_str(schema).expect("a schema in the table is JSON");
    json!({"name": name, "in": place, "required": false, "schema": schema})
}

const STRING: &str = r#"{"type":"string"}"#;
const QUEUE_TIMEOUT: (&str, &str) = ("x-queue-timeout", r#"{"type":"number","minimum":0}"#);
const INTEGER: &str = r#"{"type":"integer"}"#;

/// What an operation takes in its query, each with its schema.
fn query(id: &str) -> &'static [(&'static str, &'static str)] {
    match id {
        "followStream" | "followEvents" => &[("last_event_id", STRING)],
        "listStreams" => &[("limit", INTEGER), ("after", STRING)],
        "listInputItems" => &[("limit", INTEGER), ("after", STRING), ("order", r#"{"enum":["asc","desc"]}"#)],
        "getResponse" => &[("stream", r#"{"type":"boolean"}"#), ("starting_after", INTEGER)],
        _ => &[],
    }
}

/// What it takes in its head, each with its schema.
fn headers(route: &Route) -> &'static [(&'static str, &'static str)] {
    match (route.id, route.body) {
        ("followStream" | "followEvents", _) => &[("last-event-id", STRING)],
        (_, Some(BodyKind::Embeddings)) => &[QUEUE_TIMEOUT],
        (_, Some(body)) if BodyKind::GENERATING.contains(&body) => &[
            ("x-stream-on-disconnect", r#"{"type":"string","examples":["cancel","linger","linger=30","detach"]}"#),
            QUEUE_TIMEOUT,
        ],
        _ => &[],
    }
}

fn body_schema(body: BodyKind, models: &[&str]) -> Value {
    let fields = FIELDS.iter().filter(|field| field.on.contains(&body));
    let properties: Map<String, Value> = fields
        .map(|field| {
            let mut schema: Value = serde_json::from_str(field.schema).expect("a schema in the table is JSON");
            if field.name == "model" {
                let names = models.iter().map(|name| json!(name)).chain([Value::Null]);
                schema = json!({"enum": names.collect::<Vec<_>>()});
            }
            schema["description"] = field.summary.into();
            (field.name.to_owned(), schema)
        })
        .collect();
    let required: Vec<String> = match body {
        // One of several.
        BodyKind::Streams | BodyKind::Tokenize => Vec::new(),
        _ => body.minimum().as_object().into_iter().flat_map(|o| o.keys().cloned()).collect(),
    };
    json!({"type": "object", "properties": properties, "required": required})
}

fn message_schema() -> Value {
    let part = json!({
        "type": "object",
        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
        "required": ["type", "text"],
    });
    json!({
        "type": "object",
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
            "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": part}]},
        },
        "required": ["role", "content"],
    })
}

fn anthropic_error_schema() -> Value {
    let text = json!({"type": "string"});
    let error =
        json!({"type": "object", "properties": {"type": text, "message": text}, "required": ["type", "message"]});
    json!({
        "type": "object",
        "properties": {"type": {"const": "error"}, "error": error},
        "required": ["type", "error"],
    })
}

fn error_schema() -> Value {
    let text = json!({"type": "string"});
    let or_null = json!({"type": ["string", "null"]});
    json!({
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {"message": text, "type": text, "param": or_null, "code": or_null},
                "required": ["message", "type", "param", "code"],
            },
        },
        "required": ["error"],
    })
}
