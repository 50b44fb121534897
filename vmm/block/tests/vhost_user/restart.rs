//! Servers that are killed or upgraded while requests are in flight.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use vmm_block::vhost_user::{DiskSpec, VhostUserServer};
use vmm_block::{BlockDevice, BlockError, Geometry, RangeStatus, RawFile};

use crate::client::{Client, Guest};
use crate::guest::{Data, IN, OUT, SECTOR, pattern};
use crate::serve::{DISK_BYTES, place};

const DISK: &str = "SPLICE_TEST_VHOST_DISK";
const SOCKET: &str = "SPLICE_TEST_VHOST_SOCKET";
/// Requests at this sector and beyond are never done by a server that will be killed.
const STUCK: u64 = 1000;

/// A disk file of a server that will be killed.
struct Stuck(RawFile);

impl Stuck {
    fn pass(offset: u64) {
        if offset >= STUCK * SECTOR as u64 {
            loop {
                std::thread::park();
            }
        }
    }
}

impl BlockDevice for Stuck {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        Self::pass(offset);
        self.0.read(offset, buf)
    }
    fn try_read(&self, _: u64, _: &mut [u8]) -> Result<bool, BlockError> {
        Ok(false)
    }
    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), BlockError> {
        Self::pass(offset);
        self.0.write(offset, data, fua)
    }
    fn try_write(&self, _: u64, _: &[u8]) -> Result<bool, BlockError> {
        Ok(false)
    }
    fn write_zeroes(&self, _: u64, _: u64, _: bool, _: bool) -> Result<(), BlockError> {
        unreachable!("the test does not ask for it")
    }
    fn discard(&self, _: u64, _: u64) -> Result<(), BlockError> {
        unreachable!("the test does not ask for it")
    }
    fn flush(&self) -> Result<(), BlockError> {
        self.0.flush()
    }
    fn block_status(&self, offset: u64, len: u64) -> Result<Vec<RangeStatus>, BlockError> {
        self.0.block_status(offset, len)
    }
}

/// Not a test of its own: the server that [`a_server_that_is_killed_loses_nothing`] kills.
#[test]
fn child() {
    let (Ok(disk), Ok(socket)) = (std::env::var(DISK), std::env::var(SOCKET)) else {
        return;
    };
    let file = RawFile::open(Path::new(&disk), false).unwrap();
    let disk = DiskSpec {
        device: Arc::new(Stuck(file)),
        serial: String::new(),
        queues: 4,
    };
    let _server = VhostUserServer::listen(Path::new(&socket), 0o600, disk).unwrap();
    // Until it is killed, or the test that would do so is gone.
    let _ = std::io::stdin().read(&mut [0]);
}

struct Killed(Child);

impl Killed {
    fn spawn(disk: &Path, socket: &Path) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "restart::child", "--nocapture"])
            .env(DISK, disk)
            .env(SOCKET, socket)
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
fn a_server_that_is_killed_loses_nothing() {
    let place = place();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    drop(RawFile::create(&path, DISK_BYTES as u64).unwrap());
    let server = Killed::spawn(&path, &place.socket);
    let mut guest = Guest::new(2);
    let client = Client::attach(&place.socket, &mut guest);
    // Long enough for the rings to be written over many times, around requests that are stuck.
    let mut stuck = [Vec::new(), Vec::new()];
    for round in 0..60u64 {
        for queue in 0..2u64 {
            let sector = queue * 400 + round;
            let driver = &mut guest.queues[queue as usize];
            if round % 12 == 5 {
                let sector = sector + STUCK;
                let data = pattern(sector, SECTOR);
                stuck[queue as usize].push(driver.submit(OUT, sector, Data::Out(&data)));
            }
            driver.submit(OUT, sector, Data::Out(&pattern(sector, SECTOR)));
            guest.kick(queue as usize);
            assert_eq!(guest.queues[queue as usize].wait().status, 0);
        }
    }
    drop(server);
    drop(client);
    // Requests that nobody has taken yet.
    let late: Vec<u16> = (0..2)
        .map(|queue| guest.queues[queue].submit(IN, queue as u64 * 400, Data::In(SECTOR)))
        .collect();
    let disk = DiskSpec {
        device: Arc::new(RawFile::open(&path, false).unwrap()),
        serial: String::new(),
        queues: 4,
    };
    let _server = VhostUserServer::listen(&place.socket, 0o600, disk).unwrap();
    let _client = Client::attach(&place.socket, &mut guest);
    for queue in 0..2 {
        let mut heads = Vec::new();
        while guest.queues[queue].in_flight() > 0 {
            let answer = guest.queues[queue].wait();
            assert_eq!(answer.status, 0);
            heads.push(answer.head);
        }
        heads.sort_unstable();
        let mut expected = stuck[queue].clone();
        assert_eq!(expected.len(), 5);
        expected.push(late[queue]);
        expected.sort_unstable();
        assert_eq!(heads, expected, "each once and no other");
        let more = guest.queues[queue].wait_for(Duration::from_millis(50));
        assert_eq!(more, None);
    }
    let content = std::fs::read(&path).unwrap();
    for queue in 0..2u64 {
        for round in 0..60 {
            let mut sectors = vec![queue * 400 + round];
            if round % 12 == 5 {
                sectors.push(queue * 400 + round + STUCK);
            }
            for sector in sectors {
                let at = sector as usize * SECTOR;
                assert!(
                    content[at..at + SECTOR] == pattern(sector, SECTOR),
                    "{sector}"
                );
            }
        }
    }
}

#[test]
fn upgrades_one_after_the_other_lose_nothing() {
    let place = place();
    let disk = Arc::new(vmm_block::MemoryDevice::new(DISK_BYTES));
    let mut guest = Guest::new(1);
    let mut sector = 0;
    for _ in 0..5 {
        let spec = DiskSpec {
            device: Arc::clone(&disk) as _,
            serial: String::new(),
            queues: 1,
        };
        let server = VhostUserServer::listen(&place.socket, 0o600, spec).unwrap();
        let client = Client::attach(&place.socket, &mut guest);
        for _ in 0..15 {
            let data = pattern(sector, SECTOR);
            guest.queues[0].submit(OUT, sector, Data::Out(&data));
            guest.kick(0);
            sector += 1;
        }
        // In the middle of them.
        server.stop();
        drop(client);
        while guest.queues[0].answer().is_some() {}
        if guest.queues[0].in_flight() > 0 {
            // The next server does the rest.
            let spec = DiskSpec {
                device: Arc::clone(&disk) as _,
                serial: String::new(),
                queues: 1,
            };
            let _server = VhostUserServer::listen(&place.socket, 0o600, spec).unwrap();
            let _client = Client::attach(&place.socket, &mut guest);
            while guest.queues[0].in_flight() > 0 {
                assert_eq!(guest.queues[0].wait().status, 0);
            }
        }
    }
    let content = disk.content();
    for sector in 0..sector {
        let at = sector as usize * SECTOR;
        assert!(
            content[at..at + SECTOR] == pattern(sector, SECTOR),
            "{sector}"
        );
    }
}
