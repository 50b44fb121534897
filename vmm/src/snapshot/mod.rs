//! A machine in a folder, from which other machines go on.
//!
//! ```text
//! DIR/state        what the machine is and was doing: parts, sealed
//! DIR/memory       its memory, with holes where it is zero
//! DIR/working-set  the order in which the first machine that went on touched it; may be missing or empty
//! ```
//!
//! A machine in its sandbox opens nothing. Who wants a snapshot makes the folder, whole or not at all, and hands the machine its files
//! ([`take()`]), which [`write`] fills; who goes on from one has them opened before the sandbox is entered ([`Snapshot::open`]) and read
//! inside ([`SnapshotFiles::read`]), or hands them in opened ([`Snapshot::handed_in`]): that of a pool's template lies in no folder. What is not whole, is damaged, or was written by another program is refused ([`sealed`], [`parts`]).
//! Memory is checked block by block when it is needed ([`memory`]); a machine runs while it still comes ([`Pager`]). How it works as a
//! whole is decision 0037.
//!
//! What is not in it: disks. A snapshot goes on only with its disks as they were when it was taken. It is as secret as the guest's
//! memory, which is in it.

mod error;
mod folder;
pub mod memory;
mod pager;
pub mod parts;
pub mod sealed;
mod take;
pub(crate) mod uffd;
pub mod working_set;

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use error::SnapshotError;
pub use folder::FolderError;
pub use memory::{Image, ImageError};
pub use pager::{Loading, OnDamage, Pager, PagerError};
pub use sealed::SealError;
#[cfg(test)]
pub(crate) use take::send;
pub use take::{TakeError, take};
pub use uffd::Faults;

use crate::machine::LegacyState;
use crate::machine::memory::{MEMORY_MIB_MAX, Memory};
use crate::machine::state::{Processors, VmState};
use crate::virtio::gpu::IMAGE_BYTES_MAX;
use crate::virtio::state::DeviceStates;
use memory::{BLOCK_BYTES, Blocks};
use parts::{Part, PartError, Parts};
use sealed::Kind;
use uffd::Uffd;
use working_set::WorkingSet;

const STATE: &str = "state";
const MEMORY: &str = "memory";
const MIB: u64 = 1 << 20;

/// Most bytes of the state of a machine with so much memory: a display's images, 33 bytes for each block of memory, and far more than
/// processors and devices have beside that. A file's length may claim more memory than any machine has: that allows no more state.
pub fn state_bytes_max(memory_bytes: u64) -> u64 {
    const NAME_BYTES: u64 = 33;
    const REST_BYTES: u64 = 16 * MIB;
    let memory_bytes = memory_bytes.min(MEMORY_MIB_MAX * MIB);
    IMAGE_BYTES_MAX as u64 + memory_bytes / BLOCK_BYTES as u64 * NAME_BYTES + REST_BYTES
}

/// Most bytes of any file of such a machine's snapshot.
pub fn file_bytes_max(memory_bytes: u64) -> u64 {
    memory_bytes.max(state_bytes_max(memory_bytes))
}

/// What a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Processors.
    pub vcpus: u8,
    /// When it was saved, since 1970.
    pub taken_at: Duration,
}

impl Part for Shape {
    const NUMBER: u16 = 1;
    const VERSION: u16 = 1;
    const NAME: &'static str = "machine";
}

/// A machine's state beside its memory.
pub struct Saved {
    /// What it is.
    pub shape: Shape,
    /// Processors.
    pub processors: Processors,
    /// What KVM keeps beside them.
    pub vm: VmState,
    /// The parts of a PC.
    pub legacy: LegacyState,
    /// Devices.
    pub devices: DeviceStates,
}

