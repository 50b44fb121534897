//! A guest that goes on from a snapshot calls programs of its host as before, through whoever is left at the desk.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::packet::{HEADER_BYTES, HOST_CID, Header, STREAM, op};
use super::{RX, TX, Vsock, VsockSpec};
use crate::sandbox::door::{Clerk, Desk};
use crate::virtio::hostile::{BUFFERS, Descriptor, Driver, WRITE};
use crate::virtio::state::DeviceState;

const CID: u32 = 3;
const GUEST_PORT: u32 = 52;
const PORT: u32 = 0x0102;
/// Where the guest's packet is, and where the answer goes.
const CALL: u64 = BUFFERS;
const ANSWER: u64 = BUFFERS + 0x100;

/// What the outer process does with a request: it hands in one end of a connection. The request, and the program's end.
fn hand_in(mut machine: &UnixStream) -> ([u8; 5], UnixStream) {
    let mut asked = [0; 5];
    machine.read_exact(&mut asked).expect("a request");
    let (ours, program) = UnixStream::pair().expect("sockets");
    let done = 0i32.to_le_bytes();
    let sent = machine.send_with_fd(&done[..], ours.as_raw_fd());
    sent.expect("the machine waits for it");
    (asked, program)
}

#[test]
fn a_guest_that_goes_on_calls_through_the_desk() {
    let folder = tempfile::tempdir().expect("a folder");
    let spec = VsockSpec {
        cid: CID,
        socket: folder.path().join("agent"),
    };
    let desk = Desk::default();
    let vsock = Vsock::new(&spec).expect("a socket");
    let mut driver = Driver::new(Box::new(vsock.with_desk(desk.clone())));
    let memory = driver.memory().clone();
    let taken_up = driver.device().restore(DeviceState::Nothing, &memory);
    taken_up.expect("it is of such a device");
    let (near, outer) = UnixStream::pair().expect("sockets");
    desk.leave(&Clerk::new(near));
    let outer = std::thread::spawn(move || hand_in(&outer));

    driver.start(0, u32::MAX).expect("all its queues are there");
    let call = Header {
        src_cid: CID.into(),
        dst_cid: HOST_CID,
        src_port: GUEST_PORT,
        dst_port: PORT,
        kind: STREAM,
        op: op::REQUEST,
        buf_alloc: 4096,
        ..Header::default()
    };
    driver.write(CALL, &call.bytes());
    for (queue, at, flags) in [(RX, ANSWER, WRITE), (TX, CALL, 0)] {
        let descriptor = Descriptor {
            at,
            len: HEADER_BYTES as u32,
            flags,
            next: 0,
        };
        driver.describe(queue, 0, descriptor);
        driver.publish(queue, 0);
    }
    driver.kick(TX);
    let (asked, _program) = outer.join().expect("no panic");
    assert_eq!(asked, [1, 2, 1, 0, 0], "a program, by its port");

    // It finishes what it is at before it comes to rest.
    driver.stop();
    assert_eq!(driver.used(RX), 1);
    let content = driver.content();
    let answer = &content[ANSWER as usize..][..HEADER_BYTES];
    let answer = Header::parse(answer.try_into().expect("a header"));
    assert_eq!(answer.op, op::RESPONSE);
    assert_eq!((answer.src_port, answer.dst_port), (PORT, GUEST_PORT));
}
