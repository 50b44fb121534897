//! `splice desktop-state move`: a desktop goes to another branch.

use std::time::Duration;

use clap::Args;
use datacenter_api::{Move, MoveRequest, MoveState, MoveVolume, VolumeKind};

use crate::config::Context;
use crate::failure::Failure;
use crate::output;
use crate::volume::Reason;

/// How often the datacenter is asked how far a move is.
const INTERVAL: Duration = Duration::from_secs(1);

/// What a move is told.
#[derive(Args)]
pub struct MoveArguments {
    /// The desktop's name at the branch where it is.
    desktop: String,
    /// That branch.
    #[arg(long, value_name = "BRANCH")]
    from: String,
    /// The branch that it comes to.
    #[arg(long, value_name = "BRANCH")]
    to: String,
    /// Its pool there [default: one of the same name].
    #[arg(long)]
    pool: Option<String>,
    #[command(flatten)]
    reason: Reason,
    /// Do not wait for the branch where it is: its leases are broken, and what it has not sent becomes a fork.
    #[arg(long)]
    break_lease: bool,
    /// Do not wait for the end.
    #[arg(long)]
    no_wait: bool,
}

/// Begins a move, and follows it.
pub async fn run(context: &Context, arguments: MoveArguments) -> Result<(), Failure> {
    let client = context.client()?;
    let request = MoveRequest {
        desktop: arguments.desktop,
        from: arguments.from,
        to: arguments.to,
        pool: arguments.pool,
        reason: arguments.reason.into_text(),
        break_lease: arguments.break_lease,
    };
    let mut seen = client.move_desktop(&request).await?;
    if arguments.no_wait {
        return shown(context, &seen);
    }
    let mut told = String::new();
    while seen.ended_unix_s.is_none() {
        let line = line(&seen);
        if line != told {
            output::aside(&line);
            told = line;
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            _ = tokio::signal::ctrl_c() => {
                return Err(Failure::failed("interrupted; the move goes on by itself").help(format!(
                    "`splice desktop-state moves` shows it, `splice desktop-state cancel-move {}` takes it back",
                    short(&seen.id)
                )));
            }
        }
        seen = client.move_of(&seen.id).await?;
    }
    shown(context, &seen)?;
    match seen.state {
        MoveState::Cancelled => Err(Failure::conflict("the move was taken back")),
        MoveState::Leaving | MoveState::Arriving | MoveState::Done => Ok(()),
    }
}

/// Lists moves.
pub async fn list(context: &Context) -> Result<(), Failure> {
    let moves = context.client()?.moves().await?;
    if context.json {
        return output::json(&moves);
    }
    let rows: Vec<Vec<String>> = moves.iter().map(row).collect();
    output::table(
        &["MOVE", "DESKTOP", "FROM", "TO", "STATE", "ASKED", ""],
        &rows,
        "no desktop was ever moved",
    )
}

/// Takes a move back.
pub async fn cancel(context: &Context, volume: &str, reason: Reason) -> Result<(), Failure> {
    let request = reason.into();
    let cancelled = context.client()?.cancel_move(volume, &request).await?;
    shown(context, &cancelled)
}

fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

fn state(seen: &Move) -> &'static str {
    match seen.state {
        MoveState::Leaving => "leaving",
        MoveState::Arriving => "arriving",
        MoveState::Done => "done",
        MoveState::Cancelled => "cancelled",
    }
}

fn lag(volume: &MoveVolume) -> Option<String> {
    let kind = match volume.kind {
        VolumeKind::System => "system",
        VolumeKind::User => "user",
    };
    let records = volume.lag_records.filter(|records| *records > 0)?;
    Some(format!("{kind} {} records behind", output::count(records)))
}

fn line(seen: &Move) -> String {
    let lags: Vec<String> = seen.volumes.iter().filter_map(lag).collect();
    let behind = if lags.is_empty() {
        String::new()
    } else {
        format!(" ({})", lags.join(", "))
    };
    format!("{}: {}{behind}", state(seen), seen.says)
}

fn row(seen: &Move) -> Vec<String> {
    vec![
        short(&seen.id),
        seen.desktop.clone(),
        seen.from.clone(),
        seen.to.clone(),
        state(seen).into(),
        output::time(seen.asked_unix_s),
        seen.says.clone(),
    ]
}

fn shown(context: &Context, seen: &Move) -> Result<(), Failure> {
    if context.json {
        return output::json(seen);
    }
    output::text(&format!(
        "{} from {} to {}: {}\n",
        seen.desktop,
        seen.from,
        seen.to,
        line(seen)
    ))
}
