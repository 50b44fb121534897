//! The PCI transport of a virtio device (virtio 1.2, section 4.1): what a driver configures.
//!
//! BAR 0 holds everything:
//!
//! ```text
//! 0x0000 common configuration   0x1000 ISR   0x2000 the device's configuration
//! 0x3000 notifications, 4 bytes a queue      0x4000 MSI-X table   0x5000 pending bits
//! ```
//!
//! Notifications never come here: KVM turns them into events (ioeventfd). There are no pin interrupts, so ISR is always 0.

mod snapshot;

use std::sync::{Arc, Mutex, Weak};

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_block::Seldom;
use vmm_sys_util::eventfd::EventFd;

use super::ring::{Interrupt, Ring};
use super::{Device, F_RINGS, F_VERSION_1, Started};
use crate::machine::bus::{Bus, Registers, Shared};
use crate::machine::interrupts::{InterruptError, Interrupts, Message};
use crate::machine::layout::{PCI_WINDOW, PCI_WINDOW_BYTES};
use crate::machine::memory::Memory;
use crate::pci::Function;
use crate::pci::config::ConfigSpace;
use crate::pci::msix::{self, Msix};

/// Bytes of the BAR.
pub const BAR_BYTES: u32 = 0x8000;

const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x5000;
const PART_BYTES: u64 = 0x1000;

/// Bytes between two queues' notification addresses.
const NOTIFY_STEP: u32 = 4;

const VENDOR: u16 = 0x1af4;
/// PCI device ids of virtio 1.0 devices begin here.
const DEVICE_ID: u16 = 0x1040;
/// Virtio 1.0 and later only.
const REVISION: u8 = 1;
/// The vendor-specific capability by which drivers find the parts.
const CAPABILITY: u8 = 9;
/// Its kinds, with offset and length in the BAR.
const PARTS: [(u8, u64); 4] = [(1, COMMON), (3, ISR), (4, DEVICE), (2, NOTIFY)];

/// Device status bits (virtio 1.2, section 2.1).
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;

const WHILE_IT_RUNS: &str = "a device is taken out when no processor runs any more";

struct QueueSetup {
    queue: Queue,
    size_max: u16,
    kick: EventFd,
}

/// See the module.
pub struct VirtioPci {
    this: Weak<Mutex<Self>>,
    vm: Arc<VmFd>,
    /// The bus holds the device, not the other way round, or neither would ever go.
    bus: Weak<Bus>,
    memory: Memory,
    config: ConfigSpace,
    /// Where in the configuration space MSI-X is.
    msix_at: usize,
    msix: Msix<Message>,
    interrupt: Arc<Interrupt>,
    /// There until the machine ends.
    device: Option<Box<dyn Device>>,
    name: String,
    status: u8,
    driver_features: u64,
    feature_page: [u32; 2],
    queue_select: u16,
    queues: Vec<QueueSetup>,
    is_started: bool,
    seldom: Seldom,
    /// Where the BAR answers now.
    mapped: Option<u64>,
}

