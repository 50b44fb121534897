//! A front-end with a guest whose driver is the test.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_block::vhost_user::channel::Channel;
use vmm_block::vhost_user::wire::{
    CONFIG_HEAD_BYTES, ConfigPart, F_PROTOCOL, Frame, InflightPlace, NEED_REPLY, Region,
    VringAddresses, VringState, code, event_body, protocol,
};

use crate::guest::{Driver, Memory, QUEUE_BYTES, SIZE};

const PATIENCE: Option<Duration> = Some(Duration::from_secs(20));
const F_VERSION_1: u64 = 1 << 32;

/// Where the second half of memory is for the guest.
pub const HIGH: u64 = 1 << 32;
/// Bytes of either half.
pub const HALF: u64 = 4 * QUEUE_BYTES;
/// What the front-end calls its memory: not what the guest does.
pub const USER: u64 = 0x7000_0000_0000;

/// A guest, which outlives its servers.
pub struct Guest {
    pub file: OwnedFd,
    pub memory: Memory,
    pub queues: Vec<Driver>,
    pub kicks: Vec<OwnedFd>,
    pub calls: Vec<OwnedFd>,
    pub inflight: Option<(InflightPlace, OwnedFd)>,
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

impl Guest {
    /// With so many queues, up to four.
    pub fn new(queues: usize) -> Self {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&file, 2 * HALF).unwrap();
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        let part = |at| Some(FileOffset::new(file.try_clone().unwrap().into(), at));
        let memory = GuestMemoryMmap::from_ranges_with_files([
            (GuestAddress(0), HALF as usize, part(0)),
            (GuestAddress(HIGH), HALF as usize, part(HALF)),
        ])
        .unwrap();
        let driver = |index| Driver::new(&memory, HIGH + index as u64 * QUEUE_BYTES);
        Self {
            queues: (0..queues).map(driver).collect(),
            file,
            memory,
            kicks: (0..queues).map(|_| event()).collect(),
            calls: (0..queues).map(|_| event()).collect(),
            inflight: None,
        }
    }

    pub fn kick(&self, queue: usize) {
        rustix::io::write(&self.kicks[queue], &1u64.to_ne_bytes()).unwrap();
    }

    /// Whether the driver was called since the last look.
    pub fn was_called(&self, queue: usize) -> bool {
        rustix::io::read(&self.calls[queue], &mut [0u8; 8]).is_ok()
    }

    pub fn regions(&self) -> [Region; 2] {
        [
            Region {
                guest: 0,
                len: HALF,
                user: USER,
                offset: 0,
            },
            Region {
                guest: HIGH,
                len: HALF,
                user: USER + HALF,
                offset: HALF,
            },
        ]
    }

    pub fn addresses(&self, queue: usize) -> VringAddresses {
        let user = |address| address - HIGH + USER + HALF;
        let [descriptors, available, used] = self.queues[queue].rings().map(user);
        VringAddresses {
            index: queue as u32,
            descriptors,
            used,
            available,
        }
    }
}

/// A connection.
pub struct Client {
    pub channel: Channel,
}

