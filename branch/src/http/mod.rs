//! The branch-local API over a Unix socket: the only place of this crate that knows HTTP.
//!
//! Who may open the socket (its file mode is 0600) may do everything. Calls that block on machines or the link run on the blocking
//! pool. What a TCP address may give besides is in [`observe`], and what users get over HTTPS in [`portal`], which shares nothing with this but its errors.

mod observe;

mod people;
pub mod portal;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Path as UrlPath, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use branch_api::{
    CacheReport, Desktop, DesktopList, LibvirtDomain, Preflight, Prepare, Prepared, Problem,
    Rebase, SnapshotAsked, StartDesktop, StopDesktop, TemplateList,
};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::desktop::machine::{DiskFront, MachineError};
use crate::desktop::{DesktopError, Desktops, VolumeError, error_line};
use crate::server::Branch;
use crate::volume::OverlayError;
pub use observe::serve_metrics;

/// Largest request body: a start request is under 200 bytes.
const BODY_BYTES_MAX: usize = 64 << 10;

struct ApiError(StatusCode, String);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.0, Json(Problem { error: self.1 })).into_response()
    }
}

impl From<DesktopError> for ApiError {
    fn from(error: DesktopError) -> Self {
        let status = match &error {
            DesktopError::Name(_) => StatusCode::UNPROCESSABLE_ENTITY,
            DesktopError::NotFound(_)
            | DesktopError::NoPool { .. }
            | DesktopError::NoVersion { .. } => StatusCode::NOT_FOUND,
            DesktopError::OtherPool { .. }
            | DesktopError::Busy { .. }
            | DesktopError::NotRebased { .. }
            | DesktopError::NoTrial { .. }
            | DesktopError::NoState { .. }
            | DesktopError::Volume(VolumeError::Key { .. } | VolumeError::UserVolumeGone { .. })
            | DesktopError::Machine(
                MachineError::NoSplice { .. }
                | MachineError::NoUser { .. }
                | MachineError::Network { .. }
                | MachineError::NoProgram { .. }
                | MachineError::NoUefi { .. },
            ) => StatusCode::CONFLICT,
            DesktopError::NoRight { .. }
            | DesktopError::AssignmentEnded { .. }
            | DesktopError::NotHere { .. }
            | DesktopError::Volume(VolumeError::Overlay {
                source: OverlayError::NoSpace { .. },
                ..
            })
            | DesktopError::Volume(VolumeError::NoRight { .. })
            | DesktopError::Boot { .. } => StatusCode::SERVICE_UNAVAILABLE,
            DesktopError::PathTooLong(_)
            | DesktopError::Volume(_)
            | DesktopError::Machine(_)
            | DesktopError::Catalog(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error_line(&error))
    }
}

type Answer<T> = Result<Json<T>, ApiError>;

/// Runs a blocking call against the desktops.
async fn blocking<T: Send + 'static>(
    branch: Arc<Branch>,
    call: impl FnOnce(&Branch) -> Result<T, DesktopError> + Send + 'static,
) -> Answer<T> {
    let worker = Arc::clone(&branch);
    let span = tracing::Span::current();
    let answer = tokio::task::spawn_blocking(move || span.in_scope(|| call(&worker))).await;
    branch.link.report_now.notify_one();
    match answer {
        Ok(answer) => Ok(Json(answer?)),
        Err(error) => Err(ApiError(
            StatusCode::INTERNAL_SERVER_ERROR,
            error.to_string(),
        )),
    }
}

/// Binds the socket at `path`; a stale file that nobody listens on is replaced.
pub fn bind(path: &Path) -> std::io::Result<UnixListener> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            let text = format!(
                "{} is in use: another branch server answers there",
                path.display()
            );
            return Err(std::io::Error::new(std::io::ErrorKind::AddrInUse, text));
        }
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until `cancel`.
pub async fn serve(
    branch: Arc<Branch>,
    listener: UnixListener,
    cancel: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/log-in", post(people::log_in))
        .route("/v1/prepare", post(prepare))
        .route("/v1/cache", get(cache))
        .route("/v1/templates", get(templates))
        .route("/v1/desktops", get(list).post(start))
        .route("/v1/desktops/{name}", get(show).delete(delete))
        .route("/v1/desktops/{name}/stop", post(stop))
        .route("/v1/desktops/{name}/reset", post(reset))
        .route("/v1/desktops/{name}/rebase", post(rebase))
        .route(
            "/v1/desktops/{name}/preflight",
            get(preflight_of).post(preflight).delete(cancel_preflight),
        )
        .route("/v1/desktops/{name}/snapshot", post(snapshot))
        .route("/v1/desktops/{name}/check-in", post(check_in))
        .route("/v1/desktops/{name}/libvirt", get(libvirt))
        .route("/v1/support", get(observe::support))
        .merge(observe::routes())
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX));
    let router = observe::observed(router, &branch).with_state(branch);
    axum::serve(listener, router)
        .with_graceful_shutdown(async move { cancel.cancelled().await })
        .await
}

