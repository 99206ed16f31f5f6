//! Every route, in the order in which the documentation shows them.

use serde_json::{Value, json};

/// One method of one path.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// Lower case.
    pub method: &'static str,
    /// With `{names}` where it varies.
    pub path: &'static str,
    /// Its name, for programs.
    pub id: &'static str,
    /// What it does, for people.
    pub summary: &'static str,
    /// The fields of its body, if it takes one.
    pub body: Option<BodyKind>,
    /// What a success is: a status, and the media types it may come in.
    pub success: (&'static str, &'static [&'static str]),
    /// Further statuses that are no errors of the request, with what they mean.
    pub others: &'static [(&'static str, &'static str)],
    /// What a success can be asked next.
    pub links: &'static [Link],
}

/// An operation on what another one made.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// The operation's id.
    pub to: &'static str,
    /// Where in the answer the `id` for its path is, in OpenAPI's notation.
    pub id: &'static str,
}

/// A kind of request body; its fields are the rows of the table of fields that name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyKind {
    /// Chat Completions.
    Chat,
    /// Completions.
    Completions,
    /// Embeddings.
    Embeddings,
    /// OpenAI's Responses.
    Responses,
    /// Anthropic's Messages.
    Messages,
    /// Counting a message's tokens.
    CountTokens,
    /// Native streams.
    Streams,
    /// Text to tokens.
    Tokenize,
    /// Tokens to text.
    Detokenize,
}

impl BodyKind {
    /// All.
    pub const ALL: [Self; 9] = [
        Self::Chat,
        Self::Completions,
        Self::Embeddings,
        Self::Responses,
        Self::Messages,
        Self::CountTokens,
        Self::Streams,
        Self::Tokenize,
        Self::Detokenize,
    ];

    /// Those that begin a generation, in the order of the table's columns.
    pub const GENERATING: [Self; 5] = [Self::Chat, Self::Completions, Self::Responses, Self::Messages, Self::Streams];

    /// The schema's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "ChatRequest",
            Self::Completions => "CompletionRequest",
            Self::Embeddings => "EmbeddingRequest",
            Self::Responses => "ResponseRequest",
            Self::Messages => "MessageRequest",
            Self::CountTokens => "CountTokensRequest",
            Self::Streams => "StreamRequest",
            Self::Tokenize => "TokenizeRequest",
            Self::Detokenize => "DetokenizeRequest",
        }
    }

    /// Where it is posted.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
            Self::Responses => "/v1/responses",
            Self::Messages => "/v1/messages",
            Self::CountTokens => "/v1/messages/count_tokens",
            Self::Streams => "/v1/streams",
            Self::Tokenize => "/tokenize",
            Self::Detokenize => "/detokenize",
        }
    }

    /// The least that such a body must have, or for bodies with a choice of prompts, one of them.
    pub fn minimum(self) -> Value {
        let messages = || json!([{"role": "user", "content": "hi"}]);
        match self {
            Self::Chat | Self::CountTokens => json!({"messages": messages()}),
            Self::Messages => json!({"messages": messages(), "max_tokens": 4}),
            Self::Completions | Self::Streams | Self::Tokenize => json!({"prompt": "hi"}),
            Self::Embeddings | Self::Responses => json!({"input": "hi"}),
            Self::Detokenize => json!({"tokens": [104, 105]}),
        }
    }

    /// The field that bounds its text, if it has one.
    pub fn bound(self) -> Option<&'static str> {
        match self {
            Self::Chat | Self::Completions | Self::Messages | Self::Streams => Some("max_tokens"),
            Self::Responses => Some("max_output_tokens"),
            Self::Embeddings | Self::CountTokens | Self::Tokenize | Self::Detokenize => None,
        }
    }
}

const JSON: &[&str] = &["application/json"];
const EVENTS: &[&str] = &["text/event-stream"];
const EITHER: &[&str] = &["application/json", "text/event-stream"];
const NOTHING: &[&str] = &[];
const OPENMETRICS: &[&str] = &["application/openmetrics-text"];
const CANCELLED: (&str, &[&str]) = ("204", NOTHING);

/// The stream's id, which answers of every form and dialect have in their head.
const HEAD_ID: &str = "$response.header.x-stream-id";
const BODY_ID: &str = "$response.body#/id";
const fn link(to: &'static str, id: &'static str) -> Link {
    Link { to, id }
}
const STREAM_LINKS: &[Link] = &[link("followStream", BODY_ID), link("cancelStream", BODY_ID)];
const MESSAGE_LINKS: &[Link] = &[link("followStream", HEAD_ID), link("cancelStream", HEAD_ID)];
const CHAT_LINKS: &[Link] = &[link("followStream", HEAD_ID), link("cancelChatCompletion", HEAD_ID)];
const COMPLETION_LINKS: &[Link] = &[link("followStream", HEAD_ID), link("cancelCompletion", HEAD_ID)];
const RESPONSE_LINKS: &[Link] = &[
    link("getResponse", BODY_ID),
    link("listInputItems", BODY_ID),
    link("cancelResponse", BODY_ID),
    link("deleteResponse", BODY_ID),
];

