//! What `splice-vmm check --json` prints: which kind of virtualisation this machine has.

use serde::{Deserialize, Serialize};

/// The three kinds of machine, as far as running desktops goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvmKind {
    /// KVM with VT-x or AMD-V behind it: desktops run at the processor's speed.
    Hardware,
    /// `/dev/kvm` works, but a guest's kernel mode runs in the host kernel's instruction emulator, which is a
    /// thousand times slower and lacks instructions that every desktop's kernel uses. Desktops need QEMU's TCG.
    EmulatedRing0,
    /// No usable `/dev/kvm`. Desktops need QEMU's TCG.
    None,
}

impl KvmKind {
    /// The exit status of `splice-vmm check` for this kind.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Hardware => 0,
            Self::EmulatedRing0 => 10,
            Self::None => 11,
        }
    }

    /// Whether splice-vmm can run a stock desktop here.
    #[must_use]
    pub const fn runs_desktops(self) -> bool {
        matches!(self, Self::Hardware)
    }
}

/// How a probe ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum ProbeOutcome {
    /// The guest got the right answer.
    Works,
    /// KVM does not offer the instruction to guests, so it was not tried.
    NotOffered,
    /// The guest got an answer, and it is wrong.
    Wrong {
        /// What the guest found in its result register.
        got: u64,
        /// What it should have found.
        expected: u64,
    },
    /// KVM gave up on the instruction (KVM_EXIT_INTERNAL_ERROR, suberror 1): an emulator that does not know it.
    NotEmulated,
    /// The guest shut down: the instruction raised an exception.
    Fault,
    /// The guest did not finish in its time.
    TimedOut,
    /// KVM refused, or ended the run in some other way.
    Refused {
        /// Which step, and what it said.
        error: String,
    },
}

/// One tiny guest and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The instruction or faculty, for example `popcnt`.
    pub name: String,
    /// How it ended.
    pub outcome: ProbeOutcome,
    /// Time that the guest ran, microseconds.
    pub micros: u64,
}

/// What the processor says about itself in `/proc/cpuinfo`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuVirt {
    /// Model name, empty if unknown.
    pub model: String,
    /// Intel VT-x is visible.
    pub vmx: bool,
    /// AMD-V is visible.
    pub svm: bool,
    /// This machine is itself a virtual one.
    pub hypervisor: bool,
}

/// The answer to "can desktops run here?".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostVirt {
    /// The verdict.
    pub kind: KvmKind,
    /// What the verdict rests on, in sentences for a person.
    pub reasons: Vec<String>,
    /// What to do about it, if there is something.
    pub advice: Option<String>,
    /// The guests that were run; empty where none could be.
    pub probes: Vec<Probe>,
    /// Simple instructions per second in a guest's kernel mode, if the arithmetic guest finished.
    pub instructions_per_second: Option<u64>,
    /// What the processor says.
    pub cpu: CpuVirt,
}

impl HostVirt {
    /// Names of the probes that KVM promised and did not keep.
    pub fn broken(&self) -> impl Iterator<Item = &str> {
        self.probes
            .iter()
            .filter(|probe| {
                !matches!(
                    probe.outcome,
                    ProbeOutcome::Works | ProbeOutcome::NotOffered
                )
            })
            .map(|probe| probe.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::{CpuVirt, HostVirt, KvmKind, Probe, ProbeOutcome};

    #[test]
    fn the_json_is_what_other_programs_rely_on() {
        let host = HostVirt {
            kind: KvmKind::EmulatedRing0,
            reasons: vec!["slow".into()],
            advice: None,
            probes: vec![
                Probe {
                    name: "popcnt".into(),
                    outcome: ProbeOutcome::NotEmulated,
                    micros: 3,
                },
                Probe {
                    name: "tzcnt".into(),
                    outcome: ProbeOutcome::Wrong {
                        got: 1,
                        expected: 64,
                    },
                    micros: 4,
                },
                Probe {
                    name: "sse2".into(),
                    outcome: ProbeOutcome::Works,
                    micros: 4,
                },
            ],
            instructions_per_second: Some(1_000_000),
            cpu: CpuVirt {
                model: "x".into(),
                vmx: false,
                svm: false,
                hypervisor: true,
            },
        };
        let json = concat!(
            r#"{"kind":"emulated_ring0","reasons":["slow"],"advice":null,"probes":["#,
            r#"{"name":"popcnt","outcome":{"result":"not_emulated"},"micros":3},"#,
            r#"{"name":"tzcnt","outcome":{"result":"wrong","got":1,"expected":64},"micros":4},"#,
            r#"{"name":"sse2","outcome":{"result":"works"},"micros":4}],"#,
            r#""instructions_per_second":1000000,"#,
            r#""cpu":{"model":"x","vmx":false,"svm":false,"hypervisor":true}}"#,
        );
        assert_eq!(serde_json::to_string(&host).unwrap(), json);
        assert_eq!(serde_json::from_str::<HostVirt>(json).unwrap(), host);
        assert_eq!(host.broken().collect::<Vec<_>>(), ["popcnt", "tzcnt"]);
    }
}
