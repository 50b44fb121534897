//! The portal over HTTPS: its page, and the calls of it. What they do is decided in [`crate::portal`].
//!
//! ```text
//!   GET  /, /assets/…               the page
//!   POST /v1/log-in                 name, password, code of a second factor ──► a cookie, and the word that repeats
//!   GET  /v1/session                who that is
//!   POST /v1/log-out
//!   GET  /v1/desktops               mine, one of each pool
//!   POST /v1/desktops/POOL/connect  one click, asked again until there is a ticket
//!   POST /v1/desktops/POOL/power
//!   GET  /v1/screen?ticket=…        a WebSocket with what the desktop's RFB socket says
//! ```
//!
//! Invariant: a handler that gets a [`Known`] has a caller whose session is good at this moment; what changes something has repeated the word that only our own page
//! knows. No call names a desktop: it names a pool, and [`crate::portal::names`] says whose desktop that is. The branch-local API (all desktops, no
//! log-in) is not here, and this listener never serves it.

mod pages;
mod screen;
#[cfg(test)]
mod tests;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use branch_api::LogIn;
use branch_api::portal::{Connection, PortalDesktops, PortalSession, Power};
use datacenter_observe::http::healthz;
use tokio_util::sync::CancellationToken;

use super::ApiError;
use crate::portal::sessions::SESSION_S;
use crate::portal::{Caller, Portal, PortalError, csrf_of};

/// Largest request body: a log-in with the longest password has under 3 KiB.
const BODY_BYTES_MAX: usize = 8 << 10;
/// The cookie's name. Browsers take one with this beginning only over HTTPS, from the host itself, for all of its paths.
const COOKIE: &str = "__Host-splice-portal";
/// The header that repeats what is derived from the cookie.
const CSRF: &str = "x-splice-csrf";
/// How often what is over is ended.
const TEND_EVERY: Duration = Duration::from_secs(5);
/// How long running requests may take once the server is asked to stop.
const DRAIN: Duration = Duration::from_secs(2);

type App = Arc<Portal>;

impl From<PortalError> for ApiError {
    fn from(error: PortalError) -> Self {
        let status = match error {
            PortalError::Desktop(error) => return error.into(),
            PortalError::Nobody => StatusCode::UNAUTHORIZED,
            PortalError::Ticket => StatusCode::FORBIDDEN,
            PortalError::NotYours { .. } => StatusCode::NOT_FOUND,
            PortalError::Taken { .. } | PortalError::Served { .. } => StatusCode::CONFLICT,
            PortalError::NoScreen { .. } | PortalError::NotStarted { .. } => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        Self(status, error.to_string())
    }
}

/// Whoever makes a request, with his session's secret.
struct Known {
    caller: Caller,
    secret: String,
}

impl FromRequestParts<App> for Known {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, portal: &App) -> Result<Self, ApiError> {
        let secret = cookie(&parts.headers).ok_or(PortalError::Nobody)?;
        let repeated = parts.headers.get(CSRF).map(HeaderValue::as_bytes);
        // Whoever guesses at it has no cookie to guess with; its comparison's time tells nothing worth having.
        if parts.method != Method::GET && repeated != Some(csrf_of(&secret).as_bytes()) {
            return Err(ApiError(
                StatusCode::FORBIDDEN,
                "a request that changes something must have the header X-Splice-Csrf, whose value GET /v1/session tells".to_owned(),
            ));
        }
        let caller = portal.caller(&secret)?;
        Ok(Self { caller, secret })
    }
}

/// The secret of a session's cookie.
fn cookie(headers: &HeaderMap) -> Option<String> {
    let values = headers.get_all(header::COOKIE).iter();
    let mut pairs = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    let found = pairs.find(|(name, _)| *name == COOKIE);
    found.map(|(_, secret)| secret.to_owned())
}

/// The cookie of a session, or one that ends it.
fn set_cookie(secret: Option<&str>) -> HeaderValue {
    let (secret, age_s) = match secret {
        Some(secret) => (secret, SESSION_S),
        None => ("", 0),
    };
    let text =
        format!("{COOKIE}={secret}; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age={age_s}");
    HeaderValue::from_str(&text).expect("hexadecimal digits and our own words")
}

/// Runs a call that may block on the blocking pool.
async fn blocking<T: Send + 'static, E: Send + 'static>(
    portal: &App,
    call: impl FnOnce(&Portal) -> Result<T, E> + Send + 'static,
) -> Result<T, ApiError>
where
    ApiError: From<E>,
{
    let portal = Arc::clone(portal);
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(|| call(&portal))).await {
        Ok(answer) => answer.map_err(ApiError::from),
        Err(error) => Err(ApiError(
            StatusCode::INTERNAL_SERVER_ERROR,
            error.to_string(),
        )),
    }
}

