//! The management API: HTTPS `/v1`, JSON, for sessions and bearer tokens; and the web console beside it. The only module that names axum.
//!
//! Handlers translate; what they ask for is decided in [`Datacenter`]. Catalog work may wait for a disk, so it runs on the
//! blocking pool. The OpenAPI document is generated from the handlers; `docs/api/openapi.json` is a copy under test, and
//! `docs/api/rights.md` tells what each endpoint needs.

mod access;
mod audit;
mod auth;
mod backup;
mod branches;
mod console;
mod error;
mod extract;
mod images;
mod laptop;
mod moves;
mod operations;
mod people;
mod reader;
mod rights;
mod rollouts;
mod session;
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
use datacenter_observe::http::observe;
use tokio_util::sync::CancellationToken;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::datacenter::Datacenter;
use crate::identity::rights::Permission;
use crate::problem::ManageError;
use access::Endpoints;
pub use access::{At, Endpoint};
use error::ApiError;
pub use rights::rights;

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
        description = "Management of images, versions and branches. Every call but /healthz, /readyz, /v1/log-in, /v1/setup and the document itself needs a session or a bearer token. Failures have a body of type Problem.",
        version = "1"
    ),
    modifiers(&Credentials),
    security(("token" = []), ("session" = []))
)]
struct ApiDoc;

struct Credentials;

impl Modify for Credentials {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let session = ApiKey::Cookie(ApiKeyValue::with_description(
            auth::COOKIE,
            "requests that change something repeat the session's csrf value in the header X-Splice-Csrf",
        ));
        let components = document.components.get_or_insert_with(Default::default);
        components.add_security_scheme("token", SecurityScheme::Http(token));
        components.add_security_scheme("session", SecurityScheme::ApiKey(session));
    }
}

type App = Arc<Datacenter>;

/// Every endpoint that needs a caller, with what it needs of him.
fn protected() -> Endpoints {
    use At::{Branch, Each, Pool, Realm, Volume};
    use Permission::{Administer, Audit, Author, Entitle, Help, Known, Operate, Own, See};
    Endpoints::new(OpenApiRouter::with_openapi(ApiDoc::openapi()))
        .add(Known, Realm, routes!(session::show))
        .add(Known, Realm, routes!(session::log_out))
        .add(Own, Realm, routes!(session::password))
        .add(
            Own,
            Realm,
            routes!(session::make_totp, session::confirm_totp),
        )
        .add(Own, Realm, routes!(session::drop_totp))
        .add(Own, Realm, routes!(people::tokens, people::create_token))
        .add(Own, Realm, routes!(people::delete_token))
        .add(Administer, Realm, routes!(session::setup_code))
        .add(See, Realm, routes!(people::users))
        .add(See, Realm, routes!(people::user))
        .add(
            Administer,
            Realm,
            routes!(
                people::create_user,
                people::change_user,
                people::delete_user
            ),
        )
        .add(Help, Realm, routes!(people::unlock_user))
        .add(Administer, Realm, routes!(people::reset_totp))
        .add(See, Realm, routes!(people::groups))
        .add(
            Administer,
            Realm,
            routes!(people::create_group, people::delete_group),
        )
        .add(
            Administer,
            Realm,
            routes!(people::add_member, people::remove_member),
        )
        .add(See, Each, routes!(people::entitlements))
        .add(Entitle, Pool, routes!(people::entitle, people::withdraw))
        .add(See, Realm, routes!(status::status))
        .add(Administer, Realm, routes!(status::support))
        .add(See, Realm, routes!(images::list))
        .add(Author, Realm, routes!(images::create))
        .add(See, Realm, routes!(images::show))
        .add(See, Realm, routes!(images::versions))
        .add(Author, Realm, routes!(images::publish))
        .add(See, Realm, routes!(images::version))
        .add(Author, Realm, routes!(versions::delete))
        .add(Author, Realm, routes!(images::verify))
        .add(Author, Realm, routes!(versions::undelete))
        .add(Author, Realm, routes!(versions::pin, versions::unpin))
        .add(Author, Realm, routes!(versions::export))
        .add(See, Realm, routes!(versions::deleted))
        .add(See, Realm, routes!(versions::retention))
        .add(Author, Realm, routes!(versions::set_retention))
        .add(See, Realm, routes!(store::show))
        .add(Operate, Realm, routes!(store::collect))
        .add(Operate, Realm, routes!(store::scrub))
        .add(See, Realm, routes!(images::version_by_id))
        .add(See, Realm, routes!(images::diff))
        .add(Author, Realm, routes!(images::update))
        .add(Administer, Realm, routes!(backup::backup))
        .add(See, Realm, routes!(operations::list))
        .add(See, Realm, routes!(operations::show))
        .add(Operate, Realm, routes!(operations::cancel))
        .add(See, Each, routes!(branches::list))
        .add(See, Branch, routes!(branches::show))
        .add(Administer, Branch, routes!(branches::token))
        .add(Administer, Branch, routes!(branches::revoke))
        .add(See, Branch, routes!(branches::pools))
        .add(Operate, Branch, routes!(branches::set_policy))
        .add(
            Operate,
            Pool,
            routes!(branches::assign, branches::remove_pool),
        )
        .add(See, Pool, routes!(volumes::policy))
        .add(Operate, Pool, routes!(volumes::set_policy))
        .add(See, Each, routes!(volumes::list))
        .add(See, Volume, routes!(volumes::show))
        .add(Operate, Volume, routes!(volumes::delete))
        .add(Operate, Volume, routes!(volumes::break_lease))
        .add(Help, Volume, routes!(volumes::snapshot))
        .add(Operate, Volume, routes!(volumes::drop_snapshot))
        .add(Operate, Volume, routes!(volumes::export_snapshot))
        .add(Help, Volume, routes!(volumes::roll_back))
        .add(Help, Volume, routes!(volumes::restore_fork))
        .add(Operate, Volume, routes!(volumes::discard_fork))
        .add(Operate, Volume, routes!(volumes::settle))
        .add(See, Each, routes!(moves::list))
        .add(Operate, Each, routes!(moves::start))
        .add(See, Volume, routes!(moves::show))
        .add(Operate, Volume, routes!(moves::cancel))
        .add(See, Each, routes!(laptop::list))
        .add(Operate, Branch, routes!(laptop::check_out))
        .add(Operate, Volume, routes!(laptop::extend))
        .add(Operate, Volume, routes!(laptop::check_in))
        .add(See, Realm, routes!(rollouts::channels))
        .add(
            Author,
            Realm,
            routes!(rollouts::set_channel, rollouts::delete_channel),
        )
        .add(Operate, Each, routes!(rollouts::price))
        .add(See, Each, routes!(rollouts::list))
        .add(Operate, Each, routes!(rollouts::start))
        .add(See, Each, routes!(rollouts::show))
        .add(Operate, Each, routes!(rollouts::pause))
        .add(Operate, Each, routes!(rollouts::resume))
        .add(Operate, Each, routes!(rollouts::abort))
        .add(See, Branch, routes!(laptop::wipes))
        .add(Administer, Branch, routes!(laptop::wipe))
        .add(Audit, Each, routes!(audit::list))
        .add(Audit, Realm, routes!(audit::state))
        .add(Audit, Realm, routes!(audit::lines))
}

