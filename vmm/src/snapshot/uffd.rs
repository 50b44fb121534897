//! Userfaultfd (Linux, Documentation/admin-guide/mm/userfaultfd.rst): pages of a mapping that are put there when somebody touches them.
//!
//! Whoever touches a page that is missing, a thread of ours or KVM for the guest, waits until the page is put there. Faults in the kernel
//! must be served too, because KVM touches the guest's memory there; that needs CAP_SYS_PTRACE, the right to open /dev/userfaultfd, or
//! the sysctl `vm.unprivileged_userfaultfd`. Closing the descriptor lets everybody go who waits.
//!
//! A descriptor is of the memory of the process that makes it: a sandboxed machine has it made in its own process ([`Faults`]), before its
//! rights are given up. What is done with it later is on the lists of system calls by the numbers below.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::memory::PAGE_BYTES;
use crate::machine::memory::Memory;

// From <linux/userfaultfd.h>. The numbers of ioctls are made of direction, size and name.
const API: u64 = 0xaa;
const NEW: u32 = 0x0000_aa00;
/// UFFDIO_API.
pub(crate) const HANDSHAKE: u32 = 0xc018_aa3f;
/// UFFDIO_REGISTER.
pub(crate) const REGISTER: u32 = 0xc020_aa00;
/// UFFDIO_UNREGISTER.
pub(crate) const UNREGISTER: u32 = 0x8010_aa01;
/// UFFDIO_WAKE.
pub(crate) const WAKE: u32 = 0x8010_aa02;
/// UFFDIO_COPY.
pub(crate) const COPY: u32 = 0xc028_aa03;
/// UFFDIO_ZEROPAGE.
pub(crate) const ZERO: u32 = 0xc020_aa04;
/// Missing pages of shared memory are told of.
const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const MODE_MISSING: u64 = 1 << 0;
const EVENT_FAULT: u8 = 0x12;
/// Bytes of a message; a fault's address is at 16.
const MESSAGE_BYTES: usize = 32;
const ADDRESS_AT: usize = 16;
/// Messages taken at a time: no more threads than these touch memory at once, as a rule.
const MESSAGES: usize = 16;

#[repr(C)]
struct Handshake {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct CopyArguments {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    /// Bytes copied, or the error below zero.
    copied: i64,
}

#[repr(C)]
struct ZeroArguments {
    range: Range,
    mode: u64,
    zeroed: i64,
}

/// A descriptor that no memory is registered with yet, of this process.
#[derive(Debug)]
pub struct Faults(OwnedFd);

impl Faults {
    /// Makes one.
    ///
    /// # Errors
    /// The kernel does not have it, or this process may not.
    pub fn open() -> io::Result<Self> {
        open().map(Self)
    }
}

/// A part of a memory's file and where this process has it.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Where it is in the file.
    offset: u64,
    host: u64,
    len: u64,
}

/// See the module.
pub(super) struct Uffd {
    file: File,
    places: Vec<Place>,
    /// The mapping is there for as long as it is registered.
    _memory: Memory,
}

impl Uffd {
    /// Has missing pages of a machine's memory told of here. To be called before anybody touches it.
    ///
    /// # Errors
    /// The kernel does not have it for such memory.
    pub(super) fn register(faults: Faults, memory: &Memory) -> io::Result<Self> {
        let file = File::from(faults.0);
        let mut hands = Handshake {
            api: API,
            features: FEATURE_MISSING_SHMEM,
            ioctls: 0,
        };
        // SAFETY: the structure is the one of this ioctl, and outlives the call.
        check(unsafe { libc::ioctl(file.as_raw_fd(), HANDSHAKE.into(), &raw mut hands) })?;
        let mut places = Vec::new();
        for region in memory.iter() {
            let offset = region.file_offset().map_or(0, |place| place.start());
            let place = Place {
                offset,
                host: region.as_ptr() as u64,
                len: region.len(),
            };
            let mut register = Register {
                range: Range {
                    start: place.host,
                    len: place.len,
                },
                mode: MODE_MISSING,
                ioctls: 0,
            };
            // SAFETY: the structure is the one of this ioctl, and outlives the call; the range is a mapping that lives as long as `self`.
            check(unsafe { libc::ioctl(file.as_raw_fd(), REGISTER.into(), &raw mut register) })?;
            places.push(place);
        }
        Ok(Self {
            file,
            places,
            _memory: memory.clone(),
        })
    }

