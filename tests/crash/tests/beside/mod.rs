//! What happens beside a collection, in its own thread, at chosen moments: a publish, step by step.
//!
//! Disk and index are wrapped. Where a collection comes by without a lock (before and after a look into the index, around the removal of a
//! file, when a pack is opened for reading), the publish takes the steps whose place that is. Nothing of the store is copied or bent for it,
//! except by a [`Mutant`].

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard};

use crash::{SimDisk, SimKv};
use dedup::NodeId;
use dedup_store::disk::{Disk, DiskFile, Open};
use dedup_store::kv::{Batch, Durability, Kv, KvError};
use dedup_store::{ChunkStore, Hold, StoreError, Writer};

use super::{ITEMS, chunk, finish, read};

/// Steps of the publish: the hold and the first put, the second put, the third with the manifest and the commit, the end of the hold.
pub const STEPS: usize = 4;

/// At which place each of them comes, ascending.
pub type Places = [usize; STEPS];

/// A rule that is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    None,
    /// Roots are read before the collection begins.
    RootsFirst,
    /// The publish lets its hold go before its version is in the catalog.
    HoldEndsEarly,
    /// What is to change is not looked at again: the second look sees what the first one saw.
    OneLook,
    /// A pack's file is removed before the index stops pointing into it.
    RemovedFirst,
}

struct Script {
    /// While places count.
    store: Option<ChunkStore>,
    disk: SimDisk,
    places: Places,
    /// Whether moments inside a collection's steps are places too.
    inside: bool,
    mutant: Mutant,
    /// Places that were come by.
    seen: usize,
    step: usize,
    hold: Option<Hold>,
    /// Roots of the versions that are visible; the publish's is the second.
    catalog: Vec<NodeId>,
    died: bool,
}

impl Script {
    fn come_by(&mut self) {
        let Some(store) = self.store.clone() else {
            return;
        };
        if self.disk.is_stopped() {
            // Nobody does anything any more; and a writer that cannot write may come by here with its lock.
            return;
        }
        while !self.died && self.step < STEPS && self.places[self.step] <= self.seen {
            if let Err(error) = self.go_on(&store) {
                assert!(self.disk.is_stopped(), "{error}");
                self.died = true;
            }
        }
        if let Some(root) = self.catalog.get(1)
            && !self.disk.is_stopped()
        {
            read(&store, *root, &ITEMS);
        }
        self.seen += 1;
    }

    fn writer(&self, store: &ChunkStore) -> Writer {
        match &self.hold {
            Some(hold) => hold.writer(),
            None => store.writer(),
        }
    }

    fn go_on(&mut self, store: &ChunkStore) -> Result<(), StoreError> {
        match self.step {
            0 => {
                self.hold = (self.mutant != Mutant::HoldEndsEarly).then(|| store.hold());
                self.writer(store).put_chunk(&chunk(ITEMS[0]))?;
            }
            1 => {
                self.writer(store).put_chunk(&chunk(ITEMS[1]))?;
            }
            2 => {
                let writer = self.writer(store);
                writer.put_chunk(&chunk(ITEMS[2]))?;
                let root = finish(store, &writer, &ITEMS)?;
                self.catalog.push(root);
            }
            _ => self.hold = None,
        }
        self.step += 1;
        Ok(())
    }
}

/// See the module. Clones are handles of the same.
#[derive(Clone)]
pub struct Beside(Arc<Mutex<Script>>);

impl Beside {
    pub fn new(places: Places, inside: bool, mutant: Mutant, disk: &SimDisk) -> Self {
        Self(Arc::new(Mutex::new(Script {
            store: None,
            disk: disk.clone(),
            places,
            inside,
            mutant,
            seen: 0,
            step: 0,
            hold: None,
            catalog: Vec::new(),
            died: false,
        })))
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.0.lock().unwrap()
    }

    /// From here on places count. `stays` is the root of a version that is visible already.
    pub fn begin(&self, store: &ChunkStore, stays: NodeId) {
        let mut script = self.script();
        script.store = Some(store.clone());
        script.catalog.push(stays);
    }

