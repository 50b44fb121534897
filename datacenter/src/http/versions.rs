//! The life of versions: deleting and having back, pins, retentions, exports.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use datacenter_api::{
    DeletedVersion, DeletedVersionList, ExportRequest, Operation, PinRequest, Problem, Retention,
    Version, VersionPin,
};

use super::error::ApiError;
use super::extract::{Body, Segments};
use super::images::reference;
use super::{Answer, App, blocking};
use crate::export::{self, ExportError};

/// Deletes a version that nobody uses. It can be had back for a while.
#[utoipa::path(delete, path = "/v1/images/{image}/versions/{number}", tag = "versions",
    params(("image" = String, Path, description = "The image's name"),
        ("number" = String, Path, description = "The version's number")),
    responses((status = 200, body = DeletedVersion), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn delete(
    State(dc): State<App>,
    Segments((image, number)): Segments<(String, String)>,
) -> Answer<DeletedVersion> {
    let deleted = blocking(&dc, move |dc| {
        dc.delete_version(&reference(&image, &number)?)
    });
    Ok(Json(deleted.await?))
}

/// Has a deleted version back.
#[utoipa::path(post, path = "/v1/images/{image}/versions/{number}/undelete", tag = "versions",
    params(("image" = String, Path, description = "The image's name"),
        ("number" = String, Path, description = "The version's number")),
    responses((status = 200, body = Version), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn undelete(
    State(dc): State<App>,
    Segments((image, number)): Segments<(String, String)>,
) -> Answer<Version> {
    let back = blocking(&dc, move |dc| {
        dc.undelete_version(&reference(&image, &number)?)
    });
    Ok(Json(back.await?))
}

/// Deleted versions of an image that can be had back, in the order of their numbers.
#[utoipa::path(get, path = "/v1/images/{image}/deleted", tag = "versions",
    params(("image" = String, Path, description = "The image's name")),
    responses((status = 200, body = DeletedVersionList), (status = 401, body = Problem)))]
pub(super) async fn deleted(
    State(dc): State<App>,
    Segments(image): Segments<String>,
) -> Answer<DeletedVersionList> {
    let versions = blocking(&dc, move |dc| dc.deleted_versions(&image)).await?;
    Ok(Json(DeletedVersionList { versions }))
}

/// Forbids the deletion of a version.
#[utoipa::path(put, path = "/v1/images/{image}/versions/{number}/pin", tag = "versions",
    params(("image" = String, Path, description = "The image's name"),
        ("number" = String, Path, description = "The version's number, or `latest`")),
    request_body = PinRequest,
    responses((status = 200, body = VersionPin), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn pin(
    State(dc): State<App>,
    Segments((image, number)): Segments<(String, String)>,
    Body(request): Body<PinRequest>,
) -> Answer<VersionPin> {
    let pinned = blocking(&dc, move |dc| {
        dc.pin_version(&reference(&image, &number)?, &request)
    });
    Ok(Json(pinned.await?))
}

/// Allows the deletion of a version again.
#[utoipa::path(delete, path = "/v1/images/{image}/versions/{number}/pin", tag = "versions",
    params(("image" = String, Path, description = "The image's name"),
        ("number" = String, Path, description = "The version's number, or `latest`")),
    responses((status = 204), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn unpin(
    State(dc): State<App>,
    Segments((image, number)): Segments<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let unpinned = blocking(&dc, move |dc| {
        dc.unpin_version(&reference(&image, &number)?)
    });
    unpinned.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Writes a version's disk to a new file of the datacenter's host. Long: answers with an operation.
#[utoipa::path(post, path = "/v1/images/{image}/versions/{number}/export", tag = "versions",
    params(("image" = String, Path, description = "The image's name"),
        ("number" = String, Path, description = "The version's number, or `latest`")),
    request_body = ExportRequest,
    responses((status = 202, body = Operation), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 422, body = Problem)))]
pub(super) async fn export(
    State(dc): State<App>,
    Segments((image, number)): Segments<(String, String)>,
    Body(request): Body<ExportRequest>,
) -> Result<Response, ApiError> {
    let operation = blocking(&dc, move |dc| {
        let version = reference(&image, &number).map_err(ExportError::from)?;
        export::operation(dc, &version, &request)
    });
    Ok((StatusCode::ACCEPTED, Json(operation.await?)).into_response())
}

/// Which versions of an image are kept.
#[utoipa::path(get, path = "/v1/images/{image}/retention", tag = "images",
    params(("image" = String, Path, description = "The image's name")),
    responses((status = 200, body = Retention), (status = 404, body = Problem)))]
pub(super) async fn retention(
    State(dc): State<App>,
    Segments(image): Segments<String>,
) -> Answer<Retention> {
    Ok(Json(blocking(&dc, move |dc| dc.retention(&image)).await?))
}

/// Sets which versions of an image are kept; without rules all are. Followed before each collection of garbage.
#[utoipa::path(put, path = "/v1/images/{image}/retention", tag = "images",
    params(("image" = String, Path, description = "The image's name")),
    request_body = Retention,
    responses((status = 200, body = Retention), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn set_retention(
    State(dc): State<App>,
    Segments(image): Segments<String>,
    Body(request): Body<Retention>,
) -> Answer<Retention> {
    let set = blocking(&dc, move |dc| dc.set_retention(&image, &request));
    Ok(Json(set.await?))
}