    /// What becomes readable when somebody waits for a page.
    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Where in the memory's file somebody waits for pages; empty when nobody does.
    pub(super) fn faults(&self) -> io::Result<Vec<u64>> {
        let mut messages = [0; MESSAGES * MESSAGE_BYTES];
        let read = match (&self.file).read(&mut messages) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            other => other?,
        };
        let messages = messages[..read].chunks_exact(MESSAGE_BYTES);
        let faults = messages.filter(|message| message[0] == EVENT_FAULT);
        let offsets = faults.filter_map(|message| {
            let address = &message[ADDRESS_AT..ADDRESS_AT + 8];
            let address = u64::from_ne_bytes(address.try_into().expect("eight bytes"));
            let mut places = self.places.iter();
            let place =
                places.find(|place| (place.host..place.host + place.len).contains(&address));
            place.map(|place| place.offset + (address - place.host))
        });
        Ok(offsets.collect())
    }

    /// Where a range of the file is mapped; ranges do not cross from one part to the next, because parts are whole blocks.
    fn host(&self, offset: u64, len: u64) -> io::Result<u64> {
        let place = self.places.iter().find(|place| {
            let end = offset.checked_add(len);
            place.offset <= offset && end.is_some_and(|end| end <= place.offset + place.len)
        });
        let place = place.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(place.host + (offset - place.offset))
    }

    /// Puts pages there, all that are missing; those that are there stay as they are. Whoever waited for them goes on.
    pub(super) fn fill(&self, offset: u64, pages: &[u8]) -> io::Result<()> {
        let host = self.host(offset, pages.len() as u64)?;
        let mut done = 0;
        while done < pages.len() {
            let mut copy = CopyArguments {
                to: host + done as u64,
                from: pages[done..].as_ptr() as u64,
                len: (pages.len() - done) as u64,
                mode: 0,
                copied: 0,
            };
            // SAFETY: the structure is the one of this ioctl; the source has so many bytes, and the target is a registered mapping.
            let result = check(unsafe { libc::ioctl(self.fd(), COPY.into(), &raw mut copy) });
            match result {
                Ok(()) => return Ok(()),
                // As far as a page that is there, or that somebody else is just putting there.
                Err(_) if copy.copied > 0 => done += copy.copied as usize,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EEXIST) => {
                        self.wake(host + done as u64)?;
                        done += PAGE_BYTES;
                    }
                    Some(libc::EAGAIN) => {}
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// Puts a page of zeros at `offset`, if none is there.
    pub(super) fn zero(&self, offset: u64) -> io::Result<()> {
        let host = self.host(offset, PAGE_BYTES as u64)?;
        loop {
            let mut zero = ZeroArguments {
                range: Range {
                    start: host,
                    len: PAGE_BYTES as u64,
                },
                mode: 0,
                zeroed: 0,
            };
            // SAFETY: the structure is the one of this ioctl, and the range is a registered mapping.
            match check(unsafe { libc::ioctl(self.fd(), ZERO.into(), &raw mut zero) }) {
                Ok(()) => return Ok(()),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EEXIST) => return self.wake(host),
                    Some(libc::EAGAIN) => {}
                    _ => return Err(error),
                },
            }
        }
    }

    /// Lets those go on who wait for a page that somebody else has put there.
    fn wake(&self, host: u64) -> io::Result<()> {
        let mut range = Range {
            start: host,
            len: PAGE_BYTES as u64,
        };
        // SAFETY: the structure is the one of this ioctl, and outlives the call.
        check(unsafe { libc::ioctl(self.fd(), WAKE.into(), &raw mut range) })
    }

    /// From now on, missing pages are zeros as ever.
    pub(super) fn unregister(&self) -> io::Result<()> {
        for place in &self.places {
            let mut range = Range {
                start: place.host,
                len: place.len,
            };
            // SAFETY: the structure is the one of this ioctl, and outlives the call.
            check(unsafe { libc::ioctl(self.fd(), UNREGISTER.into(), &raw mut range) })?;
        }
        Ok(())
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// By the system call, or else by the device, which may be given to users who lack the capability.
fn open() -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: no pointers; the result is checked before it is used.
    let mut fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    if fd < 0 {
        let refused = io::Error::last_os_error();
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/userfaultfd");
        let device = device.map_err(|_| refused)?;
        // SAFETY: this ioctl takes flags and no pointer; the result is checked before it is used.
        fd = unsafe { libc::ioctl(device.as_raw_fd(), NEW.into(), flags) }.into();
    }
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was made just now and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::machine::memory;

    #[test]
    fn pages_come_when_they_are_touched() {
        let memory = memory::create(64).expect("memory");
        let uffd = match Faults::open().and_then(|faults| Uffd::register(faults, &memory)) {
            Ok(uffd) => uffd,
            Err(error) => {
                eprintln!("no userfaultfd here ({error}): nothing to test");
                return;
            }
        };
        assert!(uffd.faults().expect("nobody waits").is_empty());
        let reader = memory.clone();
        let thread = std::thread::spawn(move || {
            let read = |at| reader.read_obj::<u8>(GuestAddress(at)).expect("memory");
            (read(0x5001), read(0x9000))
        });
        let fault = || loop {
            if let Some(at) = uffd.faults().expect("readable").first() {
                break *at;
            }
            std::thread::yield_now();
        };
        assert_eq!(fault() & !0xfff, 0x5000);
        // The page that is waited for is the second of two.
        uffd.fill(0x4000, &[7; 2 * PAGE_BYTES]).expect("filled");
        assert_eq!(fault() & !0xfff, 0x9000);
        uffd.zero(0x9000).expect("zeroed");
        assert_eq!(thread.join().expect("no panic"), (7, 0));
        // What is there stays as it is, and what is missing around it comes.
        memory.write_obj(9u8, GuestAddress(0x9000)).expect("memory");
        uffd.fill(0x8000, &[5; 3 * PAGE_BYTES]).expect("filled");
        let read = |at| memory.read_obj::<u8>(GuestAddress(at)).expect("memory");
        assert_eq!((read(0x8000), read(0x9000), read(0xa000)), (5, 9, 5));
        assert!(uffd.fill(64 << 20, &[0; PAGE_BYTES]).is_err());
        uffd.unregister().expect("unregistered");
        assert_eq!(
            memory
                .read_obj::<u8>(GuestAddress(0x2_0000))
                .expect("memory"),
            0
        );
    }
}
