//! `splice branch`.

use clap::{ArgAction, Subcommand};
use datacenter_api::policy::{DayPart, format_rate, parse_rate, parse_utc_offset};
use datacenter_api::units::{format_duration, format_size, parse_duration, parse_size};
use datacenter_api::{
    AssignRequest, Branch, BranchAhead, BranchKind, BranchPolicy, BranchState, Latencies,
    MachineType, PolicyRequest, Pool, StartMode, TokenRequest, VersionRef,
};

use crate::config::Context;
use crate::failure::Failure;
use crate::{laptop, output, ready};

/// What can be done with branches.
#[derive(Subcommand)]
pub enum Verb {
    /// Make a one-time join token for a branch server, and the branch if it is new.
    ///
    /// The token goes to standard output, alone. It is a secret until it is used, and cannot be shown again.
    #[command(
        after_help = "Example:\n  splice branch token new-york --site '5th Avenue' --expires 24h"
    )]
    Token {
        /// The branch's name.
        name: String,
        /// How long it may be used.
        #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_duration)]
        expires: std::time::Duration,
        /// Where the branch is, for people.
        #[arg(long)]
        site: Option<String>,
        /// Allow it for a branch that has joined: the server that joins with it replaces the one that is there.
        #[arg(long)]
        replace: bool,
        /// It is a laptop: desktops can be checked out to it.
        #[arg(long)]
        laptop: bool,
    },
    /// List the branches.
    List,
    /// Show a branch: pools, whether they boot with the WAN cut, cache, desktops.
    Show {
        /// The branch's name.
        name: String,
    },
    /// Set what a pool at a branch runs. Options left out keep what the pool has.
    #[command(after_help = "Examples:
  splice branch assign new-york --pool office --image debian
  splice branch assign new-york --pool office --image debian@3 --pin debian@2 --memory 2GiB --cpus 2
  splice branch assign new-york --pool finance --image windows --machine qemu --tpm
  splice branch assign new-york --pool staff --image debian --user-volume 16GiB
  splice branch assign new-york --pool kiosk --image debian --start resume")]
    Assign {
        /// The branch's name.
        name: String,
        /// The pool; it is made if it is not there.
        #[arg(long)]
        pool: String,
        /// The version that new desktops boot: IMAGE (its latest) or IMAGE@NUMBER.
        #[arg(long, value_name = "IMAGE[@N]")]
        image: VersionRef,
        /// Memory of a desktop [default: 1GiB].
        #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
        memory: Option<u32>,
        /// Virtual CPUs of a desktop [default: 1].
        #[arg(long, value_name = "COUNT")]
        cpus: Option<u32>,
        /// Keep this version whole at the branch too, so that going back needs no WAN; may be repeated.
        #[arg(long, value_name = "IMAGE[@N]")]
        pin: Vec<VersionRef>,
        /// Keep no other versions.
        #[arg(long, conflicts_with = "pin")]
        no_pin: bool,
        /// Fetch the whole version ahead of use (the default).
        #[arg(long, action = ArgAction::SetTrue, conflicts_with = "no_prestage")]
        prestage: bool,
        /// Fetch only what desktops read.
        #[arg(long)]
        no_prestage: bool,
        /// What runs its desktops: auto (splice-vmm where it can, else QEMU), splice or qemu [default: auto].
        #[arg(long, value_name = "TYPE")]
        machine: Option<MachineType>,
        /// Give its desktops a TPM 2.0 (QEMU, with Debian's package swtpm at the branch).
        #[arg(long, conflicts_with = "no_tpm")]
        tpm: bool,
        /// Give its desktops no TPM (the default).
        #[arg(long)]
        no_tpm: bool,
        /// Give each of its desktops a user volume of this size, which outlives a reset of the desktop's system.
        #[arg(long, value_name = "SIZE", value_parser = parse_memory, conflicts_with = "no_user_volume")]
        user_volume: Option<u32>,
        /// Give its desktops no user volume (the default). Desktops that have one keep theirs.
        #[arg(long)]
        no_user_volume: bool,
        /// Have the systems of its desktops begin anew at log-off, on the version that the pool runs then; user volumes stay.
        #[arg(long, conflicts_with = "persistent")]
        pooled: bool,
        /// Keep what is written to its desktops' systems (the default). A desktop whose system was kept keeps it until it is reset.
        #[arg(long)]
        persistent: bool,
        /// How its fresh desktops come to their log-in: boot, or resume: they go on from a desktop that has booted, in a second or two, where the
        /// branch can do that (splice-vmm, no TPM, no user volume), and boot where it cannot [default: boot].
        #[arg(long, value_name = "boot|resume")]
        start: Option<StartMode>,
        /// Follow this channel of the image; with `--image IMAGE` the pool runs the version that the channel is at.
        #[arg(long, value_name = "CHANNEL", conflicts_with = "no_channel")]
        channel: Option<String>,
        /// Follow no channel (the default).
        #[arg(long)]
        no_channel: bool,
    },
    /// Set what a branch may take of its line, and when. Options left out keep what the branch has.
    ///
    /// A guest that waits for its disk is held back by the link cap alone, never by the cap or the hours of fill.
    #[command(after_help = "Examples:
  splice branch set new-york --fill-cap 5Mbit --fill-hours 20:00-06:00 --utc-offset -05:00
  splice branch set new-york --link-cap 20Mbit
  splice branch set new-york --fill-cap none --fill-hours always")]
    Set {
        /// The branch's name.
        name: String,
        /// Most that either end of the link sends, in all, or `none`.
        #[arg(long, value_name = "RATE", value_parser = parse_rate)]
        link_cap: Option<u64>,
        /// Most that fill and write-back send together, or `none`.
        #[arg(long, value_name = "RATE", value_parser = parse_rate)]
        fill_cap: Option<u64>,
        /// When fill may run, by the branch's wall clock, or `always`.
        #[arg(long, value_name = "HH:MM-HH:MM", value_parser = parse_hours)]
        fill_hours: Option<String>,
        /// How far the branch's wall clock is ahead of UTC; it knows no summer time [default: +00:00].
        #[arg(long, value_name = "+HH:MM", allow_hyphen_values = true, value_parser = parse_offset)]
        utc_offset: Option<String>,
    },
    /// Remove a pool from a branch. Desktops that run go on.
    Unassign {
        /// The branch's name.
        name: String,
        /// The pool.
        #[arg(long)]
        pool: String,
    },
    /// Refuse a branch from now on: its certificate is no longer accepted.
    Revoke {
        /// The branch's name.
        name: String,
    },
    /// Have a lost branch or laptop destroy its keys at its next contact, and refuse it for everything else from now on.
    ///
    /// With --desktop only the keys of that desktop are destroyed, and the branch goes on. What was not written back is lost with them.
    #[command(
        after_help = "Example:\n  splice branch wipe alice-laptop --reason 'carol: left in a taxi'\n  splice branch wipes alice-laptop"
    )]
    Wipe(laptop::WipeArguments),
    /// List what a branch was ordered to destroy, and whether it did.
    Wipes {
        /// The branch's name.
        name: String,
    },
}

