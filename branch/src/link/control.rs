//! The control stream: greeting, assignments and rosters in, reports out, certificate renewal.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dedup_protocol::control::{BranchAction, BranchControl};
use dedup_protocol::state::moved::MovedDesktop;
use dedup_protocol::trust::Signed;
use dedup_protocol::wipe::{Target, Wipe, Wiped};
use dedup_protocol::wire::{Der, FRAME_BYTES_MAX, Message, StatusReport};
use dedup_transport::identity::{BranchKey, expires_at};
use dedup_transport::link::{Class, FrameRecv, FrameSend, Link};

use super::ConnectionEnd;
use crate::catalog::CatalogError;
use crate::server::Branch;

/// How often a branch reports though nothing changed.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// How soon after a change it reports, at the earliest.
const REPORT_AT_MOST_EVERY: Duration = Duration::from_secs(1);
/// A greeting that takes longer is a datacenter that is not well.
const GREETING_MAX: Duration = Duration::from_secs(30);
/// The certificate is renewed when less than this is left of it.
const RENEW_BEFORE_S: u64 = 30 * 24 * 3600;

/// How often it is tried to take a desktop in that was moved here; after that the datacenter has to tell it again.
const TAKE_IN_TRIES: u32 = 60;
/// Between two of these.
const TAKE_IN_AGAIN: Duration = Duration::from_secs(10);

/// A control stream past its greeting.
pub struct Greeted {
    control: BranchControl,
    send: FrameSend,
    recv: FrameRecv,
}

/// Opens the control stream and greets.
pub async fn greet(branch: &Branch, link: &Link) -> Result<Greeted, ConnectionEnd> {
    let catalog = branch.versions.catalog();
    let counter = branch.versions.assignment().map_or(0, |a| a.counter);
    let mut control = BranchControl::new(
        branch.identity.branch,
        branch.identity.anchor.clone(),
        catalog.endorsements()?,
        counter,
    )
    .with_roster(branch.people.counter());
    let (mut send, mut recv) = link.open(Class::Demand).await?;
    send.send(&control.hello(env!("CARGO_PKG_VERSION")).encode())
        .await?;
    let frame = tokio::time::timeout(GREETING_MAX, recv.recv(FRAME_BYTES_MAX))
        .await
        .map_err(|_| ConnectionEnd::ControlEnded)??
        .ok_or(ConnectionEnd::ControlEnded)?;
    let now = branch.clock.now_unix_s();
    if let BranchAction::Welcomed(welcome) = control.handle(&frame, now)? {
        let skew = welcome.now_unix_s.abs_diff(now);
        if skew > 300 {
            tracing::warn!(
                skew_s = skew,
                "this branch's clock and the datacenter's differ; signed records may be refused"
            );
        }
        catalog.set_endorsements(&welcome.endorsements)?;
        branch.link.minor.store(welcome.minor, Ordering::Relaxed);
    }
    Ok(Greeted {
        control,
        send,
        recv,
    })
}

/// Serves the control stream until the connection ends.
pub async fn run(branch: &Arc<Branch>, greeted: Greeted) -> Result<Infallible, ConnectionEnd> {
    let Greeted {
        mut control,
        mut send,
        mut recv,
    } = greeted;
    let mut renewal = request_renewal(branch, &mut send).await?;
    let (mut introduced, mut unreadable) = (false, false);
    let mut told = HashSet::new();
    let reports = async {
        loop {
            for number in wipes_done(branch, &mut told)? {
                send.send(&Message::Wiped(Wiped { number }).encode())
                    .await?;
            }
            match branch.status_json(!introduced) {
                Ok(json) => {
                    let report = Message::Status(StatusReport { json });
                    send.send(&report.encode()).await?;
                    (introduced, unreadable) = (true, false);
                }
                // The link stays: guests' reads need no report. The datacenter shows how old the last one is.
                Err(error) => {
                    if !unreadable {
                        tracing::error!(
                            error = crate::desktop::error_line(&error),
                            "no reports: the branch's catalog cannot be read"
                        );
                    }
                    unreadable = true;
                }
            }
            tokio::time::sleep(REPORT_AT_MOST_EVERY).await;
            let _ = tokio::time::timeout(REPORT_EVERY, branch.link.report_now.notified()).await;
        }
    };
    let frames = async {
        loop {
            let frame = recv
                .recv(FRAME_BYTES_MAX)
                .await?
                .ok_or(ConnectionEnd::ControlEnded)?;
            follow(branch, &mut control, &frame, &mut renewal)?;
        }
    };
    tokio::select! {
        ended = reports => ended,
        ended = frames => ended,
    }
}

