//! Keyboard and tablet (virtio 1.2, section 5.8): events as Linux's evdev has them.
//!
//! A tablet tells where the pointer is, not how it moved, so that the guest's pointer is where the viewer's is.

pub mod events;

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use virtio_queue::Writer;
use vmm_sys_util::eventfd::EventFd;

use super::ring::Ring;
use super::state::{DeviceState, DeviceStateError};
use super::worker::{Handler, Worker};
use super::{Device, Kind, StartError, Started, read_from};
use crate::machine::bus::lock;
use crate::machine::memory::Memory;
use events::{
    ABS_X, ABS_Y, AXIS_MAX, BUTTONS, EV_ABS, EV_KEY, EV_REL, EV_SYN, Event, KEY_LAST, REL_HWHEEL,
    REL_WHEEL,
};

const QUEUE_SIZE: u16 = 64;
const EVENTS: usize = 0;
const STATUS: usize = 1;

/// Events that wait for a guest that does not take them; older ones are forgotten with the keys they pressed, never a release alone.
const WAITING_MAX: usize = 1024;

/// What the guest asks for in the configuration.
mod select {
    pub(super) const NAME: u8 = 0x01;
    pub(super) const IDS: u8 = 0x03;
    pub(super) const PROPERTIES: u8 = 0x10;
    pub(super) const EVENT_BITS: u8 = 0x11;
    pub(super) const AXIS: u8 = 0x12;
    /// Bytes of an answer.
    pub(super) const ANSWER: usize = 128;
    /// Bytes of what is before it.
    pub(super) const HEAD: usize = 8;
}

/// A virtual bus, as evdev names it.
const BUS_VIRTUAL: u16 = 0x06;
/// The property of a device that points directly at what is shown.
const PROPERTY_DIRECT: u8 = 1;

/// Which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// All keys.
    Keyboard,
    /// An absolute pointer with buttons and a wheel.
    Tablet,
}

impl Model {
    fn name(self) -> &'static str {
        match self {
            Self::Keyboard => "Splice keyboard",
            Self::Tablet => "Splice tablet",
        }
    }

    /// Bit map of the codes of a type that it can tell.
    fn codes(self, kind: u16) -> Vec<u8> {
        let codes: Vec<u16> = match (self, kind) {
            (Self::Keyboard, EV_KEY) => (1..=KEY_LAST).collect(),
            (Self::Tablet, EV_KEY) => BUTTONS.to_vec(),
            (Self::Tablet, EV_ABS) => vec![ABS_X, ABS_Y],
            (Self::Tablet, EV_REL) => vec![REL_HWHEEL, REL_WHEEL],
            _ => return Vec::new(),
        };
        let mut bits = Vec::new();
        for code in codes {
            let (byte, bit) = (usize::from(code / 8), code % 8);
            bits.resize(bits.len().max(byte + 1), 0);
            bits[byte] |= 1 << bit;
        }
        bits
    }

    /// Answers what the guest asks for.
    fn answer(self, what: u8, sub: u8) -> Vec<u8> {
        match (what, sub) {
            (select::NAME, 0) => self.name().as_bytes().to_vec(),
            (select::IDS, 0) => {
                let ids = [BUS_VIRTUAL, 0x1af4, self as u16 + 1, 1];
                ids.iter().flat_map(|id| id.to_le_bytes()).collect()
            }
            (select::PROPERTIES, 0) if self == Self::Tablet => vec![1 << PROPERTY_DIRECT],
            (select::EVENT_BITS, kind) => self.codes(kind.into()),
            (select::AXIS, axis) if self == Self::Tablet && u16::from(axis) <= ABS_Y => {
                let axis = [0, AXIS_MAX, 0, 0, 0];
                axis.iter().flat_map(|value| value.to_le_bytes()).collect()
            }
            _ => Vec::new(),
        }
    }
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Event>,
    /// Keys and buttons that are down when all that waits has been taken.
    down: BTreeSet<u16>,
    wake: Option<EventFd>,
}

impl Queue {
    fn push(&mut self, events: &[Event]) {
        for event in events.iter().filter(|event| event.kind == EV_KEY) {
            if event.value == 0 {
                self.down.remove(&event.code);
            } else {
                self.down.insert(event.code);
            }
        }
        self.waiting.extend(events);
        self.waiting.push_back(Event {
            kind: EV_SYN,
            code: 0,
            value: 0,
        });
    }
}

