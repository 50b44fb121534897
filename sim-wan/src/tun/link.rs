//! The data path of a TUN link: one thread per direction reads packets from one device, runs them through its pipe
//! and writes them to the other device.
//!
//! Cost against precision: a thread sleeps until the next packet is due with nanosecond timers, but under load its rounds
//! of work are at least [`PACE_MIN`] to [`PACE_MAX`] apart, so at high rates packets are moved in small batches. No
//! spinning: the processors are shared with what is being measured.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::device::{Device, MTU};
use super::{LinkSpec, TunError};
use crate::link::{Controlled, Direction, LinkStats, SharedLink};
use crate::model::Mode;
use crate::profile::Profile;
use crate::sys::{be_punctual, wait};

/// Shortest time between two rounds of work of one thread: a 400th of the link's delay, within these bounds. It batches
/// a fast flow's packets (four full ones at 1 Gbit/s and 50 µs) and is what a packet behind another may be late.
const PACE_MIN: Duration = Duration::from_micros(50);
const PACE_MAX: Duration = Duration::from_micros(250);

/// Packets moved per round and direction; bounds the time the pipe's lock is held.
const BATCH: usize = 128;

/// Packet buffers kept for reuse per direction: a round's reads and writes.
const SPARE_BUFFERS: usize = 2 * BATCH;

type Packet = Vec<u8>;

/// A running link; it ends, and its devices vanish, when dropped.
pub struct TunLink {
    shared: Arc<SharedLink<Packet>>,
    ends: Arc<Ends>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

struct Ends {
    dc: Device,
    branch: Device,
}

impl TunLink {
    /// Creates both devices and starts moving packets. The namespaces must exist.
    ///
    /// # Errors
    /// No privilege, a namespace is missing, or a device or address is in use.
    pub fn start(spec: &LinkSpec, profile: &Profile, seed: u64) -> Result<Self, TunError> {
        let dc = Device::create(
            &spec.dc_namespace,
            &spec.name,
            spec.dc_address.0,
            spec.dc_address.1,
        )?;
        let branch = Device::create(
            &spec.branch_namespace,
            &spec.name,
            spec.branch_address.0,
            spec.branch_address.1,
        )?;
        let shared = SharedLink::new(&spec.name, profile, Mode::Datagram, seed)
            .map_err(TunError::io("eventfd"))?;
        let mut link = Self {
            shared: Arc::new(shared),
            ends: Arc::new(Ends { dc, branch }),
            stop: Arc::new(AtomicBool::new(false)),
            threads: Vec::new(),
        };
        for direction in [Direction::Down, Direction::Up] {
            let (shared, ends, stop) = (link.shared.clone(), link.ends.clone(), link.stop.clone());
            let thread = thread::Builder::new()
                .name(format!("{}-{direction:?}", spec.name).to_lowercase())
                .spawn(move || {
                    let (from, to) = match direction {
                        Direction::Down => (&ends.dc.fd, &ends.branch.fd),
                        Direction::Up => (&ends.branch.fd, &ends.dc.fd),
                    };
                    if let Err(error) = forward(&shared, direction, from, to, &stop) {
                        shared.fail(format!("{direction:?} data path: {error}"));
                    }
                })
                .map_err(TunError::io("starting a thread"))?;
            link.threads.push(thread);
        }
        Ok(link)
    }

    /// The handle that the control socket needs.
    pub fn controlled(&self) -> Arc<dyn Controlled> {
        self.shared.clone()
    }

    /// Counters now.
    pub fn stats(&self) -> LinkStats {
        self.shared.stats()
    }

    /// Packets lost in the devices' rings, unseen by the model; see [`Device::ring_drops`].
    ///
    /// # Errors
    /// A device is gone.
    pub fn ring_drops(&self) -> Result<u64, TunError> {
        Ok(self.ends.dc.ring_drops()? + self.ends.branch.ring_drops()?)
    }
}

impl Drop for TunLink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.shared.ring();
        for thread in self.threads.drain(..) {
            // A panic in the data path is our bug; it has printed itself, and the link is ending anyway.
            let _ = thread.join();
        }
    }
}

fn forward(
    shared: &SharedLink<Packet>,
    direction: Direction,
    from: &OwnedFd,
    to: &OwnedFd,
    stop: &AtomicBool,
) -> io::Result<()> {
    be_punctual();
    let lane = shared.lane(direction);
    let mut spare: Vec<Packet> = Vec::new();
    let mut read: Vec<Packet> = Vec::new();
    let mut due: Vec<Packet> = Vec::new();
    let mut readable = true;
    let mut last_work = Duration::ZERO;
    while !stop.load(Ordering::Acquire) {
        let begun = shared.clock.now();
        if readable {
            receive(from, &mut spare, &mut read)?;
        }
        let mut worked = !read.is_empty();
        let (next, pace) = {
            let mut pipe = lane.pipe();
            let now = shared.clock.now();
            for packet in read.drain(..) {
                let bytes = packet.len() as u64;
                pipe.enqueue(now, packet, bytes);
            }
            while due.len() < BATCH
                && let Some(packet) = pipe.poll(now)
            {
                due.push(packet);
            }
            (
                pipe.next_event(),
                (pipe.shape().delay / 400).clamp(PACE_MIN, PACE_MAX),
            )
        };
        worked |= !due.is_empty();
        for packet in due.drain(..) {
            send(to, &packet)?;
            if spare.len() < SPARE_BUFFERS {
                spare.push(packet);
            }
        }
        if worked {
            // Sparse packets are each served at once; only a second round close behind is held back.
            if begun.saturating_sub(last_work) < 2 * pace {
                thread::sleep(pace.saturating_sub(shared.clock.now() - begun));
            }
            last_work = begun;
        }
        let timeout = next.map(|at| at.saturating_sub(shared.clock.now()));
        let mut fds = [
            PollFd::new(from, PollFlags::IN),
            PollFd::new(&lane.bell, PollFlags::IN),
        ];
        wait(&mut fds, timeout)?;
        readable = !fds[0].revents().is_empty();
        if fds[1].revents().contains(PollFlags::IN) {
            lane.bell.silence();
        }
    }
    Ok(())
}

/// Reads what is waiting, up to a batch.
fn receive(from: &OwnedFd, spare: &mut Vec<Packet>, read: &mut Vec<Packet>) -> io::Result<()> {
    while read.len() < BATCH {
        let mut packet = spare.pop().unwrap_or_default();
        packet.resize(MTU, 0);
        match rustix::io::read(from, packet.as_mut_slice()) {
            Ok(length) => {
                packet.truncate(length);
                read.push(packet);
            }
            Err(Errno::AGAIN) => {
                spare.push(packet);
                break;
            }
            Err(Errno::INTR) => spare.push(packet),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Hands a packet to the receiving kernel. What that kernel refuses (an interface brought down, no memory) is lost at
/// the receiver, after the link has delivered it.
fn send(to: &OwnedFd, packet: &[u8]) -> io::Result<()> {
    loop {
        match rustix::io::write(to, packet) {
            Ok(_) | Err(Errno::IO | Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM | Errno::INVAL) => {
                return Ok(());
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
