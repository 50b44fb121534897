//! Where everything lies in a qcow2 file that is written once, from its start to its end: header, refcounts, tables, then the clusters
//! that have data, in the order of the disk.
//!
//! Pure: which clusters have data in, bytes and offsets out; the caller does the writing. The format is that of QEMU's
//! docs/interop/qcow2.txt, version 3: clusters of 64 KiB, refcounts of 16 bits, no compression, no snapshots, no backing file.
//! Invariant: every cluster of the file is counted exactly once, and no two structures share one.

const CLUSTER_BITS: u32 = 16;
/// Bytes of a cluster, of the disk and of the file.
pub const QCOW2_CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
const HEADER_BYTES: u32 = 104;
/// 2⁴ bits a refcount.
const REFCOUNT_ORDER: u32 = 4;
/// Refcounts in one cluster of them.
const REFCOUNTS: u64 = QCOW2_CLUSTER_BYTES / 2;
/// Entries in an L2 table, or of the refcount table in one cluster.
const ENTRIES: u64 = QCOW2_CLUSTER_BYTES / 8;
/// Of an L1 or L2 entry: the cluster it names is referred to from here only.
const COPIED: u64 = 1 << 63;

/// The layout of one file.
#[derive(Debug, Clone)]
pub struct Qcow2Layout {
    size_bytes: u64,
    /// Which clusters of the disk have data, in order.
    data: Vec<u64>,
    /// Clusters of the refcount table, of refcount blocks, of the L1 table.
    refcount_table: u64,
    refcount_blocks: u64,
    l1: u64,
    /// Which L2 tables there are: numbers of L1 entries, in order.
    l2: Vec<u64>,
}

/// A run of bytes of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qcow2Part {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// What it is.
    pub bytes: Vec<u8>,
}

impl Qcow2Layout {
    /// Plans a file for a disk of `size_bytes`, of which the clusters `data` (ascending numbers) are not zero.
    pub fn new(size_bytes: u64, data: Vec<u64>) -> Self {
        debug_assert!(data.is_sorted_by(|a, b| a < b));
        debug_assert!(
            data.last()
                .is_none_or(|last| last * QCOW2_CLUSTER_BYTES < size_bytes)
        );
        let mut l2: Vec<u64> = data.iter().map(|cluster| cluster / ENTRIES).collect();
        l2.dedup();
        let l1_entries = size_bytes.div_ceil(QCOW2_CLUSTER_BYTES * ENTRIES);
        let l1 = l1_entries.div_ceil(ENTRIES).max(1);
        // The refcounts count themselves: more blocks may need one more block.
        let fixed = 1 + l1 + l2.len() as u64 + data.len() as u64;
        let (mut refcount_blocks, mut refcount_table) = (1, 1);
        loop {
            let blocks = (fixed + refcount_blocks + refcount_table).div_ceil(REFCOUNTS);
            let table = blocks.div_ceil(ENTRIES);
            if blocks <= refcount_blocks && table <= refcount_table {
                break;
            }
            refcount_blocks = blocks.max(refcount_blocks);
            refcount_table = table.max(refcount_table);
        }
        Self {
            size_bytes,
            data,
            refcount_table,
            refcount_blocks,
            l1,
            l2,
        }
    }

