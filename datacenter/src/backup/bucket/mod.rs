//! A folder in an S3 bucket, as a place for backups: whole objects under names, nothing else.
//!
//! An object appears when all of it is there: a short one by one `PUT`, a long one by an upload in parts that is completed at the end. So what an
//! interrupted backup leaves are objects that are whole, and parts that nobody sees, which the next one gives up. Requests are signed ([`sign`]), bounded
//! in time, and sent again when the other end or the way to it is at fault; asking twice changes nothing. Paths have the bucket in them
//! (`ENDPOINT/BUCKET/…`), which every S3 understands.
//!
//! It owns a small runtime, because who backs up and restores are plain threads. What the names mean is for [`super::manifest`] to say.

pub mod answer;
mod error;
pub mod settings;
mod sign;
mod upload;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Method, StatusCode};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::runtime::Runtime;

pub use error::BucketError;
use settings::{BucketPlace, Settings};
use sign::{Unsigned, headers, query, sha256_hex, stamp};
pub use upload::Upload;

use crate::clock::{Clock, SystemClock};

/// Longest wait for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(20);
/// Longest time for a request: 64 MiB over a line of 2 Mbit/s.
const REQUEST_MAX: Duration = Duration::from_secs(600);
/// How often a request is sent before it is given up: about a minute, over which services come back.
const TRIES: u32 = 6;
/// Largest answer that is text, in bytes: a page of a thousand names is a few hundred thousand.
const TEXT_BYTES_MAX: u64 = 8 << 20;
/// Most names in a folder: packs of 256 TiB. A bucket that tells of more, page after page, is not believed.
const NAMES_MAX: usize = 4 << 20;
/// Bytes that are read at once of an object that is shown piece by piece.
const PIECE: u64 = 8 << 20;

/// A folder in a bucket.
pub struct Bucket {
    place: BucketPlace,
    settings: Settings,
    host: String,
    client: reqwest::Client,
    clock: Arc<dyn Clock>,
    /// Taken when it is dropped.
    runtime: Option<Runtime>,
    /// Between two tries; doubles.
    pause: Duration,
}

/// A request.
struct Request<'a> {
    method: Method,
    /// Name of the object below the folder; none: the bucket's own.
    name: Option<&'a str>,
    query: Vec<(&'a str, &'a str)>,
    range: Option<String>,
    body: Bytes,
    /// Longest answer that is read.
    bytes_max: u64,
}

impl<'a> Request<'a> {
    fn new(method: Method, name: Option<&'a str>) -> Self {
        Self {
            method,
            name,
            query: Vec::new(),
            range: None,
            body: Bytes::new(),
            bytes_max: TEXT_BYTES_MAX,
        }
    }
}

