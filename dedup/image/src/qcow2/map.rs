//! The two-level map from disk offsets to places in a qcow2 file.
//!
//! Invariant: a [`Place`] handed out lies inside the file, or is clamped to it (a compressed cluster's last sector), so
//! that no later read can be asked for more than a cluster's worth of bytes. Tables are loaded one cluster at a time
//! into a cache of limited size. Refcounts and snapshots are not looked at: neither changes what a disk reads.

use crate::error::ImageError;
use crate::format::ImageFormat;
use crate::source::Source;

use super::header::{Header, be64};
use crate::recent::Recent;

const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const L2_COMPRESSED: u64 = 1 << 62;
const L2_ZERO: u64 = 1;
const SUBCLUSTERS: u64 = 32;
/// Memory for L2 tables; at 64 KiB clusters it maps 64 GiB of disk.
const L2_CACHE_BYTES: u64 = 8 << 20;
const L2_CACHE_TABLES_MAX: u64 = 32;

/// Where a piece of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere: it reads as zeros.
    Zero,
    /// At this file offset, as it is.
    Stored(u64),
    /// In a compressed cluster.
    Compressed(CompressedPlace),
}

/// A compressed cluster's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CompressedPlace {
    /// Where the compressed bytes begin in the file.
    pub(super) file_offset: u64,
    /// How many there are at most; the stream ends somewhere before.
    pub(super) file_len: usize,
    /// Where the cluster begins on the disk.
    pub(super) disk_offset: u64,
}

/// A piece of the disk that is in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) place: Place,
    /// Bytes from the asked offset to the end of the piece, at least 1; may reach beyond the disk.
    pub(super) len: u64,
}

/// The map: the L1 table in memory, L2 tables as they are needed.
pub(super) struct Map {
    header: Header,
    l1: Vec<u64>,
    tables: Recent<Vec<u8>>,
}

