//! Reading a disk from its start to its end in strips, the unit of work of an import.
//!
//! Holes are not read. Regions are asked for once each: in some formats the answer is a walk through tables.

use bytes::Bytes;
use dedup::chunker::strips::STRIP_ALIGN;
use dedup_image::{DiskImage, ImageError, Region, RegionKind};

use super::queue::Pool;

/// Longest strip in bytes: about 90 chunks, so that handing one over costs nothing against working on it, and small enough that one
/// for each of many threads is little memory. One read, which keeps any disk busy.
pub(super) const STRIP_BYTES: usize = 2 << 20;
const _: () = assert!(STRIP_BYTES.is_multiple_of(STRIP_ALIGN));

/// Shortest hole that ends a strip, in bytes; shorter ones are filled with zeros, lest a fragmented disk fall into crumbs.
const HOLE_BYTES_MIN: u64 = 256 * 1024;

/// The next piece of a disk.
pub(super) enum Strip {
    /// A hole.
    Zero(u64),
    /// Bytes, a multiple of [`STRIP_ALIGN`] long unless they are the disk's last.
    Data(Bytes),
}

/// Where the reading of a disk is.
pub(super) struct StripReader<'a> {
    source: &'a mut dyn DiskImage,
    pool: Pool,
    at: u64,
    region: Option<Region>,
}

impl<'a> StripReader<'a> {
    /// Reads into the buffers of `pool`, which are [`STRIP_BYTES`] long.
    pub(super) fn new(source: &'a mut dyn DiskImage, pool: Pool) -> Self {
        Self {
            source,
            pool,
            at: 0,
            region: None,
        }
    }

    /// The next strip; `None` at the end of the disk, or when the pool was stopped.
    pub(super) fn next(&mut self) -> Result<Option<Strip>, ImageError> {
        let size = self.source.size_bytes();
        if self.at >= size {
            return Ok(None);
        }
        let region = self.region_at(self.at)?;
        if region.kind == RegionKind::Zero {
            let whole = match region.end() {
                end if end == size => region.len,
                _ => region.len - region.len % STRIP_ALIGN as u64,
            };
            if whole > 0 {
                self.at += whole;
                return Ok(Some(Strip::Zero(whole)));
            }
        }
        let Some(mut buffer) = self.pool.take() else {
            return Ok(None);
        };
        let start = self.at;
        let end = size.min(start + STRIP_BYTES as u64);
        let end = self.fill(start, end, buffer.bytes_mut())?;
        buffer.truncate((end - start) as usize);
        self.at = end;
        Ok(Some(Strip::Data(Bytes::from_owner(buffer))))
    }

    /// Fills `bytes` with the disk from `start` to `end`, or to where a long hole begins. Answers how far it came.
    fn fill(&mut self, start: u64, end: u64, bytes: &mut [u8]) -> Result<u64, ImageError> {
        let mut at = start;
        while at < end {
            let region = self.region_at(at)?;
            let mut stop = region.end().min(end);
            let hole = region.kind == RegionKind::Zero;
            let ends_here = hole && at > start && region.len >= HOLE_BYTES_MIN;
            if ends_here {
                stop = at.next_multiple_of(STRIP_ALIGN as u64).min(end);
            }
            let target = &mut bytes[(at - start) as usize..(stop - start) as usize];
            match hole {
                true => target.fill(0),
                false => self.source.read_at(at, target)?,
            }
            at = stop;
            if ends_here {
                break;
            }
        }
        Ok(at)
    }

    /// What is left of the region around `at`.
    fn region_at(&mut self, at: u64) -> Result<Region, ImageError> {
        let known = self.region.filter(|r| r.offset <= at && at < r.end());
        let region = match known {
            Some(region) => Region {
                offset: at,
                len: region.end() - at,
                ..region
            },
            None => self.source.region_at(at)?,
        };
        self.region = Some(region);
        Ok(region)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use dedup_image::ImageFormat;

    /// A disk of given regions, which counts how often it is asked about them.
    struct Regions {
        data: Vec<u8>,
        zero: Vec<std::ops::Range<u64>>,
        asked: usize,
    }

    impl DiskImage for Regions {
        fn format(&self) -> ImageFormat {
            ImageFormat::Raw
        }
        fn size_bytes(&self) -> u64 {
            self.data.len() as u64
        }
        fn region_at(&mut self, offset: u64) -> Result<Region, ImageError> {
            self.asked += 1;
            let hole = self.zero.iter().find(|range| range.contains(&offset));
            let next = self.zero.iter().map(|range| range.start);
            let next = next.filter(|start| *start > offset).min();
            let (kind, end) = match hole {
                Some(hole) => (RegionKind::Zero, hole.end),
                None => (RegionKind::Data, next.unwrap_or(self.size_bytes())),
            };
            Ok(Region {
                offset,
                len: end - offset,
                kind,
            })
        }
        fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ImageError> {
            let from = offset as usize;
            let to = from + buf.len();
            let inside =
                |hole: &std::ops::Range<u64>| hole.start < to as u64 && (from as u64) < hole.end;
            assert!(!self.zero.iter().any(inside), "a hole is read");
            buf.copy_from_slice(&self.data[from..to]);
            Ok(())
        }
    }

    fn disk(size: usize, zero: Vec<std::ops::Range<u64>>) -> Regions {
        let mut data: Vec<u8> = (0..size).map(|i| (i % 251) as u8 + 1).collect();
        for hole in &zero {
            data[hole.start as usize..hole.end as usize].fill(0);
        }
        Regions {
            data,
            zero,
            asked: 0,
        }
    }

    #[test]
    fn strips_are_the_disk_aligned_and_without_holes() {
        const MIB: u64 = 1 << 20;
        let cases = [
            disk(1, vec![]),
            disk(4096, std::iter::once(0..4096).collect()),
            disk(STRIP_BYTES + 1, vec![]),
            disk(
                9 << 20,
                vec![0..MIB, 3 * MIB + 777..5 * MIB + 5, 9 * MIB - 10..9 * MIB],
            ),
            disk(
                5 << 20,
                vec![100..200, 4095..4097, 8192..12288, MIB + 1..MIB + 300_000],
            ),
            disk(3 << 20, vec![0..4000, 2 * MIB..3 * MIB]),
        ];
        for mut disk in cases {
            let expected = disk.data.clone();
            let pool = Pool::new(1, STRIP_BYTES);
            let mut reader = StripReader::new(&mut disk, pool);
            let mut seen = Vec::new();
            while let Some(strip) = reader.next().unwrap() {
                let aligned = seen.len() % STRIP_ALIGN == 0;
                assert!(aligned, "a strip begins at {}", seen.len());
                match strip {
                    Strip::Zero(len) => seen.resize(seen.len() + len as usize, 0),
                    Strip::Data(bytes) => seen.extend_from_slice(&bytes),
                }
            }
            assert!(seen == expected);
            assert!(disk.asked <= 2 * disk.zero.len() + 2, "{}", disk.asked);
        }
    }
}
