//! Images and versions.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use datacenter_api::{
    CreateImage, Image, ImageList, Operation, OperationKind, OperationResult, Problem,
    PublishRequest, UpdateRequest, Version, VersionDiff, VersionList,
};
use dedup::VersionId;
use dedup_image::ImageFormat;
use serde::Deserialize;
use utoipa::IntoParams;

use super::error::ApiError;
use super::extract::{Body, Query, Segments};
use super::{Answer, App, blocking, page_limit, paged};
use crate::problem::ManageError;
use crate::publish::{self, Publish, PublishError};
use crate::update;

/// Longest note, in bytes.
const NOTE_BYTES_MAX: usize = 500;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct NamePage {
    /// Only names after this one.
    after: Option<String>,
    /// Most items to answer with.
    limit: Option<usize>,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct NumberPage {
    /// Only versions below this number.
    before: Option<u32>,
    /// Most items to answer with.
    limit: Option<usize>,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct DiffQuery {
    /// The version that is there: `IMAGE` or `IMAGE@NUMBER`.
    from: String,
    /// The version that is wanted.
    to: String,
}

/// Images, in the order of their names.
#[utoipa::path(get, path = "/v1/images", tag = "images", params(NamePage), responses(
    (status = 200, body = ImageList), (status = 401, body = Problem)))]
pub(super) async fn list(State(dc): State<App>, Query(page): Query<NamePage>) -> Answer<ImageList> {
    let limit = page_limit(page.limit)?;
    let found = blocking(&dc, move |dc| dc.images(page.after.as_deref(), limit + 1)).await?;
    let (images, more) = paged(found, limit);
    let next = images.last().filter(|_| more).map(|i| i.name.clone());
    Ok(Json(ImageList { images, next }))
}

/// Creates an image.
#[utoipa::path(post, path = "/v1/images", tag = "images", request_body = CreateImage, responses(
    (status = 201, body = Image), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn create(
    State(dc): State<App>,
    Body(request): Body<CreateImage>,
) -> Result<Response, ApiError> {
    let image = blocking(&dc, move |dc| {
        dc.create_image(&request.name, request.chunk_avg_bytes)
    });
    Ok((StatusCode::CREATED, Json(image.await?)).into_response())
}

/// One image.
#[utoipa::path(get, path = "/v1/images/{image}", tag = "images",
    params(("image" = String, Path, description = "The image's name")),
    responses((status = 200, body = Image), (status = 404, body = Problem)))]
pub(super) async fn show(
    State(dc): State<App>,
    Segments(image): Segments<String>,
) -> Answer<Image> {
    Ok(Json(blocking(&dc, move |dc| dc.image(&image)).await?))
}

/// An image's versions, newest first.
#[utoipa::path(get, path = "/v1/images/{image}/versions", tag = "versions",
    params(("image" = String, Path, description = "The image's name"), NumberPage),
    responses((status = 200, body = VersionList), (status = 404, body = Problem)))]
pub(super) async fn versions(
    State(dc): State<App>,
    Segments(image): Segments<String>,
    Query(page): Query<NumberPage>,
) -> Answer<VersionList> {
    let limit = page_limit(page.limit)?;
    let found = blocking(&dc, move |dc| dc.versions(&image, page.before, limit + 1)).await?;
    let (versions, more) = paged(found, limit);
    let next = versions.last().filter(|_| more).map(|v| v.number);
    Ok(Json(VersionList { versions, next }))
}

/// Publishes a disk file of the datacenter's host as the image's next version. Long: answers with an operation.
#[utoipa::path(post, path = "/v1/images/{image}/versions", tag = "versions",
    params(("image" = String, Path, description = "The image's name")),
    request_body = PublishRequest,
    responses((status = 202, body = Operation), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 422, body = Problem)))]
