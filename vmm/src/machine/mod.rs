//! A machine: memory, processors, buses and devices, built, run and ended.
//!
//! The thread that calls [`Machine::run`] waits for what ends or changes the machine; processors and devices have threads of their own.

pub mod acpi;
pub mod boot;
pub mod bus;
pub mod event;
pub mod interrupts;
pub mod layout;
pub mod memory;
pub mod rate;
pub mod vcpu;

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_api::{Answer, Command, MachineState, MachineStatus};

use crate::legacy::cmos::Cmos;
use crate::legacy::power::{PM_BYTES, Power, PowerButton};
use crate::legacy::reset::I8042;
use crate::legacy::serial::{SerialLine, SerialPort};
use crate::pci::ports::ConfigPorts;
use crate::pci::{DEVICES_MAX, Ecam, Function};
use crate::virtio::Device;
use crate::virtio::balloon::BalloonSize;
use crate::virtio::net::Link;
use crate::virtio::pci::{BAR_BYTES, VirtioPci};
use boot::BootSource;
use bus::{Bus, Registers, lock};
use event::{Event, Events};
use interrupts::Interrupts;
use layout::{
    CMOS_PORT, CONFIG_PORT, CONFIG_PORT_BYTES, ECAM, ECAM_BYTES, I8042_PORT, IDENTITY_MAP,
    PCI_WINDOW, PM_PORT, SCI_IRQ, SERIAL_IRQ, SERIAL_PORT, TSS,
};
use memory::Memory;
use vcpu::{Buses, Vcpu};

pub use vmm_api::VCPUS_MAX;

/// What a machine is made of.
pub struct MachineSpec<'a> {
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Processors.
    pub vcpus: u8,
    /// What it boots.
    pub boot: &'a BootSource,
    /// Its devices.
    pub devices: Devices,
    /// What its serial port is connected to.
    pub serial: SerialLine,
    /// Sizes its balloon, if it has one.
    pub balloon: Option<BalloonSize>,
    /// Its network cards' cables, in order.
    pub links: Vec<Link>,
}