/// Types and points from outside.
#[derive(Clone, Default)]
pub struct InputSender(Arc<Mutex<Queue>>);

impl InputSender {
    /// Tells the guest of these events as one change. When too many wait, they are lost, but not releases: keys must not stick.
    pub fn send(&self, events: &[Event]) {
        let mut queue = lock(&self.0);
        let is_release = events
            .iter()
            .all(|event| event.kind != EV_KEY || event.value == 0);
        if queue.waiting.len() + events.len() >= WAITING_MAX && !is_release {
            return;
        }
        if queue.waiting.len() >= 2 * WAITING_MAX {
            return;
        }
        queue.push(events);
        if let Some(wake) = &queue.wake {
            let _ = wake.write(1);
        }
    }

    /// What waits for the guest, taken away.
    #[cfg(test)]
    pub(crate) fn take(&self) -> Vec<Event> {
        lock(&self.0).waiting.drain(..).collect()
    }
}

struct Typist {
    events: Ring,
    status: Ring,
    memory: Memory,
    sender: InputSender,
}

/// Token of what was typed; queues have their numbers.
const TYPED: u64 = 2;

impl Handler for Typist {
    fn ready(&mut self, token: u64) {
        let memory = &self.memory;
        if token as usize == STATUS {
            // Lights of a keyboard: nobody sees them.
            self.status.drain(memory, |_| 0);
            return;
        }
        let mut queue = lock(&self.sender.0);
        let mut any = false;
        while let Some(event) = queue.waiting.front() {
            let Some(chain) = self.events.next(memory) else {
                break;
            };
            let head = chain.head_index();
            let written = Writer::new(memory, chain)
                .ok()
                .and_then(|mut writer| std::io::Write::write(&mut writer, &event.bytes()).ok());
            self.events.done(memory, head, written.unwrap_or(0) as u32);
            queue.waiting.pop_front();
            any = true;
        }
        drop(queue);
        if any {
            self.events.signal(memory);
        }
    }
}

/// What a snapshot keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputState {
    asked: (u8, u8),
    waiting: Vec<Event>,
    down: Vec<u16>,
}

/// See the module.
pub struct Input {
    model: Model,
    sender: InputSender,
    asked: (u8, u8),
    worker: Option<Worker<Typist>>,
}

impl Input {
    /// A device of that model, used through `sender`.
    pub fn new(model: Model, sender: InputSender) -> Self {
        Self {
            model,
            sender,
            asked: (0, 0),
            worker: None,
        }
    }
}

impl Device for Input {
    fn kind(&self) -> Kind {
        Kind::Input
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let (what, sub) = self.asked;
        let mut answer = self.model.answer(what, sub);
        answer.truncate(select::ANSWER);
        let mut config = vec![0; select::HEAD];
        (config[0], config[1], config[2]) = (what, sub, answer.len() as u8);
        config.extend(answer);
        read_from(&config, offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            match at {
                0 => self.asked.0 = *byte,
                1 => self.asked.1 = *byte,
                _ => {}
            }
        }
    }

    fn start(&mut self, started: Started) -> Result<(), StartError> {
        let mut rings = started.rings.into_iter();
        let events = rings.next().flatten().ok_or(StartError::Queue(EVENTS))?;
        let status = rings.next().flatten().ok_or(StartError::Queue(STATUS))?;
        let host = |error| StartError::Host("an event", error);
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(host)?;
        let waits = [
            (events.kick().as_raw_fd(), EVENTS as u64),
            (status.kick().as_raw_fd(), STATUS as u64),
            (wake.as_raw_fd(), TYPED),
        ];
        let typist = Typist {
            events,
            status,
            memory: started.memory,
            sender: self.sender.clone(),
        };
        let worker = Worker::spawn("input", typist, &waits);
        self.worker = Some(worker.map_err(|error| StartError::Host("a thread", error))?);
        lock(&self.sender.0).wake = Some(wake);
        Ok(())
    }

    fn stop(&mut self) -> Vec<Option<Ring>> {
        let Some(worker) = self.worker.take() else {
            return Vec::new();
        };
        let typist = worker.stop();
        lock(&self.sender.0).wake = None;
        vec![Some(typist.events), Some(typist.status)]
    }

