//! What a machine has beside its processors, wired up: memory, interrupts, the parts of a PC, devices on their bus. The same whether it
//! boots or goes on from a snapshot.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VmFd};
use serde::{Deserialize, Serialize};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::bus::{Bus, Shared, lock};
use super::event::Events;
use super::interrupts::{InterruptError, Interrupts};
use super::layout::{
    CMOS_PORT, CONFIG_PORT, CONFIG_PORT_BYTES, ECAM, ECAM_BYTES, GENERATION_IRQ, I8042_PORT,
    IDENTITY_MAP, PCI_WINDOW, PM_PORT, SCI_IRQ, SERIAL_IRQ, SERIAL_PORT, TSS,
};
use super::memory::Memory;
use super::vcpu::Buses;
use super::{Devices, MachineError};
use crate::legacy::cmos::Cmos;
use crate::legacy::generation::{self, GenerationError};
use crate::legacy::power::{PM_BYTES, Power, PowerButton, PowerState};
use crate::legacy::reset::I8042;
use crate::legacy::serial::{SerialLine, SerialPort, SerialState};
use crate::pci::ports::ConfigPorts;
use crate::pci::{DEVICES_MAX, Ecam, Function};
use crate::snapshot::parts::Part;
use crate::virtio::pci::{BAR_BYTES, VirtioPci};

/// What a snapshot keeps of the parts of a PC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegacyState {
    serial: SerialState,
    power: PowerState,
    cmos: Cmos,
    /// What was last written into PCI's address port.
    config_address: u32,
    /// The configuration space of the bridge.
    bridge: Vec<u8>,
}

impl Part for LegacyState {
    const NUMBER: u16 = 5;
    const VERSION: u16 = 1;
    const NAME: &'static str = "legacy devices";
}

/// See the module.
pub(super) struct Board {
    pub buses: Buses,
    pub devices: Vec<Arc<Mutex<VirtioPci>>>,
    pub button: PowerButton,
    line: SerialLine,
    serial: SerialPort,
    serial_interrupt: EventFd,
    power: Arc<Mutex<Power>>,
    cmos: Arc<Mutex<Cmos>>,
    config_ports: Arc<Mutex<ConfigPorts>>,
    ecam: Arc<Mutex<Ecam>>,
    /// Tells of a new generation.
    generation: EventFd,
    // Behind those that use them.
    pub vm: Arc<VmFd>,
    pub memory: Memory,
}

impl Board {
    pub fn new(
        kvm: &Kvm,
        memory: Memory,
        devices: Devices,
        line: SerialLine,
        events: &Events,
    ) -> Result<Self, MachineError> {
        if devices.len() >= DEVICES_MAX {
            return Err(MachineError::Devices(devices.len()));
        }
        let vm = Arc::new(create_vm(kvm, &memory)?);
        let buses = Buses {
            ports: Arc::new(Bus::default()),
            mmio: Arc::new(Bus::default()),
        };
        let interrupts = Arc::new(Interrupts::new(Arc::clone(&vm))?);
        let serial_interrupt = interrupts.edge(SERIAL_IRQ)?;
        let copy = serial_interrupt
            .try_clone()
            .map_err(InterruptError::Event)?;
        let serial = SerialPort::new(copy, &line);
        let (power, button) = Power::new(Box::new(interrupts.level(SCI_IRQ)), events.clone());
        let (power, cmos) = (Arc::new(Mutex::new(power)), Arc::<Mutex<Cmos>>::default());

        let mut on_bus = Vec::new();
        for (index, (name, device)) in devices.into_iter().enumerate() {
            let bar = PCI_WINDOW as u32 + index as u32 * BAR_BYTES;
            on_bus.push(VirtioPci::new(
                &name,
                device,
                Arc::clone(&vm),
                Arc::clone(&buses.mmio),
                &interrupts,
                memory.clone(),
                bar,
            )?);
        }
        let functions = on_bus.iter().map(|device| {
            let function: Arc<Mutex<dyn Function>> = Arc::clone(device) as _;
            function
        });
        let ecam = Arc::new(Mutex::new(Ecam::new(functions.collect())));
        let config_ports = ConfigPorts::new(Arc::clone(&ecam), events.clone());
        let config_ports = Arc::new(Mutex::new(config_ports));

        let i8042 = Arc::new(Mutex::new(I8042(events.clone())));
        let ports: [(u16, u64, Shared); 5] = [
            (SERIAL_PORT, 8, Arc::new(Mutex::new(serial.clone()))),
            (PM_PORT, PM_BYTES, Arc::clone(&power) as _),
            (CMOS_PORT, 2, Arc::clone(&cmos) as _),
            (I8042_PORT, 5, i8042),
            (
                CONFIG_PORT,
                CONFIG_PORT_BYTES,
                Arc::clone(&config_ports) as _,
            ),
        ];
        for (base, len, device) in ports {
            buses.ports.insert(base.into(), len, device)?;
        }
        buses
            .mmio
            .insert(ECAM, ECAM_BYTES, Arc::clone(&ecam) as _)?;
        Ok(Self {
            buses,
            devices: on_bus,
            button,
            line,
            serial,
            serial_interrupt,
            power,
            cmos,
            config_ports,
            ecam,
            generation: interrupts.edge(GENERATION_IRQ)?,
            vm,
            memory,
        })
    }

