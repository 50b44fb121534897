//! A connection to the server of a disk: what the front-end says, and waits to be answered.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use vmm_block::vhost_user::channel::{Channel, ChannelError, wait_readable};
use vmm_block::vhost_user::wire::{
    CONFIG_HEAD_BYTES, ConfigPart, F_PROTOCOL, Frame, InflightPlace, NEED_REPLY, REPLY, Region,
    VringAddresses, VringState, code, event_body, protocol,
};
use vmm_block::virtio::CONFIG_BYTES;
use vmm_sys_util::eventfd::EventFd;

use crate::sandbox::door::Door;
use crate::virtio::F_RINGS;

/// Time for an answer that needs no disk. A server that serves another front-end of the same disk does not answer until that is gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time for the requests in work to be finished: longer than a server waits for bytes over the WAN.
const FINISH_PATIENCE: Duration = Duration::from_secs(90);

/// Protocol features without which a disk is not used: requests in flight would be lost with their server, or could not be told apart.
const NEEDED: u64 = protocol::REPLY_ACK | protocol::CONFIG | protocol::INFLIGHT_SHMFD;

/// Why a server is of no use, for now or for good.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Nobody listens.
    #[error("connect")]
    Connect(#[source] std::io::Error),
    /// It does not answer, or is gone.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// It does not know what is needed.
    #[error("the server lacks {0}")]
    Lacks(&'static str),
    /// It answers something else.
    #[error("answer to message {0} makes no sense")]
    Answer(u32),
    /// It says no.
    #[error("the server refuses message {0}")]
    Refused(u32),
}

/// What a server says of its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskInfo {
    /// Features of the disk, those of rings left out.
    pub features: u64,
    /// Most queues.
    pub queues: u16,
    /// The configuration.
    pub config: [u8; CONFIG_BYTES],
}

/// See the module.
pub struct Link {
    channel: Channel,
    /// What is agreed on.
    protocol: u64,
    info: DiskInfo,
}

