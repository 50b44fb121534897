//! What is remembered of a desktop across restarts of the branch server.

use std::net::Ipv4Addr;

use datacenter_api::BootReport;
use dedup::DesktopId;
use dedup_protocol::profile::BootScore;
use dedup_protocol::records::MachineType;
use serde::{Deserialize, Serialize};

use super::machine::{DiskFront, MachineKind};

/// Name of the desktop of which a template is made. Nobody else's has a dot, and there is one at a time.
pub const THROWAWAY: &str = "template.new";

/// A desktop, as the catalog keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesktopRecord {
    /// Its name, unique at the branch; also the name of its overlay's directory.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// Random, stamped into its overlay.
    pub id: [u8; 16],
    /// Id (64 hexadecimal digits) of the version under its overlay.
    pub version: String,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Which machine its pool asked for when it was started last.
    #[serde(default)]
    pub wanted: MachineType,
    /// Whether it has a TPM, as its pool asked for when it was started last.
    #[serde(default)]
    pub tpm: bool,
    /// Id of its system volume, if that is not its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<[u8; 16]>,
    /// Its user volume, if it has one. It stays with the desktop until that is deleted, whatever its pool asks for later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_volume: Option<UserVolumeRecord>,
    /// The user that its machine becomes, once it was given one.
    #[serde(default)]
    pub uid: Option<u32>,
    /// Its address behind the branch's NAT, once it was given one.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
    /// Its system begins anew at log-off: nothing of it is leased or written back. Decided when the system begins.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pooled: bool,
    /// Id of the version that it is to run instead of its pool's, if somebody chose one for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<String>,
    /// Why it stays on its version though it is to run another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_back: Option<String>,
    /// A rebase that is under way: its overlay comes to lie over another version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebasing: Option<Rebasing>,
    /// It is tried out and thrown away: nothing of it is leased or written back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub trial: bool,
    /// Created, unix milliseconds.
    pub created_unix_ms: u64,
    /// Its volume is open for a machine that somebody else runs.
    #[serde(default)]
    pub served: bool,
    /// The machine process, if one was started and not seen to end.
    pub machine: Option<MachineRecord>,
    /// Its system is being made of a template: until that is done, what is there of it is nobody's, and begins anew.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cloning: bool,
    /// Why the last machine ended, if not by its user's or operator's wish.
    pub error: Option<String>,
    /// How its last boot went, once that has settled.
    #[serde(default)]
    pub boot: Option<BootReport>,
}

impl DesktopRecord {
    /// Whether a machine, or somebody else, has its volume open, as far as is known.
    pub fn is_up(&self) -> bool {
        self.served || self.machine.is_some()
    }

    /// Id of its system volume: its own, or another one since its system began anew. What was written back under the one before is no past of it.
    pub fn system_volume(&self) -> DesktopId {
        DesktopId(self.system.unwrap_or(self.id))
    }

    /// Ids of its volumes that are leased and written back. It runs while this branch may run all of them. Nobody is told of a trial or a throwaway, so
    /// nobody leases those.
    pub fn volumes(&self) -> Vec<DesktopId> {
        let system = (!self.pooled).then(|| self.system_volume());
        let user = self.user_volume.as_ref().map(|user| DesktopId(user.id));
        let volumes = system.into_iter().chain(user);
        let is_told_of = !self.trial && self.name != THROWAWAY;
        volumes.filter(|_| is_told_of).collect()
    }
}

/// Where a rebase leads. Kept before anything is changed, so that it is finished after any stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rebasing {
    /// Id of the version.
    pub version: String,
    /// Id of the system volume from then on: what was written back of the one before is no past of it.
    pub system: [u8; 16],
}

/// A desktop's user volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserVolumeRecord {
    /// Random, stamped into its overlay; its serial number is made of it.
    pub id: [u8; 16],
    /// Its size in bytes, a multiple of 512.
    pub size_bytes: u64,
    /// It was opened once: that its overlay is not there would be a loss, not a beginning.
    #[serde(default)]
    pub made: bool,
}

