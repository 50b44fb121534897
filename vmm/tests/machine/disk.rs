//! A disk of a file, used by the guest.

use std::sync::Arc;

use vmm::virtio::block::{Block, Disk, Limits};
use vmm_block::RawFile;

use crate::lab::Lab;

const SECTOR: usize = 512;
const SECTORS: usize = 2048;

/// As the guest knows it.
fn pattern(at: usize) -> u8 {
    (at / SECTOR * 7 + at % SECTOR + 3) as u8
}

fn run(queues: usize) {
    let Some(mut lab) = Lab::new() else { return };
    let path = lab.file("disk");
    let mut content: Vec<u8> = (0..SECTORS * SECTOR).map(pattern).collect();
    std::fs::write(&path, &content).unwrap();
    let disk = Disk {
        device: Arc::new(RawFile::open(&path, false).unwrap()),
        serial: "guest-disk".into(),
        queues,
        limits: Limits::default(),
    };
    lab.add("disk", Block::new(disk));
    lab.run("block off").has("CHECK block ok");
    // What the guest has done, of each queue.
    for base in (0..queues).map(|queue| 64 + 32 * queue) {
        let sectors =
            |first: usize, count: usize| (base + first) * SECTOR..(base + first + count) * SECTOR;
        for at in sectors(0, 4) {
            content[at] = !pattern(at);
        }
        content[sectors(8, 16)].fill(0);
    }
    let found = std::fs::read(&path).unwrap();
    let wrong = (0..content.len()).find(|at| content[*at] != found[*at]);
    assert_eq!(wrong, None, "the first byte of the file that differs");
}

#[test]
fn a_guest_reads_writes_flushes_discards_and_is_refused() {
    run(1);
}

#[test]
fn queues_of_a_disk_work_side_by_side() {
    run(2);
}
