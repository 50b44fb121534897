//! What may be wrong with a snapshot, or with the place where one should go or go on.

use std::io;
use std::path::PathBuf;

use super::memory::ImageError;
use super::parts::PartError;
use super::sealed::SealError;
use crate::legacy::generation::GenerationError;
use crate::machine::interrupts::InterruptError;
use crate::machine::state::StateError;
use crate::machine::vcpu::VcpuError;
use crate::virtio::state::DeviceStateError;

/// Why there is no snapshot, or no machine from one.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
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
    /// A file of it cannot be opened.
    #[error("open {}", .path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Not what a machine fills.
    #[error("a snapshot needs two files and {0} came along: `splice-vmm snapshot` hands them in")]
    Files(usize),
    /// Something is in there.
    #[error("the file for the snapshot's {0} is not empty")]
    NotEmpty(&'static str),
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
    Thread(#[source] io::Error),
    /// The disk, or no file.
    #[error("write the machine's {0}")]
    Write(&'static str, #[source] io::Error),
}
