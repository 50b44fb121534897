//! Sockets (virtio 1.2, section 5.10). The guest calls the host's port 1234, who sends back what it hears; then the host calls port 52
//! here, sends a line and gets it back.

use crate::memory::Piece;
use crate::queue::{Queue, gives, takes};
use crate::report::{Check, Wrong, ensure};
use crate::virtio::{Device, Learns};

const KIND: u32 = 19;
const CID: u64 = 7;
const HOST: u64 = 2;
const HEADER_BYTES: usize = 44;
const STREAM: u16 = 1;

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RESET: u16 = 3;
const SHUTDOWN: u16 = 4;
const DATA: u16 = 5;
const CREDIT: u16 = 6;
const CREDIT_PLEASE: u16 = 7;

const HOST_PORT: u32 = 1234;
const OUR_PORT: u32 = 9999;
const CALLED_PORT: u32 = 52;

const BUFFERS: usize = 8;
const BUFFER_BYTES: usize = 4096;
/// What we say that we take; the host must not send more before we tell of room.
const ROOM: u32 = 16 * 1024;
/// Far more than any credit at once.
const TOTAL: usize = 300_000;
const CHUNK: usize = 3000;

struct Packet {
    from: u32,
    to: u32,
    op: u16,
    flags: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
    slot: usize,
    len: usize,
}

struct Socket {
    rx: Queue,
    tx: Queue,
    buffers: Piece,
    heads: [u16; BUFFERS],
    packet: Piece,
    our_port: u32,
    host_port: u32,
    taken: u32,
    sent: u32,
    host_room: u32,
    host_taken: u32,
}

impl Socket {
    fn offer(&mut self, slot: usize) {
        self.heads[slot] = self.rx.put(&[takes(self.buffers, slot * BUFFER_BYTES, BUFFER_BYTES)]);
        self.rx.kick();
    }

    fn send(&mut self, op: u16, flags: u32, len: usize) -> Result<(), Wrong> {
        let packet = self.packet;
        packet.write(0, CID as u32);
        packet.write(4, 0u32);
        packet.write(8, HOST as u32);
        packet.write(12, 0u32);
        packet.write(16, self.our_port);
        packet.write(20, self.host_port);
        packet.write(24, len as u32);
        packet.write(28, STREAM);
        packet.write(30, op);
        packet.write(32, flags);
        packet.write(36, ROOM);
        packet.write(40, self.taken);
        let header = gives(packet, 0, HEADER_BYTES);
        if len == 0 {
            self.tx.ask(&[header])?;
        } else {
            self.tx.ask(&[header, gives(packet, HEADER_BYTES, len)])?;
        }
        self.sent = self.sent.wrapping_add(len as u32);
        Ok(())
    }

    /// The next packet of this connection; its buffer is to be offered again.
    fn receive(&mut self) -> Result<Packet, Wrong> {
        let used = self.rx.wait()?;
        let slot = self.heads.iter().position(|head| *head == used.head);
        let slot = slot.ok_or(Wrong { what: "a packet nowhere", value: used.head.into() })?;
        let (b, at) = (self.buffers, slot * BUFFER_BYTES);
        let len = b.read::<u32>(at + 24) as usize;
        ensure(used.written as usize == HEADER_BYTES + len, "another length", used.written.into())?;
        let cids = (b.read::<u32>(at), b.read::<u32>(at + 8));
        ensure(cids == (HOST as u32, CID as u32), "another address", cids.1.into())?;
        let packet = Packet {
            from: b.read(at + 16),
            to: b.read(at + 20),
            op: b.read(at + 30),
            flags: b.read(at + 32),
            buf_alloc: b.read(at + 36),
            fwd_cnt: b.read(at + 40),
            slot,
            len,
        };
        (self.host_room, self.host_taken) = (packet.buf_alloc, packet.fwd_cnt);
        Ok(packet)
    }

    fn room(&self) -> usize {
        let on_its_way = self.sent.wrapping_sub(self.host_taken);
        self.host_room.saturating_sub(on_its_way) as usize
    }
}

fn byte(at: usize) -> u8 {
    (at * 5 + at / 251) as u8
}

