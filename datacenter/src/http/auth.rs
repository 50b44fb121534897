//! Who calls: the bearer of a token or of a session, or a browser with a session's cookie.
//!
//! Invariant: no handler of a protected endpoint runs without a [`Caller`]. A cookie comes along whoever made the browser send the
//! request; so a request that changes something must repeat what only our own pages know (`X-Splice-Csrf`). A bearer token comes along by intent only.

use std::net::SocketAddr;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use datacenter_api::ProblemCode;

use super::access::Entered;
use super::error::ApiError;
use super::{App, blocking};
use crate::identity::Caller;
use crate::identity::sessions::{SESSION_S, csrf_of};

/// The cookie's name. Browsers take one with this beginning only over HTTPS, from the host itself, for all of its paths.
pub(super) const COOKIE: &str = "__Host-splice-session";
/// The header that repeats what is derived from the cookie.
const CSRF: &str = "x-splice-csrf";

pub(super) async fn enter(
    State(app): State<App>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let brought = brought(&request)?;
    let caller = caller(&app, brought).await?;
    request.extensions_mut().insert(caller.clone());
    request.extensions_mut().insert(Entered { app, caller });
    Ok(next.run(request).await)
}

/// What a request brings along, and from where.
pub(super) fn brought(request: &Request) -> Result<(Credential, String), ApiError> {
    let credential = credential(request.method(), request.headers())?;
    Ok((credential, address_of(request)))
}

/// Who that is.
pub(super) async fn caller(
    app: &App,
    (credential, from): (Credential, String),
) -> Result<Caller, ApiError> {
    let found = blocking(app, move |dc| match credential {
        Credential::Bearer(token) => dc.caller_of_bearer(&token, &from),
        Credential::Cookie(secret) => dc.caller_of_session(&secret, &from),
    });
    found.await
}

pub(super) enum Credential {
    Bearer(String),
    Cookie(String),
}

fn credential(method: &Method, headers: &HeaderMap) -> Result<Credential, ApiError> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let token = value
            .to_str()
            .ok()
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim().to_owned());
        return token.map(Credential::Bearer).ok_or_else(nobody);
    }
    let secret = cookie(headers).ok_or_else(nobody)?;
    let repeated = headers.get(CSRF).map(HeaderValue::as_bytes);
    // Whoever guesses at it has no cookie to guess with; its comparison's time tells nothing worth having.
    if *method != Method::GET && repeated != Some(csrf_of(&secret).as_bytes()) {
        return Err(ApiError::new(
            ProblemCode::Forbidden,
            "a request with a cookie that changes something must have the header X-Splice-Csrf",
            Some("GET /v1/session tells its value"),
        ));
    }
    Ok(Credential::Cookie(secret))
}

fn nobody() -> ApiError {
    ApiError::new(
        ProblemCode::Unauthenticated,
        "this needs a session or a bearer token",
        Some(
            "log in with `splice login`, or pass a token: Authorization: Bearer TOKEN; on the datacenter's machine, cli.toml in the data folder has one",
        ),
    )
}

/// The secret of a session's cookie.
pub(super) fn cookie(headers: &HeaderMap) -> Option<String> {
    let values = headers.get_all(header::COOKIE).iter();
    let pairs = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    pairs
        .into_iter()
        .find(|(name, _)| *name == COOKIE)
        .map(|(_, secret)| secret.to_owned())
}

/// The cookie of a session, or one that ends it.
pub(super) fn set_cookie(secret: Option<&str>) -> HeaderValue {
    let (secret, age_s) = match secret {
        Some(secret) => (secret, SESSION_S),
        None => ("", 0),
    };
    let text =
        format!("{COOKIE}={secret}; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age={age_s}");
    HeaderValue::from_str(&text).expect("hexadecimal digits and our own words")
}

/// Where a request came from, without the port, which says nothing.
fn address_of(request: &Request) -> String {
    let from = request.extensions().get::<ConnectInfo<SocketAddr>>();
    from.map_or_else(String::new, |ConnectInfo(from)| {
        from.ip().to_canonical().to_string()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let one = headers(&[("cookie", "a=b; __Host-splice-session=12ab; c=d")]);
        assert_eq!(cookie(&one).unwrap(), "12ab");
        let two = headers(&[("cookie", "a=b"), ("cookie", "__Host-splice-session=3")]);
        assert_eq!(cookie(&two).unwrap(), "3");
        let none = headers(&[("cookie", "splice-session=3; x__Host-splice-session=4")]);
        assert_eq!(cookie(&none), None);
        let made = set_cookie(Some("12ab"));
        let made = made.to_str().unwrap();
        for word in ["Secure", "HttpOnly", "SameSite=Strict", "Path=/"] {
            assert!(made.contains(word), "{made}");
        }
    }

    #[test]
    fn a_cookie_alone_changes_nothing() {
        let session = ("cookie", "__Host-splice-session=12ab");
        let csrf = csrf_of("12ab");
        let alone = headers(&[session]);
        let good = headers(&[session, (CSRF, csrf.as_str())]);
        let wrong = headers(&[session, (CSRF, &csrf[1..])]);
        assert!(credential(&Method::GET, &alone).is_ok());
        assert!(credential(&Method::POST, &good).is_ok());
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
            assert!(credential(&method, &alone).is_err(), "{method}");
            assert!(credential(&method, &wrong).is_err(), "{method}");
        }
    }

    #[test]
    fn a_header_that_is_no_bearers_is_not_passed_over_for_the_cookie() {
        let session = ("cookie", "__Host-splice-session=12ab");
        let basic = headers(&[("authorization", "Basic YTpi"), session]);
        assert!(credential(&Method::GET, &basic).is_err());
        let bearer = headers(&[("authorization", "bearer  t "), session]);
        let found = credential(&Method::POST, &bearer).unwrap();
        assert!(matches!(found, Credential::Bearer(token) if token == "t"));
    }
}
