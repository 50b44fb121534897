//! RocksDB behind [`Kv`]: the only module that names it.
//!
//! The write-ahead log is always on; a synced commit waits for its fdatasync. Nothing is compressed, because keys are hashes. Memory
//! and open files are bounded by [`RocksOptions`].

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, DBRecoveryMode, Direction, ErrorKind,
    IteratorMode, Options, ReadOptions, WriteBatch, WriteOptions,
};

use super::{Batch, Durability, Kv, KvError};

/// How much a store may take.
#[derive(Debug, Clone)]
pub struct RocksOptions {
    /// Cache of data, index and filter blocks, in bytes.
    pub block_cache_bytes: usize,
    /// One of up to three write buffers, in bytes.
    pub write_buffer_bytes: usize,
    /// Files held open at once.
    pub open_files_max: i32,
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self {
            block_cache_bytes: 64 * 1024 * 1024,
            write_buffer_bytes: 16 * 1024 * 1024,
            open_files_max: 256,
        }
    }
}

/// A RocksDB database in a directory of the host.
pub struct RocksKv {
    db: DB,
    path: PathBuf,
}

impl RocksKv {
    /// Opens the database in `path`, creating it (and its parents) if it is not there.
    pub fn open(path: impl AsRef<Path>, options: &RocksOptions) -> Result<Self, KvError> {
        let path = path.as_ref().to_owned();
        std::fs::create_dir_all(&path).map_err(|e| match crate::error::is_full(&e) {
            true => KvError::NoSpace {
                path: path.display().to_string(),
            },
            false => KvError::Engine {
                path: path.display().to_string(),
                message: e.to_string(),
            },
        })?;
        match DB::open(&database_options(options), &path) {
            Ok(db) => Ok(Self { db, path }),
            Err(e) => Err(kv_error(&path, &e)),
        }
    }

    fn error(&self, error: &rocksdb::Error) -> KvError {
        kv_error(&self.path, error)
    }
}

fn database_options(options: &RocksOptions) -> Options {
    // About one wrong positive in a hundred: most puts of a publish ask for ids that are not there.
    const BLOOM_BITS_PER_KEY: f64 = 10.0;
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&Cache::new_lru_cache(options.block_cache_bytes));
    blocks.set_bloom_filter(BLOOM_BITS_PER_KEY, false);
    // Filters and indexes of a large store belong to the budget too.
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut db = Options::default();
    db.create_if_missing(true);
    db.set_block_based_table_factory(&blocks);
    db.set_compression_type(DBCompressionType::None);
    db.set_write_buffer_size(options.write_buffer_bytes);
    db.set_max_write_buffer_number(3);
    db.set_max_open_files(options.open_files_max);
    db.set_max_total_wal_size(4 * options.write_buffer_bytes as u64);
    db.set_paranoid_checks(true);
    // A power cut may leave a hole among relaxed commits. Stopping there loses a suffix, as `Kv` promises; the modes that tolerate
    // a torn end only would refuse to open.
    db.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    db.set_keep_log_file_num(2);
    db.set_max_log_file_size(1024 * 1024);
    db
}

/// RocksDB says much in words only. The words are those of its `Status` and of `strerror`.
fn kv_error(path: &Path, error: &rocksdb::Error) -> KvError {
    let message = error.to_string();
    let path = path.display().to_string();
    if message.contains("No space left on device") || message.contains("NoSpace") {
        KvError::NoSpace { path }
    } else if error.kind() == ErrorKind::IOError
        && (message.contains("lock hold by current process")
            || message.contains("Resource temporarily unavailable"))
    {
        KvError::InUse { path }
    } else {
        KvError::Engine { path, message }
    }
}

impl Kv for RocksKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.db.get(key).map_err(|e| self.error(&e))
    }

    fn get_many(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, KvError> {
        let values = self.db.multi_get(keys).into_iter();
        values
            .map(|value| value.map_err(|e| self.error(&e)))
            .collect()
    }

    fn scan(
        &self,
        prefix: &[u8],
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), KvError> {
        let mut read = ReadOptions::default();
        // A scan of everything must not push the working set out.
        read.fill_cache(false);
        let start = prefix.max(from);
        let entries = self
            .db
            .iterator_opt(IteratorMode::From(start, Direction::Forward), read);
        for entry in entries {
            let (key, value) = entry.map_err(|e| self.error(&e))?;
            if !key.starts_with(prefix) || visit(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn commit(&self, batch: Batch, durability: Durability) -> Result<(), KvError> {
        let mut write = WriteBatch::default();
        for (key, value) in &batch.changes {
            match value {
                Some(value) => write.put(key, value),
                None => write.delete(key),
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(durability == Durability::Synced);
        self.db
            .write_opt(write, &options)
            .map_err(|e| self.error(&e))
    }
}
