//! Channels of images, and rollouts.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use datacenter_api::{
    Channel, ChannelList, ChannelRequest, Problem, Rollout, RolloutList, RolloutPrice,
    RolloutRequest,
};
use serde::Deserialize;
use utoipa::IntoParams;

use super::error::ApiError;
use super::extract::{Body, Query, Segments};
use super::{Answer, App, blocking, page_limit, paged};
use crate::identity::Caller;
use crate::identity::rights::{Permission, Place};
use crate::problem::ManageError;
use crate::rollouts::Wish;

/// The channels of an image.
#[utoipa::path(get, path = "/v1/images/{image}/channels", tag = "rollouts",
    params(("image" = String, Path, description = "The image's name")),
    responses((status = 200, body = ChannelList), (status = 404, body = Problem)))]
pub(super) async fn channels(
    State(dc): State<App>,
    Segments(image): Segments<String>,
) -> Answer<ChannelList> {
    let channels = blocking(&dc, move |dc| dc.channels(&image)).await?;
    Ok(Json(ChannelList { channels }))
}

/// Puts a channel at a version; it is made if it is not there. Pools that follow it stay where they are until a rollout moves them.
#[utoipa::path(put, path = "/v1/images/{image}/channels/{channel}", tag = "rollouts",
    params(("image" = String, Path, description = "The image's name"),
        ("channel" = String, Path, description = "The channel's name")),
    request_body = ChannelRequest,
    responses((status = 200, body = Channel), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 422, body = Problem)))]
pub(super) async fn set_channel(
    State(dc): State<App>,
    Segments((image, channel)): Segments<(String, String)>,
    Body(request): Body<ChannelRequest>,
) -> Answer<Channel> {
    let set = blocking(&dc, move |dc| dc.set_channel(&image, &channel, &request));
    Ok(Json(set.await?))
}

/// Removes a channel that no pool follows.
#[utoipa::path(delete, path = "/v1/images/{image}/channels/{channel}", tag = "rollouts",
    params(("image" = String, Path, description = "The image's name"),
        ("channel" = String, Path, description = "The channel's name")),
    responses((status = 204), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn delete_channel(
    State(dc): State<App>,
    Segments((image, channel)): Segments<(String, String)>,
) -> Result<StatusCode, ApiError> {
    blocking(&dc, move |dc| dc.delete_channel(&image, &channel)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a rollout would cost each branch, as far as the caller may see. Nothing is begun.
#[utoipa::path(post, path = "/v1/rollouts/price", tag = "rollouts", request_body = RolloutRequest,
    responses((status = 200, body = RolloutPrice), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 422, body = Problem)))]
pub(super) async fn price(
    State(dc): State<App>,
    Extension(caller): Extension<Caller>,
    Body(request): Body<RolloutRequest>,
) -> Answer<RolloutPrice> {
    let mut price = blocking(&dc, move |dc| dc.price_rollout(&request)).await?;
    price.branches.retain(|one| {
        one.pools.iter().any(|pool| {
            let place = place(&one.branch, pool);
            caller.may(Permission::See, &place)
        })
    });
    price.line_bytes = price.branches.iter().map(|one| one.line_bytes).sum();
    price.desktops = price.branches.iter().map(|one| one.desktops).sum();
    Ok(Json(price))
}

/// Begins a rollout. The caller needs the permission at each pool that it moves, and in the realm where it moves a channel.
#[utoipa::path(post, path = "/v1/rollouts", tag = "rollouts", request_body = RolloutRequest,
    responses((status = 201, body = Rollout), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 422, body = Problem)))]
pub(super) async fn start(
    State(dc): State<App>,
    Extension(caller): Extension<Caller>,
    Body(request): Body<RolloutRequest>,
) -> Result<Response, ApiError> {
    let begun = blocking(&dc, move |dc| {
        let allowed = |place: &Place| caller.require(Permission::Operate, place);
        dc.start_rollout(&caller.who, &request, &allowed)
    });
    Ok((StatusCode::CREATED, Json(begun.await?)).into_response())
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct RolloutPage {
    /// Only rollouts before this number.
    before: Option<u64>,
    /// Most items to answer with.
    limit: Option<usize>,
}

/// Rollouts that move something that the caller may see, newest first, without pools and history. A page may have fewer than were asked for.
#[utoipa::path(get, path = "/v1/rollouts", tag = "rollouts", params(RolloutPage), responses(
    (status = 200, body = RolloutList), (status = 401, body = Problem)))]
