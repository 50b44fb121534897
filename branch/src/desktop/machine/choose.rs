//! Which machine runs a desktop: splice-vmm where it can, else QEMU. Pure, so that every kind of host can be tested here.
//!
//! Whatever is chosen has a reason that a person can act on. A pool that insists on splice-vmm is refused with what is missing, never
//! run by something else.

use std::path::PathBuf;

use dedup_protocol::records::MachineType;
use serde::{Deserialize, Serialize};
use vmm_api::{HostVirt, VCPUS_MAX};

use super::Confinement;

/// Which machine runs a desktop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MachineKind {
    /// splice-vmm.
    #[serde(rename = "splice")]
    Splice,
    /// QEMU on KVM.
    #[serde(rename = "qemu-kvm", alias = "kvm")]
    QemuKvm,
    /// QEMU that emulates the processor.
    #[serde(rename = "qemu-tcg", alias = "tcg")]
    QemuTcg,
}

impl MachineKind {
    /// As the API says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Splice => "splice",
            Self::QemuKvm => "qemu-kvm",
            Self::QemuTcg => "qemu-tcg",
        }
    }
}

/// How QEMU reaches a desktop's disk. splice-vmm knows vhost-user only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFront {
    /// As an NBD export.
    #[default]
    Nbd,
    /// Over vhost-user: the branch server reads and writes the guest's memory itself.
    VhostUser,
}

impl DiskFront {
    /// As options and the API say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nbd => "nbd",
            Self::VhostUser => "vhost-user",
        }
    }
}

impl std::fmt::Display for DiskFront {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for DiskFront {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = [Self::Nbd, Self::VhostUser];
        let found = known.into_iter().find(|front| front.name() == text);
        found.ok_or_else(|| format!("{text:?}: nbd and vhost-user are known"))
    }
}

/// What machines are made with.
#[derive(Debug, Clone)]
pub struct MachineHost {
    /// What this host's KVM can do.
    pub virt: HostVirt,
    /// The splice-vmm program; none if it is not installed.
    pub vmm: Option<PathBuf>,
    /// The QEMU program.
    pub qemu: PathBuf,
    /// How QEMU reaches disks.
    pub qemu_disk: DiskFront,
    /// The server's NBD socket.
    pub nbd_socket: PathBuf,
    /// How splice-vmm is confined.
    pub confinement: Confinement,
}

/// What a desktop asks of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Its version's kernel can be started without firmware.
    pub has_kernel: bool,
    /// It has a TPM.
    pub tpm: bool,
    /// Virtual CPUs.
    pub vcpus: u32,
}

/// What was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The machine.
    pub kind: MachineKind,
    /// Why.
    pub reason: String,
}

/// The pool insists on splice-vmm, and that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "its pool asks for machine type splice, which cannot run it here: {missing}; mend that, or assign the pool with --machine auto"
)]
pub struct NoSplice {
    /// What is missing.
    pub missing: String,
}

/// Chooses a machine of type `wanted`.
///
/// # Errors
/// The pool insists on splice-vmm.
pub fn choose(wanted: MachineType, needs: Needs, host: &MachineHost) -> Result<Choice, NoSplice> {
    let missing = missing(needs, host);
    let why_qemu = match (wanted, missing) {
        (MachineType::Auto, None) => {
            let reason = format!(
                "hardware KVM ({}), and the version's kernel starts without firmware",
                host.virt.reasons.join("; ")
            );
            return Ok(Choice {
                kind: MachineKind::Splice,
                reason,
            });
        }
        (MachineType::Splice, None) => {
            return Ok(Choice {
                kind: MachineKind::Splice,
                reason: "its pool asks for it".into(),
            });
        }
        (MachineType::Splice, Some(missing)) => return Err(NoSplice { missing }),
        (MachineType::Qemu, _) => "its pool asks for QEMU".to_owned(),
        (MachineType::Auto, Some(missing)) => format!("not splice-vmm: {missing}"),
    };
    Ok(qemu(why_qemu, host))
}

/// QEMU, on KVM where that runs desktops.
pub fn qemu(why: String, host: &MachineHost) -> Choice {
    if host.virt.kind.runs_desktops() {
        return Choice {
            kind: MachineKind::QemuKvm,
            reason: why,
        };
    }
    let no_kvm = no_kvm(&host.virt);
    let reason = if why.contains(&no_kvm) {
        why
    } else {
        format!("{why}; without KVM: {no_kvm}")
    };
    Choice {
        kind: MachineKind::QemuTcg,
        reason,
    }
}

/// Why desktops cannot use KVM here.
fn no_kvm(virt: &HostVirt) -> String {
    let reasons = virt.reasons.join("; ");
    match virt.kind {
        vmm_api::KvmKind::EmulatedRing0 => {
            format!("KVM emulates the guests' kernel mode here ({reasons})")
        }
        _ => format!("there is no usable KVM here ({reasons})"),
    }
}