async fn status(State(branch): State<Arc<Branch>>) -> Answer<datacenter_api::BranchStatus> {
    blocking(branch, Branch::status).await
}

async fn prepare(
    State(branch): State<Arc<Branch>>,
    Json(request): Json<Prepare>,
) -> Answer<Prepared> {
    blocking(branch, move |branch| {
        branch.prepare(request.pool.as_deref())
    })
    .await
}

async fn cache(State(branch): State<Arc<Branch>>) -> Answer<CacheReport> {
    blocking(branch, Branch::cache_report).await
}

async fn templates(State(branch): State<Arc<Branch>>) -> Answer<TemplateList> {
    blocking(branch, |branch| {
        Ok(TemplateList {
            templates: branch.desktops.templates()?,
        })
    })
    .await
}

async fn list(State(branch): State<Arc<Branch>>) -> Answer<DesktopList> {
    blocking(branch, |branch| {
        Ok(DesktopList {
            desktops: branch.desktops.list()?,
        })
    })
    .await
}

async fn show(
    State(branch): State<Arc<Branch>>,
    UrlPath(name): UrlPath<String>,
) -> Answer<Desktop> {
    blocking(branch, move |branch| branch.desktops.show(&name)).await
}

async fn start(
    State(branch): State<Arc<Branch>>,
    Json(request): Json<StartDesktop>,
) -> Answer<Desktop> {
    blocking(branch, move |branch| {
        let start = if request.serve_only {
            Desktops::serve
        } else {
            Desktops::start
        };
        start(&branch.desktops, &request.pool, &request.name)
    })
    .await
}

#[derive(serde::Deserialize)]
struct LibvirtOptions {
    disk: String,
}

async fn libvirt(
    State(branch): State<Arc<Branch>>,
    UrlPath(name): UrlPath<String>,
    Query(options): Query<LibvirtOptions>,
) -> Answer<LibvirtDomain> {
    let disk: DiskFront = options
        .disk
        .parse()
        .map_err(|error| ApiError(StatusCode::UNPROCESSABLE_ENTITY, error))?;
    blocking(branch, move |branch| {
        Ok(LibvirtDomain {
            xml: branch.desktops.libvirt_domain(&name, disk)?,
        })
    })
    .await
}

async fn stop(
    State(branch): State<Arc<Branch>>,
    UrlPath(name): UrlPath<String>,
    Json(request): Json<StopDesktop>,
) -> Answer<Desktop> {
    blocking(branch, move |branch| {
        branch.desktops.stop(&name, request.force)
    })
    .await
}

async fn reset(
    State(branch): State<Arc<Branch>>,
    UrlPath(name): UrlPath<String>,
) -> Answer<Desktop> {
    blocking(branch, move |branch| branch.desktops.reset(&name)).await
}

async fn rebase(
    State(branch): State<Arc<Branch>>,
    UrlPath(name): UrlPath<String>,
    Json(request): Json<Rebase>,
) -> Answer<Desktop> {
    blocking(branch, move |branch| {
        branch.desktops.rebase(&name, request.version.as_deref())
    })
    .await
}

async fn preflight(
    State(branch): State<Arc<Branch>>,
    UrlPath(name): UrlPath<String>,
    Json(request): Json<Rebase>,
) -> Answer<Preflight> {
    blocking(branch, move |branch| {
        branch.desktops.preflight(&name, request.version.as_deref())
    })
    .await
}

async fn preflight_of(
    State(branch): State<Arc<Branch>>,
    UrlPath(name): UrlPath<String>,
) -> Answer<Preflight> {
    blocking(branch, move |branch| branch.desktops.preflight_of(&name)).await
}

async fn cancel_preflight(
    State(branch): State<Arc<Branch>>,
    UrlPath(name): UrlPath<String>,
) -> Answer<Preflight> {
    blocking(branch, move |branch| {
        branch.desktops.cancel_preflight(&name)
    })
    .await
}

async fn snapshot(
    State(branch): State<Arc<Branch>>,
    UrlPath(name): UrlPath<String>,
) -> Answer<SnapshotAsked> {
    blocking(branch, move |branch| branch.desktops.snapshot(&name)).await
}

async fn check_in(
    State(branch): State<Arc<Branch>>,
    UrlPath(name): UrlPath<String>,
) -> Answer<Desktop> {
    blocking(branch, move |branch| branch.desktops.check_in(&name)).await
}

async fn delete(
    State(branch): State<Arc<Branch>>,
    UrlPath(name): UrlPath<String>,
) -> Answer<DesktopList> {
    blocking(branch, move |branch| {
        branch.desktops.delete(&name)?;
        Ok(DesktopList {
            desktops: branch.desktops.list()?,
        })
    })
    .await
}