impl VirtioPci {
    /// Puts a device on the bus at BAR address `bar`.
    ///
    /// # Errors
    /// Interrupts or descriptors are not to be had.
    pub fn new(
        name: &str,
        device: Box<dyn Device>,
        vm: Arc<VmFd>,
        bus: Arc<Bus>,
        interrupts: &Arc<Interrupts>,
        memory: Memory,
        bar: u32,
    ) -> Result<Arc<Mutex<Self>>, InterruptError> {
        let sizes = device.queue_sizes();
        let vectors = sizes.len() + 1;
        let messages: Vec<Message> = (0..vectors)
            .map(|_| interrupts.message())
            .collect::<Result<_, _>>()?;
        let copy = |event: &EventFd| event.try_clone().map_err(InterruptError::Event);
        let events = messages.iter().map(|message| copy(message.event()));
        let interrupt = Interrupt::new(events.collect::<Result<_, _>>()?, sizes.len());
        let queues = sizes.iter().map(|size| {
            Ok(QueueSetup {
                queue: Queue::new(*size).expect("devices' queue sizes are powers of two"),
                size_max: *size,
                kick: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
                    .map_err(InterruptError::Event)?,
            })
        });
        let queues = queues.collect::<Result<_, InterruptError>>()?;

        let kind = device.kind();
        let id = DEVICE_ID + kind as u16;
        let mut config = ConfigSpace::new(VENDOR, id, kind.class())
            .with_subsystem(VENDOR, id, REVISION)
            .with_bar(bar, BAR_BYTES);
        for (part, at) in PARTS {
            let step = (at == NOTIFY).then_some(NOTIFY_STEP);
            config.add_capability(CAPABILITY, &capability(part, at, step), &[]);
        }
        let table = msix::capability(vectors, TABLE as u32, PENDING as u32);
        let writable = [(msix::CONTROL_HIGH, msix::ENABLE | msix::MASK_ALL)];
        let msix_at = config.add_capability(msix::CAPABILITY, &table, &writable);

        let this = Arc::new_cyclic(|this| {
            Mutex::new(Self {
                this: Weak::clone(this),
                vm,
                bus: Arc::downgrade(&bus),
                memory,
                config,
                msix_at,
                msix: Msix::new(messages),
                interrupt: Arc::new(interrupt),
                device: Some(device),
                name: name.to_owned(),
                status: 0,
                driver_features: 0,
                feature_page: [0; 2],
                queue_select: 0,
                queues,
                is_started: false,
                seldom: Seldom::default(),
                mapped: None,
            })
        });
        crate::machine::bus::lock(&this).place_bar()?;
        Ok(this)
    }

    /// Has the BAR answer where the guest wants it, if that is possible.
    fn place_bar(&mut self) -> Result<(), InterruptError> {
        let window = PCI_WINDOW..=PCI_WINDOW + PCI_WINDOW_BYTES - u64::from(BAR_BYTES);
        let wanted = self.config.bar().filter(|bar| window.contains(bar));
        if wanted == self.mapped {
            return Ok(());
        }
        let Some(bus) = self.bus.upgrade() else {
            return Ok(());
        };
        if let Some(bar) = self.mapped.take() {
            bus.remove(bar);
            self.notifications(bar, false)?;
        }
        if let (Some(bar), Some(this)) = (wanted, self.this.upgrade()) {
            let shared: Shared = this;
            if bus.insert(bar, u64::from(BAR_BYTES), shared).is_ok() {
                self.notifications(bar, true)?;
                self.mapped = Some(bar);
            }
        }
        Ok(())
    }

    fn notifications(&self, bar: u64, on: bool) -> Result<(), InterruptError> {
        for (index, setup) in self.queues.iter().enumerate() {
            let address = bar + NOTIFY + index as u64 * u64::from(NOTIFY_STEP);
            let address = IoEventAddress::Mmio(address);
            let done = if on {
                self.vm.register_ioevent(&setup.kick, &address, NoDatamatch)
            } else {
                self.vm
                    .unregister_ioevent(&setup.kick, &address, NoDatamatch)
            };
            done.map_err(|error| InterruptError::Kvm("notifications of a queue", error))?;
        }
        Ok(())
    }

    fn features(&self) -> u64 {
        self.device().features() | F_RINGS
    }

    fn device(&self) -> &dyn Device {
        self.device.as_deref().expect(WHILE_IT_RUNS)
    }

    fn device_mut(&mut self) -> &mut dyn Device {
        self.device.as_deref_mut().expect(WHILE_IT_RUNS)
    }

    fn selected(&mut self) -> Option<&mut QueueSetup> {
        self.queues.get_mut(usize::from(self.queue_select))
    }

    fn common(&self, offset: u64) -> u64 {
        let select = usize::from(self.queue_select);
        let queue = self.queues.get(select);
        let of = |read: fn(&Queue) -> u64| queue.map_or(0, |setup| read(&setup.queue));
        match offset {
            0x00 => self.feature_page[0].into(),
            0x04 => page(self.features(), self.feature_page[0]).into(),
            0x08 => self.feature_page[1].into(),
            0x0c => page(self.driver_features, self.feature_page[1]).into(),
            0x10 => self.interrupt.vector(None).into(),
            0x12 => self.queues.len() as u64,
            0x14 => self.status.into(),
            0x15 => self.interrupt.generation().into(),
            0x16 => self.queue_select.into(),
            0x18 => of(|queue| queue.size().into()),
            0x1a => self.interrupt.vector(Some(select)).into(),
            0x1c => of(|queue| queue.ready().into()),
            0x1e => queue.map_or(0, |_| select as u64),
            0x20 => of(Queue::desc_table),
            0x24 => of(|queue| queue.desc_table() >> 32),
            0x28 => of(Queue::avail_ring),
            0x2c => of(|queue| queue.avail_ring() >> 32),
            0x30 => of(Queue::used_ring),
            0x34 => of(|queue| queue.used_ring() >> 32),
            _ => 0,
        }
    }

