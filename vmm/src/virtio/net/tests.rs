//! A card between a driver's rings and a socket in the place of its tap.

mod saved;

use std::os::unix::net::UnixDatagram;

use proptest::prelude::*;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::machine::memory;
use crate::virtio::worker::Handler;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const SIZE: u16 = 64;
const OWN: Mac = [0x52, 0x54, 0, 0, 0, 1];
/// Where a queue's buffers are: 128 KiB for each of its descriptors.
const BUFFERS: [u64; 3] = [1 << 24, 2 << 24, 3 << 24];
const BUFFER_STEP: u64 = 128 << 10;

struct Bench {
    memory: Memory,
    card: Card,
    wire: UnixDatagram,
    interrupts: EventFd,
    /// Buffers given to each queue, and taken back.
    given: [u16; 3],
    taken: [u16; 3],
}

fn event() -> EventFd {
    EventFd::new(libc::EFD_NONBLOCK).expect("an event")
}

impl Bench {
    fn new(is_merged: bool, limits: Limits) -> Self {
        let memory = memory::create(128).expect("memory");
        let interrupts = event();
        let copy = interrupts.try_clone().expect("a copy");
        let interrupt = Arc::new(Interrupt::new(vec![copy], 3));
        for queue in [None, Some(RX), Some(TX), Some(CONTROL)] {
            interrupt.set_vector(queue, 0);
        }
        let ring = |index: usize| {
            let at = index as u32 * 0x8000;
            let mut queue = Queue::new(SIZE).expect("a power of two");
            queue.set_desc_table_address(Some(at), None);
            // No available ring is at 0.
            queue.set_avail_ring_address(Some(at + 0x1000), None);
            queue.set_used_ring_address(Some(at + 0x2000), None);
            queue.set_ready(true);
            assert!(queue.is_valid(&memory));
            Ring::new(index, queue, event(), Arc::clone(&interrupt))
        };
        let (tap, wire) = Tap::wire().expect("sockets");
        let gate = || {
            let toll = Toll::new(limits.packets_per_s, limits.bytes_per_s);
            Gate::new(toll).expect("a timer")
        };
        let link = Link::default();
        *lock(&link.0.interrupt) = Some(Arc::clone(&interrupt));
        let card = Card {
            rx: ring(RX),
            tx: ring(TX),
            control: Some(ring(CONTROL)),
            memory: memory.clone(),
            tap,
            filter: Filter::new(OWN),
            addresses: Addresses::default(),
            link,
            is_merged,
            gates: [gate(), gate()],
            received: vec![0; PACKET_BYTES_MAX],
            sent: vec![0; PACKET_BYTES_MAX],
            waiting: None,
        };
        Self {
            memory,
            card,
            wire,
            interrupts,
            given: [0; 3],
            taken: [0; 3],
        }
    }

    /// Where a queue's descriptors, its available and its used ring are.
    fn places(&self, queue: usize) -> [u64; 3] {
        let ring = match queue {
            RX => &self.card.rx,
            TX => &self.card.tx,
            _ => self.card.control.as_ref().expect("there is one"),
        };
        let queue = ring.queue();
        [queue.desc_table(), queue.avail_ring(), queue.used_ring()]
    }

    fn put_descriptor(&self, queue: usize, slot: u16, piece: Descriptor) {
        let at = self.places(queue)[0] + u64::from(slot) * 16;
        self.memory
            .write_obj(RawDescriptor::from(piece), GuestAddress(at))
            .expect("memory");
    }

    /// Makes the chain that begins at `slot` available.
    fn offer(&mut self, queue: usize, slot: u16) {
        let [_, available, _] = self.places(queue);
        let number = self.given[queue];
        let entry = available + 4 + u64::from(number % SIZE) * 2;
        let memory = &self.memory;
        memory.write_obj(slot, GuestAddress(entry)).expect("memory");
        self.given[queue] = number.wrapping_add(1);
        memory
            .write_obj(self.given[queue], GuestAddress(available + 2))
            .expect("memory");
    }

