//! The host's side of the guest's agent: who has the clipboard, and its text. Bytes in, bytes out; no port, no viewers.
//!
//! ```text
//! agent opens its port:   capabilities ◄─► capabilities
//! something is copied:    GRAB ──► then REQUEST ◄── then CLIPBOARD ──►
//! a viewer pastes:        GRAB ◄── and, when it is wanted, REQUEST ──► CLIPBOARD ◄──
//! ```
//!
//! X has three clipboards; the one of Ctrl+C is told of, the one of marked text is not.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::TEXT_BYTES_MAX;
use super::chunks::{Message, Unpacker, pack};

/// Types of messages.
pub(super) mod clip {
    pub(crate) const CLIPBOARD: u32 = 4;
    pub(crate) const CAPABILITIES: u32 = 6;
    pub(crate) const GRAB: u32 = 7;
    pub(crate) const REQUEST: u32 = 8;
    #[cfg(test)]
    pub(crate) const RELEASE: u32 = 9;
}

/// Capabilities, by bit: clipboards are fetched when they are wanted, and it is told which of them is meant.
const BY_DEMAND: u32 = 1 << 5;
const SELECTION: u32 = 1 << 6;
/// What is copied: nothing, text.
const TYPE_NONE: u32 = 0;
const TYPE_TEXT: u32 = 1;
/// The clipboard of Ctrl+C.
const SELECTION_CLIPBOARD: u8 = 0;
/// Bytes that wait for the guest: two texts, one of which it is reading. One that asks for more without reading gets no answer.
const OUT_BYTES_MAX: usize = 2 * (TEXT_BYTES_MAX + 4096);

/// See the module. All of it goes into a snapshot: both ends may be in the middle of a word.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Agent {
    is_open: bool,
    unpacker: Unpacker,
    /// What the guest's agent can do, once it has said so.
    capabilities: Option<u32>,
    /// A text was asked for.
    is_asked: bool,
    /// A viewer's text that the guest may ask for.
    offered: Option<String>,
    out: VecDeque<u8>,
}

impl Agent {
    /// One that has just opened its port.
    pub(super) fn opened() -> Self {
        let mut agent = Self {
            is_open: true,
            ..Self::default()
        };
        agent.say_capabilities(true);
        agent
    }

    /// Whether its port is open.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Whether guest and viewers can have led to it: one of a snapshot may be anything.
    pub(super) fn is_sound(&self) -> bool {
        let offered = self.offered.as_ref().map_or(0, String::len);
        self.unpacker.is_sound()
            && offered <= TEXT_BYTES_MAX
            && self.out.len() <= OUT_BYTES_MAX
            && (self.is_open || *self == Self::default())
    }

    /// Whether it answers and can do what is needed.
    pub(super) fn is_ready(&self) -> bool {
        self.capabilities
            .is_some_and(|capabilities| capabilities & BY_DEMAND != 0)
    }

    /// Whether there is something for the guest.
    pub(super) fn has_bytes(&self) -> bool {
        !self.out.is_empty()
    }

    /// Takes bytes for the guest.
    pub(super) fn give(&mut self, room: &mut [u8]) -> usize {
        let len = room.len().min(self.out.len());
        for (to, from) in room.iter_mut().zip(self.out.drain(..len)) {
            *to = from;
        }
        len
    }

    fn say(&mut self, kind: u32, body: &[u8]) {
        let mut bytes = Vec::new();
        pack(kind, body, &mut bytes);
        if self.out.len() + bytes.len() <= OUT_BYTES_MAX {
            self.out.extend(bytes);
        }
    }

    fn say_capabilities(&mut self, request: bool) {
        let mut body = u32::from(request).to_le_bytes().to_vec();
        body.extend((BY_DEMAND | SELECTION).to_le_bytes());
        self.say(clip::CAPABILITIES, &body);
    }

    /// Says something about the clipboard.
    fn say_of_clipboard(&mut self, kind: u32, what: u32, text: &[u8]) {
        let mut body = Vec::with_capacity(8 + text.len());
        if self.has_selections() {
            body.extend([SELECTION_CLIPBOARD, 0, 0, 0]);
        }
        body.extend(what.to_le_bytes());
        body.extend_from_slice(text);
        self.say(kind, &body);
    }