/// Sends [`TOTAL`] bytes and takes as many back.
fn echo(socket: &mut Socket) -> Result<(), Wrong> {
    let (mut given, mut came) = (0, 0);
    while came < TOTAL {
        let len = CHUNK.min(TOTAL - given).min(socket.room());
        if len > 0 {
            for at in 0..len {
                socket.packet.write(HEADER_BYTES + at, byte(given + at));
            }
            socket.send(DATA, 0, len)?;
            given += len;
            // What has come meanwhile waits in its buffers; they are few, so that is looked at now and then.
            if given - came < CHUNK * 2 && given < TOTAL {
                continue;
            }
        }
        let packet = socket.receive()?;
        match packet.op {
            DATA => {
                let at = packet.slot * BUFFER_BYTES + HEADER_BYTES;
                let wrong = socket.buffers.differs(at, packet.len, |at| byte(came + at));
                ensure(wrong.is_none(), "other bytes", came as u64)?;
                came += packet.len;
                socket.taken = socket.taken.wrapping_add(packet.len as u32);
                socket.offer(packet.slot);
                socket.send(CREDIT, 0, 0)?;
            }
            CREDIT => socket.offer(packet.slot),
            CREDIT_PLEASE => {
                socket.offer(packet.slot);
                socket.send(CREDIT, 0, 0)?;
            }
            op => return Err(Wrong { what: "a strange packet", value: op.into() }),
        }
    }
    Ok(())
}

/// The host shall end a connection that we have shut down.
fn ends(socket: &mut Socket) -> Result<(), Wrong> {
    socket.send(SHUTDOWN, 3, 0)?;
    loop {
        let packet = socket.receive()?;
        socket.offer(packet.slot);
        match packet.op {
            RESET => return Ok(()),
            CREDIT | CREDIT_PLEASE | SHUTDOWN => {}
            op => return Err(Wrong { what: "a packet after the end", value: op.into() }),
        }
    }
}

pub fn check(check: &mut Check) -> Result<(), Wrong> {
    for learns in [Learns::Polls, Learns::Interrupted] {
        let device = Device::open(KIND, 0, 0, learns)?;
        let cid: u64 = device.config(0);
        ensure(cid == CID, "another address", cid)?;
        let (rx, tx, _events) = (device.queue(0, 16)?, device.queue(1, 16)?, device.queue(2, 4)?);
        device.begin()?;
        let mut socket = Socket {
            rx,
            tx,
            buffers: Piece::take(BUFFERS * BUFFER_BYTES),
            heads: [u16::MAX; BUFFERS],
            packet: Piece::take(HEADER_BYTES + CHUNK),
            our_port: OUR_PORT,
            host_port: HOST_PORT + 1,
            taken: 0,
            sent: 0,
            host_room: 0,
            host_taken: 0,
        };
        (0..BUFFERS).for_each(|slot| socket.offer(slot));
        socket.send(REQUEST, 0, 0)?;
        let packet = socket.receive()?;
        ensure(packet.op == RESET, "somebody is where nobody listens", packet.op.into())?;
        socket.offer(packet.slot);
        check.done("is refused");

        socket.host_port = HOST_PORT;
        socket.send(REQUEST, 0, 0)?;
        let packet = socket.receive()?;
        ensure(packet.op == RESPONSE, "no answer to a call", packet.op.into())?;
        ensure((packet.from, packet.to) == (HOST_PORT, OUR_PORT), "other ports", packet.to.into())?;
        socket.offer(packet.slot);
        echo(&mut socket)?;
        ends(&mut socket)?;
        check.done("calls");

        (socket.taken, socket.sent) = (0, 0);
        let packet = socket.receive()?;
        ensure(packet.op == REQUEST && packet.to == CALLED_PORT, "no call", packet.op.into())?;
        ensure(packet.flags == 0, "strange flags", packet.flags.into())?;
        socket.offer(packet.slot);
        (socket.our_port, socket.host_port) = (CALLED_PORT, packet.from);
        socket.send(RESPONSE, 0, 0)?;
        let mut packet = socket.receive()?;
        while packet.op != DATA {
            ensure(packet.op == CREDIT, "no line", packet.op.into())?;
            socket.offer(packet.slot);
            packet = socket.receive()?;
        }
        let len = packet.len.min(CHUNK);
        for at in 0..len {
            let byte: u8 = socket.buffers.read(packet.slot * BUFFER_BYTES + HEADER_BYTES + at);
            socket.packet.write(HEADER_BYTES + at, byte.to_ascii_uppercase());
        }
        socket.taken += packet.len as u32;
        socket.offer(packet.slot);
        socket.send(DATA, 0, len)?;
        ends(&mut socket)?;
        check.done("is called");
        device.reset()?;
    }
    Ok(())
}