    /// Gives a buffer of one piece to a queue: a packet, or room for one.
    fn give(&mut self, queue: usize, content: &[u8], room: u32) {
        let slot = self.given[queue] % SIZE;
        let at = BUFFERS[queue] + u64::from(slot) * BUFFER_STEP;
        let memory = &self.memory;
        memory
            .write_slice(content, GuestAddress(at))
            .expect("memory");
        let flags = if content.is_empty() { WRITE } else { 0 };
        let len = room.max(content.len() as u32);
        self.put_descriptor(queue, slot, Descriptor::new(at, len, flags, 0));
        self.offer(queue, slot);
    }

    /// Takes a buffer back that was used: what was written into it.
    fn take(&mut self, queue: usize) -> Option<Vec<u8>> {
        let [_, _, used] = self.places(queue);
        let (memory, number) = (&self.memory, self.taken[queue]);
        let read = |at: u64| memory.read_obj(GuestAddress(at)).expect("memory");
        if read(used + 2) as u16 == number {
            return None;
        }
        let entry = used + 4 + u64::from(number % SIZE) * 8;
        let (slot, len): (u32, u32) = (read(entry), read(entry + 4));
        let mut bytes = vec![0; len as usize];
        let at = BUFFERS[queue] + u64::from(slot) * BUFFER_STEP;
        memory
            .read_slice(&mut bytes, GuestAddress(at))
            .expect("memory");
        self.taken[queue] = number.wrapping_add(1);
        Some(bytes)
    }

    /// A packet that was delivered, of as many buffers as it says.
    fn packet(&mut self) -> Option<Vec<u8>> {
        let mut packet = self.take(RX)?;
        let buffers = packet
            .get(10..12)
            .map_or(1, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
        for _ in 1..buffers {
            packet.extend(
                self.take(RX)
                    .expect("all of a packet's buffers come together"),
            );
        }
        Some(packet)
    }
}

/// A packet for the card, header first.
fn packet(len: usize, seed: u8) -> Vec<u8> {
    let mut packet = vec![0; HEADER_BYTES];
    packet.extend(OWN);
    packet.extend((0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)));
    packet
}

#[test]
fn a_large_packet_is_spread_over_buffers_and_waits_for_room() {
    let mut bench = Bench::new(true, Limits::default());
    let large = packet(5000, 1);
    bench.wire.send(&large).expect("sent");
    bench.give(RX, &[], 2000);
    bench.give(RX, &[], 2000);
    bench.card.ready(TAP);
    assert_eq!(bench.packet(), None, "no room for all of it");
    assert!(bench.interrupts.read().is_err());
    bench.give(RX, &[], 2000);
    bench.card.ready(RX as u64);
    let came = bench.packet().expect("a packet");
    assert_eq!(came[10..12], [3, 0]);
    assert!(came[12..] == large[12..]);
    assert!(bench.interrupts.read().is_ok());
}

#[test]
fn without_merging_what_is_too_large_is_lost() {
    let mut bench = Bench::new(false, Limits::default());
    for len in [5000, 100] {
        bench.wire.send(&packet(len, 1)).expect("sent");
        bench.give(RX, &[], 2000);
    }
    bench.card.ready(TAP);
    assert_eq!(bench.take(RX), Some(Vec::new()));
    assert_eq!(bench.take(RX).map(|bytes| bytes.len()), Some(12 + 6 + 100));
}

#[test]
fn what_the_guest_sends_goes_out_unless_the_cable_does() {
    let mut bench = Bench::new(true, Limits::default());
    let mut room = [0; 4096];
    bench.give(TX, &packet(100, 7), 0);
    bench.card.ready(TX as u64);
    let len = bench.wire.recv(&mut room).expect("a packet");
    assert_eq!(room[..len], packet(100, 7));
    while bench.interrupts.read().is_ok() {}
    let link = bench.card.link.clone();
    link.set(true);
    assert!(bench.interrupts.read().is_err(), "it is in already");
    link.set(false);
    assert!(bench.interrupts.read().is_ok(), "the guest is told");
    bench.give(TX, &packet(100, 8), 0);
    bench.give(RX, &[], 2000);
    bench.wire.send(&packet(100, 9)).expect("sent");
    bench.card.ready(TX as u64);
    bench.card.ready(TAP);
    assert!(bench.wire.recv(&mut room).is_err());
    assert_eq!(bench.packet(), None);
    assert!(bench.take(TX).is_some(), "the first");
    assert!(bench.take(TX).is_some(), "lost, but done");
    link.set(true);
    bench.wire.send(&packet(100, 10)).expect("sent");
    bench.card.ready(TAP);
    assert!(bench.packet().is_some());
}

