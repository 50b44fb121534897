//! What splice-vmm tells other programs.
//!
//! Types only, with the JSON they have on the wire; no KVM, no I/O. A field may be added, none changes its meaning.

mod control;
mod host;
mod sandbox;

pub use control::{Answer, Command, LINE_BYTES_MAX, MachineState, MachineStatus, Then, VCPUS_MAX};
pub use host::{CpuVirt, HostVirt, KvmKind, Probe, ProbeOutcome};
pub use sandbox::SandboxReport;
