//! A virtual processor: its state at the start, and its thread.
//!
//! ```text
//!   started ──► running ◄──resume── paused
//!                  └──────pause──────►┘        from both: quit ──► (thread ends)
//! ```
//!
//! A signal takes a processor out of the guest; `immediate_exit` keeps a signal that came a moment too early from being lost.

use std::io;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, Msrs,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_run, kvm_segment, kvm_sregs,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vmm_sys_util::signal::register_signal_handler;

use super::boot::{CODE_SELECTOR, DATA_SELECTOR, Entry, GDT_BYTES};
use super::bus::{Bus, lock};
use super::event::{Event, Events};
use super::layout::{BOOT_STACK, GDT, PAGE_TABLES};
use crate::threads::{self, Role};

/// Why a processor could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// KVM refused.
    #[error("processor {index}: {step}")]
    Kvm {
        /// Which processor.
        index: u8,
        /// What was tried.
        step: &'static str,
        /// Why not.
        source: kvm_ioctls::Error,
    },
    /// No thread.
    #[error("processor {index}: its thread")]
    Thread {
        /// Which processor.
        index: u8,
        /// Why not.
        source: io::Error,
    },
}

const CR0_PE: u64 = 1 << 0;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEFAULT: u32 = 0x2ff;
/// MTRRs on, and memory is write-back.
const MTRR_ON_WRITE_BACK: u64 = 1 << 11 | 6;

/// Makes processor `index` with these [`features`], as it is after a reset; the first one begins at `entry`.
///
/// # Errors
/// KVM refuses.
pub fn create(vm: &VmFd, index: u8, features: &CpuId, entry: Entry) -> Result<VcpuFd, VcpuError> {
    let failed = |step| {
        move |source| VcpuError::Kvm {
            index,
            step,
            source,
        }
    };
    let vcpu = vm.create_vcpu(index.into()).map_err(failed("create it"))?;
    vcpu.set_cpuid2(features).map_err(failed("set features"))?;
    set_msrs(&vcpu).map_err(failed("set model-specific registers"))?;
    set_lapic(&vcpu).map_err(failed("set its interrupt controller"))?;
    if index > 0 {
        // Waits to be started by the first one.
        let state = kvm_mp_state {
            mp_state: KVM_MP_STATE_UNINITIALIZED,
        };
        vcpu.set_mp_state(state).map_err(failed("set its state"))?;
        return Ok(vcpu);
    }
    let mut special = vcpu.get_sregs().map_err(failed("read its state"))?;
    enter_long_mode(&mut special);
    vcpu.set_sregs(&special)
        .map_err(failed("enter 64-bit mode"))?;
    let registers = kvm_regs {
        rip: entry.instruction,
        rsi: entry.parameters,
        rsp: BOOT_STACK,
        rbp: BOOT_STACK,
        // Bit 1 is always set.
        rflags: 1 << 1,
        ..kvm_regs::default()
    };
    vcpu.set_regs(&registers).map_err(failed("set registers"))?;
    let state = kvm_mp_state {
        mp_state: KVM_MP_STATE_RUNNABLE,
    };
    vcpu.set_mp_state(state).map_err(failed("set its state"))?;
    Ok(vcpu)
}

/// What processor `index` of `count` is told of itself here.
///
/// # Errors
/// KVM refuses.
pub fn features(kvm: &Kvm, index: u8, count: u8) -> Result<CpuId, VcpuError> {
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
    let supported = supported.map_err(|source| VcpuError::Kvm {
        index,
        step: "ask for features",
        source,
    })?;
    Ok(cpuid(supported, index, count))
}

/// What KVM supports, with this processor's place in the topology: one socket of single-threaded cores.
fn cpuid(mut cpuid: CpuId, index: u8, count: u8) -> CpuId {
    let index = u32::from(index);
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => {
                // APIC id, and how many ids a package has.
                entry.ebx = entry.ebx & 0xffff | index << 24 | u32::from(count) << 16;
                // A hypervisor is there.
                entry.ecx |= 1 << 31;
                // Several processors in a package.
                entry.edx = entry.edx & !(1 << 28) | u32::from(count > 1) << 28;
            }
            // Cores of a package (Intel).
            4 => entry.eax = entry.eax & 0x3ff_ffff | (u32::from(count) - 1) << 26,
            0xb | 0x1f => {
                entry.edx = index;
                let bits = (32 - (u32::from(count) - 1).leading_zeros()).max(1);
                match entry.index {
                    0 => (entry.eax, entry.ebx, entry.ecx) = (0, 1, 1 << 8),
                    1 => (entry.eax, entry.ebx, entry.ecx) = (bits, count.into(), 1 | 2 << 8),
                    level => (entry.eax, entry.ebx, entry.ecx) = (0, 0, level),
                }
            }
            // Cores of a package (AMD).
            0x8000_0008 => {
                let bits = 32 - (u32::from(count) - 1).leading_zeros();
                entry.ecx = entry.ecx & !0xf0ff | bits << 12 | (u32::from(count) - 1);
            }
            _ => {}
        }
    }
    cpuid
}

