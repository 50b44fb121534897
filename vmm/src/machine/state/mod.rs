//! What KVM keeps of a machine, taken out of it and put into another: processors, interrupt controllers, timer and clock.
//!
//! Time goes on while a machine sleeps: a guest finds all its clocks (TSC, KVM's clock, ACPI's timer) moved by the time that has passed,
//! by the same amount, and is told that it was stopped, so that its watchdogs do not bark. Nothing is taken from a processor that runs.

pub mod features;
mod vcpu;
mod vm;

pub use vcpu::{VcpuState, msr_indices, stopped};
pub use vm::VmState;

use crate::snapshot::parts::Part;
use serde::{Deserialize, Serialize};

/// Why a state cannot be taken or put back.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// KVM refuses.
    #[error("KVM: {0}")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    /// A register that this host does not take.
    #[error(
        "processor {processor}: this host does not take {value:#x} in model-specific register {register:#x}"
    )]
    Msr {
        /// Which processor.
        processor: usize,
        /// Which register.
        register: u32,
        /// Its value.
        value: u64,
    },
    /// Guests in guests.
    #[error(
        "the guest runs virtual machines itself: their state cannot be saved; have it end them"
    )]
    Nested,
    /// Registers beyond what is kept.
    #[error("processors have {0} bytes of extended registers, 4096 are known")]
    Extended(i32),
    /// Another frequency.
    #[error(
        "the snapshot's time stamp counter runs at {saved_khz} kHz, this host's at {here_khz} kHz and cannot be scaled"
    )]
    Frequency {
        /// In the snapshot.
        saved_khz: u32,
        /// Here.
        here_khz: u32,
    },
    /// Too many features.
    #[error("a list of {0} features of a processor is longer than KVM takes")]
    Features(usize),
}

/// Processors in their order.
#[derive(Serialize, Deserialize)]
pub struct Processors(pub Vec<VcpuState>);

impl Part for Processors {
    const NUMBER: u16 = 3;
    const VERSION: u16 = 1;
    const NAME: &'static str = "processors";
}

impl Part for VmState {
    const NUMBER: u16 = 4;
    const VERSION: u16 = 1;
    const NAME: &'static str = "interrupt controllers";
}
