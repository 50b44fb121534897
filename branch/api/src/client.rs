//! A client of the branch-local API over its Unix socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use datacenter_api::{BranchStatus, SupportReport};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{
    CacheReport, Desktop, DesktopList, LibvirtDomain, LogIn, LoggedIn, Preflight, Prepare,
    Prepared, Problem, Rebase, SnapshotAsked, StartDesktop, StopDesktop, TemplateList,
};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The branch server does not answer.
    #[error("no branch server answers at {}; is splice-branch running, and is that its socket (--branch-socket)?", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: reqwest::Error,
    },
    /// It said no.
    #[error("{error}")]
    Problem {
        /// HTTP status.
        status: u16,
        /// Its words.
        error: String,
    },
    /// It said something else.
    #[error("the branch server's answer is malformed")]
    Malformed(#[source] reqwest::Error),
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
    http: reqwest::Client,
}

impl Client {
    /// Talks to the branch server at the Unix socket `path`.
    pub fn new(path: &Path) -> Result<Self, ClientError> {
        // The HTTP library was built without a provider of its own (one for the whole program: ring) and wants one even for a socket
        // without TLS. That it is set already is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .unix_socket(path)
            // A start waits for kernel and initrd, which may cross a slow link.
            .timeout(Duration::from_secs(3600))
            .build();
        let http = http.map_err(|source| ClientError::Unreachable {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            http,
        })
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let mut request = self.http.request(method, format!("http://branch{path}"));
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request
            .send()
            .await
            .map_err(|source| ClientError::Unreachable {
                path: self.path.clone(),
                source,
            })?;
        let status = answer.status();
        if !status.is_success() {
            let problem: Problem = answer.json().await.map_err(ClientError::Malformed)?;
            return Err(ClientError::Problem {
                status: status.as_u16(),
                error: problem.error,
            });
        }
        answer.json().await.map_err(ClientError::Malformed)
    }

    /// What the branch reports about itself.
    pub async fn status(&self) -> Result<BranchStatus, ClientError> {
        self.call(reqwest::Method::GET, "/v1/status", None::<&()>)
            .await
    }

    /// Proves who somebody is.
    pub async fn log_in(&self, request: &LogIn) -> Result<LoggedIn, ClientError> {
        self.call(reqwest::Method::POST, "/v1/log-in", Some(request))
            .await
    }

    /// Its part of a support bundle.
    pub async fn support(&self) -> Result<SupportReport, ClientError> {
        self.call(reqwest::Method::GET, "/v1/support", None::<&()>)
            .await
    }

    /// Asks for what pools need to boot with the WAN cut.
    pub async fn prepare(&self, request: &Prepare) -> Result<Prepared, ClientError> {
        self.call(reqwest::Method::POST, "/v1/prepare", Some(request))
            .await
    }

    /// What the cache holds, by pool and by rank.
    pub async fn cache(&self) -> Result<CacheReport, ClientError> {
        self.call(reqwest::Method::GET, "/v1/cache", None::<&()>)
            .await
    }

    /// What pools' fresh desktops go on from.
    pub async fn templates(&self) -> Result<TemplateList, ClientError> {
        self.call(reqwest::Method::GET, "/v1/templates", None::<&()>)
            .await
    }

    /// All desktops.
    pub async fn desktops(&self) -> Result<DesktopList, ClientError> {
        self.call(reqwest::Method::GET, "/v1/desktops", None::<&()>)
            .await
    }

    /// One desktop.
    pub async fn desktop(&self, name: &str) -> Result<Desktop, ClientError> {
        let path = format!("/v1/desktops/{name}");
        self.call(reqwest::Method::GET, &path, None::<&()>).await
    }

    /// A desktop as a libvirt domain whose disk comes over `disk`: `vhost-user` or `nbd`.
    pub async fn libvirt(&self, name: &str, disk: &str) -> Result<LibvirtDomain, ClientError> {
        let path = format!("/v1/desktops/{name}/libvirt?disk={disk}");
        self.call(reqwest::Method::GET, &path, None::<&()>).await
    }

    /// Starts a desktop; returns when its machine runs.
    pub async fn start(&self, request: &StartDesktop) -> Result<Desktop, ClientError> {
        self.call(reqwest::Method::POST, "/v1/desktops", Some(request))
            .await
    }

    /// Stops a desktop; returns when its machine has ended.
    pub async fn stop(&self, name: &str, request: StopDesktop) -> Result<Desktop, ClientError> {
        let path = format!("/v1/desktops/{name}/stop");
        self.call(reqwest::Method::POST, &path, Some(&request))
            .await
    }

    /// Has a stopped desktop's system begin anew; its user volume stays.
    pub async fn reset(&self, name: &str) -> Result<Desktop, ClientError> {
        let path = format!("/v1/desktops/{name}/reset");
        self.call(reqwest::Method::POST, &path, None::<&()>).await
    }

    /// Has a stopped desktop run another version with what its user has.
    pub async fn rebase(&self, name: &str, request: &Rebase) -> Result<Desktop, ClientError> {
        let path = format!("/v1/desktops/{name}/rebase");
        self.call(reqwest::Method::POST, &path, Some(request)).await
    }

    /// Begins to try a stopped desktop out on another version.
    pub async fn preflight(&self, name: &str, request: &Rebase) -> Result<Preflight, ClientError> {
        let path = format!("/v1/desktops/{name}/preflight");
        self.call(reqwest::Method::POST, &path, Some(request)).await
    }

    /// How that goes, or what came of the last one.
    pub async fn preflight_of(&self, name: &str) -> Result<Preflight, ClientError> {
        let path = format!("/v1/desktops/{name}/preflight");
        self.call(reqwest::Method::GET, &path, None::<&()>).await
    }

    /// Ends it.
    pub async fn cancel_preflight(&self, name: &str) -> Result<Preflight, ClientError> {
        let path = format!("/v1/desktops/{name}/preflight");
        self.call(reqwest::Method::DELETE, &path, None::<&()>).await
    }

    /// Asks for a snapshot of what a desktop has written.
    pub async fn snapshot(&self, name: &str) -> Result<SnapshotAsked, ClientError> {
        let path = format!("/v1/desktops/{name}/snapshot");
        self.call(reqwest::Method::POST, &path, None::<&()>).await
    }

    /// Has a stopped desktop that is checked out to this branch go back.
    pub async fn check_in(&self, name: &str) -> Result<Desktop, ClientError> {
        let path = format!("/v1/desktops/{name}/check-in");
        self.call(reqwest::Method::POST, &path, None::<&()>).await
    }

    /// Deletes a stopped desktop and all that was written to it.
    pub async fn delete(&self, name: &str) -> Result<DesktopList, ClientError> {
        let path = format!("/v1/desktops/{name}");
        self.call(reqwest::Method::DELETE, &path, None::<&()>).await
    }
}
