//! A key-value store in memory that behaves as a real one does when the power goes.
//!
//! A batch is there whole or not at all. Synced batches survive every cut, and so does everything before them; relaxed ones
//! after the last synced one are lost from some point on. It can share the power switch of a [`SimDisk`].

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard};

use dedup_store::kv::{Batch, Durability, Kv, KvError};

use crate::power::{Kind, Power, Step, eio, stopped};
use crate::rng::Rng;
use crate::sim_disk::SimDisk;

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// The store. Clones are handles of the same store.
#[derive(Clone)]
pub struct SimKv {
    tables: Arc<Mutex<Tables>>,
    power: Arc<Power>,
}

#[derive(Debug, Clone, Default)]
struct Tables {
    live: Map,
    durable: Map,
    pending: Vec<Batch>,
    full: bool,
}

fn apply(map: &mut Map, batch: &Batch) {
    for (key, value) in &batch.changes {
        match value {
            Some(value) => map.insert(key.clone(), value.clone()),
            None => map.remove(key),
        };
    }
}

impl SimKv {
    /// An empty store on the machine of `disk`: they stop together, and a commit counts as one of its operations.
    pub fn new(disk: &SimDisk) -> Self {
        Self::boot(Tables::default(), disk)
    }

    fn boot(tables: Tables, disk: &SimDisk) -> Self {
        Self {
            tables: Arc::new(Mutex::new(tables)),
            power: disk.power().clone(),
        }
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables
            .lock()
            .expect("no visitor panicked under the lock")
    }

    /// The power goes and comes back: the store as the next boot finds it, on the machine of `disk`.
    pub fn crash(&self, seed: u64, disk: &SimDisk) -> SimKv {
        self.power.stop_now();
        let tables = self.tables();
        let mut map = tables.durable.clone();
        let kept = Rng::new(seed).below(tables.pending.len() as u64 + 1) as usize;
        for batch in &tables.pending[..kept] {
            apply(&mut map, batch);
        }
        let tables = Tables {
            live: map.clone(),
            durable: map,
            ..Tables::default()
        };
        Self::boot(tables, disk)
    }

    /// The process dies, the kernel lives: nothing committed is lost. The next process runs on the machine of `disk`.
    pub fn clone_live(&self, disk: &SimDisk) -> SimKv {
        self.power.stop_now();
        Self::boot(self.tables().clone(), disk)
    }

    /// Makes every commit fail for lack of space, or lifts that.
    pub fn set_full(&self, full: bool) {
        self.tables().full = full;
    }

    /// All keys and values, for assertions.
    pub fn content(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        self.tables().live.clone()
    }
}

fn engine(error: &std::io::Error) -> KvError {
    KvError::Engine {
        path: "simulated".into(),
        message: error.to_string(),
    }
}

impl Kv for SimKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.power.alive().map_err(|e| engine(&e))?;
        Ok(self.tables().live.get(key).cloned())
    }

    fn scan(
        &self,
        prefix: &[u8],
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), KvError> {
        self.power.alive().map_err(|e| engine(&e))?;
        // A copy, so that the visitor may use the store, as it may with a real one.
        let start = prefix.max(from).to_vec();
        let found: Vec<_> = self
            .tables()
            .live
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

    fn commit(&self, batch: Batch, durability: Durability) -> Result<(), KvError> {
        let step = self.power.step(Kind::Commit).map_err(|e| engine(&e))?;
        if step == Step::Fail {
            return Err(engine(&eio()));
        }
        let mut tables = self.tables();
        if tables.full {
            return Err(KvError::NoSpace {
                path: "simulated".into(),
            });
        }
        apply(&mut tables.live, &batch);
        tables.pending.push(batch);
        if step == Step::Last {
            return Err(engine(&stopped()));
        }
        if durability == Durability::Synced {
            let Tables {
                durable, pending, ..
            } = &mut *tables;
            for batch in pending.drain(..) {
                apply(durable, &batch);
            }
        }
        Ok(())
    }
}
