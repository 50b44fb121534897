//! Export: a version's or snapshot's disk becomes a file of the datacenter's host again, raw (sparse) or qcow2.
//!
//! The file is written under another name beside its own, synced, read back through the same readers that a publish uses and compared with
//! the version chunk by chunk, and only then gets its name. Invariant: a file of the asked-for name is whole and compared, or not there
//! at all; nothing that exists is written over. A process that dies leaves the other name behind, which the next try writes anew.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datacenter_api::{
    ExportRequest, ExportResult, Operation, OperationKind, OperationResult, Phase, Problem,
    ProblemCode,
};
use dedup::manifest::ManifestError;
use dedup::{ExtentSource, LEAF_BYTES, Manifest};
use dedup_image::{ImageFormat, OpenOptions, QCOW2_CLUSTER_BYTES, Qcow2Layout};
use dedup_protocol::records::TreeRef;
use dedup_store::StoreError;

use crate::datacenter::Datacenter;
use crate::images::StoreNodes;
use crate::operations::Meter;
use crate::problem::{ManageError, describe, problem, store_problem};
use crate::publish::import::Imported;
use crate::publish::{PublishError, check};

/// Why nothing was exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The request itself.
    #[error(transparent)]
    Request(#[from] ManageError),
    /// The file must not or cannot be written.
    #[error("{}: {reason}", path.display())]
    Path {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The system refused.
    #[error("{}: {action}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was done to it.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A chunk of the version.
    #[error("a chunk of the version")]
    Store(#[from] StoreError),
    /// Its manifest.
    #[error("the version's manifest")]
    Manifest(#[from] ManifestError<StoreError>),
    /// What was written is not the version.
    #[error("the file was read back")]
    Check(#[source] Box<PublishError>),
    /// It was asked to stop.
    #[error("exporting was cancelled")]
    Cancelled,
}

impl From<&ExportError> for Problem {
    fn from(error: &ExportError) -> Self {
        let message = describe(error);
        let with = |code, help: &str| problem(code, message.clone(), Some(help.into()));
        match error {
            ExportError::Request(e) => e.into(),
            ExportError::Path { .. } => with(
                ProblemCode::Invalid,
                "give the absolute path of a new file in a folder on the datacenter's host that the daemon may write to",
            ),
            ExportError::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => with(
                    ProblemCode::Unavailable,
                    "free space there, or export to another disk",
                ),
                _ => with(ProblemCode::Invalid, "check the folder and its disk"),
            },
            ExportError::Store(e) => store_problem(e, message),
            ExportError::Manifest(_) => with(
                ProblemCode::Internal,
                "verify the version: `splice version verify IMAGE@N`",
            ),
            ExportError::Check(_) => with(
                ProblemCode::Internal,
                "check the disk that it was written to, then export again",
            ),
            ExportError::Cancelled => with(ProblemCode::Unavailable, "start it again"),
        }
    }
}

/// A kind of file that a version can become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// The disk's bytes; zeros are holes.
    Raw,
    /// qcow2 version 3, not compressed.
    Qcow2,
}

impl ExportFormat {
    fn parse(text: &str) -> Result<Self, ManageError> {
        match text {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            other => Err(ManageError::invalid(format!(
                "{:?} is no format to export to; raw and qcow2 are possible",
                other.chars().take(40).collect::<String>()
            ))),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    fn reader(self) -> ImageFormat {
        match self {
            Self::Raw => ImageFormat::Raw,
            Self::Qcow2 => ImageFormat::Qcow2,
        }
    }
}

/// Where an export goes.
#[derive(Debug, Clone)]
struct Target {
    path: PathBuf,
    /// What it is called until it is whole.
    part: PathBuf,
    dir: PathBuf,
}

/// Checks that `path` is a new file that may be written.
fn check_path(dc: &Datacenter, path: &Path) -> Result<Target, ExportError> {
    let refuse = |reason: String| ExportError::Path {
        path: path.to_owned(),
        reason,
    };
    if !path.is_absolute() {
        return Err(refuse("not an absolute path".into()));
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(refuse("not the path of a file".into()));
    };
    let dir = dir
        .canonicalize()
        .map_err(|e| refuse(format!("its folder cannot be opened: {e}")))?;
    if dc.owns(&dir) {
        return Err(refuse("inside the datacenter's data folder".into()));
    }
    let dirs = &dc.config().export_dirs;
    let allowed = |allowed: &PathBuf| allowed.canonicalize().is_ok_and(|a| dir.starts_with(a));
    if !dirs.is_empty() && !dirs.iter().any(allowed) {
        return Err(refuse("not in one of the configured export_dirs".into()));
    }
    let path = dir.join(name);
    if path.symlink_metadata().is_ok() {
        return Err(refuse("it exists; nothing is written over".into()));
    }
    let mut part = std::ffi::OsString::from(".");
    part.push(name);
    part.push(".splice-part");
    Ok(Target {
        part: dir.join(part),
        path,
        dir,
    })
}

/// Starts the operation. What can be refused at once is refused at once.
pub fn operation(
    dc: &Arc<Datacenter>,
    version: &str,
    request: &ExportRequest,
) -> Result<Operation, ExportError> {
    let format = ExportFormat::parse(&request.format)?;
    let path = PathBuf::from(&request.path);
    check_path(dc, &path)?;
    let (in_use, name, _) = dc.use_named(version)?;
    let (worker, subject) = (Arc::clone(dc), name.clone());
    let work = move |meter: &Meter| {
        let _in_use = in_use;
        match export(&worker, &name, &path, format, meter) {
            Ok(result) => Ok(OperationResult::Export(result)),
            Err(error) => Err((&error).into()),
        }
    };
    Ok(dc
        .operations()
        .start(OperationKind::Export, subject, work)?)
}

/// Starts the operation for a snapshot of a volume, as [`operation`] does for a version.
pub fn snapshot_operation(
    dc: &Arc<Datacenter>,
    volume: &str,
    number: u64,
    request: &ExportRequest,
) -> Result<Operation, ExportError> {
    let format = ExportFormat::parse(&request.format)?;
    let path = PathBuf::from(&request.path);
    check_path(dc, &path)?;
    let (in_use, name, disk) = dc.use_snapshot(volume, number)?;
    let (worker, subject) = (Arc::clone(dc), name.clone());
    let work = move |meter: &Meter| {
        let _in_use = in_use;
        match export_disk(&worker, name, &disk, &path, format, meter) {
            Ok(result) => Ok(OperationResult::Export(result)),
            Err(error) => Err((&error).into()),
        }
    };
    Ok(dc
        .operations()
        .start(OperationKind::Export, subject, work)?)
}

/// Exports a version; long.
pub fn export(
    dc: &Datacenter,
    version: &str,
    path: &Path,
    format: ExportFormat,
    meter: &Meter,
) -> Result<ExportResult, ExportError> {
    let (_in_use, name, record) = dc.use_named(version)?;
    export_disk(dc, name, &record.disk, path, format, meter)
}

/// Exports a disk that stays while this works.
fn export_disk(
    dc: &Datacenter,
    name: String,
    disk: &TreeRef,
    path: &Path,
    format: ExportFormat,
    meter: &Meter,
) -> Result<ExportResult, ExportError> {
    meter.begin(Phase::Open, 0);
    let target = check_path(dc, path)?;
    let _turn = Turn::take(dc, &target)?;
    let written = write(dc, &target, disk, format, meter)
        .and_then(|data_bytes| Ok((data_bytes, verify(dc, &target, disk, format, meter)?)));
    let named = written.and_then(|figures| {
        give_name(&target)?;
        Ok(figures)
    });
    let (data_bytes, verified_bytes) = named.inspect_err(|_| {
        // It can be made again; what cannot be removed is written over by the next try.
        std::fs::remove_file(&target.part).ok();
    })?;
    let file_bytes = std::fs::metadata(&target.path).map_or(0, |m| m.len());
    tracing::info!(disk = name, file = %target.path.display(), format = format.name(), "version exported");
    Ok(ExportResult {
        version: name,
        path: target.path.display().to_string(),
        format: format.name().to_owned(),
        disk_bytes: disk.size_bytes,
        data_bytes,
        file_bytes,
        verified_bytes,
    })
}

/// Holds a file against a second export.
struct Turn<'a> {
    dc: &'a Datacenter,
    path: PathBuf,
}

impl<'a> Turn<'a> {
    fn take(dc: &'a Datacenter, target: &Target) -> Result<Self, ExportError> {
        let path = target.path.clone();
        if !dc.exporting().insert(path.clone()) {
            return Err(ExportError::Path {
                path,
                reason: "a version is being exported to it already".into(),
            });
        }
        Ok(Self { dc, path })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.dc.exporting().remove(&self.path);
    }
}

fn io_error<'a>(
    target: &'a Target,
    action: &'static str,
) -> impl Fn(io::Error) -> ExportError + 'a {
    move |source| ExportError::Io {
        path: target.part.clone(),
        action,
        source,
    }
}

/// Where the disk's bytes go in the file.
enum Places {
    Raw,
    Qcow2(Qcow2Layout),
}

impl Places {
    /// Calls `write(offset in the file, bytes)` for each run of `bytes`, which lie at `at` of the disk.
    fn put(
        &self,
        at: u64,
        bytes: &[u8],
        mut write: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let layout = match self {
            Places::Raw => return write(at, bytes),
            Places::Qcow2(layout) => layout,
        };
        let (mut at, mut rest) = (at, bytes);
        while !rest.is_empty() {
            let inside = at % QCOW2_CLUSTER_BYTES;
            let room = (QCOW2_CLUSTER_BYTES - inside).min(rest.len() as u64);
            let (now, later) = rest.split_at(room as usize);
            let place = layout
                .place(at / QCOW2_CLUSTER_BYTES)
                .expect("clusters that chunks show were planned for");
            write(place + inside, now)?;
            (at, rest) = (at + room, later);
        }
        Ok(())
    }
}

/// Which clusters of the disk show chunks.
fn data_clusters(nodes: &StoreNodes<'_>, manifest: &Manifest) -> Result<Vec<u64>, ExportError> {
    let mut clusters: Vec<u64> = Vec::new();
    for index in 0..manifest.leaves.len() {
        let mut at = index as u64 * LEAF_BYTES;
        for extent in manifest.leaf(nodes, index)?.extents {
            let end = at + u64::from(extent.len);
            if extent.chunk().is_some() {
                let first = at / QCOW2_CLUSTER_BYTES;
                let behind = end.div_ceil(QCOW2_CLUSTER_BYTES);
                let known = clusters.last().map_or(0, |last| last + 1);
                clusters.extend(first.max(known)..behind);
            }
            at = end;
        }
    }
    Ok(clusters)
}

/// Writes the part file; answers how many bytes of it are not zero extents.
fn write(
    dc: &Datacenter,
    target: &Target,
    tree: &TreeRef,
    format: ExportFormat,
    meter: &Meter,
) -> Result<u64, ExportError> {
    let nodes = StoreNodes(dc);
    let manifest = Manifest::load(&nodes, tree.root)?;
    meter.begin(Phase::Export, tree.size_bytes);
    match std::fs::remove_file(&target.part) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(io_error(target, "remove what is left of another try")(e));
        }
        _ => {}
    }
    let file = File::create_new(&target.part).map_err(io_error(target, "create it"))?;
    let places = match format {
        ExportFormat::Raw => Places::Raw,
        ExportFormat::Qcow2 => Places::Qcow2(Qcow2Layout::new(
            tree.size_bytes,
            data_clusters(&nodes, &manifest)?,
        )),
    };
    let len = match &places {
        Places::Raw => tree.size_bytes,
        Places::Qcow2(layout) => layout.file_bytes(),
    };
    // What is not written stays a hole, and reads as zeros.
    file.set_len(len)
        .map_err(io_error(target, "set its length"))?;
    let put = |offset: u64, bytes: &[u8]| file.write_all_at(bytes, offset);
    if let Places::Qcow2(layout) = &places {
        for part in layout.metadata() {
            put(part.offset, &part.bytes).map_err(io_error(target, "write it"))?;
        }
    }
    let mut data_bytes = 0;
    // A chunk that lies across two leaves comes twice in a row.
    let mut last = None;
    for index in 0..manifest.leaves.len() {
        if meter.is_cancelled() {
            return Err(ExportError::Cancelled);
        }
        let mut at = index as u64 * LEAF_BYTES;
        for extent in manifest.leaf(&nodes, index)?.extents {
            if let ExtentSource::Chunk { id, offset, .. } = extent.source {
                let chunk = match last.take() {
                    Some((known, chunk)) if known == id => chunk,
                    _ => dc.store().chunk(id)?,
                };
                let from = offset as usize;
                let bytes = &chunk.bytes()[from..from + extent.len as usize];
                places
                    .put(at, bytes, put)
                    .map_err(io_error(target, "write it"))?;
                data_bytes += u64::from(extent.len);
                last = Some((id, chunk));
            }
            at += u64::from(extent.len);
            meter.advance(extent.len.into());
        }
    }
    file.sync_all().map_err(io_error(target, "sync it"))?;
    // What is compared is to come from the disk. Where the advice is not taken it comes from memory.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    Ok(data_bytes)
}

