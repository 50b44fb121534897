//! A typed client of the management API.
//!
//! It trusts exactly one authority, the realm's, and says in its errors whether the datacenter could not be reached at all or
//! answered with a problem.

mod people;
mod rollout;

use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, StatusCode};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{
    AssignRequest, BackupRequest, Branch, BranchList, BranchPolicy, BreakLeaseRequest,
    CheckInRequest, CheckOutRequest, Checkout, CheckoutList, CollectRequest, CreateImage,
    DatacenterStatus, DeletedVersion, DeletedVersionList, ExportRequest, ExtendRequest, Image,
    ImageList, Move, MoveList, MoveRequest, Operation, OperationList, OperationState, PinRequest,
    PolicyRequest, Pool, PoolList, Problem, ProblemCode, PublishRequest, ReasonRequest, Retention,
    RollBackRequest, ScrubRequest, StatePolicy, StatePolicyRequest, StoreReport, SupportReport,
    TokenRequest, TokenResponse, UpdateRequest, Version, VersionDiff, VersionList, VersionPin,
    VersionRef, Volume, VolumeList, VolumeSnapshot, VolumeState, WipeOrder, WipeOrderList,
    WipeRequest,
};

/// How to reach a datacenter.
#[derive(Clone)]
pub struct ClientOptions {
    /// `https://host:port`.
    pub url: String,
    /// The bearer token.
    pub token: String,
    /// The realm's CA certificate.
    pub ca_pem: String,
}

impl std::fmt::Debug for ClientOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token is a secret.
        write!(f, "ClientOptions(url={})", self.url)
    }
}

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The options cannot be used.
    #[error("{0}")]
    Options(String),
    /// No answer: nobody there, a network between that fails, or a certificate of another realm.
    #[error("cannot reach the datacenter at {url}: {reason}")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        reason: String,
    },
    /// The datacenter answered that it did not work.
    #[error("{}", .0.message)]
    Problem(Problem),
    /// The answer is not what this client understands.
    #[error("the datacenter at {url} gave an answer that is not understood: {reason}")]
    Answer {
        /// Where.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for an answer; long work answers at once with an operation.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// Largest answer read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A client.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    token: String,
}

impl Client {
    /// Checks the options; connects with the first call.
    pub fn new(options: &ClientOptions) -> Result<Self, ClientError> {
        let bad =
            |what: &str, e: &dyn std::fmt::Display| ClientError::Options(format!("{what}: {e}"));
        let url = options.url.trim_end_matches('/').to_owned();
        if !url.starts_with("https://") {
            return Err(ClientError::Options(format!(
                "{url:?} is not a URL of the form https://host:port"
            )));
        }
        let ca = CertificateDer::from_pem_slice(options.ca_pem.as_bytes())
            .map_err(|e| bad("the CA certificate is not PEM", &e))?;
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(ca)
            .map_err(|e| bad("the CA certificate cannot be used", &e))?;
        let provider = rustls::crypto::ring::default_provider();
        let tls = rustls::ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .map_err(|e| bad("TLS", &e))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let http = reqwest::Client::builder()
            .use_preconfigured_tls(tls)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            // A datacenter is spoken to directly; a proxy could not be given the realm's CA anyway.
            .no_proxy()
            .build()
            .map_err(|e| bad("HTTP client", &e))?;
        Ok(Self {
            http,
            url,
            token: options.token.clone(),
        })
    }

    /// The datacenter's URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.url))
            .bearer_auth(&self.token)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = self.body(response).await?;
        Err(match serde_json::from_slice(&body) {
            Ok(problem) => ClientError::Problem(problem),
            Err(_) => self.foreign(status),
        })
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let response = self.send(request).await?;
        let body = self.body(response).await?;
        serde_json::from_slice(&body).map_err(|e| ClientError::Answer {
            url: self.url.clone(),
            reason: e.to_string(),
        })
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, ClientError> {
        let mut body = Vec::new();
        while let Some(part) = response.chunk().await.map_err(|e| self.unreachable(&e))? {
            if body.len() + part.len() > ANSWER_BYTES_MAX {
                return Err(ClientError::Answer {
                    url: self.url.clone(),
                    reason: format!("longer than {ANSWER_BYTES_MAX} bytes"),
                });
            }
            body.extend_from_slice(&part);
        }
        Ok(body)
    }

