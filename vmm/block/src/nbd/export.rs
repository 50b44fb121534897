//! Exports: devices under names, and who is connected to them.
//!
//! Invariant: once [`Export::close`] has returned true, no thread of this server touches the device any more.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::counters::{CounterSnapshot, Counters};
use super::limits::{EXPORT_CONNECTIONS_MAX, EXPORT_WORKERS_MAX, NAME_BYTES_MAX};
use super::pool::Pool;
use super::socket::Socket;
use crate::device::BlockDevice;

/// How long [`Export::close`] waits for connections to end after it has cut their sockets.
const CUT_GRACE: Duration = Duration::from_secs(5);

/// Where a connection came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The Unix socket; user and process as the kernel knows them.
    Unix {
        /// User id of the process that connected.
        uid: u32,
        /// Its process id.
        pid: i32,
    },
    /// The TCP socket.
    Tcp(SocketAddr),
    /// No socket (fuzzing).
    Memory,
}

/// Who asks for an export.
#[derive(Debug, Clone)]
pub struct Client {
    /// Where the connection came from.
    pub origin: Origin,
    /// Whether the connection is inside TLS by now.
    pub tls: bool,
    /// The client's own certificate (DER), if the TLS configuration asked for one; rustls has verified it.
    pub certificate: Option<Vec<u8>>,
}

/// Finds exports by name. Asked anew for each connection, so exports may come and go at any time.
pub trait ExportSource: Send + Sync {
    /// The export of that name, if this client may use it. The empty name is the default export.
    fn find(&self, name: &str, client: &Client) -> Option<Arc<Export>>;

    /// The exports that this client may know of.
    fn list(&self, client: &Client) -> Vec<Arc<Export>>;
}

struct Connections {
    next: u64,
    /// `None` for a connection without a socket.
    open: HashMap<u64, Option<Arc<Socket>>>,
    closed: bool,
}

/// A device under a name.
pub struct Export {
    name: String,
    description: String,
    device: Arc<dyn BlockDevice>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) counters: Counters,
    connections: Mutex<Connections>,
    gone: Condvar,
}

/// Why a connection to an export is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// [`Export::close`] was called.
    #[error("the export is being closed")]
    Closed,
    /// [`EXPORT_CONNECTIONS_MAX`] are open.
    #[error("the export has its {EXPORT_CONNECTIONS_MAX} connections already")]
    TooMany,
}

/// Why an export cannot be made or added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// The name cannot be sent to clients.
    #[error("an export name has at most {NAME_BYTES_MAX} bytes and no NUL")]
    BadName,
    /// The device's geometry cannot be told to clients.
    #[error("minimum block size {0} is not a power of two up to 65,536")]
    BadBlockSize(u32),
    /// The name is taken.
    #[error("there is an export named {0:?} already")]
    Exists(String),
}

impl Export {
    /// Puts `device` under `name`. `description` is shown to people who list exports.
    ///
    /// # Errors
    /// [`ExportError::BadName`], [`ExportError::BadBlockSize`].
    pub fn new(
        name: &str,
        description: &str,
        device: Arc<dyn BlockDevice>,
    ) -> Result<Arc<Self>, ExportError> {
        Self::with_workers(name, description, device, EXPORT_WORKERS_MAX)
    }

    /// As [`Export::new`], with at most `workers_max` threads that may block at once (0: the connection's own thread
    /// does everything).
    ///
    /// # Errors
    /// As [`Export::new`].
    pub fn with_workers(
        name: &str,
        description: &str,
        device: Arc<dyn BlockDevice>,
        workers_max: usize,
    ) -> Result<Arc<Self>, ExportError> {
        let valid = |text: &str| text.len() <= NAME_BYTES_MAX && !text.contains('\0');
        if !valid(name) || !valid(description) {
            return Err(ExportError::BadName);
        }
        let block_bytes_min = device.geometry().block_bytes_min;
        if !block_bytes_min.is_power_of_two() || block_bytes_min > 65_536 {
            return Err(ExportError::BadBlockSize(block_bytes_min));
        }
        Ok(Arc::new(Self {
            name: name.to_owned(),
            description: description.to_owned(),
            device,
            pool: Arc::new(Pool::new(workers_max)),
            counters: Counters::default(),
            connections: Mutex::new(Connections {
                next: 0,
                open: HashMap::new(),
                closed: false,
            }),
            gone: Condvar::new(),
        }))
    }

