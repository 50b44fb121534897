//! The thread that a device works on: it waits for kicks and other events, and ends with its state when it is told to.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::threads::{self, Role};

/// Events taken from the kernel at a time.
const EVENTS: usize = 16;
/// Stands for being told to end.
const STOP: u64 = u64::MAX;

/// What happens on the thread.
pub trait Handler: Send + 'static {
    /// What the thread may do in a sandbox.
    const ROLE: Role = Role::Device;

    /// The descriptor that was given with `token` has become readable (or hung up). It is told once: all that is there must be taken now,
    /// or be taken for another reason later. An event need not be read.
    fn ready(&mut self, token: u64);
}

/// See the module.
pub struct Worker<H> {
    stop: EventFd,
    thread: JoinHandle<H>,
}

impl<H: Handler> Worker<H> {
    /// Runs `handler` on a thread called `name`, for these descriptors. `begin` runs on it first.
    ///
    /// # Errors
    /// No thread or descriptor is to be had.
    pub fn spawn(name: &str, handler: H, waits: &[(RawFd, u64)]) -> io::Result<Self> {
        let stop = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)?;
        let epoll = Epoll::new()?;
        let stopping = (stop.as_raw_fd(), STOP);
        for (fd, token) in waits.iter().chain([&stopping]) {
            let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, *token);
            epoll.ctl(ControlOperation::Add, *fd, event)?;
        }
        let thread = threads::spawn(H::ROLE, name, move || run(&epoll, handler))?;
        Ok(Self { stop, thread })
    }

    /// Ends the thread; its handler comes back.
    pub fn stop(self) -> H {
        // One write to a new event cannot fail.
        let _ = self.stop.write(1);
        match self.thread.join() {
            Ok(handler) => handler,
            // A defect of ours; its thread has told where.
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn run<H: Handler>(epoll: &Epoll, mut handler: H) -> H {
    let mut events = [EpollEvent::default(); EVENTS];
    loop {
        let count = match epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                tracing::error!(%error, "a device's thread cannot wait");
                return handler;
            }
        };
        for event in &events[..count] {
            if event.data() == STOP {
                return handler;
            }
            handler.ready(event.data());
        }
    }
}