fn router(portal: App) -> Router {
    Router::new()
        .route("/v1/log-in", post(log_in))
        .route("/v1/log-out", post(log_out))
        .route("/v1/session", get(session))
        .route("/v1/desktops", get(desktops))
        .route("/v1/desktops/{pool}/connect", post(connect))
        .route("/v1/desktops/{pool}/power", post(power))
        .route("/v1/screen", get(screen::show))
        .route("/healthz", get(healthz))
        .merge(pages::routes())
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::map_response(pages::guarded))
        .with_state(portal)
}

/// Serves the portal until `cancel`, and ends what is over meanwhile.
pub async fn serve(
    portal: App,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    cancel: CancellationToken,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let handle: Handle<SocketAddr> = Handle::new();
    let server = axum_server::from_tcp_rustls(listener, RustlsConfig::from_config(tls))?
        .handle(handle.clone());
    let tending = tokio::spawn(tend(Arc::clone(&portal), cancel.clone()));
    let stop = tokio::spawn(async move {
        cancel.cancelled().await;
        handle.graceful_shutdown(Some(DRAIN));
    });
    let served = server
        .serve(router(portal).into_make_service_with_connect_info::<SocketAddr>())
        .await;
    stop.abort();
    tending.abort();
    served
}

async fn tend(portal: App, cancel: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(TEND_EVERY) => {}
            () = cancel.cancelled() => return,
        }
        let worker = Arc::clone(&portal);
        let _ = tokio::task::spawn_blocking(move || worker.tend()).await;
    }
}

async fn log_in(
    State(portal): State<App>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Json(request): Json<LogIn>,
) -> Result<Response, ApiError> {
    portal.pass(from.ip()).map_err(|wait_s| {
        ApiError(
            StatusCode::TOO_MANY_REQUESTS,
            format!("too many attempts from here; try again in {wait_s} seconds"),
        )
    })?;
    let turn = portal.house().stretching().acquire_owned().await;
    let turn = turn.expect("the semaphore is never closed");
    let begun = blocking(&portal, move |portal| {
        // Goes with the work: an asker who goes away does not free it before that has ended.
        let _turn = turn;
        portal.log_in(&request)
    })
    .await?;
    let shown = Json(PortalSession {
        name: begun.user,
        branch: portal.house().branch(),
        csrf: csrf_of(&begun.secret),
        ends_unix_s: begun.ends_unix_s,
    });
    let cookie = [(header::SET_COOKIE, set_cookie(Some(&begun.secret)))];
    Ok((cookie, shown).into_response())
}

async fn log_out(State(portal): State<App>, known: Known) -> Response {
    portal.log_out(&known.caller);
    let cookie = [(header::SET_COOKIE, set_cookie(None))];
    (StatusCode::NO_CONTENT, cookie).into_response()
}

async fn session(State(portal): State<App>, known: Known) -> Json<PortalSession> {
    Json(PortalSession {
        csrf: csrf_of(&known.secret),
        branch: portal.house().branch(),
        name: known.caller.user,
        ends_unix_s: known.caller.ends_unix_s,
    })
}

async fn desktops(
    State(portal): State<App>,
    known: Known,
) -> Result<Json<PortalDesktops>, ApiError> {
    let desktops = blocking(&portal, move |portal| portal.desktops(&known.caller)).await?;
    Ok(Json(PortalDesktops { desktops }))
}

async fn connect(
    State(portal): State<App>,
    known: Known,
    Path(pool): Path<String>,
) -> Result<Json<Connection>, ApiError> {
    let asked = blocking(&portal, move |portal| portal.connect(&known.caller, &pool));
    let (connection, begin) = asked.await?;
    if let Some(begin) = begin {
        // Goes on whatever becomes of this request: the user asks again for how it went.
        let worker = Arc::clone(&portal);
        tokio::task::spawn_blocking(move || worker.begin(&begin));
    }
    Ok(Json(connection))
}

async fn power(
    State(portal): State<App>,
    known: Known,
    Path(pool): Path<String>,
    Json(request): Json<Power>,
) -> Result<StatusCode, ApiError> {
    let done = blocking(&portal, move |portal| {
        portal.power(&known.caller, &pool, request.action)
    });
    done.await?;
    Ok(StatusCode::NO_CONTENT)
}
