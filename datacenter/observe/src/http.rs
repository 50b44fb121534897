//! What both APIs' servers share: requests counted and given an id, and the answers of `/metrics`, `/healthz` and `/readyz`.
//!
//! A request's id is its caller's `x-request-id`, if that is short and plain, or one of ours; it is in the span of all that is logged for
//! the request, and goes back with the answer.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use datacenter_api::{Health, ReadyReport};
use tracing::Instrument;

use crate::samples::{Buckets, Samples};

/// The header that carries a request's id.
const REQUEST_ID: &str = "x-request-id";
/// Longest id that is taken from a caller.
const ID_BYTES_MAX: usize = 64;
/// What Prometheus asks for and reads.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Upper bounds of the histogram of requests, in seconds: a lookup takes a millisecond, a start of a desktop a minute.
const BOUNDS_S: [f64; 11] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0,
];

/// Requests since the start of the process, by method and by the route that they met. Both are names of ours, so there are only so many.
#[derive(Debug, Default)]
pub struct Requests {
    seen: Mutex<BTreeMap<(&'static str, String), Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    by_status: BTreeMap<u16, u64>,
    counts: [u64; BOUNDS_S.len()],
    above: u64,
    sum_s: f64,
}

impl Requests {
    /// Counts one.
    pub fn record(&self, method: &Method, route: &str, status: StatusCode, took: Duration) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (method_name(method), route.to_owned());
        let seen = seen.entry(key).or_default();
        *seen.by_status.entry(status.as_u16()).or_default() += 1;
        let took_s = took.as_secs_f64();
        seen.sum_s += took_s;
        match BOUNDS_S.iter().position(|bound| took_s <= *bound) {
            Some(at) => seen.counts[at] += 1,
            None => seen.above += 1,
        }
    }

    /// Tells them: a counter by `method`, `route` and `status`, a histogram by `method` and `route`.
    pub fn collect(&self, samples: &mut Samples, counter: &str, histogram: &str) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for ((method, route), seen) in &*seen {
            for (status, count) in &seen.by_status {
                samples.counter(counter, &[method, route, &status.to_string()], *count);
            }
            let buckets = Buckets {
                sum_s: seen.sum_s,
                counts: BOUNDS_S.into_iter().zip(seen.counts).collect(),
                above: seen.above,
            };
            samples.histogram(histogram, &[method, route], buckets);
        }
    }
}

/// A method's name; callers may invent methods, and each would be a series.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// The middleware around all routes.
pub async fn observe(
    State(requests): State<Arc<Requests>>,
    request: Request,
    next: Next,
) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    // The route as it is written in the program; a path that a caller made up is not repeated.
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or("none", MatchedPath::as_str).to_owned();
    let id = request_id(request.headers());
    let span =
        tracing::info_span!("request", id = %id, method = method_name(&method), route = %route);
    let mut response = next.run(request).instrument(span.clone()).await;
    let (status, took) = (response.status(), began.elapsed());
    requests.record(&method, &route, status, took);
    span.in_scope(|| {
        let took_ms = took.as_millis() as u64;
        tracing::debug!(status = status.as_u16(), took_ms, "answered");
    });
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

fn request_id(headers: &HeaderMap) -> String {
    let is_plain = |id: &&str| {
        let plain = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
        (1..=ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(plain)
    };
    let theirs = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    match theirs.filter(is_plain) {
        Some(id) => id.to_owned(),
        None => own_id(),
    }
}

/// An id that no other request of this host had lately: when this process began, and a count.
fn own_id() -> String {
    static BEGAN: OnceLock<u64> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let began = BEGAN.get_or_init(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| since.as_millis() as u64)
    });
    let mut id = String::new();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    write!(id, "{began:x}-{count:x}").expect("a string takes any text");
    id
}

/// The answer of `/metrics`.
pub fn metrics(text: String) -> Response {
    ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response()
}

/// The answer of `/healthz`: the process answers, and that is all that it says. Whoever restarts daemons asks this.
pub async fn healthz() -> Json<Health> {
    Json(Health { ok: true })
}

/// The answer of `/readyz`: 200 if it is ready, else 503, with the names of the checks that fail.
pub fn readyz(report: ReadyReport) -> Response {
    let status = match report.ready {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(report)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Family;

    const TABLE: &[Family] = &[
        Family::counter(
            "x_http_requests",
            "",
            &["method", "route", "status"],
            "Requests.",
        ),
        Family::histogram(
            "x_http_request_duration_seconds",
            &["method", "route"],
            "Times.",
        ),
    ];

    #[test]
    fn requests_are_counted_by_names_of_ours() {
        let requests = Requests::default();
        let odd = Method::from_bytes(b"BREW").expect("a token is a method");
        let (fast, slow) = (Duration::from_millis(5), Duration::from_secs(61));
        requests.record(&Method::GET, "/v1/status", StatusCode::OK, fast);
        requests.record(&Method::GET, "/v1/status", StatusCode::UNAUTHORIZED, slow);
        requests.record(&odd, "none", StatusCode::NOT_FOUND, fast);
        let mut samples = Samples::new(TABLE);
        requests.collect(
            &mut samples,
            "x_http_requests",
            "x_http_request_duration_seconds",
        );
        let text = samples.text();
        for line in [
            r#"x_http_requests_total{method="GET",route="/v1/status",status="200"} 1"#,
            r#"x_http_requests_total{method="GET",route="/v1/status",status="401"} 1"#,
            r#"x_http_requests_total{method="other",route="none",status="404"} 1"#,
            r#"x_http_request_duration_seconds_bucket{le="0.005",method="GET",route="/v1/status"} 1"#,
            r#"x_http_request_duration_seconds_bucket{le="60.0",method="GET",route="/v1/status"} 1"#,
            r#"x_http_request_duration_seconds_bucket{le="+Inf",method="GET",route="/v1/status"} 2"#,
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }

    #[test]
    fn ids_of_callers_are_taken_if_they_are_plain() {
        let with = |id: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_static(id));
            request_id(&headers)
        };
        assert_eq!(with("a1-B.c_2"), "a1-B.c_2");
        let long = "x".repeat(ID_BYTES_MAX + 1);
        let mut headers = HeaderMap::new();
        headers.insert(
            REQUEST_ID,
            HeaderValue::from_str(&long).expect("it is plain"),
        );
        let ours = [
            with(""),
            with("two words"),
            with("{}"),
            request_id(&headers),
        ];
        for (at, id) in ours.iter().enumerate() {
            assert!(id.contains('-') && !ours[..at].contains(id), "{ours:?}");
        }
    }
}
