//! Signals that end a machine.

use std::sync::{Arc, Mutex};

use anyhow::Result;
use vmm::machine::bus::lock;
use vmm::machine::event::{Event, Events};

/// SIGTERM and SIGINT end the machine that runs now.
pub(super) struct Signals(pub(super) Arc<Mutex<Option<Events>>>);

impl Signals {
    /// To be called before any other thread is there: they inherit that these signals do not reach them.
    pub(super) fn watch() -> Result<Self> {
        let running: Arc<Mutex<Option<Events>>> = Arc::default();
        // SAFETY: the set is initialised by the first call, and outlives the others.
        let set = unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            libc::sigaddset(&raw mut set, libc::SIGINT);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            set
        };
        let shared = Arc::clone(&running);
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                loop {
                    let mut signal = 0;
                    // SAFETY: both outlive the call.
                    unsafe { libc::sigwait(&raw const set, &raw mut signal) };
                    if let Some(events) = &*lock(&shared) {
                        events.put(Event::Quit);
                    }
                }
            })?;
        Ok(Self(running))
    }

    pub(super) fn end(&self, events: Events) {
        *lock(&self.0) = Some(events);
    }
}
