//! Connections with streams in memory, and guests that keep to the protocol or do not.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;

use proptest::prelude::*;

use super::connection::{BUFFER_BYTES, Stream};
use super::packet::{HOST_CID, Header, STREAM, op};
use super::table::{CONNECTIONS_MAX, Connections, Host};

const CID: u64 = 5;
const SERVICE: u32 = 80;
const GUEST_PORT: u32 = 52;

#[derive(Default)]
struct Program {
    /// What it sends.
    says: VecDeque<u8>,
    hangs_up: bool,
    /// What it was sent, and how much more it takes.
    heard: Vec<u8>,
    takes: usize,
    heard_end: bool,
    is_gone: bool,
}

/// A program of the host's.
#[derive(Clone, Default)]
struct Pipe(Rc<RefCell<Program>>);

impl Pipe {
    fn new() -> Self {
        let pipe = Self::default();
        pipe.0.borrow_mut().takes = usize::MAX;
        pipe
    }

    fn say(&self, bytes: &[u8]) {
        self.0.borrow_mut().says.extend(bytes);
    }

    fn heard(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.borrow_mut().heard)
    }
}

impl Read for Pipe {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut program = self.0.borrow_mut();
        if program.says.is_empty() && !program.hangs_up {
            return Err(ErrorKind::WouldBlock.into());
        }
        program.says.read(bytes)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut program = self.0.borrow_mut();
        if program.is_gone {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let len = bytes.len().min(program.takes);
        if len == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        program.takes -= len;
        program.heard.extend(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Pipe {
    fn end_writes(&mut self) {
        self.0.borrow_mut().heard_end = true;
    }
}

/// One service, which somebody serves.
struct Services(Pipe);

impl Host for Services {
    type Stream = Pipe;

    fn connect(&mut self, port: u32) -> Option<Pipe> {
        (port == SERVICE).then(|| self.0.clone())
    }
}

struct Guest {
    connections: Connections<Pipe>,
    services: Services,
    host_port: u32,
    guest_port: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
}

impl Guest {
    fn new() -> Self {
        Self {
            connections: Connections::new(CID),
            services: Services(Pipe::new()),
            host_port: SERVICE,
            guest_port: 1000,
            buf_alloc: 1 << 16,
            fwd_cnt: 0,
        }
    }

    fn header(&self, op: u16, flags: u32) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: self.guest_port,
            dst_port: self.host_port,
            kind: STREAM,
            op,
            flags,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
            len: 0,
        }
    }

    fn send(&mut self, op: u16, flags: u32, data: &[u8]) {
        let mut header = self.header(op, flags);
        header.len = data.len() as u32;
        self.connections.take(&header, data, &mut self.services);
    }

    fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut data = Vec::new();
        let header = self.connections.give(4096, &mut data)?;
        assert_eq!(header.len as usize, data.len());
        assert!(data.len() <= 4096);
        Some((header, data))
    }

    /// The next packet's kind.
    fn hears(&mut self) -> Option<u16> {
        self.receive().map(|(header, _)| header.op)
    }

    /// Calls the service.
    fn call(&mut self) -> Pipe {
        self.send(op::REQUEST, 0, &[]);
        assert_eq!(self.hears(), Some(op::RESPONSE));
        self.services.0.clone()
    }
}