impl Link {
    /// Connects to a server and asks it what it has. `stop` ends waiting.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn connect(door: &Door, stop: Option<BorrowedFd<'_>>) -> Result<Self, LinkError> {
        let socket = door.connect().map_err(LinkError::Connect)?;
        let mut this = Self {
            channel: Channel::new(OwnedFd::from(socket)),
            protocol: 0,
            info: DiskInfo {
                features: 0,
                queues: 1,
                config: [0; CONFIG_BYTES],
            },
        };
        let offered = this.number(code::GET_FEATURES, stop)?;
        if offered & F_PROTOCOL == 0 {
            return Err(LinkError::Lacks("protocol features"));
        }
        if offered & F_RINGS != F_RINGS {
            return Err(LinkError::Lacks("features of rings"));
        }
        this.info.features = offered & !F_RINGS & !F_PROTOCOL;
        let offered = this.number(code::GET_PROTOCOL_FEATURES, stop)?;
        if offered & NEEDED != NEEDED {
            return Err(LinkError::Lacks(
                "acknowledgements, the configuration or requests in flight",
            ));
        }
        let agreed = offered & (NEEDED | protocol::MQ);
        this.tell(code::SET_PROTOCOL_FEATURES, &agreed.to_le_bytes(), &[])?;
        this.protocol = agreed;
        this.tell(code::SET_OWNER, &[], &[])?;
        if agreed & protocol::MQ != 0 {
            let queues = this.number(code::GET_QUEUE_NUM, stop)?;
            this.info.queues = u16::try_from(queues).unwrap_or(u16::MAX);
        }
        this.info.config = this.config(stop)?;
        Ok(this)
    }

    /// What the server says of its disk.
    pub fn info(&self) -> &DiskInfo {
        &self.info
    }

    /// Waits until the server is gone or `stop` is readable.
    pub fn watch(&self, stop: BorrowedFd<'_>) -> ChannelError {
        match wait_readable(&self.channel, None, Some(stop)) {
            // It says nothing by itself: what is readable is the end, or nonsense.
            Ok(()) => ChannelError::Closed,
            Err(error) => error,
        }
    }

    fn config(&self, stop: Option<BorrowedFd<'_>>) -> Result<[u8; CONFIG_BYTES], LinkError> {
        let wanted = ConfigPart {
            offset: 0,
            len: CONFIG_BYTES as u32,
        };
        let body = wanted.body(&[0; CONFIG_BYTES]);
        let frame = self.ask(code::GET_CONFIG, &body, PATIENCE, stop)?;
        let wrong = LinkError::Answer(code::GET_CONFIG);
        if ConfigPart::parse(&frame.body) != Some(wanted) {
            return Err(wrong);
        }
        frame.body[CONFIG_HEAD_BYTES..]
            .try_into()
            .map_err(|_| wrong)
    }

    /// Sets the features of the disk that the driver wants.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn set_features(&self, features: u64) -> Result<(), LinkError> {
        let features = features | F_PROTOCOL;
        self.tell(code::SET_FEATURES, &features.to_le_bytes(), &[])
    }

    /// Shares the guest's memory.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn set_memory(&self, regions: &[(Region, &File)]) -> Result<(), LinkError> {
        let table: Vec<Region> = regions.iter().map(|(region, _)| *region).collect();
        let fds: Vec<_> = regions.iter().map(|(_, file)| file.as_fd()).collect();
        self.tell(code::SET_MEM_TABLE, &Region::table(&table), &fds)
    }

    /// Asks for memory for requests in flight.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn new_inflight(
        &self,
        queues: u16,
        queue_size: u16,
        stop: BorrowedFd<'_>,
    ) -> Result<(InflightPlace, OwnedFd), LinkError> {
        let wanted = InflightPlace {
            len: 0,
            offset: 0,
            queues,
            queue_size,
        };
        let asked = code::GET_INFLIGHT_FD;
        let mut frame = self.ask(asked, &wanted.body(), PATIENCE, Some(stop))?;
        let place = InflightPlace::parse(&frame.body);
        match (place, frame.fds.pop(), frame.fds.pop()) {
            (Some(place), Some(file), None) => Ok((place, file)),
            _ => Err(LinkError::Answer(asked)),
        }
    }

    /// Hands over memory for requests in flight, fresh or of the server before.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn set_inflight(&self, place: InflightPlace, file: &OwnedFd) -> Result<(), LinkError> {
        self.tell(code::SET_INFLIGHT_FD, &place.body(), &[file.as_fd()])
    }

    /// Sets a queue up and has it work: its entries, where it goes on in the available ring, its rings and its events.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn start_queue(
        &self,
        size: u16,
        base: u16,
        rings: VringAddresses,
        kick: &EventFd,
        call: Option<&EventFd>,
    ) -> Result<(), LinkError> {
        let index = rings.index;
        let number = |num: u16| VringState {
            index,
            num: num.into(),
        };
        let queue = index as u8;
        self.tell(code::SET_VRING_NUM, &number(size).body(), &[])?;
        self.tell(code::SET_VRING_BASE, &number(base).body(), &[])?;
        self.tell(code::SET_VRING_ADDR, &rings.body(), &[])?;
        let call: Vec<BorrowedFd<'_>> = call.into_iter().map(event_fd).collect();
        let body = event_body(queue, !call.is_empty());
        self.tell(code::SET_VRING_CALL, &body, &call)?;
        let body = event_body(queue, true);
        self.tell(code::SET_VRING_KICK, &body, &[event_fd(kick)])?;
        self.tell(code::SET_VRING_ENABLE, &number(1).body(), &[])
    }

    /// Stops a queue when its requests in work are finished; where it would have gone on in the available ring comes back.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn stop_queue(&self, index: u32) -> Result<u16, LinkError> {
        let asked = code::GET_VRING_BASE;
        let body = VringState { index, num: 0 }.body();
        let frame = self.ask(asked, &body, FINISH_PATIENCE, None)?;
        let state = VringState::parse(&frame.body).filter(|state| state.index == index);
        state
            .and_then(|state| u16::try_from(state.num).ok())
            .ok_or(LinkError::Answer(asked))
    }

    /// Says something and waits until it is acknowledged, once that is agreed on.
    fn tell(&self, code: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        let acknowledged = self.protocol & protocol::REPLY_ACK != 0;
        let flags = if acknowledged { NEED_REPLY } else { 0 };
        self.channel.send(code, flags, body, fds)?;
        if !acknowledged {
            return Ok(());
        }
        match number_in(&self.answer(code, PATIENCE, None)?)? {
            0 => Ok(()),
            _ => Err(LinkError::Refused(code)),
        }
    }

    fn ask(
        &self,
        code: u32,
        body: &[u8],
        patience: Duration,
        stop: Option<BorrowedFd<'_>>,
    ) -> Result<Frame, LinkError> {
        self.channel.send(code, 0, body, &[])?;
        self.answer(code, patience, stop)
    }

    fn answer(
        &self,
        code: u32,
        patience: Duration,
        stop: Option<BorrowedFd<'_>>,
    ) -> Result<Frame, LinkError> {
        let frame = self.channel.receive(Some(patience), stop)?;
        if frame.header.code != code || frame.header.flags & REPLY == 0 {
            return Err(LinkError::Answer(code));
        }
        Ok(frame)
    }

    fn number(&self, code: u32, stop: Option<BorrowedFd<'_>>) -> Result<u64, LinkError> {
        number_in(&self.ask(code, &[], PATIENCE, stop)?)
    }
}

fn number_in(frame: &Frame) -> Result<u64, LinkError> {
    let bytes = <[u8; 8]>::try_from(frame.body.as_slice());
    let bytes = bytes.map_err(|_| LinkError::Answer(frame.header.code))?;
    Ok(u64::from_le_bytes(bytes))
}

/// An event as a descriptor.
pub(super) fn event_fd(event: &EventFd) -> BorrowedFd<'_> {
    use std::os::fd::AsRawFd;
    // SAFETY: the event owns the descriptor and is borrowed for as long.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