fn parse_hours(text: &str) -> Result<String, String> {
    if text != "always" {
        text.parse::<DayPart>().map_err(|e| e.to_string())?;
    }
    Ok(text.to_owned())
}

fn parse_offset(text: &str) -> Result<String, String> {
    parse_utc_offset(text).map_err(|e| e.to_string())?;
    Ok(text.to_owned())
}

/// A size in whole MiB.
fn parse_memory(text: &str) -> Result<u32, String> {
    let bytes = parse_size(text).map_err(|e| e.to_string())?;
    if bytes == 0 || bytes % (1 << 20) != 0 {
        return Err(format!(
            "{text:?} is not a whole number of MiB; write it like 1024MiB or 2GiB"
        ));
    }
    u32::try_from(bytes >> 20).map_err(|_| format!("{text:?} is too much"))
}

/// Does it.
pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let client = context.client()?;
    match verb {
        Verb::Token {
            name,
            expires,
            site,
            replace,
            laptop,
        } => {
            let request = TokenRequest {
                expires_s: Some(expires.as_secs()),
                site,
                replace,
                laptop,
            };
            let token = client.join_token(&name, &request).await?;
            if context.json {
                return output::json(&token);
            }
            output::aside(format_args!(
                "for one server, until {}; at the branch: splice-branch join TOKEN",
                output::time(token.expires_unix_s)
            ));
            output::text(&format!("{}\n", token.token))
        }
        Verb::List => {
            let branches = client.branches().await?;
            if context.json {
                return output::json(&branches);
            }
            let rows: Vec<_> = branches.iter().map(row).collect();
            output::table(
                &[
                    "NAME", "STATE", "LINK", "POOLS", "DESKTOPS", "CACHE", "SITE",
                ],
                &rows,
                "no branches yet; invite one with `splice branch token NAME`",
            )
        }
        Verb::Show { name } => {
            let branch = client.branch(&name).await?;
            if context.json {
                return output::json(&branch);
            }
            show(&branch)
        }
        Verb::Assign {
            name,
            pool,
            image,
            memory,
            cpus,
            pin,
            no_pin,
            prestage,
            no_prestage,
            machine,
            tpm,
            no_tpm,
            user_volume,
            no_user_volume,
            pooled,
            persistent,
            start,
            channel,
            no_channel,
        } => {
            let pins =
                (no_pin || !pin.is_empty()).then(|| pin.iter().map(ToString::to_string).collect());
            let request = AssignRequest {
                version: image.to_string(),
                pinned: pins,
                memory_mib: memory,
                vcpus: cpus,
                prestage: (prestage || no_prestage).then_some(prestage),
                machine,
                tpm: (tpm || no_tpm).then_some(tpm),
                user_volume_mib: if no_user_volume { Some(0) } else { user_volume },
                pooled: (pooled || persistent).then_some(pooled),
                start,
                channel: if no_channel {
                    Some(String::new())
                } else {
                    channel
                },
            };
            let pool = client.assign(&name, &pool, &request).await?;
            if context.json {
                return output::json(&pool);
            }
            output::text(&format!(
                "pool {} at {name} runs {} from now on\n",
                pool.name, pool.version
            ))
        }
        Verb::Set {
            name,
            link_cap,
            fill_cap,
            fill_hours,
            utc_offset,
        } => {
            let request = PolicyRequest {
                link_cap_bits_per_s: link_cap,
                fill_cap_bits_per_s: fill_cap,
                fill_hours,
                utc_offset,
            };
            let policy = client.set_policy(&name, &request).await?;
            if context.json {
                return output::json(&policy);
            }
            output::text(&format!("{name}: {}\n", policy_line(&policy)))
        }
        Verb::Unassign { name, pool } => {
            client.remove_pool(&name, &pool).await?;
            if context.json {
                return output::json(&serde_json::json!({ "removed": pool }));
            }
            output::text(&format!("pool {pool} is removed from {name}\n"))
        }
        Verb::Revoke { name } => {
            let branch = client.revoke(&name).await?;
            if context.json {
                return output::json(&branch);
            }
            output::text(&format!("branch {name} is revoked\n"))
        }
        Verb::Wipe(arguments) => laptop::wipe(context, arguments).await,
        Verb::Wipes { name } => laptop::wipes(context, &name).await,
    }
}

