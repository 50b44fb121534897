//! Volumes of desktops: leases, snapshots, forks; the policies of their pools.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use datacenter_api::{
    BreakLeaseRequest, ExportRequest, Operation, Problem, ReasonRequest, RollBackRequest,
    StatePolicy, StatePolicyRequest, VolumeList, VolumeSnapshot, VolumeState,
};
use serde::Deserialize;
use utoipa::IntoParams;

use super::error::ApiError;
use super::extract::{Body, Query, Segments};
use super::{Answer, App, blocking, page_limit, paged};
use crate::export;
use crate::identity::Caller;
use crate::identity::rights::{Permission, Place};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct VolumePage {
    /// Only volumes whose ids come after this one.
    after: Option<String>,
    /// Only volumes of this branch.
    branch: Option<String>,
    /// Most items to answer with.
    limit: Option<usize>,
}

/// Volumes that the caller may see, in the order of their ids. A page may have fewer than were asked for.
#[utoipa::path(get, path = "/v1/volumes", tag = "volumes", params(VolumePage), responses(
    (status = 200, body = VolumeList), (status = 401, body = Problem), (status = 404, body = Problem),
    (status = 422, body = Problem)))]
pub(super) async fn list(
    State(dc): State<App>,
    Extension(caller): Extension<Caller>,
    Query(page): Query<VolumePage>,
) -> Answer<VolumeList> {
    let limit = page_limit(page.limit)?;
    let found = blocking(&dc, move |dc| {
        dc.volume_list(page.after.as_deref(), page.branch.as_deref(), limit + 1)
    });
    let (mut volumes, more) = paged(found.await?, limit);
    let next = volumes.last().filter(|_| more).map(|v| v.id.clone());
    volumes.retain(|volume| {
        let place = Place {
            branch: Some(volume.home.clone()),
            pool: Some(volume.pool.clone()),
        };
        caller.may(Permission::See, &place)
    });
    Ok(Json(VolumeList { volumes, next }))
}

/// One volume, with its snapshots, forks and ended leases.
#[utoipa::path(get, path = "/v1/volumes/{volume}", tag = "volumes",
    params(("volume" = String, Path, description = "The volume's id, or a beginning of it")),
    responses((status = 200, body = VolumeState), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn show(
    State(dc): State<App>,
    Segments(volume): Segments<String>,
) -> Answer<VolumeState> {
    Ok(Json(
        blocking(&dc, move |dc| dc.volume_state(&volume)).await?,
    ))
}

/// Deletes a volume that nobody holds, with its snapshots.
#[utoipa::path(post, path = "/v1/volumes/{volume}/delete", tag = "volumes",
    params(("volume" = String, Path, description = "The volume's id, or a beginning of it")),
    request_body = ReasonRequest,
    responses((status = 204), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 422, body = Problem)))]
pub(super) async fn delete(
    State(dc): State<App>,
    Segments(volume): Segments<String>,
    Body(request): Body<ReasonRequest>,
) -> Result<StatusCode, ApiError> {
    blocking(&dc, move |dc| dc.delete_volume(&volume, &request.reason)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Breaks a lease: what its branch brings from now on becomes a fork.
#[utoipa::path(post, path = "/v1/volumes/{volume}/break-lease", tag = "volumes",
    params(("volume" = String, Path, description = "The volume's id, or a beginning of it")),
    request_body = BreakLeaseRequest,
    responses((status = 200, body = VolumeState), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 422, body = Problem)))]
pub(super) async fn break_lease(
    State(dc): State<App>,
    Extension(caller): Extension<Caller>,
    Segments(volume): Segments<String>,
    Body(request): Body<BreakLeaseRequest>,
) -> Answer<VolumeState> {
    // What somebody wrote is not given to a branch that the caller has nothing to do with.
    if let Some(home) = &request.home {
        caller.require(Permission::Operate, &Place::branch(home))?;
    }
    let broken = blocking(&dc, move |dc| dc.break_lease(&volume, &request));
    Ok(Json(broken.await?))
}

/// Cuts a snapshot of what the datacenter has of a volume. It stays until somebody deletes it.
#[utoipa::path(post, path = "/v1/volumes/{volume}/snapshots", tag = "volumes",
    params(("volume" = String, Path, description = "The volume's id, or a beginning of it")),
    responses((status = 201, body = VolumeSnapshot), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn snapshot(
    State(dc): State<App>,
    Segments(volume): Segments<String>,
) -> Result<Response, ApiError> {
    let cut = blocking(&dc, move |dc| dc.snapshot_volume(&volume)).await?;
    Ok((StatusCode::CREATED, Json(cut)).into_response())
}

/// Deletes a snapshot.
#[utoipa::path(post, path = "/v1/volumes/{volume}/snapshots/{number}/delete", tag = "volumes",
    params(("volume" = String, Path, description = "The volume's id, or a beginning of it"),
        ("number" = u64, Path, description = "The snapshot's number")),
    request_body = ReasonRequest,
    responses((status = 204), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn drop_snapshot(
    State(dc): State<App>,
    Segments((volume, number)): Segments<(String, u64)>,
    Body(request): Body<ReasonRequest>,
) -> Result<StatusCode, ApiError> {
    let dropped = blocking(&dc, move |dc| {
        dc.drop_snapshot(&volume, number, &request.reason)
    });
    dropped.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Writes a snapshot's disk to a new file of the datacenter's host. Long: answers with an operation.
#[utoipa::path(post, path = "/v1/volumes/{volume}/snapshots/{number}/export", tag = "volumes",
    params(("volume" = String, Path, description = "The volume's id, or a beginning of it"),
        ("number" = u64, Path, description = "The snapshot's number")),
    request_body = ExportRequest,
    responses((status = 202, body = Operation), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 422, body = Problem)))]