const fn get(path: &'static str, id: &'static str, summary: &'static str, types: &'static [&'static str]) -> Route {
    Route { method: "get", path, id, summary, body: None, success: ("200", types), others: &[], links: &[] }
}

const fn post(path: &'static str, id: &'static str, summary: &'static str, body: BodyKind) -> Route {
    Route { method: "post", path, id, summary, body: Some(body), success: ("200", EITHER), others: &[], links: &[] }
}

/// All routes.
pub const ROUTES: &[Route] = &[
    Route {
        links: CHAT_LINKS,
        ..post(
            "/v1/chat/completions",
            "createChatCompletion",
            "Answers a conversation, streamed or whole",
            BodyKind::Chat,
        )
    },
    Route {
        success: CANCELLED,
        body: None,
        ..post(
            "/v1/chat/completions/{id}/cancel",
            "cancelChatCompletion",
            "Cancels one, at once; again is no error",
            BodyKind::Chat,
        )
    },
    Route {
        links: COMPLETION_LINKS,
        ..post("/v1/completions", "createCompletion", "Continues texts, or measures them", BodyKind::Completions)
    },
    Route {
        success: CANCELLED,
        body: None,
        ..post("/v1/completions/{id}/cancel", "cancelCompletion", "Cancels one and its choices", BodyKind::Completions)
    },
    Route {
        success: ("200", JSON),
        ..post("/v1/embeddings", "createEmbedding", "Texts as vectors", BodyKind::Embeddings)
    },
    Route {
        links: RESPONSE_LINKS,
        ..post("/v1/responses", "createResponse", "Answers, and keeps the answer", BodyKind::Responses)
    },
    Route {
        success: ("200", JSON),
        ..post(
            "/v1/responses/input_tokens",
            "countInputTokens",
            "How many tokens it would begin with",
            BodyKind::Responses,
        )
    },
    get("/v1/responses/{id}", "getResponse", "The response as it stands, or with `stream` its events", EITHER),
    Route { method: "delete", ..get("/v1/responses/{id}", "deleteResponse", "Ends and forgets it", JSON) },
    Route {
        method: "post",
        ..get("/v1/responses/{id}/cancel", "cancelResponse", "Cancels one that runs in the background", JSON)
    },
    get("/v1/responses/{id}/input_items", "listInputItems", "What it answers", JSON),
    Route {
        links: MESSAGE_LINKS,
        ..post("/v1/messages", "createMessage", "Anthropic's Messages, streamed or whole", BodyKind::Messages)
    },
    Route {
        success: ("200", JSON),
        ..post("/v1/messages/count_tokens", "countTokens", "How many tokens it would begin with", BodyKind::CountTokens)
    },
    Route { success: ("200", JSON), ..post("/tokenize", "tokenize", "A text or chat as tokens", BodyKind::Tokenize) },
    Route { success: ("200", JSON), ..post("/detokenize", "detokenize", "Tokens as a text", BodyKind::Detokenize) },
    get("/v1/models", "listModels", "The models that are served, and where their weights are", JSON),
    get("/v1/models/{model}", "retrieveModel", "One model by name", JSON),
    Route { method: "post", ..get("/v1/models/{model}/load", "loadModel", "Loads one, for an admin", JSON) },
    Route { method: "post", ..get("/v1/models/{model}/unload", "unloadModel", "Unloads one that is idle", JSON) },
    Route {
        success: ("201", JSON),
        links: STREAM_LINKS,
        ..post("/v1/streams", "createStream", "Starts a generation that has a name", BodyKind::Streams)
    },
    get("/v1/streams", "listStreams", "The caller's own streams, newest first", JSON),
    Route {
        others: &[("204", "The client has it all already"), ("410", "Past its retention")],
        ..get("/v1/streams/{id}", "followStream", "Events with ids, from Last-Event-ID on", EVENTS)
    },
    Route {
        method: "delete",
        success: CANCELLED,
        ..get("/v1/streams/{id}", "cancelStream", "Cancels one, at once; again is no error", NOTHING)
    },
    get("/v1/events", "followEvents", "What happens on the server, for an admin's key", EVENTS),
    Route {
        method: "post",
        success: ("204", NOTHING),
        ..get("/v1/session", "beginSession", "Begins a session of the page: a cookie in place of the key", NOTHING)
    },
    Route {
        method: "delete",
        success: ("204", NOTHING),
        ..get("/v1/session", "endSession", "Ends the session of the request's cookie", NOTHING)
    },
    get("/health/live", "live", "The process answers", JSON),
    get("/health/ready", "ready", "Requests will be served", JSON),
    get("/health", "health", "As `/health/ready`", JSON),
    get("/version", "version", "Which program answers", JSON),
    get("/metrics", "metrics", "Counters and histograms as OpenMetrics text, for an admin's key", OPENMETRICS),
    get("/openapi.json", "openapi", "This description", JSON),
    get("/docs", "docs", "This description as a page", &["text/html"]),
    get("/docs.js", "docsScript", "The page's script", &["text/javascript"]),
    get("/", "page", "A page to try it", &["text/html"]),
    get("/style.css", "style", "The page's style", &["text/css"]),
    get("/app.js", "script", "The page's script", &["text/javascript"]),
];