/// A score as it is told outside.
pub fn boot_report(score: &BootScore) -> BootReport {
    let BootScore {
        profile,
        boot_ms,
        touched_chunks,
        touched_bytes,
        covered_bytes,
        waited_bytes,
        prefetched_bytes,
        wasted_bytes,
    } = *score;
    BootReport {
        profile,
        boot_ms,
        touched_chunks,
        touched_bytes,
        covered_bytes,
        waited_bytes,
        prefetched_bytes,
        wasted_bytes,
    }
}

/// A machine process that outlives the branch server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// Process id.
    pub pid: u32,
    /// Its start time in clock ticks since boot (field 22 of `/proc/PID/stat`): tells it from a later process of the same id.
    pub start_ticks: u64,
    /// Which machine it is. Former programs wrote `kvm` or `tcg`, as `accelerator`.
    #[serde(alias = "accelerator")]
    pub kind: MachineKind,
    /// Started, unix milliseconds.
    pub started_unix_ms: u64,
    /// Why it is that machine.
    #[serde(default)]
    pub reason: String,
    /// How it reaches its disk.
    #[serde(default)]
    pub disk: DiskFront,
    /// What of a sandbox is in force around it; none around QEMU.
    #[serde(default)]
    pub sandbox: Option<String>,
    /// Its network, as it is told; none without a card.
    #[serde(default)]
    pub network: Option<String>,
    /// How it was started, where its pool asks for desktops that resume: `resumed`, or why it booted.
    #[serde(default)]
    pub start: Option<String>,
}

/// Longest desktop name. It becomes part of Unix socket paths, which end at 107 bytes.
pub const NAME_BYTES_MAX: usize = 32;

/// Refuses names that cannot be a directory, an export name and a host name at once.
pub fn check_name(name: &str) -> Result<(), String> {
    let ok = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-');
    if ok {
        return Ok(());
    }
    Err(format!(
        "desktop name {name:?}: use 1 to {NAME_BYTES_MAX} of a-z, 0-9 and -, not beginning with -"
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn what_begins_anew_or_is_thrown_away_is_not_leased() {
        let row = r#"{"name":"alice","pool":"office","id":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"version":"00","memory_mib":1024,"vcpus":2,
            "user_volume":{"id":[2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2],"size_bytes":512},"created_unix_ms":1,"machine":null,"error":null}"#;
        let mut desktop: DesktopRecord = serde_json::from_str(row).unwrap();
        let (system, user) = (DesktopId([1; 16]), DesktopId([2; 16]));
        assert_eq!(desktop.volumes(), [system, user]);
        desktop.pooled = true;
        assert_eq!(desktop.volumes(), [user]);
        desktop.trial = true;
        assert!(desktop.volumes().is_empty());
        (desktop.trial, desktop.name) = (false, THROWAWAY.into());
        assert!(desktop.volumes().is_empty());
    }

    #[test]
    fn nobody_else_has_the_throwaway_s_name() {
        check_name(THROWAWAY).unwrap_err();
        assert!(THROWAWAY.len() <= NAME_BYTES_MAX);
    }

    #[test]
    fn rows_of_former_programs_are_read() {
        let row = r#"{"name":"alice","pool":"office","id":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0],"version":"00","memory_mib":1024,"vcpus":2,
            "created_unix_ms":1,"machine":{"pid":7,"start_ticks":8,"accelerator":"kvm","started_unix_ms":9},"error":null}"#;
        let desktop: DesktopRecord = serde_json::from_str(row).unwrap();
        assert_eq!((desktop.wanted, desktop.tpm), (MachineType::Auto, false));
        assert_eq!(desktop.user_volume, None);
        assert_eq!((desktop.uid, desktop.address), (None, None));
        assert!(!desktop.pooled && !desktop.trial && desktop.rebasing.is_none());
        let machine = desktop.machine.clone().unwrap();
        assert_eq!(machine.kind, MachineKind::QemuKvm);
        assert_eq!(
            (machine.reason.as_str(), machine.disk),
            ("", DiskFront::Nbd)
        );
        assert_eq!((machine.sandbox, machine.network), (None, None));
        assert_eq!((machine.start, desktop.cloning), (None, false));
        let again = serde_json::to_string(&desktop).unwrap();
        assert!(again.contains(r#""kind":"qemu-kvm""#), "{again}");
        assert_eq!(
            serde_json::from_str::<DesktopRecord>(&again).unwrap(),
            desktop
        );
    }
}