    fn has_selections(&self) -> bool {
        self.capabilities
            .is_some_and(|capabilities| capabilities & SELECTION != 0)
    }

    /// Offers a viewer's text.
    pub(super) fn offer(&mut self, text: &str) {
        if self.is_ready() && self.offered.as_deref() != Some(text) {
            self.offered = Some(text.into());
            self.say_of_clipboard(clip::GRAB, TYPE_TEXT, &[]);
        }
    }

    /// Hears bytes of the guest; the last text that was copied there.
    pub(super) fn hear(&mut self, bytes: &[u8]) -> Option<String> {
        if !self.is_open {
            return None;
        }
        let mut messages = Vec::new();
        self.unpacker.feed(bytes, |message| messages.push(message));
        let mut copied = None;
        for message in messages {
            copied = self.hear_message(&message).or(copied);
        }
        copied
    }

    fn hear_message(&mut self, message: &Message) -> Option<String> {
        if message.kind == clip::CAPABILITIES {
            let mut fields = message.body.chunks_exact(4);
            let request = fields.next()?;
            let first = fields.next().and_then(|field| field.first_chunk());
            self.capabilities = Some(first.map_or(0, |field| u32::from_le_bytes(*field)));
            if request != [0; 4] {
                self.say_capabilities(false);
            }
            return None;
        }
        let mut body = message.body.as_slice();
        if self.has_selections() {
            let (selection, rest) = body.split_first_chunk::<4>()?;
            if selection[0] != SELECTION_CLIPBOARD {
                return None;
            }
            body = rest;
        }
        let what = |field: &[u8]| field.first_chunk().map(|field| u32::from_le_bytes(*field));
        match message.kind {
            clip::GRAB => {
                self.offered = None;
                let has_text = body
                    .chunks_exact(4)
                    .any(|field| what(field) == Some(TYPE_TEXT));
                if has_text {
                    self.is_asked = true;
                    self.say_of_clipboard(clip::REQUEST, TYPE_TEXT, &[]);
                }
            }
            clip::REQUEST => {
                let text = self.offered.clone();
                match text.filter(|_| what(body) == Some(TYPE_TEXT)) {
                    Some(text) => {
                        self.say_of_clipboard(clip::CLIPBOARD, TYPE_TEXT, text.as_bytes());
                    }
                    None => self.say_of_clipboard(clip::CLIPBOARD, TYPE_NONE, &[]),
                }
            }
            // What was not asked for is not taken.
            clip::CLIPBOARD if std::mem::take(&mut self.is_asked) => {
                let (_, text) = body
                    .split_first_chunk::<4>()
                    .filter(|(kind, _)| u32::from_le_bytes(**kind) == TYPE_TEXT)?;
                let text = String::from_utf8_lossy(text);
                // Some count the zero at the end as text. What is no UTF-8 becomes longer.
                let text = text.trim_end_matches('\0');
                return (text.len() <= TEXT_BYTES_MAX).then(|| text.to_owned());
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A message in its wire form.
    pub(in super::super) fn message(kind: u32, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        pack(kind, body, &mut out);
        out
    }

    /// An agent in a guest.
    #[derive(Default)]
    pub(in super::super) struct Guest {
        unpacker: Unpacker,
        out: Vec<u8>,
        copied: String,
        /// Texts that the host has offered, and the last one that was pasted.
        pub offers: usize,
        pub pasted: Option<String>,
    }

    const TEXT: [u8; 8] = [0, 0, 0, 0, 1, 0, 0, 0];

    impl Guest {
        pub(in super::super) fn hear(&mut self, bytes: &[u8]) {
            let mut messages = Vec::new();
            self.unpacker.feed(bytes, |message| messages.push(message));
            for Message { kind, body } in messages {
                let answer = match kind {
                    clip::CAPABILITIES if body[0] == 1 => {
                        // As spice-vdagent has them, with bits of what is not served.
                        message(clip::CAPABILITIES, &[0, 0, 0, 0, 0xf7, 0xff, 3, 0])
                    }
                    clip::REQUEST if body == TEXT => {
                        message(clip::CLIPBOARD, &[&TEXT, self.copied.as_bytes()].concat())
                    }
                    clip::GRAB if body == TEXT => {
                        self.offers += 1;
                        Vec::new()
                    }
                    clip::CLIPBOARD if body.starts_with(&TEXT) => {
                        self.pasted = String::from_utf8(body[8..].to_vec()).ok();
                        Vec::new()
                    }
                    _ => Vec::new(),
                };
                self.out.extend(answer);
            }
        }

        pub(in super::super) fn said(&mut self) -> Vec<u8> {
            std::mem::take(&mut self.out)
        }

        pub(in super::super) fn copy(&mut self, text: &str) {
            self.copied = text.to_owned();
            // Text, and a picture of it.
            let types = [TEXT.as_slice(), &[2, 0, 0, 0]].concat();
            self.out.extend(message(clip::GRAB, &types));
        }

        pub(in super::super) fn paste(&mut self) {
            self.out.extend(message(clip::REQUEST, &TEXT));
        }
    }

    fn ready() -> Agent {
        let mut agent = Agent::opened();
        agent.hear(&message(clip::CAPABILITIES, &[0, 0, 0, 0, 0x60, 0, 0, 0]));
        assert!(agent.is_ready());
        agent.out.clear();
        agent
    }

    fn said(agent: &mut Agent) -> Vec<u8> {
        agent.out.drain(..).collect()
    }

    #[test]
    fn capabilities_are_told_at_the_beginning_and_when_they_are_asked_for() {
        let mut agent = Agent::opened();
        let capabilities =
            |request| message(clip::CAPABILITIES, &[request, 0, 0, 0, 0x60, 0, 0, 0]);
        assert_eq!(said(&mut agent), capabilities(1));
        agent.hear(&capabilities(1));
        assert_eq!(said(&mut agent), capabilities(0));
        agent.hear(&message(clip::CAPABILITIES, &[0; 4]));
        assert!(!agent.is_ready(), "it can do nothing");
        agent.offer("text");
        assert!(!agent.has_bytes());
    }

    #[test]
    fn only_the_clipboard_of_ctrl_c_and_only_text_is_asked_for() {
        let mut agent = ready();
        agent.hear(&message(clip::GRAB, &[1, 0, 0, 0, 1, 0, 0, 0]));
        agent.hear(&message(clip::GRAB, &[0, 0, 0, 0, 2, 0, 0, 0]));
        assert!(!agent.has_bytes(), "marked text, a picture");
        let unasked = message(clip::CLIPBOARD, &[&TEXT, b"x".as_slice()].concat());
        assert_eq!(agent.hear(&unasked), None);
        agent.hear(&message(clip::GRAB, &TEXT));
        assert_eq!(said(&mut agent), message(clip::REQUEST, &TEXT));
        assert_eq!(agent.hear(&unasked), Some("x".to_owned()));
        assert_eq!(agent.hear(&unasked), None);
    }

    #[test]
    fn a_guest_that_asks_without_reading_fills_no_memory() {
        let mut agent = ready();
        agent.offer(&"x".repeat(TEXT_BYTES_MAX));
        for _ in 0..100 {
            agent.hear(&message(clip::REQUEST, &TEXT));
        }
        assert!(agent.out.len() <= OUT_BYTES_MAX);
        agent.hear(&message(clip::GRAB, &TEXT));
        said(&mut agent);
        agent.hear(&message(clip::REQUEST, &TEXT));
        let none = message(clip::CLIPBOARD, &[0; 8]);
        assert_eq!(said(&mut agent), none, "the guest has its own now");
    }

    proptest! {
        #[test]
        fn whatever_it_says_is_bounded(
            says in prop::collection::vec((0u32..20, prop::collection::vec(any::<u8>(), 0..40)), 0..40),
            texts in prop::collection::vec(".{0,20}", 0..4),
        ) {
            let mut agent = Agent::opened();
            for (at, (kind, body)) in says.iter().enumerate() {
                let copied = agent.hear(&message(*kind, body));
                prop_assert!(copied.is_none_or(|text| text.len() <= TEXT_BYTES_MAX));
                if let Some(text) = texts.get(at) {
                    agent.offer(text);
                }
                prop_assert!(agent.out.len() <= OUT_BYTES_MAX);
                prop_assert!(agent.is_sound());
            }
        }
    }
}
