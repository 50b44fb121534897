//! The branch server's own API: what the `splice desktop` commands and the portal ask of it, over a Unix socket beside its data.
//!
//! Types here are JSON on the wire. With the feature `client` there is a client too.

use datacenter_api::{BootReport, MachineType};
use serde::{Deserialize, Serialize};

#[cfg(feature = "client")]
mod client;
#[cfg(feature = "client")]
pub use client::{Client, ClientError};

/// Asks for a desktop to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartDesktop {
    /// Its pool, as the branch's assignment names it.
    pub pool: String,
    /// Its name: a desktop of that name that is stopped goes on with what was written to it; else a fresh one is made.
    pub name: String,
    /// Only serve its disk: somebody else (libvirt, say) runs its machine.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub serve_only: bool,
}

/// A desktop's machine as a libvirt domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LibvirtDomain {
    /// The domain's XML.
    pub xml: String,
}

/// How to stop a desktop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopDesktop {
    /// End the machine at once instead of asking the guest to shut down.
    #[serde(default)]
    pub force: bool,
}

/// What a desktop is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DesktopState {
    /// Its machine is being started.
    Starting,
    /// Its machine runs.
    Running,
    /// Its disk is served to a machine that somebody else runs.
    Served,
    /// A read or write cannot be done for now (link down and chunk missing, or disk full): its machine is paused, or the guest waits. It
    /// goes on by itself.
    Paused,
    /// It has no machine; what was written to it is kept.
    Stopped,
    /// Its machine ended or its volume failed; see `error`.
    Failed,
}

/// A desktop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desktop {
    /// Its name, unique at the branch.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// Id of the version under it.
    pub version: String,
    /// That version's image.
    pub image: String,
    /// That version's number in the image.
    pub version_number: u32,
    /// What it is doing.
    pub state: DesktopState,
    /// Why, if it failed or is paused.
    pub error: Option<String>,
    /// Which machine its pool asked for when it was started last.
    #[serde(default)]
    pub machine_type: MachineType,
    /// Whether it has a TPM.
    #[serde(default)]
    pub tpm: bool,
    /// `splice`, `qemu-kvm` or `qemu-tcg`, while it runs.
    pub machine: Option<String>,
    /// Why it is that machine.
    #[serde(default)]
    pub machine_reason: Option<String>,
    /// What of splice-vmm's sandbox is in force around its machine, while that runs: `full`, or what is lacking.
    #[serde(default)]
    pub sandbox: Option<String>,
    /// Its network, while its machine runs and has a card: `nat`, with its address, or `bridge=NAME`.
    #[serde(default)]
    pub network: Option<String>,
    /// How the machine reaches its disk: `vhost-user` or `nbd`.
    #[serde(default)]
    pub disk: Option<String>,
    /// Process id of its machine, while it runs.
    pub pid: Option<u32>,
    /// Log of its serial console (a path at the branch server).
    pub serial_log: String,
    /// Unix socket on which its serial console can be read and typed at.
    pub serial_socket: String,
    /// Unix socket of its screen, for viewers that speak RFB (VNC), while it runs.
    #[serde(default)]
    pub screen_socket: Option<String>,
    /// Unix socket of its screen, for viewers that speak SPICE, while it runs under a QEMU that has it.
    #[serde(default)]
    pub spice_socket: Option<String>,
    /// Unix socket at which its disk is served over vhost-user, while its volume is open.
    #[serde(default)]
    pub disk_socket: Option<String>,
    /// Name of its NBD export.
    pub nbd_export: String,
    /// When its machine was started, unix milliseconds.
    pub started_unix_ms: Option<u64>,
    /// Chunks that it had to wait for since the branch server started.
    pub demand_chunks: u64,
    /// How its last boot went; none until that has settled or the desktop was stopped.
    #[serde(default)]
    pub boot: Option<BootReport>,
    /// Bytes written to its overlay.
    pub overlay_bytes: u64,
}

/// All desktops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesktopList {
    /// By name.
    pub desktops: Vec<Desktop>,
}

/// Every error of this API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What went wrong, one line.
    pub error: String,
}
