//! One front-end's connection: what it has set up so far, and the queues that work.
//!
//! ```text
//!  queue: ── size, addresses, kick, enable ──► runs ── GET_VRING_BASE ──► stopped, its place is told
//!                                                └── new memory, kick, disable ──► held, goes on where it was
//! ```
//!
//! Invariant: when the session ends, no thread of it is left that could touch the front-end's memory. A message that makes no sense is
//! answered with an error where the front-end has asked for an answer; else the connection ends, because the front-end would go on as if
//! it had worked.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use virtio_queue::{Queue, QueueT};

use super::channel::{Channel, ChannelError};
use super::event::{Call, Stop, check_eventfd};
use super::inflight::{Inflight, InflightError};
use super::memory::{GuestMap, MapError};
use super::queue::{QueueSetup, Running};
use super::server::ChannelEnd;
use super::waiting::chain;
use super::wire::{
    CONFIG_HEAD_BYTES, ConfigPart, F_PROTOCOL, Frame, InflightPlace, Message, NEED_REPLY, REPLY,
    VringAddresses, VringState, WireError, protocol,
};
use super::{Disk, QUEUE_SIZE_MAX, SEGMENTS_MAX};
use crate::Seldom;
use crate::virtio::{config_of, features_of};

/// Features of rings: indirect descriptors, notifications by position, virtio 1.0 and later.
const F_INDIRECT: u64 = 1 << 28;
const F_EVENT_IDX: u64 = 1 << 29;
const F_VERSION_1: u64 = 1 << 32;

/// Protocol features that are offered.
const PROTOCOL_FEATURES: u64 =
    protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG | protocol::INFLIGHT_SHMFD;

/// How long requests that wait for what is not there may hold up a queue that a front-end stops. A guest that resets its disk, or a VMM
/// that is paused, waits for it.
const HOLD_GRACE: Duration = Duration::from_secs(5);

