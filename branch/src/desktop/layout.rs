//! Whether an overlay can go on over another version: by partitions, which is as far as blocks have a meaning.
//!
//! A file system lies in one partition; what was written to it and what it was written over belong together. So an overlay goes on where in each region of the
//! disk either nothing was written, and the new version's bytes show, or the two versions are the same, and nothing is new under it. Regions are the partitions;
//! all that are parts of volume groups or arrays (LVM, RAID) together, since a file system may lie across them; and all that is in none, the tables among it.
//!
//! Invariant: a table that is not understood allows nothing. It reads versions, which are signed, and never what a guest wrote.

use std::ops::Range;

use vmm_block::BlockError;

use crate::content_map::{ContentMap, Piece};
use crate::volume::Base;

const SECTOR: u64 = 512;
/// Most entries of a GPT that are looked at; all tools write 128.
const ENTRIES_MAX: u32 = 128;
const ENTRY_BYTES: Range<u32> = 128..4097;
/// Types of partitions in an MBR.
const MBR_GPT: u8 = 0xee;
const MBR_EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
const MBR_GROUPS: [u8; 2] = [0x8e, 0xfd];
/// Types of partitions in a GPT that are parts of volume groups and arrays, as their bytes stand there: Linux LVM
/// (E6D6D379-F507-44C2-A23C-238F2A3DF928) and Linux RAID (A19D880F-05FC-4D3B-A006-743F0F84911E).
const GPT_GROUPS: [[u8; 16]; 2] = [
    [
        0x79, 0xd3, 0xd6, 0xe6, 0x07, 0xf5, 0xc2, 0x44, 0xa2, 0x3c, 0x23, 0x8f, 0x2a, 0x3d, 0xf9,
        0x28,
    ],
    [
        0x0f, 0x88, 0x9d, 0xa1, 0xfc, 0x05, 0x3b, 0x4d, 0xa0, 0x06, 0x74, 0x3f, 0x0f, 0x84, 0x91,
        0x1e,
    ],
];

/// How a disk is divided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    size_bytes: u64,
    /// Empty: it has no table, and is one region.
    partitions: Vec<Partition>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Partition {
    number: usize,
    range: Range<u64>,
    is_grouped: bool,
}

/// What belongs together.
struct Region {
    name: String,
    ranges: Vec<Range<u64>>,
}