pub(super) async fn list(
    State(dc): State<App>,
    Extension(caller): Extension<Caller>,
    Query(page): Query<RolloutPage>,
) -> Answer<RolloutList> {
    let limit = page_limit(page.limit)?;
    let found = blocking(&dc, move |dc| dc.rollouts(page.before, limit + 1)).await?;
    let (mut rollouts, more) = paged(found, limit);
    let next = rollouts.last().filter(|_| more).map(|last| last.id);
    rollouts.retain(|rollout| sees_any(&caller, rollout));
    for rollout in &mut rollouts {
        rollout.pools.clear();
        rollout.history.clear();
    }
    Ok(Json(RolloutList { rollouts, next }))
}

/// One rollout: the pools that the caller may see, and the history if he may see all of them.
#[utoipa::path(get, path = "/v1/rollouts/{rollout}", tag = "rollouts",
    params(("rollout" = u64, Path, description = "The rollout's number")),
    responses((status = 200, body = Rollout), (status = 404, body = Problem)))]
pub(super) async fn show(
    State(dc): State<App>,
    Extension(caller): Extension<Caller>,
    Segments(rollout): Segments<u64>,
) -> Answer<Rollout> {
    let mut shown = blocking(&dc, move |dc| dc.rollout(rollout)).await?;
    let count = shown.pools.len();
    shown.pools.retain(|pool| sees(&caller, pool));
    if shown.pools.is_empty() {
        return Err(ManageError::not_found(
            "rollout",
            rollout.to_string(),
            "`splice rollout list` shows them",
        )
        .into());
    }
    if shown.pools.len() < count {
        shown.history.clear();
    }
    Ok(Json(shown))
}

/// Pauses a rollout: nothing new is fetched or moved. What it has moved is watched on, and goes back if desktops fail.
#[utoipa::path(post, path = "/v1/rollouts/{rollout}/pause", tag = "rollouts",
    params(("rollout" = u64, Path, description = "The rollout's number")),
    responses((status = 200, body = Rollout), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn pause(
    State(dc): State<App>,
    Extension(caller): Extension<Caller>,
    Segments(rollout): Segments<u64>,
) -> Answer<Rollout> {
    steer(dc, caller, rollout, Wish::Pause).await
}

/// Lets a rollout that is paused go on. Desktops have their time anew.
#[utoipa::path(post, path = "/v1/rollouts/{rollout}/resume", tag = "rollouts",
    params(("rollout" = u64, Path, description = "The rollout's number")),
    responses((status = 200, body = Rollout), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn resume(
    State(dc): State<App>,
    Extension(caller): Extension<Caller>,
    Segments(rollout): Segments<u64>,
) -> Answer<Rollout> {
    steer(dc, caller, rollout, Wish::Resume).await
}

/// Turns a rollout back: all that it has moved runs what it ran before, from each desktop's next start on.
#[utoipa::path(post, path = "/v1/rollouts/{rollout}/abort", tag = "rollouts",
    params(("rollout" = u64, Path, description = "The rollout's number")),
    responses((status = 200, body = Rollout), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn abort(
    State(dc): State<App>,
    Extension(caller): Extension<Caller>,
    Segments(rollout): Segments<u64>,
) -> Answer<Rollout> {
    steer(dc, caller, rollout, Wish::Abort).await
}

async fn steer(dc: App, caller: Caller, rollout: u64, wish: Wish) -> Answer<Rollout> {
    let steered = blocking(&dc, move |dc| {
        let allowed = |place: &Place| caller.require(Permission::Operate, place);
        dc.steer_rollout(&caller.who, rollout, wish, &allowed)
    });
    Ok(Json(steered.await?))
}

fn place(branch: &str, pool: &str) -> Place {
    Place {
        branch: Some(branch.to_owned()),
        pool: Some(pool.to_owned()),
    }
}

fn sees(caller: &Caller, pool: &datacenter_api::RolloutPool) -> bool {
    caller.may(Permission::See, &place(&pool.branch, &pool.pool))
}

fn sees_any(caller: &Caller, rollout: &Rollout) -> bool {
    rollout.pools.iter().any(|pool| sees(caller, pool))
}