    fn set_common(&mut self, offset: u64, value: u32) {
        let select = usize::from(self.queue_select);
        match offset {
            0x00 => self.feature_page[0] = value,
            0x08 => self.feature_page[1] = value,
            0x0c if self.status & FEATURES_OK == 0 => {
                let shift = match self.feature_page[1] {
                    0 => 0,
                    1 => 32,
                    _ => return,
                };
                self.driver_features &= !(u64::from(u32::MAX) << shift);
                self.driver_features |= u64::from(value) << shift;
            }
            0x10 => self.interrupt.set_vector(None, value as u16),
            0x14 => self.set_status(value as u8),
            0x16 => self.queue_select = value as u16,
            0x1a => self.interrupt.set_vector(Some(select), value as u16),
            0x18 | 0x1c | 0x20..=0x34 => self.set_queue(offset, value),
            _ => {}
        }
    }

    /// Queues are set up before they are used: a driver that changes one later changes nothing.
    fn set_queue(&mut self, offset: u64, value: u32) {
        if self.is_started {
            return;
        }
        let Some(QueueSetup { queue, .. }) = self.selected() else {
            return;
        };
        let low = |address: u64| GuestAddress(address >> 32 << 32 | u64::from(value));
        let high = |address: u64| GuestAddress(address & 0xffff_ffff | u64::from(value) << 32);
        // Values that are not allowed (sizes that are no power of two, addresses that are not aligned) change nothing, so that the driver
        // reads back something else than it wrote.
        let _ = match offset {
            0x18 => queue.try_set_size(value as u16),
            0x20 => queue.try_set_desc_table_address(low(queue.desc_table())),
            0x24 => queue.try_set_desc_table_address(high(queue.desc_table())),
            0x28 => queue.try_set_avail_ring_address(low(queue.avail_ring())),
            0x2c => queue.try_set_avail_ring_address(high(queue.avail_ring())),
            0x30 => queue.try_set_used_ring_address(low(queue.used_ring())),
            0x34 => queue.try_set_used_ring_address(high(queue.used_ring())),
            0x1c => {
                queue.set_ready(value & 1 == 1);
                Ok(())
            }
            _ => Ok(()),
        };
    }

    fn set_status(&mut self, status: u8) {
        if status == 0 {
            self.reset();
            return;
        }
        let before = std::mem::replace(&mut self.status, status);
        if status & !before & FEATURES_OK != 0 {
            let unknown = self.driver_features & !self.features();
            if unknown != 0 || self.driver_features & F_VERSION_1 == 0 {
                // The driver reads back that it was not taken.
                self.status &= !FEATURES_OK;
            }
        }
        if self.status & !before & DRIVER_OK != 0 {
            self.start();
        }
    }

    fn start(&mut self) {
        if self.is_started || self.status & FEATURES_OK == 0 {
            return;
        }
        self.is_started = true;
        self.hand_out();
    }

