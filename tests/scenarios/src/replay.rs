//! A machine that boots, without the machine: reads of an NBD export in a fixed order, with thinking between them.
//!
//! The client speaks as little NBD as that takes (fixed newstyle handshake, simple replies), one read at a time, as a booting guest
//! that waits for each file before it asks for the next.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::rng::Rng;

const OPTION_MAGIC: &[u8] = b"IHAVEOPT";
const EXPORT_NAME: u32 = 1;
/// Fixed newstyle, no zeroes after the handshake.
const CLIENT_FLAGS: u32 = 3;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const READ: u16 = 0;
/// A read that takes longer has failed.
const READ_MAX: Duration = Duration::from_secs(180);

/// One read of a boot.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// How long the machine thinks before it, in milliseconds.
    pub think_ms: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

/// How a boot went.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// How long each read took.
    pub waits: Vec<Duration>,
    /// All of it.
    pub took: Duration,
}

impl Outcome {
    /// Time spent in reads.
    pub fn waited(&self) -> Duration {
        self.waits.iter().sum()
    }
}

/// A boot of `reads` reads all over a disk: short runs of one file after another, in an order that is not that of the disk.
pub fn boot(size_bytes: u64, reads: usize, think_ms: u64, seed: u64) -> Vec<Step> {
    let mut rng = Rng::new(seed);
    let mut steps = Vec::with_capacity(reads);
    let mut at = 0;
    while steps.len() < reads {
        if rng.below(3) == 0 || at + (256 << 10) > size_bytes {
            at = rng.below(size_bytes - (256 << 10)) / 4096 * 4096;
        }
        let len = 4096 * (1 + rng.below(16));
        steps.push(Step {
            think_ms: rng.below(2 * think_ms + 1),
            offset: at,
            len: len as u32,
        });
        at += len;
    }
    steps
}

/// A connection to an export.
pub struct Replay {
    stream: UnixStream,
    cookie: u64,
}

impl Replay {
    /// Connects.
    pub fn connect(socket: &Path, export: &str) -> Self {
        let mut stream = UnixStream::connect(socket).expect("the NBD server listens");
        stream
            .set_read_timeout(Some(READ_MAX))
            .expect("a limit above zero");
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).expect("a greeting comes");
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        let mut hello = CLIENT_FLAGS.to_be_bytes().to_vec();
        hello.extend_from_slice(OPTION_MAGIC);
        hello.extend_from_slice(&EXPORT_NAME.to_be_bytes());
        hello.extend_from_slice(&(export.len() as u32).to_be_bytes());
        hello.extend_from_slice(export.as_bytes());
        stream.write_all(&hello).expect("the server listens");
        // Size and flags.
        let mut info = [0; 10];
        stream
            .read_exact(&mut info)
            .unwrap_or_else(|error| panic!("no export {export}: {error}"));
        Self { stream, cookie: 0 }
    }

    /// Reads.
    pub fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        self.cookie += 1;
        let mut request = Vec::with_capacity(28);
        request.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        request.extend_from_slice(&0u16.to_be_bytes());
        request.extend_from_slice(&READ.to_be_bytes());
        request.extend_from_slice(&self.cookie.to_be_bytes());
        request.extend_from_slice(&offset.to_be_bytes());
        request.extend_from_slice(&len.to_be_bytes());
        self.stream
            .write_all(&request)
            .expect("the server takes requests");
        let mut head = [0; 16];
        self.stream.read_exact(&mut head).expect("an answer comes");
        let expected = [
            &REPLY_MAGIC.to_be_bytes()[..],
            &0u32.to_be_bytes(),
            &self.cookie.to_be_bytes(),
        ];
        assert_eq!(head.as_slice(), expected.concat(), "read at {offset}");
        let mut data = vec![0; len as usize];
        self.stream.read_exact(&mut data).expect("the data comes");
        data
    }

    /// Boots: each read must give the bytes of `disk`. `before` is called before each step with its number.
    pub fn run(&mut self, steps: &[Step], disk: &[u8], mut before: impl FnMut(usize)) -> Outcome {
        let begun = Instant::now();
        let mut outcome = Outcome::default();
        for (number, step) in steps.iter().enumerate() {
            before(number);
            std::thread::sleep(Duration::from_millis(step.think_ms));
            let asked = Instant::now();
            let data = self.read(step.offset, step.len);
            outcome.waits.push(asked.elapsed());
            let at = step.offset as usize;
            assert!(
                data == disk[at..at + data.len()],
                "wrong bytes at {}",
                step.offset
            );
        }
        outcome.took = begun.elapsed();
        outcome
    }
}