    fn reset(&mut self) {
        let mut queue = lock(&self.sender.0);
        queue.waiting.clear();
        queue.down.clear();
    }

    fn save(&self, _: &Memory) -> Result<DeviceState, DeviceStateError> {
        let queue = lock(&self.sender.0);
        Ok(DeviceState::Input(InputState {
            asked: self.asked,
            waiting: queue.waiting.iter().copied().collect(),
            down: queue.down.iter().copied().collect(),
        }))
    }

    fn restore(&mut self, state: DeviceState, _: &Memory) -> Result<(), DeviceStateError> {
        let state = match state {
            DeviceState::Input(state) => state,
            other => return Err(other.other()),
        };
        self.asked = state.asked;
        let mut queue = lock(&self.sender.0);
        queue.waiting = state.waiting.into_iter().take(2 * WAITING_MAX).collect();
        // Whoever held them is not here: keys must not stick.
        let release = |code| Event {
            kind: EV_KEY,
            code,
            value: 0,
        };
        let releases: Vec<_> = state
            .down
            .into_iter()
            .take(WAITING_MAX)
            .map(release)
            .collect();
        if !releases.is_empty() {
            queue.push(&releases);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(model: Model, what: u8, sub: u8) -> Vec<u8> {
        let mut input = Input::new(model, InputSender::default());
        input.write_config(0, &[what]);
        input.write_config(1, &[sub]);
        let mut config = [0; select::HEAD + select::ANSWER];
        input.read_config(0, &mut config);
        let len = usize::from(config[2]);
        config[select::HEAD..select::HEAD + len].to_vec()
    }

    #[test]
    fn devices_tell_what_they_are() {
        assert_eq!(ask(Model::Tablet, select::NAME, 0), b"Splice tablet");
        let keys = ask(Model::Keyboard, select::EVENT_BITS, EV_KEY as u8);
        assert_eq!(keys[0] & 0b11, 0b10, "key 1 is Escape, there is no key 0");
        let axis = ask(Model::Tablet, select::AXIS, ABS_Y as u8);
        assert_eq!(axis[4..8], AXIS_MAX.to_le_bytes());
        assert!(ask(Model::Keyboard, select::AXIS, 0).is_empty());
        assert!(ask(Model::Tablet, 0x77, 9).is_empty());
    }

    #[test]
    fn keys_that_were_held_are_released_in_the_machine_that_goes_on() {
        let memory = crate::machine::memory::create(64).expect("memory");
        let key = |code, value| Event {
            kind: EV_KEY,
            code,
            value,
        };
        let sender = InputSender::default();
        sender.send(&[key(42, 1)]);
        sender.take();
        sender.send(&[key(30, 1)]);
        sender.send(&[key(30, 0)]);
        let saved = Input::new(Model::Keyboard, sender)
            .save(&memory)
            .expect("saved");
        let sender = InputSender::default();
        let mut other = Input::new(Model::Keyboard, sender.clone());
        other.restore(saved, &memory).expect("taken up");
        let events = sender.take();
        let keys: Vec<_> = events.iter().filter(|event| event.kind == EV_KEY).collect();
        assert_eq!(keys, [&key(30, 1), &key(30, 0), &key(42, 0)]);
        assert_eq!(events.last().map(|event| event.kind), Some(EV_SYN));
        let disk = DeviceState::Disk {
            bytes: 1,
            inflight: None,
        };
        let wrong = other.restore(disk, &memory).expect_err("not a keyboard");
        assert_eq!(wrong.to_string(), "it was a disk");
    }

    #[test]
    fn a_guest_that_takes_nothing_fills_no_memory_and_keeps_releases() {
        let sender = InputSender::default();
        let key = |value| Event {
            kind: EV_KEY,
            code: 30,
            value,
        };
        for _ in 0..10_000 {
            sender.send(&[key(1)]);
        }
        let before = lock(&sender.0).waiting.len();
        assert!(before <= WAITING_MAX);
        sender.send(&[key(0)]);
        assert_eq!(lock(&sender.0).waiting.len(), before + 2);
        for _ in 0..10_000 {
            sender.send(&[key(0)]);
        }
        assert!(lock(&sender.0).waiting.len() <= 2 * WAITING_MAX + 2);
    }
}
