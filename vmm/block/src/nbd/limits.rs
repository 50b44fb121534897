//! Every limit of the NBD server, each with its reason. A client cannot make the server hold, wait for or allocate more.

use std::time::Duration;

/// Largest payload of one READ or WRITE, bytes: the figure up to which the protocol forbids calling a request abusive
/// ("Size constraints"), and what every client assumes where nothing is negotiated.
pub const PAYLOAD_BYTES_MAX: u32 = 32 * 1024 * 1024;

/// Requests of one connection that are received and not yet answered. QEMU keeps 16, nbdcopy 64 by default.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 128;

/// Payload bytes of one connection's requests in flight. One request of the largest size is always let through.
pub const BYTES_IN_FLIGHT_MAX: usize = 32 * 1024 * 1024;

/// Connections to one export: nbdcopy opens 4, QEMU's multi-connection client 16.
pub const EXPORT_CONNECTIONS_MAX: usize = 32;

/// Connections to one server, handshakes included. Each is one thread.
pub const SERVER_CONNECTIONS_MAX: usize = 1024;

/// Threads per export that may block on a miss, flush or large transfer. They are started on demand and end when idle,
/// so the figure bounds concurrent WAN misses (32 misses at 600 ms still make 53 reads/s), not memory in normal use.
pub const EXPORT_WORKERS_MAX: usize = 32;

/// How long a worker waits for more work before it ends.
pub const WORKER_IDLE: Duration = Duration::from_secs(10);

/// Data of one option, bytes: a name of the largest length and some hundred metadata queries.
pub const OPTION_BYTES_MAX: u32 = 64 * 1024;

/// An option longer than [`OPTION_BYTES_MAX`] is skipped and refused up to this length; beyond, the client is dropped.
pub const OPTION_SKIP_BYTES_MAX: u32 = 1024 * 1024;

/// Options in one handshake. A real client sends about ten.
pub const OPTIONS_MAX: usize = 256;

/// Length of an export name or a metadata query, bytes: the protocol's limit for any string.
pub const NAME_BYTES_MAX: usize = 4096;

/// Metadata queries in one option.
pub const META_QUERIES_MAX: u32 = 256;

/// Time for a whole handshake, TLS included.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// Time in which a client that has begun a request must send some more of it, and one that is sent a reply must take
/// some more of it. Idle connections are not timed: a guest may be quiet for days.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Read-ahead buffer of one connection, bytes: sixteen 4 KiB writes with room to spare, read by one system call.
pub const INTAKE_BYTES: usize = 128 * 1024;

/// Reads and writes above this many bytes leave the connection's reader thread, so that they do not hold up the
/// requests behind them.
pub const INLINE_BYTES_MAX: u32 = 256 * 1024;

/// Socket buffer for replies, bytes: what a client that reads slowly makes the kernel hold.
pub const SEND_BUFFER_BYTES: usize = 1024 * 1024;

/// The same for a read behind which no other request is at hand: what is at most held up is one that comes in the meantime,
/// by the time it takes to copy this much (a third of a millisecond).
pub const INLINE_ALONE_BYTES_MAX: u32 = 2 * 1024 * 1024;

/// Reply bytes that may wait for being sent together while more requests are at hand: eight of 4 KiB. More would save a fraction of a
/// call each, and let the client idle until all that it has asked for is read.
pub const COALESCE_BYTES_MAX: usize = 32 * 1024;

/// Idle buffer bytes kept by one connection. A megabyte fresh from the kernel costs 256 page faults, as much time as filling it; four
/// of them serve a sequential reader, and 200 desktops keep less than a gigabyte.
pub const KEPT_BYTES_MAX: usize = 4 * 1024 * 1024 + 64 * 1024;

/// Idle request buffers kept by one connection.
pub const KEPT_EXCHANGES_MAX: usize = 32;

/// Descriptors in one block status reply (the protocol advises at most 2^20).
pub const STATUS_EXTENTS_MAX: usize = 16 * 1024;

/// Text of an error that a client is shown, bytes (the protocol allows 4,096).
pub const ERROR_TEXT_BYTES_MAX: usize = 512;
