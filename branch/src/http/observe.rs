//! Metrics, health and support over HTTP: beside the API on its socket, and on a TCP address for Prometheus, if there is one.
//!
//! The TCP address gives metrics and health alone, to whoever reaches it: Prometheus cannot open a Unix socket, and what it reads is
//! figures with the names of pools and images. Everything else stays behind the socket's file mode.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router, middleware};
use datacenter_api::SupportReport;
use datacenter_observe::http::{healthz, metrics, observe, readyz};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::ApiError;
use crate::desktop::{DesktopError, error_line};
use crate::server::Branch;

/// The routes that need no right but to have reached the server.
pub(super) fn routes() -> Router<Arc<Branch>> {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(show_ready))
        .route("/metrics", get(show_metrics))
}

/// Counts and names all requests of a router.
pub(super) fn observed(router: Router<Arc<Branch>>, branch: &Branch) -> Router<Arc<Branch>> {
    let requests = Arc::clone(&branch.observed.requests);
    router.layer(middleware::from_fn_with_state(requests, observe))
}

/// Serves metrics and health on a TCP address until `cancel`.
pub async fn serve_metrics(
    branch: Arc<Branch>,
    listener: TcpListener,
    cancel: CancellationToken,
) -> std::io::Result<()> {
    let router = observed(routes(), &branch).with_state(branch);
    axum::serve(listener, router)
        .with_graceful_shutdown(async move { cancel.cancelled().await })
        .await
}

/// Reads something on the blocking pool, one caller at a time. A caller who goes away does not free the turn before the reading has ended.
async fn look<T: Send + 'static>(
    branch: Arc<Branch>,
    look: impl FnOnce(&Branch) -> T + Send + 'static,
) -> Result<T, ApiError> {
    let turn = Arc::clone(&branch.observed.turn).acquire_owned().await;
    let turn = turn.expect("the semaphore is never closed");
    let span = tracing::Span::current();
    let looked = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        span.in_scope(|| look(&branch))
    });
    let failed = |error: tokio::task::JoinError| {
        ApiError(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    };
    looked.await.map_err(failed)
}

async fn show_metrics(State(branch): State<Arc<Branch>>) -> Result<Response, ApiError> {
    let text = look(branch, Branch::metrics).await?;
    let failed =
        |error: DesktopError| ApiError(StatusCode::INTERNAL_SERVER_ERROR, error_line(&error));
    Ok(metrics(text.map_err(failed)?))
}

/// Not in turn with scrapes: whoever asks this gives up soon.
async fn show_ready(State(branch): State<Arc<Branch>>) -> Result<Response, ApiError> {
    let report = tokio::task::spawn_blocking(move || branch.ready()).await;
    let failed = |error: tokio::task::JoinError| {
        ApiError(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    };
    Ok(readyz(report.map_err(failed)?))
}

/// The branch's part of a support bundle.
pub(super) async fn support(
    State(branch): State<Arc<Branch>>,
) -> Result<Json<SupportReport>, ApiError> {
    look(branch, Branch::support).await.map(Json)
}
