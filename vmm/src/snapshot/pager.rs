//! Memory that comes while its machine runs already.
//!
//! ```text
//!            a working set is known           all of it is there
//!  begun ──────────► its blocks first ──► the rest, in order ──► over
//!    └── none is: for some seconds, only what is touched ──┘
//! ```
//!
//! Whoever needs all of it cuts these seconds short, unless it is told to be patient: then an order is recorded that is worth having.
//!
//! One thread: a block that somebody waits for goes before all others. Which blocks were waited for, in which order, is the working set
//! of the next machine of this snapshot.
//!
//! Invariant: a page is put there once, before anybody has seen it missing, and never over what the machine has written. A block that is
//! damaged is put nowhere: whoever waits for it goes on waiting, and the process must end.
//!
//! Processes that share the memory's file (servers of vhost-user disks) find zeros where pages are missing, without a fault. So the file
//! is not shared before [`Loading`] is over.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::memory::{BLOCK_BYTES, Image, ImageError, PAGE_BYTES, for_each_run};
use super::uffd::Uffd;
use super::working_set::WorkingSet;
use crate::machine::bus::lock;
use crate::threads::{self, Role};

/// For how long only what is touched is loaded while a working set is recorded: a desktop that went on has settled by then.
const RECORDING: Duration = Duration::from_secs(10);
/// How often it is looked whether the rest is wanted after all, or nothing any more.
const LOOK: libc::c_int = 20;

#[derive(Default)]
struct Latch {
    is_loading: Mutex<bool>,
    changed: Condvar,
    is_urgent: AtomicBool,
    is_patient: AtomicBool,
}

/// Whether a machine's memory is still being loaded, for whoever needs all of it.
#[derive(Clone, Default)]
pub struct Loading(Arc<Latch>);

impl Loading {
    /// Of a machine that is about to go on. The default is over: a machine that boots has all its memory.
    pub fn begun() -> Self {
        let this = Self::default();
        *lock(&this.0.is_loading) = true;
        this
    }

    /// Whether all is there.
    pub fn is_over(&self) -> bool {
        !*lock(&self.0.is_loading)
    }

    /// Has all be loaded now, whether somebody touches it or not.
    pub fn hurry(&self) {
        self.0.is_urgent.store(true, Ordering::Release);
    }

    /// Has whoever hurries wait until an order is recorded, if one is.
    pub fn be_patient(&self) {
        self.0.is_patient.store(true, Ordering::Release);
    }

    /// Whether somebody needs all of it, and is not to be patient.
    fn is_urgent(&self) -> bool {
        self.0.is_urgent.load(Ordering::Acquire) && !self.0.is_patient.load(Ordering::Acquire)
    }

