//! A tap interface: packets with the headers that virtio uses too.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;

use super::card::HEADER_BYTES;

/// Longest interface name, without its final zero.
const NAME_BYTES_MAX: usize = libc::IFNAMSIZ - 1;

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The name.
    #[error("{0:?} is no interface name: 1 to {NAME_BYTES_MAX} bytes")]
    Name(String),
    /// The kernel refuses.
    #[error("tap {name}: {step}")]
    Io {
        /// Its name.
        name: String,
        /// What was tried.
        step: &'static str,
        /// Why not.
        source: io::Error,
    },
}

// From <linux/if_tun.h>; the offsets of ioctls are the same on all 64-bit architectures that this runs on.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUN_F_CSUM: libc::c_uint = 1;
const TUN_F_TSO4: libc::c_uint = 2;
const TUN_F_TSO6: libc::c_uint = 4;

/// An open tap, without blocking.
pub struct Tap {
    file: File,
    /// The kernel is at the other end.
    is_tap: bool,
}

/// The descriptor that stands in the place of an interface's name, as `fd=N`. `None`: it is a name.
pub fn inherited(tap: &str) -> Option<RawFd> {
    let number = tap.strip_prefix("fd=")?.parse::<RawFd>().ok();
    number.filter(|number| *number > libc::STDERR_FILENO)
}

impl Tap {
    /// Takes over the tap that whoever started this process has opened as descriptor `number`. Nobody else here may have it: it is to be
    /// seen that it is open before this process opens anything.
    ///
    /// # Errors
    /// It is not open, or no tap.
    pub fn take_over(number: RawFd) -> Result<Self, TapError> {
        let failed = |step| {
            move |source| TapError::Io {
                name: format!("fd={number}"),
                step,
                source,
            }
        };
        // SAFETY: no memory; a number that is no descriptor is refused.
        check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })
            .map_err(failed("take it over"))?;
        // SAFETY: it is open, and whoever handed it in keeps to it that nobody else here has it.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        Self::from_fd(fd).map_err(failed("set its headers"))
    }

    /// Opens the tap `name`, or makes it if this process may.
    ///
    /// # Errors
    /// The name is wrong, or the kernel refuses.
    pub fn open(name: &str) -> Result<Self, TapError> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(TapError::Name(name.into()));
        }
        let failed = |step| {
            move |source| TapError::Io {
                name: name.into(),
                step,
                source,
            }
        };
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(failed("open /dev/net/tun"))?;
        // SAFETY: a structure of integers and bytes, for which zeros are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags =
            (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        // SAFETY: the request is of the type that this call reads and writes.
        check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) })
            .map_err(failed("attach to it"))?;
        let tap = Self { file, is_tap: true };
        tap.set_header().map_err(failed("set its headers"))?;
        Ok(tap)
    }

    /// Takes over a tap that somebody else has opened.
    ///
    /// # Errors
    /// It is no tap.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: no memory; the descriptor is open.
        check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) })?;
        let file = fd.into();
        let tap = Self { file, is_tap: true };
        tap.set_header()?;
        Ok(tap)
    }

    /// One end of a wire in place of a tap, and the other one, where tests are: sockets that keep packets apart and do not block.
    pub(crate) fn wire() -> io::Result<(Self, UnixDatagram)> {
        let (ours, other) = UnixDatagram::pair()?;
        for socket in [&ours, &other] {
            socket.set_nonblocking(true)?;
        }
        let tap = Self {
            file: OwnedFd::from(ours).into(),
            is_tap: false,
        };
        Ok((tap, other))
    }

    fn set_header(&self) -> io::Result<()> {
        let bytes = HEADER_BYTES as libc::c_int;
        // SAFETY: the call reads one integer.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETVNETHDRSZ, &raw const bytes) })
    }

    /// Says what the guest takes unfinished.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_offloads(&self, csum: bool, tso4: bool, tso6: bool) -> io::Result<()> {
        let flag = |on: bool, flag| if on { flag } else { 0 };
        if !self.is_tap {
            return Ok(());
        }
        // Segmentation needs checksums.
        let flags = flag(csum, TUN_F_CSUM)
            | flag(csum && tso4, TUN_F_TSO4)
            | flag(csum && tso6, TUN_F_TSO6);
        // SAFETY: the argument is an integer.
        check(unsafe {
            libc::ioctl(
                self.file.as_raw_fd(),
                TUNSETOFFLOAD,
                libc::c_ulong::from(flags),
            )
        })
    }

    /// The next packet, header first; `None` if there is none now.
    pub fn read(&self, packet: &mut [u8]) -> Option<usize> {
        (&self.file)
            .read(packet)
            .ok()
            .filter(|len| *len > HEADER_BYTES)
    }

    /// Sends a packet, header first. One that the kernel does not take is lost, as on any wire.
    pub fn write(&self, packet: &[u8]) {
        let _ = (&self.file).write(packet);
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_in_the_place_of_a_name_is_told_apart() {
        assert_eq!(inherited("fd=7"), Some(7));
        for name in [
            "tap0",
            "fd=",
            "fd=x",
            "fd=2",
            "fd=-1",
            "fd",
            "fd=99999999999",
        ] {
            assert_eq!(inherited(name), None, "{name}");
        }
    }

    #[test]
    fn what_is_no_tap_is_not_taken_over() {
        let file = File::open("/dev/null").expect("it is everywhere");
        let number = OwnedFd::from(file);
        let number = std::os::fd::IntoRawFd::into_raw_fd(number);
        assert!(Tap::take_over(number).is_err());
    }
}