    /// The roots of all visible versions.
    pub fn catalog(&self) -> Vec<NodeId> {
        self.script().catalog.clone()
    }

    /// A place between two steps of a collection.
    pub fn step(&self) {
        self.script().come_by();
    }

    /// A moment inside a step.
    fn moment(&self) {
        // Otherwise it is the publish itself, or a reader beside it, that comes by here.
        if let Ok(mut script) = self.0.try_lock()
            && script.inside
        {
            script.come_by();
        }
    }

    /// Takes the steps that are left. Answers how many places there were, and the catalog.
    pub fn end(&self) -> (usize, Vec<NodeId>) {
        let mut script = self.script();
        // Taken out, or the store would keep itself alive through its disk.
        let store = script.store.take().unwrap();
        // A machine that has not stopped by now lives: not every world comes by all places, and what is left is not to end it.
        script.disk.stop_after(u64::MAX / 2);
        while script.step < STEPS {
            script.go_on(&store).unwrap();
        }
        (script.seen, script.catalog.clone())
    }

    /// The process died. Answers the catalog.
    pub fn died(&self) -> Vec<NodeId> {
        let mut script = self.script();
        script.store = None;
        script.hold = None;
        script.catalog.clone()
    }
}

/// The index, watched.
pub struct Watched {
    kv: SimKv,
    disk: SimDisk,
    beside: Beside,
    mutant: Mutant,
    /// What the first look saw, for [`Mutant::OneLook`].
    first_look: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl Watched {
    pub fn new(kv: &SimKv, disk: &SimDisk, beside: &Beside, mutant: Mutant) -> Self {
        Self {
            kv: kv.clone(),
            disk: disk.clone(),
            beside: beside.clone(),
            mutant,
            first_look: Mutex::default(),
        }
    }

    /// The run that was looked at is done.
    pub fn forget(&self) {
        self.first_look.lock().unwrap().clear();
    }

    /// Removes the files of the packs that a batch dooms, before it is committed.
    fn remove_first(&self, batch: &Batch) {
        for (key, value) in &batch.changes {
            let number = key.strip_prefix(b"cs/p").map(<[u8; 8]>::try_from);
            if let (Some(Ok(number)), Some([2, ..])) = (number, value.as_deref()) {
                let number = u64::from_be_bytes(number);
                let removed = self.disk.remove(&format!("packs/{number:016x}.pack"));
                removed.and_then(|()| self.disk.sync_dir("packs")).ok();
            }
        }
    }
}

impl Kv for Watched {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        if let Some(value) = self.first_look.lock().unwrap().get(key) {
            return Ok(Some(value.clone()));
        }
        self.kv.get(key)
    }

    fn get_many(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, KvError> {
        self.kv.get_many(keys)
    }

    fn scan(
        &self,
        prefix: &[u8],
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), KvError> {
        self.beside.moment();
        let mut seen = BTreeMap::new();
        self.kv.scan(prefix, from, &mut |key, value| {
            if self.mutant == Mutant::OneLook {
                seen.insert(key.to_vec(), value.to_vec());
            }
            visit(key, value)
        })?;
        self.beside.moment();
        *self.first_look.lock().unwrap() = seen;
        Ok(())
    }

    fn commit(&self, batch: Batch, durability: Durability) -> Result<(), KvError> {
        self.forget();
        if self.mutant == Mutant::RemovedFirst {
            self.remove_first(&batch);
        }
        self.kv.commit(batch, durability)
    }
}

/// The disk, watched.
pub struct WatchedDisk {
    disk: SimDisk,
    beside: Beside,
}

impl WatchedDisk {
    pub fn new(disk: &SimDisk, beside: &Beside) -> Self {
        Self {
            disk: disk.clone(),
            beside: beside.clone(),
        }
    }
}

impl Disk for WatchedDisk {
    fn open(&self, name: &str, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        if how == Open::Read {
            self.beside.moment();
        }
        self.disk.open(name, how)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.disk.create_dir(dir)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.beside.moment();
        self.disk.remove(name)?;
        self.beside.moment();
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }

    fn available_bytes(&self) -> io::Result<u64> {
        self.disk.available_bytes()
    }
}
