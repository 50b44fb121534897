//! Log-ins and what people do with their own accounts. Two endpoints here need no session: they are how one is had.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use datacenter_api::{
    LogInRequest, PasswordRequest, Problem, ProofRequest, Session, SetupCode, SetupRequest,
    TotpSetup, User,
};
use tokio::sync::OwnedSemaphorePermit;

use super::auth::{cookie, set_cookie};
use super::error::ApiError;
use super::extract::Body;
use super::{App, blocking};
use crate::identity::Caller;
use crate::identity::sessions::csrf_of;
use crate::problem::ManageError;

/// Lets somebody who is not known try, if not too many have; answers where from.
fn pass(app: &App, from: SocketAddr) -> Result<String, ApiError> {
    let passed = app.identity().gate().pass(from.ip(), app.now_unix_s());
    passed.map_err(|wait_s| ManageError::TooMany {
        message: format!("too many attempts; try again in {wait_s} seconds"),
    })?;
    Ok(from.ip().to_canonical().to_string())
}

/// Waits for a turn to stretch a password. It goes with the work: a caller who goes away does not free it before that has ended.
async fn turn_of(app: &App) -> OwnedSemaphorePermit {
    let turn = Arc::clone(app.identity().stretching())
        .acquire_owned()
        .await;
    turn.expect("the semaphore is never closed")
}

/// Begins a session, for a name and a password and, where the account has one, a code of its second factor. A browser gets a cookie.
#[utoipa::path(post, path = "/v1/log-in", tag = "session", security(()), request_body = LogInRequest, responses(
    (status = 200, body = Session), (status = 401, body = Problem), (status = 429, body = Problem)))]
pub(super) async fn log_in(
    State(dc): State<App>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Body(request): Body<LogInRequest>,
) -> Result<Response, ApiError> {
    let from = pass(&dc, from)?;
    let bearer = request.bearer;
    let turn = turn_of(&dc).await;
    let begun = blocking(&dc, move |dc| {
        let _turn = turn;
        dc.log_in(&request, &from)
    })
    .await?;
    let shown = Session {
        user: Some(begun.account.name.clone()),
        who: begun.account.name.clone(),
        roles: begun.roles.clone(),
        expires_unix_s: Some(begun.expires_unix_s),
        csrf: (!bearer).then(|| csrf_of(&begun.secret)),
        token: bearer.then(|| begun.bearer()),
    };
    let mut response = Json(shown).into_response();
    if !bearer {
        let cookie = set_cookie(Some(&begun.secret));
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

/// Makes an administrator's account with a one-time code of the datacenter's machine.
#[utoipa::path(post, path = "/v1/setup", tag = "session", security(()), request_body = SetupRequest, responses(
    (status = 201, body = User), (status = 401, body = Problem), (status = 409, body = Problem),
    (status = 422, body = Problem), (status = 429, body = Problem)))]
pub(super) async fn set_up(
    State(dc): State<App>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Body(request): Body<SetupRequest>,
) -> Result<Response, ApiError> {
    let from = pass(&dc, from)?;
    let turn = turn_of(&dc).await;
    let made = blocking(&dc, move |dc| {
        let _turn = turn;
        dc.set_up(&request, &from)
    })
    .await?;
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

/// Makes a one-time code for an administrator's account; those before it are void. It is shown once.
#[utoipa::path(post, path = "/v1/setup-codes", tag = "session", responses(
    (status = 201, body = SetupCode), (status = 403, body = Problem)))]
pub(super) async fn setup_code(State(dc): State<App>) -> Result<Response, ApiError> {
    let made = blocking(&dc, |dc| dc.make_setup_code()).await?;
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

/// Ends the session.
#[utoipa::path(post, path = "/v1/log-out", tag = "session", responses(
    (status = 204), (status = 401, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn log_out(
    State(dc): State<App>,
    Extension(caller): Extension<Caller>,
) -> Result<Response, ApiError> {
    blocking(&dc, move |dc| dc.log_out(&caller)).await?;
    let cookie = [(header::SET_COOKIE, set_cookie(None))];
    Ok((StatusCode::NO_CONTENT, cookie).into_response())
}

/// Who calls, and what he may do.
#[utoipa::path(get, path = "/v1/session", tag = "session", responses(
    (status = 200, body = Session), (status = 401, body = Problem)))]
pub(super) async fn show(
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
) -> Json<Session> {
    let by_cookie = !headers.contains_key(header::AUTHORIZATION);
    let secret = cookie(&headers).filter(|_| by_cookie);
    Json(Session {
        csrf: secret.map(|secret| csrf_of(&secret)),
        ..caller.show()
    })
}

/// Changes one's own password. All sessions of the account end, this one too.
#[utoipa::path(put, path = "/v1/session/password", tag = "session", request_body = PasswordRequest, responses(
    (status = 204), (status = 403, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem),
    (status = 429, body = Problem)))]
pub(super) async fn password(
    State(dc): State<App>,
    Extension(caller): Extension<Caller>,
    Body(request): Body<PasswordRequest>,
) -> Result<StatusCode, ApiError> {
    let changed = blocking(&dc, move |dc| dc.change_own_password(&caller, &request));
    changed.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a second factor for one's own account, for the password. It is asked for once a code of it was shown.
#[utoipa::path(post, path = "/v1/session/totp", tag = "session", request_body = ProofRequest, responses(
    (status = 201, body = TotpSetup), (status = 403, body = Problem), (status = 409, body = Problem),
    (status = 429, body = Problem)))]
pub(super) async fn make_totp(
    State(dc): State<App>,
    Extension(caller): Extension<Caller>,
    Body(request): Body<ProofRequest>,
) -> Result<Response, ApiError> {
    let made = blocking(&dc, move |dc| dc.make_own_totp(&caller, &request.proof)).await?;
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

/// Shows a code of the second factor that was just made: it is asked for from now on.
#[utoipa::path(put, path = "/v1/session/totp", tag = "session", request_body = ProofRequest, responses(
    (status = 204), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn confirm_totp(
    State(dc): State<App>,
    Extension(caller): Extension<Caller>,
    Body(request): Body<ProofRequest>,
) -> Result<StatusCode, ApiError> {
    let done = blocking(&dc, move |dc| dc.confirm_own_totp(&caller, &request.proof));
    done.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Gives up one's own second factor, for the password.
#[utoipa::path(post, path = "/v1/session/totp/drop", tag = "session", request_body = ProofRequest, responses(
    (status = 204), (status = 403, body = Problem), (status = 409, body = Problem), (status = 429, body = Problem)))]
pub(super) async fn drop_totp(
    State(dc): State<App>,
    Extension(caller): Extension<Caller>,
    Body(request): Body<ProofRequest>,
) -> Result<StatusCode, ApiError> {
    let done = blocking(&dc, move |dc| dc.drop_own_totp(&caller, &request.proof));
    done.await?;
    Ok(StatusCode::NO_CONTENT)
}
