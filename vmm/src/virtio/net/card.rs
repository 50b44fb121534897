//! A card at work: packets from the tap into the guest's buffers, packets of the guest's to the tap, both within their limits.
//!
//! A packet that the guest has no room for, or that may not pass yet, waits; those behind it wait in the kernel, which drops what is too
//! much, as a real card does. Invariant: whatever one direction does, the other gets its turn after [`BURST`] packets.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use virtio_queue::{QueueT, Reader, Writer};
use vmm_sys_util::timerfd::TimerFd;

use super::filter::{COMMAND_BYTES_MAX, ERROR, Filter};
use super::{Addresses, Link, Tap};
use crate::machine::memory::Memory;
use crate::machine::rate::Toll;
use crate::threads::Role;
use crate::virtio::ring::{Chain, Ring};
use crate::virtio::worker::Handler;

pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;
pub(super) const CONTROL: usize = 2;
/// Tokens of the tap and of the timers; queues have their numbers.
pub(super) const TAP: u64 = 3;
const TIMERS: [u64; 2] = [4, 5];

/// Bytes of the header before each packet (virtio 1.2, section 5.1.6).
pub const HEADER_BYTES: usize = 12;
/// The largest packet with its header: 64 KiB that the kernel will cut.
pub(super) const PACKET_BYTES_MAX: usize = (64 << 10) + 14 + HEADER_BYTES;
/// Where the header says of what kind the packet's cutting is, how large pieces are, and how many buffers it takes.
const CUT_KIND_AT: usize = 1;
const CUT_BYTES_AT: usize = 4;
const BUFFERS_AT: usize = 10;
/// Packets after which the other direction has its turn.
const BURST: usize = 256;
/// Shortest time that a packet waits: a timer that is set to nothing never rings.
const WAIT_MIN: Duration = Duration::from_micros(1);

/// One direction's limit.
pub(super) struct Gate {
    toll: Toll,
    since: Instant,
    timer: TimerFd,
}

impl Gate {
    /// `None`: there is no limit.
    pub(super) fn new(toll: Option<Toll>) -> std::io::Result<Option<Self>> {
        let gate = |toll| {
            let timer = TimerFd::new().map_err(std::io::Error::from)?;
            Ok(Self {
                toll,
                since: Instant::now(),
                timer,
            })
        };
        toll.map(gate).transpose()
    }

    /// Whether a packet passes now. If not, the timer rings when it may.
    fn passes(&mut self, packet: &[u8]) -> bool {
        let bytes = (packet.len() - HEADER_BYTES) as u64;
        let passed = self.toll.pass(pieces(packet), bytes, self.since.elapsed());
        if let Err(wait) = passed
            && let Err(error) = self.timer.reset(wait.max(WAIT_MIN), None)
        {
            tracing::error!(%error, "a card's timer; its packets wait for the next one");
        }
        passed.is_ok()
    }
}

/// How many packets one will be when it is cut. What a guest says of it is only paid for, never done here.
fn pieces(packet: &[u8]) -> u64 {
    let [low, high] = [packet[CUT_BYTES_AT], packet[CUT_BYTES_AT + 1]];
    let piece = u64::from(u16::from_le_bytes([low, high]));
    if packet[CUT_KIND_AT] == 0 || piece == 0 {
        return 1;
    }
    ((packet.len() - HEADER_BYTES) as u64)
        .div_ceil(piece)
        .max(1)
}

/// See the module.
pub(super) struct Card {
    pub rx: Ring,
    pub tx: Ring,
    pub control: Option<Ring>,
    pub memory: Memory,
    pub tap: Tap,
    pub filter: Filter,
    pub addresses: Addresses,
    pub link: Link,
    /// A packet may be spread over several buffers.
    pub is_merged: bool,
    /// Limits of what is received and of what is sent.
    pub gates: [Option<Gate>; 2],
    /// A packet from the tap, and one from the guest.
    pub received: Vec<u8>,
    pub sent: Vec<u8>,
    /// So many bytes of `received` have not been delivered, and whether they are paid for.
    pub waiting: Option<(usize, bool)>,
}

impl Card {
    /// Descriptors to wait for beside queues.
    pub(super) fn timers(&self) -> Vec<(i32, u64)> {
        let gates = self.gates.iter().zip(TIMERS);
        gates
            .filter_map(|(gate, token)| Some((gate.as_ref()?.timer.as_raw_fd(), token)))
            .collect()
    }

