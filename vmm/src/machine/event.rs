//! What ends or changes a machine from outside of its processors' threads.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use vmm_api::{Answer, Command};

/// Events that may wait; the machine's own thread takes them at once, and more than a few never come together.
const EVENTS_MAX: usize = 64;

/// Something that the machine's own thread must act on.
#[derive(Debug)]
pub enum Event {
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a reset, or fell over so hard that a PC would reset.
    Reset,
    /// A processor cannot go on.
    Failed(String),
    /// Somebody wants the machine to end now.
    Quit,
    /// Somebody asks for something, with the files that belong to it, and waits for the answer.
    Command(Command, Vec<OwnedFd>, SyncSender<Answer>),
}

/// Where events are put.
#[derive(Debug, Clone)]
pub struct Events(SyncSender<Event>);

impl Events {
    /// A way for events, and its end.
    pub fn new() -> (Self, Receiver<Event>) {
        let (sender, receiver) = sync_channel(EVENTS_MAX);
        (Self(sender), receiver)
    }

    /// Puts an event. When too many wait, one more changes nothing: what waits ends the machine already.
    pub fn put(&self, event: Event) {
        let _ = self.0.try_send(event);
    }
}
