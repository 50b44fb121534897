//! A disk (virtio 1.2, section 5.2). Its host has filled sector n with bytes that tell n, see [`pattern`].

use crate::memory::Piece;
use crate::queue::{Queue, gives, takes};
use crate::report::{Check, Wrong, ensure};
use crate::virtio::{Device, F_EVENT_IDX, Learns};

const KIND: u32 = 2;
const SECTOR: usize = 512;

const F_FLUSH: u64 = 1 << 9;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// Where in the configuration the number of queues is.
const QUEUES_AT: usize = 34;

/// Byte `at` of a disk as its host made it.
fn pattern(at: usize) -> u8 {
    (at / SECTOR * 7 + at % SECTOR + 3) as u8
}

/// Byte `at` of what is written here.
fn written(at: usize) -> u8 {
    !pattern(at)
}

struct Disk {
    queue: Queue,
    head: Piece,
    data: Piece,
}

impl Disk {
    /// A request; `given` or `taken` bytes of the data go with it. What status it has, and how much was written.
    fn ask(&mut self, kind: u32, sector: u64, given: usize, taken: usize) -> Result<(u8, u32), Wrong> {
        self.head.write(0, kind);
        self.head.write(4, 0u32);
        self.head.write(8, sector);
        self.head.write(16, 0xeeu8);
        let (head, status) = (gives(self.head, 0, 16), takes(self.head, 16, 1));
        let wrote = match (given, taken) {
            (0, 0) => self.queue.ask(&[head, status])?,
            (0, len) => self.queue.ask(&[head, takes(self.data, 0, len), status])?,
            (len, _) => self.queue.ask(&[head, gives(self.data, 0, len), status])?,
        };
        Ok((self.head.read(16), wrote))
    }

    /// A request that must be done.
    fn must(&mut self, kind: u32, sector: u64, given: usize, taken: usize) -> Result<(), Wrong> {
        let (status, wrote) = self.ask(kind, sector, given, taken)?;
        ensure(status == OK, "a request fails", u64::from(kind) << 8 | u64::from(status))?;
        ensure(wrote as usize == taken + 1, "another length", wrote.into())
    }

    /// Sectors must be as `byte` says, by their place on the disk.
    fn reads(&mut self, sector: usize, sectors: usize, byte: fn(usize) -> u8) -> Result<(), Wrong> {
        let len = sectors * SECTOR;
        self.data.fill(0xaa);
        self.must(IN, sector as u64, 0, len)?;
        let wrong = self.data.differs(0, len, |at| byte(sector * SECTOR + at));
        ensure(wrong.is_none(), "other bytes", wrong.unwrap_or(0) as u64)
    }

    fn range(&mut self, kind: u32, sector: u64, sectors: u32) -> Result<(), Wrong> {
        self.data.write(0, sector);
        self.data.write(8, sectors);
        self.data.write(12, 0u32);
        self.must(kind, 0, 16, 0)
    }
}

pub fn check(check: &mut Check) -> Result<(), Wrong> {
    for (learns, features) in [
        (Learns::Polls, 0),
        (Learns::Interrupted, 0),
        (Learns::Interrupted, F_EVENT_IDX),
    ] {
        let wanted = features | F_FLUSH | F_MQ | F_DISCARD | F_WRITE_ZEROES;
        let device = Device::open(KIND, 0, wanted, learns)?;
        let sectors: u64 = device.config(0);
        ensure(sectors >= 256, "a disk that is too small", sectors)?;
        let queues: u16 = device.config(QUEUES_AT);
        ensure(device.queues() == queues, "another number of queues", queues.into())?;
        let queues = queues.min(2);
        let mut disks = [const { None }; 2];
        for index in 0..queues {
            let queue = device.queue(index, 16)?;
            let (head, data) = (Piece::take(32), Piece::take(16 * SECTOR));
            disks[usize::from(index)] = Some(Disk { queue, head, data });
        }
        device.begin()?;
        for (index, disk) in disks.iter_mut().flatten().enumerate() {
            // Each round and queue has its own sectors.
            let base = 64 + 32 * index;
            disk.reads(0, 16, pattern)?;
            check.done("reads");
            for at in 0..4 * SECTOR {
                disk.data.write(at, written(base * SECTOR + at));
            }
            disk.must(OUT, base as u64, 4 * SECTOR, 0)?;
            disk.must(FLUSH, 0, 0, 0)?;
            disk.reads(base, 4, written)?;
            check.done("writes and flushes");
            disk.range(DISCARD, base as u64 + 8, 8)?;
            disk.reads(base + 8, 8, |_| 0)?;
            disk.range(WRITE_ZEROES, base as u64 + 16, 8)?;
            disk.reads(base + 16, 8, |_| 0)?;
            disk.reads(base + 24, 8, pattern)?;
            check.done("discards and zeroes");
            disk.must(GET_ID, 0, 0, 20)?;
            ensure(disk.data.holds(0, b"guest-disk\0"), "another serial number", 0)?;
            check.done("tells its serial number");
            for (sector, len) in [(sectors, SECTOR), (sectors - 1, 2 * SECTOR), (u64::MAX, SECTOR)] {
                for kind in [IN, OUT] {
                    let (given, taken) = if kind == OUT { (len, 0) } else { (0, len) };
                    let (status, _) = disk.ask(kind, sector, given, taken)?;
                    ensure(status == IO_ERROR, "a request beyond the end", sector)?;
                }
            }
            let (status, _) = disk.ask(77, 0, 0, 0)?;
            ensure(status == UNSUPPORTED, "a request that nobody knows", status.into())?;
            disk.reads(0, 1, pattern)?;
            check.done("refuses");
        }
        device.reset()?;
    }
    Ok(())
}
