//! A processor's registers.
//!
//! The order in which they are read and set is not free: reading the run state may change the local APIC; setting general registers
//! clears pending exceptions, which events bring back; the local APIC's place is in the special registers; and the TSC deadline is taken
//! only when the local APIC is in the right mode (the same order as Firecracker's and QEMU's).

use std::time::Duration;

use kvm_bindings::{
    CpuId, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::StateError;

/// Registers read or set by one call; KVM takes fewer than 256.
const MSRS_AT_ONCE: usize = 128;
const TSC: u32 = 0x10;
const TSC_DEADLINE: u32 = 0x6e0;
/// Registers that KVM has and does not list: how memory is cached, and where errors of the machine are told.
const UNLISTED: [std::ops::RangeInclusive<u32>; 6] = [
    0x200..=0x20f,
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26f,
    0x2ff..=0x2ff,
    0x400..=0x47f,
];
/// Bytes of `kvm_xsave`. More are needed only for registers that a process must ask for, which this one does not.
const XSAVE_BYTES: i32 = 4096;
/// How far two frequencies may be apart and count as one: what clocks of one model differ by, in parts of a million.
const TSC_TOLERANCE_PPM: u64 = 250;

const CR4_VMXE: u64 = 1 << 13;
const EFER_SVME: u64 = 1 << 12;

/// See the module.
#[derive(Serialize, Deserialize)]
pub struct VcpuState {
    /// What the guest was told of its processor.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    run_state: kvm_mp_state,
    general: kvm_regs,
    special: kvm_sregs,
    extended: kvm_xsave,
    extended_control: kvm_xcrs,
    debug: kvm_debugregs,
    local_apic: kvm_lapic_state,
    model_specific: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
    /// Frequency of its time stamp counter, where KVM tells it.
    tsc_khz: Option<u32>,
}

/// Model-specific registers that make up a processor here.
///
/// # Errors
/// KVM refuses.
pub fn msr_indices(kvm: &Kvm) -> Result<Vec<u32>, StateError> {
    let listed = kvm.get_msr_index_list();
    let listed = listed.map_err(|error| StateError::Kvm("list model-specific registers", error))?;
    let mut all = listed.as_slice().to_vec();
    all.extend(UNLISTED.into_iter().flatten());
    // The deadline last: it is taken only behind the counter that it is about.
    all.sort_unstable();
    all.dedup();
    all.retain(|index| *index != TSC_DEADLINE);
    all.push(TSC_DEADLINE);
    Ok(all)
}

/// Tells a guest that it was stopped, so that it does not take the time for its own fault.
pub fn stopped(vcpu: &VcpuFd) {
    // Fails where the guest does not use KVM's clock: then it has no such ear.
    let _ = vcpu.kvmclock_ctrl();
}

fn check_extended(vm: &VmFd) -> Result<(), StateError> {
    match vm.check_extension_int(Cap::Xsave2) {
        bytes if bytes > XSAVE_BYTES => Err(StateError::Extended(bytes)),
        _ => Ok(()),
    }
}

fn entry(index: u32) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        ..kvm_msr_entry::default()
    }
}

/// Reads those that this processor has.
fn read_msrs(vcpu: &VcpuFd, mut indices: &[u32]) -> Result<Vec<kvm_msr_entry>, StateError> {
    let mut read = Vec::new();
    while !indices.is_empty() {
        let asked = indices.len().min(MSRS_AT_ONCE);
        let list: Vec<_> = indices[..asked].iter().copied().map(entry).collect();
        let mut msrs = Msrs::from_entries(&list).expect("fewer than the list takes");
        let count = vcpu
            .get_msrs(&mut msrs)
            .map_err(|error| StateError::Kvm("read model-specific registers", error))?;
        read.extend(msrs.as_slice().iter().take(count));
        // KVM stops at one that is not there.
        let passed = if count < asked { count + 1 } else { count };
        indices = &indices[passed..];
    }
    Ok(read)
}

/// Sets registers of processor `processor`. One that KVM does not take must have the value already, or something would be lost.
fn write_msrs(
    vcpu: &VcpuFd,
    processor: usize,
    mut entries: &[kvm_msr_entry],
) -> Result<(), StateError> {
    while !entries.is_empty() {
        let asked = entries.len().min(MSRS_AT_ONCE);
        let msrs = Msrs::from_entries(&entries[..asked]).expect("fewer than the list takes");
        let count = vcpu
            .set_msrs(&msrs)
            .map_err(|error| StateError::Kvm("set model-specific registers", error))?;
        if count >= asked {
            entries = &entries[asked..];
            continue;
        }
        let refused = entries[count];
        let now = read_msrs(vcpu, &[refused.index])?;
        if now.first().is_none_or(|now| now.data != refused.data) {
            return Err(StateError::Msr {
                processor,
                register: refused.index,
                value: refused.data,
            });
        }
        entries = &entries[count + 1..];
    }
    Ok(())
}

