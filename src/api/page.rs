//! The pages at `/` and `/docs`: small files in the binary, nothing from anywhere else.

use axum::http::{HeaderName, header};
use axum::response::IntoResponse;

/// The page may load and call this server only.
const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; \
                   base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

type Headers = [(HeaderName, &'static str); 5];

/// `GET /`
pub(crate) async fn index() -> impl IntoResponse {
    (headers("text/html; charset=utf-8"), include_str!("../../web/index.html"))
}

/// `GET /style.css`
pub(crate) async fn style() -> impl IntoResponse {
    (headers("text/css; charset=utf-8"), include_str!("../../web/style.css"))
}

/// `GET /app.js`
pub(crate) async fn script() -> impl IntoResponse {
    (headers("text/javascript; charset=utf-8"), include_str!("../../web/app.js"))
}

/// `GET /docs`
pub(crate) async fn docs() -> impl IntoResponse {
    (headers("text/html; charset=utf-8"), include_str!("../../web/docs.html"))
}

/// `GET /docs.js`
pub(crate) async fn docs_script() -> impl IntoResponse {
    (headers("text/javascript; charset=utf-8"), include_str!("../../web/docs.js"))
}

fn headers(content_type: &'static str) -> Headers {
    [
        (header::CONTENT_TYPE, content_type),
        // Asked for again each time: after an update an old script must not meet a new server.
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, CSP),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ]
}