fn policy_line(policy: &BranchPolicy) -> String {
    let cap = |cap: Option<u64>| cap.map_or("no cap".to_owned(), format_rate);
    let hours = match &policy.fill_hours {
        Some(hours) => format!("{hours} UTC{}", policy.utc_offset),
        None => "always".to_owned(),
    };
    format!(
        "link {}, fill {}, fill {hours}",
        cap(policy.link_cap_bits_per_s),
        cap(policy.fill_cap_bits_per_s)
    )
}

/// Half, 99 of 100, all.
fn latencies(times: &Latencies) -> Option<String> {
    (times.count > 0).then(|| {
        format!(
            "{:.0} ms half of the time, {:.0} ms 99 %, at most {:.0} ms ({} times)",
            times.p50_ms,
            times.p99_ms,
            times.max_ms,
            output::count(times.count)
        )
    })
}

fn state(branch: &Branch) -> &'static str {
    match branch.state {
        BranchState::Invited => "invited",
        BranchState::Joined => "joined",
        BranchState::Revoked => "revoked",
    }
}

fn ahead(ahead: &BranchAhead) -> String {
    let until = match ahead.lost_pools.is_empty() {
        true => "it is assigned a pool".to_owned(),
        false => format!(
            "these pools are assigned or removed: {}",
            ahead.lost_pools.join(", ")
        ),
    };
    format!(
        "it follows assignment {}, which the datacenter forgot in a restore, until {until}",
        ahead.counter
    )
}

fn link(branch: &Branch) -> &'static str {
    match (branch.state, branch.online) {
        (_, true) => "up",
        (BranchState::Joined, false) => "down",
        _ => "-",
    }
}

/// Its assignment, and the one that it follows if that is another.
fn assignment(branch: &Branch) -> String {
    let counter = branch.assignment_counter;
    let followed = branch.status.as_ref().and_then(|s| s.assignment_counter);
    match followed.filter(|followed| *followed != counter) {
        Some(followed) => format!("{counter}; it follows {followed}"),
        None => counter.to_string(),
    }
}

fn row(branch: &Branch) -> Vec<String> {
    let status = branch.status.as_ref();
    vec![
        branch.name.clone(),
        state(branch).into(),
        link(branch).into(),
        branch.pools.len().to_string(),
        status.map_or("-".into(), |s| s.desktops.len().to_string()),
        status.map_or("-".into(), |s| format_size(s.cache.bytes)),
        branch.site.clone().unwrap_or_default(),
    ]
}

