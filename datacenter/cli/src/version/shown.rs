//! Versions and what was done with them, in words and tables.

use datacenter_api::units::format_size;
use datacenter_api::{
    DeletedVersion, ExportResult, Operation, ProfileSummary, PublishResult, UpdateSummary,
    VerifyResult, Version,
};

use crate::config::Context;
use crate::failure::Failure;
use crate::output;

pub(super) fn deleted_row(version: &DeletedVersion) -> Vec<String> {
    let by = match version.by_retention {
        true => "retention",
        false => "hand",
    };
    vec![
        format!("{}@{}", version.image, version.number),
        output::time(version.deleted_unix_s),
        output::time(version.purge_unix_s),
        by.into(),
    ]
}

/// What an update costs on the line, and how far it is.
pub(super) fn packed(update: &UpdateSummary) -> String {
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

pub(crate) fn started(context: &Context, operation: &Operation) -> Result<(), Failure> {
    if context.json {
        return output::json(operation);
    }
    let id = operation.id;
    output::text(&format!(
        "operation {id} is started; follow it with `splice operation wait {id}`\n"
    ))
}

pub(super) fn published(
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

pub(super) fn verified(context: &Context, result: &VerifyResult) -> Result<(), Failure> {
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

pub(super) fn row(version: &Version) -> Vec<String> {
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

pub(super) fn show(version: &Version) -> Result<(), Failure> {
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
        (
            "pinned",
            version.pinned.as_ref().map(|pin| {
                let since = output::time(pin.pinned_unix_s);
                match &pin.note {
                    Some(note) => format!("since {since}: {note}"),
                    None => format!("since {since}"),
                }
            }),
        ),
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

/// What an export made.
pub(crate) fn exported(result: &ExportResult) -> Result<(), Failure> {
    output::facts(&[
        ("exported", Some(result.version.clone())),
        ("file", Some(result.path.clone())),
        ("format", Some(result.format.clone())),
        (
            "disk",
            Some(format!(
                "{}, {} of it data",
                format_size(result.disk_bytes),
                format_size(result.data_bytes)
            )),
        ),
        ("compared", Some(format_size(result.verified_bytes))),
    ])
}
