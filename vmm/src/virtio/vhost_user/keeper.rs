//! The thread that keeps a disk's queues served: it hands them to a server, and to the next one when that is gone.
//!
//! ```text
//!           connect, hand over                 gone
//!  absent ────────────────────► served ─────────────────► absent        told to stop: the queues come back
//!     └── wait, longer each time ──┘◄─────────────────────────┘
//! ```
//!
//! A machine that goes on from a snapshot has its memory first: a server would find zeros where it is not loaded yet.
//!
//! While no server is there, the guest's requests stay in its rings and the guest waits. Invariant: the memory for requests in flight is
//! kept from start to stop and given to every server, so that a request that one has taken and not answered is answered by the next.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use virtio_queue::QueueT;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_block::vhost_user::channel::ChannelError;
use vmm_block::vhost_user::wire::{Region, VringAddresses};
use vmm_block::virtio::CONFIG_BYTES;
use vmm_sys_util::eventfd::EventFd;

use super::inflight::{Inflight, Left};
use super::link::{Link, LinkError, event_fd};
use super::{QUEUE_SIZE, told_config};
use crate::machine::bus::lock;
use crate::machine::memory::Memory;
use crate::sandbox::door::Door;
use crate::snapshot::Loading;
use crate::virtio::F_RINGS;
use crate::virtio::ring::{Interrupt, Ring};

/// First and longest pause between attempts to connect: a branch server that is upgraded is back within a second or two.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// How long a stop waits for a server that finishes what another one has taken. The guest that resets its disk waits for it.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// How often it is looked whether the memory is there.
const LOADING_LOOK: Duration = Duration::from_millis(5);

/// What comes back when the queues are not served any more.
pub(super) struct Back {
    pub(super) rings: Vec<Option<Ring>>,
    pub(super) left: Option<Left>,
}

/// See the module.
pub(super) struct Keeper {
    pub(super) door: Door,
    pub(super) memory: Memory,
    /// Features of the disk and of rings that the driver has taken.
    pub(super) features: u64,
    pub(super) rings: Vec<Option<Ring>>,
    pub(super) interrupt: Arc<Interrupt>,
    pub(super) config: Arc<Mutex<[u8; CONFIG_BYTES]>>,
    pub(super) stop: EventFd,
    pub(super) inflight: Option<Inflight>,
    /// No server does anything.
    pub(super) is_at_rest: bool,
    pub(super) loading: Loading,
}

