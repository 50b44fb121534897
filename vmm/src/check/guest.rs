//! One guest: a VM of its own with 64 KiB of memory and one processor in 64-bit kernel mode, run until it halts.
//!
//! Every probe gets a fresh VM, so that one that ends badly says nothing about the next.

use std::time::{Duration, Instant};

use kvm_bindings::{
    CpuId, KVM_INTERNAL_ERROR_EMULATION, KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_sregs,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::probes::{Program, SCRATCH};
use super::watchdog::{self, Expired};

/// Guest memory, bytes.
const MEMORY_BYTES: usize = 64 * 1024;
/// Page tables that map the first 2 MiB one to one.
const PML4: u64 = 0x4000;
const PDPT: u64 = 0x5000;
const PAGE_DIRECTORY: u64 = 0x6000;
/// Where the code starts.
const CODE: u64 = 0x8000;

// Page table bits.
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;

// Control register bits (Intel SDM, volume 3, chapter 2).
const CR0_PE: u64 = 1 << 0;
const CR0_MP: u64 = 1 << 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const CR4_OSXSAVE: u64 = 1 << 18;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Halted { result: u64 },
    NotEmulated,
    Fault,
    TimedOut,
    Refused(String),
}

/// A finished guest.
pub(super) struct Ran {
    pub(super) outcome: Outcome,
    pub(super) took: Duration,
}

/// Runs `program` for at most `time`.
pub(super) fn run(kvm: &Kvm, program: &Program, time: Duration) -> Ran {
    let refused = |error: String| Ran {
        outcome: Outcome::Refused(error),
        took: Duration::ZERO,
    };
    let guest = match Guest::new(kvm, program) {
        Ok(guest) => guest,
        Err(error) => return refused(error),
    };
    watchdog::within(time, move |expired| guest.run(&expired))
        .unwrap_or_else(|| refused("the guest's thread did not come back".to_owned()))
}

struct Guest {
    // The order matters: the processor goes before its VM, the VM before its memory.
    vcpu: VcpuFd,
    _vm: VmFd,
    _memory: GuestMemoryMmap,
}

impl Guest {
    fn new(kvm: &Kvm, program: &Program) -> Result<Self, String> {
        let step = |what: &'static str| move |error: kvm_ioctls::Error| format!("{what}: {error}");
        let memory = memory_with(program.code)?;
        let vm = kvm.create_vm().map_err(step("create a VM"))?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY_BYTES as u64,
            userspace_addr: memory
                .get_host_address(GuestAddress(0))
                .map_err(|error| error.to_string())? as u64,
        };
        // SAFETY: the region is the whole of `memory`, which lives longer than the VM (see the order of fields).
        unsafe { vm.set_user_memory_region(region) }.map_err(step("give the VM memory"))?;
        let vcpu = vm.create_vcpu(0).map_err(step("create a processor"))?;
        let cpuid: CpuId = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(step("ask for processor features"))?;
        vcpu.set_cpuid2(&cpuid)
            .map_err(step("set processor features"))?;
        let mut special = vcpu
            .get_sregs()
            .map_err(step("read the processor's state"))?;
        enter_long_mode(&mut special, program.uses_xsave);
        vcpu.set_sregs(&special)
            .map_err(step("enter 64-bit mode"))?;
        let registers = kvm_regs {
            rip: CODE,
            // Bit 1 is always set.
            rflags: 1 << 1,
            rax: program.rax,
            rbx: program.rbx,
            rcx: program.rcx,
            rsi: SCRATCH,
            ..kvm_regs::default()
        };
        vcpu.set_regs(&registers).map_err(step("set registers"))?;
        Ok(Self {
            vcpu,
            _vm: vm,
            _memory: memory,
        })
    }

    fn run(mut self, expired: &Expired) -> Ran {
        let started = Instant::now();
        let outcome = loop {
            if expired.is_set() {
                break Outcome::TimedOut;
            }
            match self.vcpu.run() {
                Ok(VcpuExit::Hlt) => {
                    let took = started.elapsed();
                    let outcome = match self.vcpu.get_regs() {
                        Ok(registers) => Outcome::Halted {
                            result: registers.rax,
                        },
                        Err(error) => Outcome::Refused(format!("read the result: {error}")),
                    };
                    return Ran { outcome, took };
                }
                Ok(VcpuExit::InternalError) => break self.internal_error(),
                Ok(VcpuExit::Shutdown) => break Outcome::Fault,
                Ok(exit) => break Outcome::Refused(format!("the guest ended with {exit:?}")),
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
                Err(error) => break Outcome::Refused(format!("run the guest: {error}")),
            }
        };
        Ran {
            outcome,
            took: started.elapsed(),
        }
    }

    fn internal_error(&mut self) -> Outcome {
        // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, for which the kernel fills this member of the union.
        let suberror = unsafe { self.vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
        if suberror == KVM_INTERNAL_ERROR_EMULATION {
            Outcome::NotEmulated
        } else {
            Outcome::Refused(format!("KVM internal error, suberror {suberror}"))
        }
    }
}