    /// The name clients ask for.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text for people.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// What was done so far.
    #[must_use]
    pub fn counters(&self) -> CounterSnapshot {
        self.counters.snapshot()
    }

    /// Connections that are open now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.lock().open.len()
    }

    /// Refuses new connections, lets requests in flight finish, and closes every connection. Connections that have
    /// not ended after `grace` are cut. Returns whether the device is left alone now; false means that a device call
    /// has not come back, and calling again waits again.
    #[must_use = "false means that the device is still in use"]
    pub fn close(&self, grace: Duration) -> bool {
        let mut connections = self.lock();
        connections.closed = true;
        for socket in connections.open.values().flatten() {
            socket.ask_to_close();
        }
        connections = self.wait_until_gone(connections, grace);
        if connections.open.is_empty() {
            return true;
        }
        for socket in connections.open.values().flatten() {
            socket.cut();
        }
        self.wait_until_gone(connections, CUT_GRACE).open.is_empty()
    }

    fn wait_until_gone<'a>(
        &'a self,
        mut connections: MutexGuard<'a, Connections>,
        grace: Duration,
    ) -> MutexGuard<'a, Connections> {
        let deadline = Instant::now() + grace;
        while !connections.open.is_empty() {
            let Some(left) = deadline
                .checked_duration_since(Instant::now())
                .filter(|left| !left.is_zero())
            else {
                break;
            };
            connections = self
                .gone
                .wait_timeout(connections, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        connections
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a connection in, or says why not.
    pub(crate) fn admit(self: &Arc<Self>, socket: Option<Arc<Socket>>) -> Result<Seat, AdmitError> {
        let mut connections = self.lock();
        if connections.closed {
            return Err(AdmitError::Closed);
        }
        if connections.open.len() >= EXPORT_CONNECTIONS_MAX {
            return Err(AdmitError::TooMany);
        }
        let id = connections.next;
        connections.next += 1;
        connections.open.insert(id, socket);
        Ok(Seat {
            export: Arc::clone(self),
            id,
        })
    }
}

/// A connection's place at an export; dropping it gives the place back.
pub(crate) struct Seat {
    pub(crate) export: Arc<Export>,
    id: u64,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.export.lock().open.remove(&self.id);
        self.export.gone.notify_all();
    }
}

/// Exports by name, changed at run time: the usual [`ExportSource`]. Every client may use every export.
#[derive(Default)]
pub struct ExportMap {
    exports: RwLock<BTreeMap<String, Arc<Export>>>,
}

impl ExportMap {
    /// Adds an export.
    ///
    /// # Errors
    /// [`ExportError::Exists`].
    pub fn insert(&self, export: Arc<Export>) -> Result<(), ExportError> {
        let mut exports = self.exports.write().unwrap_or_else(PoisonError::into_inner);
        if exports.contains_key(export.name()) {
            return Err(ExportError::Exists(export.name().to_owned()));
        }
        exports.insert(export.name().to_owned(), export);
        Ok(())
    }

    /// Takes an export out, so that nobody finds it any more. Its connections go on until [`Export::close`].
    pub fn remove(&self, name: &str) -> Option<Arc<Export>> {
        self.exports
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name)
    }
}

impl ExportSource for ExportMap {
    fn find(&self, name: &str, _client: &Client) -> Option<Arc<Export>> {
        self.exports
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
    }

    fn list(&self, _client: &Client) -> Vec<Arc<Export>> {
        self.exports
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }
}
