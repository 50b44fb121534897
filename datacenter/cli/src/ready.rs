//! `splice branch-ready`, `branch-cache` and `branch-templates`: what a branch can do with its line cut, and what it holds for that and for quick starts.

use branch_api::{CacheReport, Client, Prepare};
use clap::Args;
use datacenter_api::Readiness;
use datacenter_api::units::format_size;

use crate::config::Context;
use crate::desktop::Socket;
use crate::failure::Failure;
use crate::output;

/// `splice branch-ready`
#[derive(Args)]
#[command(after_help = "Examples:
  splice branch-ready
  splice branch-ready --prepare
  splice branch-ready --pool office --prepare --json

Fetching goes on in the background, as fill: in the branch's hours and caps, and after what guests wait for.")]
pub struct ReadyArguments {
    #[command(flatten)]
    socket: Socket,
    /// Only this pool.
    #[arg(long)]
    pool: Option<String>,
    /// Begin to fetch the chunks that are missing to boot with the WAN cut, and no others.
    #[arg(long)]
    prepare: bool,
}

/// `splice branch-cache`
#[derive(Args)]
#[command(after_help = "Examples:
  splice branch-cache
  splice branch-cache --branch-socket /var/lib/splice-branch/branch.sock --json

What is loose goes first, then what is spare, the coldest first. What is whole, boot or open is pinned: it goes only for a guest that waits,
in that order. While the link is down only what is loose goes.")]
pub struct CacheArguments {
    #[command(flatten)]
    socket: Socket,
}

/// `splice branch-templates`
#[derive(Args)]
#[command(after_help = "Examples:
  splice branch-templates
  splice branch-templates --branch-socket /var/lib/splice-branch/branch.sock --json

Pools that are assigned with --start resume have one, made by the branch of a desktop that it boots for that. Desktops boot while it is missing.")]
pub struct TemplateArguments {
    #[command(flatten)]
    socket: Socket,
}

/// Shows whether pools boot with the WAN cut, and begins to fetch what they lack for it.
pub async fn run(context: &Context, arguments: ReadyArguments) -> Result<(), Failure> {
    let client = Client::new(arguments.socket.path())?;
    let begun = if arguments.prepare {
        let pool = arguments.pool.clone();
        Some(client.prepare(&Prepare { pool }).await?)
    } else {
        None
    };
    let readiness = client.status().await?.readiness;
    let Some(mut readiness) = readiness else {
        return Err(Failure::failed(
            "this branch server does not tell whether it is ready; upgrade splice-branch",
        ));
    };
    if let Some(pool) = &arguments.pool {
        readiness.pools.retain(|told| told.pool == *pool);
        if readiness.pools.is_empty() {
            let message = format!("there is no pool {pool:?} at this branch");
            return Err(Failure::not_found(message).help("splice branch-ready shows its pools"));
        }
    }
    if context.json {
        return output::json(&readiness);
    }
    show(&readiness)?;
    if let Some(begun) = begun {
        let chunks: u64 = begun.pools.iter().map(|p| p.missing_chunks).sum();
        let bytes: u64 = begun.pools.iter().map(|p| p.missing_bytes).sum();
        let when = match (begun.connected, begun.fill_hour) {
            (false, _) => "when the link is up",
            (true, false) => "in the branch's hours of fill",
            (true, true) => "now",
        };
        output::aside(format_args!(
            "{} chunks, {} are fetched {when}",
            output::count(chunks),
            format_size(bytes)
        ));
    }
    Ok(())
}

/// A branch's readiness: for how long, then pool by pool.
pub fn show(readiness: &Readiness) -> Result<(), Failure> {
    output::facts(&[
        (
            "without the datacenter, desktops start until",
            readiness.power_on_until_unix_s.map(output::time),
        ),
        (
            "and the branch may come back until",
            readiness.certificate_until_unix_s.map(output::time),
        ),
        (
            "free for what they write",
            readiness.overlay_free_bytes.map(format_size),
        ),
    ])?;
    let rows: Vec<Vec<String>> = readiness
        .pools
        .iter()
        .map(|pool| {
            vec![
                pool.pool.clone(),
                pool.version_name(),
                pool.boots.name().into(),
                pool.missing(),
                pool.overlay_space(),
                pool.reason.clone(),
            ]
        })
        .collect();
    output::table(
        &["POOL", "VERSION", "WAN CUT", "MISSING", "ROOM FOR", "WHY"],
        &rows,
        "no pools",
    )
}

/// Shows what the cache holds, by pool and by rank.
pub async fn cache(context: &Context, arguments: CacheArguments) -> Result<(), Failure> {
    let report = Client::new(arguments.socket.path())?.cache().await?;
    if context.json {
        return output::json(&report);
    }
    show_cache(&report)
}

fn show_cache(report: &CacheReport) -> Result<(), Failure> {
    output::facts(&[
        (
            "cache",
            Some(format!(
                "{} of {}",
                format_size(report.bytes),
                format_size(report.capacity_bytes)
            )),
        ),
        (
            "link",
            Some(if report.connected { "up" } else { "down" }.into()),
        ),
    ])?;
    output::text("\n")?;
    let pools: Vec<Vec<String>> = report
        .pools
        .iter()
        .map(|pool| {
            vec![
                pool.pool.clone(),
                pool.versions.join(" "),
                format!(
                    "{} of {}",
                    format_size(pool.resident_bytes),
                    format_size(pool.total_bytes)
                ),
                format_size(pool.pinned_bytes),
                format_size(pool.boot_bytes),
                format_size(pool.evictable_bytes),
            ]
        })
        .collect();
    output::table(
        &[
            "POOL",
            "VERSIONS",
            "RESIDENT",
            "PINNED",
            "FOR BOOTS",
            "EVICTABLE",
        ],
        &pools,
        "no pools",
    )?;
    output::text("\n")?;
    let ranks: Vec<Vec<String>> = report
        .ranks
        .iter()
        .map(|rank| {
            vec![
                rank.rank.clone(),
                output::count(rank.chunks),
                format_size(rank.bytes),
                if rank.evictable { "yes" } else { "no" }.into(),
            ]
        })
        .collect();
    output::table(&["RANK", "CHUNKS", "BYTES", "GOES FOR FILL"], &ranks, "")
}

/// Shows what pools' fresh desktops go on from.
pub async fn templates(context: &Context, arguments: TemplateArguments) -> Result<(), Failure> {
    let list = Client::new(arguments.socket.path())?.templates().await?;
    if context.json {
        return output::json(&list);
    }
    let rows: Vec<Vec<String>> = list
        .templates
        .iter()
        .map(|template| {
            let version = match template.version_number {
                0 => template.version.chars().take(12).collect(),
                number => format!("{}@{number}", template.image),
            };
            let memory = if template.in_memory { "yes" } else { "-" };
            vec![
                template.pool.clone(),
                version,
                template.state.name().into(),
                template.bytes.map_or_else(|| "-".into(), format_size),
                memory.into(),
                template.why.clone().unwrap_or_default(),
            ]
        })
        .collect();
    output::table(
        &[
            "POOL",
            "VERSION",
            "TEMPLATE",
            "SIZE",
            "IN MEMORY",
            "WHY NOT",
        ],
        &rows,
        "no pool is assigned with --start resume",
    )
}
