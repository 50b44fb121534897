//! The link to the datacenter: kept up for ever, through any cut.
//!
//! ```text
//!   Down ──connect──► Greeting ──Welcome──► Up ──connection lost──► Down (again after a pause that doubles to 15 s)
//! ```
//!
//! While it is up, eight tasks share it: the control stream, the syncing of versions, their updates, the fetching of chunks, boot profiles,
//! giving chunks back that the datacenter lost, leases and write-back, and reports. When it is lost all end, what they had not finished stays queued, and guests go on with what is resident.

mod began;
mod chunks;
mod control;
mod profiles;
mod repair;
mod state;
mod update;
mod versions;
pub mod wiped;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use datacenter_api::LinkReport;
use dedup::VersionId;
use dedup_transport::congestion::PathMemory;
use dedup_transport::link::{
    self, Caps, Link, LinkClient, LinkError, LinkStats, LinkTotals, LinkTuning,
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::catalog::CatalogError;
use crate::server::Branch;

/// First pause before connecting again; doubles to [`PAUSE_MAX`]. A branch on a bad line should be back within seconds.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// Longest pause. The path may be up again at any moment and a try costs two packets.
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// How much is asked for ahead of what has come, in time on the line. The datacenter must never run dry between two requests.
fn seconds_ahead(stats: &LinkStats) -> f64 {
    link::seconds_ahead(stats.rtt, f64::from(stats.loss_per_mille) / 1000.0)
}

/// Why the tasks of a connection ended.
#[derive(Debug, thiserror::Error)]
enum ConnectionEnd {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Control(#[from] dedup_protocol::control::ControlError),
    #[error("the datacenter ended the control stream")]
    ControlEnded,
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("the datacenter's answer was not believed")]
    Answer(#[from] dedup_protocol::client::AnswerRefused),
    #[error("the datacenter's answer: {0}")]
    Wire(#[from] dedup_protocol::wire::WireError),
    #[error("a task of the link ended by a defect")]
    Task(#[from] tokio::task::JoinError),
    #[error("certificate")]
    Identity(#[from] crate::identity::IdentityError),
}

/// What others may know of the link.
#[derive(Default)]
pub struct LinkState {
    report: RwLock<LinkReport>,
    link: RwLock<Option<Link>>,
    /// What this end may send, on this connection and the next ones.
    caps: RwLock<Caps>,
    /// Newest message set that the datacenter spoke when it was last reached; 0: it was not.
    minor: AtomicU16,
    /// Figures of connections that ended.
    before: Mutex<LinkTotals>,
    /// How updates fared since the process started.
    pub(crate) update_attempts: Mutex<HashMap<VersionId, update::Attempt>>,
    /// Wakes the version task: the assignment changed.
    pub(crate) assigned: Notify,
    /// Wakes the report task: something worth telling changed.
    pub(crate) report_now: Notify,
    /// Chunks that the datacenter lost and asks for.
    pub(crate) asked_back: repair::AskedBack,
    /// All keys of this branch were destroyed: the server is to end, and the datacenter to be told.
    pub(crate) wiped: CancellationToken,
}

impl LinkState {
    /// For status reports.
    pub fn report(&self) -> LinkReport {
        let mut report = self
            .report
            .read()
            .expect("no panic under this lock")
            .clone();
        if let Some(link) = &*self.link.read().expect("no panic under this lock") {
            report.rtt_ms = Some(link.stats().rtt.as_secs_f64() * 1e3);
        }
        report
    }

    /// Whether it is up.
    pub fn is_connected(&self) -> bool {
        self.report
            .read()
            .expect("no panic under this lock")
            .connected
    }

    /// Newest message set that the datacenter spoke when it was last reached; 0: it was not since this server started.
    pub fn minor(&self) -> u16 {
        self.minor.load(Ordering::Relaxed)
    }

    /// Waits until all keys of this branch were destroyed by the datacenter's order.
    pub async fn wiped(&self) {
        self.wiped.cancelled().await;
    }

    /// Bytes received since the process started, as the transport counts them.
    pub fn received_bytes(&self) -> u64 {
        self.totals().received_bytes
    }

    /// What all connections since the process started add up to.
    pub fn totals(&self) -> LinkTotals {
        let link = self.link.read().expect("no panic under this lock");
        let mut totals = *self.before.lock().expect("no panic under this lock");
        if let Some(link) = &*link {
            totals.add(&link.stats());
        }
        totals
    }

    /// Limits what this end sends.
    pub fn set_caps(&self, caps: Caps) {
        *self.caps.write().expect("no panic under this lock") = caps;
        if let Some(link) = &*self.link.read().expect("no panic under this lock") {
            link.set_caps(caps);
        }
    }

    fn set(&self, link: Option<Link>, address: &str, now_unix_s: u64) {
        let mut report = self.report.write().expect("no panic under this lock");
        report.connected = link.is_some();
        report.since_unix_s = Some(now_unix_s);
        report.address = address.into();
        report.rtt_ms = None;
        if let Some(link) = &link {
            link.set_caps(*self.caps.read().expect("no panic under this lock"));
        }
        let mut current = self.link.write().expect("no panic under this lock");
        if let Some(old) = current.take() {
            let mut before = self.before.lock().expect("no panic under this lock");
            before.add(&old.stats());
        }
        *current = link;
    }
}

/// Keeps the link up until `cancel`.
pub async fn run(
    branch: Arc<Branch>,
    tuning: LinkTuning,
    paths: Arc<dyn PathMemory>,
    cancel: CancellationToken,
) {
    let mut pause = PAUSE_MIN;
    let mut told = String::new();
    while !cancel.is_cancelled() {
        let ended = tokio::select! {
            ended = connect_once(&branch, &tuning, &paths, &mut pause) => ended,
            () = cancel.cancelled() => break,
        };
        // The same trouble is told once, not every few seconds for a whole outage.
        let line = crate::desktop::error_line(&ended);
        if line == told {
            tracing::debug!(error = line, "link down");
        } else {
            tracing::warn!(error = line, retry_in = ?pause, "link down");
            told = line;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = cancel.cancelled() => break,
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
    if let Some(link) = branch
        .link
        .link
        .write()
        .expect("no panic under this lock")
        .take()
    {
        link.close("the branch server stops");
    }
}

async fn connect_once(
    branch: &Arc<Branch>,
    tuning: &LinkTuning,
    paths: &Arc<dyn PathMemory>,
    pause: &mut Duration,
) -> ConnectionEnd {
    match connect(branch, tuning, paths).await {
        Ok((link, greeted)) => {
            *pause = PAUSE_MIN;
            let now = branch.clock.now_unix_s();
            branch
                .link
                .set(Some(link.clone()), &branch.identity.address, now);
            branch.fetcher.set_connected(true);
            tracing::info!(datacenter = branch.identity.address, "link up");
            let end = serve(branch, &link, greeted).await;
            link.close("starting over");
            let now = branch.clock.now_unix_s();
            branch.link.set(None, &branch.identity.address, now);
            branch.fetcher.set_connected(false);
            let worker = Arc::clone(branch);
            let told = tokio::task::spawn_blocking(move || worker.desktops.lines().unlinked());
            told.await.map_or_else(ConnectionEnd::from, |()| end)
        }
        Err(error) => {
            branch
                .link
                .set(None, &branch.identity.address, branch.clock.now_unix_s());
            error
        }
    }
}

async fn connect(
    branch: &Branch,
    tuning: &LinkTuning,
    paths: &Arc<dyn PathMemory>,
) -> Result<(Link, control::Greeted), ConnectionEnd> {
    let certificate = branch.identity.certificate()?;
    let realm = branch.identity.anchor.realm;
    let client = LinkClient::new(&certificate, &branch.identity.ca_pem, realm, tuning)?
        .remembering(Arc::clone(paths));
    let link = client.connect(&branch.identity.address).await?;
    let greeted = control::greet(branch, &link).await?;
    Ok((link, greeted))
}

/// Runs the tasks of one connection until the first ends.
async fn serve(branch: &Arc<Branch>, link: &Link, greeted: control::Greeted) -> ConnectionEnd {
    let (by_update, updates) = watch::channel(Vec::new());
    let ended: Result<std::convert::Infallible, ConnectionEnd> = tokio::select! {
        ended = control::run(branch, greeted) => ended,
        ended = versions::run(branch, link, &by_update) => ended,
        ended = update::run(branch, link, updates) => ended,
        ended = chunks::run(branch, link) => ended,
        ended = profiles::run(branch, link) => ended,
        ended = repair::run(branch, link) => ended,
        ended = state::run(branch, link) => ended,
        error = link.closed() => Err(error.into()),
    };
    let Err(end) = ended;
    end
}
