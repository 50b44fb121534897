//! Events of a queue, as descriptors that the front-end gave: kicks come in, calls go out.
//!
//! A descriptor from elsewhere could be of anything, such as a file of a file system that its owner serves and whose operations never
//! end. So only eventfds are taken, kicks are waited for without ever being read, and calls are written without waiting.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

/// Takes a descriptor if it is an eventfd.
pub(crate) fn check_eventfd(fd: OwnedFd) -> Option<OwnedFd> {
    // What the kernel calls it. Any operation on the descriptor itself could be somebody else's.
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let name = rustix::fs::readlink(link, Vec::new()).ok()?;
    if name.as_bytes() != b"anon_inode:[eventfd]" {
        return None;
    }
    let flags = fcntl_getfl(&fd).ok()?;
    fcntl_setfl(&fd, flags | OFlags::NONBLOCK).ok()?;
    Some(fd)
}

/// The event by which a queue tells that something is in its used ring. It may be changed while the queue works.
#[derive(Default)]
pub(crate) struct Call(Mutex<Option<OwnedFd>>);

impl Call {
    /// From now on this one. What was told through the one before may not have been heard, so it is told again.
    pub(crate) fn set(&self, event: Option<OwnedFd>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = event;
        self.ring();
    }

    pub(crate) fn ring(&self) {
        let event = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(event) = &*event else { return };
        // Its owner may have made it wait again when it is full. Full is as good as rung.
        let mut ready = [PollFd::new(event, PollFlags::OUT)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if matches!(poll(&mut ready, Some(&now)), Ok(1)) {
            let _ = rustix::io::write(event, &1u64.to_ne_bytes());
        }
    }
}

/// An event of our own: raised once, it stays.
#[derive(Debug)]
pub(crate) struct Stop(OwnedFd);

impl Stop {
    pub(crate) fn new() -> Result<Self, Errno> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Self)
    }

    pub(crate) fn raise(&self) {
        // Fails only if it is full, and then it is raised.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Why waiting ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    Kicked,
    Stopped,
}

/// Waits for kicks, or for being told to stop.
pub(crate) struct Waiter {
    epoll: OwnedFd,
}

impl Waiter {
    const KICK: u64 = 0;
    const STOP: u64 = 1;

    pub(crate) fn new(kick: impl AsFd, stop: &Stop) -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64;
        // Edges, so that a kick need not be read: every write to an eventfd is one.
        let edges = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, kick, data(Self::KICK), edges)?;
        epoll::add(&epoll, stop, data(Self::STOP), epoll::EventFlags::IN)?;
        Ok(Self { epoll })
    }

    pub(crate) fn wait(&self) -> Woken {
        let mut events = Vec::with_capacity(2);
        loop {
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) if events.iter().any(|event| event.data.u64() == Self::STOP) => {
                    return Woken::Stopped;
                }
                Ok(_) => return Woken::Kicked,
                Err(Errno::INTR) => events.clear(),
                Err(error) => {
                    tracing::error!(%error, "a queue's thread cannot wait");
                    return Woken::Stopped;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn event() -> OwnedFd {
        eventfd(0, EventfdFlags::CLOEXEC).unwrap()
    }

    #[test]
    fn only_eventfds_are_taken() {
        assert!(check_eventfd(event()).is_some());
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(check_eventfd(null.into()).is_none());
        let (pipe, _end) = std::io::pipe().unwrap();
        assert!(check_eventfd(pipe.into()).is_none());
    }

    #[test]
    fn every_kick_wakes_and_none_is_read() {
        let (kick, stop) = (event(), Stop::new().unwrap());
        let waiter = Waiter::new(&kick, &stop).unwrap();
        for _ in 0..3 {
            rustix::io::write(&kick, &1u64.to_ne_bytes()).unwrap();
            assert_eq!(waiter.wait(), Woken::Kicked);
        }
        stop.raise();
        assert_eq!(waiter.wait(), Woken::Stopped);
    }

    #[test]
    fn a_call_that_is_full_does_not_wait() {
        let full = event();
        rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let call = Call::default();
        call.ring();
        call.set(Some(full));
        call.ring();
    }
}
