//! Making an update: number both versions' chunks, sketch them, plan the batches, encode what is not encoded yet.
//!
//! Runs inside an operation, on threads of a low priority: links are served first. Invariant: an update is whole or not there;
//! a batch that was appended is not encoded again, whatever ends the process. A chunk that cannot be read ends the making: the
//! store's alarm tells IT which, and branches fetch that version plain.

use std::panic::resume_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use datacenter_api::{Phase, Problem, ProblemCode, UpdateSummary};
use dedup::manifest::ManifestError;
use dedup::update::{
    Effort, NewChunks, NumberingError, Sketch, UpdateBatch, encode_batch, plan, sketch,
};
use dedup::{Manifest, VersionId};
use dedup_protocol::records::VersionRecord;
use dedup_store::StoreError;
use dedup_store::disk::Disk;

use super::file::{self, Identity, Pair, UpdateFile, UpdateFileError};
use super::{Stage, Update};
use crate::datacenter::{Datacenter, VersionError};
use crate::images::StoreNodes;
use crate::operations::Meter;
use crate::problem::{describe, problem, store_problem};

/// Threads that encode one update. More would take the processor from links that are served.
const ENCODERS: usize = 2;

/// Chunks that a thread sketches at a time.
const SKETCH_RUN: usize = 512;

/// What must stay free on the disk, in bytes: updates can be made again, publishing needs the room more.
pub(super) const FREE_BYTES_MIN: u64 = 1 << 30;

/// The nice value of encoding threads.
const NICE: i32 = 10;

/// Why no update was made.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// A version is not there.
    #[error("there is no version {0}")]
    Missing(VersionId),
    /// A version's record cannot be had.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// They have nothing to do with each other.
    #[error("{from} and {to} are not two versions of one image")]
    OtherImage {
        /// `IMAGE@NUMBER`.
        from: String,
        /// `IMAGE@NUMBER`.
        to: String,
    },
    /// The manifests.
    #[error("manifest")]
    Numbering(#[from] NumberingError<StoreError>),
    /// A manifest's upper nodes.
    #[error("manifest")]
    Manifest(#[from] ManifestError<StoreError>),
    /// A chunk of either version.
    #[error("a chunk of {version} cannot be read; run `splice version verify {version}`")]
    Chunk {
        /// `IMAGE@NUMBER`.
        version: String,
        /// Why.
        source: StoreError,
    },
    /// The file.
    #[error(transparent)]
    File(#[from] UpdateFileError),
    /// Too little room.
    #[error(
        "{free} bytes are free on the datacenter's disk; updates leave at least {FREE_BYTES_MIN} to others"
    )]
    NoRoom {
        /// Bytes free.
        free: u64,
    },
    /// It was asked to stop.
    #[error("encoding the update was cancelled")]
    Cancelled,
}

impl UpdateError {
    /// Whether less on the disk would have helped.
    pub(super) fn is_for_want_of_room(&self) -> bool {
        let full = |e: &std::io::Error| {
            use std::io::ErrorKind;
            matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
        };
        match self {
            Self::NoRoom { .. } => true,
            Self::File(UpdateFileError::Io(error)) => full(error),
            _ => false,
        }
    }
}

/// Updates leave room to others, whose work cannot be made again.
fn leave_room(dc: &Datacenter) -> Result<(), UpdateError> {
    let free = dc.free_bytes();
    if free < FREE_BYTES_MIN {
        return Err(UpdateError::NoRoom { free });
    }
    Ok(())
}

impl From<&UpdateError> for Problem {
    fn from(error: &UpdateError) -> Self {
        let message = describe(error);
        let with = |code, help: &str| problem(code, message.clone(), Some(help.into()));
        match error {
            UpdateError::Missing(_) => with(ProblemCode::NotFound, "`splice version list IMAGE`"),
            UpdateError::OtherImage { .. } => with(
                ProblemCode::Invalid,
                "an update is between two versions of one image",
            ),
            UpdateError::Chunk { source, .. } => store_problem(source, message),
            UpdateError::NoRoom { .. } => with(
                ProblemCode::Unavailable,
                "free space on the datacenter's disk; until then branches fetch that version without an update",
            ),
            UpdateError::Cancelled => with(
                ProblemCode::Unavailable,
                "start it again; what is encoded so far is reused",
            ),
            _ => problem(ProblemCode::Internal, message, None),
        }
    }
}

