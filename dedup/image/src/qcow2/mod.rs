//! qcow2 images: versions 2 and 3 are read; [`layout`] plans a file of version 3 that is written once, whole.
//!
//! Read: standard and extended L2 entries (subclusters), zero clusters, deflate and zstd clusters. Refused, each with
//! the way out: backing files, external data files, encryption, images marked dirty or corrupt, unknown incompatible
//! features. Ignored: refcounts, internal snapshots, bitmaps, compatible features. Nothing in the file is trusted; the
//! checks are in [`header`] and [`map`].

mod header;
mod inflate;
pub(crate) mod layout;
mod map;
mod workers;

use crate::error::ImageError;
use crate::format::ImageFormat;
use crate::image::{DiskImage, Region, RegionKind, SECTOR_BYTES, check_range};
use crate::source::Source;

use crate::recent::Recent;
use header::Header;
use map::{CompressedPlace, Map, Place};
use workers::Workers;

/// A region is cut after this many bytes, so that asking for one is quick even in images with tiny clusters.
const REGION_BYTES_MAX: u64 = 1 << 30;
/// The same in pieces of the map: a hostile image can make every piece cost a table load of up to 2 MiB.
const REGION_PIECES_MAX: usize = 1 << 16;
/// Memory for decompressed clusters that were read in part.
const CLUSTER_CACHE_BYTES: u64 = 4 << 20;

/// A qcow2 image.
pub(crate) struct Qcow2Image {
    source: Source,
    map: Map,
    size_bytes: u64,
    workers: Workers,
    clusters: Recent<Box<[u8]>>,
}

impl Qcow2Image {
    /// Opens the image in `source`, refusing disks above `disk_bytes_max`.
    pub(crate) fn new(source: Source, disk_bytes_max: u64) -> Result<Self, ImageError> {
        let header = Header::read(&source, disk_bytes_max)?;
        let size_bytes = header.size_bytes.next_multiple_of(SECTOR_BYTES);
        let workers = Workers::new(header.compression, header.cluster_bytes() as usize);
        let clusters =
            Recent::new((CLUSTER_CACHE_BYTES >> header.cluster_bits).clamp(2, 16) as usize);
        let map = Map::load(&source, header)?;
        Ok(Self {
            source,
            map,
            size_bytes,
            workers,
            clusters,
        })
    }

    /// Fills `buf` with part of a compressed cluster, from `from` bytes into it.
    fn read_part(
        &mut self,
        place: CompressedPlace,
        from: usize,
        buf: &mut [u8],
    ) -> Result<(), ImageError> {
        let cluster = if let Some(cluster) = self.clusters.find(place.disk_offset) {
            cluster
        } else {
            let mut cluster =
                vec![0; self.map.header().cluster_bytes() as usize].into_boxed_slice();
            self.workers.inflate(&self.source, &[place], &mut cluster)?;
            self.clusters.insert(place.disk_offset, cluster)
        };
        buf.copy_from_slice(&cluster[from..from + buf.len()]);
        Ok(())
    }

    /// The compressed clusters that begin at `offset`, follow each other, and are wholly inside the next `len` bytes.
    fn whole_compressed(&mut self, offset: u64, len: usize) -> Vec<CompressedPlace> {
        let cluster_bytes = self.map.header().cluster_bytes();
        let mut places = Vec::new();
        if !offset.is_multiple_of(cluster_bytes) {
            return places;
        }
        for index in 0..len as u64 / cluster_bytes {
            // What is wrong further on is reported when it is reached.
            match self
                .map
                .locate(&self.source, offset + index * cluster_bytes)
            {
                Ok(mapping) => match mapping.place {
                    Place::Compressed(place) => places.push(place),
                    Place::Zero | Place::Stored(_) => break,
                },
                Err(_) => break,
            }
        }
        places
    }
}

impl DiskImage for Qcow2Image {
    fn format(&self) -> ImageFormat {
        ImageFormat::Qcow2
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn region_at(&mut self, offset: u64) -> Result<Region, ImageError> {
        check_range(offset, 1, self.size_bytes)?;
        let kind_of = |place| {
            if place == Place::Zero {
                RegionKind::Zero
            } else {
                RegionKind::Data
            }
        };
        let first = self.map.locate(&self.source, offset)?;
        let kind = kind_of(first.place);
        let limit = self.size_bytes.min(offset.saturating_add(REGION_BYTES_MAX));
        let mut end = offset + first.len;
        for _ in 0..REGION_PIECES_MAX {
            if end >= limit {
                break;
            }
            // What is wrong further on is reported when it is reached.
            match self.map.locate(&self.source, end) {
                Ok(next) if kind_of(next.place) == kind => end += next.len,
                Ok(_) | Err(_) => break,
            }
        }
        Ok(Region {
            offset,
            len: end.min(self.size_bytes) - offset,
            kind,
        })
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ImageError> {
        check_range(offset, buf.len() as u64, self.size_bytes)?;
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let mapping = self.map.locate(&self.source, at)?;
            let wanted = (buf.len() - done) as u64;
            let mut len = mapping.len.min(wanted);
            match mapping.place {
                Place::Zero => buf[done..done + len as usize].fill(0),
                Place::Stored(host) => {
                    // Clusters written one after the other lie one after the other: one read for all of them.
                    while len < wanted {
                        match self.map.locate(&self.source, at + len) {
                            Ok(next) if next.place == Place::Stored(host + len) => {
                                len += next.len.min(wanted - len)
                            }
                            Ok(_) | Err(_) => break,
                        }
                    }
                    self.source
                        .read_exact_at(host, &mut buf[done..done + len as usize])?;
                }
                Place::Compressed(place) => {
                    let whole = self.whole_compressed(at, buf.len() - done);
                    if whole.is_empty() {
                        let from = (at - place.disk_offset) as usize;
                        self.read_part(place, from, &mut buf[done..done + len as usize])?;
                    } else {
                        // Sequential readers take whole clusters, straight into their own memory.
                        len = whole.len() as u64 * self.map.header().cluster_bytes();
                        let target = &mut buf[done..done + len as usize];
                        self.workers.inflate(&self.source, &whole, target)?;
                    }
                }
            }
            done += len as usize;
        }
        Ok(())
    }
}
