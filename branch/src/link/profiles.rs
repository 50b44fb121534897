//! Boot profiles over the link: announced ones are fetched, recorded boots are told.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dedup::VersionId;
use dedup_protocol::profile::{self, ProfileRefused};
use dedup_protocol::wire::{
    FRAME_BYTES_MAX, GetProfile, Message, ProfileAvailable, RefuseCode, WireError,
};
use dedup_transport::link::{Class, Link};

use super::ConnectionEnd;
use crate::server::Branch;

/// Between two recorded boots that are told: of a hundred desktops that start at once none has anything urgent to tell.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// What the datacenter cannot take now is told again after this.
const RETRY: Duration = Duration::from_secs(30);

/// Fetches and tells until the connection ends.
pub async fn run(branch: &Arc<Branch>, link: &Link) -> Result<Infallible, ConnectionEnd> {
    let boots = branch.desktops.boots();
    let mut tell_after = Instant::now();
    // What the datacenter cannot take must not keep the others from being told.
    let mut told_last = None;
    loop {
        for told in boots.take_announced() {
            fetch(branch, link, told).await?;
        }
        let waiting = branch.versions.catalog().recordings()?;
        let next = waiting
            .iter()
            .find(|(version, _)| told_last.is_none_or(|last| version.0 > last))
            .or_else(|| waiting.first());
        if let Some((version, frame)) = next
            && tell_after <= Instant::now()
        {
            let pause = if tell(branch, link, *version, frame).await? {
                TELL_EVERY
            } else {
                RETRY
            };
            tell_after = Instant::now() + pause;
            told_last = Some(version.0);
            // Whether more is waiting is looked up.
            continue;
        }
        let pause = async {
            if waiting.is_empty() {
                std::future::pending::<()>().await;
            } else {
                tokio::time::sleep_until(tell_after.into()).await;
            }
        };
        tokio::select! {
            () = boots.work_arrived() => {}
            () = pause => {}
        }
    }
}

/// Fetches an announced profile, unless what is here is as new. What does not hold is not kept and costs no connection.
async fn fetch(
    branch: &Arc<Branch>,
    link: &Link,
    told: ProfileAvailable,
) -> Result<(), ConnectionEnd> {
    let catalog = branch.versions.catalog();
    // One that cannot be read is fetched anew: it is a hint, and no reason to end the link.
    let have = catalog.profile(told.version).unwrap_or_else(|error| {
        tracing::warn!(version = %told.version, error = crate::desktop::error_line(&error), "the boot profile here cannot be read");
        None
    });
    let have = have.map_or(0, |p| p.counter);
    if told.counter <= have {
        return Ok(());
    }
    let request = Message::GetProfile(GetProfile {
        version: told.version,
        have,
    });
    let mut answer = None;
    super::versions::exchange(link, &request, |message| match message {
        Message::Profile(signed) => {
            answer = Some(signed.bytes);
            Ok(())
        }
        Message::ProfileAvailable(_) => Ok(()),
        other => Err(unexpected(&other, "Profile")),
    })
    .await?;
    let Some(bytes) = answer else {
        return Ok(());
    };
    let taken = profile::accept(
        &bytes,
        told.version,
        have,
        catalog.anchor(),
        &catalog.endorsements()?,
        branch.clock.now_unix_s(),
    );
    match taken {
        Ok((signed, profile)) => {
            catalog.put_profile(told.version, &signed)?;
            branch.proof.forget(told.version);
            tracing::info!(version = %told.version, counter = profile.counter, boots = profile.boots, chunks = profile.entries.len(), "boot profile is here");
            follow(branch, told.version, have == 0).await
        }
        Err(ProfileRefused::Stale { .. }) => Ok(()),
        Err(error) => {
            tracing::warn!(version = %told.version, error = crate::desktop::error_line(&error), "a boot profile was not believed");
            Ok(())
        }
    }
}

/// Boots that run follow a profile that came, and so does a fill that began without one.
async fn follow(
    branch: &Arc<Branch>,
    version: VersionId,
    first: bool,
) -> Result<(), ConnectionEnd> {
    let worker = Arc::clone(branch);
    tokio::task::spawn_blocking(move || worker.desktops.boots().profile_arrived(version)).await?;
    if first && branch.versions.wanted().contains(&(version, true)) {
        branch.link.assigned.notify_one();
    }
    Ok(())
}

/// Tells of one boot. False: the datacenter cannot take it now.
async fn tell(
    branch: &Branch,
    link: &Link,
    version: VersionId,
    frame: &[u8],
) -> Result<bool, ConnectionEnd> {
    let (mut send, mut recv) = link.open(Class::State).await?;
    send.send(frame).await?;
    send.finish()?;
    let Some(answer) = recv.recv(FRAME_BYTES_MAX).await? else {
        return Ok(false);
    };
    match Message::decode(&answer)? {
        Message::ProfileAvailable(told) => branch.desktops.boots().announce(told),
        Message::Refuse(refuse) if refuse.code == RefuseCode::Busy => return Ok(false),
        Message::Refuse(refuse) => {
            tracing::warn!(%version, code = ?refuse.code, reason = refuse.message, "a recorded boot was refused");
        }
        other => return Err(unexpected(&other, "ProfileAvailable")),
    }
    branch.versions.catalog().delete_recording(version, frame)?;
    Ok(true)
}

fn unexpected(message: &Message, expected: &'static str) -> ConnectionEnd {
    WireError::Unexpected {
        got: message.name(),
        expected,
    }
    .into()
}