impl Map {
    pub(super) fn load(source: &Source, header: Header) -> Result<Self, ImageError> {
        let l1_bytes = header.l1_entries * 8;
        // Checked before the allocation: a table that is not in the file gets no memory.
        if header
            .l1_offset
            .checked_add(l1_bytes)
            .is_none_or(|end| end > source.len())
        {
            return Err(ImageError::Truncated {
                path: source.path().to_owned(),
                offset: header.l1_offset,
                len: l1_bytes,
                file_bytes: source.len(),
            });
        }
        let mut bytes = vec![0; l1_bytes as usize];
        source.read_exact_at(header.l1_offset, &mut bytes)?;
        let l1 = bytes.chunks_exact(8).map(|entry| be64(entry, 0)).collect();
        let tables = (L2_CACHE_BYTES >> header.cluster_bits).clamp(4, L2_CACHE_TABLES_MAX) as usize;
        Ok(Self {
            header,
            l1,
            tables: Recent::new(tables),
        })
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    /// Where the disk's byte at `offset` is, and how far the same place goes on. `offset` is on the disk.
    pub(super) fn locate(&mut self, source: &Source, offset: u64) -> Result<Mapping, ImageError> {
        let cluster_bits = self.header.cluster_bits;
        let l2_bits = self.header.l2_bits();
        let l1_index = offset >> (cluster_bits + l2_bits);
        let l1_entry = self.l1[l1_index as usize];
        let table_offset = l1_entry & OFFSET_MASK;
        if table_offset == 0 {
            let covered = 1u64 << (cluster_bits + l2_bits);
            return Ok(Mapping {
                place: Place::Zero,
                len: covered - offset % covered,
            });
        }
        let l2_index = (offset >> cluster_bits) & ((1 << l2_bits) - 1);
        let (entry, bitmap) = self.l2_entry(source, l1_index, table_offset, l2_index)?;
        let entry_at = table_offset + l2_index * if self.header.extended_l2 { 16 } else { 8 };
        let in_cluster = offset % self.header.cluster_bytes();
        let rest = self.header.cluster_bytes() - in_cluster;
        let corrupt = |what: String| corrupt(source, entry_at, what);

        if entry & L2_COMPRESSED != 0 {
            let place = self
                .compressed(source, entry, offset - in_cluster)
                .map_err(corrupt)?;
            return Ok(Mapping {
                place: Place::Compressed(place),
                len: rest,
            });
        }
        let host = entry & OFFSET_MASK;
        if !host.is_multiple_of(self.header.cluster_bytes()) {
            return Err(corrupt(format!(
                "a cluster would begin at {host}, inside another"
            )));
        }
        if self.header.extended_l2 {
            return self
                .subcluster(source, host, bitmap, in_cluster)
                .map_err(corrupt);
        }
        if entry & L2_ZERO != 0 {
            if self.header.version < 3 {
                return Err(corrupt("a zero cluster in an image of version 2".into()));
            }
            return Ok(Mapping {
                place: Place::Zero,
                len: rest,
            });
        }
        if host == 0 {
            return Ok(Mapping {
                place: Place::Zero,
                len: rest,
            });
        }
        self.check_inside(source, host)?;
        Ok(Mapping {
            place: Place::Stored(host + in_cluster),
            len: rest,
        })
    }

    /// The L2 entry and, in extended tables, its subcluster bitmap.
    fn l2_entry(
        &mut self,
        source: &Source,
        l1_index: u64,
        table_offset: u64,
        l2_index: u64,
    ) -> Result<(u64, u64), ImageError> {
        let cluster_bytes = self.header.cluster_bytes();
        let extended = self.header.extended_l2;
        let entry = |table: &[u8]| {
            if extended {
                let at = l2_index as usize * 16;
                (be64(table, at), be64(table, at + 8))
            } else {
                (be64(table, l2_index as usize * 8), 0)
            }
        };
        if let Some(table) = self.tables.find(table_offset) {
            return Ok(entry(table));
        }
        if !table_offset.is_multiple_of(cluster_bytes) {
            return Err(corrupt(
                source,
                self.header.l1_offset + l1_index * 8,
                format!("an L2 table would begin at {table_offset}, inside a cluster"),
            ));
        }
        let mut table = vec![0; cluster_bytes as usize];
        source.read_exact_at(table_offset, &mut table)?;
        Ok(entry(self.tables.insert(table_offset, table)))
    }

    fn compressed(
        &self,
        source: &Source,
        entry: u64,
        disk_offset: u64,
    ) -> Result<CompressedPlace, String> {
        let offset_bits = 62 - (self.header.cluster_bits - 8);
        let file_offset = entry & ((1 << offset_bits) - 1);
        let more_sectors = (entry & (L2_COMPRESSED - 1)) >> offset_bits;
        let sectors_end = (file_offset & !511) + (more_sectors + 1) * 512;
        if file_offset >= source.len() {
            return Err(format!(
                "a compressed cluster would begin at {file_offset}, after the file's end at {}; copy the image again",
                source.len()
            ));
        }
        // The file need not be filled up to the last sector.
        let end = sectors_end.min(source.len());
        Ok(CompressedPlace {
            file_offset,
            file_len: (end - file_offset) as usize,
            disk_offset,
        })
    }

    fn subcluster(
        &self,
        source: &Source,
        host: u64,
        bitmap: u64,
        in_cluster: u64,
    ) -> Result<Mapping, String> {
        let subcluster_bytes = self.header.cluster_bytes() / SUBCLUSTERS;
        let index = in_cluster / subcluster_bytes;
        let len = subcluster_bytes - in_cluster % subcluster_bytes;
        let allocated = bitmap >> index & 1 != 0;
        let zero = bitmap >> (index + SUBCLUSTERS) & 1 != 0;
        match (allocated, zero) {
            (true, true) => Err("a subcluster is both data and zeros".into()),
            (false, _) => Ok(Mapping {
                place: Place::Zero,
                len,
            }),
            (true, false) if host == 0 => Err("a subcluster has data but no place".into()),
            (true, false) => {
                if host >= source.len() {
                    return Err(format!(
                        "a cluster would begin at {host}, after the file's end at {}",
                        source.len()
                    ));
                }
                Ok(Mapping {
                    place: Place::Stored(host + in_cluster),
                    len,
                })
            }
        }
    }

    fn check_inside(&self, source: &Source, host: u64) -> Result<(), ImageError> {
        if host >= source.len() {
            return Err(ImageError::Truncated {
                path: source.path().to_owned(),
                offset: host,
                len: self.header.cluster_bytes(),
                file_bytes: source.len(),
            });
        }
        Ok(())
    }
}

pub(super) fn corrupt(source: &Source, offset: u64, what: String) -> ImageError {
    ImageError::Corrupt {
        path: source.path().to_owned(),
        format: ImageFormat::Qcow2,
        offset,
        what,
    }
}