fn memory_with(code: &[u8]) -> Result<GuestMemoryMmap, String> {
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)])
        .map_err(|error| error.to_string())?;
    let tables = [
        (PML4, PDPT | PRESENT_WRITABLE),
        (PDPT, PAGE_DIRECTORY | PRESENT_WRITABLE),
        (PAGE_DIRECTORY, PRESENT_WRITABLE | LARGE_PAGE),
    ];
    for (at, entry) in tables {
        memory
            .write_obj(entry.to_le(), GuestAddress(at))
            .map_err(|error| error.to_string())?;
    }
    memory
        .write_slice(code, GuestAddress(CODE))
        .map_err(|error| error.to_string())?;
    Ok(memory)
}

fn enter_long_mode(special: &mut kvm_sregs, uses_xsave: bool) {
    let code = kvm_segment {
        limit: 0xffff_ffff,
        selector: 0x08,
        type_: 0b1011, // code, readable, accessed
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let data = kvm_segment {
        selector: 0x10,
        type_: 0b0011,
        db: 1,
        l: 0,
        ..code
    };
    special.cs = code;
    for segment in [
        &mut special.ds,
        &mut special.es,
        &mut special.fs,
        &mut special.gs,
        &mut special.ss,
    ] {
        *segment = data;
    }
    special.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_PG;
    special.cr3 = PML4;
    special.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | if uses_xsave { CR4_OSXSAVE } else { 0 };
    special.efer = EFER_LME | EFER_LMA;
    // No interrupt table: an exception ends the guest by a triple fault, which KVM reports as a shutdown.
    special.idt.limit = 0;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::{Outcome, run};
    use crate::check::host::open_kvm;
    use crate::check::probes::{Program, arithmetic};
    use std::time::{Duration, Instant};

    /// How guests with this code end, or `None` on a machine without KVM.
    fn outcome_of(code: &'static [u8], time: Duration) -> Option<Outcome> {
        let kvm = match open_kvm() {
            Ok(kvm) => kvm,
            Err(failure) => {
                eprintln!("no KVM here ({failure:?}): nothing to run a guest on");
                return None;
            }
        };
        Some(
            run(
                &kvm,
                &Program {
                    code,
                    ..arithmetic(1)
                },
                time,
            )
            .outcome,
        )
    }

    #[test]
    fn a_guest_that_hangs_is_kicked_out() {
        let started = Instant::now();
        // jmp to itself
        if let Some(outcome) = outcome_of(&[0xeb, 0xfe], Duration::from_millis(100)) {
            assert_eq!(outcome, Outcome::TimedOut);
            assert!(
                started.elapsed() < Duration::from_secs(2),
                "{:?}",
                started.elapsed()
            );
        }
    }

    #[test]
    fn an_exception_ends_a_guest() {
        // ud2, the instruction that is defined to be undefined
        if let Some(outcome) = outcome_of(&[0x0f, 0x0b, 0xf4], Duration::from_secs(2)) {
            assert!(
                matches!(outcome, Outcome::Fault | Outcome::NotEmulated),
                "{outcome:?}"
            );
        }
    }
}
