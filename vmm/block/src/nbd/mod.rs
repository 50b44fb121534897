//! An NBD server (fixed newstyle) for [`BlockDevice`](crate::BlockDevice)s.
//!
//! What it speaks, what it limits and how it behaves towards bad clients is described in `docs/nbd.md`. How it works:
//!
//! ```text
//!  client ══ socket ══► reader thread ─── hit ──► device.try_read / try_write ──► outbox ══ socket ══► client
//!                        (one per           │                                       ▲  one writer at a time
//!                         connection)       └ miss, flush, FUA, large ► worker pool ┘  takes all replies along
//!                                                                       (per export)
//! ```

mod connection;
mod counters;
mod exchange;
mod export;
mod fuzz;
mod handshake;
mod intake;
pub mod limits;
pub(crate) mod listen;
mod outbox;
mod patience;
mod pool;
mod server;
mod socket;
mod tls;
mod wire;

pub use counters::{CounterSnapshot, LATENCY_BUCKETS};
pub use export::{AdmitError, Client, Export, ExportError, ExportMap, ExportSource, Origin};
pub use fuzz::{fuzz_handshake, fuzz_transmission};
pub use listen::ListenError;
pub use server::{NbdOptions, NbdServer, TlsPolicy};
