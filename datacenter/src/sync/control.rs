//! The datacenter's end of a control stream: greeting, assignments, rosters and ended leases out, reports in, certificates renewed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use datacenter_api::BranchStatus;
use dedup::{BranchId, DesktopId, VersionId};
use dedup_protocol::control::{ControlError, DatacenterAction, DatacenterControl};
use dedup_protocol::wire::{
    Der, FRAME_BYTES_MAX, MINOR_LAPTOP, MINOR_ROSTER, MINOR_STATE, Message, PROTOCOL_MINOR,
    RefuseCode, SignedBytes, Welcome,
};
use dedup_transport::link::{Caps, Class, FrameRecv, FrameSend, Link, LinkError};

use super::{error_line, is_revoked, refuse, repair, wipe};
use crate::Datacenter;
use crate::catalog::CatalogError;

/// Why a control stream ended.
#[derive(Debug, thiserror::Error)]
pub enum ControlEnd {
    /// The link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// What the branch sent.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The branch was revoked while it was connected.
    #[error("the branch was revoked")]
    Revoked,
    /// The branch closed it.
    #[error("the branch closed its control stream")]
    Closed,
}

/// Serves a control stream whose first frame has come.
pub async fn serve(
    dc: &Arc<Datacenter>,
    branch: BranchId,
    link: &Link,
    first: &[u8],
    mut send: FrameSend,
    mut recv: FrameRecv,
) -> Result<std::convert::Infallible, ControlEnd> {
    // Few and short, and what a branch is to do does not wait behind what it fetches.
    send.set_class(Class::Demand);
    let mut control = DatacenterControl::new();
    let mut changes = dc.assignment_changes();
    let DatacenterAction::Greeted {
        minor,
        assignment_counter,
        software,
    } = control.handle(first)?
    else {
        return Err(ControlEnd::Closed);
    };
    tracing::debug!(%branch, software, assignment_counter, "greeted");
    // Before it could be told anything: what it follows is not to be replaced because we forgot it.
    if let Err(error) = dc.note_follows(branch, assignment_counter) {
        tracing::error!(%branch, error = error_line(&error), "what a branch follows cannot be noted");
        return Err(ControlEnd::Closed);
    }
    let welcome = Message::Welcome(Welcome {
        minor: PROTOCOL_MINOR,
        software: env!("CARGO_PKG_VERSION").into(),
        now_unix_s: dc.now_unix_s(),
        endorsements: dc.endorsements(),
    });
    send.send(&welcome.encode()).await?;
    let mut told = assignment_counter;
    let mut told_policy = None;
    let mut told_profiles = HashMap::new();
    let mut asked_for = Vec::new();
    // By its last report; the first one on this connection may say otherwise.
    let believed = reported_roster(dc, branch);
    let (mut roster, mut reported) = (believed, false);
    // Desktops that are moved from or to it, once a connection; after that it is told as they go on.
    let mut moves = dc.moves_to_tell(branch);
    let mut laptop = Laptop::default();
    loop {
        changes.mark_unchanged();
        if is_revoked(dc, branch) {
            link.refuse("this branch's certificate is revoked");
            return Err(ControlEnd::Revoked);
        }
        match dc.assignment(branch) {
            Ok(Some(signed)) => {
                // Our own record: signed by this process or kept by the catalog.
                let own = signed.open_own();
                let (counter, needs) = own.map_or((0, 0), |a| (a.counter, a.minor()));
                if counter > told && needs > minor {
                    // It could not tell it from a forgery, and would end the connection.
                    tracing::warn!(
                        %branch,
                        software,
                        "the branch goes on with its last assignment: its splice-branch is too old for what its pools ask for (machine types and \
                         TPMs, user volumes, pooled desktops, or desktops that resume); upgrade it, or assign its pools with --machine auto, --no-tpm, --no-user-volume, --persistent and --start boot"
                    );
                    told = counter;
                } else if counter > told {
                    let bytes = signed.to_bytes();
                    send.send(&Message::Assign(SignedBytes { bytes }).encode())
                        .await?;
                    told = counter;
                }
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(%branch, error = error_line(&error), "assignment cannot be read")
            }
        }
        match dc.branch_policy(branch) {
            Ok(policy) if told_policy != Some(policy) => {
                // Each end keeps its own sending within the caps; this one sends nearly all.
                link.set_caps(Caps {
                    link_bytes_per_s: policy.link_cap(),
                    background_bytes_per_s: policy.fill_cap(),
                });
                send.send(&Message::Policy(policy).encode()).await?;
                told_policy = Some(policy);
            }
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%branch, error = error_line(&error), "caps and hours cannot be read")
            }
        }
        if minor >= MINOR_ROSTER {
            tell_roster(dc, branch, &mut roster, &mut send).await?;
        }
        tell_profiles(dc, branch, &mut told_profiles, &mut send).await?;
        repair::ask(dc, branch, minor, &mut asked_for, &mut send).await?;
        if minor >= MINOR_LAPTOP {
            laptop.tell(dc, branch, &mut send).await?;
        }
        // Of one that does not know leases nobody has any.
        for notice in dc.take_notices(branch).into_iter().chain(moves.drain(..)) {
            let needs = match notice {
                Message::RecallLease(_) | Message::Moved(_) => MINOR_LAPTOP,
                _ => MINOR_STATE,
            };
            if minor >= needs {
                send.send(&notice.encode()).await?;
            }
        }
        loop {
            tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        return Err(ControlEnd::Closed);
                    }
                    break;
                }
                frame = recv.recv(FRAME_BYTES_MAX) => {
                    let frame = frame?.ok_or(ControlEnd::Closed)?;
                    let action = control.handle(&frame)?;
                    let is_first = matches!(action, DatacenterAction::Report(_))
                        && !std::mem::replace(&mut reported, true);
                    act(dc, branch, action, &mut send).await?;
                    let has = reported_roster(dc, branch);
                    if is_first && has < believed {
                        // It lost what it had, with its disk.
                        roster = has;
                        break;
                    }
                }
            }
        }
    }
}