    /// Gives the device its queues and has it work.
    fn hand_out(&mut self) {
        let event_idx = self.driver_features & super::F_EVENT_IDX != 0;
        let mut rings = Vec::new();
        for (index, setup) in self.queues.iter_mut().enumerate() {
            setup.queue.set_event_idx(event_idx);
            let is_set_up = is_set_up(&setup.queue, &self.memory);
            let kick = setup.kick.try_clone().ok().filter(|_| is_set_up);
            rings.push(kick.map(|kick| {
                let fresh = Queue::new(setup.size_max).expect("made before");
                let queue = std::mem::replace(&mut setup.queue, fresh);
                Ring::new(index, queue, kick, Arc::clone(&self.interrupt))
            }));
        }
        let started = Started {
            memory: self.memory.clone(),
            features: self.driver_features,
            rings,
            interrupt: Arc::clone(&self.interrupt),
        };
        if let Err(error) = self.device_mut().start(started) {
            let error = &error as &dyn std::error::Error;
            // A guest can leave queues out as often as it likes.
            match error.source() {
                Some(_) if self.seldom.passes() => {
                    tracing::warn!(device = self.name, error, "the device does not start");
                }
                _ => tracing::debug!(device = self.name, error, "the device does not start"),
            }
            self.status |= NEEDS_RESET;
            self.interrupt.config_changed();
        }
        // What the driver put in before it was ready is looked at too.
        for setup in &self.queues {
            let _ = setup.kick.write(1);
        }
    }

    fn reset(&mut self) {
        if std::mem::take(&mut self.is_started) {
            self.device_mut().stop();
            self.device_mut().reset();
        }
        for (index, setup) in self.queues.iter_mut().enumerate() {
            setup.queue = Queue::new(setup.size_max).expect("made before");
            self.interrupt
                .set_vector(Some(index), super::ring::NO_VECTOR);
            let _ = setup.kick.read();
        }
        self.interrupt.set_vector(None, super::ring::NO_VECTOR);
        self.status = 0;
        self.driver_features = 0;
        self.feature_page = [0; 2];
        self.queue_select = 0;
    }

    /// Ends the device's work and takes it out. To be called when no processor runs any more.
    pub fn take_out(&mut self) -> Option<(String, Box<dyn Device>)> {
        self.reset();
        let device = self.device.take()?;
        Some((std::mem::take(&mut self.name), device))
    }
}

/// Whether a queue is on, with its rings in memory: as the queue's own `is_valid`, which logs why not.
fn is_set_up(queue: &Queue, memory: &Memory) -> bool {
    let size = usize::from(queue.size());
    let has = |at, bytes| memory.check_range(GuestAddress(at), bytes);
    queue.ready()
        // 0 is what a queue has that nobody has set up.
        && queue.avail_ring() != 0
        && has(queue.desc_table(), 16 * size)
        && has(queue.avail_ring(), 6 + 2 * size)
        && has(queue.used_ring(), 6 + 8 * size)
}

/// 32 of 64 features.
fn page(features: u64, page: u32) -> u32 {
    match page {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

/// A capability's body: kind, BAR 0, offset and length, and what follows them for notifications.
fn capability(part: u8, at: u64, step: Option<u32>) -> Vec<u8> {
    let len = if step.is_some() { 20 } else { 16 };
    let mut body = vec![len, part, 0, 0, 0, 0];
    body.extend((at as u32).to_le_bytes());
    body.extend((PART_BYTES as u32).to_le_bytes());
    body.extend(step.into_iter().flat_map(u32::to_le_bytes));
    body
}

impl Function for VirtioPci {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        let control = self.msix_at + msix::CONTROL_HIGH;
        if (offset..offset + data.len()).contains(&control) {
            self.msix.control(self.config.byte(control));
        }
        if let Err(error) = self.place_bar()
            && self.seldom.passes()
        {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(device = self.name, error, "the BAR cannot be moved");
        }
    }
}

impl Registers for VirtioPci {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let at = offset % PART_BYTES;
        match offset - at {
            COMMON => {
                let value = self.common(at).to_le_bytes();
                let len = data.len().min(value.len());
                data[..len].copy_from_slice(&value[..len]);
            }
            DEVICE => self.device().read_config(at as usize, data),
            TABLE => self.msix.read_table(at as usize, data),
            PENDING => self.msix.read_pending(at as usize, data),
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let at = offset % PART_BYTES;
        match offset - at {
            COMMON => {
                // Addresses may be written whole or in halves.
                for (at, half) in (at..).step_by(4).zip(data.chunks(4)) {
                    let mut value = [0; 4];
                    value[..half.len()].copy_from_slice(half);
                    self.set_common(at, u32::from_le_bytes(value));
                }
            }
            DEVICE => self.device_mut().write_config(at as usize, data),
            TABLE => self.msix.write_table(at as usize, data),
            _ => {}
        }
    }
}
