//! An S3 for tests: objects in memory, signatures checked by its own reading of the rules, failures on demand.
#![allow(clippy::unwrap_used, missing_docs, dead_code)]

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use ring::{digest, hmac};

pub const BUCKET: &str = "backups";
const ACCESS: &str = "AKTEST";
pub const SECRET: &str = "a/secret+of=tests";
const REGION: &str = "test-1";
/// So few on a page that lists have several.
const PAGE: usize = 2;

#[derive(Default)]
pub struct Content {
    pub objects: BTreeMap<String, Vec<u8>>,
    /// Parts by upload id, with the object's name.
    pub uploads: BTreeMap<String, (String, BTreeMap<u32, Vec<u8>>)>,
    /// Statuses that the next requests are answered with.
    pub failures: VecDeque<u16>,
    /// So many more requests are answered; then the key is refused.
    pub left: Option<u64>,
    pub requests: u64,
    ids: u64,
}

pub struct S3 {
    pub endpoint: String,
    content: Arc<Mutex<Content>>,
    _runtime: tokio::runtime::Runtime,
}

impl S3 {
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let content: Arc<Mutex<Content>> = Arc::default();
        let router = Router::new()
            .fallback(answer)
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&content));
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
        Self {
            endpoint,
            content,
            _runtime: runtime,
        }
    }

    pub fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap()
    }

    /// Writes a settings file for it.
    pub fn settings(&self, dir: &Path, secret: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.join("s3.toml");
        let text = format!(
            "endpoint = {:?}\nregion = {REGION:?}\naccess_key_id = {ACCESS:?}\nsecret_access_key = {secret:?}\n",
            self.endpoint
        );
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        path
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

/// Whether the request is signed with our key, body and all.
fn is_signed(method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> Option<()> {
    let header = |name: &str| headers.get(name)?.to_str().ok();
    let authorization = header("authorization")?.strip_prefix("AWS4-HMAC-SHA256 ")?;
    let mut fields = BTreeMap::new();
    for field in authorization.split(',') {
        let (name, value) = field.trim().split_once('=')?;
        fields.insert(name, value);
    }
    let scope = fields["Credential"].strip_prefix(&format!("{ACCESS}/"))?;
    let moment = header("x-amz-date")?;
    let day = moment.get(..8)?;
    (scope == format!("{day}/{REGION}/s3/aws4_request")).then_some(())?;
    let hash = header("x-amz-content-sha256")?;
    (hash == sha256(body)).then_some(())?;
    let names = fields["SignedHeaders"];
    for needed in ["host", "x-amz-content-sha256", "x-amz-date"] {
        names.split(';').find(|name| *name == needed)?;
    }
    if headers.contains_key("range") {
        names.split(';').find(|name| *name == "range")?;
    }
    let mut query: Vec<&str> = uri.query().unwrap_or_default().split('&').collect();
    query.sort_unstable();
    let mut text = format!("{method}\n{}\n{}\n", uri.path(), query.join("&"));
    for name in names.split(';') {
        writeln!(text, "{name}:{}", header(name)?).unwrap();
    }
    write!(text, "\n{names}\n{hash}").unwrap();
    let text = format!(
        "AWS4-HMAC-SHA256\n{moment}\n{scope}\n{}",
        sha256(text.as_bytes())
    );
    let mut key = format!("AWS4{SECRET}").into_bytes();
    for part in scope.split('/') {
        let with = hmac::Key::new(hmac::HMAC_SHA256, &key);
        key = hmac::sign(&with, part.as_bytes()).as_ref().to_vec();
    }
    let with = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let signature = hex::encode(hmac::sign(&with, text.as_bytes()));
    (signature == fields["Signature"]).then_some(())
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next().unwrap(), rest.next().unwrap()];
            let digits = std::str::from_utf8(&digits).unwrap();
            bytes.push(u8::from_str_radix(digits, 16).unwrap());
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn refusal(status: u16, code: &str) -> Response {
    let status = StatusCode::from_u16(status).unwrap();
    let text = format!("<Error><Code>{code}</Code><Message>no &amp; no</Message></Error>");
    (status, text).into_response()
}

async fn answer(
    State(content): State<Arc<Mutex<Content>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut content = content.lock().unwrap();
    content.requests += 1;
    if let Some(status) = content.failures.pop_front() {
        return refusal(status, "SlowDown");
    }
    if is_signed(&method, &uri, &headers, &body).is_none() {
        return refusal(403, "SignatureDoesNotMatch");
    }
    if let Some(left) = &mut content.left {
        if *left == 0 {
            return refusal(403, "AccessDenied");
        }
        *left -= 1;
    }
    let path = uri.path().trim_start_matches('/');
    let (bucket, name) = path.split_once('/').unwrap_or((path, ""));
    if bucket != BUCKET {
        return refusal(404, "NoSuchBucket");
    }
    let query: BTreeMap<String, String> = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|part| part.split_once('='))
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect();
    let range = headers.get("range").map(|range| range.to_str().unwrap());
    if name.is_empty() {
        return listed(&content, &query);
    }
    object(&mut content, &method, name, &query, range, &body)
}

fn listed(content: &Content, query: &BTreeMap<String, String>) -> Response {
    let prefix = query["prefix"].as_str();
    let mut text = String::from("<Result>");
    if query.contains_key("uploads") {
        for (id, (name, _)) in &content.uploads {
            if name.starts_with(prefix) {
                let upload = format!("<Key>{name}</Key><UploadId>{id}</UploadId>");
                write!(text, "<Upload>{upload}</Upload>").unwrap();
            }
        }
        return format!("{text}</Result>").into_response();
    }
    assert_eq!((&*query["list-type"], &*query["delimiter"]), ("2", "/"));
    let direct = |name: &&String| {
        let rest = name.strip_prefix(prefix);
        rest.is_some_and(|rest| !rest.contains('/'))
    };
    let after = query.get("continuation-token");
    let names = content.objects.keys().filter(direct);
    let names: Vec<&String> = names
        .filter(|name| after.is_none_or(|after| *name > after))
        .collect();
    for name in names.iter().take(PAGE) {
        write!(text, "<Contents><Key>{name}</Key></Contents>").unwrap();
    }
    if names.len() > PAGE {
        let token = names[PAGE - 1];
        write!(
            text,
            "<NextContinuationToken>{token}</NextContinuationToken>"
        )
        .unwrap();
    }
    format!("{text}</Result>").into_response()
}

fn object(
    content: &mut Content,
    method: &Method,
    name: &str,
    query: &BTreeMap<String, String>,
    range: Option<&str>,
    body: &[u8],
) -> Response {
    let id = query.get("uploadId");
    match (method.as_str(), id) {
        ("POST", None) => {
            assert!(query.contains_key("uploads"));
            content.ids += 1;
            let id = format!("u+{}=/", content.ids);
            let parts = (name.to_owned(), BTreeMap::new());
            content.uploads.insert(id.clone(), parts);
            format!("<R><UploadId>{id}</UploadId></R>").into_response()
        }
        ("PUT", Some(id)) => {
            let number: u32 = query["partNumber"].parse().unwrap();
            let (_, parts) = content.uploads.get_mut(id).unwrap();
            parts.insert(number, body.to_vec());
            let tag = format!("\"{}\"", sha256(body));
            ([("etag", tag)], "").into_response()
        }
        ("POST", Some(id)) => {
            let (name, parts) = content.uploads.remove(id).unwrap();
            let named = String::from_utf8_lossy(body);
            let mut whole = Vec::new();
            for (number, part) in parts {
                let tag = format!(
                    "<PartNumber>{number}</PartNumber><ETag>\"{}\"",
                    sha256(&part)
                );
                assert!(named.contains(&tag), "{named}");
                whole.extend(part);
            }
            content.objects.insert(name, whole);
            "<Done></Done>".into_response()
        }
        ("DELETE", Some(id)) => {
            content.uploads.remove(id);
            StatusCode::NO_CONTENT.into_response()
        }
        ("PUT", None) => {
            content.objects.insert(name.to_owned(), body.to_vec());
            ([("etag", "\"e\"")], "").into_response()
        }
        ("DELETE", None) => {
            content.objects.remove(name);
            StatusCode::NO_CONTENT.into_response()
        }
        ("GET" | "HEAD", None) => match (content.objects.get(name), range) {
            (None, _) => refusal(404, "NoSuchKey"),
            (Some(bytes), None) => bytes.clone().into_response(),
            (Some(bytes), Some(range)) => {
                let (from, to) = range
                    .strip_prefix("bytes=")
                    .unwrap()
                    .split_once('-')
                    .unwrap();
                let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
                let part = bytes[from..=to].to_vec();
                (StatusCode::PARTIAL_CONTENT, part).into_response()
            }
        },
        other => panic!("{other:?}"),
    }
}