/// Why a disk's division is not known.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// It cannot be read for now.
    #[error("it cannot be read")]
    Read(#[from] BlockError),
    /// It is not understood.
    #[error("{0}")]
    Table(&'static str),
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn bytes_at(disk: &dyn Base, at: u64, len: usize) -> Result<Vec<u8>, LayoutError> {
    let end = at.checked_add(len as u64);
    if end.is_none_or(|end| end > disk.size_bytes()) {
        return Err(LayoutError::Table(
            "the partition table reaches past the disk",
        ));
    }
    let mut bytes = vec![0; len];
    disk.read(at, &mut bytes)?;
    Ok(bytes)
}

/// Reads how a version's disk is divided.
///
/// # Errors
/// See [`LayoutError`].
pub fn read(disk: &dyn Base) -> Result<Layout, LayoutError> {
    let size_bytes = disk.size_bytes();
    let mut layout = Layout {
        size_bytes,
        partitions: Vec::new(),
    };
    if size_bytes < SECTOR {
        return Ok(layout);
    }
    let mbr = bytes_at(disk, 0, SECTOR as usize)?;
    let entries: Vec<&[u8]> = mbr[446..510].chunks_exact(16).collect();
    let is_table = mbr[510..] == [0x55, 0xaa] && entries.iter().all(|entry| entry[0] & 0x7f == 0);
    if !is_table {
        return Ok(layout);
    }
    if entries.iter().any(|entry| entry[4] == MBR_GPT) {
        layout.partitions = gpt(disk)?;
    } else {
        for (index, entry) in entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry[4] != 0)
        {
            if MBR_EXTENDED.contains(&entry[4]) {
                return Err(LayoutError::Table(
                    "it has logical partitions, which are not followed",
                ));
            }
            let start = u64::from(word(entry, 8)) * SECTOR;
            layout.partitions.push(Partition {
                number: index + 1,
                range: start..start + u64::from(word(entry, 12)) * SECTOR,
                is_grouped: MBR_GROUPS.contains(&entry[4]),
            });
        }
    }
    check(&layout)?;
    Ok(layout)
}

fn gpt(disk: &dyn Base) -> Result<Vec<Partition>, LayoutError> {
    let header = bytes_at(disk, SECTOR, SECTOR as usize)?;
    if !header.starts_with(b"EFI PART") {
        return Err(LayoutError::Table("it has half a GPT"));
    }
    let (count, entry_bytes) = (word(&header, 80), word(&header, 84));
    if count > ENTRIES_MAX || !ENTRY_BYTES.contains(&entry_bytes) {
        return Err(LayoutError::Table(
            "its GPT has more entries than are looked at",
        ));
    }
    let at = long(&header, 72).checked_mul(SECTOR);
    let at = at.ok_or(LayoutError::Table(
        "the partition table reaches past the disk",
    ))?;
    let entries = bytes_at(disk, at, (count * entry_bytes) as usize)?;
    let mut partitions = Vec::new();
    for (index, entry) in entries.chunks_exact(entry_bytes as usize).enumerate() {
        if entry[..16] == [0; 16] {
            continue;
        }
        let (first, last) = (long(entry, 32), long(entry, 40));
        let end = last.checked_add(1).and_then(|end| end.checked_mul(SECTOR));
        let range = first.checked_mul(SECTOR).zip(end);
        let (start, end) = range.ok_or(LayoutError::Table("a partition ends past all disks"))?;
        partitions.push(Partition {
            number: index + 1,
            range: start..end,
            is_grouped: GPT_GROUPS.iter().any(|kind| entry.starts_with(kind)),
        });
    }
    Ok(partitions)
}

/// Refuses partitions that overlap or lie outside: whose region a byte is of would not be known.
fn check(layout: &Layout) -> Result<(), LayoutError> {
    let mut ranges: Vec<&Range<u64>> = layout.partitions.iter().map(|p| &p.range).collect();
    ranges.sort_by_key(|range| range.start);
    let is_inside = |range: &&Range<u64>| range.start < range.end && range.end <= layout.size_bytes;
    let is_apart = ranges.windows(2).all(|pair| pair[0].end <= pair[1].start);
    if is_apart && ranges.iter().all(is_inside) {
        return Ok(());
    }
    Err(LayoutError::Table(
        "its partitions overlap, or lie outside the disk",
    ))
}

impl Layout {
    fn regions(&self) -> Vec<Region> {
        let mut regions = Vec::new();
        let mut grouped = Vec::new();
        let mut outside = Vec::new();
        let mut at = 0;
        let mut partitions: Vec<&Partition> = self.partitions.iter().collect();
        partitions.sort_by_key(|partition| partition.range.start);
        for partition in partitions {
            outside.push(at..partition.range.start);
            at = partition.range.end;
            if partition.is_grouped {
                grouped.push(partition.range.clone());
            } else {
                regions.push(Region {
                    name: format!("partition {}", partition.number),
                    ranges: vec![partition.range.clone()],
                });
            }
        }
        outside.push(at..self.size_bytes);
        outside.retain(|range| range.start < range.end);
        let outside_name = if self.partitions.is_empty() {
            "the disk, which has no partitions,"
        } else {
            "what lies outside of partitions"
        };
        for (name, ranges) in [
            ("the partitions of LVM and RAID", grouped),
            (outside_name, outside),
        ] {
            if !ranges.is_empty() {
                let name = name.to_owned();
                regions.push(Region { name, ranges });
            }
        }
        regions
    }
}

/// Why an overlay cannot go on over another version; none if it can. `differ` says whether the two versions differ in a range, `is_written` whether the
/// overlay has anything there.
pub fn why_not(
    (before, after): (&Layout, &Layout),
    differ: impl Fn(Range<u64>) -> bool,
    is_written: impl Fn(Range<u64>) -> bool,
) -> Option<String> {
    if before.size_bytes != after.size_bytes {
        return Some(format!(
            "the new version's disk has {} bytes, its own {}",
            after.size_bytes, before.size_bytes
        ));
    }
    if before != after {
        return Some("the new version's disk is divided into other partitions".to_owned());
    }
    for region in before.regions() {
        let any = |is: &dyn Fn(Range<u64>) -> bool| region.ranges.iter().cloned().any(is);
        if any(&is_written) && any(&differ) {
            return Some(format!(
                "{} was written to, and is another one in the new version",
                region.name
            ));
        }
    }
    None
}

/// Whether two versions of one size show different chunks anywhere in a range. The same bytes cut otherwise count as different.
pub fn differ(old: &ContentMap, new: &ContentMap, range: &Range<u64>) -> bool {
    let len = range.end - range.start;
    let (mut olds, mut news) = (old.pieces(range.start, len), new.pieces(range.start, len));
    let (mut ahead, mut behind) = (None, None);
    loop {
        ahead = ahead.or_else(|| olds.next());
        behind = behind.or_else(|| news.next());
        let (Some(a), Some(b)) = (ahead, behind) else {
            return ahead.is_some() != behind.is_some();
        };
        let step = piece_len(&a).min(piece_len(&b));
        let is_same = match (&a, &b) {
            (Piece::Zero { .. }, Piece::Zero { .. }) => true,
            (
                Piece::Chunk { index, offset, .. },
                Piece::Chunk {
                    index: other,
                    offset: at,
                    ..
                },
            ) => old.chunk(*index).id == new.chunk(*other).id && offset == at,
            _ => false,
        };
        if !is_same {
            return true;
        }
        ahead = rest_of(a, step);
        behind = rest_of(b, step);
    }
}

fn piece_len(piece: &Piece) -> u64 {
    let (Piece::Zero { len } | Piece::Chunk { len, .. }) = piece;
    *len
}

/// What is left of a piece behind its first `step` bytes.
fn rest_of(piece: Piece, step: u64) -> Option<Piece> {
    let rest = match piece {
        Piece::Zero { len } => Piece::Zero { len: len - step },
        Piece::Chunk { index, offset, len } => Piece::Chunk {
            index,
            offset: offset + step as u32,
            len: len - step,
        },
    };
    (piece_len(&rest) > 0).then_some(rest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init, clippy::unwrap_used, missing_docs)]
    use std::collections::HashMap;

    use dedup::{ChunkerParams, IdKey, ManifestBuilder, NodeId};

    use super::*;
    use crate::volume::MemBase;

    const MIB: u64 = 1 << 20;

    fn entry(disk: &mut [u8], number: usize, kind: u8, range: Range<u64>) {
        let at = 446 + (number - 1) * 16;
        disk[at + 4] = kind;
        let sectors = |bytes: u64| ((bytes / SECTOR) as u32).to_le_bytes();
        disk[at + 8..at + 12].copy_from_slice(&sectors(range.start));
        disk[at + 12..at + 16].copy_from_slice(&sectors(range.end - range.start));
    }

    /// 16 MiB: a system of 7 MiB, and data.
    fn disk() -> Vec<u8> {
        let mut disk = vec![0; 16 << 20];
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        entry(&mut disk, 1, 0x83, MIB..8 * MIB);
        entry(&mut disk, 2, 0x83, 8 * MIB..16 * MIB);
        disk
    }

    fn layout(disk: Vec<u8>) -> Result<Layout, LayoutError> {
        read(&MemBase::new(disk))
    }

    fn overlaps(ranges: &[Range<u64>]) -> impl Fn(Range<u64>) -> bool + '_ {
        move |range| {
            ranges
                .iter()
                .any(|r| r.start < range.end && range.start < r.end)
        }
    }

    fn verdict(layout: &Layout, changed: &[Range<u64>], written: &[Range<u64>]) -> Option<String> {
        why_not((layout, layout), overlaps(changed), overlaps(written))
    }

    #[test]
    fn writes_go_on_where_nothing_changed_under_them() {
        let layout = layout(disk()).unwrap();
        let (system, data, table) = (2 * MIB..3 * MIB, 9 * MIB..10 * MIB, 0..SECTOR);
        let changed = [system.clone()];
        assert_eq!(verdict(&layout, &changed, &[]), None);
        assert_eq!(
            verdict(&layout, &changed, std::slice::from_ref(&data)),
            None
        );
        let why = verdict(&layout, &changed, &[data, 7 * MIB..8 * MIB]).unwrap();
        assert!(why.starts_with("partition 1 "), "{why}");
        // The table, and what lies before the first partition.
        let why = verdict(&layout, std::slice::from_ref(&table), &[SECTOR..2 * SECTOR]).unwrap();
        assert!(why.contains("outside"), "{why}");
        assert_eq!(verdict(&layout, &[table], &[system]), None);
    }

    #[test]
    fn what_may_lie_across_partitions_is_one() {
        let mut grouped = disk();
        entry(&mut grouped, 1, 0x8e, MIB..8 * MIB);
        entry(&mut grouped, 2, 0x8e, 8 * MIB..16 * MIB);
        let grouped = layout(grouped).unwrap();
        let why = verdict(&grouped, &[2 * MIB..3 * MIB], &[9 * MIB..10 * MIB]).unwrap();
        assert!(why.contains("LVM"), "{why}");
        let bare = layout(vec![0; 1 << 20]).unwrap();
        let why = verdict(&bare, &[0..SECTOR], &[MIB - SECTOR..MIB]).unwrap();
        assert!(why.contains("no partitions"), "{why}");
    }

    #[test]
    fn other_sizes_and_partitions_allow_nothing() {
        let before = layout(disk()).unwrap();
        let mut longer = disk();
        longer.resize(17 << 20, 0);
        let mut other = disk();
        entry(&mut other, 2, 0x83, 8 * MIB..15 * MIB);
        for after in [longer, other] {
            let after = layout(after).unwrap();
            assert!(why_not((&before, &after), |_| false, |_| false).is_some());
        }
    }

    #[test]
    fn a_gpt_is_read_and_tables_that_make_no_sense_are_refused() {
        let mut gpt = disk();
        gpt[446..510].fill(0);
        gpt[446 + 4] = MBR_GPT;
        gpt[512..520].copy_from_slice(b"EFI PART");
        gpt[512 + 72] = 2;
        gpt[512 + 80] = 4;
        gpt[512 + 84] = 128;
        gpt[1024..1040].copy_from_slice(&GPT_GROUPS[0]);
        gpt[1024 + 32..1024 + 40].copy_from_slice(&2048u64.to_le_bytes());
        gpt[1024 + 40..1024 + 48].copy_from_slice(&4095u64.to_le_bytes());
        let read = layout(gpt.clone()).unwrap();
        let expected = Partition {
            number: 1,
            range: MIB..2 * MIB,
            is_grouped: true,
        };
        assert_eq!(read.partitions, [expected]);
        let mut bent = vec![
            gpt.clone(),
            gpt.clone(),
            gpt.clone(),
            disk(),
            disk(),
            disk(),
        ];
        bent[0][512 + 80] = 200;
        bent[1][512 + 72..512 + 80].fill(0xff);
        bent[2][1024 + 40..1024 + 48].fill(0xff);
        entry(&mut bent[3], 1, 0x05, MIB..8 * MIB);
        entry(&mut bent[4], 1, 0x83, MIB..9 * MIB);
        entry(&mut bent[5], 2, 0x83, 8 * MIB..17 * MIB);
        for disk in bent {
            assert!(matches!(layout(disk), Err(LayoutError::Table(_))));
        }
    }

    #[derive(Default)]
    struct Leaves(HashMap<NodeId, Vec<u8>>);

    #[derive(Debug, thiserror::Error)]
    #[error("missing")]
    struct Missing;

    impl dedup::NodeSource for Leaves {
        type Error = Missing;
        fn node(&self, id: NodeId) -> Result<bytes::Bytes, Missing> {
            self.0.get(&id).map(|b| b.clone().into()).ok_or(Missing)
        }
    }

    /// Chunks of 64 KiB by their names; 0 is zeros.
    fn map(names: &[u32]) -> ContentMap {
        let key = IdKey::new([1; 32]);
        let mut builder = ManifestBuilder::new(key.clone(), ChunkerParams::default());
        for name in names {
            if *name == 0 {
                builder.push_zero(64 << 10);
            } else {
                builder.push_chunk(key.chunk_id(&name.to_le_bytes()), 64 << 10);
            }
        }
        let (manifest, leaves) = builder.finish();
        ContentMap::load(&manifest, &Leaves(leaves.into_iter().collect())).unwrap()
    }

    #[test]
    fn versions_differ_where_their_chunks_do() {
        let chunk = 64u64 << 10;
        let (old, new) = (map(&[1, 2, 0, 0, 5]), map(&[1, 3, 0, 0, 5]));
        assert!(differ(&old, &new, &(0..5 * chunk)));
        assert!(differ(&old, &new, &(2 * chunk - 1..2 * chunk)));
        assert!(!differ(&old, &new, &(0..chunk)));
        assert!(!differ(&old, &new, &(2 * chunk + 100..5 * chunk)));
        assert!(differ(
            &old,
            &map(&[1, 2, 0, 4, 5]),
            &(3 * chunk..4 * chunk)
        ));
        assert!(!differ(&old, &old, &(0..5 * chunk)));
    }
}
