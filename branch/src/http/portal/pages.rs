//! The portal's page: the files that Vite built of `branch/portal`, embedded when the server was compiled.
//!
//! Nothing here needs a session, and nothing here is secret. The policy lets the page load from this origin alone and run no script that stands in the page. A server that
//! was compiled without a built page serves one that says how to build it; the calls work all the same.

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::App;

/// A file of the built page.
#[allow(
    dead_code,
    reason = "a server that is compiled without a built page makes none"
)]
struct File {
    /// From the page's root: `assets/index-….js`.
    path: &'static str,
    /// Its media type.
    kind: &'static str,
    bytes: &'static [u8],
}

// `FILES`, from build.rs.
include!(concat!(env!("OUT_DIR"), "/portal.rs"));

/// The page.
const PAGE: &str = "index.html";
/// Vite's browser page and this server have the same.
const POLICY: &str = include_str!("../../../portal/content-security-policy.txt");
const NOT_BUILT: &str = include_str!("not_built.html");

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/", get(page))
        .route("/licences.txt", get(|| async { file("licences.txt") }))
        .route("/assets/{*path}", get(asset))
}

async fn page() -> Response {
    match FILES.iter().any(|file| file.path == PAGE) {
        true => file(PAGE),
        false => {
            let kind = [(header::CONTENT_TYPE, "text/html; charset=utf-8")];
            (StatusCode::NOT_IMPLEMENTED, kind, NOT_BUILT).into_response()
        }
    }
}

async fn asset(Path(path): Path<String>) -> Response {
    let mut response = file(&format!("assets/{path}"));
    if response.status() == StatusCode::OK {
        // Its name has a hash of its bytes: it never changes.
        let kept = HeaderValue::from_static("public, max-age=31536000, immutable");
        response.headers_mut().insert(header::CACHE_CONTROL, kept);
    }
    response
}

fn file(path: &str) -> Response {
    match FILES.iter().find(|file| file.path == path) {
        Some(file) => ([(header::CONTENT_TYPE, file.kind)], file.bytes).into_response(),
        None => (StatusCode::NOT_FOUND, "no such page").into_response(),
    }
}

/// What every answer says beside its own: nothing is kept, guessed, framed or told to others.
pub(super) async fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let kept = HeaderValue::from_static("no-store");
    headers.entry(header::CACHE_CONTROL).or_insert(kept);
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, POLICY.trim_ascii()),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
