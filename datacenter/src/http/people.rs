//! Users, groups, entitlements and tokens.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use datacenter_api::{
    ApiTokenList, ApiTokenRequest, EntitlementList, Group, GroupList, NewApiToken, Problem,
    SubjectKind, User, UserList, UserRequest,
};
use serde::Deserialize;
use utoipa::IntoParams;

use super::error::ApiError;
use super::extract::{Body, Query, Segments};
use super::{Answer, App, blocking, page_limit, paged};
use crate::catalog::people::EntitlementKey;
use crate::identity::Caller;
use crate::identity::rights::{Permission, Place};
use crate::problem::ManageError;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct UserPage {
    /// Only names after this one.
    after: Option<String>,
    /// Most items to answer with.
    limit: Option<usize>,
}

/// Accounts, in the order of their names.
#[utoipa::path(get, path = "/v1/users", tag = "people", params(UserPage), responses(
    (status = 200, body = UserList), (status = 401, body = Problem)))]
pub(super) async fn users(State(dc): State<App>, Query(page): Query<UserPage>) -> Answer<UserList> {
    let limit = page_limit(page.limit)?;
    let found = blocking(&dc, move |dc| dc.users(page.after.as_deref(), limit + 1)).await?;
    let (users, more) = paged(found, limit);
    let next = users.last().filter(|_| more).map(|user| user.name.clone());
    Ok(Json(UserList { users, next }))
}

/// One account.
#[utoipa::path(get, path = "/v1/users/{user}", tag = "people",
    params(("user" = String, Path, description = "The user's name")),
    responses((status = 200, body = User), (status = 404, body = Problem)))]
pub(super) async fn user(State(dc): State<App>, Segments(user): Segments<String>) -> Answer<User> {
    Ok(Json(blocking(&dc, move |dc| dc.user(&user)).await?))
}

/// Makes an account.
#[utoipa::path(post, path = "/v1/users/{user}", tag = "people",
    params(("user" = String, Path, description = "The user's name")),
    request_body = UserRequest,
    responses((status = 201, body = User), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn create_user(
    State(dc): State<App>,
    Segments(user): Segments<String>,
    Body(request): Body<UserRequest>,
) -> Result<Response, ApiError> {
    let made = blocking(&dc, move |dc| dc.create_user(&user, &request)).await?;
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

/// Changes an account. Fields left out keep what it has; a new password ends its sessions.
#[utoipa::path(put, path = "/v1/users/{user}", tag = "people",
    params(("user" = String, Path, description = "The user's name")),
    request_body = UserRequest,
    responses((status = 200, body = User), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn change_user(
    State(dc): State<App>,
    Segments(user): Segments<String>,
    Body(request): Body<UserRequest>,
) -> Answer<User> {
    let changed = blocking(&dc, move |dc| dc.change_user(&user, &request));
    Ok(Json(changed.await?))
}

/// Deletes an account, with its sessions, tokens, memberships and entitlements.
#[utoipa::path(delete, path = "/v1/users/{user}", tag = "people",
    params(("user" = String, Path, description = "The user's name")),
    responses((status = 204), (status = 404, body = Problem)))]
pub(super) async fn delete_user(
    State(dc): State<App>,
    Segments(user): Segments<String>,
) -> Result<StatusCode, ApiError> {
    blocking(&dc, move |dc| dc.delete_user(&user)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Unlocks an account that wrong passwords have locked.
#[utoipa::path(post, path = "/v1/users/{user}/unlock", tag = "people",
    params(("user" = String, Path, description = "The user's name")),
    responses((status = 200, body = User), (status = 404, body = Problem)))]
pub(super) async fn unlock_user(
    State(dc): State<App>,
    Segments(user): Segments<String>,
) -> Answer<User> {
    Ok(Json(blocking(&dc, move |dc| dc.unlock_user(&user)).await?))
}

/// Asks an account for no second factor any more; its sessions end.
#[utoipa::path(delete, path = "/v1/users/{user}/totp", tag = "people",
    params(("user" = String, Path, description = "The user's name")),
    responses((status = 200, body = User), (status = 404, body = Problem)))]
pub(super) async fn reset_totp(
    State(dc): State<App>,
    Segments(user): Segments<String>,
) -> Answer<User> {
    Ok(Json(blocking(&dc, move |dc| dc.reset_totp(&user)).await?))
}

/// Groups of people, with their members.
#[utoipa::path(get, path = "/v1/groups", tag = "people", responses(
    (status = 200, body = GroupList), (status = 401, body = Problem)))]
pub(super) async fn groups(State(dc): State<App>) -> Answer<GroupList> {
    let groups = blocking(&dc, |dc| dc.groups()).await?;
    Ok(Json(GroupList { groups }))
}

/// Makes a group.
#[utoipa::path(post, path = "/v1/groups/{group}", tag = "people",
    params(("group" = String, Path, description = "The group's name")),
    responses((status = 201, body = Group), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn create_group(
    State(dc): State<App>,
    Segments(group): Segments<String>,
) -> Result<Response, ApiError> {
    let made = blocking(&dc, move |dc| dc.create_group(&group)).await?;
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

/// Deletes a group with its entitlements; its members stay.
#[utoipa::path(delete, path = "/v1/groups/{group}", tag = "people",
    params(("group" = String, Path, description = "The group's name")),
    responses((status = 204), (status = 404, body = Problem)))]
