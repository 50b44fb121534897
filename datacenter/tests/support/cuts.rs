//! A catalog that is cut off between two commits.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use dedup_store::kv::{Batch, Durability, Kv, KvError, MemKv};

/// A catalog's store that fails from one commit on, as if the process died there; the failing one is durable or not.
#[derive(Default)]
pub struct Cuts {
    inner: MemKv,
    left: AtomicI64,
    is_cutting: AtomicBool,
    last_is_durable: AtomicBool,
}

impl Cuts {
    /// Lets so many commits through from now on; the next one fails, durable or not.
    pub fn cut(&self, commits: i64, last_is_durable: bool) {
        self.left.store(commits, Ordering::SeqCst);
        self.last_is_durable
            .store(last_is_durable, Ordering::SeqCst);
        self.is_cutting.store(true, Ordering::SeqCst);
    }

    /// Whether it has cut since [`Self::cut`]; it does not any more.
    pub fn heal(&self) -> bool {
        self.is_cutting.store(false, Ordering::SeqCst);
        self.left.load(Ordering::SeqCst) < 0
    }
}

impl Kv for Cuts {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.inner.get(key)
    }
    fn scan(
        &self,
        prefix: &[u8],
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), KvError> {
        self.inner.scan(prefix, from, visit)
    }
    fn commit(&self, batch: Batch, durability: Durability) -> Result<(), KvError> {
        if !self.is_cutting.load(Ordering::SeqCst) {
            return self.inner.commit(batch, durability);
        }
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        if left > 0 {
            return self.inner.commit(batch, durability);
        }
        if left == 0 && self.last_is_durable.load(Ordering::SeqCst) {
            self.inner.commit(batch, durability)?;
        }
        Err(KvError::NoSpace {
            path: "the cut".into(),
        })
    }
}