/// Counter of the roster that a branch said that it has.
fn reported_roster(dc: &Datacenter, branch: BranchId) -> u64 {
    let known = dc
        .statuses()
        .get(&branch)
        .map(|(_, status)| status.roster_counter);
    known.flatten().unwrap_or(0)
}

/// Sends the roster of people that may log in at the branch, if it is not the one that it was told of last.
async fn tell_roster(
    dc: &Arc<Datacenter>,
    branch: BranchId,
    told: &mut u64,
    send: &mut FrameSend,
) -> Result<(), LinkError> {
    let (worker, before) = (Arc::clone(dc), *told);
    // Everybody may be looked at for it, and others wait while one looks: at a change of people all branches do at once.
    let found = tokio::task::spawn_blocking(move || {
        let counter = worker.roster_counter(branch)?;
        if counter <= before {
            return Ok::<_, CatalogError>(None);
        }
        let signed = worker.signed_roster(branch)?;
        Ok(signed.map(|bytes| (counter, bytes)))
    });
    match found.await.expect("looking for people does not panic") {
        Ok(Some((counter, bytes))) => {
            send.send(&Message::Roster(SignedBytes { bytes }).encode())
                .await?;
            *told = counter;
        }
        Ok(None) => {}
        Err(error) => {
            tracing::error!(%branch, error = error_line(&error), "the roster cannot be made");
        }
    }
    Ok(())
}

/// What a branch was told on this connection of checkouts and wipes.
#[derive(Default)]
struct Laptop {
    /// Recalls of what it is to give back were looked for.
    met: bool,
    /// Desktops that are checked out to it, and the number of the record it was told.
    checkouts: HashMap<DesktopId, u64>,
    wipes: HashSet<u64>,
}

impl Laptop {
    /// Tells what it was not told yet. What cannot be read is told later.
    async fn tell(
        &mut self,
        dc: &Datacenter,
        branch: BranchId,
        send: &mut FrameSend,
    ) -> Result<(), LinkError> {
        let failed = |error: CatalogError, what: &'static str| {
            tracing::error!(%branch, error = error_line(&error), what, "cannot be read for a branch");
        };
        match dc.wipes_to_tell(branch, false) {
            Ok(wipes) => {
                for (number, bytes) in wipes {
                    if self.wipes.insert(number) {
                        send.send(&Message::Wipe(SignedBytes { bytes }).encode())
                            .await?;
                    }
                }
            }
            Err(error) => failed(error, "orders to wipe"),
        }
        if !self.met {
            match dc.meet_checkouts(branch) {
                Ok(recalls) => {
                    self.met = true;
                    for recall in recalls {
                        send.send(&recall.encode()).await?;
                    }
                }
                Err(error) => failed(error, "recalls"),
            }
        }
        match dc.checkouts_of(branch) {
            Ok(checkouts) => {
                for (system, number, bytes) in checkouts {
                    let before = self.checkouts.insert(system, number).unwrap_or(0);
                    if number > before {
                        send.send(&Message::CheckOut(SignedBytes { bytes }).encode())
                            .await?;
                    }
                }
            }
            Err(error) => failed(error, "checkouts"),
        }
        Ok(())
    }
}

/// Tells of boot profiles that are newer than what was told before, of the versions that the branch's pools run or pin.
async fn tell_profiles(
    dc: &Datacenter,
    branch: BranchId,
    told: &mut HashMap<VersionId, u64>,
    send: &mut FrameSend,
) -> Result<(), LinkError> {
    let current = match dc.profiles_of(branch) {
        Ok(current) => current,
        Err(error) => {
            tracing::error!(%branch, error = error_line(&error), "boot profiles cannot be looked up");
            return Ok(());
        }
    };
    // What the branch runs no more needs no memory.
    told.retain(|version, _| current.iter().any(|c| c.version == *version));
    for profile in current {
        let before = told.insert(profile.version, profile.counter).unwrap_or(0);
        if profile.counter > before {
            send.send(&Message::ProfileAvailable(profile).encode())
                .await?;
        }
    }
    Ok(())
}

async fn act(
    dc: &Datacenter,
    branch: BranchId,
    action: DatacenterAction,
    send: &mut FrameSend,
) -> Result<(), LinkError> {
    match action {
        DatacenterAction::Report(json) => match serde_json::from_str::<BranchStatus>(&json) {
            Ok(status) => {
                if let Err(error) = dc.record_branch_status(branch, status) {
                    tracing::error!(%branch, error = error_line(&error), "report not kept");
                }
            }
            Err(error) => tracing::warn!(%branch, %error, "a report is malformed"),
        },
        DatacenterAction::Renew(csr_der) => {
            let answer = match dc.renew_branch_certificate(branch, &csr_der) {
                Ok(bytes) => Message::Renewed(Der { bytes }),
                Err(error) => {
                    tracing::warn!(%branch, error = error_line(&error), "certificate not renewed");
                    refuse(RefuseCode::Busy, &error_line(&error))
                }
            };
            send.send(&answer.encode()).await?;
        }
        DatacenterAction::Wiped(number) => wipe::note(dc, branch, number, send).await?,
        DatacenterAction::Greeted { .. } => {}
    }
    Ok(())
}