/// Endpoints that let anybody in: whether the daemon answers and can work, and how a session is had.
fn open() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(status::healthz))
        .routes(routes!(status::readyz))
        .routes(routes!(session::log_in))
        .routes(routes!(session::set_up))
}

/// Every endpoint that needs a caller, in the order of paths and methods.
pub fn endpoints() -> Vec<Endpoint> {
    let mut declared = protected().declared;
    declared.push(reader::endpoint());
    declared.sort_by(|a, b| (&a.path, a.method).cmp(&(&b.path, b.method)));
    declared
}

/// The OpenAPI document, as text.
pub fn openapi() -> String {
    let (_, document) = protected()
        .router
        .merge(open())
        .routes(routes!(status::metrics))
        .split_for_parts();
    let mut text = document
        .to_pretty_json()
        .expect("the document serialises without failing");
    text.push('\n');
    text
}

fn router(datacenter: App) -> Router {
    let (protected, _) = protected().router.split_for_parts();
    let (open, _) = open().split_for_parts();
    let document = Arc::new(openapi());
    let openapi_json = move || {
        let document = document.to_string();
        async move { ([("content-type", "application/json")], document) }
    };
    let readers = middleware::from_fn_with_state(datacenter.clone(), reader::require_reader);
    let requests = Arc::clone(datacenter.observed().requests());
    protected
        .route_layer(middleware::from_fn_with_state(
            datacenter.clone(),
            auth::enter,
        ))
        .merge(open)
        .route(
            reader::PATH,
            routing::get(status::metrics).route_layer(readers),
        )
        .route("/v1/openapi.json", routing::get(openapi_json))
        .merge(console::routes())
        .fallback(error::no_such_path)
        .method_not_allowed_fallback(error::no_such_method)
        // Bodies are bounded where they are read, in `extract`; no handler reads one otherwise.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(requests, observe))
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
    let served = server
        .serve(router(datacenter).into_make_service_with_connect_info::<SocketAddr>())
        .await;
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
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(|| work(&datacenter))).await {
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
