//! The chunk store.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use datacenter_api::{CollectRequest, Operation, Problem, ScrubRequest, StoreReport};

use super::error::ApiError;
use super::extract::Body;
use super::{Answer, App, blocking};
use crate::upkeep;

/// The chunk store in detail.
#[utoipa::path(get, path = "/v1/store", tag = "store", responses(
    (status = 200, body = StoreReport), (status = 401, body = Problem)))]
pub(super) async fn show(State(dc): State<App>) -> Answer<StoreReport> {
    Ok(Json(blocking(&dc, |dc| dc.store_report()).await?))
}

/// Collects garbage: what no version refers to is condemned, what was condemned a grace ago is erased, and its space given back. Long:
/// answers with an operation.
#[utoipa::path(post, path = "/v1/store/collect", tag = "store", request_body = CollectRequest,
    responses((status = 202, body = Operation), (status = 409, body = Problem)))]
pub(super) async fn collect(
    State(dc): State<App>,
    Body(request): Body<CollectRequest>,
) -> Result<Response, ApiError> {
    let operation = blocking(&dc, move |dc| upkeep::collect::operation(dc, request));
    Ok((StatusCode::ACCEPTED, Json(operation.await?)).into_response())
}

/// Reads everything in the store again and proves it. Long: answers with an operation.
#[utoipa::path(post, path = "/v1/store/scrub", tag = "store", request_body = ScrubRequest,
    responses((status = 202, body = Operation), (status = 409, body = Problem)))]
pub(super) async fn scrub(
    State(dc): State<App>,
    Body(request): Body<ScrubRequest>,
) -> Result<Response, ApiError> {
    let operation = blocking(&dc, move |dc| upkeep::scrub::operation(dc, request));
    Ok((StatusCode::ACCEPTED, Json(operation.await?)).into_response())
}
