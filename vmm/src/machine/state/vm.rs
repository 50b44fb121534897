//! What belongs to no processor: interrupt controllers, the timer, KVM's clock.

use std::time::Duration;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::StateError;

/// See the module.
#[derive(Serialize, Deserialize)]
pub struct VmState {
    chips: [kvm_irqchip; 3],
    timer: kvm_pit_state2,
    clock_ns: u64,
}

impl VmState {
    /// Takes it from a machine whose processors do not run.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn capture(vm: &VmFd) -> Result<Self, StateError> {
        let chip = |chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..kvm_irqchip::default()
            };
            let read = vm.get_irqchip(&mut chip);
            read.map_err(|error| StateError::Kvm("read an interrupt controller", error))?;
            Ok(chip)
        };
        let clock = vm.get_clock();
        let timer = vm.get_pit2();
        Ok(Self {
            chips: [
                chip(KVM_IRQCHIP_PIC_MASTER)?,
                chip(KVM_IRQCHIP_PIC_SLAVE)?,
                chip(KVM_IRQCHIP_IOAPIC)?,
            ],
            timer: timer.map_err(|error| StateError::Kvm("read the timer", error))?,
            clock_ns: clock
                .map_err(|error| StateError::Kvm("read the clock", error))?
                .clock,
        })
    }

    /// Puts it into a machine that has slept so long. Its processors have their states already: the I/O APIC looks at their controllers.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn restore(&self, vm: &VmFd, asleep: Duration) -> Result<(), StateError> {
        for chip in &self.chips {
            vm.set_irqchip(chip)
                .map_err(|error| StateError::Kvm("set an interrupt controller", error))?;
        }
        vm.set_pit2(&self.timer)
            .map_err(|error| StateError::Kvm("set the timer", error))?;
        let asleep_ns = u64::try_from(asleep.as_nanos()).unwrap_or(u64::MAX);
        let clock = kvm_clock_data {
            clock: self.clock_ns.saturating_add(asleep_ns),
            ..kvm_clock_data::default()
        };
        vm.set_clock(&clock)
            .map_err(|error| StateError::Kvm("set the clock", error))
    }
}