impl Keeper {
    /// Runs until it is told to stop; the rings come back with their places.
    pub(super) fn run(mut self) -> Back {
        if !self.loading.is_over() {
            self.loading.hurry();
        }
        while !self.loading.is_over() {
            if self.is_stopped_within(LOADING_LOOK) {
                return self.take_back(None);
            }
        }
        let mut pause = PAUSE_MIN;
        let mut told = String::new();
        loop {
            match self.hand_over(true) {
                Ok(link) => {
                    tracing::debug!(socket = %self.door.path().display(), "disk is served");
                    pause = PAUSE_MIN;
                    told.clear();
                    match link.watch(event_fd(&self.stop)) {
                        ChannelError::Stopped => return self.take_back(Some(link)),
                        reason => {
                            tracing::warn!(socket = %self.door.path().display(), %reason, "the server of a disk is gone; its guest waits");
                        }
                    }
                }
                Err(error) => {
                    let reason = error.to_string();
                    // Once for each reason, not for each attempt.
                    if reason != told {
                        tracing::warn!(socket = %self.door.path().display(), reason, "a disk is not served");
                        told = reason;
                    }
                }
            }
            if self.is_stopped_within(pause) {
                return self.take_back(None);
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn is_stopped_within(&self, pause: Duration) -> bool {
        let stop = event_fd(&self.stop);
        vmm_block::vhost_user::channel::wait_readable(stop, Some(pause), None).is_ok()
    }

    /// Connects, and hands over memory and queues.
    fn hand_over(&mut self, may_stop: bool) -> Result<Link, LinkError> {
        let stop = event_fd(&self.stop);
        let link = Link::connect(&self.door, may_stop.then_some(stop))?;
        let info = link.info();
        if self.features & !F_RINGS & !info.features != 0 {
            return Err(LinkError::Lacks("features that the guest uses"));
        }
        if usize::from(info.queues) < self.rings.len() {
            return Err(LinkError::Lacks("queues"));
        }
        self.show(told_config(info, self.rings.len()));
        link.set_features(self.features)?;
        self.is_at_rest = false;
        self.share_memory(&link)?;
        if self.inflight.is_none() {
            let queues = self.rings.len() as u16;
            self.inflight = Some(link.new_inflight(queues, QUEUE_SIZE, stop)?);
        }
        if let Some((place, file)) = &self.inflight {
            link.set_inflight(*place, file)?;
        }
        for ring in self.rings.iter().flatten() {
            let queue = ring.queue();
            // Where the used ring is: from there on, and with the memory for requests in flight, a server finds what is to be done.
            let used = queue.used_idx(&self.memory, Ordering::Acquire);
            let base = used.map_or(queue.next_used(), |used| used.0);
            let rings = VringAddresses {
                index: ring.index() as u32,
                descriptors: queue.desc_table(),
                used: queue.used_ring(),
                available: queue.avail_ring(),
            };
            let call = self.interrupt.event(ring.index());
            link.start_queue(queue.size(), base, rings, ring.kick(), call)?;
            // What came while nobody listened, in either direction.
            let _ = ring.kick().write(1);
            self.interrupt.queue(ring.index());
        }
        Ok(link)
    }

    /// The configuration, and tells the driver if it is another one.
    fn show(&self, config: [u8; CONFIG_BYTES]) {
        let before = std::mem::replace(&mut *lock(&self.config), config);
        if before != config {
            self.interrupt.config_changed();
        }
    }

    fn share_memory(&self, link: &Link) -> Result<(), LinkError> {
        let mut regions = Vec::new();
        for region in self.memory.iter() {
            let Some(place) = region.file_offset() else {
                return Err(LinkError::Lacks("a way to memory that is in no file"));
            };
            let guest = region.start_addr().raw_value();
            let region = Region {
                guest,
                len: region.len(),
                // A name for it, no more. The guest's own tells nothing of where things lie in this process.
                user: guest,
                offset: place.start(),
            };
            regions.push((region, place.file()));
        }
        link.set_memory(&regions)
    }

    /// Whether the driver waits for answers.
    fn is_waited_for(&self) -> bool {
        self.rings.iter().flatten().any(|ring| {
            let queue = ring.queue();
            let available = queue.avail_idx(&self.memory, Ordering::Acquire).ok();
            available != queue.used_idx(&self.memory, Ordering::Acquire).ok()
        })
    }

    /// Has the server finish what it has in work and takes the queues back. What it cannot finish for now, because the WAN does not bring
    /// it, it leaves marked in the memory for requests in flight.
    fn take_back(mut self, link: Option<Link>) -> Back {
        let deadline = Instant::now() + LAST_PATIENCE;
        let mut link = link;
        loop {
            if let Some(link) = link.take() {
                match self.stop_queues(&link) {
                    Ok(()) => {
                        let is_left = self.rings.iter().flatten().any(|ring| {
                            let queue = ring.queue();
                            queue.next_avail() != queue.next_used()
                        });
                        self.is_at_rest = true;
                        return self.back(is_left);
                    }
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(socket = %self.door.path().display(), error, "a disk's queues do not come back");
                    }
                }
            }
            let is_done = !self.is_waited_for() || self.inflight.is_none();
            // Nor does a server get memory that is not all there yet.
            if is_done || !self.loading.is_over() || Instant::now() >= deadline {
                break;
            }
            // Requests may be in flight: the next server finishes them.
            std::thread::sleep(PAUSE_MAX / 4);
            link = self.hand_over(false).ok();
        }
        let is_waited_for = self.is_waited_for();
        if is_waited_for {
            tracing::warn!(socket = %self.door.path().display(), "a disk stops without its server; requests are left");
        }
        for ring in self.rings.iter_mut().flatten() {
            let used = ring.queue().used_idx(&self.memory, Ordering::Acquire);
            let used = used.map_or(ring.queue().next_used(), |used| used.0);
            ring.set_places(used, used);
        }
        self.back(is_waited_for)
    }

    fn back(self, is_left: bool) -> Back {
        let left = self.inflight.filter(|_| is_left).map(|inflight| Left {
            inflight,
            is_at_rest: self.is_at_rest,
        });
        Back {
            rings: self.rings,
            left,
        }
    }

    fn stop_queues(&mut self, link: &Link) -> Result<(), LinkError> {
        for ring in self.rings.iter_mut().flatten() {
            let next = link.stop_queue(ring.index() as u32)?;
            let used = ring.queue().used_idx(&self.memory, Ordering::Acquire);
            ring.set_places(next, used.map_or(next, |used| used.0));
        }
        Ok(())
    }
}