/// The two versions of a pair, opened.
pub(super) struct Ends {
    pub(super) parent: VersionRecord,
    pub(super) version: VersionRecord,
}

impl Ends {
    pub(super) fn open(dc: &Datacenter, pair: &Pair) -> Result<Self, UpdateError> {
        let record = |id| -> Result<VersionRecord, UpdateError> {
            let signed = dc.version(id)?.ok_or(UpdateError::Missing(id))?;
            Ok(signed.open_own().map_err(|source| VersionError::Record {
                version: id,
                source,
            })?)
        };
        let ends = Self {
            parent: record(pair.parent)?,
            version: record(pair.version)?,
        };
        if ends.parent.image != ends.version.image || pair.parent == pair.version {
            let (from, to) = (name(&ends.parent), name(&ends.version));
            return Err(UpdateError::OtherImage { from, to });
        }
        Ok(ends)
    }
}

pub(super) fn name(record: &VersionRecord) -> String {
    format!("{}@{}", record.image, record.number)
}

/// Makes `update` whole; long. The caller sees to it that only one update is made at a time.
pub(super) fn make(
    dc: &Datacenter,
    disk: &dyn Disk,
    update: &Update,
    meter: &Meter,
) -> Result<UpdateSummary, UpdateError> {
    let pair = update.pair;
    let ends = Ends::open(dc, &pair)?;
    meter.begin(Phase::Open, 0);
    leave_room(dc)?;
    lower_priority();
    let nodes = StoreNodes(dc);
    let load = |record: &VersionRecord| Manifest::load(&nodes, record.disk.root);
    let numbering = NewChunks::of_manifests(&nodes, &load(&ends.parent)?, &load(&ends.version)?)?;
    let (whole, part) = file::names(&pair);
    let identity = Identity::new(dc.realm(), dc.id_key(), pair);
    let file = match resume(disk, &part, &identity, &numbering)? {
        Some(file) => file,
        None => {
            let sketches = sketch_all(dc, &ends, &numbering, meter)?;
            let sketched = |number: u32| Ok::<_, UpdateError>(sketches[number as usize]);
            let plan = plan(&numbering, sketched)?;
            if ends.version.parent == Some(pair.parent) {
                dc.learn_kin(pair, &plan.kin);
            }
            let new_bytes = numbering.new_bytes();
            UpdateFile::create(disk, &part, &identity, plan.batches, new_bytes)?
        }
    };
    let file = update.planned(file);
    encode_all(dc, &ends, &numbering, update, file, meter)?;
    meter.begin(Phase::Publish, 0);
    file.finish(disk, &whole)?;
    update.set(Stage::Whole);
    let summary = update.summary(&ends).expect("it was planned above");
    tracing::info!(
        from = summary.from,
        to = summary.to,
        batches = summary.batches,
        plain_bytes = summary.plain_bytes,
        packed_bytes = summary.packed_bytes,
        "update encoded"
    );
    Ok(summary)
}

/// What a former process left of this update, if it can be gone on with.
fn resume(
    disk: &dyn Disk,
    part: &str,
    identity: &Identity,
    numbering: &NewChunks,
) -> Result<Option<UpdateFile>, UpdateError> {
    let reason = match UpdateFile::resume(disk, part, identity) {
        Ok(file)
            if file.plans().last().map_or(0, |p| p.chunks.end as usize) == numbering.new.len() =>
        {
            return Ok(Some(file));
        }
        Ok(_) => "its plan is of other chunks".to_owned(),
        Err(UpdateFileError::Io(e)) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(UpdateFileError::Io(e)) => return Err(UpdateFileError::Io(e).into()),
        Err(UpdateFileError::Damaged { reason, .. }) => reason,
    };
    tracing::warn!(file = part, reason, "a half-made update is thrown away");
    disk.remove(part).map_err(UpdateFileError::Io)?;
    Ok(None)
}

/// Chunks by number, from the store.
struct Chunks<'a> {
    dc: &'a Datacenter,
    ends: &'a Ends,
    numbering: &'a NewChunks,
}

