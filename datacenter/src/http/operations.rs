//! Long work.

use axum::Json;
use axum::extract::State;
use datacenter_api::{Operation, OperationList, Problem};
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::{Query, Segments};
use super::{Answer, App, blocking, page_limit, paged};
use crate::problem::ManageError;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// Only operations older than this one.
    before: Option<u64>,
    /// Most items to answer with.
    limit: Option<usize>,
}

fn missing(id: u64) -> ManageError {
    ManageError::not_found(
        "operation",
        id.to_string(),
        "GET /v1/operations lists those that are kept",
    )
}

/// Operations, newest first.
#[utoipa::path(get, path = "/v1/operations", tag = "operations", params(Page), responses(
    (status = 200, body = OperationList),
    (status = 401, body = Problem)
))]
pub(super) async fn list(State(dc): State<App>, Query(page): Query<Page>) -> Answer<OperationList> {
    let limit = page_limit(page.limit)?;
    let found = blocking(&dc, move |dc| dc.operations().list(page.before, limit + 1)).await?;
    let (operations, more) = paged(found, limit);
    let next = operations.last().filter(|_| more).map(|o| o.id);
    Ok(Json(OperationList { operations, next }))
}

/// One operation, with its progress.
#[utoipa::path(get, path = "/v1/operations/{id}", tag = "operations",
    params(("id" = u64, Path, description = "The operation")),
    responses((status = 200, body = Operation), (status = 404, body = Problem)))]
pub(super) async fn show(State(dc): State<App>, Segments(id): Segments<u64>) -> Answer<Operation> {
    let found = blocking(&dc, move |dc| {
        dc.operations().get(id)?.ok_or_else(|| missing(id))
    });
    Ok(Json(found.await?))
}

/// Asks an operation to stop. It fails soon after; one that has ended stays as it is.
#[utoipa::path(post, path = "/v1/operations/{id}/cancel", tag = "operations",
    params(("id" = u64, Path, description = "The operation")),
    responses((status = 200, body = Operation), (status = 404, body = Problem)))]
pub(super) async fn cancel(
    State(dc): State<App>,
    Segments(id): Segments<u64>,
) -> Answer<Operation> {
    let found = blocking(&dc, move |dc| {
        dc.operations().cancel(id);
        dc.operations().get(id)?.ok_or_else(|| missing(id))
    });
    Ok(Json(found.await?))
}
