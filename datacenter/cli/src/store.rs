//! `splice store`.

use clap::Subcommand;
use datacenter_api::units::{format_size, parse_size};
use datacenter_api::{
    CollectRequest, CollectResult, OperationResult, ScrubRequest, ScrubResult, StoreReport,
};

use crate::config::Context;
use crate::failure::Failure;
use crate::version::started;
use crate::{backup, output, progress};

/// What can be done with the chunk store.
#[derive(Subcommand)]
pub enum Verb {
    /// Show what the store holds, and what the last collection and the scrub did.
    Stats,
    /// Remove what no version refers to.
    ///
    /// The datacenter does this by itself, daily unless configured otherwise. What nothing refers to is condemned first and erased by a
    /// collection a day later; then packs of which little is wanted are rewritten. Publishing and fetching go on meanwhile.
    #[command(after_help = "Examples:
  splice store gc --dry-run
  splice store gc --json")]
    Gc {
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
        /// Go on although collections are halted, because somebody has looked into the reason.
        #[arg(long)]
        resume: bool,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
    /// Read everything again and prove it.
    ///
    /// The datacenter does this all the time at a gentle pace. What is damaged is asked back from branches that hold it; publishing the same
    /// disk again stores it anew too. Fails if damage is left.
    #[command(after_help = "Example:\n  splice store scrub --rate 50MiB")]
    Scrub {
        /// Pace in bytes a second [default: as fast as the disk gives].
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        rate: Option<u64>,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
    /// Back up the datacenter into a folder of its host, while it works.
    ///
    /// Realm, catalog and packs are copied so that they fit together; publishing and fetching go on. Packs that are in the folder already are
    /// not copied again. A backup that is interrupted leaves the one before as it was; running it again goes on. The keys stay sealed, and the
    /// passphrase that opens them is never copied: keep one elsewhere, nothing can be restored without it.
    #[command(after_help = "Examples:
  splice store backup /mnt/backup/splice
  splice store backup /mnt/backup/splice --verify
  splice-datacenter restore /mnt/backup/splice --data /var/lib/splice --passphrase-file /media/usb/passphrase")]
    Backup(backup::Arguments),
}

/// Does it.
pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let client = context.client()?;
    match verb {
        Verb::Backup(arguments) => backup::run(context, arguments).await,
        Verb::Stats => {
            let report = client.store().await?;
            if context.json {
                return output::json(&report);
            }
            stats(&report)
        }
        Verb::Gc {
            dry_run,
            resume,
            no_wait,
        } => {
            let request = CollectRequest { dry_run, resume };
            let operation = client.collect(&request).await?;
            if no_wait {
                return started(context, &operation);
            }
            let done = progress::follow(context, &client, operation).await?;
            if context.json {
                return output::json(&done);
            }
            match done.result {
                Some(OperationResult::Collect(result)) => collected(&result),
                _ => Ok(()),
            }
        }
        Verb::Scrub { rate, no_wait } => {
            let request = ScrubRequest {
                rate_bytes_per_s: rate,
            };
            let operation = client.scrub(&request).await?;
            if no_wait {
                return started(context, &operation);
            }
            let done = progress::follow(context, &client, operation).await?;
            if context.json {
                output::json(&done)?;
            }
            match done.result {
                Some(OperationResult::Scrub(result)) => scrubbed(context, &result),
                _ => Ok(()),
            }
        }
    }
}

fn stats(report: &StoreReport) -> Result<(), Failure> {
    let scrub = &report.scrub;
    let last = report.last_collection.as_ref();
    output::facts(&[
        (
            "packs",
            Some(format!(
                "{}, {}",
                output::count(report.packs),
                format_size(report.stored_bytes)
            )),
        ),
        (
            "in them",
            Some(format!(
                "{} chunks, {} manifest nodes, {} plain",
                output::count(report.chunks),
                output::count(report.nodes),
                format_size(report.plain_bytes)
            )),
        ),
        ("free", Some(format_size(report.free_bytes))),
        (
            "deleted versions",
            Some(format!("{} can be had back", report.deleted_versions)),
        ),
        ("last collection", report.collected_unix_s.map(output::time)),
        (
            "gave back",
            last.map(|result| format_size(result.freed_bytes)),
        ),
        (
            "unwanted then",
            last.map(|result| {
                format!(
                    "{} condemned, {} dead in packs",
                    format_size(result.condemned_bytes + result.waiting_bytes),
                    format_size(result.dead_bytes)
                )
            }),
        ),
        ("halted", report.halted.clone()),
        (
            "scrub",
            Some(match scrub.rate_bytes_per_s {
                0 => "when asked for".into(),
                rate => format!(
                    "{} a second, {}",
                    format_size(rate),
                    match &scrub.hours {
                        Some(hours) => format!("{hours} ({})", scrub.utc_offset),
                        None => "always".into(),
                    }
                ),
            }),
        ),
        (
            "read again",
            Some(match scrub.ended_unix_s {
                Some(ended) => format!("{} times, last {}", scrub.passes, output::time(ended)),
                None => "not yet".into(),
            }),
        ),
        ("damaged", Some(output::count(report.damaged))),
    ])
}

fn collected(result: &CollectResult) -> Result<(), Failure> {
    let records = |count: u64, bytes: u64| {
        Some(format!(
            "{} records, {}",
            output::count(count),
            format_size(bytes)
        ))
    };
    let some = |count: u64| (count > 0).then(|| output::count(count));
    output::facts(&[
        (
            "rehearsal",
            result.dry_run.then(|| "nothing was changed".into()),
        ),
        ("versions retired", some(result.retired_versions)),
        ("versions given up", some(result.purged_versions)),
        (
            "reachable",
            Some(format!(
                "{} chunks, {} manifest nodes",
                output::count(result.reachable_chunks),
                output::count(result.reachable_nodes)
            )),
        ),
        (
            "condemned",
            records(result.condemned, result.condemned_bytes),
        ),
        ("waiting", records(result.waiting, result.waiting_bytes)),
        ("erased", records(result.erased, result.erased_bytes)),
        ("revived", some(result.revived)),
        ("held by publishes", some(result.held)),
        ("damaged", some(result.damaged)),
        (
            "packs",
            Some(format!(
                "{} removed, {} rewritten ({} copied)",
                output::count(result.packs_removed),
                output::count(result.packs_rewritten),
                format_size(result.moved_bytes)
            )),
        ),
        ("packs damaged", some(result.packs_damaged)),
        ("given back", Some(format_size(result.freed_bytes))),
        ("left dead", Some(format_size(result.dead_bytes))),
        (
            "note",
            result
                .out_of_space
                .then(|| "rewriting ended early: the disk is full".into()),
        ),
    ])
}

fn scrubbed(context: &Context, result: &ScrubResult) -> Result<(), Failure> {
    if result.damaged > 0 {
        for item in &result.items {
            let shown = match item.versions.is_empty() {
                true => "shown by no version".into(),
                false => format!("shown by {}", item.versions.join(", ")),
            };
            output::aside(format_args!("{} {}: {shown}", item.kind, item.id));
        }
        let message = format!(
            "{} stored chunks or manifest nodes are damaged, which touches {}",
            output::count(result.damaged),
            match result.versions.is_empty() {
                true => "no version".into(),
                false => result.versions.join(", "),
            }
        );
        return Err(Failure::failed(message).help(
            "branches that hold them are asked; publish the same disks again with --allow-same to store them anew at once",
        ));
    }
    if context.json {
        return Ok(());
    }
    output::text(&format!(
        "the store is intact: {} packs, {} records, {} read again\n",
        output::count(result.packs),
        output::count(result.records),
        format_size(result.bytes)
    ))
}
