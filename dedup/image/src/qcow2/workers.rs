//! Decompression of runs of clusters, on several threads when there are many: deflate yields 200 to 300 MB/s a core, which
//! a sequential reader would wait for. Threads live for one call, so an image that nobody reads holds none.

use std::io;
use std::thread;

use crate::error::ImageError;
use crate::source::Source;

use super::header::Compression;
use super::inflate::Inflater;
use super::map::{CompressedPlace, corrupt};

/// More threads than this would be limited by the file, not the codec.
const THREADS_MAX: usize = 8;
/// Starting a thread costs about as much as 16 KiB of inflating; it should do several times that.
const BYTES_PER_THREAD_MIN: usize = 256 << 10;

/// The decompressors of one image.
pub(super) struct Workers {
    compression: Compression,
    cluster_bytes: usize,
    idle: Vec<Worker>,
    threads_max: usize,
}

struct Worker {
    inflater: Inflater,
    compressed: Vec<u8>,
}

impl Workers {
    pub(super) fn new(compression: Compression, cluster_bytes: usize) -> Self {
        let threads_max = thread::available_parallelism()
            .map_or(1, usize::from)
            .min(THREADS_MAX);
        Self {
            compression,
            cluster_bytes,
            idle: Vec::new(),
            threads_max,
        }
    }

    /// Decompresses `places` one after the other into `buf`, which is as long as their clusters together.
    pub(super) fn inflate(
        &mut self,
        source: &Source,
        places: &[CompressedPlace],
        buf: &mut [u8],
    ) -> Result<(), ImageError> {
        let cluster_bytes = self.cluster_bytes;
        debug_assert_eq!(
            buf.len(),
            places.len() * cluster_bytes,
            "a cluster of room for each place"
        );
        let threads = (buf.len() / BYTES_PER_THREAD_MIN).clamp(1, self.threads_max);
        while self.idle.len() < threads {
            let inflater = Inflater::new(self.compression).map_err(|e| no_decoder(source, e))?;
            self.idle.push(Worker {
                inflater,
                compressed: Vec::new(),
            });
        }
        if threads == 1 {
            return self.idle[0].inflate(source, places, buf, cluster_bytes);
        }
        let share = places.len().div_ceil(threads);
        let shares = places
            .chunks(share)
            .zip(buf.chunks_mut(share * cluster_bytes));
        thread::scope(|scope| {
            let running: Vec<_> = self
                .idle
                .iter_mut()
                .zip(shares)
                .map(|(worker, (places, buf))| {
                    scope.spawn(move || worker.inflate(source, places, buf, cluster_bytes))
                })
                .collect();
            // Joined in disk order, so that the first error on the disk is the one reported.
            running
                .into_iter()
                .try_for_each(|thread| thread.join().expect("inflating does not panic"))
        })
    }
}

impl Worker {
    fn inflate(
        &mut self,
        source: &Source,
        places: &[CompressedPlace],
        buf: &mut [u8],
        cluster_bytes: usize,
    ) -> Result<(), ImageError> {
        for (place, cluster) in places.iter().zip(buf.chunks_exact_mut(cluster_bytes)) {
            self.compressed.resize(place.file_len, 0);
            source.read_exact_at(place.file_offset, &mut self.compressed)?;
            self.inflater
                .inflate(&self.compressed, cluster)
                .map_err(|what| corrupt(source, place.file_offset, what))?;
        }
        Ok(())
    }
}

fn no_decoder(source: &Source, cause: io::Error) -> ImageError {
    ImageError::Io {
        path: source.path().to_owned(),
        action: "set up its decompressor".into(),
        source: cause,
    }
}