pub(super) async fn delete_group(
    State(dc): State<App>,
    Segments(group): Segments<String>,
) -> Result<StatusCode, ApiError> {
    blocking(&dc, move |dc| dc.delete_group(&group)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Adds a person to a group.
#[utoipa::path(put, path = "/v1/groups/{group}/members/{user}", tag = "people",
    params(("group" = String, Path, description = "The group's name"),
        ("user" = String, Path, description = "The user's name")),
    responses((status = 204), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn add_member(
    State(dc): State<App>,
    Segments((group, user)): Segments<(String, String)>,
) -> Result<StatusCode, ApiError> {
    blocking(&dc, move |dc| dc.set_member(&group, &user, true)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes a person out of a group.
#[utoipa::path(delete, path = "/v1/groups/{group}/members/{user}", tag = "people",
    params(("group" = String, Path, description = "The group's name"),
        ("user" = String, Path, description = "The user's name")),
    responses((status = 204), (status = 404, body = Problem)))]
pub(super) async fn remove_member(
    State(dc): State<App>,
    Segments((group, user)): Segments<(String, String)>,
) -> Result<StatusCode, ApiError> {
    blocking(&dc, move |dc| dc.set_member(&group, &user, false)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Who may use which pool, as far as the caller may see.
#[utoipa::path(get, path = "/v1/entitlements", tag = "people", responses(
    (status = 200, body = EntitlementList), (status = 401, body = Problem)))]
pub(super) async fn entitlements(
    State(dc): State<App>,
    Extension(caller): Extension<Caller>,
) -> Answer<EntitlementList> {
    let mut entitlements = blocking(&dc, |dc| dc.entitlements()).await?;
    entitlements.retain(|one| {
        let place = Place {
            branch: one.branch.clone(),
            pool: Some(one.pool.clone()),
        };
        caller.may(Permission::See, &place)
    });
    Ok(Json(EntitlementList { entitlements }))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct AtBranch {
    /// Only at this branch; otherwise wherever a pool has that name.
    branch: Option<String>,
}

fn entitlement(
    (pool, kind, subject): (String, String, String),
    branch: Option<String>,
) -> Result<EntitlementKey, ManageError> {
    let kind = match kind.as_str() {
        "users" => SubjectKind::User,
        "groups" => SubjectKind::Group,
        _ => {
            return Err(ManageError::invalid(format!(
                "{kind:?} are not entitled to pools; users and groups are"
            )));
        }
    };
    for (what, name) in [("a pool", Some(&pool)), ("a branch", branch.as_ref())] {
        if let Some(name) = name {
            datacenter_api::check_name(what, name)?;
        }
    }
    Ok(EntitlementKey {
        pool,
        branch,
        kind,
        subject,
    })
}

/// Entitles a user or a group to a pool.
#[utoipa::path(put, path = "/v1/entitlements/{pool}/{kind}/{subject}", tag = "people",
    params(("pool" = String, Path, description = "The pool's name"),
        ("kind" = String, Path, description = "`users` or `groups`"),
        ("subject" = String, Path, description = "The user's or group's name"), AtBranch),
    responses((status = 204), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn entitle(
    State(dc): State<App>,
    Segments(path): Segments<(String, String, String)>,
    Query(at): Query<AtBranch>,
) -> Result<StatusCode, ApiError> {
    let key = entitlement(path, at.branch)?;
    blocking(&dc, move |dc| dc.set_entitled(&key, true)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Entitles a user or a group to a pool no more. Desktops that run go on.
#[utoipa::path(delete, path = "/v1/entitlements/{pool}/{kind}/{subject}", tag = "people",
    params(("pool" = String, Path, description = "The pool's name"),
        ("kind" = String, Path, description = "`users` or `groups`"),
        ("subject" = String, Path, description = "The user's or group's name"), AtBranch),
    responses((status = 204), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn withdraw(
    State(dc): State<App>,
    Segments(path): Segments<(String, String, String)>,
    Query(at): Query<AtBranch>,
) -> Result<StatusCode, ApiError> {
    let key = entitlement(path, at.branch)?;
    blocking(&dc, move |dc| dc.set_entitled(&key, false)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// One's own tokens; all of them, for who administers the realm.
#[utoipa::path(get, path = "/v1/tokens", tag = "people", responses(
    (status = 200, body = ApiTokenList), (status = 401, body = Problem)))]
pub(super) async fn tokens(
    State(dc): State<App>,
    Extension(caller): Extension<Caller>,
) -> Answer<ApiTokenList> {
    let tokens = blocking(&dc, move |dc| dc.tokens(&caller)).await?;
    Ok(Json(ApiTokenList { tokens }))
}

/// Makes a token, with no more than the caller has. Its secret is shown once.
#[utoipa::path(post, path = "/v1/tokens", tag = "people", request_body = ApiTokenRequest, responses(
    (status = 201, body = NewApiToken), (status = 403, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn create_token(
    State(dc): State<App>,
    Extension(caller): Extension<Caller>,
    Body(request): Body<ApiTokenRequest>,
) -> Result<Response, ApiError> {
    let made = blocking(&dc, move |dc| dc.create_token(&caller, &request)).await?;
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

/// Ends a token.
#[utoipa::path(delete, path = "/v1/tokens/{token}", tag = "people",
    params(("token" = String, Path, description = "The token's id")),
    responses((status = 204), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn delete_token(
    State(dc): State<App>,
    Extension(caller): Extension<Caller>,
    Segments(token): Segments<String>,
) -> Result<StatusCode, ApiError> {
    blocking(&dc, move |dc| dc.delete_token(&caller, &token)).await?;
    Ok(StatusCode::NO_CONTENT)
}
