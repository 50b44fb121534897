//! The host's side: a Unix socket where programs call the guest, and those that the guest calls.
//!
//! A program connects to the socket and says `CONNECT PORT` and a line feed; `OK` with the number of its own port is the answer, and the
//! end of the connection is a refusal. The guest's call to a port goes to the socket whose name is this one's, with `_` and the port
//! behind it. (Both as Firecracker and Cloud Hypervisor have it, so that their clients work.)

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::Stream;
use super::table::Host;
use crate::sandbox::door::Desk;
use crate::threads;

/// Programs that have come and not said yet whom they call; the oldest makes room for one more.
const CALLERS_MAX: usize = 16;
/// Bytes of the longest line: ten digits of a port.
const LINE_BYTES_MAX: usize = "CONNECT 4294967295\n".len();
/// Events taken from the kernel at a time.
const EVENTS: usize = 64;

struct Caller {
    stream: UnixStream,
    line: Vec<u8>,
}

/// What a caller has said.
enum Heard {
    /// Not all of it yet.
    Nothing,
    /// The port it calls.
    Port(u32),
    /// It is gone, or speaks something else.
    Nonsense,
}

/// See the module.
pub(super) struct Sockets {
    path: PathBuf,
    /// Who connects to those that the guest calls, where this process cannot.
    pub(super) desk: Desk,
    listener: UnixListener,
    callers: VecDeque<Caller>,
    /// Readable when any of the sockets has something, so that the device waits for one descriptor.
    events: Epoll,
}

impl Stream for UnixStream {
    fn end_writes(&mut self) {
        // Fails only if the other end is gone, which is seen elsewhere.
        let _ = self.shutdown(std::net::Shutdown::Write);
    }
}

impl Sockets {
    /// Makes the socket anew.
    pub(super) fn listen(path: &Path) -> io::Result<Self> {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let events = Epoll::new()?;
        let readable = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        events.ctl(ControlOperation::Add, listener.as_raw_fd(), readable)?;
        Ok(Self {
            path: path.to_owned(),
            desk: Desk::default(),
            listener,
            callers: VecDeque::new(),
            events,
        })
    }

    /// Connects without anybody's help.
    fn dial(&self, port: u32) -> Option<UnixStream> {
        // Confined threads make no sockets.
        if threads::are_confined() {
            return None;
        }
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        let address = SocketAddrUnix::new(path.as_os_str()).ok()?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
        // Does not wait: a service whose queue of callers is full is as one that is not there.
        rustix::net::connect(&socket, &address).ok()?;
        Some(UnixStream::from(socket))
    }

    /// Something to wait for.
    pub(super) fn events(&self) -> RawFd {
        self.events.as_raw_fd()
    }

    fn watch(&self, stream: &UnixStream) -> io::Result<()> {
        let both = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        let event = EpollEvent::new(both, 0);
        self.events
            .ctl(ControlOperation::Add, stream.as_raw_fd(), event)
    }

    /// Takes what has happened, then calls that have come: `call` gets each with its port.
    pub(super) fn take(&mut self, mut call: impl FnMut(u32, UnixStream)) {
        let mut told = [EpollEvent::default(); EVENTS];
        // Told once each: there are fewer sockets than this loop takes in a few rounds.
        while self
            .events
            .wait(0, &mut told)
            .is_ok_and(|count| count == EVENTS)
        {}
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_err() || self.watch(&stream).is_err() {
                continue;
            }
            if self.callers.len() >= CALLERS_MAX {
                self.callers.pop_front();
            }
            let line = Vec::new();
            self.callers.push_back(Caller { stream, line });
        }
        for mut caller in std::mem::take(&mut self.callers) {
            match caller.hear() {
                Heard::Nothing => self.callers.push_back(caller),
                Heard::Port(port) => call(port, caller.stream),
                Heard::Nonsense => {}
            }
        }
    }
}

impl Caller {
    /// Reads the line and nothing behind it: that is for the guest.
    fn hear(&mut self) -> Heard {
        let mut byte = [0];
        while self.line.len() < LINE_BYTES_MAX {
            match self.stream.read(&mut byte) {
                Ok(1) => self.line.push(byte[0]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Heard::Nothing,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                _ => return Heard::Nonsense,
            }
            if byte == *b"\n" {
                break;
            }
        }
        port(&self.line).map_or(Heard::Nonsense, Heard::Port)
    }
}

/// The port of a whole line.
fn port(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?.strip_suffix(b"\n")?;
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(digits).ok().filter(|_| is_number)?;
    text.parse().ok()
}

impl Host for Sockets {
    type Stream = UnixStream;

    fn connect(&mut self, port: u32) -> Option<UnixStream> {
        let stream = match self.desk.clerk() {
            Some(clerk) => clerk.call(port).ok()?,
            None => self.dial(port)?,
        };
        stream.set_nonblocking(true).ok()?;
        self.watch(&stream).ok()?;
        Some(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_a_port_and_nothing_else_does() {
        assert_eq!(port(b"CONNECT 52\n"), Some(52));
        assert_eq!(port(b"CONNECT 4294967295\n"), Some(u32::MAX));
        for wrong in [
            &b"CONNECT 4294967296\n"[..],
            b"CONNECT -1\n",
            b"CONNECT +1\n",
            b"CONNECT \n",
            b"CONNECT 1",
            b"connect 1\n",
            b"CONNECT 1 \n",
            b"",
        ] {
            assert_eq!(port(wrong), None, "{wrong:?}");
        }
    }
}
