//! Ports of agents, and keys.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use vmm::virtio::console::{Console, HostEnd, PortSpec};
use vmm::virtio::input::events::{EV_KEY, Event};
use vmm::virtio::input::{Input, InputSender, Model};

use crate::lab::Lab;

/// As long as the guest knows it.
const LINE_BYTES: usize = 40_000;

#[test]
fn an_agent_hears_its_host_and_answers() {
    let Some(mut lab) = Lab::new() else { return };
    let (other, socket) = (lab.file("other.sock"), lab.file("port.sock"));
    let ports = [("splice.other", other), ("splice.test", socket.clone())];
    let ports = ports.map(|(name, socket)| PortSpec {
        name: name.into(),
        end: HostEnd::Socket(socket),
    });
    lab.add("ports", Console::new(&ports).unwrap());
    let mut client = UnixStream::connect(&socket).unwrap();
    let line: Vec<u8> = (0..LINE_BYTES).map(|at| b'a' + (at % 26) as u8).collect();
    let capitals = line.to_ascii_uppercase();
    let host = std::thread::spawn(move || {
        // Once for each way in which the guest drives the port.
        for _ in 0..2 {
            client.write_all(&line).unwrap();
            let mut answer = vec![0; LINE_BYTES];
            client.read_exact(&mut answer).unwrap();
            assert!(answer == capitals);
        }
    });
    lab.run("console off").has("CHECK console ok");
    host.join().unwrap();
}

#[test]
fn a_key_arrives() {
    let Some(mut lab) = Lab::new() else { return };
    let sender = InputSender::default();
    lab.add("keyboard", Input::new(Model::Keyboard, sender.clone()));
    let key = |value| Event {
        kind: EV_KEY,
        code: 30,
        value,
    };
    // The end of a report comes by itself.
    sender.send(&[key(1)]);
    sender.send(&[key(0)]);
    lab.run("keyboard off").has("CHECK keyboard ok");
}
