//! A disk over vhost-user: the guest sees a disk, whatever becomes of its servers.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use vmm::snapshot::Loading;
use vmm::virtio::Device;
use vmm::virtio::block::{Block, Disk, Limits};
use vmm::virtio::vhost_user::RemoteBlock;
use vmm_block::vhost_user::{DiskSpec, VhostUserServer};
use vmm_block::{
    BlockDevice, BlockError, BlockErrorKind, Geometry, MemoryDevice, RangeStatus, RawFile,
};

use crate::guest::{Data, FLUSH, GET_ID, IN, OUT, PATIENCE, SECTOR, pattern};
use crate::machine::Machine;

const DISK_BYTES: usize = 1 << 20;
const DISK: &str = "SPLICE_TEST_REMOTE_DISK";
const SOCKET: &str = "SPLICE_TEST_REMOTE_SOCKET";

struct Place {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    disk: PathBuf,
}

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    Place {
        socket: folder.path().join("disk.sock"),
        disk: folder.path().join("disk.raw"),
        _folder: folder,
    }
}

fn serve(socket: &Path, disk: &Arc<MemoryDevice>, queues: u16) -> VhostUserServer {
    let disk = DiskSpec {
        device: Arc::clone(disk) as _,
        serial: "remote".into(),
        queues,
    };
    VhostUserServer::listen(socket, 0o600, disk).unwrap()
}

