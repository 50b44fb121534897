//! The datacenter's end of a control stream: greeting, assignments and ended leases out, reports in, certificates renewed.

use std::collections::HashMap;

use datacenter_api::BranchStatus;
use dedup::{BranchId, VersionId};
use dedup_protocol::control::{ControlError, DatacenterAction, DatacenterControl};
use dedup_protocol::wire::{
    Der, FRAME_BYTES_MAX, MINOR_STATE, Message, PROTOCOL_MINOR, RefuseCode, SignedBytes, Welcome,
};
use dedup_transport::link::{Caps, Class, FrameRecv, FrameSend, Link, LinkError};

use super::{error_line, is_revoked, refuse, repair};
use crate::Datacenter;

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
    dc: &Datacenter,
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
                         TPMs, user volumes, or desktops that resume); upgrade it, or assign its pools with --machine auto, --no-tpm, --no-user-volume and --start boot"
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
        tell_profiles(dc, branch, &mut told_profiles, &mut send).await?;
        repair::ask(dc, branch, minor, &mut asked_for, &mut send).await?;
        // Of one that does not know leases nobody has any.
        for notice in dc.take_notices(branch) {
            if minor >= MINOR_STATE {
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
                    act(dc, branch, control.handle(&frame)?, &mut send).await?;
                }
            }
        }
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
        DatacenterAction::Greeted { .. } => {}
    }
    Ok(())
}
