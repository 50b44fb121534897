//! The device as a driver uses it: through rings in guest memory.

use std::time::{Duration, Instant};

use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::machine::memory;
use crate::screen::{Rect, Size};

const WRITE: u16 = 2;
const NEXT: u16 = 1;
const COMMAND_AT: u64 = 1 << 20;
const ANSWER_AT: u64 = 2 << 20;
const PIXELS_AT: u64 = 3 << 20;

struct Driver {
    memory: Memory,
    gpu: Gpu,
    screen: Screen,
    kick: EventFd,
    interrupts: EventFd,
    sent: u16,
}

fn event() -> EventFd {
    EventFd::new(libc::EFD_NONBLOCK).expect("an event")
}

impl Driver {
    fn new() -> Self {
        let memory = memory::create(64).expect("memory");
        let screen = Screen::new(Size::new(640, 480).expect("a size"));
        let mut gpu = Gpu::new(screen.clone());
        let interrupts = event();
        let copy = interrupts.try_clone().expect("a copy");
        let interrupt = Arc::new(Interrupt::new(vec![copy], 2));
        for queue in [None, Some(CONTROL), Some(CURSOR)] {
            interrupt.set_vector(queue, 0);
        }
        let (kick, other) = (event(), event());
        let ring = |index, kick: &EventFd| {
            let at = GuestAddress(index as u64 * 0x8000);
            let queue: Queue = MockSplitQueue::create(&memory, at, 16)
                .create_queue()
                .expect("a queue");
            assert!(queue.is_valid(&memory));
            let kick = kick.try_clone().expect("a copy");
            Some(Ring::new(index, queue, kick, Arc::clone(&interrupt)))
        };
        let started = Started {
            memory: memory.clone(),
            features: super::super::F_VERSION_1 | F_EDID,
            rings: vec![ring(CONTROL, &kick), ring(CURSOR, &other)],
            interrupt: Arc::clone(&interrupt),
        };
        gpu.start(started).expect("started");
        Self {
            memory,
            gpu,
            screen,
            kick,
            interrupts,
            sent: 0,
        }
    }

    /// Sends a command of one piece, with room for an answer of `room` bytes; waits for it.
    fn send(&mut self, command: &[u8], room: u32) -> Vec<u8> {
        let memory = &self.memory;
        memory
            .write_slice(command, GuestAddress(COMMAND_AT))
            .expect("memory");
        memory
            .write_slice(&vec![0xee; room as usize], GuestAddress(ANSWER_AT))
            .expect("memory");
        let queue = MockSplitQueue::create(memory, GuestAddress(0), 16);
        let slot = self.sent % 8 * 2;
        let pieces = [
            Descriptor::new(COMMAND_AT, command.len() as u32, NEXT, slot + 1),
            Descriptor::new(ANSWER_AT, room, WRITE, 0),
        ];
        for (index, piece) in (slot..).zip(pieces) {
            let table = queue.desc_table();
            table
                .store(index, RawDescriptor::from(piece))
                .expect("a slot");
        }
        let ring = queue.avail().ring();
        let entry = ring.ref_at(usize::from(self.sent % 16)).expect("an entry");
        entry.store(slot);
        self.sent += 1;
        queue.avail().idx().store(self.sent);
        self.kick.write(1).expect("kicked");
        let end = Instant::now() + Duration::from_secs(20);
        while queue.used().idx().load() != self.sent {
            assert!(Instant::now() < end, "no answer");
            std::thread::yield_now();
        }
        let used = queue
            .used()
            .ring()
            .ref_at(usize::from((self.sent - 1) % 16));
        let written = used.expect("an entry").load().len();
        let mut answer = vec![0; written as usize];
        memory
            .read_slice(&mut answer, GuestAddress(ANSWER_AT))
            .expect("memory");
        answer
    }

    fn command(&mut self, kind: u32, fields: &[u32]) -> u32 {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.resize(protocol::HEADER_BYTES, 0);
        bytes.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
        let answer = self.send(&bytes, 24);
        u32::from_le_bytes(answer[..4].try_into().expect("a header"))
    }
}

const OK: u32 = 0x1100;

#[test]
fn a_driver_shows_a_picture_and_resets() {
    let mut driver = Driver::new();
    let pixels: Vec<u8> = (0..64 * 64 * 4u32).map(|at| (at % 251) as u8).collect();
    let memory = driver.memory.clone();
    memory
        .write_slice(&pixels, GuestAddress(PIXELS_AT))
        .expect("memory");
    assert_eq!(driver.command(0x0101, &[5, 1, 64, 64]), OK);
    let backing = [5, 1, PIXELS_AT as u32, 0, pixels.len() as u32, 0];
    assert_eq!(driver.command(0x0106, &backing), OK);
    assert_eq!(driver.command(0x0103, &[0, 0, 64, 64, 0, 5]), OK);
    assert_eq!(driver.command(0x0105, &[0, 0, 64, 64, 0, 0, 5, 0]), OK);
    assert_eq!(driver.command(0x0104, &[0, 0, 64, 64, 5, 0]), OK);
    assert!(driver.interrupts.read().is_ok(), "answers raise interrupts");
    let mut shown = Vec::new();
    let all = Rect::new(0, 0, 64, 64);
    driver.screen.look().copy(all, &mut shown);
    assert_eq!(shown, pixels);

    let rings = driver.gpu.stop();
    assert_eq!(rings.len(), 2);
    let places = rings[CONTROL].as_ref().expect("the ring").queue();
    assert_eq!(places.next_avail(), driver.sent);
    driver.screen.look().copy(all, &mut shown);
    assert_eq!(shown, pixels, "a device at rest shows what it showed");
    driver.gpu.reset();
    driver.screen.look().copy(all, &mut shown);
    assert!(shown.iter().all(|byte| *byte == 0), "dark after a reset");
}

#[test]
fn bytes_that_are_no_commands_are_answered_and_the_next_one_is_done() {
    let mut driver = Driver::new();
    for len in [0usize, 1, 23] {
        let answer = driver.send(&vec![1; len], 24);
        assert_eq!(answer[..4], 0x1200u32.to_le_bytes());
    }
    let mut display = 0x0100u32.to_le_bytes().to_vec();
    display.resize(24, 0);
    assert_eq!(
        driver.send(&display, 7).len(),
        7,
        "as much as there is room"
    );
    assert_eq!(driver.send(&display, 4096).len(), 408);
    assert_eq!(driver.command(0x0999, &[]), 0x1200);
    assert_eq!(driver.command(0x0102, &[9, 0]), 0x1203);
    driver.gpu.stop();
}

#[test]
fn a_size_that_a_viewer_asks_for_changes_the_configuration() {
    let mut driver = Driver::new();
    driver.screen.ask(Size::new(1024, 768).expect("a size"));
    let end = Instant::now() + Duration::from_secs(20);
    let mut config = [0; 16];
    while config[0] != 1 {
        assert!(Instant::now() < end, "no event");
        driver.gpu.read_config(0, &mut config);
    }
    assert_eq!(config[8], 1, "one output");
    // The event comes before its interrupt.
    while driver.interrupts.read().is_err() {
        assert!(Instant::now() < end, "no interrupt");
    }
    driver.gpu.write_config(4, &1u32.to_le_bytes());
    driver.gpu.read_config(0, &mut config);
    assert_eq!(config[0], 0, "cleared");
    driver.gpu.write_config(4, &[1]);
    driver.gpu.write_config(900, &[1; 8]);
    driver.gpu.stop();
}
