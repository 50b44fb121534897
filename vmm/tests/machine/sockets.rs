//! Sockets between guest and host.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use vmm::virtio::vsock::{Vsock, VsockSpec};

use crate::lab::{Lab, Listener};

/// The guest's address, the host's port that it calls, and its own.
const CID: u32 = 7;
const SERVICE: u32 = 1234;
const GUEST_PORT: u32 = 52;
/// What the guest sends.
const TOTAL: usize = 300_000;
/// Ways in which the guest drives the device.
const ROUNDS: usize = 2;

/// Sends what comes back until the guest ends the connection.
fn echo(listener: &UnixListener) -> usize {
    let (mut stream, _) = listener.accept().unwrap();
    let (mut bytes, mut total) = ([0; 10_000], 0);
    loop {
        let len = stream.read(&mut bytes).unwrap();
        if len == 0 {
            return total;
        }
        total += len;
        stream.write_all(&bytes[..len]).unwrap();
    }
}

/// Calls the guest, who answers a line in capitals and hangs up.
fn call(socket: &Path) {
    let mut stream = UnixStream::connect(socket).unwrap();
    // What is behind the line is the guest's already.
    let said = format!("CONNECT {GUEST_PORT}\nhello");
    stream.write_all(said.as_bytes()).unwrap();
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert!(line.starts_with("OK "), "{line:?}");
    let mut answer = String::new();
    lines.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "HELLO");
}

/// What the host does meanwhile.
fn serve(socket: PathBuf, listener: Listener) -> JoinHandle<()> {
    let service = format!("{}_{SERVICE}", socket.display());
    let service = UnixListener::bind(service).unwrap();
    std::thread::spawn(move || {
        for round in 1..=ROUNDS {
            assert_eq!(echo(&service), TOTAL);
            listener.wait("NOTE vsock calls", round);
            call(&socket);
        }
    })
}

#[test]
fn guest_and_host_call_each_other() {
    let Some(mut lab) = Lab::new() else { return };
    let socket = lab.file("vsock");
    let spec = VsockSpec {
        cid: CID,
        socket: socket.clone(),
    };
    lab.add("vsock", Vsock::new(&spec).unwrap());
    let host = serve(socket, lab.listener());
    lab.run("vsock off").has("CHECK vsock ok");
    host.join().unwrap();
}

#[test]
fn who_speaks_something_else_is_hung_up_on() {
    let Some(mut lab) = Lab::new() else { return };
    let socket = lab.file("vsock");
    let spec = VsockSpec {
        cid: CID,
        socket: socket.clone(),
    };
    lab.add("vsock", Vsock::new(&spec).unwrap());
    let mut stranger = UnixStream::connect(&socket).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    // The device begins its work when the guest has set it up.
    let host = serve(socket, lab.listener());
    lab.run("vsock off").has("CHECK vsock ok");
    host.join().unwrap();
    let mut nothing = Vec::new();
    assert_eq!(stranger.read_to_end(&mut nothing).unwrap_or(0), 0);
}
