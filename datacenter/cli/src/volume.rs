//! `splice desktop-state`: what the datacenter keeps of desktops' volumes, and who may write them.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use datacenter_api::units::{format_duration, format_size, parse_duration};
use datacenter_api::{
    BreakLeaseRequest, ExportRequest, OperationResult, ReasonRequest, RollBackRequest,
    SnapshotCause, StatePolicy, StatePolicyRequest, Volume, VolumeFork, VolumeKind, VolumeLease,
    VolumeSnapshot, VolumeState,
};

use crate::config::Context;
use crate::failure::Failure;
use crate::moves::{self, MoveArguments};
use crate::version::{Format, started};
use crate::{output, progress};

/// Why something is done.
#[derive(Args)]
pub struct Reason {
    /// Who does it and why; it is kept in the audit log.
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

impl Reason {
    /// Its text.
    pub fn into_text(self) -> String {
        self.reason
    }
}

impl From<Reason> for ReasonRequest {
    fn from(reason: Reason) -> Self {
        Self {
            reason: reason.reason,
        }
    }
}

/// What can be done with what is kept of desktops.
#[derive(Subcommand)]
pub enum Verb {
    /// List volumes: who holds each, how far behind the datacenter is, and what the loss of the branch would cost.
    List {
        /// Only those of this branch.
        #[arg(long)]
        branch: Option<String>,
    },
    /// Show a volume with its snapshots, forks and ended leases.
    Show {
        /// The volume: its id, or 8 or more digits that begin it.
        volume: String,
    },
    /// Cut a snapshot of what the datacenter has of a volume. It stays until somebody deletes it.
    Snapshot {
        /// The volume.
        volume: String,
    },
    /// Delete a snapshot.
    DropSnapshot {
        /// The volume.
        volume: String,
        /// The snapshot's number.
        number: u64,
        #[command(flatten)]
        reason: Reason,
    },
    /// Write a snapshot's disk to a new file of the datacenter's host.
    #[command(
        after_help = "Example:\n  splice desktop-state export 5f0c91aa 12 /srv/images/alice.qcow2 --format qcow2"
    )]
    Export {
        /// The volume.
        volume: String,
        /// The snapshot's number.
        number: u64,
        /// The file; it must not exist.
        file: PathBuf,
        /// What it becomes.
        #[arg(long, value_enum, default_value_t = Format::Raw)]
        format: Format,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
    /// Make a snapshot the state that a volume goes on behind at its next start. The state before stays as a snapshot.
    #[command(
        after_help = "Example:\n  splice desktop-state roll-back 5f0c91aa --snapshot 12 --reason 'carol: alice asked for monday' --force"
    )]
    RollBack {
        /// The volume, a system or a user volume.
        volume: String,
        /// The snapshot's number.
        #[arg(long, value_name = "N")]
        snapshot: u64,
        #[command(flatten)]
        reason: Reason,
        /// Also while a branch may run the desktop: it is stopped, and all that it wrote becomes a fork.
        #[arg(long)]
        force: bool,
    },
    /// Break a lease: what its branch brings from now on becomes a fork.
    #[command(
        after_help = "Example:\n  splice desktop-state break-lease 5f0c91aa --reason 'carol: the branch burnt down' --force --home boston"
    )]
    BreakLease {
        /// The volume.
        volume: String,
        #[command(flatten)]
        reason: Reason,
        /// Also while the branch may still run the desktop.
        #[arg(long)]
        force: bool,
        /// The branch that may ask for the volume from now on [default: the same].
        #[arg(long, value_name = "BRANCH")]
        home: Option<String>,
    },
    /// Writes that arrived under leases that had ended.
    #[command(subcommand)]
    Fork(ForkVerb),
    /// Delete a volume that nobody holds, with its snapshots.
    Delete {
        /// The volume.
        volume: String,
        #[command(flatten)]
        reason: Reason,
    },
    /// Move a desktop to another branch: what it wrote is sent, its leases are handed over, and what it stands on is fetched as it is read.
    #[command(
        after_help = "Examples:\n  splice desktop-state move alice --from new-york --to boston --reason 'carol: alice moves'\n  splice desktop-state move alice --from new-york --to boston --break-lease --reason 'carol: new-york burnt down'"
    )]
    Move(MoveArguments),
    /// List moves of desktops, and what those wait for that go on.
    Moves,
    /// Take a move back, as long as the new branch has nothing of the desktop.
    CancelMove {
        /// A volume of the desktop, as `moves` names the move.
        volume: String,
        #[command(flatten)]
        reason: Reason,
    },
    /// Show or set how a pool's volumes are leased, and which snapshots of them are kept.
    Policy(PolicyArguments),
}