    /// Takes packets from the tap until it has none, the guest has no room, or the limit is reached.
    pub(super) fn receive(&mut self) {
        let mut any = false;
        for turn in 0.. {
            if turn == BURST {
                // A kick of our own brings us back here.
                self.rx.again();
                break;
            }
            let (len, is_paid) = match self.waiting.take() {
                Some(waiting) => waiting,
                None => match self.tap.read(&mut self.received) {
                    Some(len) => (len, false),
                    None => break,
                },
            };
            let packet = &mut self.received[..len];
            let destination = packet[HEADER_BYTES..].first_chunk();
            if !self.link.is_up() || !destination.is_some_and(|mac| self.filter.passes(mac)) {
                continue;
            }
            let gate = self.gates[RX].as_mut().filter(|_| !is_paid);
            if gate.is_some_and(|gate| !gate.passes(packet)) {
                self.waiting = Some((len, false));
                break;
            }
            if !deliver(&mut self.rx, &self.memory, packet, self.is_merged) {
                self.waiting = Some((len, true));
                break;
            }
            any = true;
        }
        if any {
            self.rx.signal(&self.memory);
        }
    }

    /// Takes packets of the guest's until it has none, or the limit is reached.
    pub(super) fn send(&mut self) {
        let memory = &self.memory;
        let mut any = false;
        for turn in 0.. {
            if turn == BURST {
                self.tx.again();
                break;
            }
            let Some(chain) = self.tx.next(memory) else {
                break;
            };
            let head = chain.head_index();
            if let Some(len) = collect(memory, chain, &mut self.sent)
                && self.link.is_up()
            {
                let packet = &self.sent[..len];
                let gate = self.gates[TX].as_mut();
                if gate.is_some_and(|gate| !gate.passes(packet)) {
                    self.tx.put_back();
                    break;
                }
                self.tap.write(packet);
            }
            self.tx.done(memory, head, 0);
            any = true;
        }
        if any {
            self.tx.signal(memory);
        }
    }

    fn obey(&mut self) {
        let (memory, filter) = (&self.memory, &mut self.filter);
        if let Some(control) = &mut self.control {
            control.drain(memory, |chain| {
                let command = command(memory, chain.clone());
                let answer = command.map_or(ERROR, |command| filter.run(&command));
                let Ok(mut writer) = Writer::new(memory, chain) else {
                    return 0;
                };
                std::io::Write::write(&mut writer, &[answer]).unwrap_or(0) as u32
            });
            self.addresses.set(filter.own());
        }
    }
}

/// Reads a command. `None`: it is too long.
fn command(memory: &Memory, chain: Chain<'_>) -> Option<Vec<u8>> {
    let mut reader = Reader::new(memory, chain).ok()?;
    let len = Some(reader.available_bytes()).filter(|len| *len <= COMMAND_BYTES_MAX)?;
    let mut command = vec![0; len];
    std::io::Read::read_exact(&mut reader, &mut command).ok()?;
    Some(command)
}

/// Writes a packet into the guest's buffers: one, or as many as it takes if they may be merged. False: there is no room now. A single
/// buffer that is too small gets nothing, and the packet is lost.
fn deliver(rx: &mut Ring, memory: &Memory, packet: &mut [u8], is_merged: bool) -> bool {
    let mut buffers = Vec::new();
    let mut room = 0;
    // No more are ready at once: a guest that goes on putting in what has no room is not followed.
    let buffers_max = usize::from(rx.queue().size());
    while room < packet.len() && (is_merged || buffers.is_empty()) {
        let is_more = buffers.len() < buffers_max;
        let Some(chain) = is_more.then(|| rx.next(memory)).flatten() else {
            buffers.iter().for_each(|_| rx.put_back());
            return false;
        };
        let head = chain.head_index();
        let writer = Writer::new(memory, chain).ok();
        room += writer.as_ref().map_or(0, Writer::available_bytes);
        buffers.push((head, writer));
    }
    packet[BUFFERS_AT..HEADER_BYTES].copy_from_slice(&(buffers.len() as u16).to_le_bytes());
    let mut rest: &[u8] = if room < packet.len() { &[] } else { packet };
    let mut used = Vec::with_capacity(buffers.len());
    for (head, writer) in buffers {
        let written = writer.map_or(0, |mut writer| {
            let (here, behind) = rest.split_at(rest.len().min(writer.available_bytes()));
            rest = behind;
            // There is room for it.
            std::io::Write::write(&mut writer, here).unwrap_or(0)
        });
        used.push((head, written as u32));
    }
    rx.done_together(memory, &used);
    true
}

/// Reads a packet that the guest sends. `None`: it is none.
fn collect(memory: &Memory, chain: Chain<'_>, packet: &mut [u8]) -> Option<usize> {
    let mut reader = Reader::new(memory, chain).ok()?;
    let len = reader.available_bytes();
    let packet = packet.get_mut(..len).filter(|_| len > HEADER_BYTES)?;
    std::io::Read::read_exact(&mut reader, packet).ok()?;
    Some(len)
}

impl Handler for Card {
    const ROLE: Role = Role::Net;

    fn ready(&mut self, token: u64) {
        match token {
            token if token == TX as u64 || token == TIMERS[TX] => self.send(),
            token if token == CONTROL as u64 => self.obey(),
            // The guest has made room, the tap has packets, or they may pass.
            _ => self.receive(),
        }
    }
}