fn follow(
    branch: &Arc<Branch>,
    control: &mut BranchControl,
    frame: &[u8],
    renewal: &mut Option<BranchKey>,
) -> Result<(), ConnectionEnd> {
    match control.handle(frame, branch.clock.now_unix_s())? {
        BranchAction::Follow(assignment, signed) => {
            branch.versions.catalog().set_assignment(&signed)?;
            tracing::info!(
                counter = assignment.counter,
                pools = assignment.pools.len(),
                "assignment"
            );
            branch.versions.set_assignment(*assignment);
            branch.link.assigned.notify_one();
            branch.link.report_now.notify_one();
        }
        BranchAction::Admit(roster, signed) => {
            let (counter, people) = (roster.counter, roster.people.len());
            branch
                .people
                .admit(*roster, &signed)
                .map_err(CatalogError::from)?;
            tracing::info!(counter, people, "roster");
            branch.link.report_now.notify_one();
        }
        BranchAction::Stale { counter } => {
            tracing::debug!(counter, "assignment or roster is not newer");
        }
        BranchAction::Expired { expires_unix_s } => {
            tracing::warn!(
                expires_unix_s,
                "an assignment came that has run out by this branch's clock; not followed"
            );
        }
        BranchAction::Keep(policy) => {
            if branch.versions.catalog().policy()? != policy {
                branch.versions.catalog().set_policy(&policy)?;
                tracing::info!(?policy, "caps and hours");
            }
            branch.follow_policy(policy);
        }
        BranchAction::Certificate(der) => {
            if let Some(key) = renewal.take() {
                branch.identity.replace_certificate(&der, &key.key_pem())?;
                tracing::info!("certificate renewed");
            }
        }
        BranchAction::NotNow(refuse) => {
            *renewal = None;
            tracing::warn!(
                reason = refuse.message,
                "the certificate was not renewed; asked again on the next connection"
            );
        }
        BranchAction::Profile(told) => branch.desktops.boots().announce(told),
        BranchAction::Restore(wanted) => branch.link.asked_back.add(wanted),
        BranchAction::Lease(message) => {
            let worker = Arc::clone(branch);
            // It may have to wait for a part that is being made; nothing else does.
            tokio::task::spawn_blocking(move || worker.desktops.hear_of_lease(message));
        }
        BranchAction::Moved(moved) => {
            tokio::spawn(take_in(Arc::clone(branch), *moved));
        }
        BranchAction::CheckedOut(checkout, signed) => {
            let worker = Arc::clone(branch);
            // It waits for whoever works on a desktop of that name.
            tokio::task::spawn_blocking(move || {
                if let Err(error) = worker.desktops.check_out(&checkout, &signed) {
                    let error = crate::desktop::error_line(&error);
                    tracing::error!(desktop = checkout.name, error, "not checked out");
                }
                // What it begins with is to be fetched, and the datacenter to know that it is here.
                worker.link.assigned.notify_one();
                worker.link.report_now.notify_one();
            });
        }
        BranchAction::Wipe(wipe, signed) => follow_wipe(branch, *wipe, signed)?,
        BranchAction::WipeNoted(number) => branch.versions.catalog().forget_wipe(number)?,
        BranchAction::Welcomed(_) => {}
    }
    Ok(())
}

/// Takes in a desktop that was moved here. Its pool may be assigned, and that one's version come, a little later.
async fn take_in(branch: Arc<Branch>, moved: MovedDesktop) {
    for attempt in 1..=TAKE_IN_TRIES {
        let (worker, desktop) = (Arc::clone(&branch), moved.clone());
        let taken = tokio::task::spawn_blocking(move || worker.desktops.take_in(&desktop)).await;
        match taken {
            Ok(Ok(())) => break,
            Ok(Err(error)) => {
                let error = crate::desktop::error_line(&error);
                tracing::warn!(
                    desktop = moved.name,
                    error,
                    attempt,
                    "a desktop that was moved here is not taken in yet"
                );
            }
            // The server stops.
            Err(_) => return,
        }
        tokio::time::sleep(TAKE_IN_AGAIN).await;
    }
    branch.link.report_now.notify_one();
}

/// Orders to wipe desktops that were done, and that the datacenter was not told of on this connection.
fn wipes_done(branch: &Branch, told: &mut HashSet<u64>) -> Result<Vec<u64>, ConnectionEnd> {
    let wipes = branch.versions.catalog().wipes()?.into_iter();
    let done = wipes.filter(|kept| kept.is_done && told.insert(kept.wipe.number));
    Ok(done.map(|kept| kept.wipe.number).collect())
}

/// Follows an order to wipe. It is kept before anything else is done, so that what stops us does not stop it.
fn follow_wipe(
    branch: &Arc<Branch>,
    wipe: Wipe,
    signed: Signed<Wipe>,
) -> Result<(), ConnectionEnd> {
    let worker = Arc::clone(branch);
    match wipe.target {
        Target::Desktop { name, .. } => {
            branch.versions.catalog().put_wipe(wipe.number, &signed)?;
            tracing::warn!(desktop = name, order = wipe.number, "an order to wipe");
            tokio::task::spawn_blocking(move || {
                worker.desktops.tend_wipes();
                worker.link.report_now.notify_one();
            });
        }
        Target::Branch => {
            tracing::warn!(order = wipe.number, "an order to wipe this branch");
            tokio::task::spawn_blocking(move || {
                if let Err(error) = worker.desktops.wipe_all(&signed.to_bytes()) {
                    let error = crate::desktop::error_line(&error);
                    tracing::error!(error, "wiped as far as possible; the next start goes on");
                }
                worker.link.wiped.cancel();
            });
        }
    }
    Ok(())
}

async fn request_renewal(
    branch: &Branch,
    send: &mut FrameSend,
) -> Result<Option<BranchKey>, ConnectionEnd> {
    let certificate = branch.identity.certificate()?;
    let left = expires_at(&certificate.cert_pem)
        .map_or(0, |end| end.saturating_sub(branch.clock.now_unix_s()));
    if left > RENEW_BEFORE_S {
        return Ok(None);
    }
    let key = BranchKey::generate();
    let request = Message::Renew(Der {
        bytes: key.csr_der().to_vec(),
    });
    send.send(&request.encode()).await?;
    Ok(Some(key))
}
