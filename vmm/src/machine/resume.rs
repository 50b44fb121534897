//! Snapshots of a machine, and machines that go on from them.
//!
//! ```text
//!  processors out of the guest ──► devices at rest ──► memory loaded ──► states read ──► folder written ──► devices, processors again
//! ```
//!
//! Processors come first, because their guest gives work to devices; their registers are read last, because devices raise interrupts.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kvm_ioctls::{Kvm, VcpuFd};
use vmm_api::MachineState;

use super::board::Board;
use super::bus::lock;
use super::event::{Event, Events};
use super::state::{Processors, StateError, VcpuState, VmState, features, msr_indices, stopped};
use super::vcpu::{self, Vcpu};
use super::{Devices, Machine, MachineError, VCPUS_MAX, memory};
use crate::legacy::serial::SerialLine;
use crate::snapshot::{
    self, Faults, Loading, OnDamage, Saved, Shape, Snapshot, SnapshotError, Target,
};
use crate::virtio::balloon::BalloonSize;
use crate::virtio::net::Link;
use crate::virtio::state::DeviceStates;

/// What a machine that goes on needs of its host.
pub struct ResumeSpec {
    /// Devices like those it had, in the same order.
    pub devices: Devices,
    /// What its serial port is connected to.
    pub serial: SerialLine,
    /// Sizes its balloon, if it has one.
    pub balloon: Option<BalloonSize>,
    /// Its network cards' cables, in order.
    pub links: Vec<Link>,
    /// Tells when its memory is there; made by [`Loading::begun`].
    pub loading: Loading,
    /// What missing pages are told of by. Without, all memory is loaded before the machine goes on.
    pub faults: Option<Faults>,
    /// Called when its memory cannot be had.
    pub on_damage: OnDamage,
}

fn now() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default()
}

impl Machine {
    /// Saves the machine into these files. It goes on then, unless it is to be ended: if `ends` and it was saved, it never runs again, so
    /// that its disks are as the snapshot has them.
    pub(super) fn snapshot(&mut self, target: &Target, ends: bool) -> Result<(), SnapshotError> {
        let vcpus = std::mem::take(&mut self.vcpus).into_iter();
        let taken: Vec<_> = vcpus.map(|vcpu| (vcpu.index(), vcpu.quit())).collect();
        // One that has failed has told so: the machine ends.
        let mut processors = Vec::new();
        for (index, processor) in taken {
            processors.push(processor.ok_or(SnapshotError::Processor(index))?);
        }
        for device in &self.board.devices {
            lock(device).suspend();
        }
        if let Some(pager) = &self.pager {
            pager.finish();
        }
        let result = self
            .check_no_end()
            .and_then(|()| self.save(target, &processors));
        if !(ends && result.is_ok()) {
            self.go_on(processors)?;
        }
        result
    }

    /// Whether nothing has happened that ends the machine: a guest that has just powered off must not be saved as one that has not.
    fn check_no_end(&mut self) -> Result<(), SnapshotError> {
        self.waiting.extend(self.taken.try_iter());
        let mut waiting = self.waiting.iter();
        if waiting.all(|event| matches!(event, Event::Command(..))) {
            Ok(())
        } else {
            Err(SnapshotError::Ending)
        }
    }

    fn save(&self, target: &Target, processors: &[VcpuFd]) -> Result<(), SnapshotError> {
        let board = &self.board;
        let mut devices = Vec::new();
        for device in &board.devices {
            let device = lock(device);
            let saved = device.save().map_err(|source| SnapshotError::Device {
                name: device.name().to_owned(),
                source,
            })?;
            devices.push(saved);
        }
        let mut states = Vec::new();
        for (processor, features) in processors.iter().zip(&self.features) {
            stopped(processor);
            let state = VcpuState::capture(&board.vm, processor, features, &self.msrs)?;
            states.push(state);
        }
        let saved = Saved {
            shape: Shape {
                memory_mib: self.memory_mib,
                vcpus: processors.len() as u8,
                taken_at: now(),
            },
            processors: Processors(states),
            vm: VmState::capture(&board.vm)?,
            legacy: board.save(),
            devices: DeviceStates(devices),
        };
        snapshot::write(target, &board.memory, &saved)
    }

