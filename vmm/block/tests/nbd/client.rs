//! A client that says exactly what a test wants, right or wrong, written from the protocol's text and sharing nothing
//! with the server.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const WRITE_ZEROES: u16 = 6;
pub const BLOCK_STATUS: u16 = 7;

pub const FUA: u16 = 1;
pub const NO_HOLE: u16 = 2;
pub const DF: u16 = 4;
pub const REQ_ONE: u16 = 8;
pub const FAST_ZERO: u16 = 16;

pub const GO: u32 = 7;

pub struct Raw {
    pub stream: UnixStream,
    cookie: u64,
}

/// A reply as a whole, however many chunks it took.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reply {
    pub cookie: u64,
    pub error: u32,
    /// Content chunks of a read: offset and bytes (holes filled in), in the order they came.
    pub content: Vec<(u64, Vec<u8>)>,
    pub holes: usize,
    /// Block status: length and state.
    pub extents: Vec<(u32, u32)>,
}

impl Raw {
    /// Connects and exchanges flags.
    pub fn hello(socket: &Path) -> Self {
        let mut raw = Self::connect(socket);
        let mut hello = [0; 18];
        raw.stream.read_exact(&mut hello).unwrap();
        assert_eq!(&hello[..16], b"NBDMAGICIHAVEOPT");
        assert_eq!(hello[16..], [0, 3], "fixed newstyle and no zeroes");
        raw.stream.write_all(&3u32.to_be_bytes()).unwrap();
        raw
    }

    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
            .set_write_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Self { stream, cookie: 0 }
    }

    /// In the transmission phase with structured replies and `base:allocation`.
    pub fn ready(socket: &Path, name: &str) -> Self {
        let mut raw = Self::hello(socket);
        assert_eq!(raw.option(8, &[]), [(1, vec![])]);
        let context = raw.option(10, &meta_request(name, &["base:allocation"]));
        assert_eq!(context.len(), 2, "{context:?}");
        let replies = raw.option(GO, &info_request(name));
        assert_eq!(replies.last().unwrap().0, 1, "{replies:?}");
        raw
    }

    /// In the transmission phase with simple replies.
    pub fn simple(socket: &Path, name: &str) -> Self {
        let mut raw = Self::hello(socket);
        let replies = raw.option(GO, &info_request(name));
        assert_eq!(replies.last().unwrap().0, 1, "{replies:?}");
        raw
    }

    pub fn send_option(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        self.stream.write_all(&bytes)
    }

    /// Sends an option and returns the replies to it: type and data, up to the final one.
    pub fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.send_option(option, data).unwrap();
        let mut replies = Vec::new();
        loop {
            let mut head = [0; 20];
            self.stream.read_exact(&mut head).unwrap();
            assert_eq!(head[..8], 0x0003_e889_0455_65a9_u64.to_be_bytes());
            assert_eq!(head[8..12], option.to_be_bytes());
            let kind = u32::from_be_bytes(head[12..16].try_into().unwrap());
            let mut data = vec![0; u32::from_be_bytes(head[16..].try_into().unwrap()) as usize];
            self.stream.read_exact(&mut data).unwrap();
            replies.push((kind, data));
            if kind == 1 || kind >> 31 == 1 {
                return replies;
            }
        }
    }

    pub fn send(&mut self, command: u16, flags: u16, offset: u64, len: u32, data: &[u8]) -> u64 {
        self.cookie += 1;
        let bytes = request(command, flags, self.cookie, offset, len, data);
        self.stream.write_all(&bytes).unwrap();
        self.cookie
    }

    /// Sends one request and returns its structured (or simple) reply.
    pub fn call(&mut self, command: u16, flags: u16, offset: u64, len: u32, data: &[u8]) -> Reply {
        let cookie = self.send(command, flags, offset, len, data);
        let reply = self.reply();
        assert_eq!(reply.cookie, cookie);
        reply
    }

    /// Reads `len` bytes and puts the chunks together.
    pub fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        let reply = self.call(READ, 0, offset, len, &[]);
        assert_eq!(reply.error, 0);
        assemble(&reply, offset, len)
    }

    /// The next whole reply. Chunks of different replies must not interleave here (this server never does that).
    pub fn reply(&mut self) -> Reply {
        let mut reply = Reply::default();
        loop {
            let mut magic = [0; 4];
            self.stream.read_exact(&mut magic).unwrap();
            if magic == 0x6744_6698_u32.to_be_bytes() {
                let mut rest = [0; 12];
                self.stream.read_exact(&mut rest).unwrap();
                reply.error = u32::from_be_bytes(rest[..4].try_into().unwrap());
                reply.cookie = u64::from_be_bytes(rest[4..].try_into().unwrap());
                return reply;
            }
            assert_eq!(magic, 0x668e_33ef_u32.to_be_bytes());
            let mut head = [0; 16];
            self.stream.read_exact(&mut head).unwrap();
            let done = head[1] & 1 == 1;
            let kind = u16::from_be_bytes([head[2], head[3]]);
            let cookie = u64::from_be_bytes(head[4..12].try_into().unwrap());
            assert!(
                reply.cookie == 0 || reply.cookie == cookie,
                "chunks of two replies are mixed"
            );
            reply.cookie = cookie;
            let mut body = vec![0; u32::from_be_bytes(head[12..].try_into().unwrap()) as usize];
            self.stream.read_exact(&mut body).unwrap();
            let word = |at: usize| u32::from_be_bytes(body[at..at + 4].try_into().unwrap());
            let offset = || u64::from_be_bytes(body[..8].try_into().unwrap());
            match kind {
                0 => assert!(body.is_empty() && done),
                1 => reply.content.push((offset(), body[8..].to_vec())),
                2 => {
                    reply.holes += 1;
                    reply.content.push((offset(), vec![0; word(8) as usize]));
                }
                5 => {
                    assert!(word(0) != 0, "a context id");
                    reply.extents = body[4..]
                        .chunks(8)
                        .map(|pair| (be(&pair[..4]), be(&pair[4..])))
                        .collect();
                }
                0x8001 => reply.error = word(0),
                other => panic!("chunk type {other}"),
            }
            if done {
                return reply;
            }
        }
    }

    /// Whether the server has ended the connection, without having sent anything more.
    pub fn is_ended(&mut self) -> bool {
        match self.stream.read(&mut [0; 1]) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

fn be(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().unwrap())
}

/// Puts a read's chunks in place; they must cover the range exactly once.
pub fn assemble(reply: &Reply, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = vec![None; len as usize];
    for (at, content) in &reply.content {
        for (place, byte) in bytes[(at - offset) as usize..].iter_mut().zip(content) {
            assert_eq!(*place, None, "chunks overlap");
            *place = Some(*byte);
        }
    }
    bytes
        .into_iter()
        .map(|byte| byte.expect("chunks leave a gap"))
        .collect()
}

pub fn request(
    command: u16,
    flags: u16,
    cookie: u64,
    offset: u64,
    len: u32,
    data: &[u8],
) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes.extend(data);
    bytes
}

pub fn info_request(name: &str) -> Vec<u8> {
    let mut bytes = (name.len() as u32).to_be_bytes().to_vec();
    bytes.extend(name.as_bytes());
    bytes.extend([0, 0]);
    bytes
}

pub fn meta_request(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut bytes = (name.len() as u32).to_be_bytes().to_vec();
    bytes.extend(name.as_bytes());
    bytes.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        bytes.extend((query.len() as u32).to_be_bytes());
        bytes.extend(query.as_bytes());
    }
    bytes
}
