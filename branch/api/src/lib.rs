//! The branch server's own API: what the `splice desktop` commands and the portal ask of it, over a Unix socket beside its data.
//!
//! Types here are JSON on the wire. With the feature `client` there is a client too.

use datacenter_api::{BootReport, MachineType, PoolReadiness};
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

/// Proves who somebody is. The branch answers by itself, with the line up or cut.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogIn {
    /// The account's name.
    pub name: String,
    /// Its password.
    pub password: String,
    /// The code of its second factor, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

impl std::fmt::Debug for LogIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The password is a secret.
        write!(f, "LogIn(name={:?})", self.name)
    }
}

/// Somebody who was let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggedIn {
    /// The account's name.
    pub name: String,
    /// Pools of this branch that the person may use.
    pub pools: Vec<String>,
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

/// Has a desktop run another version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rebase {
    /// `IMAGE@N` or an id; none: what its pool runs, now and from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// Where the trial of a desktop on another version stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PreflightState {
    /// It goes on.
    Running,
    /// It has booted, with the user's volume mounted.
    Healthy,
    /// It has not, or not so.
    Unhealthy,
    /// It could not be tried.
    Failed,
    /// Somebody wanted the desktop before it was known.
    Ended,
}

/// The trial of a desktop on another version, in a machine that is thrown away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preflight {
    /// The desktop.
    pub desktop: String,
    /// Id of the version.
    pub version: String,
    /// That version's image.
    pub image: String,
    /// That version's number in the image.
    pub version_number: u32,
    /// Where it stands.
    pub state: PreflightState,
    /// What it does, or how it ended.
    pub says: String,
    /// What its agent finds wrong.
    pub complaints: Vec<String>,
    /// The agent inside, if one was heard.
    pub agent: Option<String>,
    /// How its boot went, once that had settled.
    pub boot: Option<BootReport>,
    /// When it began, unix milliseconds.
    pub started_unix_ms: u64,
    /// When it ended, unix milliseconds.
    pub ended_unix_ms: Option<u64>,
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
    /// Its random id, which its agent makes the machine's.
    #[serde(default)]
    pub identity: String,
    /// Whether its system begins anew at log-off. Else it is kept.
    #[serde(default)]
    pub pooled: bool,
    /// Why it stays on its version though it is to run another one.
    #[serde(default)]
    pub kept_back: Option<String>,
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
    /// Bytes that must come free on the branch's disk before it goes on, if it is paused because there is no room.
    #[serde(default)]
    pub missing_bytes: Option<u64>,
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
    /// How it was started, where its pool asks for desktops that resume: `resumed`, or `booted` and why; while it runs.
    #[serde(default)]
    pub start: Option<String>,
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
    /// Its user volume, if it has one.
    #[serde(default)]
    pub user_volume: Option<UserVolume>,
    /// Its volumes, and how far they are written back.
    #[serde(default)]
    pub volumes: Vec<VolumeLine>,
    /// How its checkout stands, if it is checked out to this branch.
    #[serde(default)]
    pub checkout: Option<CheckedOut>,
    /// What its agent says; none if it has none or is not running.
    #[serde(default)]
    pub guest: Option<Guest>,
    /// Unix socket of its agent's port, while it runs.
    #[serde(default)]
    pub agent_socket: Option<String>,
}

/// A desktop that is checked out to this branch, a laptop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedOut {
    /// Until when it runs without the datacenter's word, unix seconds; its volumes' leases say it exactly.
    pub until_unix_s: u64,
    /// It is being checked in.
    pub ending: bool,
    /// Bytes that are not here and that it may read; none before that is known.
    #[serde(default)]
    pub missing_bytes: Option<u64>,
}

/// A desktop's user volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserVolume {
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Bytes in its overlay's log, while it is open.
    pub written_bytes: Option<u64>,
    /// The virtio serial number by which the guest finds its disk.
    pub serial: String,
    /// Name of its NBD export.
    pub nbd_export: String,
    /// Unix socket at which it is served over vhost-user, while it is open.
    pub disk_socket: Option<String>,
}