/// What came back.
struct Answer {
    status: StatusCode,
    /// As the other end told it, if it did.
    len: Option<u64>,
    etag: Option<String>,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        // Also where waiting for its threads is not allowed.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn tls(settings: &Settings) -> Result<rustls::ClientConfig, BucketError> {
    let failed = |reason: String| BucketError::Authorities {
        path: settings.ca_file.clone(),
        reason,
    };
    let mut roots = rustls::RootCertStore::empty();
    if settings.endpoint.starts_with("https://") {
        let pem = std::fs::read(&settings.ca_file).map_err(|e| failed(e.to_string()))?;
        let found: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .map_err(|e| failed(e.to_string()))?;
        let (added, _) = roots.add_parsable_certificates(found);
        if added == 0 {
            return Err(failed("it has no certificates".into()));
        }
    }
    let provider = rustls::crypto::ring::default_provider();
    let config = rustls::ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .map_err(|e| failed(e.to_string()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

impl Bucket {
    /// Connects with the first request.
    ///
    /// # Errors
    /// The settings cannot be used.
    pub fn new(place: BucketPlace, settings: Settings) -> Result<Self, BucketError> {
        let client = reqwest::Client::builder()
            .use_preconfigured_tls(tls(&settings)?)
            .connect_timeout(CONNECT_MAX)
            .timeout(REQUEST_MAX)
            // A signature is for one host.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| BucketError::Client(e.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| BucketError::Client(e.to_string()))?;
        let host = settings.endpoint.split_once("://");
        let host = host.map_or_else(String::new, |(scheme, host)| {
            // What the client leaves out of the header is not signed either.
            let usual = if scheme == "https" { ":443" } else { ":80" };
            let host = host.strip_suffix(usual).unwrap_or(host);
            // Nor what it writes otherwise: names of hosts are sent in small letters.
            host.to_ascii_lowercase()
        });
        Ok(Self {
            place,
            settings,
            host,
            client,
            clock: Arc::new(SystemClock),
            runtime: Some(runtime),
            pause: Duration::from_secs(1),
        })
    }

    /// With another first pause between tries, for tests.
    pub fn with_pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("taken by Drop only")
    }

    /// Does a request, again where that may help.
    fn ask(&self, request: &Request<'_>) -> Result<Answer, BucketError> {
        let body_sha256 = sha256_hex(&request.body);
        let mut pause = self.pause;
        for left in (0..TRIES).rev() {
            let tried = self.runtime().block_on(self.once(request, &body_sha256));
            match tried {
                Err(error) if error.is_passing() && left > 0 => {
                    tracing::debug!(%error, "a request to a bucket is sent again");
                }
                other => return other,
            }
            std::thread::sleep(pause);
            pause *= 2;
        }
        unreachable!("the last try returns");
    }

    async fn once(&self, request: &Request<'_>, body_sha256: &str) -> Result<Answer, BucketError> {
        let bucket = &self.place.bucket;
        let path = match request.name {
            Some(name) => format!("/{bucket}/{}{name}", self.place.prefix),
            None => format!("/{bucket}"),
        };
        let query = query(&request.query);
        let signed = headers(
            &Unsigned {
                method: request.method.as_str(),
                path: &path,
                query: &query,
                host: &self.host,
                range: request.range.as_deref(),
                body_sha256,
            },
            &self.settings.credentials,
            &self.settings.region,
            &stamp(self.clock.unix_s()),
        );
        let mut url = format!("{}{path}", self.settings.endpoint);
        if !query.is_empty() {
            url.push('?');
            url.push_str(&query);
        }
        let mut sent = self.client.request(request.method.clone(), url);
        for (name, value) in signed {
            sent = sent.header(name, value);
        }
        if request.method == Method::PUT || request.method == Method::POST {
            sent = sent.body(request.body.clone());
        }
        let unreachable = |error: reqwest::Error| BucketError::unreachable(&self.host, &error);
        let mut response = sent.send().await.map_err(unreachable)?;
        let status = response.status();
        let header = |name: &str| {
            let value = response.headers().get(name)?;
            value.to_str().ok().map(str::to_owned)
        };
        let len = header("content-length").and_then(|len| len.parse().ok());
        let etag = header("etag");
        let bytes_max = match status.is_success() {
            true => request.bytes_max,
            // Why not is longer than a short object.
            false => TEXT_BYTES_MAX,
        };
        let mut body = Vec::new();
        while let Some(part) = response.chunk().await.map_err(unreachable)? {
            if body.len() as u64 + part.len() as u64 > bytes_max {
                return Err(BucketError::TooLong {
                    host: self.host.clone(),
                    bytes_max,
                });
            }
            body.extend_from_slice(&part);
        }
        let answer = Answer {
            status,
            len,
            etag,
            body,
        };
        // Where something is written it is the bucket that is not found.
        let is_written = request.method == Method::PUT || request.method == Method::POST;
        let may_miss = request.name.is_some() && !is_written;
        if status.is_success() || (may_miss && status == StatusCode::NOT_FOUND) {
            return Ok(answer);
        }
        Err(BucketError::refused(
            &self.host,
            bucket,
            status.as_u16(),
            &answer.text(),
        ))
    }

    /// Names directly in `dir`.
    pub fn list(&self, dir: &str) -> Result<Vec<String>, BucketError> {
        let folder = match dir {
            "" => self.place.prefix.clone(),
            dir => format!("{}{dir}/", self.place.prefix),
        };
        let mut names = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let mut request = Request::new(Method::GET, None);
            request.query = vec![
                ("list-type", "2"),
                ("delimiter", "/"),
                ("prefix", folder.as_str()),
            ];
            if let Some(token) = &token {
                request.query.push(("continuation-token", token.as_str()));
            }
            let page = self.ask(&request)?.text();
            let keys = answer::texts(&page, "Key").into_iter();
            names.extend(keys.filter_map(|key| {
                let name = key.strip_prefix(folder.as_str())?;
                (!name.is_empty() && !name.contains('/')).then(|| name.to_owned())
            }));
            if names.len() > NAMES_MAX {
                return Err(BucketError::Endless {
                    host: self.host.clone(),
                    folder,
                });
            }
            let next = answer::text(&page, "NextContinuationToken");
            match next {
                // One that does not go on would be asked for ever.
                Some(next) if token.as_ref() != Some(&next) => token = Some(next),
                _ => return Ok(names),
            }
        }
    }

    /// An object's length, if it is there.
    pub fn len(&self, name: &str) -> Result<Option<u64>, BucketError> {
        let found = self.ask(&Request::new(Method::HEAD, Some(name)))?;
        if found.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        found.len.map(Some).ok_or_else(|| BucketError::NoLength {
            host: self.host.clone(),
            object: name.to_owned(),
        })
    }

    /// Some bytes of an object that is there, from `offset` on.
    pub fn read(&self, name: &str, offset: u64, len: u64) -> Result<Vec<u8>, BucketError> {
        if len == 0 {
            return Ok(Vec::new());
        }
        let mut request = Request::new(Method::GET, Some(name));
        request.range = Some(format!("bytes={offset}-{}", offset + len - 1));
        request.bytes_max = len;
        let found = self.ask(&request)?;
        if found.status == StatusCode::NOT_FOUND || found.body.len() as u64 != len {
            return Err(BucketError::Changed {
                object: name.to_owned(),
            });
        }
        Ok(found.body)
    }

    /// Shows an object's bytes, piece by piece; answers how many there are, or `None` if it is not there.
    pub fn stream(
        &self,
        name: &str,
        piece: &mut dyn FnMut(&[u8]),
    ) -> Result<Option<u64>, BucketError> {
        let Some(len) = self.len(name)? else {
            return Ok(None);
        };
        let mut at = 0;
        while at < len {
            let bytes = self.read(name, at, (len - at).min(PIECE))?;
            piece(&bytes);
            at += bytes.len() as u64;
        }
        Ok(Some(len))
    }

    /// Writes an object at once.
    pub fn put(&self, name: &str, bytes: Bytes) -> Result<(), BucketError> {
        let mut request = Request::new(Method::PUT, Some(name));
        request.body = bytes;
        self.ask(&request)?;
        Ok(())
    }

    /// Removes an object; nothing happens if it is not there.
    pub fn remove(&self, name: &str) -> Result<(), BucketError> {
        self.ask(&Request::new(Method::DELETE, Some(name)))?;
        Ok(())
    }
}