impl Saved {
    /// The body of its file, with the names of its memory's blocks.
    ///
    /// # Errors
    /// Never with the parts that there are.
    pub fn bytes(&self, blocks: &Blocks) -> Result<Vec<u8>, PartError> {
        let mut parts = Parts::default();
        parts.put(&self.shape)?;
        parts.put(blocks)?;
        parts.put(&self.processors)?;
        parts.put(&self.vm)?;
        parts.put(&self.legacy)?;
        parts.put(&self.devices)?;
        parts.bytes()
    }

    /// Parses it.
    ///
    /// # Errors
    /// It is none, or of another program.
    pub fn parse(body: &[u8]) -> Result<(Self, Blocks), PartError> {
        let parts = Parts::parse(body)?;
        let saved = Self {
            shape: parts.read()?,
            processors: parts.read()?,
            vm: parts.read()?,
            legacy: parts.read()?,
            devices: parts.read()?,
        };
        Ok((saved, parts.read()?))
    }

    /// Whether a machine has the devices that were saved, in their order.
    ///
    /// # Errors
    /// It has others.
    pub fn check_devices<'a>(
        &self,
        here: impl Iterator<Item = &'a str>,
    ) -> Result<(), SnapshotError> {
        let saved: Vec<_> = self.devices.0.iter().map(|one| one.name.as_str()).collect();
        let here: Vec<_> = here.collect();
        if saved == here {
            return Ok(());
        }
        let list = |names: &[&str]| {
            if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            }
        };
        Err(SnapshotError::Devices {
            saved: list(&saved),
            here: list(&here),
        })
    }
}

/// Files that a snapshot is written into, as whoever asks for it hands them in.
pub struct Target {
    state: File,
    memory: File,
}

impl Target {
    /// Of these descriptors: the state's file, then the memory's, both empty.
    ///
    /// # Errors
    /// They are something else.
    pub fn new(files: Vec<OwnedFd>) -> Result<Self, SnapshotError> {
        let count = files.len();
        let Ok([state, memory]) = <[OwnedFd; 2]>::try_from(files) else {
            return Err(SnapshotError::Files(count));
        };
        let this = Self {
            state: state.into(),
            memory: memory.into(),
        };
        for (what, mut file) in [(STATE, &this.state), (MEMORY, &this.memory)] {
            // What has no length has no end either: pipes and sockets are refused here.
            let end = file.seek(SeekFrom::End(0));
            if end.map_err(|error| SnapshotError::Write(what, error))? != 0 {
                return Err(SnapshotError::NotEmpty(what));
            }
        }
        Ok(this)
    }
}

/// Saves a machine that does not run. When this returns, it is on the disk. The memory comes first: a state that is whole has its memory.
///
/// # Errors
/// The disk fails; what is in the files then is no snapshot.
pub fn write(target: &Target, memory: &Memory, saved: &Saved) -> Result<(), SnapshotError> {
    let blocks = memory::write(memory, &target.memory)?;
    let bytes = sealed::seal(Kind::State, &saved.bytes(&blocks)?);
    let mut state = &target.state;
    let written = state
        .write_all(&bytes)
        .and_then(|()| target.state.sync_all());
    written.map_err(|error| SnapshotError::Write(STATE, error))
}

/// A snapshot whose files are open. Nothing of them was read: they come from anywhere, and are parsed inside of the sandbox.
pub struct SnapshotFiles {
    folder: PathBuf,
    state: File,
    memory: File,
    memory_bytes: u64,
    working_set: WorkingSet,
}

impl SnapshotFiles {
    /// Memory of its machine, MiB.
    pub fn memory_mib(&self) -> u64 {
        self.memory_bytes / MIB
    }

