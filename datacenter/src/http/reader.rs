//! Who may read metrics: bearers of the configured metrics token, which opens nothing else, and callers who may see the realm.
//!
//! Prometheus keeps its token on a machine of its own; whoever takes it from there learns figures and can do nothing.

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;

use super::access::{At, Endpoint};
use super::error::ApiError;
use super::{App, auth};
use crate::catalog::rows::SecretHash;
use crate::identity::rights::{Permission, Place};

/// Where metrics are.
pub(super) const PATH: &str = "/metrics";
/// What whoever has no metrics token needs.
const NEEDS: Permission = Permission::See;

/// The same, for the table of rights.
pub(super) fn endpoint() -> Endpoint {
    Endpoint {
        path: PATH.to_owned(),
        method: "GET",
        permission: NEEDS,
        at: At::Realm,
    }
}

/// Lets them in.
pub(super) async fn require_reader(
    State(datacenter): State<App>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let token = token_of(&request);
    if token.is_some_and(|hash| datacenter.observed().is_metrics_token(&hash)) {
        return Ok(next.run(request).await);
    }
    let brought = auth::brought(&request)?;
    let caller = auth::caller(&datacenter, brought).await?;
    caller.require(NEEDS, &Place::REALM)?;
    Ok(next.run(request).await)
}

/// The hash of the bearer token that a request brings.
fn token_of(request: &Request) -> Option<SecretHash> {
    let value = request.headers().get(header::AUTHORIZATION)?;
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    let is_bearer = scheme.eq_ignore_ascii_case("bearer");
    is_bearer.then(|| SecretHash::of(token.trim().as_bytes()))
}