#[test]
fn a_program_calls_the_guest_and_both_talk() {
    let mut guest = Guest::new();
    let pipe = Pipe::new();
    guest.connections.call(GUEST_PORT, pipe.clone());
    pipe.say(b"hello");
    let (request, _) = guest.receive().expect("a call");
    assert_eq!((request.op, request.dst_port), (op::REQUEST, GUEST_PORT));
    assert_eq!((request.src_cid, request.dst_cid), (HOST_CID, CID));
    assert_eq!(guest.hears(), None, "nothing before the answer");
    (guest.host_port, guest.guest_port) = (request.src_port, GUEST_PORT);
    guest.send(op::RESPONSE, 0, &[]);
    assert_eq!(
        pipe.heard(),
        format!("OK {}\n", request.src_port).as_bytes()
    );
    let (header, data) = guest.receive().expect("data");
    assert_eq!((header.op, data.as_slice()), (op::DATA, &b"hello"[..]));
    assert_eq!(header.buf_alloc, BUFFER_BYTES);
    guest.send(op::DATA, 0, b"HELLO");
    assert_eq!(pipe.heard(), b"HELLO");
    guest.send(op::CREDIT_REQUEST, 0, &[]);
    let (header, _) = guest.receive().expect("credit");
    assert_eq!((header.op, header.fwd_cnt), (op::CREDIT_UPDATE, 5));
    guest.send(op::SHUTDOWN, 3, &[]);
    assert!(pipe.0.borrow().heard_end);
    assert_eq!(guest.hears(), Some(op::RESET));
    assert_eq!((guest.hears(), guest.connections.len()), (None, 0));
}

#[test]
fn a_call_that_the_guest_refuses_ends() {
    let mut guest = Guest::new();
    let pipe = Pipe::new();
    guest.connections.call(GUEST_PORT, pipe.clone());
    let (request, _) = guest.receive().expect("a call");
    (guest.host_port, guest.guest_port) = (request.src_port, GUEST_PORT);
    guest.send(op::RESET, 0, &[]);
    assert_eq!(guest.connections.len(), 0);
    assert_eq!(Rc::strong_count(&pipe.0), 1, "the stream is closed");
    assert_eq!(guest.hears(), None);
}

#[test]
fn a_call_to_nobody_is_refused_and_so_is_what_belongs_to_no_connection() {
    let mut guest = Guest::new();
    guest.host_port = SERVICE + 1;
    for kind in [
        op::REQUEST,
        op::RESPONSE,
        op::DATA,
        op::SHUTDOWN,
        op::CREDIT_UPDATE,
        99,
    ] {
        guest.send(kind, 0, &[]);
        let (header, _) = guest.receive().expect("a refusal");
        let ends = (header.src_port, header.dst_port);
        assert_eq!((header.op, ends), (op::RESET, (SERVICE + 1, 1000)));
    }
    guest.send(op::RESET, 0, &[]);
    assert_eq!(guest.hears(), None, "a reset is not answered");
    // Not a stream, not to the host, not from this guest.
    let mut header = guest.header(op::REQUEST, 0);
    header.dst_port = SERVICE;
    header.kind = 2;
    guest.connections.take(&header, &[], &mut guest.services);
    assert_eq!(guest.hears(), Some(op::RESET));
    (header.kind, header.dst_cid) = (STREAM, 9);
    guest.connections.take(&header, &[], &mut guest.services);
    assert_eq!(guest.hears(), Some(op::RESET));
    (header.dst_cid, header.src_cid) = (HOST_CID, 9);
    guest.connections.take(&header, &[], &mut guest.services);
    assert_eq!((guest.hears(), guest.connections.len()), (None, 0));
}

#[test]
fn the_guests_room_is_kept_to_and_asked_for_once() {
    let mut guest = Guest::new();
    guest.buf_alloc = 10;
    let pipe = guest.call();
    pipe.say(&[7; 25]);
    let (header, data) = guest.receive().expect("data");
    assert_eq!((header.op, data.len()), (op::DATA, 10));
    assert_eq!(guest.hears(), Some(op::CREDIT_REQUEST));
    assert_eq!(guest.hears(), None);
    guest.send(op::CREDIT_UPDATE, 0, &[]);
    assert_eq!(
        guest.hears(),
        None,
        "an answer without room is not asked again"
    );
    guest.fwd_cnt = 10;
    guest.send(op::CREDIT_UPDATE, 0, &[]);
    assert_eq!(guest.receive().expect("data").1.len(), 10);
    // Room that is less than what is on its way is none.
    (guest.buf_alloc, guest.fwd_cnt) = (3, 12);
    guest.send(op::CREDIT_UPDATE, 0, &[]);
    assert_eq!(guest.hears(), Some(op::CREDIT_REQUEST));
    assert_eq!(guest.hears(), None);
}

