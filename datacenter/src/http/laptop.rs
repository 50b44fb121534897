//! Desktops that are checked out to laptops, and orders to wipe.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use datacenter_api::{
    CheckInRequest, CheckOutRequest, Checkout, CheckoutList, ExtendRequest, Problem, WipeOrder,
    WipeOrderList, WipeRequest,
};

use super::error::ApiError;
use super::extract::{Body, Segments};
use super::{Answer, App, blocking};
use crate::identity::Caller;
use crate::identity::rights::{Permission, Place};

/// Desktops that are checked out, or about to be, as far as the caller may see.
#[utoipa::path(get, path = "/v1/checkouts", tag = "laptops", responses(
    (status = 200, body = CheckoutList), (status = 401, body = Problem)))]
pub(super) async fn list(
    State(dc): State<App>,
    Extension(caller): Extension<Caller>,
) -> Answer<CheckoutList> {
    let mut checkouts = blocking(&dc, |dc| dc.checkouts()).await?;
    checkouts.retain(|one| {
        let place = Place {
            branch: Some(one.from.clone()),
            pool: Some(one.pool.clone()),
        };
        caller.may(Permission::See, &place)
    });
    Ok(Json(CheckoutList { checkouts }))
}

/// Checks a desktop out to a laptop, as soon as its branch has given it back.
#[utoipa::path(post, path = "/v1/branches/{branch}/desktops/{desktop}/check-out", tag = "laptops",
    params(("branch" = String, Path, description = "The branch's name"),
        ("desktop" = String, Path, description = "The desktop's name there")),
    request_body = CheckOutRequest,
    responses((status = 201, body = Checkout), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 422, body = Problem)))]
pub(super) async fn check_out(
    State(dc): State<App>,
    Extension(caller): Extension<Caller>,
    Segments((branch, desktop)): Segments<(String, String)>,
    Body(request): Body<CheckOutRequest>,
) -> Result<Response, ApiError> {
    // What somebody wrote is not given to a laptop that the caller has nothing to do with.
    caller.require(Permission::Operate, &Place::branch(&request.to))?;
    let made = blocking(&dc, move |dc| dc.check_out(&branch, &desktop, &request));
    Ok((StatusCode::CREATED, Json(made.await?)).into_response())
}

/// Changes until when a desktop is checked out. The laptop hears of it when it is connected.
#[utoipa::path(post, path = "/v1/checkouts/{volume}/extend", tag = "laptops",
    params(("volume" = String, Path, description = "The id of one of the desktop's volumes, or a beginning of it")),
    request_body = ExtendRequest,
    responses((status = 200, body = Checkout), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn extend(
    State(dc): State<App>,
    Segments(volume): Segments<String>,
    Body(request): Body<ExtendRequest>,
) -> Answer<Checkout> {
    let extended = blocking(&dc, move |dc| dc.extend_checkout(&volume, &request));
    Ok(Json(extended.await?))
}

/// Wants a desktop back from its laptop. Answers with how the checkout stood then.
#[utoipa::path(post, path = "/v1/checkouts/{volume}/check-in", tag = "laptops",
    params(("volume" = String, Path, description = "The id of one of the desktop's volumes, or a beginning of it")),
    request_body = CheckInRequest,
    responses((status = 200, body = Checkout), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 422, body = Problem)))]
pub(super) async fn check_in(
    State(dc): State<App>,
    Segments(volume): Segments<String>,
    Body(request): Body<CheckInRequest>,
) -> Answer<Checkout> {
    let wanted = blocking(&dc, move |dc| dc.check_in(&volume, &request));
    Ok(Json(wanted.await?))
}

/// The orders to wipe that a branch was given, done or not.
#[utoipa::path(get, path = "/v1/branches/{branch}/wipes", tag = "laptops",
    params(("branch" = String, Path, description = "The branch's name")),
    responses((status = 200, body = WipeOrderList), (status = 404, body = Problem)))]
pub(super) async fn wipes(
    State(dc): State<App>,
    Segments(branch): Segments<String>,
) -> Answer<WipeOrderList> {
    let orders = blocking(&dc, move |dc| dc.wipes(&branch)).await?;
    Ok(Json(WipeOrderList { orders }))
}

/// Orders a branch to destroy keys at its next contact: those of a desktop, or all, which also revokes it.
#[utoipa::path(post, path = "/v1/branches/{branch}/wipes", tag = "laptops",
    params(("branch" = String, Path, description = "The branch's name")),
    request_body = WipeRequest,
    responses((status = 201, body = WipeOrder), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 422, body = Problem)))]
pub(super) async fn wipe(
    State(dc): State<App>,
    Segments(branch): Segments<String>,
    Body(request): Body<WipeRequest>,
) -> Result<Response, ApiError> {
    let ordered = blocking(&dc, move |dc| dc.order_wipe(&branch, &request));
    Ok((StatusCode::CREATED, Json(ordered.await?)).into_response())
}