pub(super) async fn publish(
    State(dc): State<App>,
    Segments(image): Segments<String>,
    Body(request): Body<PublishRequest>,
) -> Result<Response, ApiError> {
    let operation = blocking(&dc, move |dc| {
        let format = request
            .format
            .map(|name| name.parse::<ImageFormat>())
            .transpose()
            .map_err(|e| ManageError::invalid(e.to_string()))?;
        if request
            .note
            .as_ref()
            .is_some_and(|n| n.len() > NOTE_BYTES_MAX)
        {
            let message = format!("the note is longer than {NOTE_BYTES_MAX} bytes");
            return Err(ManageError::invalid(message).into());
        }
        let publish = Publish {
            image: image.clone(),
            path: request.path.into(),
            format,
            note: request.note,
            allow_same: request.allow_same,
            verify: request.verify,
        };
        // What can be refused at once is refused at once, not in an operation that nobody looks at.
        let turn = publish::reserve(dc, &image)?;
        publish::check_path(dc, &publish.path)?;
        let started = dc
            .operations()
            .start(
                OperationKind::Publish,
                image,
                move |meter| match publish::publish(&turn, &publish, meter) {
                    Ok(result) => Ok(OperationResult::Publish(result)),
                    Err(error) => Err((&error).into()),
                },
            )?;
        Ok::<_, PublishError>(started)
    });
    Ok((StatusCode::ACCEPTED, Json(operation.await?)).into_response())
}

pub(super) fn reference(image: &str, number: &str) -> Result<String, ManageError> {
    match number {
        "latest" => Ok(image.to_owned()),
        _ => Ok(format!("{image}@{number}")),
    }
}

/// One version of an image, by number or `latest`.
#[utoipa::path(get, path = "/v1/images/{image}/versions/{number}", tag = "versions",
    params(("image" = String, Path, description = "The image's name"),
        ("number" = String, Path, description = "The version's number, or `latest`")),
    responses((status = 200, body = Version), (status = 404, body = Problem)))]
pub(super) async fn version(
    State(dc): State<App>,
    Segments((image, number)): Segments<(String, String)>,
) -> Answer<Version> {
    let found = blocking(&dc, move |dc| {
        dc.version_named(&reference(&image, &number)?)
    });
    Ok(Json(found.await?))
}

/// Reads every chunk of a version back. Long: answers with an operation.
#[utoipa::path(post, path = "/v1/images/{image}/versions/{number}/verify", tag = "versions",
    params(("image" = String, Path, description = "The image's name"),
        ("number" = String, Path, description = "The version's number, or `latest`")),
    responses((status = 202, body = Operation), (status = 404, body = Problem)))]
pub(super) async fn verify(
    State(dc): State<App>,
    Segments((image, number)): Segments<(String, String)>,
) -> Result<Response, ApiError> {
    let operation = blocking(&dc, move |dc| {
        let version = dc.version_named(&reference(&image, &number)?)?;
        let subject = format!("{}@{}", version.image, version.number);
        let (work_on, dc2) = (subject.clone(), dc.clone());
        dc.operations()
            .start(OperationKind::Verify, subject, move |meter| {
                match dc2.verify_version(&work_on, meter) {
                    Ok(result) => Ok(OperationResult::Verify(result)),
                    Err(error) => Err((&error).into()),
                }
            })
    });
    Ok((StatusCode::ACCEPTED, Json(operation.await?)).into_response())
}

/// One version, by id.
#[utoipa::path(get, path = "/v1/versions/{id}", tag = "versions",
    params(("id" = String, Path, description = "The version's id")),
    responses((status = 200, body = Version), (status = 404, body = Problem)))]
pub(super) async fn version_by_id(
    State(dc): State<App>,
    Segments(id): Segments<String>,
) -> Answer<Version> {
    let found = blocking(&dc, move |dc| {
        let id: VersionId = id
            .parse()
            .map_err(|e: dedup::id::ParseIdError| ManageError::invalid(e.to_string()))?;
        dc.version_by_id(id)
    });
    Ok(Json(found.await?))
}

/// What a branch that has one version needs for another.
#[utoipa::path(get, path = "/v1/diff", tag = "versions", params(DiffQuery),
    responses((status = 200, body = VersionDiff), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn diff(
    State(dc): State<App>,
    Query(query): Query<DiffQuery>,
) -> Answer<VersionDiff> {
    Ok(Json(
        blocking(&dc, move |dc| dc.diff(&query.from, &query.to)).await?,
    ))
}

/// Encodes what one version has and another lacks, for branches that hold the other. Long: answers with an operation. If it is encoded
/// already, the operation ends at once.
#[utoipa::path(post, path = "/v1/updates", tag = "versions", request_body = UpdateRequest,
    responses((status = 202, body = Operation), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 422, body = Problem)))]
pub(super) async fn update(
    State(dc): State<App>,
    Body(request): Body<UpdateRequest>,
) -> Result<Response, ApiError> {
    let operation = blocking(&dc, move |dc| {
        update::operation(dc, dc.pair_named(&request.from, &request.to)?)
    });
    Ok((StatusCode::ACCEPTED, Json(operation.await?)).into_response())
}