#[test]
fn a_program_that_takes_nothing_holds_its_guest_up_and_one_byte_too_much_is_a_reset() {
    let mut guest = Guest::new();
    let pipe = guest.call();
    pipe.0.borrow_mut().takes = 0;
    for _ in 0..BUFFER_BYTES / 4096 {
        guest.send(op::DATA, 0, &[1; 4096]);
    }
    assert_eq!(guest.hears(), None, "no room is told");
    pipe.0.borrow_mut().takes = BUFFER_BYTES as usize / 2;
    guest.connections.wake();
    let (header, _) = guest.receive().expect("room");
    assert_eq!(
        (header.op, header.fwd_cnt),
        (op::CREDIT_UPDATE, BUFFER_BYTES / 2)
    );
    for _ in 0..BUFFER_BYTES / 8192 {
        guest.send(op::DATA, 0, &[1; 4096]);
    }
    assert_eq!(guest.hears(), None);
    guest.send(op::DATA, 0, &[1]);
    assert_eq!(guest.hears(), Some(op::RESET));
    assert_eq!(guest.connections.len(), 0);
}

#[test]
fn each_end_may_end_alone() {
    let mut guest = Guest::new();
    let pipe = guest.call();
    pipe.say(b"last");
    pipe.0.borrow_mut().hangs_up = true;
    assert_eq!(guest.receive().expect("data").1, b"last");
    let (header, _) = guest.receive().expect("an end");
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, 2));
    guest.send(op::DATA, 0, b"still");
    assert_eq!(pipe.heard(), b"still");
    // What is on its way is passed on before the end.
    pipe.0.borrow_mut().takes = 0;
    guest.send(op::DATA, 0, b"late");
    guest.send(op::SHUTDOWN, 2, &[]);
    assert!(!pipe.0.borrow().heard_end);
    pipe.0.borrow_mut().takes = 100;
    guest.connections.wake();
    assert_eq!(pipe.heard(), b"late");
    assert!(pipe.0.borrow().heard_end);
    guest.send(op::DATA, 0, b"too late");
    assert_eq!(guest.hears(), Some(op::RESET));
}

#[test]
fn a_program_that_is_gone_is_told_of() {
    let mut guest = Guest::new();
    let pipe = guest.call();
    pipe.0.borrow_mut().is_gone = true;
    guest.send(op::DATA, 0, b"nobody");
    assert_eq!(guest.hears(), Some(op::RESET));
    assert_eq!(guest.connections.len(), 0);
}

#[test]
fn there_are_never_more_connections_and_refusals_than_there_may_be() {
    let mut guest = Guest::new();
    for port in 0..CONNECTIONS_MAX as u32 + 10 {
        guest.guest_port = port;
        guest.send(op::REQUEST, 0, &[]);
    }
    assert_eq!(guest.connections.len(), CONNECTIONS_MAX);
    // A program's call finds no room, as all of them are answered.
    guest.connections.call(GUEST_PORT, Pipe::new());
    assert_eq!(guest.connections.len(), CONNECTIONS_MAX);
    guest.host_port = SERVICE + 1;
    for _ in 0..10_000 {
        guest.send(op::REQUEST, 0, &[]);
    }
    assert!(!guest.connections.listens());
    let (mut resets, mut responses) = (0, 0);
    while let Some(heard) = guest.hears() {
        match heard {
            op::RESET => resets += 1,
            op::RESPONSE => responses += 1,
            other => panic!("{other}"),
        }
    }
    assert_eq!((resets, responses), (64, CONNECTIONS_MAX));
    assert!(guest.connections.listens());
}

#[test]
fn calls_that_are_not_answered_make_room_for_others() {
    let mut guest = Guest::new();
    for port in 0..CONNECTIONS_MAX as u32 * 2 {
        guest.connections.call(port, Pipe::new());
    }
    assert_eq!(guest.connections.len(), CONNECTIONS_MAX);
    let (request, _) = guest.receive().expect("a call");
    assert_eq!(request.dst_port, CONNECTIONS_MAX as u32);
}