fn set_msrs(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let msrs = Msrs::from_entries(&[
        entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        entry(MSR_MTRR_DEFAULT, MTRR_ON_WRITE_BACK),
    ])
    .expect("two entries");
    // AMD processors have no such first register, and no need of it: how many were taken does not matter.
    vcpu.set_msrs(&msrs).map(drop)
}

/// Pin LINT0 takes the PICs' interrupts and LINT1 non-maskable ones, as firmware leaves them.
fn set_lapic(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const EXTERNAL: u8 = 7;
    const NMI: u8 = 4;
    let mut lapic = vcpu.get_lapic()?;
    for (register, mode) in [(LVT_LINT0, EXTERNAL), (LVT_LINT1, NMI)] {
        // Bits 8 to 10 are the delivery mode.
        let byte = &mut lapic.regs[register + 1];
        *byte = (*byte as u8 & !0b111 | mode) as _;
    }
    vcpu.set_lapic(&lapic)
}

fn enter_long_mode(special: &mut kvm_sregs) {
    let segment = |selector, type_, l, db| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db,
        s: 1,
        l,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    };
    special.cs = segment(CODE_SELECTOR, 11, 1, 0);
    let data = segment(DATA_SELECTOR, 3, 0, 1);
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    special.gdt.base = GDT;
    special.gdt.limit = GDT_BYTES - 1;
    special.idt.base = 0;
    special.idt.limit = 0;
    special.cr3 = PAGE_TABLES;
    special.cr4 |= CR4_PAE;
    special.cr0 |= CR0_PE | CR0_PG;
    special.efer |= EFER_LME | EFER_LMA;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Run,
    Pause,
    Quit,
}

struct Control {
    wish: Mutex<(Wish, bool)>,
    changed: Condvar,
}

/// A processor's thread.
pub struct Vcpu {
    index: u8,
    control: Arc<Control>,
    thread: Option<JoinHandle<VcpuFd>>,
}

/// Buses that a processor reaches.
#[derive(Clone)]
pub struct Buses {
    /// Ports.
    pub ports: Arc<Bus>,
    /// Memory-mapped registers.
    pub mmio: Arc<Bus>,
}

thread_local! {
    /// What KVM and this thread share, for the signal handler.
    static RUN: AtomicPtr<kvm_run> = const { AtomicPtr::new(std::ptr::null_mut()) };
}

extern "C" fn leave_guest(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    RUN.with(|run| {
        let run = run.load(Ordering::Relaxed);
        if !run.is_null() {
            // SAFETY: the pointer is this thread's own shared page, mapped as long as the pointer is set.
            unsafe { (&raw mut (*run).immediate_exit).write_volatile(1) };
        }
    });
}

pub(crate) fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

/// Installs the signal by which processors are taken out of the guest. To be called once, before the first thread.
///
/// # Errors
/// The signal cannot be had.
pub fn install_signal() -> io::Result<()> {
    register_signal_handler(kick_signal(), leave_guest)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

impl Vcpu {
    /// Starts a processor's thread, paused.
    ///
    /// # Errors
    /// No thread is to be had.
    pub fn spawn(index: u8, vcpu: VcpuFd, buses: Buses, events: Events) -> Result<Self, VcpuError> {
        let control = Arc::new(Control {
            wish: Mutex::new((Wish::Pause, false)),
            changed: Condvar::new(),
        });
        let shared = Arc::clone(&control);
        let work = move || run(index, vcpu, &shared, &buses, &events);
        let thread = threads::spawn(Role::Vcpu, &format!("cpu-{index}"), work)
            .map_err(|source| VcpuError::Thread { index, source })?;
        Ok(Self {
            index,
            control,
            thread: Some(thread),
        })
    }

    /// Its number.
    pub fn index(&self) -> u8 {
        self.index
    }

    fn wish(&self, wish: Wish) {
        lock(&self.control.wish).0 = wish;
        self.control.changed.notify_all();
        if wish != Wish::Run
            && let Some(thread) = &self.thread
        {
            use std::os::unix::thread::JoinHandleExt;
            // SAFETY: the thread has not been joined, so its handle is valid.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
        }
    }

    /// Lets it run.
    pub fn resume(&self) {
        self.wish(Wish::Run);
    }

    /// Takes it out of the guest; returns when it is out.
    pub fn pause(&self) {
        self.wish(Wish::Pause);
        let mut wish = lock(&self.control.wish);
        while !wish.1 {
            wish = self
                .control
                .changed
                .wait(wish)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// Ends its thread.
    pub fn quit(mut self) -> Option<VcpuFd> {
        self.wish(Wish::Quit);
        self.thread.take().and_then(|thread| thread.join().ok())
    }
}

/// A defect of ours in a device ends the machine instead of leaving it without a processor.
struct TellsOfPanic<'a> {
    index: u8,
    events: &'a Events,
}

impl Drop for TellsOfPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let what = format!("processor {}: a device it used has a defect", self.index);
            self.events.put(Event::Failed(what));
        }
    }
}