/// Devices with the names that logs use.
pub type Devices = Vec<(String, Box<dyn Device>)>;

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// No KVM.
    #[error("/dev/kvm: `splice-vmm check` tells what is missing")]
    NoKvm(#[source] kvm_ioctls::Error),
    /// KVM refuses.
    #[error("KVM: {0}")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    /// Too many or none.
    #[error("{0} processors: from 1 to {VCPUS_MAX} are possible")]
    Vcpus(u8),
    /// Too many.
    #[error("{0} devices: {max} fit on the bus", max = DEVICES_MAX - 1)]
    Devices(usize),
    /// Memory.
    #[error(transparent)]
    Memory(#[from] memory::MemoryError),
    /// Kernel or initrd.
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    /// A processor.
    #[error(transparent)]
    Vcpu(#[from] vcpu::VcpuError),
    /// An interrupt.
    #[error(transparent)]
    Interrupt(#[from] interrupts::InterruptError),
    /// Ours.
    #[error(transparent)]
    Overlap(#[from] bus::Overlap),
    /// Ours.
    #[error("ACPI tables")]
    Acpi(#[source] vm_memory::GuestMemoryError),
    /// The console's socket, or the signal.
    #[error("{0}")]
    Host(String, #[source] std::io::Error),
}

/// Opens KVM.
///
/// # Errors
/// There is none, or this process may not.
pub fn open_kvm() -> Result<Kvm, MachineError> {
    Kvm::new().map_err(MachineError::NoKvm)
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The guest powered off, or somebody ended the machine.
    Off,
    /// The guest wants to start anew.
    Reset,
    /// It could not go on.
    Failed(String),
}

/// See the module.
pub struct Machine {
    vcpus: Vec<Vcpu>,
    devices: Vec<Arc<Mutex<VirtioPci>>>,
    button: PowerButton,
    balloon: Option<BalloonSize>,
    links: Vec<Link>,
    memory_mib: u64,
    state: MachineState,
    events: Events,
    taken: Receiver<Event>,
    // Behind those that use them.
    _vm: Arc<VmFd>,
    _memory: Memory,
}

impl Machine {
    /// Builds a machine; its processors wait.
    ///
    /// # Errors
    /// See [`MachineError`].
    pub fn build(kvm: &Kvm, spec: MachineSpec<'_>) -> Result<Self, MachineError> {
        if !(1..=VCPUS_MAX).contains(&spec.vcpus) {
            return Err(MachineError::Vcpus(spec.vcpus));
        }
        if spec.devices.len() >= DEVICES_MAX {
            return Err(MachineError::Devices(spec.devices.len()));
        }
        let memory = memory::create(spec.memory_mib)?;
        let vm = Arc::new(create_vm(kvm, &memory)?);
        let (events, taken) = Events::new();
        let buses = Buses {
            ports: Arc::new(Bus::default()),
            mmio: Arc::new(Bus::default()),
        };
        let interrupts = Arc::new(Interrupts::new(Arc::clone(&vm))?);

        let serial = SerialPort::new(interrupts.edge(SERIAL_IRQ)?, &spec.serial);
        let (power, button) = Power::new(Box::new(interrupts.level(SCI_IRQ)), events.clone());
        let port = |base: u16, len, device: Box<dyn Registers>| {
            buses
                .ports
                .insert(base.into(), len, Arc::new(Mutex::new(Boxed(device))))
        };
        port(SERIAL_PORT, 8, Box::new(serial))?;
        port(PM_PORT, PM_BYTES, Box::new(power))?;
        port(CMOS_PORT, 2, Box::<Cmos>::default())?;
        port(I8042_PORT, 5, Box::new(I8042(events.clone())))?;

        let mut devices = Vec::new();
        for (index, (name, device)) in spec.devices.into_iter().enumerate() {
            let bar = PCI_WINDOW as u32 + index as u32 * BAR_BYTES;
            devices.push(VirtioPci::new(
                &name,
                device,
                Arc::clone(&vm),
                Arc::clone(&buses.mmio),
                &interrupts,
                memory.clone(),
                bar,
            )?);
        }
        let functions = devices.iter().map(|device| {
            let function: Arc<Mutex<dyn Function>> = Arc::clone(device) as _;
            function
        });
        let ecam = Arc::new(Mutex::new(Ecam::new(functions.collect())));
        let by_ports = ConfigPorts::new(Arc::clone(&ecam), events.clone());
        port(CONFIG_PORT, CONFIG_PORT_BYTES, Box::new(by_ports))?;
        buses.mmio.insert(ECAM, ECAM_BYTES, ecam)?;

        let entry = boot::load(&memory, spec.boot)?;
        acpi::write(&memory, spec.vcpus).map_err(MachineError::Acpi)?;
        vcpu::install_signal().map_err(|source| MachineError::Host("a signal".into(), source))?;
        let mut vcpus = Vec::new();
        for index in 0..spec.vcpus {
            let vcpu = vcpu::create(kvm, &vm, index, spec.vcpus, entry)?;
            vcpus.push(Vcpu::spawn(index, vcpu, buses.clone(), events.clone())?);
        }
        Ok(Self {
            vcpus,
            devices,
            button,
            balloon: spec.balloon,
            links: spec.links,
            memory_mib: spec.memory_mib,
            state: MachineState::Paused,
            events,
            taken,
            _vm: vm,
            _memory: memory,
        })
    }

    /// Where what should happen to it is put.
    pub fn events(&self) -> Events {
        self.events.clone()
    }

    /// Runs it to its end; its devices come back for the next one. `resets` is how often its guest has reset it before.
    pub fn run(mut self, resets: u32) -> (End, Devices) {
        self.resume();
        let end = loop {
            match self.taken.recv() {
                Ok(Event::PowerOff | Event::Quit) | Err(_) => break End::Off,
                Ok(Event::Reset) => break End::Reset,
                Ok(Event::Failed(reason)) => break End::Failed(reason),
                Ok(Event::Command(command, answer)) => {
                    let is_end = command == Command::Quit;
                    // Whoever asked may have gone away.
                    let _ = answer.send(self.obey(&command, resets));
                    if is_end {
                        break End::Off;
                    }
                }
            }
        };
        (end, self.end())
    }

    fn resume(&mut self) {
        self.state = MachineState::Running;
        self.vcpus.iter().for_each(Vcpu::resume);
    }

    fn pause(&mut self) {
        self.state = MachineState::Paused;
        self.vcpus.iter().for_each(Vcpu::pause);
    }

    fn obey(&mut self, command: &Command, resets: u32) -> Answer {
        match command {
            Command::Status => {
                return Answer::Status(MachineStatus {
                    state: self.state,
                    memory_mib: self.memory_mib,
                    balloon_mib: self.balloon.as_ref().map_or(0, BalloonSize::given_mib),
                    vcpus: self.vcpus.len() as u8,
                    resets,
                });
            }
            Command::PowerButton => self.button.press(),
            Command::Pause => self.pause(),
            Command::Resume => self.resume(),
            Command::Balloon { mib } => match &self.balloon {
                None => return Answer::Refused("this machine has no balloon".into()),
                Some(_) if u64::from(*mib) >= self.memory_mib => {
                    return Answer::Refused(format!("it has {} MiB in all", self.memory_mib));
                }
                Some(balloon) => balloon.ask_mib(*mib),
            },
            Command::Link { card, up } => match self.links.get(usize::from(*card)) {
                None => {
                    return Answer::Refused(format!(
                        "no network card {card}: this machine has {}",
                        self.links.len()
                    ));
                }
                Some(link) => link.set(*up),
            },
            Command::Quit => {}
        }
        Answer::Done
    }

    fn end(self) -> Devices {
        for vcpu in self.vcpus {
            vcpu.quit();
        }
        let devices = self.devices.iter();
        devices
            .filter_map(|device| lock(device).take_out())
            .collect()
    }
}

/// Registers of any kind as one type.
struct Boxed(Box<dyn Registers>);

impl Registers for Boxed {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0.write(offset, data);
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
