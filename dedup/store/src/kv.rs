//! The small durable key-value store as an argument.
//!
//! A [`Kv`] holds ordered byte keys. A [`Batch`] is applied whole or not at all. A crash may lose the newest batches that were
//! committed as [`Durability::Relaxed`], always as a suffix: a later batch never survives an earlier one that is lost.
//! [`RocksKv`] is the real one; [`MemKv`] serves tests.

mod rocks;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Mutex;

pub use rocks::{RocksKv, RocksOptions};

/// Why the store could not answer.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    /// The disk under it is full; what was committed before is intact.
    #[error("key-value store {path}: no space left on its disk")]
    NoSpace {
        /// Where the store lives.
        path: String,
    },
    /// Another process has it open.
    #[error("key-value store {path} is in use by another process")]
    InUse {
        /// Where the store lives.
        path: String,
    },
    /// The engine reported an error, corruption included.
    #[error("key-value store {path}: {message}")]
    Engine {
        /// Where the store lives.
        path: String,
        /// The engine's words.
        message: String,
    },
}

/// When a commit is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// On return.
    Synced,
    /// Some time later, in order with other commits.
    Relaxed,
}

/// Changes that are applied together.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Key → new value, or `None` to delete; applied in order.
    pub changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `key`.
    pub fn put(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.changes.push((key.into(), Some(value.into())));
    }

    /// Removes `key`, if it is there.
    pub fn delete(&mut self, key: impl Into<Vec<u8>>) {
        self.changes.push((key.into(), None));
    }

    /// Whether there is nothing to apply.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// An ordered, durable map from bytes to bytes.
pub trait Kv: Send + Sync + 'static {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError>;
    /// The values of `keys`, in their order. One call for many keys costs far less than as many calls.
    fn get_many(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, KvError> {
        keys.iter().map(|key| self.get(key)).collect()
    }
    /// Calls `visit(key, value)` for every key that begins with `prefix` and is ≥ `from`, in order, until it breaks. It sees
    /// the state at the call, and the visitor may use the store itself.
    #[expect(
        clippy::type_complexity,
        reason = "a named visitor type would need a second lifetime in every signature"
    )]
    fn scan(
        &self,
        prefix: &[u8],
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), KvError>;
    /// Applies `batch` atomically.
    fn commit(&self, batch: Batch, durability: Durability) -> Result<(), KvError>;
}

/// A map in memory: nothing survives it.
#[derive(Debug, Default)]
pub struct MemKv {
    map: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl MemKv {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn map(&self) -> std::sync::MutexGuard<'_, BTreeMap<Vec<u8>, Vec<u8>>> {
        self.map.lock().expect("no visitor panicked under the lock")
    }
}

impl Kv for MemKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.map().get(key).cloned())
    }

    fn scan(
        &self,
        prefix: &[u8],
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), KvError> {
        let start = prefix.max(from).to_vec();
        // A copy, so that the visitor may use the store.
        let found: Vec<_> = self
            .map()
            .range(start..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        for (key, value) in found {
            if visit(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn commit(&self, batch: Batch, _durability: Durability) -> Result<(), KvError> {
        let mut map = self.map();
        for (key, value) in batch.changes {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        Ok(())
    }
}