    /// Length of the file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.clusters() * QCOW2_CLUSTER_BYTES
    }

    /// Where the disk's cluster number `cluster` lies in the file, in bytes; `None` if it is zero.
    pub fn place(&self, cluster: u64) -> Option<u64> {
        let index = self.data.binary_search(&cluster).ok()?;
        Some((self.data_start() + index as u64) * QCOW2_CLUSTER_BYTES)
    }

    fn clusters(&self) -> u64 {
        self.data_start() + self.data.len() as u64
    }

    fn refcount_table_start(&self) -> u64 {
        1
    }

    fn refcount_blocks_start(&self) -> u64 {
        self.refcount_table_start() + self.refcount_table
    }

    fn l1_start(&self) -> u64 {
        self.refcount_blocks_start() + self.refcount_blocks
    }

    fn l2_start(&self) -> u64 {
        self.l1_start() + self.l1
    }

    fn data_start(&self) -> u64 {
        self.l2_start() + self.l2.len() as u64
    }

    /// Everything but the data: header, refcount table and blocks, L1 and L2 tables, one cluster at a time.
    pub fn metadata(&self) -> impl Iterator<Item = Qcow2Part> + '_ {
        let table = |first: u64, index: u64, offset_of: &dyn Fn(u64) -> u64| {
            let mut bytes = Vec::with_capacity(QCOW2_CLUSTER_BYTES as usize);
            for entry in index * ENTRIES..(index + 1) * ENTRIES {
                bytes.extend_from_slice(&offset_of(entry).to_be_bytes());
            }
            Qcow2Part {
                offset: (first + index) * QCOW2_CLUSTER_BYTES,
                bytes,
            }
        };
        let header = std::iter::once(Qcow2Part {
            offset: 0,
            bytes: self.header(),
        });
        let refcount_table = (0..self.refcount_table).map(move |index| {
            table(self.refcount_table_start(), index, &|entry| {
                let block = self.refcount_blocks_start() + entry;
                if entry < self.refcount_blocks {
                    block * QCOW2_CLUSTER_BYTES
                } else {
                    0
                }
            })
        });
        let refcounts = (0..self.refcount_blocks).map(move |index| {
            let mut bytes = vec![0; QCOW2_CLUSTER_BYTES as usize];
            let counted = self.clusters().saturating_sub(index * REFCOUNTS);
            for place in bytes
                .chunks_exact_mut(2)
                .take(counted.min(REFCOUNTS) as usize)
            {
                place.copy_from_slice(&1u16.to_be_bytes());
            }
            Qcow2Part {
                offset: (self.refcount_blocks_start() + index) * QCOW2_CLUSTER_BYTES,
                bytes,
            }
        });
        let l1 = (0..self.l1).map(move |index| {
            table(
                self.l1_start(),
                index,
                &|entry| match self.l2.binary_search(&entry) {
                    Ok(index) => ((self.l2_start() + index as u64) * QCOW2_CLUSTER_BYTES) | COPIED,
                    Err(_) => 0,
                },
            )
        });
        let l2 = (0..).zip(&self.l2).map(move |(index, number)| {
            let mut part = table(0, *number, &|cluster| {
                self.place(cluster).map_or(0, |place| place | COPIED)
            });
            part.offset = (self.l2_start() + index) * QCOW2_CLUSTER_BYTES;
            part
        });
        header
            .chain(refcount_table)
            .chain(refcounts)
            .chain(l1)
            .chain(l2)
    }

    fn header(&self) -> Vec<u8> {
        let mut bytes = vec![0; QCOW2_CLUSTER_BYTES as usize];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        let offset = |cluster: u64| (cluster * QCOW2_CLUSTER_BYTES).to_be_bytes();
        put(0, b"QFI\xfb");
        put(4, &3u32.to_be_bytes());
        put(20, &CLUSTER_BITS.to_be_bytes());
        put(24, &self.size_bytes.to_be_bytes());
        let l1_entries = self.size_bytes.div_ceil(QCOW2_CLUSTER_BYTES * ENTRIES);
        put(36, &(l1_entries as u32).to_be_bytes());
        put(40, &offset(self.l1_start()));
        put(48, &offset(self.refcount_table_start()));
        put(56, &(self.refcount_table as u32).to_be_bytes());
        put(96, &REFCOUNT_ORDER.to_be_bytes());
        put(100, &HEADER_BYTES.to_be_bytes());
        // Behind the header: the end of its extensions, which is all zero.
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cluster_is_one_thing() {
        for (size, data) in [
            (1, vec![]),
            (1, vec![0]),
            (3 << 30, vec![0, 1, 8191, 8192, 40_000]),
            (64 << 30, (0..100_000).collect()),
            (4 << 30, (0..65_536).collect()),
        ] {
            let layout = Qcow2Layout::new(size, data.clone());
            let mut starts: Vec<u64> = layout.metadata().map(|part| part.offset).collect();
            starts.extend(data.iter().filter_map(|cluster| layout.place(*cluster)));
            let clusters = layout.file_bytes() / QCOW2_CLUSTER_BYTES;
            let expected: Vec<u64> = (0..clusters).map(|c| c * QCOW2_CLUSTER_BYTES).collect();
            assert_eq!(starts, expected, "{size} with {} clusters", data.len());
            assert!(layout.refcount_blocks * REFCOUNTS >= clusters);
            assert!(layout.refcount_table * ENTRIES >= layout.refcount_blocks);
            for part in layout.metadata() {
                assert_eq!(part.bytes.len() as u64, QCOW2_CLUSTER_BYTES);
            }
        }
    }
}
