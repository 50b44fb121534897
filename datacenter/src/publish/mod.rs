//! Publish: a disk file becomes a signed, visible version.
//!
//! Open the file, chunk and store it ([`import`]), commit the store, read everything back and compare it with the file ([`check`]),
//! then sign the record and make it visible in one catalog transaction. Invariant: whenever the process dies, the version is either
//! not there at all or complete; what was stored stays until the next collection of garbage, and is reused by a try before that. What it
//! does not do: uploads; the file is on the datacenter's host.

pub mod boot;
pub mod check;
pub mod import;
mod queue;
mod strips;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use datacenter_api::{Phase, Problem, ProblemCode, PublishResult, VerifyMode};
use dedup::NodeId;
use dedup::manifest::ManifestError;
use dedup_image::{DiskImage, ImageError, ImageFormat, OpenOptions};
use dedup_protocol::records::{BootArtifacts, TreeRef, VersionRecord};
use dedup_store::StoreError;

use crate::catalog::CatalogError;
use crate::catalog::rows::{ImageRow, NumberKey, VersionNumberRow, VersionRow, VersionState};
use crate::datacenter::Datacenter;
use crate::operations::Meter;
use crate::problem::{ManageError, catalog_problem, describe, problem, store_problem};
use crate::update::Pair;
use import::MemoryFile;

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The request itself.
    #[error(transparent)]
    Request(#[from] ManageError),
    /// The image is being published already.
    #[error("image {image:?} is being published already")]
    Busy {
        /// The image.
        image: String,
    },
    /// The file must not be read.
    #[error("{}: {reason}", path.display())]
    Path {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The file cannot be read as a disk.
    #[error("disk file")]
    Source(#[from] ImageError),
    /// The chunk store.
    #[error("chunk store")]
    Store(#[from] StoreError),
    /// The manifest that was just stored does not read back.
    #[error("the stored manifest does not read back")]
    Manifest(#[from] ManifestError<StoreError>),
    /// What was stored is not what the file says.
    #[error(
        "{tree} differs at byte {offset} between the file and what was stored: the file was changed while it was published, or the disk is faulty"
    )]
    Differs {
        /// Which tree.
        tree: &'static str,
        /// Where, in bytes.
        offset: u64,
    },
    /// Chunks that the store already had are damaged.
    #[error(
        "{count} stored chunks or manifest nodes are damaged, the first is {first}; they are in quarantine now"
    )]
    Damaged {
        /// How many.
        count: u64,
        /// The first, with the reason.
        first: String,
    },
    /// The file is the version that is there.
    #[error("nothing changed: the file is the same as {version}")]
    Same {
        /// The latest version.
        version: String,
    },
    /// It was asked to stop.
    #[error("publishing was cancelled")]
    Cancelled,
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl From<&PublishError> for Problem {
    fn from(error: &PublishError) -> Self {
        let message = describe(error);
        let with = |code, help: &str| problem(code, message.clone(), Some(help.into()));
        match error {
            PublishError::Request(e) => e.into(),
            PublishError::Busy { .. } => with(
                ProblemCode::Conflict,
                "wait until it is done: `splice status`",
            ),
            PublishError::Path { .. } => with(
                ProblemCode::Invalid,
                "give the path of a disk file on the datacenter's host that the daemon may read",
            ),
            PublishError::Source(_) => problem(ProblemCode::Invalid, message, None),
            PublishError::Store(e) => store_problem(e, message),
            PublishError::Manifest(_) => with(
                ProblemCode::Internal,
                "check the datacenter's disk, then publish again",
            ),
            PublishError::Differs { .. } => with(
                ProblemCode::Conflict,
                "make sure that nothing writes to the file, then publish again",
            ),
            PublishError::Damaged { .. } => with(
                ProblemCode::Conflict,
                "check the datacenter's disk, then publish again: the damaged chunks are stored anew",
            ),
            PublishError::Same { .. } => with(
                ProblemCode::Conflict,
                "add --allow-same to publish it anyway",
            ),
            PublishError::Cancelled => with(
                ProblemCode::Unavailable,
                "publish again; what is stored so far is reused",
            ),
            PublishError::Catalog(e) => catalog_problem(e, message),
        }
    }
}

/// What is to be published.
#[derive(Debug, Clone)]
pub struct Publish {
    /// Into which image.
    pub image: String,
    /// The disk file.
    pub path: PathBuf,
    /// Its format; by default it is told from its content.
    pub format: Option<ImageFormat>,
    /// A line for people.
    pub note: Option<String>,
    /// Publish even if nothing changed.
    pub allow_same: bool,
    /// How much is read back.
    pub verify: VerifyMode,
}

/// Holds an image against a second publish.
pub struct PublishTurn {
    datacenter: Arc<Datacenter>,
    image: String,
}

impl Drop for PublishTurn {
    fn drop(&mut self) {
        self.datacenter.publishing().remove(&self.image);
    }
}

/// Reserves an image for one publish; a second one is refused until the answer is dropped.
pub fn reserve(datacenter: &Arc<Datacenter>, image: &str) -> Result<PublishTurn, PublishError> {
    datacenter.image(image)?;
    if !datacenter.publishing().insert(image.to_owned()) {
        return Err(PublishError::Busy {
            image: image.to_owned(),
        });
    }
    Ok(PublishTurn {
        datacenter: datacenter.clone(),
        image: image.to_owned(),
    })
}

/// Checks that `path` is a disk file that may be published; answers its real path.
pub fn check_path(datacenter: &Datacenter, path: &Path) -> Result<PathBuf, PublishError> {
    use std::os::unix::fs::FileTypeExt;
    let refuse = |reason: String| PublishError::Path {
        path: path.to_owned(),
        reason,
    };
    if !path.is_absolute() {
        return Err(refuse("not an absolute path".into()));
    }
    let real = path
        .canonicalize()
        .map_err(|e| refuse(format!("cannot be opened: {e}")))?;
    if datacenter.owns(&real) {
        return Err(refuse("inside the datacenter's data folder".into()));
    }
    let dirs = &datacenter.config().import_dirs;
    let allowed = |dir: &PathBuf| dir.canonicalize().is_ok_and(|dir| real.starts_with(dir));
    if !dirs.is_empty() && !dirs.iter().any(allowed) {
        return Err(refuse("not in one of the configured import_dirs".into()));
    }
    let kind = real
        .metadata()
        .map_err(|e| refuse(format!("cannot be looked at: {e}")))?
        .file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(refuse("neither a file nor a block device".into()));
    }
    Ok(real)
}

