//! Every route, in the order in which the documentation shows them.

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
    pub body: Option<Body>,
    /// What a success is: a status, and the media types it may come in.
    pub success: (&'static str, &'static [&'static str]),
    /// Further statuses that are no errors of the request, with what they mean.
    pub others: &'static [(&'static str, &'static str)],
}

/// A kind of request body; its fields are the rows of the table of fields that name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// Chat Completions.
    Chat,
    /// Completions.
    Completions,
    /// Native streams.
    Streams,
}

impl Body {
    /// All, in the order of the table's columns.
    pub const ALL: [Self; 3] = [Self::Chat, Self::Completions, Self::Streams];

    /// The schema's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "ChatRequest",
            Self::Completions => "CompletionRequest",
            Self::Streams => "StreamRequest",
        }
    }

    /// Where it is posted.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Streams => "/v1/streams",
        }
    }

    /// The least that such a body must have.
    pub fn minimum(self) -> serde_json::Value {
        match self {
            Self::Chat => serde_json::json!({"messages": [{"role": "user", "content": "hi"}]}),
            Self::Completions | Self::Streams => serde_json::json!({"prompt": "hi"}),
        }
    }
}

const JSON: &[&str] = &["application/json"];
const EVENTS: &[&str] = &["text/event-stream"];
const EITHER: &[&str] = &["application/json", "text/event-stream"];
const NOTHING: &[&str] = &[];
const CANCELLED: (&str, &[&str]) = ("204", NOTHING);

const fn get(path: &'static str, id: &'static str, summary: &'static str, types: &'static [&'static str]) -> Route {
    Route { method: "get", path, id, summary, body: None, success: ("200", types), others: &[] }
}

const fn post(path: &'static str, id: &'static str, summary: &'static str, body: Body) -> Route {
    Route { method: "post", path, id, summary, body: Some(body), success: ("200", EITHER), others: &[] }
}

/// All routes.
pub const ROUTES: &[Route] = &[
    post("/v1/chat/completions", "createChatCompletion", "Answers a conversation, streamed or whole", Body::Chat),
    Route {
        success: CANCELLED,
        body: None,
        ..post(
            "/v1/chat/completions/{id}/cancel",
            "cancelChatCompletion",
            "Cancels one, at once; again is no error",
            Body::Chat,
        )
    },
    post("/v1/completions", "createCompletion", "Continues texts, or measures them", Body::Completions),
    Route {
        success: CANCELLED,
        body: None,
        ..post("/v1/completions/{id}/cancel", "cancelCompletion", "Cancels one and its choices", Body::Completions)
    },
    get("/v1/models", "listModels", "The served model", JSON),
    get("/v1/models/{model}", "retrieveModel", "One model by name", JSON),
    Route {
        success: ("201", JSON),
        ..post("/v1/streams", "createStream", "Starts a generation that has a name", Body::Streams)
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
    get("/v1/events", "followEvents", "What happens on the server, for operators", EVENTS),
    get("/health/live", "live", "The process answers", JSON),
    get("/health/ready", "ready", "Requests will be served", JSON),
    get("/metrics", "metrics", "Counters and histograms as OpenMetrics text", &["application/openmetrics-text"]),
    get("/openapi.json", "openapi", "This description", JSON),
    get("/docs", "docs", "This description as a page", &["text/html"]),
    get("/docs.js", "docsScript", "The page's script", &["text/javascript"]),
    get("/", "page", "A page to try it", &["text/html"]),
    get("/style.css", "style", "The page's style", &["text/css"]),
    get("/app.js", "script", "The page's script", &["text/javascript"]),
];