fn run(index: u8, mut vcpu: VcpuFd, control: &Control, buses: &Buses, events: &Events) -> VcpuFd {
    RUN.with(|run| run.store(vcpu.get_kvm_run(), Ordering::Relaxed));
    let _tells = TellsOfPanic { index, events };
    let mut ended = false;
    loop {
        {
            let mut wish = lock(&control.wish);
            while wish.0 == Wish::Pause || (ended && wish.0 == Wish::Run) {
                if !wish.1 {
                    wish.1 = true;
                    control.changed.notify_all();
                }
                wish = control
                    .changed
                    .wait(wish)
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
            }
            wish.1 = false;
            if wish.0 == Wish::Quit {
                break;
            }
        }
        // A signal from here on finds this set again, and the next entry fails at once.
        vcpu.set_kvm_immediate_exit(0);
        ended = !enter(index, &mut vcpu, control, buses, events);
    }
    RUN.with(|run| run.store(std::ptr::null_mut(), Ordering::Relaxed));
    vcpu
}

/// Runs until somebody wants something else. False: the processor has ended.
fn enter(index: u8, vcpu: &mut VcpuFd, control: &Control, buses: &Buses, events: &Events) -> bool {
    let failed = |what: String| {
        events.put(Event::Failed(format!("processor {index}: {what}")));
        false
    };
    // A wish that came before `immediate_exit` was cleared.
    if lock(&control.wish).0 != Wish::Run {
        return true;
    }
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => buses.ports.write(port.into(), data),
            Ok(VcpuExit::IoIn(port, data)) => buses.ports.read(port.into(), data),
            Ok(VcpuExit::MmioWrite(address, data)) => buses.mmio.write(address, data),
            Ok(VcpuExit::MmioRead(address, data)) => buses.mmio.read(address, data),
            Ok(VcpuExit::Intr) => return true,
            // A triple fault: a PC resets.
            Ok(VcpuExit::Shutdown) => {
                events.put(Event::Reset);
                return false;
            }
            Ok(VcpuExit::SystemEvent(kind, _)) => {
                events.put(match kind {
                    kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => Event::PowerOff,
                    _ => Event::Reset,
                });
                return false;
            }
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                return failed(format!(
                    "the host's processor {cpu} does not enter the guest, reason {reason:#x}"
                ));
            }
            Ok(VcpuExit::InternalError) => return failed(internal_error(vcpu)),
            Ok(other) => {
                let what = format!("{other:?}");
                return failed(format!(
                    "KVM left the guest for a reason that is not known here: {what}"
                ));
            }
            Err(error) if error.errno() == libc::EINTR => return true,
            Err(error) if error.errno() == libc::EAGAIN => {}
            Err(error) => return failed(format!("KVM: {error}")),
        }
    }
}

fn internal_error(vcpu: &mut VcpuFd) -> String {
    let at = vcpu.get_regs().map_or(0, |registers| registers.rip);
    // SAFETY: KVM has filled in this member of the union for this exit.
    let error = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal };
    match error.suberror {
        kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => format!(
            "KVM cannot emulate the instruction at {at:#x}; `splice-vmm check` tells whether this host has hardware KVM"
        ),
        other => format!("KVM's internal error {other} at {at:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_numbered_in_one_socket() {
        let entry = |function, index| kvm_bindings::kvm_cpuid_entry2 {
            function,
            index,
            ..Default::default()
        };
        let all = [entry(1, 0), entry(0xb, 0), entry(0xb, 1), entry(0xb, 2)];
        let cpuid = cpuid(CpuId::from_entries(&all).expect("four"), 2, 3);
        let [one, thread, core, last] = cpuid.as_slice() else {
            panic!("four entries");
        };
        assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff), (2, 3));
        assert_eq!((thread.ebx, thread.edx), (1, 2));
        assert_eq!((core.eax, core.ebx), (2, 3));
        assert_eq!((last.ebx, last.ecx), (0, 2));
    }
}