impl Client {
    /// Connects, waiting for a server that is about to listen.
    pub fn connect(path: &Path) -> Self {
        let deadline = Instant::now() + PATIENCE.unwrap();
        let socket = loop {
            match UnixStream::connect(path) {
                Ok(socket) => break socket,
                Err(error) => assert!(Instant::now() < deadline, "{}: {error}", path.display()),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        Self {
            channel: Channel::new(socket.into()),
        }
    }

    pub fn ask(&self, code: u32, body: &[u8]) -> Frame {
        self.channel.send(code, 0, body, &[]).unwrap();
        let frame = self.channel.receive(PATIENCE, None).unwrap();
        assert_eq!(frame.header.code, code);
        frame
    }

    pub fn number(&self, code: u32) -> u64 {
        u64::from_le_bytes(self.ask(code, &[]).body.try_into().unwrap())
    }

    /// Says something; whether it was taken.
    pub fn tell(&self, code: u32, body: &[u8], fds: &[&OwnedFd]) -> bool {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        self.channel.send(code, NEED_REPLY, body, &fds).unwrap();
        let frame = self.channel.receive(PATIENCE, None).unwrap();
        assert_eq!(frame.header.code, code);
        u64::from_le_bytes(frame.body.try_into().unwrap()) == 0
    }

    pub fn must(&self, code: u32, body: &[u8], fds: &[&OwnedFd]) {
        assert!(self.tell(code, body, fds), "message {code}");
    }

    pub fn negotiate(&self) {
        let offered = self.number(code::GET_FEATURES);
        assert_ne!(offered & F_PROTOCOL, 0);
        let features = self.number(code::GET_PROTOCOL_FEATURES);
        let agreed = features
            & (protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG | protocol::INFLIGHT_SHMFD);
        let body = agreed.to_le_bytes();
        self.channel
            .send(code::SET_PROTOCOL_FEATURES, 0, &body, &[])
            .unwrap();
        self.must(code::SET_OWNER, &[], &[]);
        let features = F_VERSION_1 | F_PROTOCOL;
        self.must(code::SET_FEATURES, &features.to_le_bytes(), &[]);
    }

    pub fn share(&self, guest: &Guest) {
        let table = Region::table(&guest.regions());
        self.must(code::SET_MEM_TABLE, &table, &[&guest.file, &guest.file]);
    }

    pub fn inflight(&self, guest: &mut Guest) {
        if guest.inflight.is_none() {
            let wanted = InflightPlace {
                len: 0,
                offset: 0,
                queues: guest.queues.len() as u16,
                queue_size: SIZE,
            };
            let mut frame = self.ask(code::GET_INFLIGHT_FD, &wanted.body());
            let place = InflightPlace::parse(&frame.body).unwrap();
            guest.inflight = Some((place, frame.fds.pop().unwrap()));
        }
        let (place, file) = guest.inflight.as_ref().unwrap();
        self.must(code::SET_INFLIGHT_FD, &place.body(), &[file]);
    }

    pub fn start(&self, guest: &Guest, queue: usize, base: u16) {
        let number = |num: u32| VringState {
            index: queue as u32,
            num,
        };
        self.must(code::SET_VRING_NUM, &number(SIZE.into()).body(), &[]);
        self.must(code::SET_VRING_BASE, &number(base.into()).body(), &[]);
        self.must(code::SET_VRING_ADDR, &guest.addresses(queue).body(), &[]);
        let body = event_body(queue as u8, true);
        self.must(code::SET_VRING_CALL, &body, &[&guest.calls[queue]]);
        self.must(code::SET_VRING_KICK, &body, &[&guest.kicks[queue]]);
        self.must(code::SET_VRING_ENABLE, &number(1).body(), &[]);
    }

    /// Connects and sets everything up, with memory for requests in flight.
    pub fn attach(path: &Path, guest: &mut Guest) -> Self {
        let this = Self::connect(path);
        this.negotiate();
        this.share(guest);
        this.inflight(guest);
        for queue in 0..guest.queues.len() {
            this.start(guest, queue, 0);
            guest.kick(queue);
        }
        this
    }

    /// Stops a queue; where it stands.
    pub fn stop(&self, queue: usize) -> u16 {
        let body = VringState {
            index: queue as u32,
            num: 0,
        }
        .body();
        let frame = self.ask(code::GET_VRING_BASE, &body);
        VringState::parse(&frame.body).unwrap().num as u16
    }

    pub fn config(&self, offset: u32, len: u32) -> Vec<u8> {
        let part = ConfigPart { offset, len };
        let body = part.body(&vec![0; len as usize]);
        let frame = self.ask(code::GET_CONFIG, &body);
        assert_eq!(ConfigPart::parse(&frame.body), Some(part));
        frame.body[CONFIG_HEAD_BYTES..].to_vec()
    }
}