#[derive(Debug, Clone)]
enum Step {
    Send(u16, u32, usize, bool),
    Room(u32, u32),
    Hear,
    Say(usize),
    Take(usize),
    HangUp,
    Call,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..9u16, 0..8u32, 0..5000usize, any::<bool>())
            .prop_map(|(op, flags, len, other)| Step::Send(op, flags, len, other)),
        2 => (prop_oneof![0..100_000u32, any::<u32>()], any::<u32>())
            .prop_map(|(alloc, taken)| Step::Room(alloc, taken)),
        6 => Just(Step::Hear),
        2 => (0..9000usize).prop_map(Step::Say),
        2 => (0..9000usize).prop_map(Step::Take),
        1 => Just(Step::HangUp),
        1 => Just(Step::Call),
    ]
}

proptest! {
    #[test]
    fn no_guest_is_too_strange(steps in prop::collection::vec(step(), 1..200)) {
        let mut guest = Guest::new();
        let pipe = guest.services.0.clone();
        for step in steps {
            match step {
                Step::Send(op, flags, len, other) => {
                    guest.host_port = if other { 1 << 30 } else { SERVICE };
                    guest.send(op, flags, &vec![3; len]);
                }
                Step::Room(alloc, taken) => (guest.buf_alloc, guest.fwd_cnt) = (alloc, taken),
                Step::Hear => drop(guest.receive()),
                Step::Say(len) => pipe.say(&vec![1; len]),
                Step::Take(len) => {
                    pipe.0.borrow_mut().takes = len;
                    guest.connections.wake();
                }
                Step::HangUp => pipe.0.borrow_mut().hangs_up ^= true,
                Step::Call => guest.connections.call(1000, pipe.clone()),
            }
            prop_assert!(guest.connections.len() <= CONNECTIONS_MAX);
        }
    }

    /// Whatever sizes and however late, both sides get exactly what the other has sent.
    #[test]
    fn nothing_is_lost(
        sizes in prop::collection::vec((1..9000usize, 0..9000usize, 0..9000usize), 1..60),
        buf_alloc in 1..60_000u32,
    ) {
        let mut guest = Guest::new();
        guest.buf_alloc = buf_alloc;
        let pipe = guest.call();
        pipe.0.borrow_mut().takes = 0;
        let (mut given, mut said, mut came) = (0usize, 0usize, Vec::new());
        let (mut host_taken, mut heard) = (0u32, Vec::new());
        let byte = |at: usize| (at % 251) as u8;
        for (send, say, takes) in sizes.iter().copied().chain([(0, 0, usize::MAX / 2); 200]) {
            let room = BUFFER_BYTES as usize - (given - host_taken as usize);
            let data: Vec<u8> = (given..given + send.min(room)).map(byte).collect();
            given += data.len();
            guest.send(op::DATA, 0, &data);
            pipe.say(&(said..said + say).map(byte).collect::<Vec<_>>());
            said += say;
            pipe.0.borrow_mut().takes = takes;
            guest.connections.wake();
            heard.extend(pipe.heard());
            while let Some((header, data)) = guest.receive() {
                prop_assert!([op::DATA, op::CREDIT_UPDATE, op::CREDIT_REQUEST].contains(&header.op));
                host_taken = header.fwd_cnt;
                came.extend(data);
                if header.op == op::CREDIT_REQUEST {
                    break;
                }
            }
            prop_assert!(came.len() - guest.fwd_cnt as usize <= buf_alloc as usize);
            guest.fwd_cnt = came.len() as u32;
            guest.send(op::CREDIT_UPDATE, 0, &[]);
        }
        let all = |len: usize| (0..len).map(byte).collect::<Vec<_>>();
        prop_assert!(heard == all(given));
        if buf_alloc > 9000 {
            prop_assert!(came == all(said));
        } else {
            prop_assert!(came == all(came.len()));
        }
    }
}
