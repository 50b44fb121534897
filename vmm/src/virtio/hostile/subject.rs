//! Devices to be tried, each with a host that does what a script says.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_block::MemoryDevice;

use crate::clipboard::{self, Clipboard};
use crate::screen::{Screen, Size};
use crate::virtio::Device;
use crate::virtio::balloon::{Balloon, BalloonSize};
use crate::virtio::block::{Block, Disk, Limits};
use crate::virtio::console::{Console, HostEnd, PortSpec};
use crate::virtio::gpu::Gpu;
use crate::virtio::input::events::{EV_KEY, Event};
use crate::virtio::input::{Input, InputSender, Model};
use crate::virtio::net::{self, Net, Tap};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::{Vsock, VsockSpec};

const DISK_BYTES: usize = 64 << 10;
/// Where the host of a guest's calls listens.
const SERVICE: u32 = 1;

/// Which device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A disk without limits.
    Block,
    /// A disk with limits that are never reached.
    LimitedBlock,
    /// A network card.
    Net,
    /// Entropy.
    Rng,
    /// Two ports at sockets, and one of the clipboard.
    Console,
    /// A balloon.
    Balloon,
    /// A keyboard.
    Keyboard,
    /// A graphics adapter.
    Gpu,
    /// Sockets.
    Vsock,
}

/// All of them.
pub const KINDS: [Kind; 9] = [
    Kind::Block,
    Kind::LimitedBlock,
    Kind::Net,
    Kind::Rng,
    Kind::Console,
    Kind::Balloon,
    Kind::Keyboard,
    Kind::Gpu,
    Kind::Vsock,
];

/// What the host does, as bytes say.
pub type Host = Box<dyn FnMut(&[u8]) + Send>;

/// A folder for sockets that goes away.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("splice-hostile-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).expect("room for sockets");
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn nobody() -> Host {
    Box::new(|_| {})
}

fn disk(limits: Limits) -> Box<dyn Device> {
    Box::new(Block::new(Disk {
        device: Arc::new(MemoryDevice::new(DISK_BYTES)),
        serial: "hostile".into(),
        queues: 2,
        limits,
    }))
}

fn console() -> (Box<dyn Device>, Host) {
    let folder = Folder::new();
    let clipboard = Clipboard::default();
    let specs = [
        ("one", HostEnd::Socket(folder.0.join("one"))),
        ("two", HostEnd::Socket(folder.0.join("two"))),
        (clipboard::PORT_NAME, HostEnd::Clipboard(clipboard.clone())),
    ];
    let specs = specs.map(|(name, end)| PortSpec {
        name: name.into(),
        end,
    });
    let console = Console::new(&specs).expect("sockets");
    let mut client = None;
    let host = move |bytes: &[u8]| match bytes {
        [] => client = None,
        [0, ..] => client = UnixStream::connect(folder.0.join("two")).ok(),
        [2, text @ ..] => clipboard.paste(&String::from_utf8_lossy(text)),
        [_, rest @ ..] => {
            if let Some(client) = &mut client {
                let _ = client.set_nonblocking(true);
                let _ = client.write(rest);
                let _ = client.read(&mut [0; 512]);
            }
        }
    };
    (Box::new(console), Box::new(host))
}

fn vsock() -> (Box<dyn Device>, Host) {
    let folder = Folder::new();
    let socket = folder.0.join("v");
    let service = format!("{}_{SERVICE}", socket.display());
    let service = std::os::unix::net::UnixListener::bind(service).expect("a socket");
    service.set_nonblocking(true).expect("a socket's mode");
    let spec = VsockSpec {
        cid: 3,
        socket: socket.clone(),
    };
    let vsock = Vsock::new(&spec).expect("a socket");
    let mut clients = Vec::new();
    let host = move |bytes: &[u8]| {
        let _folder = &folder;
        if let Ok((client, _)) = service.accept() {
            clients.push(client);
        }
        match bytes {
            [] => drop(clients.pop()),
            [0, rest @ ..] => {
                if let Ok(mut client) = UnixStream::connect(&socket) {
                    let _ = client.write(rest);
                    clients.push(client);
                }
            }
            [_, rest @ ..] => {
                for client in &mut clients {
                    let _ = client.set_nonblocking(true);
                    let _ = client.write(rest);
                    let _ = client.read(&mut [0; 4096]);
                }
            }
        }
        clients.truncate(16);
    };
    (Box::new(vsock), Box::new(host))
}

/// A device of that kind, and its host.
///
/// # Panics
/// The host has no room.
pub fn make(kind: Kind) -> (Box<dyn Device>, Host) {
    match kind {
        Kind::Block => (disk(Limits::default()), nobody()),
        Kind::LimitedBlock => {
            let limits = Limits {
                requests_per_s: Some(1 << 30),
                bytes_per_s: Some(1 << 40),
            };
            (disk(limits), nobody())
        }
        Kind::Net => {
            let (tap, ours) = Tap::wire().expect("sockets");
            let net = Net::new([2, 0, 0, 0, 0, 1], tap, net::Limits::default());
            let host = move |bytes: &[u8]| {
                let _ = ours.send(bytes);
                let _ = ours.recv(&mut [0; 2048]);
            };
            (Box::new(net), Box::new(host))
        }
        Kind::Rng => (Box::<Rng>::default(), nobody()),
        Kind::Console => console(),
        Kind::Balloon => {
            let size = BalloonSize::default();
            let host = {
                let size = size.clone();
                move |bytes: &[u8]| size.ask_mib(bytes.len() as u32)
            };
            (Box::new(Balloon::new(size)), Box::new(host))
        }
        Kind::Keyboard => {
            let sender = InputSender::default();
            let input = Input::new(Model::Keyboard, sender.clone());
            let host = move |bytes: &[u8]| {
                for byte in bytes {
                    sender.send(&[Event {
                        kind: EV_KEY,
                        code: u16::from(byte >> 1),
                        value: u32::from(byte & 1),
                    }]);
                }
            };
            (Box::new(input), Box::new(host))
        }
        Kind::Gpu => {
            let screen = Screen::new(Size::new(640, 480).expect("a size"));
            let gpu = Gpu::new(screen.clone());
            let host = move |bytes: &[u8]| {
                if let Ok(size) = Size::new(bytes.len() as u32 * 16 + 64, 480) {
                    screen.ask(size);
                }
            };
            (Box::new(gpu), Box::new(host))
        }
        Kind::Vsock => vsock(),
    }
}
