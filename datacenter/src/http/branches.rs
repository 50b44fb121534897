//! Branches and their pools.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use datacenter_api::{
    AssignRequest, Branch, BranchList, BranchPolicy, PolicyRequest, Pool, PoolList, Problem,
    TokenRequest, TokenResponse,
};
use serde::Deserialize;
use utoipa::IntoParams;

use super::error::ApiError;
use super::extract::{Body, Query, Segments};
use super::{Answer, App, blocking, page_limit, paged};
use crate::identity::Caller;
use crate::identity::rights::{Permission, Place};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct NamePage {
    /// Only names after this one.
    after: Option<String>,
    /// Most items to answer with.
    limit: Option<usize>,
}

/// Branches that the caller may see, in the order of their names. A page may have fewer than were asked for.
#[utoipa::path(get, path = "/v1/branches", tag = "branches", params(NamePage), responses(
    (status = 200, body = BranchList), (status = 401, body = Problem)))]
pub(super) async fn list(
    State(dc): State<App>,
    Extension(caller): Extension<Caller>,
    Query(page): Query<NamePage>,
) -> Answer<BranchList> {
    let limit = page_limit(page.limit)?;
    let found = blocking(&dc, move |dc| dc.branches(page.after.as_deref(), limit + 1)).await?;
    let (mut branches, more) = paged(found, limit);
    let next = branches.last().filter(|_| more).map(|b| b.name.clone());
    branches.retain(|branch| caller.may(Permission::See, &Place::branch(&branch.name)));
    Ok(Json(BranchList { branches, next }))
}

/// One branch, with its pools and what it last reported.
#[utoipa::path(get, path = "/v1/branches/{branch}", tag = "branches",
    params(("branch" = String, Path, description = "The branch's name")),
    responses((status = 200, body = Branch), (status = 404, body = Problem)))]
pub(super) async fn show(
    State(dc): State<App>,
    Segments(branch): Segments<String>,
) -> Answer<Branch> {
    Ok(Json(blocking(&dc, move |dc| dc.branch(&branch)).await?))
}

/// Makes a join token; the branch need not exist yet. The token is shown once.
#[utoipa::path(post, path = "/v1/branches/{branch}/tokens", tag = "branches",
    params(("branch" = String, Path, description = "The branch's name")),
    request_body = TokenRequest,
    responses((status = 201, body = TokenResponse), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn token(
    State(dc): State<App>,
    Segments(branch): Segments<String>,
    Body(request): Body<TokenRequest>,
) -> Result<Response, ApiError> {
    let made = blocking(&dc, move |dc| dc.create_join_token(&branch, &request));
    Ok((StatusCode::CREATED, Json(made.await?)).into_response())
}

/// Refuses the branch from now on and cuts its link. Its pools are kept for a branch invited under the same name.
#[utoipa::path(post, path = "/v1/branches/{branch}/revoke", tag = "branches",
    params(("branch" = String, Path, description = "The branch's name")),
    responses((status = 200, body = Branch), (status = 404, body = Problem)))]
pub(super) async fn revoke(
    State(dc): State<App>,
    Segments(branch): Segments<String>,
) -> Answer<Branch> {
    Ok(Json(
        blocking(&dc, move |dc| dc.revoke_branch(&branch)).await?,
    ))
}

/// Changes a branch's caps and hours; the branch hears of it at once if its link is up. Fields left out keep what it has.
#[utoipa::path(put, path = "/v1/branches/{branch}/policy", tag = "branches",
    params(("branch" = String, Path, description = "The branch's name")),
    request_body = PolicyRequest,
    responses((status = 200, body = BranchPolicy), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn set_policy(
    State(dc): State<App>,
    Segments(branch): Segments<String>,
    Body(request): Body<PolicyRequest>,
) -> Answer<BranchPolicy> {
    let set = blocking(&dc, move |dc| dc.set_branch_policy(&branch, &request));
    Ok(Json(set.await?))
}

/// The pools of a branch.
#[utoipa::path(get, path = "/v1/branches/{branch}/pools", tag = "branches",
    params(("branch" = String, Path, description = "The branch's name")),
    responses((status = 200, body = PoolList), (status = 404, body = Problem)))]
pub(super) async fn pools(
    State(dc): State<App>,
    Segments(branch): Segments<String>,
) -> Answer<PoolList> {
    let pools = blocking(&dc, move |dc| dc.pools(&branch)).await?;
    Ok(Json(PoolList { pools }))
}

/// Sets what a pool runs; the pool is made if it is not there. Desktops that run go on with what they have.
#[utoipa::path(put, path = "/v1/branches/{branch}/pools/{pool}", tag = "branches",
    params(("branch" = String, Path, description = "The branch's name"),
        ("pool" = String, Path, description = "The pool's name")),
    request_body = AssignRequest,
    responses((status = 200, body = Pool), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 422, body = Problem)))]
pub(super) async fn assign(
    State(dc): State<App>,
    Segments((branch, pool)): Segments<(String, String)>,
    Body(request): Body<AssignRequest>,
) -> Answer<Pool> {
    let set = blocking(&dc, move |dc| dc.assign_pool(&branch, &pool, &request));
    Ok(Json(set.await?))
}

/// Removes a pool. Desktops that run go on.
#[utoipa::path(delete, path = "/v1/branches/{branch}/pools/{pool}", tag = "branches",
    params(("branch" = String, Path, description = "The branch's name"),
        ("pool" = String, Path, description = "The pool's name")),
    responses((status = 204), (status = 404, body = Problem)))]
pub(super) async fn remove_pool(
    State(dc): State<App>,
    Segments((branch, pool)): Segments<(String, String)>,
) -> Result<StatusCode, ApiError> {
    blocking(&dc, move |dc| dc.remove_pool(&branch, &pool)).await?;
    Ok(StatusCode::NO_CONTENT)
}
