//! The management API: HTTPS `/v1`, JSON, bearer tokens; and the web console beside it. The only module that names axum.
//!
//! Handlers translate; what they ask for is decided in [`Datacenter`]. Catalog work may wait for a disk, so it runs on the
//! blocking pool. The OpenAPI document is generated from the handlers; `docs/api/openapi.json` is a copy under test.

mod auth;
mod backup;
mod branches;
mod console;
mod error;
mod extract;
mod images;
mod operations;
mod status;
mod store;
mod versions;
mod volumes;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::{Json, Router, middleware, routing};
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use tokio_util::sync::CancellationToken;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::datacenter::Datacenter;
use crate::problem::ManageError;
pub use auth::{new_api_token, replace_api_tokens};
use error::ApiError;

/// Items on a page unless asked otherwise.
const PAGE: usize = 100;
/// Most items on a page.
const PAGE_MAX: usize = 1000;
/// How long running requests may take once the daemon is asked to stop.
const DRAIN: Duration = Duration::from_secs(5);

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Splice datacenter",
        description = "Management of images, versions and branches. Every call but /healthz and the document itself needs a bearer token. Failures have a body of type Problem.",
        version = "1"
    ),
    modifiers(&BearerToken),
    security(("token" = []))
)]
struct ApiDoc;

struct BearerToken;

impl Modify for BearerToken {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        document
            .components
            .get_or_insert_with(Default::default)
            .add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

type App = Arc<Datacenter>;

fn protected() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(ApiDoc::openapi())
        .routes(routes!(status::status))
        .routes(routes!(images::list, images::create))
        .routes(routes!(images::show))
        .routes(routes!(images::versions, images::publish))
        .routes(routes!(images::version, versions::delete))
        .routes(routes!(images::verify))
        .routes(routes!(versions::undelete))
        .routes(routes!(versions::pin, versions::unpin))
        .routes(routes!(versions::export))
        .routes(routes!(versions::deleted))
        .routes(routes!(versions::retention, versions::set_retention))
        .routes(routes!(store::show))
        .routes(routes!(store::collect))
        .routes(routes!(store::scrub))
        .routes(routes!(images::version_by_id))
        .routes(routes!(images::diff))
        .routes(routes!(images::update))
        .routes(routes!(backup::backup))
        .routes(routes!(operations::list))
        .routes(routes!(operations::show))
        .routes(routes!(operations::cancel))
        .routes(routes!(branches::list))
        .routes(routes!(branches::show))
        .routes(routes!(branches::token))
        .routes(routes!(branches::revoke))
        .routes(routes!(branches::pools))
        .routes(routes!(branches::set_policy))
        .routes(routes!(branches::assign, branches::remove_pool))
        .routes(routes!(volumes::policy, volumes::set_policy))
        .routes(routes!(volumes::list))
        .routes(routes!(volumes::show))
        .routes(routes!(volumes::delete))
        .routes(routes!(volumes::break_lease))
        .routes(routes!(volumes::snapshot))
        .routes(routes!(volumes::drop_snapshot))
        .routes(routes!(volumes::export_snapshot))
        .routes(routes!(volumes::roll_back))
        .routes(routes!(volumes::restore_fork))
        .routes(routes!(volumes::discard_fork))
        .routes(routes!(volumes::settle))
        .routes(routes!(volumes::audit))
}

/// The OpenAPI document, as text.
pub fn openapi() -> String {
    let (_, document) = protected()
        .routes(routes!(status::healthz))
        .split_for_parts();
    let mut text = document
        .to_pretty_json()
        .expect("the document serialises without failing");
    text.push('\n');
    text
}

fn router(datacenter: App) -> Router {
    let (protected, _) = protected().split_for_parts();
    let document = Arc::new(openapi());
    let openapi_json = move || {
        let document = document.to_string();
        async move { ([("content-type", "application/json")], document) }
    };
    protected
        .route_layer(middleware::from_fn_with_state(
            datacenter.clone(),
            auth::require_token,
        ))
        .route("/healthz", routing::get(status::healthz))
        .route("/v1/openapi.json", routing::get(openapi_json))
        .merge(console::routes())
        .fallback(error::no_such_path)
        .method_not_allowed_fallback(error::no_such_method)
        // Bodies are bounded where they are read, in `extract`; no handler reads one otherwise.
        .layer(DefaultBodyLimit::disable())
        .with_state(datacenter)
}

/// Serves the API on `listener` until `cancel`, then lets running requests finish for a moment.
pub async fn serve(
    datacenter: App,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    cancel: CancellationToken,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let handle: Handle<SocketAddr> = Handle::new();
    let server = axum_server::from_tcp_rustls(listener, RustlsConfig::from_config(tls))?
        .handle(handle.clone());
    let stop = tokio::spawn(async move {
        cancel.cancelled().await;
        handle.graceful_shutdown(Some(DRAIN));
    });
    let served = server.serve(router(datacenter).into_make_service()).await;
    stop.abort();
    served
}

/// Runs catalog work on the blocking pool.
async fn blocking<T: Send + 'static, E: Send + 'static>(
    datacenter: &App,
    work: impl FnOnce(&App) -> Result<T, E> + Send + 'static,
) -> Result<T, ApiError>
where
    ApiError: From<E>,
{
    let datacenter = datacenter.clone();
    match tokio::task::spawn_blocking(move || work(&datacenter)).await {
        Ok(result) => result.map_err(ApiError::from),
        Err(error) => Err(ApiError::internal(&error)),
    }
}

/// Splits one item more than the page from the page: its presence says that there is a next one.
fn paged<T>(mut items: Vec<T>, limit: usize) -> (Vec<T>, bool) {
    let more = items.len() > limit;
    items.truncate(limit);
    (items, more)
}

fn page_limit(asked: Option<usize>) -> Result<usize, ManageError> {
    match asked.unwrap_or(PAGE) {
        limit @ 1..=PAGE_MAX => Ok(limit),
        other => Err(ManageError::invalid(format!(
            "a page of {other} items; between 1 and {PAGE_MAX} are possible"
        ))),
    }
}

type Answer<T> = Result<Json<T>, ApiError>;
