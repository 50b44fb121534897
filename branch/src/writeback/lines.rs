//! The lines of all volumes at this branch, each moved by one caller at a time.
//!
//! Invariant: a volume has one [`Line`], and whoever opens its overlay hands it over here before anything else is done with it, because from that moment
//! on nothing may be given up that is not at the datacenter. A line whose rows could not be kept is read again before it goes on.
//!
//! Calls block on the catalog and on overlays.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use dedup::{BranchId, DesktopId, IdKey};
use dedup_protocol::state::Nonce;
use dedup_protocol::state::writeback::SealPolicy;
use tokio::sync::watch;

use super::line::{Common, Line, LineError};
use super::shown::LineShown;
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::volume::Overlay;

fn fresh() -> Nonce {
    Nonce(rand::random())
}

/// A volume's place.
struct Seat {
    line: Mutex<Line>,
    /// As it was when it was moved last, for who does not want to wait.
    shown: Mutex<LineShown>,
}

/// See the module.
pub struct Lines {
    common: Common,
    catalog: Catalog,
    clock: Arc<dyn Clock>,
    seats: Mutex<HashMap<DesktopId, Arc<Seat>>>,
    hurries: watch::Sender<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic under this lock")
}

impl Lines {
    /// Those of a branch. Rows are in its catalog, and read when a volume is first spoken of.
    pub fn new(catalog: Catalog, branch: BranchId, key: IdKey, clock: Arc<dyn Clock>) -> Self {
        let common = Common {
            branch,
            key,
            rows: Arc::new(catalog.clone()),
            fresh,
            policy: SealPolicy::default(),
        };
        Self {
            common,
            catalog,
            clock,
            seats: Mutex::default(),
            hurries: watch::Sender::new(()),
        }
    }

    fn seat(&self, volume: DesktopId) -> Result<Arc<Seat>, LineError> {
        let mut seats = lock(&self.seats);
        if let Some(seat) = seats.get(&volume) {
            return Ok(Arc::clone(seat));
        }
        let now = self.clock.now_unix_s();
        let (kept, send) = (self.catalog.hold(volume)?, self.catalog.send_row(volume)?);
        let mut line = Line::open(self.common.clone(), volume, kept, send, now);
        line.start(now)?;
        let seat = Arc::new(Seat {
            shown: Mutex::new(line.shown(now)),
            line: Mutex::new(line),
        });
        seats.insert(volume, Arc::clone(&seat));
        Ok(seat)
    }

    /// Moves a volume's line; `work` is told the time, unix seconds.
    ///
    /// # Errors
    /// Its rows cannot be read, and those of `work`.
    pub fn with<T>(
        &self,
        volume: DesktopId,
        work: impl FnOnce(&mut Line, u64) -> Result<T, LineError>,
    ) -> Result<T, LineError> {
        let seat = self.seat(volume)?;
        let now = self.clock.now_unix_s();
        let mut line = lock(&seat.line);
        if line.is_broken() {
            let (kept, send) = (self.catalog.hold(volume)?, self.catalog.send_row(volume)?);
            line.reload(kept, send, now)?;
        }
        let result = work(&mut line, now);
        *lock(&seat.shown) = line.shown(now);
        result
    }

    /// Its overlay is open, and nothing was done with it yet.
    ///
    /// # Errors
    /// See [`LineError`]. The overlay is not to be used then.
    pub fn attach(
        &self,
        volume: DesktopId,
        overlay: &Arc<Overlay>,
        in_use: bool,
    ) -> Result<(), LineError> {
        self.with(volume, |line, now| {
            line.attach(Arc::clone(overlay), in_use, now)
        })
    }

    /// A volume is no more.
    ///
    /// # Errors
    /// Its rows cannot be removed.
    pub fn forget(&self, volume: DesktopId) -> Result<(), LineError> {
        let mut seats = lock(&self.seats);
        self.catalog.forget_volume(volume)?;
        seats.remove(&volume);
        Ok(())
    }

    /// How a volume's line was when it was moved last.
    ///
    /// # Errors
    /// Its rows cannot be read.
    pub fn shown(&self, volume: DesktopId) -> Result<LineShown, LineError> {
        let seat = self.seat(volume)?;
        let shown = lock(&seat.shown).clone();
        Ok(shown)
    }

    /// The link is gone.
    pub fn unlinked(&self) {
        let seats: Vec<Arc<Seat>> = lock(&self.seats).values().cloned().collect();
        for seat in seats {
            lock(&seat.line).unlinked();
        }
    }

    /// Has lines looked at soon that wait for their next tick.
    pub fn hurry(&self) {
        self.hurries.send_replace(());
    }

    /// Tells who moves a line that somebody is in a hurry. It marks what was told as seen before it moves the line, so that a hurry in the midst of that
    /// is not lost; each line has one, as a hurry is meant for all.
    pub fn hurries(&self) -> watch::Receiver<()> {
        self.hurries.subscribe()
    }
}
