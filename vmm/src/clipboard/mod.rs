//! The guest's clipboard: what was copied there for viewers, and what they paste for it. Text only.
//!
//! The guest's side is its agent (spice-vdagent, in every distribution), which has a port of the machine's to the host. Without one
//! that answers there is no clipboard, and what viewers paste is dropped. `agent` is its protocol; here is what is shared between the
//! port's thread and those of viewers.
//!
//! A text that the guest has copied is fetched at once, so that viewers never wait for a guest. Invariant: one text of each side is
//! kept, of [`TEXT_BYTES_MAX`] bytes at most; whatever a guest says, no more of it is kept.

mod agent;
mod chunks;

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::machine::bus::lock;
use agent::Agent;

/// The name by which the guest's agent finds its port.
pub const PORT_NAME: &str = "com.redhat.spice.0";

/// The longest text that is copied or pasted, bytes of UTF-8: a long document, and little enough to be kept for each viewer. A longer
/// one is dropped whole, as half a text is worse than none.
pub const TEXT_BYTES_MAX: usize = 256 << 10;

/// What the guest has copied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copied {
    /// Grows with each text.
    pub number: u64,
    /// The last one.
    pub text: Option<Arc<str>>,
}

#[derive(Default)]
struct State {
    agent: Agent,
    copied: Copied,
    /// Rings when there is something for the guest.
    bell: Option<EventFd>,
}

/// What a snapshot keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClipboardState {
    agent: Agent,
    /// What the guest has copied last.
    copied: Option<String>,
}

/// A state to which no guest can have led.
#[derive(Debug, thiserror::Error)]
#[error("a clipboard that makes no sense")]
pub struct ClipboardStateError;

type Watcher = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Called when there is something for viewers.
    watcher: Option<Watcher>,
}

/// See the module.
#[derive(Clone, Default)]
pub struct Clipboard(Arc<Shared>);