/// What can be done with forks.
#[derive(Subcommand)]
pub enum ForkVerb {
    /// List the forks of a volume, and the ended leases of which some may still come.
    List {
        /// The volume.
        volume: String,
    },
    /// Make a fork the volume's state. The state before stays as a snapshot.
    Restore {
        /// The volume.
        volume: String,
        /// The fork's name.
        fork: String,
        #[command(flatten)]
        reason: Reason,
    },
    /// Discard a fork.
    Discard {
        /// The volume.
        volume: String,
        /// The fork's name.
        fork: String,
        #[command(flatten)]
        reason: Reason,
    },
    /// Expect nothing more of an ended lease: what its branch still brings is refused.
    Settle {
        /// The volume.
        volume: String,
        /// The lease's generation.
        generation: u64,
        #[command(flatten)]
        reason: Reason,
    },
}

/// What a policy is told.
#[derive(Args)]
pub struct PolicyArguments {
    /// The branch.
    branch: String,
    /// The pool.
    #[arg(long)]
    pool: String,
    /// From a lease's signature to its expiry.
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    lease: Option<u64>,
    /// How long a branch may run a desktop offline after that.
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    offline_grace: Option<u64>,
    /// At most one snapshot in so long; 0s: none by time.
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    every: Option<u64>,
    /// Whether one is cut when a user logs off.
    #[arg(long)]
    at_log_off: Option<bool>,
    /// So many of the newest snapshots are kept.
    #[arg(long, value_name = "N")]
    newest: Option<u32>,
    /// The newest of each of so many hours.
    #[arg(long, value_name = "N")]
    hourly: Option<u32>,
    /// The newest of each of so many days.
    #[arg(long, value_name = "N")]
    daily: Option<u32>,
    /// The newest of each of so many weeks.
    #[arg(long, value_name = "N")]
    weekly: Option<u32>,
}

fn seconds(text: &str) -> Result<u64, datacenter_api::units::UnitError> {
    parse_duration(text).map(|duration| duration.as_secs())
}

