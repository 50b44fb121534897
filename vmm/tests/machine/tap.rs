//! A network card on a tap in a network namespace of its own, where frames of the guest's type are sent back.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use vmm::virtio::net::{Net, Tap};

use crate::lab::Lab;

const NAME: &str = "guest0";
const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
/// The guest's frames, in network order.
const TYPE: u16 = 0x88b5;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn socket(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes integers.
    let fd = check(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: made just now, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn request() -> libc::ifreq {
    // SAFETY: a structure of integers and bytes, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn switch_on() -> io::Result<()> {
    let control = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    let mut request = request();
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is of the type that this call reads.
    check(unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) })?;
    Ok(())
}

/// A socket that hears the guest's frames on the tap.
fn listen() -> io::Result<OwnedFd> {
    let protocol = TYPE.to_be();
    let socket = socket(libc::AF_PACKET, libc::SOCK_RAW, protocol.into())?;
    let mut request = request();
    // SAFETY: the request is of the type that this call reads and writes.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut request) })?;
    // SAFETY: as above; the call has filled in this member.
    let mut place: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    place.sll_family = libc::AF_PACKET as u16;
    place.sll_protocol = protocol;
    // SAFETY: the call has filled in this member of the union.
    place.sll_ifindex = unsafe { request.ifr_ifru.ifru_ifindex };
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address is of that length and outlives the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const place).cast(), len) })?;
    let patience = libc::timeval {
        tv_sec: 1,
        tv_usec: 0,
    };
    let (option, len) = (
        &raw const patience,
        size_of::<libc::timeval>() as libc::socklen_t,
    );
    // SAFETY: as above.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            option.cast(),
            len,
        )
    })?;
    Ok(socket)
}

/// A tap that is on, and its other end, in a namespace that only this thread is in.
fn tap() -> Result<(Tap, OwnedFd), Box<dyn std::error::Error>> {
    // SAFETY: the call takes an integer.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    let tap = Tap::open(NAME)?;
    switch_on()?;
    Ok((tap, listen()?))
}

/// Sends frames back until nobody needs them any more.
fn echo(socket: &OwnedFd, ended: &std::sync::mpsc::Receiver<()>) {
    let mut frame = [0u8; 2048];
    let empty = std::sync::mpsc::TryRecvError::Empty;
    while ended.try_recv() == Err(empty) {
        // SAFETY: the buffer is that long.
        let len = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                0,
            )
        };
        let Ok(len @ 14..) = usize::try_from(len) else {
            continue;
        };
        // What we send ourselves comes back here too: only frames to the neighbour are sent back.
        if frame[..6] == [0x52, 0x54, 0, 9, 9, 9] {
            let (to, from) = frame.split_at_mut(6);
            to.copy_from_slice(&from[..6]);
            // SAFETY: as above.
            unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), len, 0) };
        }
    }
}

#[test]
fn frames_go_through_a_tap() {
    let Some(mut lab) = Lab::new() else { return };
    let made = std::thread::spawn(|| tap().map_err(|error| error.to_string()));
    let (tap, socket) = match made.join().unwrap() {
        Ok(made) => made,
        Err(error) => {
            eprintln!("SKIPPED: no tap in a network namespace ({error}): no frame was sent");
            return;
        }
    };
    lab.add("net", Net::new(MAC, tap, Default::default()));
    let (done, ended) = std::sync::mpsc::channel();
    let neighbour = std::thread::spawn(move || echo(&socket, &ended));
    let said = lab.run("net off");
    drop(done);
    neighbour.join().unwrap();
    said.has("CHECK net ok");
}
