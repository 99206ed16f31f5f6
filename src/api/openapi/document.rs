//! The tables as an OpenAPI 3.1 document.

use serde_json::{Map, Value, json};

use super::fields::FIELDS;
use super::routes::{Body, Link, ROUTES, Route};

/// The whole document of a server that serves `model`, and `encoder` beside it.
///
/// # Panics
/// If a schema in the tables is no JSON; a test makes the document.
pub fn document(model: &str, encoder: Option<&str>) -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method] = operation(route);
    }
    let mut schemas = Map::new();
    schemas.insert("Error".to_owned(), error_schema());
    schemas.insert("Message".to_owned(), message_schema());
    let names = |body| -> Vec<&str> {
        [Some(model), encoder.filter(|_| body == Body::Embeddings)].into_iter().flatten().collect()
    };
    schemas.extend(Body::ALL.map(|body| (body.name().to_owned(), body_schema(body, &names(body)))));
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
    let error = json!({"schema": {"$ref": "#/components/schemas/Error"}});
    responses.insert(
        "default".to_owned(),
        json!({"description": "What is wrong, by name, rule and value", "content": {"application/json": error}}),
    );
    let mut operation = json!({"operationId": route.id, "summary": route.summary, "responses": responses});
    let names = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let parameters: Vec<Value> = names
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}}))
        .chain(query(route.id).iter().map(|name| {
            let schema_type = if *name == "limit" { "integer" } else { "string" };
            json!({"name": name, "in": "query", "required": false, "schema": {"type": schema_type}})
        }))
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

/// What an operation takes in its query.
fn query(id: &str) -> &'static [&'static str] {
    match id {
        "followStream" | "followEvents" => &["last_event_id"],
        "listStreams" | "listInputItems" => &["limit", "after"],
        _ => &[],
    }
}

fn body_schema(body: Body, models: &[&str]) -> Value {
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
        Body::Streams | Body::Tokenize => Vec::new(),
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