/// Why a message is refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("queue {0} does not exist")]
    Queue(u32),
    #[error("queue {0} is at work")]
    AtWork(u32),
    #[error("{0} is no number of entries of a queue")]
    Size(u32),
    #[error("features {0:#x} were not offered")]
    Features(u64),
    #[error("queue {0} has rings outside of memory")]
    Rings(u32),
    #[error("not an eventfd")]
    NoEvent,
    #[error("a queue without kicks")]
    NoKick,
    #[error("the configuration cannot be written")]
    Config,
    #[error(transparent)]
    Memory(#[from] MapError),
    #[error(transparent)]
    Inflight(#[from] InflightError),
    #[error("a queue's thread")]
    Thread(#[source] std::io::Error),
}

/// What a message is answered with.
enum Reply {
    /// Nothing, or that it worked if that was asked for.
    Done,
    Number(u64),
    Body(Vec<u8>, Option<OwnedFd>),
}

#[derive(Default)]
struct QueueState {
    size: u16,
    addresses: Option<VringAddresses>,
    /// Where in the available ring to go on.
    base: u16,
    kick: Option<OwnedFd>,
    call: Arc<Call>,
    enabled: bool,
    running: Option<Running>,
}

/// See the module.
pub(crate) struct Session {
    disk: Arc<Disk>,
    channel: Channel,
    seldom: Arc<Seldom>,
    features: u64,
    protocol: u64,
    map: Option<Arc<GuestMap>>,
    inflight: Option<Inflight>,
    queues: Vec<QueueState>,
}

impl Session {
    pub(crate) fn new(disk: Arc<Disk>, channel: Channel, seldom: Arc<Seldom>) -> Self {
        let queues = std::iter::repeat_with(QueueState::default);
        Self {
            queues: queues.take(disk.queues.into()).collect(),
            disk,
            channel,
            seldom,
            features: 0,
            protocol: 0,
            map: None,
            inflight: None,
        }
    }

    /// Serves the front-end until it leaves or `stop` is raised. What is in work is finished.
    pub(crate) fn run(mut self, stop: &Stop) -> ChannelEnd {
        let end = loop {
            let frame = match self.channel.receive(None, Some(stop.as_fd())) {
                Ok(frame) => frame,
                Err(ChannelError::Closed) => break ChannelEnd::Closed,
                Err(ChannelError::Stopped) => break ChannelEnd::Stopped,
                Err(error) => break ChannelEnd::Failed(error.to_string()),
            };
            if let Err(reason) = self.act(frame) {
                break ChannelEnd::Failed(reason);
            }
        };
        // Nobody waits for these queues: what waits does so for the next front-end.
        self.hold_all(Duration::ZERO);
        end
    }

    /// Acts on a message and answers it. `Err`: the connection is to end.
    fn act(&mut self, frame: Frame) -> Result<(), String> {
        let (code, flags) = (frame.header.code, frame.header.flags);
        let acknowledges = flags & NEED_REPLY != 0 && self.protocol & protocol::REPLY_ACK != 0;
        let done = match Message::parse(frame) {
            Ok(message) => self.handle(message).map_err(|refusal| chain(&refusal)),
            // What is too long, or in the wrong direction, is not from a front-end that speaks the protocol.
            Err(error @ (WireError::Unknown(_) | WireError::Length { .. })) => {
                Err(error.to_string())
            }
            Err(error) => return Err(error.to_string()),
        };
        let (body, fd) = match done {
            Ok(Reply::Done) if !acknowledges => return Ok(()),
            Ok(Reply::Done) => (0u64.to_le_bytes().to_vec(), None),
            Ok(Reply::Number(number)) => (number.to_le_bytes().to_vec(), None),
            Ok(Reply::Body(body, fd)) => (body, fd),
            Err(reason) if !acknowledges => return Err(format!("message {code}: {reason}")),
            Err(reason) => {
                if self.seldom.passes() {
                    tracing::warn!(serial = self.disk.serial, code, reason, "message refused");
                }
                (1u64.to_le_bytes().to_vec(), None)
            }
        };
        let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
        let sent = self.channel.send(code, REPLY, &body, &fds);
        sent.map_err(|error| error.to_string())
    }

    fn handle(&mut self, message: Message) -> Result<Reply, Refusal> {
        match message {
            Message::GetFeatures => return Ok(Reply::Number(self.offered())),
            Message::SetFeatures(features) => self.set_features(features)?,
            Message::SetOwner => {}
            Message::ResetOwner => {
                self.hold_all(HOLD_GRACE);
                self.queues.iter_mut().for_each(|one| one.enabled = false);
            }
            Message::SetMemTable(table) => {
                let map = Arc::new(GuestMap::new(table)?);
                // Rings at work are held, and go on in the new memory.
                self.hold_all(HOLD_GRACE);
                self.map = Some(map);
            }
            Message::SetVringNum(VringState { index, num }) => {
                let size = u16::try_from(num)
                    .ok()
                    .filter(|size| size.is_power_of_two() && *size <= QUEUE_SIZE_MAX);
                self.at_rest(index)?.size = size.ok_or(Refusal::Size(num))?;
            }
            Message::SetVringAddr(addresses) => {
                self.at_rest(addresses.index)?.addresses = Some(addresses);
            }
            Message::SetVringBase(VringState { index, num }) => {
                self.at_rest(index)?.base = num as u16;
            }
            Message::GetVringBase(index) => {
                self.hold(index)?;
                let queue = self.queue(index)?;
                queue.kick = None;
                let place = VringState {
                    index,
                    num: queue.base.into(),
                };
                return Ok(Reply::Body(place.body(), None));
            }
            Message::SetVringKick(index, event) => {
                let event = event.ok_or(Refusal::NoKick)?;
                let event = check_eventfd(event).ok_or(Refusal::NoEvent)?;
                self.hold(index)?;
                self.queue(index)?.kick = Some(event);
            }
            Message::SetVringCall(index, event) => {
                let event = event.map(|event| check_eventfd(event).ok_or(Refusal::NoEvent));
                self.queue(index)?.call.set(event.transpose()?);
            }
            // Nothing goes wrong with a queue that its guest does not know itself.
            Message::SetVringErr(index) => {
                self.queue(index)?;
            }
            Message::GetProtocolFeatures => return Ok(Reply::Number(PROTOCOL_FEATURES)),
            Message::SetProtocolFeatures(features) => {
                let unknown = features & !PROTOCOL_FEATURES;
                if unknown != 0 {
                    return Err(Refusal::Features(unknown));
                }
                self.protocol = features;
            }
            Message::GetQueueNum => return Ok(Reply::Number(self.queues.len() as u64)),
            Message::SetVringEnable(VringState { index, num }) => {
                if num == 0 {
                    self.hold(index)?;
                }
                self.queue(index)?.enabled = num != 0;
            }
            Message::GetConfig(part) => return Ok(Reply::Body(self.config(part), None)),
            Message::SetConfig => return Err(Refusal::Config),
            Message::GetInflightFd(wanted) => {
                let (place, file) = self.new_inflight(wanted)?;
                return Ok(Reply::Body(place.body(), Some(file)));
            }
            Message::SetInflightFd(place, file) => {
                self.all_at_rest()?;
                self.inflight = Some(Inflight::attach(place, file)?);
            }
        }
        self.start_ready()?;
        Ok(Reply::Done)
    }

    fn offered(&self) -> u64 {
        let rings = F_INDIRECT | F_EVENT_IDX | F_VERSION_1;
        features_of(&self.disk.device.geometry()) | rings | F_PROTOCOL
    }

    fn set_features(&mut self, features: u64) -> Result<(), Refusal> {
        let unknown = features & !self.offered();
        if unknown != 0 {
            return Err(Refusal::Features(unknown));
        }
        if features != self.features {
            self.all_at_rest()?;
        }
        self.features = features;
        if features & F_PROTOCOL == 0 {
            // A front-end that does not know of enabling expects it.
            self.queues.iter_mut().for_each(|one| one.enabled = true);
        }
        Ok(())
    }

    fn config(&self, part: ConfigPart) -> Vec<u8> {
        let geometry = self.disk.device.geometry();
        let whole = config_of(&geometry, self.queues.len() as u16, SEGMENTS_MAX);
        let (from, len) = (part.offset as usize, part.len as usize);
        let there = whole.get(from..).unwrap_or(&[]);
        // Fields that came into the specification later read as zeros.
        let mut bytes: Vec<u8> = there.iter().copied().take(len).collect();
        bytes.resize(len, 0);
        let body = part.body(&bytes);
        debug_assert_eq!(body.len(), CONFIG_HEAD_BYTES + len);
        body
    }

    fn new_inflight(&self, wanted: InflightPlace) -> Result<(InflightPlace, OwnedFd), Refusal> {
        let InflightPlace {
            queues, queue_size, ..
        } = wanted;
        if queues == 0 || usize::from(queues) > self.queues.len() {
            return Err(Refusal::Queue(queues.into()));
        }
        if queue_size == 0 || queue_size > QUEUE_SIZE_MAX {
            return Err(Refusal::Size(queue_size.into()));
        }
        Ok(Inflight::create(queues, queue_size)?)
    }

    fn queue(&mut self, index: u32) -> Result<&mut QueueState, Refusal> {
        let queue = self.queues.get_mut(index as usize);
        queue.ok_or(Refusal::Queue(index))
    }

    fn at_rest(&mut self, index: u32) -> Result<&mut QueueState, Refusal> {
        let queue = self.queue(index)?;
        if queue.running.is_some() {
            return Err(Refusal::AtWork(index));
        }
        Ok(queue)
    }

    fn all_at_rest(&self) -> Result<(), Refusal> {
        let working = self.queues.iter().position(|one| one.running.is_some());
        working.map_or(Ok(()), |index| Err(Refusal::AtWork(index as u32)))
    }

    /// Stops a queue; it keeps its place.
    fn hold(&mut self, index: u32) -> Result<(), Refusal> {
        let queue = self.queue(index)?;
        if let Some(running) = queue.running.take() {
            queue.base = running.stopped(HOLD_GRACE).next_available;
        }
        Ok(())
    }

    fn hold_all(&mut self, grace: Duration) {
        // All are told before the first is waited for.
        for running in self.queues.iter().filter_map(|one| one.running.as_ref()) {
            running.stop(grace);
        }
        for queue in &mut self.queues {
            if let Some(running) = queue.running.take() {
                queue.base = running.stopped(grace).next_available;
            }
        }
    }

    /// Starts queues that have all that they need.
    fn start_ready(&mut self) -> Result<(), Refusal> {
        let Some(map) = self.map.clone() else {
            return Ok(());
        };
        for (index, queue) in self.queues.iter_mut().enumerate() {
            let (Some(kick), Some(addresses)) = (&queue.kick, queue.addresses) else {
                continue;
            };
            if queue.running.is_some() || !queue.enabled || queue.size == 0 {
                continue;
            }
            let rings = Refusal::Rings(index as u32);
            let event_idx = self.features & F_EVENT_IDX != 0;
            let mut ready = ready_queue(&map, queue.size, addresses, event_idx).ok_or(rings)?;
            let mut again = Vec::new();
            let mut log = None;
            if let Some(inflight) = &self.inflight {
                let (opened, heads) = inflight.open(index as u16, queue.size, ready.next_used())?;
                // Taken so far are those that were answered and those that are to be worked on again.
                queue.base = ready.next_used().wrapping_add(heads.len() as u16);
                (log, again) = (Some(opened), heads);
            }
            ready.set_next_avail(queue.base);
            if !again.is_empty() {
                let count = again.len();
                if self.seldom.passes() {
                    tracing::info!(serial = self.disk.serial, index, count, "requests repeated");
                }
            }
            let setup = QueueSetup {
                index: index as u16,
                queue: ready,
                map: Arc::clone(&map),
                disk: Arc::clone(&self.disk),
                call: Arc::clone(&queue.call),
                seldom: Arc::clone(&self.seldom),
                log,
                again,
            };
            queue.running = Some(Running::spawn(setup, kick).map_err(Refusal::Thread)?);
        }
        Ok(())
    }
}

/// A queue whose rings lie in memory, at its place in the used ring.
fn ready_queue(map: &GuestMap, size: u16, at: VringAddresses, event_idx: bool) -> Option<Queue> {
    let mut queue = Queue::new(QUEUE_SIZE_MAX).ok()?;
    queue.try_set_size(size).ok()?;
    let address = |user| map.guest_address(user).map(vm_memory::GuestAddress);
    queue
        .try_set_desc_table_address(address(at.descriptors)?)
        .ok()?;
    queue
        .try_set_avail_ring_address(address(at.available)?)
        .ok()?;
    queue.try_set_used_ring_address(address(at.used)?).ok()?;
    queue.set_event_idx(event_idx);
    queue.set_ready(true);
    if !queue.is_valid(&map.memory) {
        return None;
    }
    let used = queue.used_idx(&map.memory, std::sync::atomic::Ordering::Acquire);
    queue.set_next_used(used.ok()?.0);
    Some(queue)
}
