//! Disks and what upgrades do to them.

use crash::Rng;

/// How large a world is: by what its carrier costs, and by what its line can be expected to lose.
#[derive(Debug, Clone, Copy)]
pub enum Scale {
    /// Mostly a few messages; one in sixty has a disk large enough for several batches.
    Messages,
    /// Mostly thousands of packets, as every one is a chance to be lost; one in twelve is many times what a path holds.
    Packets,
}

impl Scale {
    /// Bytes of a first disk that are no holes.
    fn disk_bytes(self, rng: &mut Rng) -> u64 {
        match self {
            Self::Messages => match rng.below(60) {
                0 => (4 << 20) + rng.below(4 << 20),
                1..=10 => rng.below(600_000),
                _ => rng.below(120_000),
            },
            Self::Packets => match rng.below(12) {
                0 => (8 << 20) + rng.below(24 << 20),
                1..=8 => 500_000 + rng.below(6 << 20),
                _ => rng.below(500_000),
            },
        }
    }

    /// The smallest chunks of a world: at least 1 KiB.
    pub fn chunk_bytes_min(self, rng: &mut Rng) -> u32 {
        1024 << rng.below(match self {
            Self::Messages => 2,
            Self::Packets => 5,
        })
    }

    /// Guests' reads in a world, at most.
    pub fn reads_max(self) -> u64 {
        match self {
            Self::Messages => 30,
            Self::Packets => 120,
        }
    }

    /// Troubles in a world, at most.
    pub fn troubles_max(self) -> u64 {
        match self {
            Self::Messages => 12,
            Self::Packets => 24,
        }
    }

    /// How long the troubles last, at most.
    pub fn troubles_ms_max(self) -> u64 {
        match self {
            Self::Messages => 120_000,
            Self::Packets => 300_000,
        }
    }
}

/// A disk of noise, holes, repeated pieces and text.
pub fn first_disk(rng: &mut Rng, scale: Scale) -> Vec<u8> {
    let data = scale.disk_bytes(rng);
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
