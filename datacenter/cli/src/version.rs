//! `splice version`.

mod shown;

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use datacenter_api::units::format_size;
use datacenter_api::{
    ExportRequest, OperationResult, PinRequest, PublishRequest, UpdateRequest, VerifyMode,
    VersionRef,
};

use crate::config::Context;
use crate::failure::Failure;
use crate::{output, progress};
use shown::{deleted_row, packed, published, row, show, verified};
pub(crate) use shown::{exported, started};

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
        /// Those that were deleted and can be had back.
        #[arg(long)]
        deleted: bool,
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
    /// Delete a version that nobody uses.
    ///
    /// It is refused while pools run or pin it, desktops have it, it is pinned, an update from or to it is being encoded, or it is its
    /// image's latest; the refusal names who. It can be had back for a while, then its space comes back with a collection.
    #[command(after_help = "Example:\n  splice version delete debian@2")]
    Delete {
        /// IMAGE@NUMBER.
        version: VersionRef,
    },
    /// Have a deleted version back.
    #[command(after_help = "Example:\n  splice version undelete debian@2")]
    Undelete {
        /// IMAGE@NUMBER.
        version: VersionRef,
    },
    /// Forbid the deletion of a version.
    #[command(after_help = "Example:\n  splice version pin debian@2 --note 'the auditors want it'")]
    Pin {
        /// IMAGE (its latest) or IMAGE@NUMBER.
        version: VersionRef,
        /// Why, for people.
        #[arg(long)]
        note: Option<String>,
    },
    /// Allow the deletion of a version again.
    Unpin {
        /// IMAGE (its latest) or IMAGE@NUMBER.
        version: VersionRef,
    },
    /// Write a version's disk to a new file.
    ///
    /// The file is on the datacenter's host. It is written under another name, read back, compared with the version, and only then has
    /// its name.
    #[command(
        after_help = "Example:\n  splice version export debian@3 /srv/images/debian-3.qcow2 --format qcow2"
    )]
    Export {
        /// IMAGE (its latest) or IMAGE@NUMBER.
        version: VersionRef,
        /// The file; it must not exist.
        file: PathBuf,
        /// What it becomes.
        #[arg(long, value_enum, default_value_t = Format::Raw)]
        format: Format,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
}

/// A kind of disk file.
#[derive(Clone, Copy, ValueEnum)]
pub enum Format {
    /// The disk's bytes; zeros are holes.
    Raw,
    /// QEMU's format, not compressed.
    Qcow2,
}

impl Format {
    /// As the API calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
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
            let request = PublishRequest {
                path: absolute(&file)?,
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
        Verb::List {
            image,
            deleted: true,
        } => {
            let versions = client.deleted_versions(&image).await?;
            if context.json {
                return output::json(&versions);
            }
            let rows: Vec<_> = versions.iter().map(deleted_row).collect();
            let heads = &["VERSION", "DELETED", "UNTIL", "BY"];
            output::table(heads, &rows, "no deleted versions that can be had back")
        }
        Verb::List { image, .. } => {
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
        Verb::Delete { version } => {
            let deleted = client.delete_version(&version).await?;
            if context.json {
                return output::json(&deleted);
            }
            output::text(&format!(
                "{version} is deleted; until {} `splice version undelete {version}` has it back\n",
                output::time(deleted.purge_unix_s)
            ))
        }
        Verb::Undelete { version } => {
            let back = client.undelete_version(&version).await?;
            if context.json {
                return output::json(&back);
            }
            output::text(&format!("{version} is back\n"))
        }
        Verb::Pin { version, note } => {
            let pin = client.pin_version(&version, &PinRequest { note }).await?;
            if context.json {
                return output::json(&pin);
            }
            output::text(&format!("{version} is pinned\n"))
        }
        Verb::Unpin { version } => {
            client.unpin_version(&version).await?;
            if context.json {
                return output::json(&serde_json::json!({}));
            }
            output::text(&format!("{version} is not pinned any more\n"))
        }
        Verb::Export {
            version,
            file,
            format,
            no_wait,
        } => {
            let request = ExportRequest {
                path: absolute(&file)?,
                format: format.name().into(),
            };
            let operation = client.export(&version, &request).await?;
            if no_wait {
                return started(context, &operation);
            }
            let done = progress::follow(context, &client, operation).await?;
            if context.json {
                return output::json(&done);
            }
            match done.result {
                Some(OperationResult::Export(result)) => exported(&result),
                _ => Ok(()),
            }
        }
    }
}

/// A file's path as the datacenter's host is to understand it.
pub(crate) fn absolute(file: &std::path::Path) -> Result<String, Failure> {
    std::path::absolute(file)
        .ok()
        .and_then(|path| path.into_os_string().into_string().ok())
        .ok_or_else(|| Failure::usage(format!("{} is not a usable path", file.display())))
}
