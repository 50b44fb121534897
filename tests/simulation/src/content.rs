//! Disks and what upgrades do to them.

use crash::Rng;

/// A disk of noise, holes, repeated pieces and text. One in sixty is large enough for several batches.
pub fn first_disk(rng: &mut Rng) -> Vec<u8> {
    let data = match rng.below(60) {
        0 => (4 << 20) + rng.below(4 << 20),
        1..=10 => rng.below(600_000),
        _ => rng.below(120_000),
    };
    let mut disk = Vec::new();
    let mut written = 0;
    while written <= data {
        let part = 1 + rng.below(data / 4 + 3000) as usize;
        match rng.below(5) {
            // Most of a leaf, sometimes: several leaves cost nothing when they are zero.
            0 => disk.resize(disk.len() + part * (1 + rng.below(24) as usize), 0),
            1 => disk.extend(
                b"the same line again and again\n"
                    .iter()
                    .cycle()
                    .take(part)
                    .copied(),
            ),
            2 if !disk.is_empty() => {
                let from = rng.below(disk.len() as u64) as usize;
                disk.extend_from_within(from..(from + part).min(disk.len()));
            }
            _ => disk.extend(rng.bytes(part)),
        }
        written += part as u64;
    }
    disk
}

/// Overwrites, frees, moves, inserts, grows and sometimes shrinks.
pub fn next_disk(rng: &mut Rng, disk: &[u8]) -> Vec<u8> {
    let mut disk = disk.to_vec();
    for _ in 0..1 + rng.below(5) {
        let len = disk.len() as u64;
        let at = rng.below(len) as usize;
        let end = (at + 1 + rng.below(1 + len / 5) as usize).min(disk.len());
        match rng.below(6) {
            0 => disk[at..end].fill(0),
            1 => {
                let fresh = rng.bytes(end - at);
                disk[at..end].copy_from_slice(&fresh);
            }
            2 => {
                let to = rng.below((disk.len() - (end - at)) as u64 + 1) as usize;
                disk.copy_within(at..end, to);
            }
            3 => disk.extend(rng.bytes((end - at) / 4)),
            4 if disk.len() > 20_000 => disk.truncate(disk.len() - (end - at) / 2),
            _ => disk.insert(at, 7),
        }
    }
    disk
}
