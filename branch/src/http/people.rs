//! Log-ins, for the portal. Whoever may open the socket asks for others, so it is the asker who says how often anybody may try; accounts lock themselves.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use branch_api::{LogIn, LoggedIn};

use super::{Answer, ApiError};
use crate::desktop::error_line;
use crate::people::LogInError;
use crate::server::Branch;

impl From<LogInError> for ApiError {
    fn from(error: LogInError) -> Self {
        let status = match &error {
            LogInError::Wrong | LogInError::CodeNeeded | LogInError::WrongCode => {
                StatusCode::UNAUTHORIZED
            }
            LogInError::Alone { .. } | LogInError::NobodyTold => StatusCode::SERVICE_UNAVAILABLE,
            LogInError::Kv(_) | LogInError::Row { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error_line(&error))
    }
}

pub(super) async fn log_in(
    State(branch): State<Arc<Branch>>,
    Json(request): Json<LogIn>,
) -> Answer<LoggedIn> {
    let worker = Arc::clone(&branch);
    let turn = Arc::clone(branch.people.stretching()).acquire_owned().await;
    let turn = turn.expect("the semaphore is never closed");
    let admitted = tokio::task::spawn_blocking(move || {
        // Goes with the work: an asker who goes away does not free it before that has ended.
        let _turn = turn;
        let assignment = worker.versions.assignment();
        worker.people.log_in(
            &request.name,
            request.password.as_bytes(),
            request.code.as_deref(),
            assignment.as_deref(),
            worker.clock.now_unix_s(),
        )
    });
    match admitted.await {
        Ok(admitted) => {
            let admitted = admitted?;
            tracing::info!(user = admitted.name, "let in");
            Ok(Json(LoggedIn {
                name: admitted.name,
                pools: admitted.pools,
            }))
        }
        Err(error) => Err(ApiError(
            StatusCode::INTERNAL_SERVER_ERROR,
            error.to_string(),
        )),
    }
}
