//! The daemon's own state, its metrics and its health.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use datacenter_api::{DatacenterStatus, Health, Problem, ReadyReport, SupportReport};
use datacenter_observe::http;

use super::error::ApiError;
use super::{Answer, App, blocking};

/// Whether the daemon answers. Needs no token.
#[utoipa::path(get, path = "/healthz", tag = "status", security(()), responses((status = 200, body = Health)))]
pub(super) async fn healthz() -> Json<Health> {
    http::healthz().await
}

/// Whether the daemon can do its work: 503 with the names of the checks that fail, if not. Needs no token.
#[utoipa::path(get, path = "/readyz", tag = "status", security(()), responses(
    (status = 200, body = ReadyReport),
    (status = 503, body = ReadyReport)
))]
pub(super) async fn readyz(State(dc): State<App>) -> Result<Response, ApiError> {
    let report = tokio::task::spawn_blocking(move || dc.ready()).await;
    let report = report.map_err(|error| ApiError::internal(&error))?;
    Ok(http::readyz(report))
}

/// The datacenter's metrics, and what branches last reported, as OpenMetrics text. The configured metrics token opens this and nothing else.
#[utoipa::path(get, path = "/metrics", tag = "status", responses(
    (status = 200, body = String, content_type = "application/openmetrics-text"),
    (status = 401, body = Problem)
))]
pub(super) async fn metrics(State(dc): State<App>) -> Result<Response, ApiError> {
    let text = in_turn(&dc, |dc| dc.metrics()).await?;
    Ok(http::metrics(text))
}

/// The datacenter's part of a support bundle: configuration, state, metrics and the end of its log, without secrets.
#[utoipa::path(get, path = "/v1/support", tag = "status", responses(
    (status = 200, body = SupportReport),
    (status = 401, body = Problem)
))]
pub(super) async fn support(State(dc): State<App>) -> Answer<SupportReport> {
    let report = in_turn(&dc, |dc| Ok::<_, ApiError>(dc.support())).await?;
    Ok(Json(report))
}

/// The datacenter as a whole.
#[utoipa::path(get, path = "/v1/status", tag = "status", responses(
    (status = 200, body = DatacenterStatus),
    (status = 401, body = Problem)
))]
pub(super) async fn status(State(dc): State<App>) -> Answer<DatacenterStatus> {
    Ok(Json(blocking(&dc, |dc| dc.status()).await?))
}

/// Reads everything on the blocking pool, one caller at a time. A caller who goes away does not free the turn before the reading has ended.
async fn in_turn<T: Send + 'static, E: Send + 'static>(
    dc: &App,
    work: impl FnOnce(&App) -> Result<T, E> + Send + 'static,
) -> Result<T, ApiError>
where
    ApiError: From<E>,
{
    let turn = Arc::clone(dc.observed().turn()).acquire_owned().await;
    let turn = turn.expect("the semaphore is never closed");
    blocking(dc, move |dc| {
        let _turn = turn;
        work(dc)
    })
    .await
}