/// Publishes; long. `turn` keeps other publishes of the image away.
pub fn publish(
    turn: &PublishTurn,
    request: &Publish,
    meter: &Meter,
) -> Result<PublishResult, PublishError> {
    let datacenter = &*turn.datacenter;
    meter.begin(Phase::Open, 0);
    let path = check_path(datacenter, &request.path)?;
    let (image_row, parent) = datacenter.image_head(&request.image)?;
    let mut disk = open_source(datacenter, &path, request.format)?;
    let found = boot::inspect(&mut *disk);

    let mut files: Vec<(&'static str, Box<dyn DiskImage>)> = vec![("the disk", disk)];
    if let Some(boot) = &found.boot {
        files.push(("the kernel", MemoryFile::boxed(boot.kernel.clone())));
        let initrd = boot.initrd.iter();
        files
            .extend(initrd.map(|bytes| ("the initial RAM disk", MemoryFile::boxed(bytes.clone()))));
    }

    // From the first put until the version is in the catalog no collection touches what this publish refers to, new or known.
    let hold = datacenter.store().hold();
    meter.begin(
        Phase::Import,
        files.iter().map(|(_, file)| file.size_bytes()).sum(),
    );
    let mut trees = Vec::new();
    for (_, file) in &mut files {
        trees.push(import::import(
            datacenter,
            &hold,
            &mut **file,
            image_row.params,
            meter,
        )?);
    }
    // Chunks and manifest are durable before anything speaks of them.
    datacenter.store().commit()?;

    let parent_roots = parent.as_ref().map(|(_, record)| roots(record));
    let unchanged = parent_roots
        .as_ref()
        .is_some_and(|before| *before == trees.iter().map(|t| t.tree.root).collect::<Vec<_>>());
    if let (true, false, Some((_, record))) = (unchanged, request.allow_same, &parent) {
        return Err(PublishError::Same {
            version: format!("{}@{}", record.image, record.number),
        });
    }

    let verified_bytes = check::check(
        datacenter,
        &mut files,
        &trees,
        match request.verify {
            VerifyMode::Full => None,
            VerifyMode::Changed => parent_roots.as_deref(),
        },
        meter,
    )?;

    meter.begin(Phase::Publish, 0);
    if meter.is_cancelled() {
        return Err(PublishError::Cancelled);
    }
    let boot = found.boot.as_ref().map(|boot| BootArtifacts {
        kernel: trees[1].tree,
        initrd: boot.initrd.as_ref().map(|_| trees[2].tree),
        root_argument: boot.root_argument.clone(),
        kernel_path: boot.kernel_path.clone(),
    });
    let record = VersionRecord {
        realm: datacenter.realm(),
        image: request.image.clone(),
        number: parent.as_ref().map_or(1, |(_, p)| p.number + 1),
        parent: parent.as_ref().map(|(id, _)| *id),
        created_unix_s: datacenter.now_unix_s(),
        disk: trees[0].tree,
        params: image_row.params,
        boot,
        os: found.os.clone(),
        data_bytes: trees[0].data_bytes,
    };
    let number = record.number;
    let version = match make_visible(datacenter, record, request, meter) {
        Ok(version) => version,
        Err(error) => {
            // A commit that fails may be on the disk all the same, and the version be there after the next start.
            if matches!(error, PublishError::Catalog(_)) {
                hold.keep();
                tracing::error!(
                    image = %request.image,
                    "nobody can tell whether a version is in the catalog: what was stored since its publish began is kept until the daemon is started again"
                );
            }
            return Err(error);
        }
    };
    drop(hold);
    tracing::info!(image = %request.image, number, %version, "version published");
    if let Some((parent, _)) = parent {
        datacenter.carry_profile(parent, version);
        let pair = Pair { parent, version };
        datacenter.updates().published(datacenter, pair);
    }
    Ok(PublishResult {
        version: version.to_string(),
        image: request.image.clone(),
        number,
        disk_bytes: trees[0].tree.size_bytes,
        data_bytes: trees[0].data_bytes,
        new_chunks: meter.new_chunks.load(Ordering::Relaxed),
        known_chunks: meter.known_chunks.load(Ordering::Relaxed),
        stored_bytes: meter.stored_bytes.load(Ordering::Relaxed),
        verified_bytes,
        os: found.os,
        kernel_path: found.boot.map(|boot| boot.kernel_path),
        boot_note: found.note,
    })
}

fn roots(record: &VersionRecord) -> Vec<NodeId> {
    let boot = record.boot.as_ref();
    let kernel = boot.map(|b| b.kernel.root);
    let initrd = boot.and_then(|b| b.initrd).map(|t: TreeRef| t.root);
    [Some(record.disk.root), kernel, initrd]
        .into_iter()
        .flatten()
        .collect()
}

fn open_source(
    datacenter: &Datacenter,
    path: &Path,
    format: Option<ImageFormat>,
) -> Result<Box<dyn DiskImage>, PublishError> {
    let mut options = OpenOptions::new();
    if let Some(dir) = &datacenter.config().scratch_dir {
        std::fs::create_dir_all(dir).map_err(|e| PublishError::Path {
            path: dir.clone(),
            reason: format!("the scratch folder cannot be used: {e}"),
        })?;
        options = options.scratch_dir(dir);
    }
    if let Some(format) = format {
        options = options.format(format);
    }
    Ok(dedup_image::open(path, &options)?)
}

/// Signs the record and makes it visible, in one transaction.
fn make_visible(
    datacenter: &Datacenter,
    record: VersionRecord,
    request: &Publish,
    meter: &Meter,
) -> Result<dedup::VersionId, PublishError> {
    let signed = datacenter.publisher().sign(&record);
    let id = signed.id();
    let row = VersionRow {
        state: VersionState::Visible,
        image: record.image.clone(),
        number: record.number,
        signed: signed.to_bytes(),
        note: request.note.clone(),
        new_chunks: meter.new_chunks.load(Ordering::Relaxed),
        stored_bytes: meter.stored_bytes.load(Ordering::Relaxed),
    };
    datacenter.catalog().transact(|tx| {
        let image: Option<ImageRow> = tx.get(&record.image)?;
        // The turn keeps other publishes away; this catches a catalog that was changed behind our back.
        let Some(mut image) = image.filter(|image| image.latest + 1 == record.number) else {
            return Err(PublishError::Request(ManageError::conflict(
                format!(
                    "image {:?} was changed while it was published",
                    record.image
                ),
                "publish again",
            )));
        };
        image.latest = record.number;
        tx.put(&record.image, &image);
        tx.put(&id, &row);
        let key = NumberKey {
            image: record.image.clone(),
            number: record.number,
        };
        tx.put(&key, &VersionNumberRow { version: id });
        Ok(())
    })?;
    Ok(id)
}

/// Threads that hash, compress and compare. Unless the configuration says otherwise, one more than there are cores: the one that
/// filled a pack waits for the disk.
pub(crate) fn worker_count(datacenter: &Datacenter) -> usize {
    let count = match datacenter.config().publish_workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from) + 1,
        count => count,
    };
    count.min(import::WORKERS_MAX)
}