    /// Hurries, and waits until all is there.
    pub fn wait(&self) {
        self.hurry();
        let mut is_loading = lock(&self.0.is_loading);
        while *is_loading {
            let woken = self.0.changed.wait(is_loading);
            is_loading = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// All is there.
    pub fn end(&self) {
        *lock(&self.0.is_loading) = false;
        self.0.changed.notify_all();
    }
}

/// Called when memory cannot be had: it must end the process, for the machine cannot go on and must not be seen to.
pub type OnDamage = Box<dyn FnOnce(PagerError) + Send>;

/// Why memory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// The file.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The kernel.
    #[error("memory of the guest: put block {block} there")]
    Put {
        /// Which block.
        block: usize,
        /// Why not.
        source: std::io::Error,
    },
    /// The kernel.
    #[error("memory of the guest: hear of missing pages")]
    Hear(#[source] std::io::Error),
}

/// See the module.
pub struct Pager {
    loading: Loading,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pager {
    /// Begins to give a memory, which nobody has touched yet, the image's content.
    ///
    /// # Errors
    /// No thread is to be had.
    pub(super) fn begin(
        uffd: Uffd,
        image: Image,
        working_set: WorkingSet,
        loading: Loading,
        on_damage: OnDamage,
    ) -> std::io::Result<Self> {
        let order = working_set.read(image.len()).unwrap_or_else(|error| {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "the snapshot's working set is of no use");
            None
        });
        let stop = Arc::new(AtomicBool::new(false));
        let work = Work {
            uffd,
            loaded: (0..image.len()).map(|block| image.is_zero(block)).collect(),
            image,
            record: (order.is_none() && working_set.is_writable()).then(|| Record {
                working_set,
                touched: Vec::new(),
                until: Instant::now() + RECORDING,
            }),
            first: order.unwrap_or_default().into(),
            next: 0,
            block: Box::new([0; BLOCK_BYTES]),
            loading: loading.clone(),
            stop: Arc::clone(&stop),
        };
        let thread = threads::spawn(Role::Pager, "pager", move || work.run(on_damage))?;
        Ok(Self {
            loading,
            stop,
            thread: Some(thread),
        })
    }

    /// Has all of it be loaded, and waits for that.
    pub fn finish(&self) {
        self.loading.wait();
    }
}

impl Drop for Pager {
    /// To be dropped when nobody touches the memory any more.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.loading.end();
    }
}

struct Record {
    working_set: WorkingSet,
    touched: Vec<u32>,
    until: Instant,
}

impl Record {
    fn keep(self) {
        if let Err(error) = self.working_set.write(&self.touched) {
            tracing::info!(%error, "the snapshot's working set is not kept");
        }
    }
}

struct Work {
    uffd: Uffd,
    image: Image,
    /// By block: it is there, or zero.
    loaded: Vec<bool>,
    record: Option<Record>,
    /// Blocks that are loaded before the others.
    first: VecDeque<u32>,
    next: usize,
    block: Box<[u8; BLOCK_BYTES]>,
    loading: Loading,
    stop: Arc<AtomicBool>,
}

impl Work {
    fn run(mut self, on_damage: OnDamage) {
        match self.load() {
            // Told to stop.
            Ok(false) => {}
            Ok(true) => {
                self.loading.end();
                tracing::info!("the guest's memory is loaded");
            }
            Err(error) => on_damage(error),
        }
    }

    /// True: all is there. False: told to stop.
    fn load(&mut self) -> Result<bool, PagerError> {
        loop {
            if self.stop.load(Ordering::Acquire) {
                return Ok(false);
            }
            self.serve()?;
            if let Some(record) = &self.record {
                let is_urgent = self.loading.is_urgent();
                if !is_urgent && Instant::now() < record.until {
                    self.wait_for_faults();
                    continue;
                }
                if let Some(record) = self.record.take()
                    && !is_urgent
                {
                    // One that was cut short says little of what a machine needs.
                    record.keep();
                }
            }
            match self.next_block() {
                Some(block) => self.put(block)?,
                None => {
                    self.uffd.unregister().map_err(PagerError::Hear)?;
                    return Ok(true);
                }
            }
        }
    }

    fn wait_for_faults(&self) {
        let mut poll = libc::pollfd {
            fd: self.uffd.fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one entry, which outlives the call. Interrupted or not, what there is is looked at next.
        unsafe { libc::poll(&raw mut poll, 1, LOOK) };
    }

    fn next_block(&mut self) -> Option<usize> {
        while let Some(block) = self.first.pop_front() {
            if !self.loaded[block as usize] {
                return Some(block as usize);
            }
        }
        while self.next < self.loaded.len() {
            self.next += 1;
            if !self.loaded[self.next - 1] {
                return Some(self.next - 1);
            }
        }
        None
    }

    /// Gives those who wait what they wait for.
    fn serve(&mut self) -> Result<(), PagerError> {
        loop {
            let faults = self.uffd.faults().map_err(PagerError::Hear)?;
            if faults.is_empty() {
                return Ok(());
            }
            for at in faults {
                let page = at - at % PAGE_BYTES as u64;
                let block = (at / BLOCK_BYTES as u64) as usize;
                if self.loaded.get(block) == Some(&false) {
                    if let Some(record) = &mut self.record {
                        record.touched.push(block as u32);
                    }
                    self.put(block)?;
                }
                // A page that is not in its block is zero, as is one of a block of zeros, or one that the guest has given back.
                let zeroed = self.uffd.zero(page);
                zeroed.map_err(|source| PagerError::Put { block, source })?;
            }
        }
    }

    fn put(&mut self, block: usize) -> Result<(), PagerError> {
        if self.image.read(block, &mut self.block)? {
            let start = (block * BLOCK_BYTES) as u64;
            for_each_run(&*self.block, |offset, run| {
                let put = self.uffd.fill(start + offset as u64, run);
                put.map_err(|source| PagerError::Put { block, source })
            })?;
        }
        self.loaded[block] = true;
        Ok(())
    }
}