/// Ticks of a counter in a time.
fn ticks(khz: u32, time: Duration) -> u64 {
    let ticks = u128::from(khz) * time.as_nanos() / 1_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

fn is_near(a_khz: u32, b_khz: u32) -> bool {
    let (a, b) = (u64::from(a_khz), u64::from(b_khz));
    a.abs_diff(b) * 1_000_000 <= a.max(b) * TSC_TOLERANCE_PPM
}

impl VcpuState {
    /// Takes the state of a processor that does not run, whose guest was told `features`. `msrs` are those of [`msr_indices`].
    ///
    /// What was told is kept, and not asked of KVM: it adds what the guest has switched on, and where it emulates kernel mode, what it does
    /// not offer.
    ///
    /// # Errors
    /// KVM refuses, or the guest does what cannot be saved.
    pub fn capture(
        vm: &VmFd,
        vcpu: &VcpuFd,
        features: &CpuId,
        msrs: &[u32],
    ) -> Result<Self, StateError> {
        let failed = |step| move |error| StateError::Kvm(step, error);
        check_extended(vm)?;
        let run_state = vcpu.get_mp_state().map_err(failed("read a run state"))?;
        let general = vcpu.get_regs().map_err(failed("read registers"))?;
        let special = vcpu.get_sregs().map_err(failed("read special registers"))?;
        if special.cr4 & CR4_VMXE != 0 || special.efer & EFER_SVME != 0 {
            return Err(StateError::Nested);
        }
        let extended = vcpu
            .get_xsave()
            .map_err(failed("read extended registers"))?;
        let extended_control = vcpu.get_xcrs().map_err(failed("read XCR0"))?;
        let debug = vcpu
            .get_debug_regs()
            .map_err(failed("read debug registers"))?;
        let local_apic = vcpu.get_lapic().map_err(failed("read a local APIC"))?;
        let model_specific = read_msrs(vcpu, msrs)?;
        let events = vcpu.get_vcpu_events().map_err(failed("read events"))?;
        Ok(Self {
            cpuid: features.as_slice().to_vec(),
            run_state,
            general,
            special,
            extended,
            extended_control,
            debug,
            local_apic,
            model_specific,
            events,
            tsc_khz: vcpu.get_tsc_khz().ok(),
        })
    }

    /// Puts the state into processor `processor`, which is fresh, of a machine that has slept so long.
    ///
    /// # Errors
    /// KVM or the host's processor does not take it.
    pub fn restore(
        &self,
        vm: &VmFd,
        vcpu: &VcpuFd,
        processor: usize,
        asleep: Duration,
    ) -> Result<(), StateError> {
        let failed = |step| move |error| StateError::Kvm(step, error);
        check_extended(vm)?;
        vcpu.set_cpuid2(&self.features()?)
            .map_err(failed("set features"))?;
        self.set_frequency(vcpu)?;
        vcpu.set_mp_state(self.run_state)
            .map_err(failed("set a run state"))?;
        vcpu.set_regs(&self.general)
            .map_err(failed("set registers"))?;
        vcpu.set_sregs(&self.special)
            .map_err(failed("set special registers"))?;
        // SAFETY: KVM reads no more than the structure has, see `check_extended`.
        unsafe { vcpu.set_xsave(&self.extended) }.map_err(failed("set extended registers"))?;
        vcpu.set_xcrs(&self.extended_control)
            .map_err(failed("set XCR0"))?;
        vcpu.set_debug_regs(&self.debug)
            .map_err(failed("set debug registers"))?;
        vcpu.set_lapic(&self.local_apic)
            .map_err(failed("set a local APIC"))?;
        let passed = self.tsc_khz.map_or(0, |khz| ticks(khz, asleep));
        let mut msrs = self.model_specific.clone();
        for entry in msrs.iter_mut().filter(|entry| entry.index == TSC) {
            entry.data = entry.data.wrapping_add(passed);
        }
        write_msrs(vcpu, processor, &msrs)?;
        vcpu.set_vcpu_events(&self.events)
            .map_err(failed("set events"))?;
        stopped(vcpu);
        Ok(())
    }

    /// What the guest was told of its processor.
    ///
    /// # Errors
    /// It is more than KVM takes.
    pub fn features(&self) -> Result<CpuId, StateError> {
        CpuId::from_entries(&self.cpuid).map_err(|_| StateError::Features(self.cpuid.len()))
    }

    fn set_frequency(&self, vcpu: &VcpuFd) -> Result<(), StateError> {
        let (Some(saved_khz), Ok(here_khz)) = (self.tsc_khz, vcpu.get_tsc_khz()) else {
            return Ok(());
        };
        if is_near(saved_khz, here_khz) {
            return Ok(());
        }
        let scaled = vcpu.set_tsc_khz(saved_khz);
        scaled.map_err(|_| StateError::Frequency {
            saved_khz,
            here_khz,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn counters_go_on_by_the_time_that_passed() {
        assert_eq!(ticks(2_000_000, Duration::from_millis(3)), 6_000_000);
        assert_eq!(ticks(2_000_000, Duration::ZERO), 0);
        assert_eq!(ticks(u32::MAX, Duration::MAX), u64::MAX);
        assert!(is_near(2_400_000, 2_400_500));
        assert!(!is_near(2_400_000, 2_401_000));
    }

    /// Where in the extended registers XMM0 to XMM7 are, and which parts are in use (Intel SDM, volume 1, section 13.4).
    const XMM_WORDS: std::ops::Range<usize> = 40..72;
    const IN_USE_WORD: usize = 128;

    /// A processor of a VM that has interrupt controllers, told what a machine's would be.
    fn processor(kvm: &Kvm) -> (VmFd, VcpuFd, CpuId) {
        let vm = kvm.create_vm().expect("a VM");
        vm.create_irq_chip().expect("interrupt controllers");
        let vcpu = vm.create_vcpu(0).expect("a processor");
        let features = crate::machine::vcpu::features(kvm, 0, 1).expect("features");
        vcpu.set_cpuid2(&features).expect("set");
        (vm, vcpu, features)
    }

    fn bytes(value: &impl Serialize) -> Vec<u8> {
        postcard::to_stdvec(value).expect("bytes")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn processors_come_back_as_they_were(general: [u64; 15], vectors: [u32; 32], base in 0u64..1 << 46, deadline: u32) {
            let Ok(kvm) = Kvm::new() else { return Ok(()) };
            let indices = msr_indices(&kvm).expect("a list");
            let (vm, vcpu, features) = processor(&kvm);
            let [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, rip] = general;
            let registers = kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, rip, rflags: 2, ..kvm_regs::default() };
            vcpu.set_regs(&registers).expect("set");
            let mut extended = vcpu.get_xsave().expect("read");
            for (word, value) in extended.region[XMM_WORDS].iter_mut().zip(vectors) {
                *word = value;
            }
            extended.region[IN_USE_WORD] |= 0b10;
            // SAFETY: the structure is whole, and KVM reads no more than that.
            unsafe { vcpu.set_xsave(&extended) }.expect("set");
            let mut special = vcpu.get_sregs().expect("read");
            special.fs.base = base;
            vcpu.set_sregs(&special).expect("set");
            let saved = VcpuState::capture(&vm, &vcpu, &features, &indices).expect("captured");
            let parsed: VcpuState = postcard::from_bytes(&bytes(&saved)).expect("the same");
            prop_assert_eq!(bytes(&parsed), bytes(&saved));

            let (vm, vcpu, features) = processor(&kvm);
            parsed.restore(&vm, &vcpu, 0, Duration::from_millis(deadline.into())).expect("a processor like it");
            prop_assert_eq!(vcpu.get_regs().expect("read"), registers);
            prop_assert_eq!(&vcpu.get_xsave().expect("read").region[XMM_WORDS], &vectors[..]);
            let mut again = VcpuState::capture(&vm, &vcpu, &features, &indices).expect("captured");
            let tsc = |state: &VcpuState| {
                let mut msrs = state.model_specific.iter();
                msrs.find(|entry| entry.index == TSC).map_or(0, |entry| entry.data)
            };
            prop_assert!(tsc(&again) >= tsc(&saved), "time goes on");
            again.model_specific.clone_from(&saved.model_specific);
            prop_assert_eq!(bytes(&again), bytes(&saved));
        }
    }
}
