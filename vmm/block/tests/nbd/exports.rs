//! Exports that come and go, slow devices, flushes across connections, and the server's own beginning and end.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use vmm_block::nbd::{ExportError, ExportMap, ListenError, NbdOptions, NbdServer};
use vmm_block::{BlockDevice, BlockError, BlockErrorKind, Geometry, MemoryDevice, RangeStatus};

use crate::client::{DISC, FLUSH, GO, READ, Raw, WRITE, info_request};
use crate::lab::{Lab, wait_until};

/// A disk whose second half is far away: reads there wait until the gate opens. Counts what was written before the
/// last flush.
struct Remote {
    near: MemoryDevice,
    open: Mutex<bool>,
    opened: Condvar,
    waiting: AtomicU64,
    written: AtomicU64,
    durable: AtomicU64,
    broken: AtomicBool,
}

impl Remote {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            near: MemoryDevice::new(1 << 20),
            open: Mutex::new(false),
            opened: Condvar::new(),
            waiting: AtomicU64::new(0),
            written: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            broken: AtomicBool::new(false),
        })
    }

    fn open_the_gate(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::SeqCst)
    }
}

impl BlockDevice for Remote {
    fn geometry(&self) -> Geometry {
        self.near.geometry()
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        if self.broken.load(Ordering::SeqCst) {
            panic!("a defect in a device (this is part of the test)");
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let (open, timeout) = self
            .opened
            .wait_timeout_while(self.open.lock().unwrap(), Duration::from_secs(15), |open| {
                !*open
            })
            .unwrap();
        drop(open);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        if timeout.timed_out() {
            return Err(BlockError::new(
                BlockErrorKind::Unavailable,
                "the link is down",
            ));
        }
        self.near.read(offset, buf)
    }
    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, BlockError> {
        if offset >= 512 << 10 {
            Ok(false)
        } else {
            self.near.try_read(offset, buf)
        }
    }
    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), BlockError> {
        self.near.write(offset, data, fua)?;
        self.written.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        may_unmap: bool,
        fua: bool,
    ) -> Result<(), BlockError> {
        self.near.write_zeroes(offset, len, may_unmap, fua)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.near.discard(offset, len)
    }
    fn flush(&self) -> Result<(), BlockError> {
        self.durable
            .store(self.written.load(Ordering::SeqCst), Ordering::SeqCst);
        self.near.flush()
    }
    fn block_status(&self, offset: u64, len: u64) -> Result<Vec<RangeStatus>, BlockError> {
        self.near.block_status(offset, len)
    }
}

const FAR: u64 = 600 << 10;

#[test]
fn a_read_that_waits_for_the_wan_holds_up_nobody() {
    let device = Remote::new();
    let lab = Lab::with(Arc::clone(&device) as _);
    let mut one = Raw::ready(&lab.socket(), "disk");
    let mut two = Raw::ready(&lab.socket(), "disk");
    let far: Vec<u64> = (0..8)
        .map(|at| one.send(READ, 0, FAR + at * 4096, 4096, &[]))
        .collect();
    wait_until("all eight misses are under way at once", || {
        device.waiting() == 8
    });
    let started = Instant::now();
    for _ in 0..100 {
        assert_eq!(one.call(READ, 0, 0, 4096, &[]).error, 0);
        assert_eq!(two.call(WRITE, 0, 4096, 4, b"here").error, 0);
        assert_eq!(two.call(FLUSH, 0, 0, 0, &[]).error, 0);
    }
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "hits took {:?}",
        started.elapsed()
    );
    device.open_the_gate();
    let mut answered: Vec<u64> = far
        .iter()
        .map(|_| one.reply())
        .map(|reply| reply.cookie)
        .collect();
    answered.sort_unstable();
    assert_eq!(answered, far);
    let export = lab.exports.remove("disk").unwrap();
    let counters = export.counters();
    assert_eq!(
        (counters.misses, counters.reads, counters.errors),
        (8, 108, 0)
    );
    assert_eq!(counters.read_latency.iter().sum::<u64>(), 108);
}

#[test]
fn a_flush_covers_writes_of_every_connection() {
    let device = Remote::new();
    let lab = Lab::with(Arc::clone(&device) as _);
    let mut clients: Vec<Raw> = (0..4).map(|_| Raw::ready(&lab.socket(), "disk")).collect();
    for (at, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.call(WRITE, 0, at as u64 * 4096, 4, b"data").error, 0);
    }
    assert_eq!(device.durable.load(Ordering::SeqCst), 0);
    assert_eq!(clients[3].call(FLUSH, 0, 0, 0, &[]).error, 0);
    assert_eq!(device.durable.load(Ordering::SeqCst), 4);
    for client in &mut clients {
        assert_eq!(
            client.read(3 * 4096, 4),
            b"data",
            "a write is seen by every connection"
        );
    }
}