/// Does it.
pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let client = context.client()?;
    match verb {
        Verb::List { branch } => {
            let volumes = client.volumes(branch.as_deref()).await?;
            if context.json {
                return output::json(&volumes);
            }
            let rows: Vec<_> = volumes.iter().map(row).collect();
            output::table(HEADS, &rows, "no volumes yet")
        }
        Verb::Show { volume } => shown(context, &client.volume(&volume).await?),
        Verb::Snapshot { volume } => {
            let snapshot = client.snapshot_volume(&volume).await?;
            if context.json {
                return output::json(&snapshot);
            }
            output::table(SNAPSHOT_HEADS, &[snapshot_row(&snapshot)], "")
        }
        Verb::DropSnapshot {
            volume,
            number,
            reason,
        } => {
            let request = reason.into();
            client.drop_snapshot(&volume, number, &request).await?;
            output::text(&format!("snapshot {number} is deleted\n"))
        }
        Verb::Export {
            volume,
            number,
            file,
            format,
            no_wait,
        } => {
            let request = ExportRequest {
                path: crate::version::absolute(&file)?,
                format: format.name().to_owned(),
            };
            let operation = client.export_snapshot(&volume, number, &request).await?;
            if no_wait {
                return started(context, &operation);
            }
            let done = progress::follow(context, &client, operation).await?;
            if context.json {
                return output::json(&done);
            }
            match done.result {
                Some(OperationResult::Export(result)) => crate::version::exported(&result),
                _ => Ok(()),
            }
        }
        Verb::RollBack {
            volume,
            snapshot,
            reason,
            force,
        } => {
            let request = RollBackRequest {
                reason: reason.reason,
                force,
            };
            let state = client.roll_back(&volume, snapshot, &request).await?;
            shown(context, &state)
        }
        Verb::BreakLease {
            volume,
            reason,
            force,
            home,
        } => {
            let request = BreakLeaseRequest {
                reason: reason.reason,
                force,
                home,
            };
            shown(context, &client.break_lease(&volume, &request).await?)
        }
        Verb::Fork(verb) => forks(context, verb).await,
        Verb::Delete { volume, reason } => {
            client.delete_volume(&volume, &reason.into()).await?;
            output::text("the volume is deleted\n")
        }
        Verb::Move(arguments) => moves::run(context, arguments).await,
        Verb::Moves => moves::list(context).await,
        Verb::CancelMove { volume, reason } => moves::cancel(context, &volume, reason).await,
        Verb::Policy(arguments) => policy(context, arguments).await,
    }
}

async fn forks(context: &Context, verb: ForkVerb) -> Result<(), Failure> {
    let client = context.client()?;
    let state = match verb {
        ForkVerb::List { volume } => client.volume(&volume).await?,
        ForkVerb::Restore {
            volume,
            fork,
            reason,
        } => client.restore_fork(&volume, &fork, &reason.into()).await?,
        ForkVerb::Discard {
            volume,
            fork,
            reason,
        } => client.discard_fork(&volume, &fork, &reason.into()).await?,
        ForkVerb::Settle {
            volume,
            generation,
            reason,
        } => {
            let request = reason.into();
            client
                .settle_generation(&volume, generation, &request)
                .await?
        }
    };
    if context.json {
        return output::json(&state);
    }
    show_forks(&state)
}

async fn policy(context: &Context, arguments: PolicyArguments) -> Result<(), Failure> {
    let client = context.client()?;
    let request = StatePolicyRequest {
        lease_s: arguments.lease,
        offline_grace_s: arguments.offline_grace,
        snapshot_every_s: arguments.every,
        snapshot_at_log_off: arguments.at_log_off,
        keep_newest: arguments.newest,
        keep_hourly: arguments.hourly,
        keep_daily: arguments.daily,
        keep_weekly: arguments.weekly,
    };
    let (branch, pool) = (&arguments.branch, &arguments.pool);
    let policy = if request == StatePolicyRequest::default() {
        client.state_policy(branch, pool).await?
    } else {
        client.set_state_policy(branch, pool, &request).await?
    };
    if context.json {
        return output::json(&policy);
    }
    show_policy(&policy)
}

fn kind(volume: &Volume) -> &'static str {
    match volume.kind {
        VolumeKind::System => "system",
        VolumeKind::User => "user",
    }
}

const HEADS: &[&str] = &[
    "VOLUME",
    "DESKTOP",
    "KIND",
    "BRANCH",
    "LEASE",
    "LAG",
    "RPO",
    "SNAPSHOTS",
    "FORKS",
];

fn row(volume: &Volume) -> Vec<String> {
    let none = || "-".to_owned();
    let lease = volume.lease.as_ref();
    vec![
        volume.id.chars().take(12).collect(),
        volume.desktop.clone(),
        kind(volume).into(),
        volume.home.clone(),
        lease.map_or_else(none, |lease| lease.generation.to_string()),
        volume.lag_records.map_or_else(none, output::count),
        volume.rpo_s.map_or_else(none, format_duration),
        volume.snapshots.to_string(),
        volume.forks.to_string(),
    ]
}