impl Clipboard {
    /// A clipboard that tells of what is new for viewers. The watcher may ask it.
    pub fn new(watcher: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            watcher: Some(Box::new(watcher)),
        }))
    }

    /// Whether an agent answers.
    pub fn is_ready(&self) -> bool {
        lock(&self.0.state).agent.is_ready()
    }

    /// What the guest has copied last.
    pub fn copied(&self) -> Copied {
        lock(&self.0.state).copied.clone()
    }

    /// A viewer's text for the guest, dropped if it is too long or no agent answers. What the guest itself has copied last is no news for
    /// it: viewers give back what they were given.
    pub fn paste(&self, text: &str) {
        let mut state = lock(&self.0.state);
        if text.len() > TEXT_BYTES_MAX || state.copied.text.as_deref() == Some(text) {
            return;
        }
        state.agent.offer(text);
        if let (true, Some(bell)) = (state.agent.has_bytes(), &state.bell) {
            // It fails only when 2^64 - 2 rings were not heard.
            let _ = bell.write(1);
        }
    }

    /// What rings when there is something for the guest; the port keeps it.
    ///
    /// # Errors
    /// There is none to be had.
    pub fn connect(&self) -> std::io::Result<RawFd> {
        let mut state = lock(&self.0.state);
        let bell = match state.bell.take() {
            Some(bell) => bell,
            None => EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        };
        let fd = bell.as_raw_fd();
        state.bell = Some(bell);
        Ok(fd)
    }

    /// The guest's program has opened its end, or has closed it: it begins anew.
    pub fn set_open(&self, open: bool) {
        lock(&self.0.state).agent = if open {
            Agent::opened()
        } else {
            Agent::default()
        };
    }

    /// Bytes from the guest.
    pub fn hear(&self, bytes: &[u8]) {
        let is_news = {
            let mut state = lock(&self.0.state);
            let was_ready = state.agent.is_ready();
            let copied = state.agent.hear(bytes);
            let is_news = copied.is_some() || state.agent.is_ready() != was_ready;
            if let Some(text) = copied {
                state.copied.number += 1;
                state.copied.text = Some(text.into());
            }
            is_news
        };
        if let (true, Some(watcher)) = (is_news, &self.0.watcher) {
            watcher();
        }
    }

    /// Takes bytes for the guest; how many there were.
    pub fn give(&self, room: &mut [u8]) -> usize {
        lock(&self.0.state).agent.give(room)
    }

    /// What both sides have said, for a snapshot.
    pub fn save(&self) -> ClipboardState {
        let state = lock(&self.0.state);
        ClipboardState {
            agent: state.agent.clone(),
            copied: state.copied.text.as_deref().map(str::to_owned),
        }
    }

    /// Goes on with it, when the guest's end is as open as it was. The text that the guest had copied is no news for viewers.
    ///
    /// # Errors
    /// No guest can have led to it, and nothing has changed.
    pub fn restore(&self, saved: ClipboardState) -> Result<(), ClipboardStateError> {
        let ClipboardState { agent, copied } = saved;
        let copied_bytes = copied.as_ref().map_or(0, String::len);
        {
            let mut state = lock(&self.0.state);
            let is_same = agent.is_open() == state.agent.is_open();
            if !is_same || !agent.is_sound() || copied_bytes > TEXT_BYTES_MAX {
                return Err(ClipboardStateError);
            }
            state.agent = agent;
            state.copied.text = copied.map(Arc::from);
        }
        // Whether an agent answers is news.
        if let Some(watcher) = &self.0.watcher {
            watcher();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::agent::clip;
    use super::agent::tests::{Guest, message};
    use super::*;

    fn talk(clipboard: &Clipboard, guest: &mut Guest) {
        let mut room = [0; 1000];
        loop {
            let len = clipboard.give(&mut room);
            if len == 0 {
                break;
            }
            guest.hear(&room[..len]);
        }
        clipboard.hear(&guest.said());
    }

    #[test]
    fn texts_go_both_ways_when_an_agent_answers() {
        let news = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&news);
        let clipboard = Clipboard::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let bell = clipboard.connect().expect("a bell");
        assert_eq!(clipboard.connect().expect("the same"), bell);
        clipboard.paste("nobody hears it");
        clipboard.set_open(true);
        let mut guest = Guest::default();
        talk(&clipboard, &mut guest);
        assert!(clipboard.is_ready());
        assert_eq!(news.load(Ordering::SeqCst), 1, "it is there");

        guest.copy("from the guest");
        for _ in 0..3 {
            talk(&clipboard, &mut guest);
        }
        let copied = clipboard.copied();
        assert_eq!(copied.text.as_deref(), Some("from the guest"));
        assert_eq!((copied.number, news.load(Ordering::SeqCst)), (1, 2));

        clipboard.paste("from the guest");
        talk(&clipboard, &mut guest);
        assert_eq!(guest.offers, 0, "it has that");
        clipboard.paste("from a viewer");
        talk(&clipboard, &mut guest);
        assert_eq!(guest.offers, 1);
        guest.paste();
        talk(&clipboard, &mut guest);
        talk(&clipboard, &mut guest);
        assert_eq!(guest.pasted.as_deref(), Some("from a viewer"));

        clipboard.set_open(false);
        assert!(!clipboard.is_ready());
        assert_eq!(clipboard.give(&mut [0; 100]), 0);
        // What is left of the last one's words is nobody's.
        clipboard.hear(&message(clip::RELEASE, &[0; 4]));
        assert_eq!(clipboard.copied(), copied);
    }

    #[test]
    fn both_sides_go_on_in_the_middle_of_a_word() {
        let before = Clipboard::default();
        before.set_open(true);
        let mut guest = Guest::default();
        talk(&before, &mut guest);
        guest.copy("from the guest");
        for _ in 0..3 {
            talk(&before, &mut guest);
        }
        before.paste("from a viewer");
        let mut room = [0; 9];
        let len = before.give(&mut room);
        guest.hear(&room[..len]);
        guest.paste();
        let said = guest.said();
        let (half, rest) = said.split_at(said.len() / 2);
        before.hear(half);

        let bytes = postcard::to_stdvec(&before.save()).expect("bytes");
        let saved = || postcard::from_bytes::<ClipboardState>(&bytes).expect("the same");
        let after = Clipboard::default();
        let refused = after.restore(saved());
        assert!(refused.is_err(), "the guest's end is not open");
        after.set_open(true);
        after.restore(saved()).expect("taken up");
        assert_eq!(after.save(), before.save());
        assert!(after.is_ready());
        let copied = after.copied();
        assert_eq!(copied.text.as_deref(), Some("from the guest"));
        assert_eq!(copied.number, 0, "it is no news");
        after.hear(rest);
        talk(&after, &mut guest);
        assert_eq!(guest.offers, 1);
        assert_eq!(guest.pasted.as_deref(), Some("from a viewer"));

        let mut long = saved();
        long.copied = Some("x".repeat(TEXT_BYTES_MAX + 1));
        assert!(after.restore(long).is_err());
    }

    #[test]
    fn a_text_that_is_too_long_is_dropped() {
        let clipboard = Clipboard::default();
        clipboard.set_open(true);
        let mut guest = Guest::default();
        talk(&clipboard, &mut guest);
        clipboard.paste(&"x".repeat(TEXT_BYTES_MAX + 1));
        talk(&clipboard, &mut guest);
        assert_eq!(guest.offers, 0);
        clipboard.paste(&"x".repeat(TEXT_BYTES_MAX));
        talk(&clipboard, &mut guest);
        guest.paste();
        talk(&clipboard, &mut guest);
        talk(&clipboard, &mut guest);
        assert_eq!(guest.pasted.map(|text| text.len()), Some(TEXT_BYTES_MAX));
    }
}
