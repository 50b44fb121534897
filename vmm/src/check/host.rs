//! What the host says before any guest runs: the processor's flags, and whether `/dev/kvm` can be used.

use std::fs;
use std::path::Path;

use kvm_ioctls::Kvm;
use vmm_api::CpuVirt;

use super::API_VERSION;

/// Where KVM is.
pub(super) const DEVICE: &str = "/dev/kvm";

/// Why no VM can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DeviceFailure {
    /// There is no `/dev/kvm`; whether the kernel module is there although the node is not.
    Missing { module_loaded: bool },
    /// It is there, and this user may not open it.
    Forbidden,
    /// Opening it failed otherwise.
    Unusable(String),
    /// It speaks another API version.
    Version(i32),
    /// It opens, but makes no VM.
    NoVm { busy: bool, error: String },
}

/// Reads the processor's flags. A field that cannot be read counts as absent.
pub(super) fn cpu_virt() -> CpuVirt {
    parse_cpuinfo(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

fn parse_cpuinfo(text: &str) -> CpuVirt {
    let field = |name: &str| {
        text.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim())
        })
    };
    let flags = field("flags").unwrap_or_default();
    let has = |wanted: &str| flags.split_ascii_whitespace().any(|flag| flag == wanted);
    CpuVirt {
        model: field("model name").unwrap_or_default().to_owned(),
        vmx: has("vmx"),
        svm: has("svm"),
        hypervisor: has("hypervisor"),
    }
}

/// Opens `/dev/kvm`, checks its version and that it makes VMs.
pub(super) fn open_kvm() -> Result<Kvm, DeviceFailure> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT => DeviceFailure::Missing {
            module_loaded: Path::new("/sys/module/kvm").exists(),
        },
        libc::EACCES | libc::EPERM => DeviceFailure::Forbidden,
        _ => DeviceFailure::Unusable(error.to_string()),
    })?;
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(DeviceFailure::Version(version));
    }
    match kvm.create_vm() {
        Ok(_) => Ok(kvm),
        Err(error) => Err(DeviceFailure::NoVm {
            busy: error.errno() == libc::EBUSY,
            error: error.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::parse_cpuinfo;

    #[test]
    fn flags_are_whole_words() {
        let cpu = parse_cpuinfo(
            "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu vmx_like svm hypervisor\n",
        );
        assert_eq!(
            (cpu.model.as_str(), cpu.vmx, cpu.svm, cpu.hypervisor),
            ("A CPU", false, true, true)
        );
        assert_eq!(parse_cpuinfo(""), vmm_api::CpuVirt::default());
    }
}