/// A volume of a desktop, and how far the datacenter has what was written to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeLine {
    /// Its id, by which the datacenter names it.
    pub id: String,
    /// `system` or `user`.
    pub kind: String,
    /// `held`, `recalled` (it is being moved to another branch), `returning`, `fenced`, `given up`, `idle`, or `unleased`: the datacenter was not reached
    /// yet or knows no leases.
    pub lease: String,
    /// Which time it is that it was given to a branch; 0: never.
    pub generation: u64,
    /// Until when it may run without the datacenter, unix seconds, while it is held.
    #[serde(default)]
    pub ends_unix_s: Option<u64>,
    /// Why it may not run.
    #[serde(default)]
    pub no_right: Option<String>,
    /// Durable records that are not at the datacenter; none: nothing is sent there, and what is written is kept at this branch only.
    #[serde(default)]
    pub behind_records: Option<u64>,
    /// Since when there are any, in seconds: what the loss of the branch would cost (RPO).
    #[serde(default)]
    pub behind_s: u64,
    /// When the newest that is there was sealed, unix seconds, if any came since the branch server started.
    #[serde(default)]
    pub applied_unix_s: Option<u64>,
    /// What keeps it from being sent.
    #[serde(default)]
    pub trouble: Option<String>,
}

impl VolumeLine {
    /// How far the datacenter has it, in a few words.
    pub fn lag(&self) -> String {
        match self.behind_records {
            None => "kept at this branch only".to_owned(),
            Some(0) => "all at the datacenter".to_owned(),
            Some(records) => format!("{records} records behind for {} s", self.behind_s),
        }
    }
}

/// A snapshot that was asked for. The datacenter cuts it when what was written until then is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotAsked {
    /// Volumes of which there is something that the datacenter does not have. Of the others its newest state is what they show.
    pub volumes: u64,
    /// Whether the guest's user volume was frozen meanwhile.
    pub frozen: bool,
}

/// What the agent inside a desktop last said. All of it is the guest's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// The agent's version.
    pub agent: String,
    /// The protocol that is spoken with it; none if there is no common one, and nothing else is known then.
    pub protocol: Option<u16>,
    /// Whether it answers.
    pub connected: bool,
    /// When it last said something, unix milliseconds, by the branch's clock.
    pub heard_unix_ms: u64,
    /// Its boot is done.
    pub booted: bool,
    /// The machine id that it was told, if it says that it is wholly whom it was told to be; older agents do not say.
    #[serde(default)]
    pub itself: Option<String>,
    /// Who is logged on.
    pub users: Vec<GuestUser>,
    /// How its user volume is.
    pub user_volume: GuestVolume,
    /// Why its user volume is refused, if it is.
    #[serde(default)]
    pub user_volume_refusal: Option<String>,
    /// How full its file systems are.
    pub disks: Vec<GuestDisk>,
    /// Services that failed.
    pub failed_units: Vec<String>,
    /// What the agent could not do.
    pub troubles: Vec<String>,
    /// Lines that were no messages, since its machine was connected to.
    #[serde(default)]
    pub malformed_lines: u64,
}

/// Somebody who is logged on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestUser {
    /// The user's name in the guest.
    pub name: String,
    /// Since when, unix seconds, by the guest's clock.
    pub since_unix_s: u64,
}

/// How full a file system of a guest is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestDisk {
    /// Where it is mounted.
    pub place: String,
    /// Used, in percent of what users may use.
    pub used_percent: u8,
}

/// How a user volume is, as the guest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestVolume {
    /// It has not said yet.
    Unknown,
    /// The desktop has none.
    None,
    /// The guest does not see it.
    Missing,
    /// Mounted.
    Mounted,
    /// Left as it is.
    Refused,
}