fn show_lease(lease: &VolumeLease) -> String {
    format!(
        "{} under generation {}, renewal {}, until {}, offline until {}",
        lease.branch,
        lease.generation,
        lease.renewal,
        output::time(lease.expires_unix_s),
        output::time(lease.ends_unix_s)
    )
}

const SNAPSHOT_HEADS: &[&str] = &["SNAPSHOT", "SEALED", "CUT", "WHY", ""];

fn snapshot_row(snapshot: &VolumeSnapshot) -> Vec<String> {
    let cause = match snapshot.cause {
        SnapshotCause::Policy => "policy",
        SnapshotCause::LogOff => "log-off",
        SnapshotCause::Asked => "asked for",
        SnapshotCause::Frozen => "asked for, frozen",
    };
    let sealed = match snapshot.sealed_unix_s {
        0 => "as it began".to_owned(),
        at => output::time(at),
    };
    let pinned = if snapshot.pinned { "pinned" } else { "" };
    vec![
        snapshot.number.to_string(),
        sealed,
        output::time(snapshot.taken_unix_s),
        cause.into(),
        pinned.into(),
    ]
}

fn shown(context: &Context, state: &VolumeState) -> Result<(), Failure> {
    if context.json {
        return output::json(state);
    }
    let volume = &state.volume;
    output::facts(&[
        ("volume", Some(volume.id.clone())),
        (
            "desktop",
            Some(format!(
                "{} of pool {}, its {} volume",
                volume.desktop,
                volume.pool,
                kind(volume)
            )),
        ),
        ("branch", Some(volume.home.clone())),
        ("began with", volume.version.clone()),
        ("size", Some(format_size(volume.size_bytes))),
        ("held by", volume.lease.as_ref().map(show_lease)),
        ("written until", volume.applied_unix_s.map(output::time)),
        ("records behind", volume.lag_records.map(output::count)),
        ("loss of the branch", volume.rpo_s.map(format_duration)),
    ])?;
    output::text("\n")?;
    let rows: Vec<_> = state.snapshots.iter().map(snapshot_row).collect();
    output::table(SNAPSHOT_HEADS, &rows, "no snapshots")?;
    output::text("\n")?;
    show_forks(state)
}

fn fork_row(fork: &VolumeFork) -> Vec<String> {
    let state = if fork.whole { "whole" } else { "on its way" };
    vec![fork.name.clone(), state.into()]
}

fn show_forks(state: &VolumeState) -> Result<(), Failure> {
    let rows: Vec<_> = state.forks.iter().map(fork_row).collect();
    output::table(&["FORK", ""], &rows, "no forks")?;
    if state.ended.is_empty() {
        return Ok(());
    }
    output::text("\n")?;
    let rows: Vec<Vec<String>> = state
        .ended
        .iter()
        .map(|ended| {
            vec![
                ended.generation.to_string(),
                ended.branch.clone(),
                output::time(ended.ended_unix_s),
                ended.reason.clone(),
            ]
        })
        .collect();
    output::table(&["ENDED LEASE", "BRANCH", "WHEN", "WHY"], &rows, "")
}

fn show_policy(policy: &StatePolicy) -> Result<(), Failure> {
    let every = match policy.snapshot_every_s {
        0 => "not by time".to_owned(),
        every => format!("at most one in {}", format_duration(every)),
    };
    let at_log_off = if policy.snapshot_at_log_off {
        ", and at log-off"
    } else {
        ""
    };
    output::facts(&[
        ("leases", Some(format_duration(policy.lease_s))),
        (
            "offline after that",
            Some(format_duration(policy.offline_grace_s)),
        ),
        ("snapshots", Some(format!("{every}{at_log_off}"))),
        (
            "kept",
            Some(format!(
                "the newest {}, of {} hours, {} days, {} weeks the last",
                policy.keep_newest, policy.keep_hourly, policy.keep_daily, policy.keep_weekly
            )),
        ),
    ])
}