    fn unreachable(&self, error: &reqwest::Error) -> ClientError {
        // reqwest's own words repeat the URL; what matters is the innermost cause.
        let mut cause: &dyn std::error::Error = error;
        while let Some(next) = cause.source() {
            cause = next;
        }
        let reason = match error.is_timeout() {
            true => "no answer in time".to_owned(),
            false => cause.to_string(),
        };
        ClientError::Unreachable {
            url: self.url.clone(),
            reason,
        }
    }

    /// An error answer that is not ours.
    fn foreign(&self, status: StatusCode) -> ClientError {
        ClientError::Answer {
            url: self.url.clone(),
            reason: format!(
                "HTTP status {status} without an explanation; is this a Splice datacenter?"
            ),
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(self.request(Method::GET, path)).await
    }

    async fn with<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.json(self.request(method, path).json(body)).await
    }

    /// The datacenter as a whole.
    pub async fn status(&self) -> Result<DatacenterStatus, ClientError> {
        self.get("/v1/status").await
    }

    /// Its part of a support bundle.
    pub async fn support(&self) -> Result<SupportReport, ClientError> {
        self.get("/v1/support").await
    }

    /// Creates an image.
    pub async fn create_image(&self, request: &CreateImage) -> Result<Image, ClientError> {
        self.with(Method::POST, "/v1/images", request).await
    }

