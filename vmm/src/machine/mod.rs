//! A machine: memory, processors, buses and devices, built, run and ended.
//!
//! `board` is all of it but the processors ([`vcpu`]). `resume` saves machines and makes others that go on from there; [`state`] is what
//! KVM keeps of them. The thread that calls [`Machine::run`] waits for what ends or changes the machine; processors and devices have threads of their own.

pub mod acpi;
mod board;
pub mod boot;
pub mod bus;
pub mod event;
pub mod interrupts;
pub mod layout;
pub mod memory;
pub mod rate;
mod resume;
pub mod state;
pub mod vcpu;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::mpsc::Receiver;

use kvm_bindings::CpuId;
use kvm_ioctls::Kvm;
use vmm_api::{Answer, Command, MachineState, MachineStatus, Then};

use crate::legacy::generation::{self, GenerationError};
use crate::legacy::serial::SerialLine;
use crate::pci::DEVICES_MAX;
use crate::snapshot::{Pager, SnapshotError, Target};
use crate::virtio::Device;
use crate::virtio::balloon::BalloonSize;
use crate::virtio::net::Link;
use board::Board;
use boot::BootSource;
use bus::lock;
use event::{Event, Events};
use vcpu::Vcpu;

pub use board::LegacyState;
pub(crate) use board::create_vm;
pub use resume::ResumeSpec;
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
    /// No randomness.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// The snapshot that it should go on from.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
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
    balloon: Option<BalloonSize>,
    links: Vec<Link>,
    memory_mib: u64,
    state: MachineState,
    /// What each of its processors was told of itself.
    features: Vec<CpuId>,
    /// Model-specific registers of its processors.
    msrs: Vec<u32>,
    events: Events,
    taken: Receiver<Event>,
    /// Events that were taken and not acted on yet.
    waiting: VecDeque<Event>,
    board: Board,
    /// Behind all who touch memory.
    pager: Option<Pager>,
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
        let memory = memory::create(spec.memory_mib)?;
        let (events, taken) = Events::new();
        let board = Board::new(kvm, memory, spec.devices, spec.serial, &events)?;
        let entry = boot::load(&board.memory, spec.boot)?;
        acpi::write(&board.memory, spec.vcpus).map_err(MachineError::Acpi)?;
        generation::renew(&board.memory)?;
        vcpu::install_signal().map_err(|source| MachineError::Host("a signal".into(), source))?;
        let (mut vcpus, mut features) = (Vec::new(), Vec::new());
        for index in 0..spec.vcpus {
            let told = vcpu::features(kvm, index, spec.vcpus)?;
            let vcpu = vcpu::create(&board.vm, index, &told, entry)?;
            features.push(told);
            let (buses, events) = (board.buses.clone(), events.clone());
            vcpus.push(Vcpu::spawn(index, vcpu, buses, events)?);
        }
        Ok(Self {
            vcpus,
            balloon: spec.balloon,
            links: spec.links,
            memory_mib: spec.memory_mib,
            state: MachineState::Paused,
            features,
            msrs: state::msr_indices(kvm).map_err(SnapshotError::State)?,
            events,
            taken,
            waiting: VecDeque::new(),
            board,
            pager: None,
        })
    }

    /// Where what should happen to it is put.
    pub fn events(&self) -> Events {
        self.events.clone()
    }

    /// Runs it to its end; its devices come back for the next one. `resets` is how often its guest has reset it before.
    pub fn run(mut self, resets: u32) -> (End, Devices) {
        self.unpause();
        let end = loop {
            let waiting = self.waiting.pop_front();
            match waiting.map_or_else(|| self.taken.recv(), Ok) {
                Ok(Event::PowerOff | Event::Quit) | Err(_) => break End::Off,
                Ok(Event::Reset) => break End::Reset,
                Ok(Event::Failed(reason)) => break End::Failed(reason),
                Ok(Event::Command(command, files, answer)) => {
                    let done = self.obey(&command, files, resets);
                    let is_end = command.ends() && done == Answer::Done;
                    // Whoever asked may have gone away.
                    let _ = answer.send(done);
                    if is_end {
                        break End::Off;
                    }
                }
            }
        };
        (end, self.end())
    }

    fn unpause(&mut self) {
        self.state = MachineState::Running;
        self.vcpus.iter().for_each(Vcpu::resume);
    }

    fn pause(&mut self) {
        self.state = MachineState::Paused;
        self.vcpus.iter().for_each(Vcpu::pause);
    }

    fn obey(&mut self, command: &Command, files: Vec<OwnedFd>, resets: u32) -> Answer {
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
            Command::PowerButton => self.board.button.press(),
            Command::Pause => self.pause(),
            Command::Resume => self.unpause(),
            Command::Balloon { mib } => match &self.balloon {
                None => return Answer::Refused("this machine has no balloon".into()),
                Some(_) if u64::from(*mib) >= self.memory_mib => {
                    return Answer::Refused(format!("it has {} MiB in all", self.memory_mib));
                }
                Some(balloon) => balloon.ask_mib(*mib),
            },
            Command::Snapshot { then } => {
                let target = Target::new(files);
                let saved = target.and_then(|target| self.snapshot(&target, *then == Then::Quit));
                if let Err(error) = saved {
                    return Answer::Refused(chain(&error));
                }
            }
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

    /// To end: processors, then devices, then what gives them memory.
    fn end(self) -> Devices {
        for vcpu in self.vcpus {
            vcpu.quit();
        }
        let devices = self.board.devices.iter();
        devices
            .filter_map(|device| lock(device).take_out())
            .collect()
    }
}

/// An error with what is behind it, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += ": ";
        text += &error.to_string();
        source = error.source();
    }
    text
}
