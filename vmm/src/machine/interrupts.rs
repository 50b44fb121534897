//! Interrupts of a machine: the pins of KVM's I/O APIC and PICs, and message-signalled interrupts.
//!
//! KVM delivers an interrupt when an event descriptor is written (irqfd) by the route of its number (GSI). Pins have fixed routes; a
//! message gets a number when its device is made, and a route when the guest has filled in where it goes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_irqchip,
    kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use super::bus::lock;
use super::layout::IO_APIC_PINS;
use crate::legacy::power::Line;

/// Pins of one PIC.
const PIC_PINS: u32 = 8;
/// The pin of the I/O APIC that the timer is wired to, as on every PC; the ACPI tables say so.
pub const TIMER_PIN: u32 = 2;
/// Message-signalled interrupts of a machine: KVM has room for 4,096 routes.
const MESSAGES_MAX: u32 = 2048;

/// Why an interrupt could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InterruptError {
    /// KVM refused.
    #[error("KVM: {0}")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    /// Too many.
    #[error("more than {MESSAGES_MAX} message-signalled interrupts")]
    TooMany,
    /// An event descriptor could not be made.
    #[error("event descriptor")]
    Event(#[source] std::io::Error),
}

struct Routes {
    messages: BTreeMap<u32, kvm_irq_routing_msi>,
    next: u32,
}

/// See the module.
pub struct Interrupts {
    vm: Arc<VmFd>,
    routes: Mutex<Routes>,
}

fn pin(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..Default::default()
    };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    entry
}

/// Pins of the PICs and the I/O APIC, wired as on a PC.
fn pins() -> Vec<kvm_irq_routing_entry> {
    let mut entries = Vec::new();
    for gsi in 0..2 * PIC_PINS {
        let (chip, number) = if gsi < PIC_PINS {
            (KVM_IRQCHIP_PIC_MASTER, gsi)
        } else {
            (KVM_IRQCHIP_PIC_SLAVE, gsi - PIC_PINS)
        };
        entries.push(pin(gsi, chip, number));
    }
    for gsi in (0..IO_APIC_PINS).filter(|gsi| *gsi != TIMER_PIN) {
        let number = if gsi == 0 { TIMER_PIN } else { gsi };
        entries.push(pin(gsi, KVM_IRQCHIP_IOAPIC, number));
    }
    entries
}

impl Interrupts {
    /// Wires the pins of a machine that has its interrupt controllers.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn new(vm: Arc<VmFd>) -> Result<Self, InterruptError> {
        let this = Self {
            vm,
            routes: Mutex::new(Routes {
                messages: BTreeMap::new(),
                next: IO_APIC_PINS,
            }),
        };
        this.apply(&lock(&this.routes))?;
        Ok(this)
    }

    fn apply(&self, routes: &Routes) -> Result<(), InterruptError> {
        let mut entries = pins();
        for (gsi, message) in &routes.messages {
            let mut entry = kvm_irq_routing_entry {
                gsi: *gsi,
                type_: KVM_IRQ_ROUTING_MSI,
                ..Default::default()
            };
            entry.u.msi = *message;
            entries.push(entry);
        }
        let table =
            KvmIrqRouting::from_entries(&entries).expect("far fewer entries than the table takes");
        self.vm
            .set_gsi_routing(&table)
            .map_err(|error| InterruptError::Kvm("set interrupt routes", error))
    }

    /// An event that raises an edge on a pin.
    ///
    /// # Errors
    /// KVM refuses, or there are too many open files.
    pub fn edge(&self, gsi: u32) -> Result<EventFd, InterruptError> {
        let event = event()?;
        self.vm
            .register_irqfd(&event, gsi)
            .map_err(|error| InterruptError::Kvm("connect an interrupt", error))?;
        Ok(event)
    }

    /// A level-triggered pin.
    pub fn level(&self, gsi: u32) -> Level {
        Level {
            vm: Arc::clone(&self.vm),
            gsi,
        }
    }

    /// A message-signalled interrupt, not connected yet.
    ///
    /// # Errors
    /// There are too many, or too many open files.
    pub fn message(self: &Arc<Self>) -> Result<Message, InterruptError> {
        let mut routes = lock(&self.routes);
        if routes.next - IO_APIC_PINS >= MESSAGES_MAX {
            return Err(InterruptError::TooMany);
        }
        let gsi = routes.next;
        routes.next += 1;
        Ok(Message {
            interrupts: Arc::clone(self),
            gsi,
            event: event()?,
            connected: false,
        })
    }
}

fn event() -> Result<EventFd, InterruptError> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(InterruptError::Event)
}

/// A level-triggered pin.
pub struct Level {
    vm: Arc<VmFd>,
    gsi: u32,
}

impl Line for Level {
    fn set(&mut self, raised: bool) {
        // Fails only where there is no such pin.
        let _ = self.vm.set_irq_line(self.gsi, raised);
    }
}

/// A message-signalled interrupt. While it is not connected, what is raised stays in its event, and is delivered on connecting.
pub struct Message {
    interrupts: Arc<Interrupts>,
    gsi: u32,
    event: EventFd,
    connected: bool,
}

impl Message {
    /// Raises the interrupt when it is written.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Whether it was raised while it was not connected.
    pub fn is_pending(&self) -> bool {
        if self.connected {
            return false;
        }
        let mut poll = libc::pollfd {
            fd: std::os::fd::AsRawFd::as_raw_fd(&self.event),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one entry, which outlives the call; it does not wait.
        unsafe { libc::poll(&raw mut poll, 1, 0) > 0 }
    }

    /// From now on it is delivered as `data` written to `address`.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn connect(&mut self, address: u64, data: u32) -> Result<(), InterruptError> {
        let message = kvm_irq_routing_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        let mut routes = lock(&self.interrupts.routes);
        let before = routes.messages.insert(self.gsi, message);
        let is_new = before.is_none_or(|before| {
            (before.address_lo, before.address_hi, before.data)
                != (message.address_lo, message.address_hi, message.data)
        });
        if is_new && let Err(error) = self.interrupts.apply(&routes) {
            // What KVM does not take must not stand in the way of other devices' routes.
            match before {
                Some(before) => routes.messages.insert(self.gsi, before),
                None => routes.messages.remove(&self.gsi),
            };
            return Err(error);
        }
        drop(routes);
        if !self.connected {
            let vm = &self.interrupts.vm;
            vm.register_irqfd(&self.event, self.gsi)
                .map_err(|error| InterruptError::Kvm("connect a message", error))?;
            self.connected = true;
        }
        Ok(())
    }

    /// Holds it back.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn disconnect(&mut self) -> Result<(), InterruptError> {
        if std::mem::take(&mut self.connected) {
            let vm = &self.interrupts.vm;
            vm.unregister_irqfd(&self.event, self.gsi)
                .map_err(|error| InterruptError::Kvm("disconnect a message", error))?;
        }
        Ok(())
    }
}