/// Reads the part file back and compares it with the version; answers how many bytes were compared.
fn verify(
    dc: &Datacenter,
    target: &Target,
    tree: &TreeRef,
    format: ExportFormat,
    meter: &Meter,
) -> Result<u64, ExportError> {
    let options = OpenOptions::new().format(format.reader());
    let image = dedup_image::open(&target.part, &options)
        .map_err(|e| ExportError::Check(Box::new(PublishError::Source(e))))?;
    let tree = Imported {
        tree: *tree,
        data_bytes: 0,
    };
    check::check(dc, &mut [("the file", image)], &[tree], None, meter).map_err(|e| match e {
        PublishError::Cancelled => ExportError::Cancelled,
        other => ExportError::Check(Box::new(other)),
    })
}

/// Gives the part file its name, durably, unless something of that name came into being meanwhile.
fn give_name(target: &Target) -> Result<(), ExportError> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, &target.part, CWD, &target.path, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        // A file system without that: a link fails as well where the name is taken.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            std::fs::hard_link(&target.part, &target.path)
                .and_then(|()| std::fs::remove_file(&target.part))
                .map_err(io_error(target, "give it its name"))?;
        }
        Err(e) => return Err(io_error(target, "give it its name")(e.into())),
    }
    File::open(&target.dir)
        .and_then(|dir| dir.sync_all())
        .map_err(io_error(target, "make its name durable"))
}
