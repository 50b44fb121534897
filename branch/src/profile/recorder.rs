//! The first touch of each chunk of a base, while its desktop boots.
//!
//! Readers' threads call [`Watch::touch`] for every extent they read. While nothing is recorded that is one load; while a boot is
//! recorded, one more and a test of a bit for all but the first touch of a chunk. Time is an argument of [`Recorder`].

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Instant;

use dedup_protocol::profile::ENTRIES_MAX;

/// A boot has settled when nothing was touched for the first time for so long, in milliseconds, and for half of the time that it took
/// so far. Between two phases of a boot a machine computes for some seconds, an emulated one on a busy host for minutes.
pub const SETTLED_MS: u32 = 20_000;

/// Fewer touches than this are not a boot: firmware that looks for a disk, while the kernel unpacks its initial RAM disk.
pub const TOUCHES_MIN: usize = 32;

/// A boot is over after this, in milliseconds, settled or not: what a user opens first is not part of it.
pub const BOOT_MS_MAX: u32 = 600_000;

/// The first touch of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touch {
    /// Chunk number in the content map.
    pub index: u32,
    /// When, in milliseconds since the boot began.
    pub at_ms: u32,
    /// Whether the chunk was here.
    pub hit: bool,
}

/// One boot, as it is recorded.
pub struct Recorder {
    /// One bit for each chunk of the map.
    touched: Box<[AtomicU64]>,
    touches: Mutex<Vec<Touch>>,
    last_ms: AtomicU32,
    /// Reads that wait for chunks now.
    waiting: AtomicU32,
    failed: AtomicBool,
}

impl Recorder {
    /// Records touches of a map of `chunks` chunks.
    pub fn new(chunks: usize) -> Self {
        Self {
            touched: (0..chunks.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
            touches: Mutex::default(),
            last_ms: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            failed: AtomicBool::new(false),
        }
    }

    fn touches(&self) -> MutexGuard<'_, Vec<Touch>> {
        self.touches.lock().expect("no panic under this lock")
    }

    /// A guest reads chunk `index`; `now_ms` is asked for only if that is the first time.
    pub fn touch(&self, index: usize, hit: bool, now_ms: impl FnOnce() -> u32) {
        let Some(word) = self.touched.get(index / 64) else {
            debug_assert!(false, "chunk {index} is of another map");
            return;
        };
        let bit = 1 << (index % 64);
        // Most touches are not the first, and a load shares the cache line where a write would take it.
        if word.load(Ordering::Relaxed) & bit != 0
            || word.fetch_or(bit, Ordering::Relaxed) & bit != 0
        {
            return;
        }
        let at_ms = now_ms();
        self.last_ms.fetch_max(at_ms, Ordering::Relaxed);
        let mut touches = self.touches();
        if touches.len() < ENTRIES_MAX {
            let index = index as u32;
            touches.push(Touch { index, at_ms, hit });
        }
    }

