//! The web console: the files that Vite built, embedded when the daemon was compiled, below `/console/`.
//!
//! Every path that is no file is the one page, whose script knows what it names. Nothing here needs a token, and nothing here is secret: what the
//! console shows it asks the API for. The policy lets the page load from this origin alone and run no script that stands in the page. A daemon
//! that was compiled without a built console serves a page that says how to build it.

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;

use super::App;
use super::error::no_such_path;

/// A file of the built console.
#[allow(
    dead_code,
    reason = "a daemon that is compiled without a built console makes none"
)]
struct File {
    /// From the console's root: `assets/index-….js`.
    path: &'static str,
    /// Its media type.
    kind: &'static str,
    plain: &'static [u8],
    /// The same, gzipped, where that is shorter.
    gzip: Option<&'static [u8]>,
}

// `FILES`, from build.rs.
include!(concat!(env!("OUT_DIR"), "/console.rs"));

/// Where the console is.
const ROOT: &str = "/console/";
/// The page.
const PAGE: &str = "index.html";
/// Files in here have a hash of their bytes in their names: they never change, and one that is not there was another release's.
const HASHED: &str = "assets/";
/// The console's browser tests serve it with the same.
const POLICY: &str = include_str!("../../console/content-security-policy.txt");
const NOT_BUILT: &str = include_str!("console_not_built.html");

/// What every answer says beside its own: nothing is guessed, framed or told to others.
fn common() -> [(HeaderName, HeaderValue); 5] {
    let (opener, resource) = ("cross-origin-opener-policy", "cross-origin-resource-policy");
    [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static(opener), "same-origin"),
        (HeaderName::from_static(resource), "same-origin"),
    ]
    .map(|(name, value)| (name, HeaderValue::from_static(value)))
}

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/", get(to_root))
        .route("/console", get(to_root))
        .route(ROOT, get(console))
        .route("/console/{*path}", get(console))
}

async fn to_root() -> Redirect {
    Redirect::temporary(ROOT)
}

async fn console(uri: Uri, headers: HeaderMap) -> Response {
    match answer(FILES, uri.path(), takes_gzip(&headers)) {
        Some(response) => response,
        None => no_such_path(uri).await.into_response(),
    }
}

/// What is at a path of the console; nothing if it is a file of another release.
fn answer(files: &'static [File], path: &str, gzip: bool) -> Option<Response> {
    let path = path.strip_prefix(ROOT).unwrap_or_default();
    let named = |name: &str| files.iter().find(|file| file.path == name);
    let (status, kind, caching, bytes) = match named(path) {
        Some(file) => (StatusCode::OK, file.kind, caching(path), bytes(file, gzip)),
        None if path.starts_with(HASHED) => return None,
        None => match named(PAGE) {
            Some(page) => (StatusCode::OK, page.kind, caching(PAGE), bytes(page, gzip)),
            None => {
                let plain = (NOT_BUILT.as_bytes(), None);
                let kind = "text/html; charset=utf-8";
                (StatusCode::NOT_IMPLEMENTED, kind, caching(PAGE), plain)
            }
        },
    };
    let (bytes, coding) = bytes;
    let mut response = (status, Body::from(bytes)).into_response();
    let headers = response.headers_mut();
    headers.extend(common());
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(POLICY.trim_ascii()),
    );
    if let Some(coding) = coding {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding));
    }
    Some(response)
}

/// The page names the release's files, so it is asked for each time; they are kept for good.
fn caching(path: &str) -> &'static str {
    match path.starts_with(HASHED) {
        true => "public, max-age=31536000, immutable",
        false => "no-store",
    }
}

/// A file's bytes, and how they are coded.
fn bytes(file: &File, gzip: bool) -> (&'static [u8], Option<&'static str>) {
    match file.gzip {
        Some(packed) if gzip => (packed, Some("gzip")),
        _ => (file.plain, None),
    }
}