fn open(socket: &Path, queues: usize) -> Machine {
    Machine::new(Box::new(
        RemoteBlock::open(socket, queues, PATIENCE).unwrap(),
    ))
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_guest_uses_a_disk_of_another_process() {
    let place = place();
    let disk = Arc::new(MemoryDevice::new(DISK_BYTES));
    let _server = serve(&place.socket, &disk, 4);
    let mut machine = open(&place.socket, 2);
    assert_eq!(machine.drivers.len(), 2);
    let sectors = (DISK_BYTES / SECTOR) as u64;
    assert_eq!(machine.config(0, 8), sectors.to_le_bytes());
    assert_eq!(machine.config(34, 2), [2, 0], "queues that the guest has");
    machine.start(&[0, 0]);
    let data = pattern(7, 8 * SECTOR);
    for queue in 0..2 {
        let sector = 16 * queue as u64;
        machine.drivers[queue].submit(OUT, sector, Data::Out(&data));
        machine.kick(queue);
        assert_eq!(machine.drivers[queue].wait().status, 0);
        machine.drivers[queue].submit(IN, sector, Data::In(data.len()));
        machine.drivers[queue].submit(FLUSH, 0, Data::None);
        machine.drivers[queue].submit(GET_ID, 0, Data::In(20));
        machine.kick(queue);
        for _ in 0..3 {
            assert_eq!(machine.drivers[queue].wait().status, 0);
        }
        wait_until("an interrupt", || machine.was_interrupted(queue));
    }
    assert_eq!(machine.stop(), [(4, 4), (4, 4)]);
    assert_eq!(disk.content()[..data.len()], data);
    // And again, as after a pause.
    machine.start(&[4, 4]);
    machine.drivers[1].submit(IN, 16, Data::In(data.len()));
    machine.kick(1);
    assert_eq!(machine.drivers[1].wait().data, data);
    assert_eq!(machine.stop(), [(4, 4), (5, 5)]);
}

#[test]
fn a_guest_waits_for_a_server_that_is_upgraded() {
    let place = place();
    let disk = Arc::new(MemoryDevice::new(DISK_BYTES));
    let server = serve(&place.socket, &disk, 1);
    let mut machine = open(&place.socket, 4);
    assert_eq!(
        machine.drivers.len(),
        1,
        "no more queues than the server has"
    );
    machine.start(&[0]);
    let mut server = Some(server);
    for round in 0..4u64 {
        for n in 0..10 {
            let sector = round * 10 + n;
            machine.drivers[0].submit(OUT, sector, Data::Out(&pattern(sector, SECTOR)));
            machine.kick(0);
        }
        server.take().unwrap().stop();
        machine.drivers[0].submit(FLUSH, 0, Data::None);
        machine.kick(0);
        server = Some(serve(&place.socket, &disk, 1));
        while machine.drivers[0].in_flight() > 0 {
            assert_eq!(machine.drivers[0].wait().status, 0);
        }
    }
    assert_eq!(machine.stop(), [(44, 44)]);
    let content = disk.content();
    for sector in 0..40u64 {
        let at = sector as usize * SECTOR;
        assert!(
            content[at..at + SECTOR] == pattern(sector, SECTOR),
            "{sector}"
        );
    }
}

/// Not a test of its own: the server that [`a_server_that_is_killed_is_replaced`] kills.
#[test]
fn child() {
    let (Ok(disk), Ok(socket)) = (std::env::var(DISK), std::env::var(SOCKET)) else {
        return;
    };
    let disk = DiskSpec {
        device: Arc::new(RawFile::open(Path::new(&disk), false).unwrap()),
        serial: String::new(),
        queues: 1,
    };
    let _server = VhostUserServer::listen(Path::new(&socket), 0o600, disk).unwrap();
    // Until it is killed, or the test that would do so is gone.
    let _ = std::io::stdin().read(&mut [0]);
}

struct Killed(Child);

impl Killed {
    fn spawn(place: &Place) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "remote::child", "--nocapture"])
            .env(DISK, &place.disk)
            .env(SOCKET, &place.socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_server_that_is_killed_is_replaced() {
    let place = place();
    drop(RawFile::create(&place.disk, DISK_BYTES as u64).unwrap());
    let mut server = Killed::spawn(&place);
    let mut machine = open(&place.socket, 1);
    machine.start(&[0]);
    let mut sector = 0u64;
    for _ in 0..5 {
        // Killed in the middle of writes, which come back from the next one.
        for _ in 0..200 {
            while machine.drivers[0].room() == 0 {
                assert_eq!(machine.drivers[0].wait().status, 0);
            }
            machine.drivers[0].submit(OUT, sector, Data::Out(&pattern(sector, SECTOR)));
            machine.kick(0);
            sector += 1;
        }
        drop(server);
        server = Killed::spawn(&place);
    }
    while machine.drivers[0].in_flight() > 0 {
        assert_eq!(machine.drivers[0].wait().status, 0);
    }
    let places = machine.stop();
    assert_eq!(places, [(sector as u16, sector as u16)]);
    drop(server);
    let content = std::fs::read(&place.disk).unwrap();
    for sector in 0..sector {
        let at = sector as usize * SECTOR;
        assert!(
            content[at..at + SECTOR] == pattern(sector, SECTOR),
            "{sector}"
        );
    }
}

#[test]
fn a_disk_without_a_server_stops_all_the_same() {
    let place = place();
    let disk = Arc::new(MemoryDevice::new(DISK_BYTES));
    let server = serve(&place.socket, &disk, 1);
    let mut machine = open(&place.socket, 1);
    server.stop();
    machine.start(&[0]);
    machine.drivers[0].submit(IN, 0, Data::In(SECTOR));
    machine.kick(0);
    assert_eq!(
        machine.drivers[0].wait_for(Duration::from_millis(100)),
        None
    );
    assert_eq!(machine.stop(), [(0, 0)]);
    // The next start has a server again.
    let _server = serve(&place.socket, &disk, 1);
    machine.start(&[0]);
    assert_eq!(machine.drivers[0].wait().status, 0);
    assert_eq!(machine.stop(), [(1, 1)]);
}

/// A disk whose first sector cannot be read for now.
struct CutOff {
    disk: MemoryDevice,
    is_cut: AtomicBool,
    tries: AtomicUsize,
}

impl BlockDevice for CutOff {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        if offset == 0 && self.is_cut.load(Ordering::SeqCst) {
            self.tries.fetch_add(1, Ordering::SeqCst);
            return Err(BlockError::new(BlockErrorKind::Unavailable, "cut off"));
        }
        self.disk.read(offset, buf)
    }

    fn try_read(&self, _: u64, _: &mut [u8]) -> Result<bool, BlockError> {
        Ok(false)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), BlockError> {
        self.disk.write(offset, data, fua)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        may_unmap: bool,
        fua: bool,
    ) -> Result<(), BlockError> {
        self.disk.write_zeroes(offset, len, may_unmap, fua)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.disk.discard(offset, len)
    }

    fn flush(&self) -> Result<(), BlockError> {
        self.disk.flush()
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Vec<RangeStatus>, BlockError> {
        self.disk.block_status(offset, len)
    }
}

/// The WAN is down when a desktop is saved: what its server could not answer is answered in the machine that was saved, and, as often as
/// one goes on from its snapshot, there too.
#[test]
fn requests_that_cannot_be_answered_for_now_go_on_after_a_snapshot() {
    let place = place();
    let disk = Arc::new(CutOff {
        disk: MemoryDevice::new(DISK_BYTES),
        is_cut: AtomicBool::new(true),
        tries: AtomicUsize::new(0),
    });
    let spec = DiskSpec {
        device: Arc::clone(&disk) as _,
        serial: String::new(),
        queues: 1,
    };
    let _server = VhostUserServer::listen(&place.socket, 0o600, spec).unwrap();
    let mut machine = open(&place.socket, 1);
    machine.start(&[0]);
    let waits = machine.drivers[0].submit(IN, 0, Data::In(SECTOR));
    let done = machine.drivers[0].submit(IN, 8, Data::In(SECTOR));
    machine.kick(0);
    // Out of order: the second one's place in the ring is not the one that is left.
    assert_eq!(machine.drivers[0].wait().head, done);
    let tried = || disk.tries.load(Ordering::SeqCst);
    wait_until("it was tried", || tried() > 0);
    assert_eq!(machine.stop(), [(2, 1)]);
    let saved = machine.device.save(&machine.memory).unwrap();
    // The machine that was saved goes on, and is saved again.
    let before = tried();
    machine.start(&[1]);
    wait_until("it is tried again", || tried() > before);
    assert_eq!(machine.stop(), [(2, 1)]);
    assert!(machine.device.save(&machine.memory).is_ok());

    let mut next = RemoteBlock::open(&place.socket, 1, PATIENCE).unwrap();
    next.restore(saved.clone(), &machine.memory).unwrap();
    let again = next.save(&machine.memory).unwrap();
    assert_eq!(again, saved, "saved before it was started");
    machine.device = Box::new(next);
    disk.is_cut.store(false, Ordering::SeqCst);
    machine.start(&[1]);
    let answer = machine.drivers[0].wait();
    assert_eq!((answer.head, answer.status), (waits, 0));
    assert_eq!(machine.stop(), [(2, 2)]);
    let saved_last = machine.device.save(&machine.memory).unwrap();
    assert_ne!(saved_last, saved, "nothing is left");

    // A disk in this process has nobody to ask.
    let mut other = Block::new(Disk {
        device: Arc::new(MemoryDevice::new(DISK_BYTES)),
        serial: String::new(),
        queues: 1,
        limits: Limits::default(),
    });
    assert!(other.restore(saved, &machine.memory).is_err());
    other.restore(saved_last, &machine.memory).unwrap();
}

#[test]
fn a_disk_is_not_shared_before_its_machine_has_all_its_memory() {
    let place = place();
    let disk = Arc::new(MemoryDevice::new(DISK_BYTES));
    let _server = serve(&place.socket, &disk, 1);
    let loading = Loading::begun();
    let remote = RemoteBlock::open(&place.socket, 1, PATIENCE).unwrap();
    let mut machine = Machine::new(Box::new(remote.after(loading.clone())));
    machine.start(&[0]);
    machine.drivers[0].submit(IN, 0, Data::In(SECTOR));
    machine.kick(0);
    let early = machine.drivers[0].wait_for(Duration::from_millis(100));
    assert_eq!(early, None);
    // A machine that is saved meanwhile gets its queue back as it was.
    assert_eq!(machine.stop(), [(0, 0)]);
    machine.start(&[0]);
    loading.end();
    assert_eq!(machine.drivers[0].wait().status, 0);
    assert_eq!(machine.stop(), [(1, 1)]);
}

#[test]
fn a_machine_that_goes_on_needs_a_disk_of_the_same_size() {
    let place = place();
    let disk = Arc::new(MemoryDevice::new(DISK_BYTES));
    let server = serve(&place.socket, &disk, 1);
    let memory = vmm::machine::memory::create(64).unwrap();
    let remote = || RemoteBlock::open(&place.socket, 1, PATIENCE).unwrap();
    let saved = remote().save(&memory).unwrap();
    remote().restore(saved.clone(), &memory).unwrap();
    server.stop();
    let larger = Arc::new(MemoryDevice::new(2 * DISK_BYTES));
    let _server = serve(&place.socket, &larger, 1);
    let refused = remote().restore(saved, &memory).unwrap_err();
    assert_eq!(refused.to_string(), "it had 1048576 bytes, now 2097152");
}

#[test]
fn what_is_no_server_is_told() {
    let place = place();
    let opened = RemoteBlock::open(&place.socket, 1, Duration::from_millis(100));
    assert!(opened.is_err());
}
