//! From facts to a verdict, its reasons and the way out. Pure, so that every kind of machine can be tested here.

use vmm_api::{CpuVirt, HostVirt, KvmKind, Probe, ProbeOutcome};

use super::host::{DEVICE, DeviceFailure};

/// Below this many instructions per second it is no processor that runs the guest. Emulators reach about one million;
/// KVM nested in a software-emulated machine, which has all of hardware's semantics, some ten times this figure.
const HARDWARE_IPS_MIN: u64 = 10_000_000;

/// What was found out.
pub(super) struct Facts {
    pub(super) cpu: CpuVirt,
    pub(super) device: Result<(), DeviceFailure>,
    pub(super) probes: Vec<Probe>,
    pub(super) instructions_per_second: Option<u64>,
}

/// Judges.
pub(super) fn classify(facts: Facts) -> HostVirt {
    let (kind, reasons, advice) = match &facts.device {
        Err(failure) => {
            let (reasons, advice) = explain_failure(failure, &facts.cpu);
            (KvmKind::None, reasons, Some(advice))
        }
        Ok(()) => judge_guests(&facts),
    };
    HostVirt {
        kind,
        reasons,
        advice,
        probes: facts.probes,
        instructions_per_second: facts.instructions_per_second,
        cpu: facts.cpu,
    }
}

fn judge_guests(facts: &Facts) -> (KvmKind, Vec<String>, Option<String>) {
    let Some(speed) = facts.instructions_per_second else {
        let mut reasons = vec![format!(
            "{DEVICE} is there, but a guest that only adds numbers does not run on it"
        )];
        reasons.extend(facts.probes.iter().filter_map(describe));
        let advice = "Look at the kernel log for messages of kvm. Until it is mended, run desktops with QEMU's \
                      software emulation (machine type qemu)."
            .to_owned();
        return (KvmKind::None, reasons, Some(advice));
    };
    let mut reasons: Vec<String> = facts.probes.iter().filter_map(describe).collect();
    if speed < HARDWARE_IPS_MIN {
        reasons.push(format!(
            "a guest's kernel mode runs {} instructions a second, where a processor runs a thousand million",
            grouped(speed)
        ));
    }
    if reasons.is_empty() {
        return (
            KvmKind::Hardware,
            vec![format!(
                "guests run at {} instructions a second",
                grouped(speed)
            )],
            None,
        );
    }
    if !facts.cpu.vmx && !facts.cpu.svm {
        reasons.push("the processor shows neither VT-x (vmx) nor AMD-V (svm)".to_owned());
    }
    let advice = format!(
        "Run desktops with QEMU's software emulation (machine type qemu) here; it is slow. {}",
        way_to_hardware(&facts.cpu)
    );
    (KvmKind::EmulatedRing0, reasons, Some(advice))
}

fn describe(probe: &Probe) -> Option<String> {
    let name = &probe.name;
    Some(match &probe.outcome {
        ProbeOutcome::Works | ProbeOutcome::NotOffered => return None,
        ProbeOutcome::Wrong { got, expected } => {
            format!("{name} gives a wrong result ({got} for {expected})")
        }
        ProbeOutcome::NotEmulated => {
            format!("{name} is offered to guests, but is emulated and unknown to the emulator")
        }
        ProbeOutcome::Fault => format!("{name} is offered to guests, but raises an exception"),
        ProbeOutcome::TimedOut => format!("{name} does not finish"),
        ProbeOutcome::Refused { error } => format!("{name} cannot be tried: {error}"),
    })
}

fn explain_failure(failure: &DeviceFailure, cpu: &CpuVirt) -> (Vec<String>, String) {
    let module = if cpu.svm { "kvm_amd" } else { "kvm_intel" };
    let has_flag = cpu.vmx || cpu.svm;
    match failure {
        DeviceFailure::Missing { module_loaded: true } if has_flag => (
            vec![format!("there is no {DEVICE}, although the kernel has KVM")],
            format!("In a container: pass the device in (--device {DEVICE}). Otherwise load it: modprobe {module}."),
        ),
        DeviceFailure::Missing { .. } if has_flag => (
            vec![format!("there is no {DEVICE}; the processor has {}", if cpu.svm { "AMD-V" } else { "VT-x" })],
            format!("Load the kernel module: modprobe {module}. If that fails, enable virtualisation in the firmware."),
        ),
        DeviceFailure::Missing { .. } => (
            vec![
                format!("there is no {DEVICE}"),
                "the processor shows neither VT-x (vmx) nor AMD-V (svm)".to_owned(),
            ],
            way_to_hardware(cpu),
        ),
        DeviceFailure::Forbidden => (
            vec![format!("this user may not open {DEVICE}")],
            "Add the user to the group that owns it (usually: usermod -aG kvm USER, then log in again).".to_owned(),
        ),
        DeviceFailure::Unusable(error) => {
            (vec![format!("{DEVICE} cannot be opened: {error}")], way_to_hardware(cpu))
        }
        DeviceFailure::Version(version) => (
            vec![format!("{DEVICE} speaks KVM API version {version}, not 12")],
            "Use a kernel newer than 2.6.22, or find out what provides this device.".to_owned(),
        ),
        DeviceFailure::NoVm { busy: true, error } => (
            vec![format!("{DEVICE} makes no VM: {error}")],
            "Another hypervisor (VirtualBox, VMware) holds the processor's virtualisation; stop it.".to_owned(),
        ),
        DeviceFailure::NoVm { busy: false, error } => {
            (vec![format!("{DEVICE} makes no VM: {error}")], way_to_hardware(cpu))
        }
    }
}

