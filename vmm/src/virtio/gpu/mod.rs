//! Graphics adapter without 3D (virtio 1.2, section 5.7): one output, one pointer.
//!
//! The guest draws in its own memory, has what changed copied into an image of ours, and then shown: the image is compared with the
//! screen, and only what differs is news for viewers. A guest sees what it is asked to be as a monitor's description (EDID), and is told
//! when a viewer would like another size.
//!
//! One thread does one command after the other, so that a fence is over when its command is answered. Invariant: what a guest makes
//! here is bounded (`limits`), and goes away when the guest resets the device.

mod adapter;
mod edid;
mod format;
mod limits;
mod protocol;
mod resource;
#[cfg(test)]
mod tests;

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_queue::{Reader, Writer};
use vmm_sys_util::eventfd::EventFd;

use super::ring::{Chain, Interrupt, Ring};
use super::state::{DeviceState, DeviceStateError};
use super::worker::{Handler, Worker};
use super::{Device, Kind, StartError, Started, read_from};
use crate::machine::memory::Memory;
use crate::screen::Screen;
use adapter::Adapter;
pub use adapter::GpuState;
use protocol::{COMMAND_BYTES_MAX, Command, Header, Refusal, answer};

const CONTROL_QUEUE_SIZE: u16 = 256;
const CURSOR_QUEUE_SIZE: u16 = 16;
const CONTROL: usize = 0;
const CURSOR: usize = 1;
/// Token of a size that a viewer would like; queues have their numbers.
const ASKED: u64 = 2;

/// Bytes of all images that a guest may have here.
pub const IMAGE_BYTES_MAX: usize = limits::BYTES_MAX;

/// Guests may ask for the monitor's description.
const F_EDID: u64 = 1 << 1;
/// The event that something about the output has changed.
const EVENT_DISPLAY: u32 = 1 << 0;

struct Painter {
    control: Ring,
    cursor: Ring,
    memory: Memory,
    adapter: Adapter,
    /// One command.
    bytes: Vec<u8>,
    asked: EventFd,
    events: Arc<AtomicU32>,
    interrupt: Arc<Interrupt>,
}

/// Does the command in a chain; what is written of the answer is its result. What cannot be read is refused, and answered if there is
/// room for an answer.
fn serve(adapter: &mut Adapter, bytes: &mut Vec<u8>, memory: &Memory, chain: Chain<'_>) -> u32 {
    bytes.clear();
    if let Ok(mut reader) = Reader::new(memory, chain.clone()) {
        bytes.resize(reader.available_bytes().min(COMMAND_BYTES_MAX), 0);
        if reader.read_exact(bytes).is_err() {
            bytes.clear();
        }
    }
    let header = Header::parse(bytes);
    let result = match &header {
        Some(header) => {
            Command::parse(header, bytes).and_then(|command| adapter.run(memory, command))
        }
        None => Err(Refusal::Unspecified),
    };
    if let Err(refusal) = result {
        tracing::debug!(?refusal, ?header, "graphics command refused");
    }
    // Commands about the pointer have no room for an answer as a rule.
    let Ok(mut writer) = Writer::new(memory, chain) else {
        return 0;
    };
    let answer = answer(&header.unwrap_or_default(), &result);
    writer.write(&answer).unwrap_or(0) as u32
}

impl Handler for Painter {
    fn ready(&mut self, token: u64) {
        let (adapter, bytes, memory) = (&mut self.adapter, &mut self.bytes, &self.memory);
        if token == ASKED {
            let _ = self.asked.read();
            self.events.fetch_or(EVENT_DISPLAY, Ordering::AcqRel);
            self.interrupt.config_changed();
            return;
        }
        let ring = match token as usize {
            CONTROL => &mut self.control,
            _ => &mut self.cursor,
        };
        ring.drain(memory, |chain| serve(adapter, bytes, memory, chain));
    }
}