    /// Reads its state, which is whole then; its memory is checked when it is read.
    ///
    /// # Errors
    /// It is damaged, or of another program.
    pub fn read(self) -> Result<Snapshot, SnapshotError> {
        let bytes_max = state_bytes_max(self.memory_bytes);
        let body = sealed::read(Kind::State, &self.state, bytes_max);
        let body = body.map_err(|source| SnapshotError::Seal {
            path: self.folder.join(STATE),
            source,
        })?;
        let (saved, blocks) = Saved::parse(&body)?;
        let image = Image::new(self.memory, self.memory_bytes, blocks)?;
        let expected = saved.shape.memory_mib.saturating_mul(MIB);
        if expected != self.memory_bytes {
            let found = self.memory_bytes;
            return Err(ImageError::Size { found, expected }.into());
        }
        Ok(Snapshot {
            saved,
            image,
            working_set: self.working_set,
        })
    }
}

/// A snapshot that was read.
pub struct Snapshot {
    /// The machine's state.
    pub saved: Saved,
    /// Its memory.
    pub image: Image,
    /// The order in which it is needed.
    pub working_set: WorkingSet,
}

impl Snapshot {
    /// Opens the files of the snapshot in `folder`.
    ///
    /// # Errors
    /// There is none.
    pub fn open(folder: &Path) -> Result<SnapshotFiles, SnapshotError> {
        let open = |name: &str| {
            let path = folder.join(name);
            // A pipe does not hold us up, here or later.
            let mut options = File::options();
            options.read(true).custom_flags(libc::O_NONBLOCK);
            let file = options.open(&path).and_then(regular);
            file.map_err(|source| SnapshotError::Open { path, source })
        };
        let ((state, _), (memory, memory_bytes)) = (open(STATE)?, open(MEMORY)?);
        Ok(SnapshotFiles {
            state,
            memory,
            memory_bytes,
            working_set: WorkingSet::open(folder),
            folder: folder.to_owned(),
        })
    }

    /// Takes over the files that whoever started this process has opened: state, memory, and the order in which that is needed, which may be
    /// empty. Nobody else here may have them.
    ///
    /// # Errors
    /// They are not open, or no files.
    pub fn handed_in([state, memory, order]: [RawFd; 3]) -> Result<SnapshotFiles, SnapshotError> {
        let open = |number: RawFd| {
            take_over(number).map_err(|source| SnapshotError::Open {
                path: format!("fd={number}").into(),
                source,
            })
        };
        let ((state, _), (memory, memory_bytes)) = (open(state)?, open(memory)?);
        Ok(SnapshotFiles {
            state,
            memory,
            memory_bytes,
            working_set: WorkingSet::of(open(order)?.0),
            folder: "handed in".into(),
        })
    }
}

/// A file, with its length.
fn regular(file: File) -> io::Result<(File, u64)> {
    let about = file.metadata()?;
    if about.is_file() {
        Ok((file, about.len()))
    } else {
        Err(io::Error::other("it is no file"))
    }
}

fn take_over(number: RawFd) -> io::Result<(File, u64)> {
    // SAFETY: no memory; a number that is no descriptor is refused.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and whoever handed it in keeps to it that nobody else here has it.
    regular(unsafe { File::from_raw_fd(number) })
}

/// Gives a memory that nobody has touched yet an image's content: while its machine runs, where the kernel lets this process do so, or
/// else now.
///
/// # Errors
/// The image is of another size, or cannot be read.
pub fn give(
    image: Image,
    memory: &Memory,
    working_set: WorkingSet,
    faults: Option<Faults>,
    loading: Loading,
    on_damage: OnDamage,
) -> Result<Option<Pager>, SnapshotError> {
    image.check_size(memory)?;
    match faults.map(|faults| Uffd::register(faults, memory)) {
        Some(Ok(uffd)) => {
            let pager = Pager::begin(uffd, image, working_set, loading, on_damage);
            return pager.map(Some).map_err(SnapshotError::Thread);
        }
        Some(Err(error)) => {
            tracing::warn!(%error, "missing pages cannot be told of: all memory is loaded before the machine goes on");
        }
        None => {}
    }
    image.load(memory)?;
    loading.end();
    Ok(None)
}

#[cfg(test)]
mod tests;
