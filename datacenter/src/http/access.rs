//! What each endpoint needs: said once, where it is routed, and enforced there.
//!
//! A protected endpoint can only be routed by [`Endpoints::add`], which takes its permission and its place: one that declares nothing does not compile.
//! Invariant: before a call that changes something is carried out, the audit log says who begins it; behind it, what came of it. A call that is refused
//! changes nothing, and is in the log too.

use axum::extract::{RawPathParams, Request};
use axum::http::Method;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use datacenter_api::AuditFacts;
use tracing::Instrument;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};

use super::error::ApiError;
use super::{App, blocking};
use crate::identity::Caller;
use crate::identity::rights::{Permission, Place};
use crate::problem::ManageError;

/// Most of a call, and of each name in it, that the audit log keeps, in characters: names are short, and nobody fills the log with one line.
const CALL_CHARS_MAX: usize = 512;

/// Where in the realm an endpoint's thing is, by the call's path and query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Nowhere in particular: the realm's own.
    Realm,
    /// At the branch of the path's `branch`.
    Branch,
    /// The pool of the path's `pool`, at the branch of its or the query's `branch`.
    Pool,
    /// Where the path's `volume` is.
    Volume,
    /// In several places: the handler answers with what the caller may see of it.
    Each,
}

impl At {
    /// Its name, in documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Realm => "realm",
            Self::Branch => "branch",
            Self::Pool => "pool",
            Self::Volume => "volume",
            Self::Each => "each",
        }
    }
}

/// A protected endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its path, as in the OpenAPI document.
    pub path: String,
    /// Its method, in capitals.
    pub method: &'static str,
    /// What it needs.
    pub permission: Permission,
    /// Where.
    pub at: At,
}

/// The protected endpoints while they are put together.
pub(super) struct Endpoints {
    pub(super) router: OpenApiRouter<App>,
    pub(super) declared: Vec<Endpoint>,
}

impl Endpoints {
    pub(super) fn new(router: OpenApiRouter<App>) -> Self {
        Self {
            router,
            declared: Vec::new(),
        }
    }

    /// Routes handlers that need `permission` at the place that `at` finds.
    pub(super) fn add(
        mut self,
        permission: Permission,
        at: At,
        (schemas, paths, methods): UtoipaMethodRouter<App>,
    ) -> Self {
        for (path, item) in &paths.paths {
            for (method, operation) in [
                ("GET", &item.get),
                ("PUT", &item.put),
                ("POST", &item.post),
                ("DELETE", &item.delete),
                ("PATCH", &item.patch),
            ] {
                if operation.is_some() {
                    self.declared.push(Endpoint {
                        path: path.clone(),
                        method,
                        permission,
                        at,
                    });
                }
            }
        }
        let guarded = methods.route_layer(middleware::from_fn(
            move |params: RawPathParams, request: Request, next: Next| {
                let named = Named::of(&params, &request);
                authorise(permission, at, named, request, next)
            },
        ));
        self.router = self.router.routes((schemas, paths, guarded));
        self
    }
}

/// What a call names of the realm.
struct Named {
    branch: Option<String>,
    pool: Option<String>,
    volume: Option<String>,
}

impl Named {
    fn of(params: &RawPathParams, request: &Request) -> Self {
        // What is cut off is longer than any name, so it stays nobody's.
        let short = |value: &str| value.chars().take(CALL_CHARS_MAX).collect::<String>();
        let in_path = |key: &str| {
            let found = params.iter().find(|(name, _)| *name == key);
            found.map(|(_, value)| short(value))
        };
        // Names need no escapes, so a value that has some is nobody's name.
        let in_query = |key: &str| {
            let query = request.uri().query().unwrap_or_default();
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            let found = pairs.find(|(name, _)| *name == key);
            found.map(|(_, value)| short(value))
        };
        Self {
            branch: in_path("branch").or_else(|| in_query("branch")),
            pool: in_path("pool"),
            volume: in_path("volume"),
        }
    }
}

/// What [`super::auth`] found out about a call, for what comes behind it.
#[derive(Clone)]
pub(super) struct Entered {
    pub(super) app: App,
    pub(super) caller: Caller,
}

async fn authorise(
    permission: Permission,
    at: At,
    named: Named,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let entered = request.extensions().get::<Entered>().cloned();
    // Routed without the layer in front: our mistake, and nobody is let in by it.
    let Entered { app, caller } = entered.ok_or_else(|| {
        let message = "the endpoint is not guarded";
        ApiError::new(datacenter_api::ProblemCode::Internal, message, None)
    })?;
    let place = place_of(&app, at, named).await?;
    let allowed = match at {
        At::Each if !caller.may_somewhere(permission) => caller.require(permission, &Place::REALM),
        At::Each => Ok(()),
        _ => caller.require(permission, &place),
    };
    if !changes(request.method()) {
        allowed?;
        return Ok(next.run(request).await);
    }
    let path = request.uri().path_and_query();
    let call = format!(
        "{} {}",
        request.method(),
        path.map_or("/", |path| path.as_str())
    );
    let facts = AuditFacts {
        call: call.chars().take(CALL_CHARS_MAX).collect(),
        branch: place.branch,
        pool: place.pool,
        ..caller.facts("call", app.now_unix_s())
    };
    if let Err(refused) = allowed {
        note(&app, facts, format!("refused: {refused}")).await?;
        return Err(refused.into());
    }
    let begun = note(&app, facts.clone(), "begun".into()).await?;
    // A client that goes away drops this future, but not what is carried out for it: its end is told by whoever finishes it.
    let finishing = async move {
        let response = next.run(request).await;
        let status = response.status();
        let result = match status.as_u16() {
            ..400 => "done".to_owned(),
            400..500 => format!("refused: {status}"),
            _ => format!("failed: {status}"),
        };
        let facts = AuditFacts {
            unix_s: app.now_unix_s(),
            ends: Some(begun),
            ..facts
        };
        match note(&app, facts, result).await {
            Ok(_) => response,
            Err(error) => error.into_response(),
        }
    };
    let finishing = tokio::spawn(finishing.in_current_span());
    finishing.await.map_err(|e| ApiError::internal(&e))
}

fn changes(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

async fn note(app: &App, facts: AuditFacts, result: String) -> Result<u64, ApiError> {
    let facts = AuditFacts { result, ..facts };
    blocking(app, move |dc| dc.audit(&facts)).await
}

async fn place_of(app: &App, at: At, named: Named) -> Result<Place, ApiError> {
    let Named {
        branch,
        pool,
        volume,
    } = named;
    Ok(match (at, volume) {
        (At::Realm | At::Each, _) => Place::REALM,
        (At::Branch, _) => Place { branch, pool: None },
        (At::Pool, _) => Place { branch, pool },
        (At::Volume, Some(volume)) => {
            let found = blocking(app, move |dc| match dc.volume_place(&volume) {
                // Whoever may not look everywhere is not told that there is none.
                Err(ManageError::NotFound { .. } | ManageError::Invalid { .. }) => Ok(Place::REALM),
                other => other,
            });
            found.await?
        }
        (At::Volume, None) => Place::REALM,
    })
}