impl Guest {
    /// What is wrong with the desktop, a line for each thing; none if nothing is.
    pub fn complaints(&self) -> Vec<String> {
        /// Used percent from which programs begin to fail.
        const FULL: u8 = 95;
        let mut lines = Vec::new();
        if self.protocol.is_none() {
            lines.push(format!(
                "its agent ({}) speaks no protocol of this branch: upgrade the older one",
                self.agent
            ));
        }
        let refusal = self.user_volume_refusal.iter();
        lines.extend(refusal.map(|why| format!("user volume not mounted: {why}")));
        if self.user_volume == GuestVolume::Missing {
            lines.push("user volume not mounted: the guest does not see its disk".to_owned());
        }
        let full = self.disks.iter().filter(|disk| disk.used_percent >= FULL);
        lines.extend(full.map(|disk| format!("{} is {} % full", disk.place, disk.used_percent)));
        let failed = self.failed_units.iter();
        lines.extend(failed.map(|unit| format!("{unit} failed")));
        lines.extend(self.troubles.iter().cloned());
        lines
    }
}

/// All desktops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesktopList {
    /// By name.
    pub desktops: Vec<Desktop>,
}

/// How a pool's template stands, from which its fresh desktops go on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TemplateState {
    /// It is there.
    Ready,
    /// It is being made.
    Making,
    /// It is to be made.
    Wanted,
    /// There is none, see `why`. Desktops boot.
    #[default]
    Missing,
}

impl TemplateState {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Making => "making",
            Self::Wanted => "wanted",
            Self::Missing => "missing",
        }
    }
}

/// What a pool's fresh desktops go on from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Template {
    /// The pool.
    pub pool: String,
    /// The version's image.
    pub image: String,
    /// The version's number in the image; 0 if it is not here yet.
    pub version_number: u32,
    /// The version's id.
    pub version: String,
    /// How it stands.
    pub state: TemplateState,
    /// Why there is none.
    pub why: Option<String>,
    /// Bytes that it takes on the branch's disk.
    pub bytes: Option<u64>,
    /// Whether it is in memory, where the next desktops find it.
    pub in_memory: bool,
}

/// The templates that pools ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateList {
    /// In the order of the assignment.
    pub templates: Vec<Template>,
}

/// Asks the branch to fetch what pools need to boot with the WAN cut.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prepare {
    /// One pool; without it, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
}

/// What that begins. It goes on in the background, as fill: in the branch's hours and caps, after guests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// How the pools stood when it began.
    pub pools: Vec<PoolReadiness>,
    /// Whether the link is up; if not, it begins when it is.
    pub connected: bool,
    /// Whether the branch's hours of fill are now; if not, it begins then.
    pub fill_hour: bool,
}

/// What the cache holds, by pool and by rank.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheReport {
    /// Bytes held, in slots of 4 KiB.
    pub bytes: u64,
    /// Bytes that may be held.
    pub capacity_bytes: u64,
    /// Whether the link is up. While it is down, nothing that something needs is evicted.
    pub connected: bool,
    /// The ranks, in the order in which they are evicted.
    pub ranks: Vec<RankCache>,
    /// In the order of the assignment. A chunk that several pools show counts for each of them.
    pub pools: Vec<PoolCache>,
}

/// Chunks of one rank.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RankCache {
    /// `loose` (nothing here needs it), `spare` (fetched on demand, or of stopped desktops), `whole` (of versions that are to be whole
    /// here), `boot` (read by boots of assigned versions), `open` (of desktops that are up on versions that no pool runs).
    pub rank: String,
    /// Chunks held.
    pub chunks: u64,
    /// Bytes that their slots take.
    pub bytes: u64,
    /// Whether fill may push them out at this moment.
    pub evictable: bool,
}

/// What is held of a pool's versions: the one that it runs and those it pins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PoolCache {
    /// The pool.
    pub pool: String,
    /// Its versions, `IMAGE@NUMBER`.
    pub versions: Vec<String>,
    /// Their bytes in all, each chunk once.
    pub total_bytes: u64,
    /// Bytes that are here.
    pub resident_bytes: u64,
    /// Bytes of them that fill never pushes out.
    pub pinned_bytes: u64,
    /// Bytes of those that boots read: evicted last.
    pub boot_bytes: u64,
    /// Bytes that fill may push out at this moment.
    pub evictable_bytes: u64,
}

/// Every error of this API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What went wrong, one line.
    pub error: String,
}