    /// All images.
    pub async fn images(&self) -> Result<Vec<Image>, ClientError> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let page: ImageList = self.get(&page("/v1/images", "after", &after)).await?;
            all.extend(page.images);
            after = page.next;
            if after.is_none() {
                return Ok(all);
            }
        }
    }

    /// One image.
    pub async fn image(&self, name: &str) -> Result<Image, ClientError> {
        self.get(&format!("/v1/images/{}", segment(name)?)).await
    }

    /// All versions of an image, newest first.
    pub async fn versions(&self, image: &str) -> Result<Vec<Version>, ClientError> {
        let path = format!("/v1/images/{}/versions", segment(image)?);
        let mut all = Vec::new();
        let mut before = None;
        loop {
            let page: VersionList = self.get(&page(&path, "before", &before)).await?;
            all.extend(page.versions);
            before = page.next;
            if before.is_none() {
                return Ok(all);
            }
        }
    }

    /// One version.
    pub async fn version(&self, version: &VersionRef) -> Result<Version, ClientError> {
        self.get(&version_path(version)?).await
    }

    /// What a branch that has `from` needs for `to`.
    pub async fn diff(
        &self,
        from: &VersionRef,
        to: &VersionRef,
    ) -> Result<VersionDiff, ClientError> {
        self.get(&format!("/v1/diff?from={from}&to={to}")).await
    }

    /// Starts to publish.
    pub async fn publish(
        &self,
        image: &str,
        request: &PublishRequest,
    ) -> Result<Operation, ClientError> {
        let path = format!("/v1/images/{}/versions", segment(image)?);
        self.with(Method::POST, &path, request).await
    }

    /// Starts to encode the update between two versions.
    pub async fn update(&self, request: &UpdateRequest) -> Result<Operation, ClientError> {
        self.with(Method::POST, "/v1/updates", request).await
    }

    /// Starts to read a version back.
    pub async fn verify(&self, version: &VersionRef) -> Result<Operation, ClientError> {
        let path = format!("{}/verify", version_path(version)?);
        self.json(self.request(Method::POST, &path)).await
    }

    /// Deletes a version; it can be had back for a while.
    pub async fn delete_version(
        &self,
        version: &VersionRef,
    ) -> Result<DeletedVersion, ClientError> {
        let path = version_path(version)?;
        self.json(self.request(Method::DELETE, &path)).await
    }

    /// Has a deleted version back.
    pub async fn undelete_version(&self, version: &VersionRef) -> Result<Version, ClientError> {
        let path = format!("{}/undelete", version_path(version)?);
        self.json(self.request(Method::POST, &path)).await
    }

    /// Deleted versions of an image that can be had back.
    pub async fn deleted_versions(&self, image: &str) -> Result<Vec<DeletedVersion>, ClientError> {
        let path = format!("/v1/images/{}/deleted", segment(image)?);
        let list: DeletedVersionList = self.get(&path).await?;
        Ok(list.versions)
    }

    /// Forbids the deletion of a version.
    pub async fn pin_version(
        &self,
        version: &VersionRef,
        request: &PinRequest,
    ) -> Result<VersionPin, ClientError> {
        let path = format!("{}/pin", version_path(version)?);
        self.with(Method::PUT, &path, request).await
    }

    /// Allows the deletion of a version again.
    pub async fn unpin_version(&self, version: &VersionRef) -> Result<(), ClientError> {
        let path = format!("{}/pin", version_path(version)?);
        self.send(self.request(Method::DELETE, &path)).await?;
        Ok(())
    }

    /// Starts to write a version's disk to a file of the datacenter's host.
    pub async fn export(
        &self,
        version: &VersionRef,
        request: &ExportRequest,
    ) -> Result<Operation, ClientError> {
        let path = format!("{}/export", version_path(version)?);
        self.with(Method::POST, &path, request).await
    }

    /// Which versions of an image are kept.
    pub async fn retention(&self, image: &str) -> Result<Retention, ClientError> {
        self.get(&format!("/v1/images/{}/retention", segment(image)?))
            .await
    }

    /// Sets which versions of an image are kept.
    pub async fn set_retention(
        &self,
        image: &str,
        retention: &Retention,
    ) -> Result<Retention, ClientError> {
        let path = format!("/v1/images/{}/retention", segment(image)?);
        self.with(Method::PUT, &path, retention).await
    }

    /// The chunk store in detail.
    pub async fn store(&self) -> Result<StoreReport, ClientError> {
        self.get("/v1/store").await
    }

    /// Starts a collection of garbage.
    pub async fn collect(&self, request: &CollectRequest) -> Result<Operation, ClientError> {
        self.with(Method::POST, "/v1/store/collect", request).await
    }

    /// Starts a scrub of everything.
    pub async fn scrub(&self, request: &ScrubRequest) -> Result<Operation, ClientError> {
        self.with(Method::POST, "/v1/store/scrub", request).await
    }

    /// Starts a backup of the datacenter.
    pub async fn backup(&self, request: &BackupRequest) -> Result<Operation, ClientError> {
        self.with(Method::POST, "/v1/store/backup", request).await
    }

    /// One operation.
    pub async fn operation(&self, id: u64) -> Result<Operation, ClientError> {
        self.get(&format!("/v1/operations/{id}")).await
    }

    /// The newest operations, at most a page of them.
    pub async fn operations(&self) -> Result<Vec<Operation>, ClientError> {
        let page: OperationList = self.get("/v1/operations").await?;
        Ok(page.operations)
    }

    /// Asks an operation to stop.
    pub async fn cancel(&self, id: u64) -> Result<Operation, ClientError> {
        self.json(self.request(Method::POST, &format!("/v1/operations/{id}/cancel")))
            .await
    }

    /// Follows an operation until it is done; `seen` is called with each look at it. Failed work is a [`ClientError::Problem`].
    pub async fn follow(
        &self,
        id: u64,
        interval: Duration,
        mut sleep: impl AsyncFnMut(Duration),
        mut seen: impl FnMut(&Operation),
    ) -> Result<Operation, ClientError> {
        loop {
            let operation = self.operation(id).await?;
            seen(&operation);
            match operation.state {
                OperationState::Running => sleep(interval).await,
                OperationState::Succeeded => return Ok(operation),
                OperationState::Failed => {
                    let problem = operation.error.unwrap_or(Problem {
                        error: ProblemCode::Internal,
                        message: format!("operation {id} failed and does not say why"),
                        help: None,
                    });
                    return Err(ClientError::Problem(problem));
                }
            }
        }
    }

    /// All branches.
    pub async fn branches(&self) -> Result<Vec<Branch>, ClientError> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let page: BranchList = self.get(&page("/v1/branches", "after", &after)).await?;
            all.extend(page.branches);
            after = page.next;
            if after.is_none() {
                return Ok(all);
            }
        }
    }

    /// One branch.
    pub async fn branch(&self, name: &str) -> Result<Branch, ClientError> {
        self.get(&format!("/v1/branches/{}", segment(name)?)).await
    }

    /// Makes a join token.
    pub async fn join_token(
        &self,
        branch: &str,
        request: &TokenRequest,
    ) -> Result<TokenResponse, ClientError> {
        let path = format!("/v1/branches/{}/tokens", segment(branch)?);
        self.with(Method::POST, &path, request).await
    }

    /// Refuses a branch from now on.
    pub async fn revoke(&self, branch: &str) -> Result<Branch, ClientError> {
        let path = format!("/v1/branches/{}/revoke", segment(branch)?);
        self.json(self.request(Method::POST, &path)).await
    }

    /// Changes a branch's caps and hours.
    pub async fn set_policy(
        &self,
        branch: &str,
        request: &PolicyRequest,
    ) -> Result<BranchPolicy, ClientError> {
        let path = format!("/v1/branches/{}/policy", segment(branch)?);
        self.with(Method::PUT, &path, request).await
    }

    /// The pools of a branch.
    pub async fn pools(&self, branch: &str) -> Result<Vec<Pool>, ClientError> {
        let path = format!("/v1/branches/{}/pools", segment(branch)?);
        let list: PoolList = self.get(&path).await?;
        Ok(list.pools)
    }

    /// Sets what a pool runs.
    pub async fn assign(
        &self,
        branch: &str,
        pool: &str,
        request: &AssignRequest,
    ) -> Result<Pool, ClientError> {
        let path = format!("/v1/branches/{}/pools/{}", segment(branch)?, segment(pool)?);
        self.with(Method::PUT, &path, request).await
    }

    /// Removes a pool.
    pub async fn remove_pool(&self, branch: &str, pool: &str) -> Result<(), ClientError> {
        let path = format!("/v1/branches/{}/pools/{}", segment(branch)?, segment(pool)?);
        self.send(self.request(Method::DELETE, &path)).await?;
        Ok(())
    }

    /// All volumes, or those of one branch.
    pub async fn volumes(&self, branch: Option<&str>) -> Result<Vec<Volume>, ClientError> {
        let path = match branch {
            Some(branch) => format!("/v1/volumes?limit=1000&branch={}", segment(branch)?),
            None => "/v1/volumes?limit=1000".to_owned(),
        };
        let mut all = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let path = match &next {
                Some(after) => format!("{path}&after={after}"),
                None => path.clone(),
            };
            let page: VolumeList = self.get(&path).await?;
            all.extend(page.volumes);
            next = page.next;
            if next.is_none() {
                return Ok(all);
            }
        }
    }

    /// One volume, by its id or a beginning of it.
    pub async fn volume(&self, volume: &str) -> Result<VolumeState, ClientError> {
        self.get(&volume_path(volume, "")?).await
    }

    /// Deletes a volume that nobody holds.
    pub async fn delete_volume(
        &self,
        volume: &str,
        request: &ReasonRequest,
    ) -> Result<(), ClientError> {
        let path = volume_path(volume, "/delete")?;
        self.send(self.request(Method::POST, &path).json(request))
            .await?;
        Ok(())
    }

    /// Breaks the lease of a volume.
    pub async fn break_lease(
        &self,
        volume: &str,
        request: &BreakLeaseRequest,
    ) -> Result<VolumeState, ClientError> {
        let path = volume_path(volume, "/break-lease")?;
        self.with(Method::POST, &path, request).await
    }

    /// Cuts a snapshot of what the datacenter has of a volume.
    pub async fn snapshot_volume(&self, volume: &str) -> Result<VolumeSnapshot, ClientError> {
        let path = volume_path(volume, "/snapshots")?;
        self.json(self.request(Method::POST, &path)).await
    }

    /// Deletes a snapshot.
    pub async fn drop_snapshot(
        &self,
        volume: &str,
        number: u64,
        request: &ReasonRequest,
    ) -> Result<(), ClientError> {
        let path = volume_path(volume, &format!("/snapshots/{number}/delete"))?;
        self.send(self.request(Method::POST, &path).json(request))
            .await?;
        Ok(())
    }

    /// Makes a snapshot the state that a volume goes on behind.
    pub async fn roll_back(
        &self,
        volume: &str,
        number: u64,
        request: &RollBackRequest,
    ) -> Result<VolumeState, ClientError> {
        let path = volume_path(volume, &format!("/snapshots/{number}/roll-back"))?;
        self.with(Method::POST, &path, request).await
    }

    /// Starts to write a snapshot's disk to a file of the datacenter's host.
    pub async fn export_snapshot(
        &self,
        volume: &str,
        number: u64,
        request: &ExportRequest,
    ) -> Result<Operation, ClientError> {
        let path = volume_path(volume, &format!("/snapshots/{number}/export"))?;
        self.with(Method::POST, &path, request).await
    }

    /// Makes a fork the volume's state.
    pub async fn restore_fork(
        &self,
        volume: &str,
        fork: &str,
        request: &ReasonRequest,
    ) -> Result<VolumeState, ClientError> {
        let path = volume_path(volume, &format!("/forks/{}/restore", segment(fork)?))?;
        self.with(Method::POST, &path, request).await
    }

    /// Discards a fork.
    pub async fn discard_fork(
        &self,
        volume: &str,
        fork: &str,
        request: &ReasonRequest,
    ) -> Result<VolumeState, ClientError> {
        let path = volume_path(volume, &format!("/forks/{}/discard", segment(fork)?))?;
        self.with(Method::POST, &path, request).await
    }

    /// Expects nothing more of a lease that has ended.
    pub async fn settle_generation(
        &self,
        volume: &str,
        generation: u64,
        request: &ReasonRequest,
    ) -> Result<VolumeState, ClientError> {
        let path = volume_path(volume, &format!("/generations/{generation}/settle"))?;
        self.with(Method::POST, &path, request).await
    }

    /// Moves a desktop to another branch. It goes on by itself; asked again, it is the same move.
    pub async fn move_desktop(&self, request: &MoveRequest) -> Result<Move, ClientError> {
        self.with(Method::POST, "/v1/moves", request).await
    }

    /// The last moves of all desktops that were ever moved.
    pub async fn moves(&self) -> Result<Vec<Move>, ClientError> {
        let list: MoveList = self.get("/v1/moves").await?;
        Ok(list.moves)
    }

    /// The last move of the desktop that a volume is of.
    pub async fn move_of(&self, volume: &str) -> Result<Move, ClientError> {
        self.get(&format!("/v1/moves/{}", segment(volume)?)).await
    }

    /// Takes a move back.
    pub async fn cancel_move(
        &self,
        volume: &str,
        request: &ReasonRequest,
    ) -> Result<Move, ClientError> {
        let path = format!("/v1/moves/{}/cancel", segment(volume)?);
        self.with(Method::POST, &path, request).await
    }

    /// How a pool's volumes are leased, and which snapshots of them are kept.
    pub async fn state_policy(&self, branch: &str, pool: &str) -> Result<StatePolicy, ClientError> {
        self.get(&policy_path(branch, pool)?).await
    }

    /// Changes it.
    pub async fn set_state_policy(
        &self,
        branch: &str,
        pool: &str,
        request: &StatePolicyRequest,
    ) -> Result<StatePolicy, ClientError> {
        self.with(Method::PUT, &policy_path(branch, pool)?, request)
            .await
    }

    /// Desktops that are checked out, or about to be.
    pub async fn checkouts(&self) -> Result<Vec<Checkout>, ClientError> {
        let list: CheckoutList = self.get("/v1/checkouts").await?;
        Ok(list.checkouts)
    }

    /// Checks a desktop out to a laptop.
    pub async fn check_out(
        &self,
        branch: &str,
        desktop: &str,
        request: &CheckOutRequest,
    ) -> Result<Checkout, ClientError> {
        let (branch, desktop) = (segment(branch)?, segment(desktop)?);
        let path = format!("/v1/branches/{branch}/desktops/{desktop}/check-out");
        self.with(Method::POST, &path, request).await
    }

    /// Changes until when a desktop is checked out.
    pub async fn extend_checkout(
        &self,
        volume: &str,
        request: &ExtendRequest,
    ) -> Result<Checkout, ClientError> {
        let path = format!("/v1/checkouts/{}/extend", segment(volume)?);
        self.with(Method::POST, &path, request).await
    }

    /// Wants a desktop back from its laptop.
    pub async fn check_in(
        &self,
        volume: &str,
        request: &CheckInRequest,
    ) -> Result<Checkout, ClientError> {
        let path = format!("/v1/checkouts/{}/check-in", segment(volume)?);
        self.with(Method::POST, &path, request).await
    }

    /// The orders to wipe that a branch was given.
    pub async fn wipes(&self, branch: &str) -> Result<Vec<WipeOrder>, ClientError> {
        let path = format!("/v1/branches/{}/wipes", segment(branch)?);
        let list: WipeOrderList = self.get(&path).await?;
        Ok(list.orders)
    }

    /// Orders a branch to destroy keys at its next contact.
    pub async fn wipe(
        &self,
        branch: &str,
        request: &WipeRequest,
    ) -> Result<WipeOrder, ClientError> {
        let path = format!("/v1/branches/{}/wipes", segment(branch)?);
        self.with(Method::POST, &path, request).await
    }
}

fn volume_path(volume: &str, rest: &str) -> Result<String, ClientError> {
    Ok(format!("/v1/volumes/{}{rest}", segment(volume)?))
}

fn policy_path(branch: &str, pool: &str) -> Result<String, ClientError> {
    let (branch, pool) = (segment(branch)?, segment(pool)?);
    Ok(format!("/v1/branches/{branch}/pools/{pool}/state-policy"))
}

fn page(path: &str, key: &str, value: &Option<impl std::fmt::Display>) -> String {
    match value {
        Some(value) => format!("{path}?{key}={value}"),
        None => path.to_owned(),
    }
}

/// A name as a path segment; only names that are allowed anyway need no escaping.
fn segment(name: &str) -> Result<&str, ClientError> {
    crate::check_name("a thing in the catalog", name)
        .map_err(|e| ClientError::Options(e.to_string()))?;
    Ok(name)
}

fn version_path(version: &VersionRef) -> Result<String, ClientError> {
    let image = segment(&version.image)?;
    Ok(match version.number {
        Some(number) => format!("/v1/images/{image}/versions/{number}"),
        None => format!("/v1/images/{image}/versions/latest"),
    })
}
