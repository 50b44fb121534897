//! What a snapshot keeps of ports.
//!
//! A client of a socket is not there in the machine that goes on, and the guest is told so. The clipboard is: whatever guest and host were
//! in the middle of saying goes on.

use serde::{Deserialize, Serialize};

use super::port::{EndState, Port};
use super::{Console, MESSAGES_MAX, control, message};
use crate::virtio::state::DeviceStateError;

/// One port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PortState {
    name: String,
    /// The guest's driver has found it, and is told of clients.
    guest_ready: bool,
    guest_open: bool,
    /// The guest has been told that somebody is on the host's side.
    host_open: bool,
    end: EndState,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    ports: Vec<PortState>,
    /// Messages that wait for room.
    messages: Vec<Vec<u8>>,
}

impl Console {
    /// Of a device that is not at work.
    pub(super) fn state(&self) -> ConsoleState {
        let ports = self.ports.iter().map(|port| PortState {
            name: port.name().to_owned(),
            guest_ready: port.is_guest_ready(),
            guest_open: port.is_guest_open(),
            host_open: port.is_guest_ready() && port.is_connected(),
            end: port.save_end(),
        });
        ConsoleState {
            ports: ports.collect(),
            messages: self.messages.iter().cloned().collect(),
        }
    }

    /// Goes on with it.
    pub(super) fn take_up(&mut self, state: ConsoleState) -> Result<(), DeviceStateError> {
        let ConsoleState { ports, messages } = state;
        let names = |ports: &mut dyn Iterator<Item = &str>| ports.collect::<Vec<_>>().join(", ");
        let saved = names(&mut ports.iter().map(|port| port.name.as_str()));
        let here = names(&mut self.ports.iter().map(Port::name));
        if saved != here {
            let what = format!("its ports were {saved}, now they are {here}");
            return Err(DeviceStateError::Differs(what));
        }
        // None is longer than the name of a port that there is.
        let fits = |message: &Vec<u8>| message.len() <= control::BYTES + saved.len();
        let messages = messages.into_iter().filter(fits).take(MESSAGES_MAX);
        self.messages = messages.collect();
        for (index, (port, saved)) in self.ports.iter_mut().zip(ports).enumerate() {
            port.forget_guest();
            if saved.guest_ready {
                port.set_guest_ready();
            }
            port.set_guest_open(saved.guest_open);
            port.restore_end(saved.end)?;
            let is_connected = port.is_connected();
            if saved.guest_ready && saved.host_open != is_connected {
                // Whoever that was is not here; whoever comes is told of.
                let told = message(index, control::PORT_OPEN, is_connected.into(), "");
                self.messages.push_back(told);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{HostEnd, PortSpec};
    use super::*;
    use crate::clipboard::{self, Clipboard};
    use crate::virtio::Device;
    use crate::virtio::state::DeviceState;

    /// The state as it comes out of a file.
    fn through_a_file(state: ConsoleState) -> DeviceState {
        let bytes = postcard::to_stdvec(&DeviceState::Console(state)).expect("bytes");
        postcard::from_bytes(&bytes).expect("the same")
    }

    fn sockets(dir: &Path, names: &[&str]) -> Console {
        let spec = |name: &&str| PortSpec {
            name: (*name).to_owned(),
            end: HostEnd::Socket(dir.join(name)),
        };
        let ports: Vec<_> = names.iter().map(spec).collect();
        Console::new(&ports).expect("sockets")
    }

    #[test]
    fn ports_that_go_on_tell_the_guest_that_the_other_side_is_gone() {
        let temp = tempfile::tempdir().expect("a folder");
        let memory = crate::machine::memory::create(64).expect("memory");
        let console = |names: &[&str]| sockets(temp.path(), names);
        let mut before = console(&["agent", "clipboard"]);
        before.ports[1].set_guest_ready();
        before.ports[1].set_guest_open(true);
        before
            .messages
            .push_back(message(0, control::PORT_READY, 1, ""));
        let mut state = before.state();
        state.ports[1].host_open = true;
        let parsed = || through_a_file(state.clone());
        let mut after = console(&["agent", "clipboard"]);
        after.restore(parsed(), &memory).expect("taken up");
        assert_eq!(
            [false, true],
            [0, 1].map(|port: usize| after.ports[port].is_guest_open())
        );
        assert_eq!(
            [false, true],
            [0, 1].map(|port: usize| after.ports[port].is_guest_ready())
        );
        let told = [
            message(0, control::PORT_READY, 1, ""),
            message(1, control::PORT_OPEN, 0, ""),
        ];
        assert_eq!(after.messages, told);
        after.reset();
        assert!(after.messages.is_empty() && !after.ports[1].is_guest_open());
        assert!(!after.ports[1].is_guest_ready());
        let mut other = console(&["agent", "sound"]);
        let refused = other.restore(parsed(), &memory).expect_err("another port");
        let text = "its ports were agent, clipboard, now they are agent, sound";
        assert_eq!(refused.to_string(), text);
    }

    #[test]
    fn the_clipboard_goes_on_and_the_guest_notices_nothing() {
        let temp = tempfile::tempdir().expect("a folder");
        let memory = crate::machine::memory::create(64).expect("memory");
        let console = |clipboard: &Clipboard| {
            let port = PortSpec {
                name: clipboard::PORT_NAME.into(),
                end: HostEnd::Clipboard(clipboard.clone()),
            };
            Console::new(&[port]).expect("an event")
        };
        let (here, there) = (Clipboard::default(), Clipboard::default());
        let mut before = console(&here);
        before.ports[0].set_guest_ready();
        before.ports[0].set_guest_open(true);
        // Its first word is on its way.
        assert_eq!(here.give(&mut [0; 5]), 5);
        let state = before.state();
        let parsed = || through_a_file(state.clone());
        let mut after = console(&there);
        after.restore(parsed(), &memory).expect("taken up");
        assert!(after.messages.is_empty());
        assert!(after.ports[0].is_guest_ready() && after.ports[0].is_guest_open());
        assert_eq!(there.save(), here.save());
        assert_eq!(after.state(), state);
        let mut other = sockets(temp.path(), &[clipboard::PORT_NAME]);
        let refused = other.restore(parsed(), &memory).expect_err("a socket");
        assert_eq!(
            refused.to_string(),
            "a port was the clipboard, now it is a socket"
        );
        after.reset();
        let socket = sockets(temp.path(), &[clipboard::PORT_NAME]).state();
        let refused = after.restore(through_a_file(socket), &memory);
        let refused = refused.expect_err("no clipboard");
        assert_eq!(
            refused.to_string(),
            "a port was a socket, now it is the clipboard"
        );

        let mut closed = state;
        closed.ports[0].guest_open = false;
        let refused = after.restore(through_a_file(closed), &memory);
        let refused = refused.expect_err("an agent without its end");
        assert_eq!(refused.to_string(), "its clipboard makes no sense");
    }
}
