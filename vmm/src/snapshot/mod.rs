//! A machine in a folder, from which other machines go on.
//!
//! ```text
//! DIR/state        what the machine is and was doing: parts, sealed
//! DIR/memory       its memory, with holes where it is zero
//! DIR/working-set  the order in which the first machine that went on touched it; may be missing
//! ```
//!
//! [`write`] makes the folder whole or not at all (`folder`); [`Snapshot::open`] refuses what is not whole, is damaged, or was written by
//! another program (`sealed`, [`parts`]). Memory is checked block by block when it is needed ([`memory`]); a machine runs while it still
//! comes ([`Pager`]). How it works as a whole is decision 0030.
//!
//! What is not in it: disks. A snapshot goes on only with its disks as they were when it was taken. It is as secret as the guest's
//! memory, which is in it.

mod folder;
pub mod memory;
mod pager;
pub mod parts;
mod sealed;
mod uffd;
pub mod working_set;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use folder::FolderError;
pub use memory::{Image, ImageError};
pub use pager::{Loading, OnDamage, Pager, PagerError};
pub use sealed::SealError;

use crate::legacy::generation::GenerationError;
use crate::machine::LegacyState;
use crate::machine::interrupts::InterruptError;
use crate::machine::memory::Memory;
use crate::machine::state::{Processors, StateError, VmState};
use crate::machine::vcpu::VcpuError;
use crate::virtio::state::{DeviceStateError, DeviceStates};
use memory::Blocks;
use parts::{Part, PartError, Parts};
use sealed::Kind;
use uffd::Uffd;

const STATE: &str = "state";
const MEMORY: &str = "memory";

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

/// Why there is no snapshot, or no machine from one.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Its folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Its memory.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The file of its state.
    #[error("{}", .path.display())]
    Seal {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: SealError,
    },
    /// A part of its state.
    #[error("state of the machine")]
    Part(#[from] PartError),
    /// KVM's part of it.
    #[error(transparent)]
    State(#[from] StateError),
    /// A processor.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// An interrupt.
    #[error(transparent)]
    Interrupt(#[from] InterruptError),
    /// A device.
    #[error("device {name}")]
    Device {
        /// Which.
        name: String,
        /// What is wrong with it.
        source: DeviceStateError,
    },
    /// Other devices.
    #[error(
        "the snapshot's machine has the devices {saved}, this one has {here}; give it the same options"
    )]
    Devices {
        /// In the snapshot.
        saved: String,
        /// Here.
        here: String,
    },
    /// A host with less.
    #[error("this host's processor is not enough for the snapshot, whose guest relies on: {0}")]
    Host(String),
    /// The guest has just ended.
    #[error("the machine is about to end")]
    Ending,
    /// A processor that has failed.
    #[error("processor {0} has failed")]
    Processor(u8),
    /// No randomness.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// No thread.
    #[error("a thread for the guest's memory")]
    Thread(#[source] std::io::Error),
    /// The disk.
    #[error("write {}", .path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
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
    fn bytes(&self, blocks: &Blocks) -> Result<Vec<u8>, PartError> {
        let mut parts = Parts::default();
        parts.put(&self.shape)?;
        parts.put(blocks)?;
        parts.put(&self.processors)?;
        parts.put(&self.vm)?;
        parts.put(&self.legacy)?;
        parts.put(&self.devices)?;
        parts.bytes()
    }

    fn parse(body: &[u8]) -> Result<(Self, Blocks), PartError> {
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

/// Saves a machine that does not run into the folder `dir`, which is not there yet. When this returns, it is on the disk.
///
/// # Errors
/// The disk fails, or `dir` is there; nothing is left then.
pub fn write(dir: &Path, memory: &Memory, saved: &Saved) -> Result<(), SnapshotError> {
    folder::create(dir, |folder| {
        let blocks = memory::write(memory, &folder.join(MEMORY))?;
        let path = folder.join(STATE);
        let bytes = sealed::seal(Kind::State, &saved.bytes(&blocks)?);
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()
        });
        written.map_err(|source| SnapshotError::Write { path, source })
    })
}

/// A snapshot that was opened.
pub struct Snapshot {
    /// The machine's state.
    pub saved: Saved,
    /// Its memory.
    pub image: Image,
    /// Where it is.
    pub folder: PathBuf,
}

impl Snapshot {
    /// Opens the snapshot in `folder`. Its state is read and whole; its memory is checked when it is read.
    ///
    /// # Errors
    /// There is none, it is damaged, or of another program.
    pub fn open(folder: &Path) -> Result<Self, SnapshotError> {
        let path = folder.join(STATE);
        let body = match sealed::read(Kind::State, &path) {
            Ok(body) => body,
            Err(source) => return Err(SnapshotError::Seal { path, source }),
        };
        let (saved, blocks) = Saved::parse(&body)?;
        Ok(Self {
            saved,
            image: Image::open(&folder.join(MEMORY), blocks)?,
            folder: folder.to_owned(),
        })
    }
}

/// Gives a memory that nobody has touched yet an image's content: while its machine runs, where the kernel lets this process do so, or
/// else now.
///
/// # Errors
/// The image is of another size, or cannot be read.
pub fn give(
    image: Image,
    memory: &Memory,
    folder: &Path,
    loading: Loading,
    on_damage: OnDamage,
) -> Result<Option<Pager>, SnapshotError> {
    image.check_size(memory)?;
    match Uffd::register(memory) {
        Ok(uffd) => {
            let pager = Pager::begin(uffd, image, folder, loading, on_damage);
            pager.map(Some).map_err(SnapshotError::Thread)
        }
        Err(error) => {
            tracing::warn!(%error, "userfaultfd is not to be had: all memory is loaded before the machine goes on");
            image.load(memory)?;
            loading.end();
            Ok(None)
        }
    }
}
