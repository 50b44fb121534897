//! `splice version`.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use datacenter_api::units::format_size;
use datacenter_api::{
    Operation, OperationResult, ProfileSummary, PublishRequest, PublishResult, UpdateRequest,
    UpdateSummary, VerifyMode, VerifyResult, Version, VersionRef,
};

use crate::config::Context;
use crate::failure::Failure;
use crate::{output, progress};

/// What can be done with versions.
#[derive(Subcommand)]
pub enum Verb {
    /// Publish a disk file as an image's next version.
    ///
    /// The file is on the datacenter's host: it is read there, chunked, stored, read back and compared, signed, and only then
    /// visible. Interrupting this command does not stop the work; running it again reuses what is stored.
    #[command(after_help = "Examples:
  splice version publish debian /srv/images/debian-12.qcow2 --note 'January updates'
  splice version publish debian ./disk.raw --verify changed")]
    Publish {
        /// The image.
        image: String,
        /// The disk file: raw (sparse is well), qcow2, vhdx, vmdk, vdi, vhd, or a block device.
        file: PathBuf,
        /// A line for people.
        #[arg(long)]
        note: Option<String>,
        /// The file's format, instead of telling it from its content.
        #[arg(long)]
        format: Option<String>,
        /// Publish even if nothing changed.
        #[arg(long)]
        allow_same: bool,
        /// How much is read back and compared with the file before the version is visible.
        #[arg(long, value_enum, default_value_t = Verify::Full)]
        verify: Verify,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
    /// List an image's versions, newest first.
    List {
        /// The image.
        image: String,
    },
    /// Show a version.
    #[command(after_help = "Example:\n  splice version show debian@3")]
    Show {
        /// IMAGE (its latest) or IMAGE@NUMBER.
        version: VersionRef,
    },
    /// What a branch that has one version needs for another.
    #[command(after_help = "Example:\n  splice version diff debian@2 debian@3")]
    Diff {
        /// The version that is there.
        from: VersionRef,
        /// The version that is wanted.
        to: VersionRef,
    },
    /// Encode what a version has and an earlier one lacks, for branches that hold the earlier one.
    ///
    /// The datacenter does this by itself after each publish, for the version before, and when a branch asks. The operation ends at
    /// once if it is encoded already. `splice version diff` shows the figures without encoding anything.
    #[command(after_help = "Example:\n  splice version update debian@1 debian@3")]
    Update {
        /// The version that branches have.
        from: VersionRef,
        /// The version that they are to get.
        to: VersionRef,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
    /// Read every chunk of a version back and check it.
    Verify {
        /// IMAGE (its latest) or IMAGE@NUMBER.
        version: VersionRef,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
}

/// How much is read back.
#[derive(Clone, Copy, ValueEnum)]
pub enum Verify {
    /// All of it.
    Full,
    /// What the version before does not have.
    Changed,
}

/// Does it.
pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let client = context.client()?;
    match verb {
        Verb::Publish {
            image,
            file,
            note,
            format,
            allow_same,
            verify,
            no_wait,
        } => {
            let path = std::path::absolute(&file)
                .ok()
                .and_then(|path| path.into_os_string().into_string().ok())
                .ok_or_else(|| {
                    Failure::usage(format!("{} is not a usable path", file.display()))
                })?;
            let request = PublishRequest {
                path,
                format,
                note,
                allow_same,
                verify: match verify {
                    Verify::Full => VerifyMode::Full,
                    Verify::Changed => VerifyMode::Changed,
                },
            };
            let operation = client.publish(&image, &request).await?;
            if no_wait {
                return started(context, &operation);
            }
            let done = progress::follow(context, &client, operation).await?;
            if context.json {
                return output::json(&done);
            }
            match done.result {
                Some(OperationResult::Publish(result)) => {
                    published(&result, done.started_unix_s, done.finished_unix_s)
                }
                _ => Ok(()),
            }
        }
        Verb::List { image } => {
            let versions = client.versions(&image).await?;
            if context.json {
                return output::json(&versions);
            }
            let rows: Vec<_> = versions.iter().map(row).collect();
            let none =
                format!("no versions yet; publish one with `splice version publish {image} FILE`");
            output::table(
                &[
                    "VERSION",
                    "PUBLISHED",
                    "DISK",
                    "DATA",
                    "ADDED",
                    "OS",
                    "NOTE",
                ],
                &rows,
                &none,
            )
        }
        Verb::Show { version } => {
            let version = client.version(&version).await?;
            if context.json {
                return output::json(&version);
            }
            show(&version)
        }
        Verb::Diff { from, to } => {
            let diff = client.diff(&from, &to).await?;
            if context.json {
                return output::json(&diff);
            }
            output::facts(&[
                ("from", Some(diff.from)),
                ("to", Some(diff.to)),
                (
                    "changed leaves",
                    Some(format!(
                        "{} of {}",
                        output::count(diff.changed_leaves),
                        output::count(diff.total_leaves)
                    )),
                ),
                ("new chunks", Some(output::count(diff.new_chunks))),
                ("new bytes", Some(format_size(diff.new_bytes))),
                ("compressed", Some(format_size(diff.stored_bytes))),
                (
                    "update",
                    Some(diff.update.map_or("not encoded".into(), |u| packed(&u))),
                ),
            ])
        }
        Verb::Update { from, to, no_wait } => {
            let request = UpdateRequest {
                from: from.to_string(),
                to: to.to_string(),
            };
            let operation = client.update(&request).await?;
            if no_wait {
                return started(context, &operation);
            }
            let done = progress::follow(context, &client, operation).await?;
            if context.json {
                return output::json(&done);
            }
            match done.result {
                Some(OperationResult::Update(update)) => output::facts(&[
                    ("from", Some(update.from.clone())),
                    ("to", Some(update.to.clone())),
                    ("new chunks", Some(output::count(update.new_chunks))),
                    ("new bytes", Some(format_size(update.plain_bytes))),
                    ("batches", Some(output::count(update.batches))),
                    ("update", Some(packed(&update))),
                ]),
                _ => Ok(()),
            }
        }
        Verb::Verify { version, no_wait } => {
            let operation = client.verify(&version).await?;
            if no_wait {
                return started(context, &operation);
            }
            let done = progress::follow(context, &client, operation).await?;
            if context.json {
                output::json(&done)?;
            }
            match done.result {
                Some(OperationResult::Verify(result)) => verified(context, &result),
                _ => Ok(()),
            }
        }
    }
}

/// What an update costs on the line, and how far it is.
fn packed(update: &UpdateSummary) -> String {
    let size = format_size(update.packed_bytes);
    if !update.whole {
        return format!(
            "{size} so far, {} of {} batches encoded",
            update.encoded_batches, update.batches
        );
    }
    match update.plain_bytes {
        0 => size,
        plain => format!(
            "{size}, {:.1} % of the new bytes",
            update.packed_bytes as f64 * 100.0 / plain as f64
        ),
    }
}

fn started(context: &Context, operation: &Operation) -> Result<(), Failure> {
    if context.json {
        return output::json(operation);
    }
    let id = operation.id;
    output::text(&format!(
        "operation {id} is started; follow it with `splice operation wait {id}`\n"
    ))
}

fn published(
    result: &PublishResult,
    started_unix_s: u64,
    finished_unix_s: Option<u64>,
) -> Result<(), Failure> {
    let seconds = finished_unix_s.unwrap_or(started_unix_s) - started_unix_s;
    output::facts(&[
        (
            "published",
            Some(format!("{}@{}", result.image, result.number)),
        ),
        ("id", Some(result.version.clone())),
        (
            "disk",
            Some(format!(
                "{}, {} of it data",
                format_size(result.disk_bytes),
                format_size(result.data_bytes)
            )),
        ),
        (
            "chunks",
            Some(format!(
                "{} new, {} reused",
                output::count(result.new_chunks),
                output::count(result.known_chunks)
            )),
        ),
        ("stored", Some(format_size(result.stored_bytes))),
        ("compared", Some(format_size(result.verified_bytes))),
        ("system", result.os.clone()),
        ("kernel", result.kernel_path.clone()),
        ("note", result.boot_note.clone()),
        ("took", Some(format!("{seconds} s"))),
    ])
}

fn verified(context: &Context, result: &VerifyResult) -> Result<(), Failure> {
    if result.damaged_count > 0 {
        for item in &result.damaged {
            output::aside(format_args!(
                "{} at byte {}: {}",
                item.tree, item.disk_offset, item.reason
            ));
        }
        let message = format!(
            "{} is damaged in {} places",
            result.version, result.damaged_count
        );
        return Err(Failure::failed(message).help(
            "publish the same file again with --allow-same: what is damaged is stored anew",
        ));
    }
    if context.json {
        return Ok(());
    }
    output::text(&format!(
        "{} is intact: {} chunks, {} read back\n",
        result.version,
        output::count(result.chunks),
        format_size(result.bytes)
    ))
}

fn row(version: &Version) -> Vec<String> {
    vec![
        format!("{}@{}", version.image, version.number),
        output::time(version.created_unix_s),
        format_size(version.disk.size_bytes),
        format_size(version.data_bytes),
        format_size(version.stored_bytes),
        version.os.clone().unwrap_or("-".into()),
        version.note.clone().unwrap_or_default(),
    ]
}

fn show(version: &Version) -> Result<(), Failure> {
    let boot = version.boot.as_ref();
    let sizes = version.chunk_sizes;
    output::facts(&[
        (
            "version",
            Some(format!("{}@{}", version.image, version.number)),
        ),
        ("id", Some(version.id.clone())),
        ("parent", version.parent.clone()),
        ("published", Some(output::time(version.created_unix_s))),
        ("note", version.note.clone()),
        ("system", version.os.clone()),
        ("disk", Some(format_size(version.disk.size_bytes))),
        ("data", Some(format_size(version.data_bytes))),
        (
            "chunk sizes",
            Some(format!(
                "{} / {} / {}",
                format_size(sizes.min.into()),
                format_size(sizes.avg.into()),
                format_size(sizes.max.into())
            )),
        ),
        ("new chunks", Some(output::count(version.new_chunks))),
        ("stored", Some(format_size(version.stored_bytes))),
        ("manifest", Some(version.disk.root.clone())),
        (
            "kernel",
            boot.map(|b| format!("{} ({})", b.kernel_path, format_size(b.kernel.size_bytes))),
        ),
        (
            "initrd",
            boot.and_then(|b| b.initrd.as_ref())
                .map(|i| format_size(i.size_bytes)),
        ),
        ("root", boot.map(|b| b.root_argument.clone())),
        ("boot profile", version.profile.as_ref().map(profile)),
    ])?;
    let boots = version.profile.iter().flat_map(|p| &p.last_boots);
    let rows: Vec<_> = boots
        .map(|outcome| {
            vec![
                output::time(outcome.reported_unix_s),
                outcome.branch.clone(),
                outcome.boot.line(),
            ]
        })
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    output::table(&["BOOTED", "BRANCH", ""], &rows, "")
}

fn profile(profile: &ProfileSummary) -> String {
    let named = format!(
        "{} chunks, {}",
        output::count(profile.chunks),
        format_size(profile.bytes)
    );
    match (profile.counter, &profile.carried_from) {
        (0, _) => "none yet".into(),
        (counter, Some(from)) => format!("{counter}: {named}, carried over from {from}"),
        (counter, None) => format!(
            "{counter}: {named}, from {} of {} boots",
            profile.boots, profile.boots_reported
        ),
    }
}