    fn go_on(&mut self, processors: Vec<VcpuFd>) -> Result<(), SnapshotError> {
        for device in &self.board.devices {
            lock(device).go_on();
        }
        for (index, processor) in (0..).zip(processors) {
            stopped(&processor);
            let (buses, events) = (self.board.buses.clone(), self.events.clone());
            let vcpu = Vcpu::spawn(index, processor, buses, events).inspect_err(|error| {
                self.events.put(Event::Failed(error.to_string()));
            })?;
            self.vcpus.push(vcpu);
        }
        if self.state == MachineState::Running {
            self.vcpus.iter().for_each(Vcpu::resume);
        }
        Ok(())
    }

    /// Builds a machine that goes on where another one was saved; its processors wait. Its memory may still be coming.
    ///
    /// # Errors
    /// The host or the devices are others than those it was saved with, or see [`MachineError`].
    pub fn resume(kvm: &Kvm, snapshot: Snapshot, spec: ResumeSpec) -> Result<Self, MachineError> {
        let Snapshot {
            saved,
            image,
            working_set,
        } = snapshot;
        check_host(kvm, &saved)?;
        let names = spec.devices.iter().map(|(name, _)| name.as_str());
        saved.check_devices(names)?;
        let memory_mib = saved.shape.memory_mib;
        let memory = memory::create(memory_mib)?;
        let pager = snapshot::give(
            image,
            &memory,
            working_set,
            spec.faults,
            spec.loading,
            spec.on_damage,
        )?;
        let (events, taken) = Events::new();
        let board = Board::new(kvm, memory, spec.devices, spec.serial, &events)?;
        let asleep = now().saturating_sub(saved.shape.taken_at);
        let told = saved.processors.0.iter().map(VcpuState::features);
        let features = told
            .collect::<Result<_, _>>()
            .map_err(SnapshotError::State)?;
        let processors = put_into(&board, saved, asleep)?;
        vcpu::install_signal().map_err(|source| MachineError::Host("a signal".into(), source))?;
        let mut machine = Self {
            vcpus: Vec::new(),
            balloon: spec.balloon,
            links: spec.links,
            memory_mib,
            state: MachineState::Paused,
            features,
            msrs: msr_indices(kvm).map_err(SnapshotError::State)?,
            events,
            taken,
            waiting: VecDeque::new(),
            board,
            pager,
        };
        machine.go_on(processors)?;
        Ok(machine)
    }
}

/// Whether this host has what the guest was told of its processors.
fn check_host(kvm: &Kvm, saved: &Saved) -> Result<(), MachineError> {
    let (vcpus, processors) = (saved.shape.vcpus, &saved.processors.0);
    if !(1..=VCPUS_MAX).contains(&vcpus) || processors.len() != usize::from(vcpus) {
        return Err(MachineError::Vcpus(vcpus));
    }
    for (index, state) in (0..).zip(processors) {
        let here = vcpu::features(kvm, index, vcpus)?;
        let missing = features::missing(&state.cpuid, here.as_slice());
        if !missing.is_empty() {
            return Err(SnapshotError::Host(missing.join(", ")).into());
        }
    }
    Ok(())
}

/// Puts a state that was saved into a machine of the same shape. Interrupt controllers come behind processors, to whom they deliver, and
/// before devices, which raise.
fn put_into(board: &Board, saved: Saved, asleep: Duration) -> Result<Vec<VcpuFd>, SnapshotError> {
    let mut processors = Vec::new();
    for index in 0..saved.processors.0.len() {
        let processor = board.vm.create_vcpu(index as u64);
        processors.push(processor.map_err(|error| StateError::Kvm("create a processor", error))?);
    }
    for (index, state) in saved.processors.0.iter().enumerate() {
        state.restore(&board.vm, &processors[index], index, asleep)?;
    }
    saved.vm.restore(&board.vm, asleep)?;
    board.restore(saved.legacy, asleep)?;
    for device in &board.devices {
        lock(device).lift()?;
    }
    for (device, state) in board.devices.iter().zip(saved.devices.0) {
        let mut device = lock(device);
        let restored = device.restore(state);
        restored.map_err(|source| SnapshotError::Device {
            name: device.name().to_owned(),
            source,
        })?;
    }
    board.renew_generation()?;
    Ok(processors)
}