pub(super) async fn export_snapshot(
    State(dc): State<App>,
    Extension(caller): Extension<Caller>,
    Segments((volume, number)): Segments<(String, u64)>,
    Body(request): Body<ExportRequest>,
) -> Result<Response, ApiError> {
    // Any folder of the host is no part of the realm that a role is limited to.
    if dc.config().export_dirs.is_empty() {
        caller.require(Permission::Operate, &Place::REALM)?;
    }
    let started = blocking(&dc, move |dc| {
        export::snapshot_operation(dc, &volume, number, &request)
    });
    Ok((StatusCode::ACCEPTED, Json(started.await?)).into_response())
}

/// Makes a snapshot the state that a volume goes on behind. The state before stays as a snapshot.
#[utoipa::path(post, path = "/v1/volumes/{volume}/snapshots/{number}/roll-back", tag = "volumes",
    params(("volume" = String, Path, description = "The volume's id, or a beginning of it"),
        ("number" = u64, Path, description = "The snapshot's number")),
    request_body = RollBackRequest,
    responses((status = 200, body = VolumeState), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 422, body = Problem)))]
pub(super) async fn roll_back(
    State(dc): State<App>,
    Segments((volume, number)): Segments<(String, u64)>,
    Body(request): Body<RollBackRequest>,
) -> Answer<VolumeState> {
    let rolled = blocking(&dc, move |dc| dc.roll_back(&volume, number, &request));
    Ok(Json(rolled.await?))
}

/// Makes a fork that is whole the volume's state. The state before stays as a snapshot.
#[utoipa::path(post, path = "/v1/volumes/{volume}/forks/{fork}/restore", tag = "volumes",
    params(("volume" = String, Path, description = "The volume's id, or a beginning of it"),
        ("fork" = String, Path, description = "The fork's name")),
    request_body = ReasonRequest,
    responses((status = 200, body = VolumeState), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 422, body = Problem)))]
pub(super) async fn restore_fork(
    State(dc): State<App>,
    Segments((volume, fork)): Segments<(String, String)>,
    Body(request): Body<ReasonRequest>,
) -> Answer<VolumeState> {
    let restored = blocking(&dc, move |dc| {
        dc.restore_fork(&volume, &fork, &request.reason)
    });
    Ok(Json(restored.await?))
}

/// Discards a fork.
#[utoipa::path(post, path = "/v1/volumes/{volume}/forks/{fork}/discard", tag = "volumes",
    params(("volume" = String, Path, description = "The volume's id, or a beginning of it"),
        ("fork" = String, Path, description = "The fork's name")),
    request_body = ReasonRequest,
    responses((status = 200, body = VolumeState), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn discard_fork(
    State(dc): State<App>,
    Segments((volume, fork)): Segments<(String, String)>,
    Body(request): Body<ReasonRequest>,
) -> Answer<VolumeState> {
    let discarded = blocking(&dc, move |dc| {
        dc.discard_fork(&volume, &fork, &request.reason)
    });
    Ok(Json(discarded.await?))
}

/// Expects nothing more of a lease that has ended: what its branch still brings is refused.
#[utoipa::path(post, path = "/v1/volumes/{volume}/generations/{generation}/settle", tag = "volumes",
    params(("volume" = String, Path, description = "The volume's id, or a beginning of it"),
        ("generation" = u64, Path, description = "The lease's generation")),
    request_body = ReasonRequest,
    responses((status = 200, body = VolumeState), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 422, body = Problem)))]
pub(super) async fn settle(
    State(dc): State<App>,
    Segments((volume, generation)): Segments<(String, u64)>,
    Body(request): Body<ReasonRequest>,
) -> Answer<VolumeState> {
    let settled = blocking(&dc, move |dc| {
        dc.settle_generation(&volume, generation, &request.reason)
    });
    Ok(Json(settled.await?))
}

/// How a pool's volumes are leased, and which snapshots of them are kept.
#[utoipa::path(get, path = "/v1/branches/{branch}/pools/{pool}/state-policy", tag = "volumes",
    params(("branch" = String, Path, description = "The branch's name"),
        ("pool" = String, Path, description = "The pool's name")),
    responses((status = 200, body = StatePolicy), (status = 404, body = Problem)))]
pub(super) async fn policy(
    State(dc): State<App>,
    Segments((branch, pool)): Segments<(String, String)>,
) -> Answer<StatePolicy> {
    let found = blocking(&dc, move |dc| dc.state_policy(&branch, &pool));
    Ok(Json(found.await?))
}

/// Changes it. Fields left out keep what the pool has. Leases have the new terms from their next renewal on.
#[utoipa::path(put, path = "/v1/branches/{branch}/pools/{pool}/state-policy", tag = "volumes",
    params(("branch" = String, Path, description = "The branch's name"),
        ("pool" = String, Path, description = "The pool's name")),
    request_body = StatePolicyRequest,
    responses((status = 200, body = StatePolicy), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn set_policy(
    State(dc): State<App>,
    Segments((branch, pool)): Segments<(String, String)>,
    Body(request): Body<StatePolicyRequest>,
) -> Answer<StatePolicy> {
    let set = blocking(&dc, move |dc| dc.set_state_policy(&branch, &pool, &request));
    Ok(Json(set.await?))
}