/// Whether the client takes gzip (RFC 9110, 12.5.3), said by its name; a weight of 0 refuses it.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let lists = headers.get_all(header::ACCEPT_ENCODING).iter();
    let mut codings = lists
        .filter_map(|list| list.to_str().ok())
        .flat_map(|list| list.split(','));
    codings.any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let named = parts
            .next()
            .is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let refused = parts
            .filter_map(|part| part.strip_prefix("q="))
            .any(|weight| weight.parse::<f32>().is_ok_and(|weight| weight <= 0.0));
        named && !refused
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    const BUILT: &[File] = &[
        File {
            path: "assets/index-1a2b.js",
            kind: "text/javascript",
            plain: b"plain",
            gzip: Some(b"packed"),
        },
        File {
            path: "index.html",
            kind: "text/html; charset=utf-8",
            plain: b"page",
            gzip: None,
        },
    ];

    fn header(response: &Response, name: HeaderName) -> &str {
        response
            .headers()
            .get(name)
            .map_or("", |v| v.to_str().unwrap())
    }

    fn accepting(text: &str) -> HeaderMap {
        let value = HeaderValue::from_str(text).unwrap();
        HeaderMap::from_iter([(header::ACCEPT_ENCODING, value)])
    }

    #[test]
    fn a_file_is_kept_for_good_and_the_page_is_not() {
        let file = answer(BUILT, "/console/assets/index-1a2b.js", false).unwrap();
        assert_eq!(file.status(), StatusCode::OK);
        assert_eq!(header(&file, header::CONTENT_TYPE), "text/javascript");
        assert!(header(&file, header::CACHE_CONTROL).contains("immutable"));
        for path in [
            "/console/",
            "/console/index.html",
            "/console/branches/new-york",
            "/console/x.js",
        ] {
            let page = answer(BUILT, path, true).unwrap();
            assert_eq!(page.status(), StatusCode::OK, "{path}");
            assert_eq!(header(&page, header::CACHE_CONTROL), "no-store", "{path}");
            assert_eq!(
                header(&page, header::CONTENT_TYPE),
                "text/html; charset=utf-8"
            );
        }
    }

    #[test]
    fn a_file_of_another_release_is_not_the_page() {
        assert!(answer(BUILT, "/console/assets/index-0000.js", true).is_none());
        assert!(answer(&[], "/console/assets/index-0000.js", true).is_none());
    }

    #[test]
    fn bytes_are_coded_as_they_are_said_to_be() {
        for (path, gzip, coding) in [
            ("/console/assets/index-1a2b.js", true, "gzip"),
            ("/console/assets/index-1a2b.js", false, ""),
            ("/console/", true, ""),
        ] {
            let response = answer(BUILT, path, gzip).unwrap();
            assert_eq!(
                header(&response, header::CONTENT_ENCODING),
                coding,
                "{path}"
            );
            assert_eq!(header(&response, header::VARY), "accept-encoding");
        }
        assert_eq!(bytes(&BUILT[0], true).0, b"packed");
        assert_eq!(bytes(&BUILT[0], false).0, b"plain");
    }

    #[test]
    fn gzip_is_sent_to_who_takes_it() {
        for text in ["gzip", "br, GZIP;q=0.5", "deflate ,gzip ; q=1"] {
            assert!(takes_gzip(&accepting(text)), "{text}");
        }
        for text in ["", "br", "gzip;q=0", "gzip; q=0.0", "xgzip", "*"] {
            assert!(!takes_gzip(&accepting(text)), "{text}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }

    #[test]
    fn the_policy_is_strict_and_on_every_answer() {
        for files in [BUILT, &[]] {
            let page = answer(files, "/console/", false).unwrap();
            let policy = header(&page, header::CONTENT_SECURITY_POLICY);
            assert!(policy.starts_with("default-src 'none';"), "{policy}");
            assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
            for loose in ["unsafe", "*", "http:", "https:", "\n"] {
                assert!(!policy.contains(loose), "{policy}");
            }
            assert_eq!(header(&page, header::X_CONTENT_TYPE_OPTIONS), "nosniff");
        }
    }

    #[test]
    fn without_a_build_the_page_says_how_to_make_one() {
        let page = answer(&[], "/console/images", true).unwrap();
        assert_eq!(page.status(), StatusCode::NOT_IMPLEMENTED);
        assert_eq!(header(&page, header::CONTENT_ENCODING), "");
        assert!(NOT_BUILT.contains("./x console"));
    }

    /// What was embedded is whole: a page, and each file that it names.
    #[test]
    fn an_embedded_console_has_what_its_page_names() {
        let Some(page) = FILES.iter().find(|file| file.path == PAGE) else {
            assert_eq!(FILES.len(), 0, "files without a page");
            return;
        };
        let text = std::str::from_utf8(page.plain).unwrap();
        let named: Vec<&str> = text
            .split('"')
            .filter_map(|part| part.strip_prefix(ROOT))
            .collect();
        assert!(!named.is_empty(), "{text}");
        for name in named {
            assert!(
                FILES.iter().any(|file| file.path == name),
                "{name} is missing"
            );
        }
        for file in FILES {
            assert_ne!(
                file.kind, "application/octet-stream",
                "{}: build.rs knows no type",
                file.path
            );
        }
    }
}
