//! `splice desktop preflight`: the trial of a desktop on another version, followed and told.

use std::time::Duration;

use branch_api::{Client, Preflight, PreflightState};

use crate::config::Context;
use crate::failure::Failure;
use crate::output;

/// How often the branch server is asked.
const INTERVAL: Duration = Duration::from_secs(1);

/// Shows a trial, at its end if it is to be waited for. One that did not end well is a failure, unless it was to end.
pub async fn follow(
    context: &Context,
    client: &Client,
    begun: Preflight,
    (waits, is_to_end): (bool, bool),
) -> Result<(), Failure> {
    let mut seen = begun;
    let mut told = String::new();
    while waits && seen.state == PreflightState::Running {
        if seen.says != told {
            output::aside(format_args!("{}: {}", seen.desktop, seen.says));
            told.clone_from(&seen.says);
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            _ = tokio::signal::ctrl_c() => {
                return Err(Failure::failed("interrupted; the trial goes on at the branch").help(format!(
                    "`splice desktop preflight {} --cancel` ends it",
                    seen.desktop
                )));
            }
        }
        seen = client.preflight_of(&seen.desktop).await?;
    }
    shown(context, &seen)?;
    match seen.state {
        PreflightState::Running | PreflightState::Healthy => Ok(()),
        _ if is_to_end => Ok(()),
        PreflightState::Unhealthy => Err(Failure::failed("it is not well on that version")),
        PreflightState::Failed => Err(Failure::failed("it could not be tried out")),
        PreflightState::Ended => Err(Failure::conflict("it was ended before it was known")),
    }
}

fn shown(context: &Context, seen: &Preflight) -> Result<(), Failure> {
    if context.json {
        return output::json(seen);
    }
    let state = match seen.state {
        PreflightState::Running => "goes on",
        PreflightState::Healthy => "healthy",
        PreflightState::Unhealthy => "not well",
        PreflightState::Failed => "failed",
        PreflightState::Ended => "ended",
    };
    let complaints = seen.complaints.join("; ");
    output::facts(&[
        ("desktop", Some(seen.desktop.clone())),
        (
            "tried on",
            Some(format!(
                "{}@{} ({})",
                seen.image, seen.version_number, seen.version
            )),
        ),
        ("outcome", Some(format!("{state}: {}", seen.says))),
        ("agent", seen.agent.clone()),
        ("complaints", (!complaints.is_empty()).then_some(complaints)),
        ("boot", seen.boot.map(|boot| boot.line())),
    ])
}
