//! Request parts, with our own problems where axum would answer with plain text.

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use datacenter_api::ProblemCode;
use serde::de::DeserializeOwned;

use super::error::ApiError;

/// Largest request body, in bytes. Requests are names and numbers; disks do not come this way.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// What is read of a body that is too large, in bytes: were it left unread, the connection would be reset, and the client might never
/// see why.
const BODY_BYTES_READ_MAX: usize = 1024 * 1024;

/// A JSON body.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = axum::body::to_bytes(body, BODY_BYTES_READ_MAX).await;
        let Some(bytes) = bytes.ok().filter(|bytes| bytes.len() <= BODY_BYTES_MAX) else {
            return Err(ApiError::new(
                ProblemCode::TooLarge,
                format!("the request body is longer than {BODY_BYTES_MAX} bytes or was cut off"),
                None,
            ));
        };
        let request = Request::from_parts(parts, bytes.into());
        let axum::Json(value) = axum::Json::from_request(request, state).await?;
        Ok(Self(value))
    }
}

/// Path segments.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(ApiError))]
pub(super) struct Segments<T>(pub(super) T);

/// The query.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(ApiError))]
pub(super) struct Query<T>(pub(super) T);

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        let message = format!("request body: {}", rejection.body_text());
        Self::new(ProblemCode::Invalid, message, None)
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self::new(
            ProblemCode::NotFound,
            format!("request path: {}", rejection.body_text()),
            None,
        )
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(
            ProblemCode::Invalid,
            format!("query: {}", rejection.body_text()),
            None,
        )
    }
}