#[test]
fn commands_say_what_is_received() {
    let mut bench = Bench::new(true, Limits::default());
    // A command in one piece and room for its answer behind it.
    let mut run = |command: &[u8]| {
        let at = BUFFERS[CONTROL];
        let answer_at = at + (64 << 10);
        let memory = bench.memory.clone();
        memory
            .write_slice(command, GuestAddress(at))
            .expect("memory");
        let head = Descriptor::new(at, command.len() as u32, NEXT, 1);
        bench.put_descriptor(CONTROL, 0, head);
        let answer = Descriptor::new(answer_at, 1, WRITE, 0);
        bench.put_descriptor(CONTROL, 1, answer);
        bench.offer(CONTROL, 0);
        bench.card.ready(CONTROL as u64);
        let written = bench.take(CONTROL).expect("an answer").len();
        assert_eq!(written, 1);
        let answer: u8 = memory.read_obj(GuestAddress(answer_at)).expect("memory");
        answer
    };
    assert_eq!(run(&[0, 0, 0]), filter::OK);
    assert_eq!(run(&[9, 9]), filter::ERROR);
    assert_eq!(run(&[1, 1, 2, 2, 2, 2, 2, 2]), filter::OK);
    assert_eq!(run(&vec![0; filter::COMMAND_BYTES_MAX + 1]), filter::ERROR);
    assert_eq!(bench.card.addresses.mac(), [2; 6]);
    bench.give(RX, &[], 2000);
    bench.wire.send(&packet(100, 1)).expect("sent");
    bench.card.ready(TAP);
    assert_eq!(bench.packet(), None, "for the address that it had before");
}

#[test]
fn a_limit_holds_packets_back_and_loses_none() {
    let limits = Limits {
        packets_per_s: Some(20),
        bytes_per_s: None,
    };
    let mut bench = Bench::new(true, limits);
    for seed in 0..4 {
        bench.give(TX, &packet(100, seed), 0);
        bench.give(RX, &[], 2000);
        bench.wire.send(&packet(100, seed)).expect("sent");
    }
    bench.card.ready(TX as u64);
    bench.card.ready(TAP);
    let mut room = [0; 4096];
    let (mut sent, mut received) = (0, 0);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while sent < 4 || received < 4 {
        assert!(
            std::time::Instant::now() < end,
            "{sent} sent, {received} received"
        );
        if let Ok(len) = bench.wire.recv(&mut room) {
            assert_eq!(room[..len], packet(100, sent));
            sent += 1;
        }
        if let Some(came) = bench.packet() {
            assert_eq!(came[12..], packet(100, received)[12..]);
            received += 1;
        }
        for (timer, token) in bench.card.timers() {
            let mut told = [0u8; 8];
            // SAFETY: the buffer is as long as is said; the descriptor is open.
            let read = unsafe {
                let mut poll = libc::pollfd {
                    fd: timer,
                    events: libc::POLLIN,
                    revents: 0,
                };
                match libc::poll(&raw mut poll, 1, 0) {
                    1 => libc::read(timer, told.as_mut_ptr().cast(), 8),
                    _ => 0,
                }
            };
            if read > 0 {
                bench.card.ready(token);
            }
        }
        std::thread::yield_now();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever buffers a guest has ready, packets come whole and in order, and the guest sees all of one or nothing.
    #[test]
    fn packets_come_whole_and_in_order(
        steps in prop::collection::vec((any::<bool>(), 1u32..3000, 1usize..9000), 1..120),
    ) {
        let mut bench = Bench::new(true, Limits::default());
        let (mut sent, mut came) = (Vec::new(), 0usize);
        for (is_packet, room, len) in steps {
            if is_packet {
                let one = packet(len, sent.len() as u8);
                // The socket holds a few packets only, as a tap does.
                if bench.wire.send(&one).is_ok() {
                    sent.push(one);
                }
                bench.card.ready(TAP);
            } else if bench.given[RX] - bench.taken[RX] < SIZE {
                bench.give(RX, &[], room.max(12));
                bench.card.ready(RX as u64);
            }
            while let Some(packet) = bench.packet() {
                prop_assert!(packet[12..] == sent[came][12..]);
                came += 1;
            }
        }
    }
}