    /// A read begins to wait.
    pub fn wait_begins(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    /// A read has waited; `now_ms` is when.
    pub fn wait_ended(&self, got_it: bool, now_ms: u32) {
        self.last_ms.fetch_max(now_ms, Ordering::Relaxed);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        if !got_it {
            self.failed.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the boot is over at `now_ms`. A guest that waits for the line is in the middle of it, however long.
    pub fn is_over(&self, now_ms: u32) -> bool {
        let last_ms = self.last_ms.load(Ordering::Relaxed);
        let quiet = now_ms.saturating_sub(last_ms) >= SETTLED_MS.max(last_ms / 2);
        let stands = quiet && self.waiting.load(Ordering::Relaxed) == 0;
        now_ms >= BOOT_MS_MAX || (stands && self.touches().len() >= TOUCHES_MIN)
    }

    /// Whether nothing was touched for the first time for so long, however little was touched before.
    pub fn is_quiet(&self, now_ms: u32, for_ms: u32) -> bool {
        let last_ms = self.last_ms.load(Ordering::Relaxed);
        now_ms.saturating_sub(last_ms) >= for_ms && self.waiting.load(Ordering::Relaxed) == 0
    }

    /// Whether a read failed: what the guest did then is not how it boots.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// What was touched so far, in order of time.
    pub fn recorded(&self) -> Vec<Touch> {
        let mut touches = self.touches().clone();
        touches.sort_by_key(|t| t.at_ms);
        touches
    }
}

/// A base's place for a recorder, which is there while a boot is recorded.
#[derive(Default)]
pub struct Watch {
    /// Spares readers the lock for all the time that nothing is recorded.
    recording: AtomicBool,
    recorder: RwLock<Option<(Arc<Recorder>, Instant)>>,
}

impl Watch {
    /// Begins to record a boot that began at `began`.
    pub fn begin(&self, recorder: Arc<Recorder>, began: Instant) {
        *self.recorder.write().expect("no panic under this lock") = Some((recorder, began));
        self.recording.store(true, Ordering::Relaxed);
    }

    /// Ends recording; readers pass by from now on.
    pub fn end(&self) {
        self.recording.store(false, Ordering::Relaxed);
        *self.recorder.write().expect("no panic under this lock") = None;
    }

    fn with(&self, note: impl FnOnce(&Recorder, &Instant)) {
        if self.recording.load(Ordering::Relaxed)
            && let Some((recorder, began)) =
                &*self.recorder.read().expect("no panic under this lock")
        {
            note(recorder, began);
        }
    }

    /// A guest reads chunk `index`.
    pub fn touch(&self, index: usize, hit: bool) {
        self.with(|recorder, began| recorder.touch(index, hit, || since_ms(began)));
    }

    /// Runs `wait`, during which a read waits for chunks.
    pub fn waiting<T, E>(&self, wait: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let mut recorder = None;
        self.with(|r, began| {
            r.wait_begins();
            recorder = Some(began.to_owned());
        });
        let result = wait();
        if let Some(began) = recorder {
            self.with(|r, _| r.wait_ended(result.is_ok(), since_ms(&began)));
        }
        result
    }
}

fn since_ms(began: &Instant) -> u32 {
    began.elapsed().as_millis().min(u128::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_touch_counts_and_only_it_asks_the_clock() {
        let recorder = Recorder::new(130);
        recorder.touch(129, false, || 5);
        recorder.touch(129, true, || unreachable!("it was touched before"));
        recorder.touch(0, true, || 9);
        recorder.touch(64, true, || 7);
        let told: Vec<_> = recorder.recorded();
        let touch = |index, at_ms, hit| Touch { index, at_ms, hit };
        assert_eq!(
            told,
            [touch(129, 5, false), touch(64, 7, true), touch(0, 9, true)]
        );
    }

    #[test]
    fn a_boot_is_over_when_quiet_but_not_while_a_guest_waits() {
        let recorder = Recorder::new(64);
        recorder.touch(0, false, || 300);
        assert!(!recorder.is_over(90_000), "firmware looked at the disk");
        for index in 1..TOUCHES_MIN {
            recorder.touch(index, false, || 1_000);
        }
        assert!(!recorder.is_over(20_999));
        assert!(recorder.is_over(21_000));
        recorder.wait_begins();
        assert!(!recorder.is_over(90_000));
        assert!(recorder.is_over(BOOT_MS_MAX), "ten minutes are enough");
        recorder.wait_ended(true, 95_000);
        assert!(!recorder.is_over(100_000), "it goes on now");
        assert!(!recorder.is_over(142_000), "a slow machine is slow");
        assert!(recorder.is_over(142_500));
        assert!(!recorder.has_failed());
        recorder.wait_begins();
        recorder.wait_ended(false, 96_000);
        assert!(recorder.has_failed());
    }

    #[test]
    fn touches_are_bounded() {
        let recorder = Recorder::new(ENTRIES_MAX + 100);
        for index in 0..ENTRIES_MAX + 100 {
            recorder.touch(index, true, || 1);
        }
        assert_eq!(recorder.recorded().len(), ENTRIES_MAX);
    }

    #[test]
    fn quiet_is_who_touches_nothing_and_waits_for_nothing() {
        let recorder = Recorder::new(10);
        assert!(!recorder.is_quiet(59, 60) && recorder.is_quiet(60, 60));
        recorder.touch(3, true, || 50);
        assert!(!recorder.is_quiet(60, 60) && recorder.is_quiet(110, 60));
        assert!(!recorder.is_over(SETTLED_MS), "it is no boot yet");
        recorder.wait_begins();
        assert!(!recorder.is_quiet(200, 60));
        recorder.wait_ended(true, 200);
        assert!(!recorder.is_quiet(259, 60) && recorder.is_quiet(260, 60));
    }

    #[test]
    fn readers_from_many_threads_touch_each_chunk_once() {
        let watch = Watch::default();
        watch.touch(1, true);
        let recorder = Arc::new(Recorder::new(1000));
        watch.begin(Arc::clone(&recorder), Instant::now());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|index| watch.touch(index, true)));
            }
        });
        watch.end();
        watch.touch(1, true);
        let mut told: Vec<_> = recorder.recorded().iter().map(|t| t.index).collect();
        told.sort_unstable();
        assert_eq!(told, (0..1000).collect::<Vec<_>>());
    }
}