/// How this machine can get VT-x or AMD-V.
fn way_to_hardware(cpu: &CpuVirt) -> String {
    if cpu.hypervisor && !cpu.vmx && !cpu.svm {
        "This machine is itself a virtual one: turn on nested virtualisation on its host (KVM: kvm_intel or kvm_amd \
         with nested=1, and the guest's processor type host), or use a physical machine."
            .to_owned()
    } else if cpu.vmx || cpu.svm {
        format!(
            "Look at the kernel log for messages of kvm, and check that {} is loaded.",
            if cpu.svm { "kvm_amd" } else { "kvm_intel" }
        )
    } else {
        "Enable VT-x or AMD-V (SVM) in the machine's firmware, or use a machine whose processor has it.".to_owned()
    }
}

/// A number with its thousands set apart.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::{DeviceFailure, Facts, classify, grouped};
    use vmm_api::{CpuVirt, HostVirt, KvmKind, Probe, ProbeOutcome};

    fn cpu(vmx: bool, svm: bool, hypervisor: bool) -> CpuVirt {
        CpuVirt {
            model: "test".into(),
            vmx,
            svm,
            hypervisor,
        }
    }

    fn probed(speed: Option<u64>, outcomes: &[(&str, ProbeOutcome)], cpu: CpuVirt) -> HostVirt {
        let probes = outcomes
            .iter()
            .map(|(name, outcome)| Probe {
                name: (*name).into(),
                outcome: outcome.clone(),
                micros: 1,
            })
            .collect();
        classify(Facts {
            cpu,
            device: Ok(()),
            probes,
            instructions_per_second: speed,
        })
    }

    fn failed(failure: DeviceFailure, cpu: CpuVirt) -> HostVirt {
        let facts = Facts {
            cpu,
            device: Err(failure),
            probes: vec![],
            instructions_per_second: None,
        };
        let host = classify(facts);
        assert_eq!(host.kind, KvmKind::None);
        host
    }

    #[test]
    fn a_real_processor_is_hardware_also_without_some_instructions() {
        let outcomes = [
            ("popcnt", ProbeOutcome::Works),
            ("lzcnt", ProbeOutcome::NotOffered),
        ];
        let host = probed(Some(3_000_000_000), &outcomes, cpu(true, false, false));
        assert_eq!((host.kind, host.advice), (KvmKind::Hardware, None));
    }

    #[test]
    fn kvm_nested_in_a_software_machine_counts_as_hardware() {
        let host = probed(
            Some(80_000_000),
            &[("popcnt", ProbeOutcome::Works)],
            cpu(false, true, true),
        );
        assert_eq!(host.kind, KvmKind::Hardware);
    }

    #[test]
    fn one_instruction_that_the_emulator_lacks_is_enough() {
        for outcome in [
            ProbeOutcome::NotEmulated,
            ProbeOutcome::Wrong {
                got: 0,
                expected: 64,
            },
            ProbeOutcome::TimedOut,
        ] {
            let host = probed(
                Some(900_000_000),
                &[("tzcnt", outcome)],
                cpu(false, false, true),
            );
            assert_eq!(host.kind, KvmKind::EmulatedRing0);
            assert!(host.reasons[0].contains("tzcnt"), "{:?}", host.reasons);
            assert!(host.advice.unwrap().contains("nested"));
        }
    }

    #[test]
    fn an_emulator_that_knows_every_instruction_is_told_by_its_speed() {
        let host = probed(
            Some(1_200_000),
            &[("popcnt", ProbeOutcome::Works)],
            cpu(false, false, false),
        );
        assert_eq!(host.kind, KvmKind::EmulatedRing0);
        assert!(host.reasons[0].contains("1,200,000"));
    }

    #[test]
    fn a_device_on_which_nothing_runs_is_none() {
        let host = probed(
            None,
            &[("arithmetic", ProbeOutcome::TimedOut)],
            cpu(true, false, false),
        );
        assert_eq!(host.kind, KvmKind::None);
        assert!(
            host.reasons
                .iter()
                .any(|reason| reason.contains("arithmetic does not finish"))
        );
    }

    #[test]
    fn each_failure_names_its_own_way_out() {
        let advice = |failure, cpu| failed(failure, cpu).advice.unwrap();
        let missing = || DeviceFailure::Missing {
            module_loaded: false,
        };
        assert!(advice(missing(), cpu(true, false, false)).contains("modprobe kvm_intel"));
        assert!(advice(missing(), cpu(false, true, false)).contains("modprobe kvm_amd"));
        assert!(advice(missing(), cpu(false, false, true)).contains("nested virtualisation"));
        assert!(advice(missing(), cpu(false, false, false)).contains("firmware"));
        let hidden = DeviceFailure::Missing {
            module_loaded: true,
        };
        assert!(advice(hidden, cpu(true, false, false)).contains("container"));
        assert!(advice(DeviceFailure::Forbidden, cpu(true, false, false)).contains("group"));
        let busy = DeviceFailure::NoVm {
            busy: true,
            error: "busy".into(),
        };
        assert!(advice(busy, cpu(true, false, false)).contains("VirtualBox"));
        assert!(advice(DeviceFailure::Version(11), cpu(true, false, false)).contains("kernel"));
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(123_456), "123,456");
        assert_eq!(grouped(1_000_000), "1,000,000");
    }
}