#[test]
fn a_device_that_panics_is_an_error_to_its_guest_only() {
    let device = Remote::new();
    let lab = Lab::with(Arc::clone(&device) as _);
    let mut client = Raw::ready(&lab.socket(), "disk");
    device.broken.store(true, Ordering::SeqCst);
    assert_eq!(client.call(READ, 0, FAR, 4096, &[]).error, 5);
    assert_eq!(client.call(READ, 0, 0, 4096, &[]).error, 0);
}

#[test]
fn an_export_leaves_while_others_go_on() {
    let lab = Lab::with(Arc::new(MemoryDevice::new(1 << 20)));
    let leaving = Remote::new();
    let export = lab.add("leaving", Arc::clone(&leaving) as _);
    assert_eq!(
        lab.exports.insert(Arc::clone(&export)).unwrap_err(),
        ExportError::Exists("leaving".to_owned())
    );
    let mut stays = Raw::ready(&lab.socket(), "disk");
    let mut leaves = Raw::ready(&lab.socket(), "leaving");
    let mut late = Raw::hello(&lab.socket());
    let pending = leaves.send(READ, 0, FAR, 4096, &[]);
    wait_until("the miss is under way", || leaving.waiting() == 1);

    let removed = lab.exports.remove("leaving").unwrap();
    let closing = std::thread::spawn(move || removed.close(Duration::from_secs(10)));
    std::thread::sleep(Duration::from_millis(50));
    assert!(!closing.is_finished(), "a request in flight is waited for");
    leaving.open_the_gate();
    let reply = leaves.reply();
    assert_eq!(
        (reply.cookie, reply.error),
        (pending, 0),
        "what was in flight is answered"
    );
    assert!(leaves.is_ended());
    assert!(closing.join().unwrap(), "nobody uses the device any more");
    assert_eq!(export.connections(), 0);
    assert_eq!(
        late.option(GO, &info_request("leaving"))[0].0,
        (1 << 31) + 6
    );
    assert_eq!(stays.call(READ, 0, 0, 4096, &[]).error, 0);
    // The same name can come back.
    lab.add("leaving", Arc::new(MemoryDevice::new(4096)));
    assert_eq!(
        Raw::ready(&lab.socket(), "leaving").read(0, 4096).len(),
        4096
    );
}

#[test]
fn shutdown_answers_what_is_in_flight_and_removes_the_socket() {
    let device = Remote::new();
    let lab = Lab::with(Arc::clone(&device) as _);
    let mut client = Raw::ready(&lab.socket(), "disk");
    let mut idle = Raw::hello(&lab.socket());
    let pending = client.send(READ, 0, FAR, 4096, &[]);
    wait_until("the miss is under way", || device.waiting() == 1);
    std::thread::scope(|scope| {
        let ended = scope.spawn(|| lab.server.shutdown(Duration::from_secs(10)));
        wait_until("the socket is gone", || !lab.socket().exists());
        device.open_the_gate();
        assert_eq!(client.reply().cookie, pending);
        assert!(client.is_ended());
        assert!(idle.is_ended());
        assert!(ended.join().unwrap());
    });
    assert_eq!(lab.server.connections(), 0);
    assert!(matches!(
        lab.server.listen_unix(&lab.socket()),
        Err(ListenError::ShutDown)
    ));
    assert!(!lab.socket().exists());
}

#[test]
fn disconnecting_ends_the_connection_after_its_requests() {
    let device = Remote::new();
    let lab = Lab::with(Arc::clone(&device) as _);
    let mut client = Raw::ready(&lab.socket(), "disk");
    client.send(WRITE, 0, 0, 4, b"last");
    client.send(DISC, 0, 0, 0, &[]);
    assert_eq!(client.reply().error, 0);
    assert!(client.is_ended());
    wait_until("the connection is gone", || lab.server.connections() == 0);
    assert_eq!(&device.near.content()[..4], b"last");
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nbd.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a server that died leaves its socket behind");
    let server = || NbdServer::new(Arc::new(ExportMap::default()), NbdOptions::default()).unwrap();
    let first = server();
    first.listen_unix(&path).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    let error = server().listen_unix(&path).unwrap_err();
    assert!(matches!(error, ListenError::InUse(_)), "{error}");
    assert!(error.to_string().contains("in use"), "{error}");
    drop(Raw::hello(&path));

    let file = folder.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(
        server().listen_unix(&file),
        Err(ListenError::NotASocket(_))
    ));
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    drop(first);
    assert!(!path.exists());
}
