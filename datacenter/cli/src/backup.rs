//! `splice store backup`.

use std::path::PathBuf;

use clap::Args;
use datacenter_api::units::format_size;
use datacenter_api::{BackupRequest, BackupResult, OperationResult};

use crate::config::Context;
use crate::failure::Failure;
use crate::version::started;
use crate::{output, progress};

/// What a backup is told.
#[derive(Args)]
pub struct Arguments {
    /// The folder, on the datacenter's host; it is made if it does not exist. Best on another disk, or mounted from another machine. Or
    /// s3://BUCKET/FOLDER, with endpoint, region and key in the datacenter's secrets/s3.toml.
    folder: PathBuf,
    /// Read what is there already and compare it with what was written.
    #[arg(long)]
    verify: bool,
    /// Do not wait for the end.
    #[arg(long)]
    no_wait: bool,
}

/// Does it.
pub async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let client = context.client()?;
    // A place in a bucket is no path.
    let in_bucket = arguments
        .folder
        .to_str()
        .filter(|text| text.starts_with("s3://"));
    let path = match in_bucket {
        Some(_) => Ok(arguments.folder.clone()),
        None => std::path::absolute(&arguments.folder),
    };
    let folder = path
        .ok()
        .and_then(|path| path.into_os_string().into_string().ok())
        .ok_or_else(|| {
            Failure::usage(format!(
                "{} is not a usable path",
                arguments.folder.display()
            ))
        })?;
    let request = BackupRequest {
        folder,
        verify: arguments.verify,
    };
    let operation = client.backup(&request).await?;
    if arguments.no_wait {
        return started(context, &operation);
    }
    let done = progress::follow(context, &client, operation).await?;
    if context.json {
        return output::json(&done);
    }
    match done.result {
        Some(OperationResult::Backup(result)) => show(&result),
        _ => Ok(()),
    }
}

fn show(result: &BackupResult) -> Result<(), Failure> {
    output::facts(&[
        (
            "backup",
            Some(format!("{} of {}", result.number, result.folder)),
        ),
        (
            "packs",
            Some(format!(
                "{}, {} of them copied now ({})",
                output::count(result.packs),
                output::count(result.packs_copied),
                format_size(result.copied_bytes)
            )),
        ),
        ("catalog", Some(format_size(result.catalog_bytes))),
        ("in all", Some(format_size(result.bytes))),
    ])?;
    for warning in &result.warnings {
        output::aside(format_args!("note: {warning}"));
    }
    Ok(())
}