    /// State of the parts of a PC; no processor runs.
    pub fn save(&self) -> LegacyState {
        LegacyState {
            serial: self.serial.save(),
            power: lock(&self.power).save(),
            cmos: lock(&self.cmos).clone(),
            config_address: lock(&self.config_ports).address(),
            bridge: lock(&self.ecam).bridge(),
        }
    }

    /// Takes it up, of a machine that has slept so long. Interrupt controllers have their states already: what is raised here stays.
    pub fn restore(&self, state: LegacyState, asleep: Duration) -> Result<(), InterruptError> {
        let interrupt = self.serial_interrupt.try_clone();
        let interrupt = interrupt.map_err(InterruptError::Event)?;
        self.serial.restore(state.serial, interrupt, &self.line);
        lock(&self.power).restore(&state.power, asleep);
        *lock(&self.cmos) = state.cmos;
        lock(&self.config_ports).set_address(state.config_address);
        lock(&self.ecam).restore_bridge(&state.bridge);
        Ok(())
    }

    /// Gives the machine another generation, and tells its guest.
    pub fn renew_generation(&self) -> Result<(), GenerationError> {
        generation::renew(&self.memory)?;
        generation::tell(&self.generation)
    }
}

/// A VM with its memory, interrupt controllers and timer.
pub(crate) fn create_vm(kvm: &Kvm, memory: &Memory) -> Result<VmFd, MachineError> {
    let failed = |step| move |error| MachineError::Kvm(step, error);
    let vm = kvm.create_vm().map_err(failed("create a VM"))?;
    vm.set_identity_map_address(IDENTITY_MAP)
        .map_err(failed("place its identity map"))?;
    vm.set_tss_address(TSS).map_err(failed("place its TSS"))?;
    vm.create_irq_chip()
        .map_err(failed("create interrupt controllers"))?;
    let pit = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    vm.create_pit2(pit).map_err(failed("create a timer"))?;
    for (slot, region) in (0..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the mapping is as long as the region and lives longer than the VM: a machine drops it last.
        unsafe { vm.set_user_memory_region(region) }.map_err(failed("give it memory"))?;
    }
    Ok(vm)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{memory, open_kvm};
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Whatever a guest has written to ports, the parts that take up their state are like those.
        #[test]
        fn legacy_parts_come_back_as_they_were(
            written in prop::collection::vec((prop_oneof![0x3f9u16..0x400, 0x70u16..0x72, 0x600u16..0x604, Just(0xcf8)], any::<u32>()), 0..40),
        ) {
            let Ok(kvm) = open_kvm() else { return Ok(()) };
            let board = || {
                let memory = memory::create(64).expect("memory");
                let (events, _) = Events::new();
                Board::new(&kvm, memory, Devices::new(), SerialLine::default(), &events)
            };
            let (before, after) = (board().expect("a board"), board().expect("a board"));
            for (port, value) in written {
                let len = match port {
                    CONFIG_PORT => 4,
                    0x600.. => 2,
                    _ => 1,
                };
                before.buses.ports.write(port.into(), &value.to_le_bytes()[..len]);
            }
            let saved = before.save();
            let bytes = postcard::to_stdvec(&saved).expect("bytes");
            let parsed: LegacyState = postcard::from_bytes(&bytes).expect("the same");
            prop_assert_eq!(&parsed, &saved);
            after.restore(parsed, Duration::ZERO).expect("taken up");
            let mut again = after.save();
            // The timer goes on.
            again.power = saved.power.clone();
            prop_assert_eq!(again, saved);
        }
    }
}