/// The first thing for want of which splice-vmm cannot run the desktop.
fn missing(needs: Needs, host: &MachineHost) -> Option<String> {
    if needs.tpm {
        return Some("the pool asks for a TPM, and splice-vmm has none".into());
    }
    if !needs.has_kernel {
        return Some(
            "no kernel was found in the version, and splice-vmm has no firmware to start it".into(),
        );
    }
    if needs.vcpus > u32::from(VCPUS_MAX) {
        return Some(format!(
            "the pool asks for {} processors, and splice-vmm has {VCPUS_MAX} at most",
            needs.vcpus
        ));
    }
    if !host.virt.kind.runs_desktops() {
        return Some(no_kvm(&host.virt));
    }
    if host.vmm.is_none() {
        return Some("the program splice-vmm is neither beside splice-branch nor in PATH".into());
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use vmm_api::{CpuVirt, KvmKind};

    use super::*;

    const PLAIN: Needs = Needs {
        has_kernel: true,
        tpm: false,
        vcpus: 2,
    };

    fn host(kind: KvmKind, reason: &str) -> MachineHost {
        MachineHost {
            virt: HostVirt {
                kind,
                reasons: vec![reason.into()],
                advice: None,
                probes: Vec::new(),
                instructions_per_second: None,
                cpu: CpuVirt::default(),
            },
            vmm: Some("/usr/bin/splice-vmm".into()),
            qemu: "qemu-system-x86_64".into(),
            qemu_disk: DiskFront::VhostUser,
            nbd_socket: "/nbd.sock".into(),
            confinement: Confinement::default(),
        }
    }

    #[test]
    fn auto_takes_splice_vmm_on_hardware_kvm_for_what_it_can_run() {
        let hardware = host(KvmKind::Hardware, "guests run at speed");
        let choice = choose(MachineType::Auto, PLAIN, &hardware).unwrap();
        assert_eq!(choice.kind, MachineKind::Splice);
        assert!(choice.reason.contains("guests run at speed"));
        for (needs, word) in [
            (
                Needs {
                    has_kernel: false,
                    ..PLAIN
                },
                "no kernel",
            ),
            (Needs { tpm: true, ..PLAIN }, "TPM"),
            (Needs { vcpus: 65, ..PLAIN }, "65 processors"),
        ] {
            let choice = choose(MachineType::Auto, needs, &hardware).unwrap();
            assert_eq!(choice.kind, MachineKind::QemuKvm);
            assert!(choice.reason.contains(word), "{}", choice.reason);
        }
        let absent = MachineHost {
            vmm: None,
            ..hardware
        };
        let choice = choose(MachineType::Auto, PLAIN, &absent).unwrap();
        assert_eq!(choice.kind, MachineKind::QemuKvm);
        assert!(choice.reason.contains("splice-vmm is neither"));
    }

    #[test]
    fn without_hardware_kvm_qemu_emulates_and_says_why_once() {
        for (kind, word) in [
            (KvmKind::EmulatedRing0, "emulates the guests' kernel mode"),
            (KvmKind::None, "no usable KVM"),
        ] {
            let host = host(kind, "popcnt is unknown");
            for wanted in [MachineType::Auto, MachineType::Qemu] {
                let choice = choose(wanted, PLAIN, &host).unwrap();
                assert_eq!(choice.kind, MachineKind::QemuTcg);
                assert_eq!(choice.reason.matches(word).count(), 1, "{}", choice.reason);
                assert!(choice.reason.contains("popcnt"));
            }
            let needs = Needs { tpm: true, ..PLAIN };
            let choice = choose(MachineType::Auto, needs, &host).unwrap();
            assert!(choice.reason.contains("TPM") && choice.reason.contains(word));
        }
    }

    #[test]
    fn a_pool_that_insists_gets_splice_vmm_or_is_told_what_is_missing() {
        let hardware = host(KvmKind::Hardware, "fast");
        let choice = choose(MachineType::Splice, PLAIN, &hardware).unwrap();
        assert_eq!(choice.kind, MachineKind::Splice);
        let choice = choose(MachineType::Qemu, PLAIN, &hardware).unwrap();
        assert_eq!(choice.kind, MachineKind::QemuKvm);
        let none = host(KvmKind::None, "there is no /dev/kvm");
        let refused = choose(MachineType::Splice, PLAIN, &none).unwrap_err();
        assert!(refused.to_string().contains("there is no /dev/kvm"));
    }

    #[test]
    fn rows_of_former_programs_are_understood() {
        let kind: MachineKind = serde_json::from_str(r#""tcg""#).unwrap();
        assert_eq!(kind, MachineKind::QemuTcg);
        for kind in [
            MachineKind::Splice,
            MachineKind::QemuKvm,
            MachineKind::QemuTcg,
        ] {
            let text = serde_json::to_string(&kind).unwrap();
            assert_eq!(text, format!("{:?}", kind.name()));
        }
    }
}
