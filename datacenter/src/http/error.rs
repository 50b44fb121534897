//! The one place where failures become HTTP answers.

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use datacenter_api::{Problem, ProblemCode};

use crate::assign::AssignmentError;
use crate::catalog::CatalogError;
use crate::export::ExportError;
use crate::problem::{ManageError, catalog_problem, describe, problem};
use crate::publish::PublishError;

/// A failure on its way out.
#[derive(Debug)]
pub(super) struct ApiError(pub(super) Problem);

impl ApiError {
    pub(super) fn new(code: ProblemCode, message: impl Into<String>, help: Option<&str>) -> Self {
        Self(problem(code, message, help.map(str::to_owned)))
    }

    pub(super) fn internal(error: &dyn std::error::Error) -> Self {
        Self::new(ProblemCode::Internal, describe(error), None)
    }
}

fn status(code: ProblemCode) -> StatusCode {
    match code {
        ProblemCode::Unauthenticated => StatusCode::UNAUTHORIZED,
        ProblemCode::Forbidden => StatusCode::FORBIDDEN,
        ProblemCode::NotFound => StatusCode::NOT_FOUND,
        ProblemCode::Conflict => StatusCode::CONFLICT,
        ProblemCode::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
        ProblemCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ProblemCode::TooMany => StatusCode::TOO_MANY_REQUESTS,
        ProblemCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ProblemCode::Internal | ProblemCode::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = status(self.0.error);
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(error = %self.0.message, "a management request failed");
        }
        let mut response = (status, Json(self.0)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<ManageError> for ApiError {
    fn from(error: ManageError) -> Self {
        Self((&error).into())
    }
}

impl From<PublishError> for ApiError {
    fn from(error: PublishError) -> Self {
        Self((&error).into())
    }
}

impl From<ExportError> for ApiError {
    fn from(error: ExportError) -> Self {
        Self((&error).into())
    }
}

impl From<CatalogError> for ApiError {
    fn from(error: CatalogError) -> Self {
        let message = describe(&error);
        Self(catalog_problem(&error, message))
    }
}

impl From<AssignmentError> for ApiError {
    fn from(error: AssignmentError) -> Self {
        Self::internal(&error)
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

pub(super) async fn no_such_path(uri: Uri) -> ApiError {
    ApiError::new(
        ProblemCode::NotFound,
        format!("there is nothing at {:?}", uri.path()),
        Some("GET /v1/openapi.json lists what there is"),
    )
}

pub(super) async fn no_such_method(method: Method, uri: Uri) -> Response {
    let error = ApiError::new(
        ProblemCode::Invalid,
        format!("{method} is not possible at {:?}", uri.path()),
        Some("GET /v1/openapi.json lists what there is"),
    );
    let mut response = error.into_response();
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}