/// See the module.
pub struct Gpu {
    screen: Screen,
    /// While it is not at work.
    adapter: Option<Adapter>,
    /// What has happened, until the guest clears it.
    events: Arc<AtomicU32>,
    worker: Option<Worker<Painter>>,
}

impl Gpu {
    /// An adapter that shows on `screen`.
    pub fn new(screen: Screen) -> Self {
        Self {
            adapter: Some(Adapter::new(screen.clone())),
            screen,
            events: Arc::default(),
            worker: None,
        }
    }
}

impl Device for Gpu {
    fn kind(&self) -> Kind {
        Kind::Gpu
    }

    fn features(&self) -> u64 {
        F_EDID
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![CONTROL_QUEUE_SIZE, CURSOR_QUEUE_SIZE]
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        // Events, events to clear, outputs, sets of 3D capabilities.
        let config = [self.events.load(Ordering::Acquire), 0, 1, 0];
        let config: Vec<u8> = config
            .iter()
            .flat_map(|field| field.to_le_bytes())
            .collect();
        read_from(&config, offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        const CLEAR_AT: usize = 4;
        if let (CLEAR_AT, Ok(clear)) = (offset, data.try_into()) {
            let clear = u32::from_le_bytes(clear);
            self.events.fetch_and(!clear, Ordering::AcqRel);
        }
    }

    fn start(&mut self, started: Started) -> Result<(), StartError> {
        let mut rings = started.rings.into_iter();
        let control = rings.next().flatten().ok_or(StartError::Queue(CONTROL))?;
        let cursor = rings.next().flatten().ok_or(StartError::Queue(CURSOR))?;
        let host = |error| StartError::Host("an event", error);
        let asked = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(host)?;
        let bell = asked.try_clone().map_err(host)?;
        let waits = [
            (control.kick().as_raw_fd(), CONTROL as u64),
            (cursor.kick().as_raw_fd(), CURSOR as u64),
            (asked.as_raw_fd(), ASKED),
        ];
        let painter = Painter {
            control,
            cursor,
            memory: started.memory,
            adapter: self
                .adapter
                .take()
                .unwrap_or_else(|| Adapter::new(self.screen.clone())),
            bytes: Vec::new(),
            asked,
            events: Arc::clone(&self.events),
            interrupt: started.interrupt,
        };
        let worker = Worker::spawn("gpu", painter, &waits);
        self.worker = Some(worker.map_err(|error| StartError::Host("the gpu's thread", error))?);
        self.screen.set_bell(Some(bell));
        Ok(())
    }

    fn stop(&mut self) -> Vec<Option<Ring>> {
        let Some(worker) = self.worker.take() else {
            return Vec::new();
        };
        self.screen.set_bell(None);
        let painter = worker.stop();
        self.adapter = Some(painter.adapter);
        vec![Some(painter.control), Some(painter.cursor)]
    }

    fn reset(&mut self) {
        if let Some(adapter) = &mut self.adapter {
            adapter.reset();
        }
        self.events.store(0, Ordering::Release);
    }

    fn save(&self, memory: &Memory) -> Result<DeviceState, DeviceStateError> {
        let adapter = self.adapter.as_ref();
        let adapter = adapter.ok_or(DeviceStateError::Busy("it is at work"))?;
        let events = self.events.load(Ordering::Acquire);
        Ok(DeviceState::Gpu(adapter.save(memory, events)))
    }

    fn restore(&mut self, state: DeviceState, memory: &Memory) -> Result<(), DeviceStateError> {
        let state = match state {
            DeviceState::Gpu(state) => state,
            other => return Err(other.other()),
        };
        self.events.store(state.events, Ordering::Release);
        let mut adapter = Adapter::new(self.screen.clone());
        let restored = adapter.restore(memory, state);
        self.adapter = Some(adapter);
        restored.map_err(|_| DeviceStateError::Wrong("display"))
    }
}