impl Chunks<'_> {
    fn read(&self, number: u32) -> Result<Bytes, UpdateError> {
        let (id, _) = self
            .numbering
            .number(number)
            .expect("planned numbers exist");
        let found = self.dc.store().chunk(id).map_err(|source| {
            let parents = (number as usize) < self.numbering.parent.len();
            let owner = if parents {
                &self.ends.parent
            } else {
                &self.ends.version
            };
            UpdateError::Chunk {
                version: name(owner),
                source,
            }
        })?;
        Ok(found.bytes().clone())
    }
}

fn sketch_all(
    dc: &Datacenter,
    ends: &Ends,
    numbering: &NewChunks,
    meter: &Meter,
) -> Result<Vec<Sketch>, UpdateError> {
    let len_of = |chunks: &[_]| {
        chunks
            .iter()
            .map(|(_, len): &(_, u32)| u64::from(*len))
            .sum::<u64>()
    };
    meter.begin(
        Phase::Sketch,
        len_of(&numbering.parent) + numbering.new_bytes(),
    );
    let chunks = Chunks {
        dc,
        ends,
        numbering,
    };
    let mut sketches = vec![Sketch::default(); numbering.parent.len() + numbering.new.len()];
    let runs = Mutex::new(
        (0..)
            .step_by(SKETCH_RUN)
            .zip(sketches.chunks_mut(SKETCH_RUN)),
    );
    on_threads(meter, || {
        let next = runs.lock().expect("no panic under this lock").next();
        let Some((first, run)) = next else {
            return Ok(false);
        };
        for (number, slot) in (first..).zip(run) {
            let bytes = chunks.read(number)?;
            *slot = sketch(&bytes);
            meter.advance(bytes.len() as u64);
        }
        Ok(true)
    })?;
    Ok(sketches)
}

fn encode_all(
    dc: &Datacenter,
    ends: &Ends,
    numbering: &NewChunks,
    update: &Update,
    file: &UpdateFile,
    meter: &Meter,
) -> Result<(), UpdateError> {
    let chunks = Chunks {
        dc,
        ends,
        numbering,
    };
    let effort = Effort::for_update(numbering.new_bytes());
    let plain = |number: u32| {
        let range = file.plans()[number as usize].chunks.clone();
        let new = &numbering.new[range.start as usize..range.end as usize];
        new.iter().map(|(_, len)| u64::from(*len)).sum::<u64>()
    };
    let missing = file.missing();
    meter.begin(Phase::Encode, numbering.new_bytes());
    let todo: u64 = missing.iter().map(|number| plain(*number)).sum();
    meter.advance(numbering.new_bytes() - todo);
    let queue = Mutex::new(missing.into_iter());
    on_threads(meter, || {
        let next = queue.lock().expect("no panic under this lock").next();
        let Some(number) = next else {
            return Ok(false);
        };
        leave_room(dc)?;
        let plan = &file.plans()[number as usize];
        let batch: UpdateBatch = encode_batch(plan, numbering, |n| chunks.read(n), effort)?;
        let packed = file.append(number, &batch)?;
        meter
            .stored_bytes
            .fetch_add(u64::from(packed), Ordering::Relaxed);
        meter
            .new_chunks
            .fetch_add(u64::from(batch.count), Ordering::Relaxed);
        meter.advance(plain(number));
        update.grew();
        Ok(true)
    })
}

/// Calls `step` on all encoding threads until it says false, one fails, or the work is cancelled.
fn on_threads(
    meter: &Meter,
    step: impl Fn() -> Result<bool, UpdateError> + Sync,
) -> Result<(), UpdateError> {
    let stop = AtomicBool::new(false);
    let work = || -> Result<(), UpdateError> {
        lower_priority();
        while !stop.load(Ordering::Relaxed) {
            if meter.is_cancelled() {
                return Err(UpdateError::Cancelled);
            }
            match step() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..ENCODERS).map(|_| scope.spawn(work)).collect();
        let mut result = Ok(());
        for thread in threads {
            let ended = thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            if result.is_ok() {
                result = ended;
            }
        }
        result
    })
}

/// Of the calling thread only: on Linux a nice value belongs to a thread.
fn lower_priority() {
    // A system that refuses encodes at the priority it has.
    let _ = rustix::process::setpriority_process(None, NICE);
}