fn pool_row(pool: &Pool) -> Vec<String> {
    vec![
        pool.name.clone(),
        pool.version.clone(),
        format_size(u64::from(pool.memory_mib) << 20),
        pool.vcpus.to_string(),
        if pool.prestage { "ahead" } else { "on demand" }.into(),
        match (pool.machine.name(), pool.tpm) {
            (machine, true) => format!("{machine}, TPM"),
            (machine, false) => machine.into(),
        },
        match pool.user_volume_mib {
            0 => "-".into(),
            mib => format_size(u64::from(mib) << 20),
        },
        if pool.pooled { "anew" } else { "kept" }.into(),
        pool.start.name().into(),
        pool.pinned.join(" "),
    ]
}

fn show(branch: &Branch) -> Result<(), Failure> {
    let status = branch.status.as_ref();
    let rtt = status.and_then(|s| s.link.rtt_ms);
    output::facts(&[
        ("branch", Some(branch.name.clone())),
        ("id", Some(branch.id.clone())),
        ("site", branch.site.clone()),
        (
            "kind",
            (branch.kind == BranchKind::Laptop).then(|| "laptop".into()),
        ),
        ("state", Some(state(branch).into())),
        ("joined", branch.joined_unix_s.map(output::time)),
        ("revoked", branch.revoked_unix_s.map(output::time)),
        (
            "certificate until",
            branch.certificate_expires_unix_s.map(output::time),
        ),
        (
            "link",
            Some(match &branch.remote_address {
                Some(remote) => format!("up, from {remote}"),
                None => link(branch).into(),
            }),
        ),
        ("round trip", rtt.map(|ms| format!("{ms:.1} ms"))),
        ("ahead", branch.ahead.as_ref().map(ahead)),
        ("assignment", Some(assignment(branch))),
        (
            "cache",
            status.map(|s| {
                format!(
                    "{} of {}, {} chunks",
                    format_size(s.cache.bytes),
                    format_size(s.cache.capacity_bytes),
                    output::count(s.cache.chunks)
                )
            }),
        ),
        (
            "received",
            status.map(|s| format_size(s.counters.received_bytes)),
        ),
        ("caps and hours", Some(policy_line(&branch.policy))),
        (
            "guests waited",
            status.and_then(|s| latencies(&s.counters.demand_wait)),
        ),
        (
            "boot requests took",
            status.and_then(|s| latencies(&s.counters.boot_fetch)),
        ),
        (
            "fill requests took",
            status.and_then(|s| latencies(&s.counters.fill_fetch)),
        ),
        (
            "damaged chunks",
            status
                .filter(|s| s.cache.quarantined_total > 0)
                .map(|s| output::count(s.cache.quarantined_total)),
        ),
        (
            "by updates",
            status.map(|s| format_size(s.counters.update_bytes)),
        ),
        ("reported", status.map(|s| output::time(s.reported_unix_s))),
    ])?;
    output::text("\n")?;
    let pools: Vec<_> = branch.pools.iter().map(pool_row).collect();
    output::table(
        &[
            "POOL", "VERSION", "MEMORY", "CPUS", "FETCH", "MACHINE", "USERS", "SYSTEM", "START",
            "PINNED",
        ],
        &pools,
        "no pools; assign one with `splice branch assign`",
    )?;
    let Some(status) = status else { return Ok(()) };
    match &status.readiness {
        Some(readiness) => {
            output::text("\n")?;
            ready::show(readiness)?;
        }
        None => output::text(
            "\nwhether it boots with the WAN cut is not told: its splice-branch is older\n",
        )?,
    }
    let versions: Vec<_> = status
        .versions
        .iter()
        .map(|v| {
            vec![
                v.version.chars().take(12).collect(),
                format!(
                    "{} of {}",
                    format_size(v.resident_bytes),
                    format_size(v.total_bytes)
                ),
                if v.complete { "yes" } else { "no" }.into(),
            ]
        })
        .collect();
    if !versions.is_empty() {
        output::text("\n")?;
        output::table(&["VERSION ID", "HELD", "WHOLE"], &versions, "")?;
    }
    let desktops: Vec<_> = status
        .desktops
        .iter()
        .map(|d| {
            vec![
                d.id.clone(),
                d.pool.clone(),
                d.state.clone(),
                format_duration(status.reported_unix_s.saturating_sub(d.started_unix_s)),
            ]
        })
        .collect();
    if !desktops.is_empty() {
        output::text("\n")?;
        output::table(&["DESKTOP", "POOL", "STATE", "UP"], &desktops, "")?;
    }
    Ok(())
}
