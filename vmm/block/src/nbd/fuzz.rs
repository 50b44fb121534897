//! The parsers of foreign bytes, run on bytes in memory: what a fuzzer calls.

use std::sync::Arc;
use std::time::Instant;

use super::connection::{Agreement, Connection};
use super::export::{Client, Export, ExportMap, Origin};
use super::handshake::Handshake;
use super::intake::Intake;
use super::limits::HANDSHAKE_TIMEOUT;
use super::outbox::Outbox;
use super::socket::{Sink, Source};
use crate::memory::MemoryDevice;

/// Size of the disk that fuzzed requests meet, bytes.
const DISK_BYTES: usize = 256 * 1024;

fn export(read_only: bool) -> Arc<Export> {
    let device = if read_only {
        MemoryDevice::read_only(vec![7; DISK_BYTES])
    } else {
        MemoryDevice::new(DISK_BYTES)
    };
    Export::with_workers("disk", "a fuzzed disk", Arc::new(device), 0).expect("the name is valid")
}

/// Runs a whole connection, from its first byte, on `data`: the handshake, and if `data` chooses the export `disk`,
/// the transmission phase. Never panics, whatever the bytes.
pub fn fuzz_handshake(data: &[u8]) {
    let exports = ExportMap::default();
    exports.insert(export(false)).expect("the map is empty");
    let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
    let client = Client {
        origin: Origin::Memory,
        tls: false,
        certificate: None,
    };
    let mut handshake = Handshake::new(
        Intake::new(
            Source::Memory {
                bytes: data.to_vec(),
                taken: 0,
            },
            None,
        ),
        Sink::Memory(Vec::new()),
        None,
        client,
        &exports,
        None,
        deadline,
    );
    if let Ok(Some(chosen)) = handshake.run() {
        let Handshake {
            mut intake, sink, ..
        } = handshake;
        let connection = Connection::new(
            chosen.seat,
            chosen.agreement,
            Arc::new(Outbox::new(sink, None)),
            None,
        );
        let _ = connection.serve(&mut intake);
    }
}

/// Runs the transmission phase on `data`. The first byte chooses what was agreed (bit 0 structured replies, bit 1
/// block status, bit 2 a read-only export), requests follow. Never panics, whatever the bytes.
pub fn fuzz_transmission(data: &[u8]) {
    let Some((&choice, requests)) = data.split_first() else {
        return;
    };
    let agreement = Agreement {
        structured: choice & 1 != 0,
        allocation: choice & 3 == 3,
    };
    let seat = export(choice & 4 != 0)
        .admit(None)
        .expect("the export is new");
    let outbox = Arc::new(Outbox::new(Sink::Memory(Vec::new()), None));
    let connection = Connection::new(seat, agreement, outbox, None);
    let mut intake = Intake::new(
        Source::Memory {
            bytes: requests.to_vec(),
            taken: 0,
        },
        None,
    );
    let _ = connection.serve(&mut intake);
}
