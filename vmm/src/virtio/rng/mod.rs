//! Source of entropy: the host's.

use std::os::fd::AsRawFd;

use virtio_queue::Writer;
use vm_memory::GuestMemoryMmap;

use super::ring::{Chain, Ring};
use super::worker::{Handler, Worker};
use super::{Device, Kind, StartError, Started};
use crate::machine::memory::Memory;

const QUEUE_SIZE: u16 = 64;
/// Most bytes given for one request: kernels ask for 64.
const BYTES_MAX: usize = 64 << 10;

struct Source {
    ring: Ring,
    memory: Memory,
    bytes: Vec<u8>,
}

impl Source {
    fn fill(bytes: &mut Vec<u8>, chain: Chain<'_>, memory: &GuestMemoryMmap<()>) -> u32 {
        let Ok(mut writer) = Writer::new(memory, chain) else {
            return 0;
        };
        let len = writer.available_bytes().min(BYTES_MAX);
        bytes.resize(len, 0);
        // SAFETY: the buffer has `len` bytes.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), len, 0) };
        let got = usize::try_from(got).unwrap_or(0);
        let written = std::io::Write::write(&mut writer, &bytes[..got]);
        written.unwrap_or(0) as u32
    }
}

impl Handler for Source {
    fn ready(&mut self, _: u64) {
        let (memory, bytes) = (&self.memory, &mut self.bytes);
        self.ring
            .drain(memory, |chain| Self::fill(bytes, chain, memory));
    }
}

/// See the module.
#[derive(Default)]
pub struct Rng(Option<Worker<Source>>);

impl Device for Rng {
    fn kind(&self) -> Kind {
        Kind::Rng
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn read_config(&self, _: usize, _: &mut [u8]) {}

    fn start(&mut self, started: Started) -> Result<(), StartError> {
        let ring = started.rings.into_iter().next().flatten();
        let source = Source {
            ring: ring.ok_or(StartError::Queue(0))?,
            memory: started.memory,
            bytes: Vec::new(),
        };
        let kick = source.ring.kick().as_raw_fd();
        let worker = Worker::spawn("rng", source, &[(kick, 0)]);
        self.0 = Some(worker.map_err(|error| StartError::Host("the rng's thread", error))?);
        Ok(())
    }

    fn stop(&mut self) -> Vec<Option<Ring>> {
        let worker = self.0.take();
        worker.map_or_else(Vec::new, |worker| vec![Some(worker.stop().ring)])
    }
}
