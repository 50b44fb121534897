//! The audit log.

use std::fmt::Write;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use datacenter_api::{AuditList, AuditState, Problem};
use serde::Deserialize;
use utoipa::IntoParams;

use super::error::ApiError;
use super::extract::Query;
use super::{Answer, App, blocking, page_limit, paged};
use crate::identity::Caller;
use crate::identity::rights::{Permission, Place};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditPage {
    /// Only entries older than this one.
    before: Option<u64>,
    /// Most items to answer with.
    limit: Option<usize>,
}

/// Who did what, newest first, as far as the caller may see.
#[utoipa::path(get, path = "/v1/audit", tag = "audit", params(AuditPage), responses(
    (status = 200, body = AuditList), (status = 401, body = Problem)))]
pub(super) async fn list(
    State(dc): State<App>,
    Extension(caller): Extension<Caller>,
    Query(page): Query<AuditPage>,
) -> Answer<AuditList> {
    let limit = page_limit(page.limit)?;
    let found = blocking(&dc, move |dc| dc.audit_log(page.before, limit + 1)).await?;
    let (mut entries, more) = paged(found, limit);
    let next = entries.last().filter(|_| more).map(|entry| entry.id);
    entries.retain(|entry| {
        let place = Place {
            branch: entry.facts.branch.clone(),
            pool: entry.facts.pool.clone(),
        };
        caller.may(Permission::Audit, &place)
    });
    Ok(Json(AuditList { entries, next }))
}

/// Verifies the log's chain from its first entry on, and tells how it stands.
#[utoipa::path(get, path = "/v1/audit/state", tag = "audit", responses(
    (status = 200, body = AuditState), (status = 401, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn state(State(dc): State<App>) -> Answer<AuditState> {
    Ok(Json(blocking(&dc, |dc| dc.verify_audit()).await?))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct After {
    /// Only entries newer than this one [default: all].
    #[serde(default)]
    after: u64,
}

/// The next entries as they were written, oldest first, at most some thousands: a line each, of its number, its hash and its text (JSON).
#[utoipa::path(get, path = "/v1/audit/lines", tag = "audit", params(After), responses(
    (status = 200, body = String, content_type = "text/plain"), (status = 401, body = Problem)))]
pub(super) async fn lines(
    State(dc): State<App>,
    Query(page): Query<After>,
) -> Result<Response, ApiError> {
    let lines = blocking(&dc, move |dc| dc.audit_lines(page.after)).await?;
    let mut text = String::new();
    for line in lines {
        writeln!(text, "{line}").expect("writing to a string does not fail");
    }
    let kind = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    Ok((kind, text).into_response())
}
