//! Backups of the datacenter.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use datacenter_api::{BackupRequest, Operation, Problem};

use super::error::ApiError;
use super::extract::Body;
use super::{App, blocking};
use crate::backup::operation;

/// Backs up realm, catalog and packs into a folder of the datacenter's host, while it works. Long: answers with an operation.
#[utoipa::path(post, path = "/v1/store/backup", tag = "store", request_body = BackupRequest,
    responses((status = 202, body = Operation), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn backup(
    State(dc): State<App>,
    Body(request): Body<BackupRequest>,
) -> Result<Response, ApiError> {
    let started = blocking(&dc, move |dc| operation::start(dc, request));
    Ok((StatusCode::ACCEPTED, Json(started.await?)).into_response())
}
