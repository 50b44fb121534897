//! Who may call: bearers of a token whose hash is in the catalog.
//!
//! Tokens are 256 random bits, so a plain SHA-256 is enough to keep them, and the catalog is asked for the hash: what an attacker
//! can time depends on the hash, which he cannot choose. The final comparison takes constant time all the same.

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use datacenter_api::ProblemCode;

use super::error::ApiError;
use super::{App, blocking};
use crate::catalog::rows::{ApiTokenRow, SecretHash};
use crate::catalog::{Catalog, CatalogError};
use crate::realm::random;

const PREFIX: &str = "splice-api-1.";

/// Makes a token's text.
pub fn new_api_token() -> String {
    format!("{PREFIX}{}", hex::encode(random::<32>()))
}

/// Lets the bearer of `token` in from now on, and nobody else; only its hash is kept.
pub fn replace_api_tokens(
    catalog: &Catalog,
    name: &str,
    token: &str,
    now_unix_s: u64,
) -> Result<(), CatalogError> {
    let row = ApiTokenRow {
        name: name.to_owned(),
        created_unix_s: now_unix_s,
    };
    catalog.transact(|tx| {
        for (key, _) in tx.list::<ApiTokenRow>(&[], None, usize::MAX / 2)? {
            tx.delete::<ApiTokenRow>(&key);
        }
        tx.put(&SecretHash::of(token.as_bytes()), &row);
        Ok(())
    })
}

pub(super) async fn require_token(
    State(datacenter): State<App>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let refused = |message: &str| {
        ApiError::new(
            ProblemCode::Unauthenticated,
            message,
            Some("pass the token of cli.toml in the data folder: Authorization: Bearer TOKEN"),
        )
    };
    let token = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or_else(|| refused("this needs a bearer token"))?;
    let hash = SecretHash::of(token.as_bytes());
    let found = blocking(&datacenter, move |dc| {
        dc.catalog().read(|tx| {
            let (prefix, limit) = (hash.0, 1);
            let rows = tx.list::<ApiTokenRow>(&prefix, None, limit)?;
            Ok::<_, CatalogError>(rows.into_iter().next().map(|(key, _)| key))
        })
    })
    .await?;
    #[expect(
        deprecated,
        reason = "ring offers no other comparison in constant time"
    )]
    let known = found
        .is_some_and(|key| ring::constant_time::verify_slices_are_equal(&key.0, &hash.0).is_ok());
    if !known {
        return Err(refused("the token is not known here"));
    }
    Ok(next.run(request).await)
}
