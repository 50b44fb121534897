//! Signals that end a machine.

use std::sync::{Arc, Mutex};

use vmm::machine::bus::lock;
use vmm::machine::event::{Event, Events};
use vmm::threads::{Role, Service};

/// Where the machine that runs now takes events.
#[derive(Default)]
struct Running {
    events: Option<Events>,
    /// A signal came when there was no machine.
    is_over: bool,
}

/// SIGTERM and SIGINT end the machine that runs now, or the one that is being made.
#[derive(Clone)]
pub(super) struct Signals {
    running: Arc<Mutex<Running>>,
    set: libc::sigset_t,
}

impl Signals {
    /// Holds them back. To be called before any other thread is there: they inherit that these signals do not reach them.
    pub(super) fn hold() -> Self {
        // SAFETY: the set is initialised by the first call, and outlives the others.
        let set = unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            libc::sigaddset(&raw mut set, libc::SIGINT);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            set
        };
        Self {
            running: Arc::default(),
            set,
        }
    }

    /// Who waits for them.
    pub(super) fn service(&self) -> Service {
        let Self { running, set } = self.clone();
        Service::new(Role::Signals, "signals", move || {
            loop {
                let mut signal = 0;
                // SAFETY: both outlive the call.
                unsafe { libc::sigwait(&raw const set, &raw mut signal) };
                let mut running = lock(&running);
                running.is_over = true;
                if let Some(events) = &running.events {
                    events.put(Event::Quit);
                }
            }
        })
    }

    /// From now on they end this machine.
    pub(super) fn end(&self, events: Events) {
        let mut running = lock(&self.running);
        if running.is_over {
            events.put(Event::Quit);
        }
        running.events = Some(events);
    }

    /// The machine that runs now.
    pub(super) fn machine(&self) -> Option<Events> {
        lock(&self.running).events.clone()
    }
}
