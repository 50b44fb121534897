//! The machine's clipboard at the host's end: always there, and never in the guest's way.

use std::io;
use std::os::fd::RawFd;

use super::{End, EndState};
use crate::clipboard::Clipboard;
use crate::virtio::state::DeviceStateError;

/// See the module.
pub(super) struct ClipboardEnd {
    clipboard: Clipboard,
    bell: RawFd,
}

impl ClipboardEnd {
    pub(super) fn new(clipboard: Clipboard) -> io::Result<Self> {
        let bell = clipboard.connect()?;
        Ok(Self { clipboard, bell })
    }
}

impl End for ClipboardEnd {
    fn is_connected(&self) -> bool {
        true
    }

    fn events(&self) -> RawFd {
        self.bell
    }

    fn set_guest_open(&mut self, open: bool) {
        self.clipboard.set_open(open);
    }

    fn take(&mut self, bytes: &[u8]) {
        self.clipboard.hear(bytes);
    }

    fn give(&mut self, room: &mut [u8]) -> usize {
        self.clipboard.give(room)
    }

    fn save(&self) -> EndState {
        EndState::Clipboard(Box::new(self.clipboard.save()))
    }

    fn restore(&mut self, state: EndState) -> Result<(), DeviceStateError> {
        match state {
            EndState::Clipboard(state) => {
                let restored = self.clipboard.restore(*state);
                restored.map_err(|_| DeviceStateError::Wrong("clipboard"))
            }
            other @ EndState::Socket => Err(other.other()),
        }
    }
}
