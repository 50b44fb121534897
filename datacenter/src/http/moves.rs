//! Moves of desktops between branches. Each is a resource that goes on by itself, across restarts of anybody.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use datacenter_api::{Move, MoveList, MoveRequest, Problem, ReasonRequest};

use super::error::ApiError;
use super::extract::{Body, Segments};
use super::{Answer, App, blocking};
use crate::identity::Caller;
use crate::identity::rights::{Permission, Place};

/// The last move of each desktop that was ever moved, as far as the caller may see either end.
#[utoipa::path(get, path = "/v1/moves", tag = "volumes", responses(
    (status = 200, body = MoveList), (status = 401, body = Problem)))]
pub(super) async fn list(
    State(dc): State<App>,
    Extension(caller): Extension<Caller>,
) -> Answer<MoveList> {
    let mut moves = blocking(&dc, |dc| dc.moves()).await?;
    moves.retain(|one| {
        [&one.from, &one.to].into_iter().any(|branch| {
            let place = Place {
                branch: Some(branch.clone()),
                pool: Some(one.pool.clone()),
            };
            caller.may(Permission::See, &place)
        })
    });
    Ok(Json(MoveList { moves }))
}

/// Moves a desktop to another branch. Asked again, it is the same move.
#[utoipa::path(post, path = "/v1/moves", tag = "volumes", request_body = MoveRequest,
    responses((status = 202, body = Move), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 422, body = Problem)))]
pub(super) async fn start(
    State(dc): State<App>,
    Extension(caller): Extension<Caller>,
    Body(request): Body<MoveRequest>,
) -> Result<Response, ApiError> {
    // What somebody wrote leaves the one branch and comes to the other.
    for branch in [&request.from, &request.to] {
        caller.require(Permission::Operate, &Place::branch(branch))?;
    }
    let begun = blocking(&dc, move |dc| dc.move_desktop(&request)).await?;
    Ok((StatusCode::ACCEPTED, Json(begun)).into_response())
}

/// The last move of a desktop.
#[utoipa::path(get, path = "/v1/moves/{volume}", tag = "volumes",
    params(("volume" = String, Path, description = "Id of one of the desktop's volumes, or a beginning of it")),
    responses((status = 200, body = Move), (status = 404, body = Problem)))]
pub(super) async fn show(
    State(dc): State<App>,
    Segments(volume): Segments<String>,
) -> Answer<Move> {
    Ok(Json(blocking(&dc, move |dc| dc.move_of(&volume)).await?))
}

/// Takes a move back, as long as the new branch holds nothing of the desktop.
#[utoipa::path(post, path = "/v1/moves/{volume}/cancel", tag = "volumes",
    params(("volume" = String, Path, description = "Id of one of the desktop's volumes, or a beginning of it")),
    request_body = ReasonRequest,
    responses((status = 200, body = Move), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 422, body = Problem)))]
pub(super) async fn cancel(
    State(dc): State<App>,
    Segments(volume): Segments<String>,
    Body(request): Body<ReasonRequest>,
) -> Answer<Move> {
    let cancelled = blocking(&dc, move |dc| dc.cancel_move(&volume, &request.reason));
    Ok(Json(cancelled.await?))
}
