//! How fast what a pool's desktops keep of what they write grows, as seen here.
//!
//! Each open desktop is looked at once a minute; how much more its overlays hold counts for its pool, and so does the time that it was up. How long
//! their logs are says nothing of that: compaction moves what is held and drops what is not. Older
//! hours count less: beyond [`WINDOW_MS`] both are halved. What it is worth survives a restart as one row a pool; a lost row is measured
//! anew. Time is an argument.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How often overlays are looked at.
const SAMPLE_EVERY: Duration = Duration::from_secs(60);
/// A longer pause between two looks counts as this: the host slept, and so did the desktops.
const SAMPLE_MAX: Duration = Duration::from_secs(180);
/// Less time than this, in milliseconds of one desktop, tells nothing of its hours.
const MEASURED_MS_MIN: u64 = 600_000;
/// Twice this much desktop time is remembered at most, in milliseconds: a working week of one desktop.
const WINDOW_MS: u64 = 40 * 3_600_000;

/// What was seen of one pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WriteHistory {
    /// Time that its desktops were up, added up, in milliseconds.
    pub desktop_ms: u64,
    /// Bytes that their overlays held more.
    pub bytes: u64,
}

impl WriteHistory {
    /// One desktop was up for `ms` and its overlays held `bytes` more after it.
    pub fn note(&mut self, ms: u64, bytes: u64) {
        self.desktop_ms = self.desktop_ms.saturating_add(ms);
        self.bytes = self.bytes.saturating_add(bytes);
        // Whatever a damaged row said ends here, too.
        while self.desktop_ms > 2 * WINDOW_MS {
            self.desktop_ms /= 2;
            self.bytes /= 2;
        }
    }

    /// Bytes that one desktop writes and keeps in an hour; none before ten minutes were seen.
    pub fn bytes_per_hour(&self) -> Option<u64> {
        if self.desktop_ms < MEASURED_MS_MIN {
            return None;
        }
        let rate = u128::from(self.bytes) * 3_600_000 / u128::from(self.desktop_ms);
        Some(u64::try_from(rate).unwrap_or(u64::MAX))
    }
}

/// An open desktop's overlays, at one look.
#[derive(Debug, Clone, Copy)]
pub struct OpenOverlay<'a> {
    /// Its desktop.
    pub desktop: &'a str,
    /// The desktop's pool.
    pub pool: &'a str,
    /// Bytes that they hold.
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct Sampled {
    at: Option<Instant>,
    by_desktop: HashMap<String, u64>,
    by_pool: BTreeMap<String, WriteHistory>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Writes(Mutex<Sampled>);

impl Writes {
    /// Goes on with what was kept.
    pub fn resume(kept: impl IntoIterator<Item = (String, WriteHistory)>) -> Self {
        Self(Mutex::new(Sampled {
            by_pool: kept.into_iter().collect(),
            ..Sampled::default()
        }))
    }

    fn sampled(&self) -> MutexGuard<'_, Sampled> {
        self.0.lock().expect("no panic under this lock")
    }

    /// Whether it is time to look.
    pub fn is_due(&self, now: Instant) -> bool {
        let at = self.sampled().at;
        at.is_none_or(|at| now.saturating_duration_since(at) >= SAMPLE_EVERY)
    }

    /// Takes one look at all open overlays. Answers what is to be kept of the pools that it tells something about.
    pub fn sample<'a>(
        &self,
        now: Instant,
        open: impl IntoIterator<Item = OpenOverlay<'a>>,
    ) -> Vec<(String, WriteHistory)> {
        let mut sampled = self.sampled();
        let since = sampled.at.replace(now);
        let since = since.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let ms = since.min(SAMPLE_MAX).as_millis() as u64;
        let before = std::mem::take(&mut sampled.by_desktop);
        let mut changed: BTreeMap<String, WriteHistory> = BTreeMap::new();
        for overlay in open {
            // What came up since the last look is measured from now on. One that holds less was cleared, or its guest gave something back.
            if let Some(bytes) = before.get(overlay.desktop)
                && ms > 0
            {
                let grown = overlay.bytes.saturating_sub(*bytes);
                let history = sampled.by_pool.entry(overlay.pool.to_owned()).or_default();
                history.note(ms, grown);
                changed.insert(overlay.pool.to_owned(), *history);
            }
            let desktop = overlay.desktop.to_owned();
            sampled.by_desktop.insert(desktop, overlay.bytes);
        }
        changed.into_iter().collect()
    }

    /// What was seen of a pool.
    pub fn of(&self, pool: &str) -> WriteHistory {
        self.sampled()
            .by_pool
            .get(pool)
            .copied()
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn open(desktop: &'static str, bytes: u64) -> OpenOverlay<'static> {
        OpenOverlay {
            desktop,
            pool: "office",
            bytes,
        }
    }

    #[test]
    fn the_rate_is_of_one_desktop_and_known_after_ten_minutes() {
        let writes = Writes::default();
        let begun = Instant::now();
        assert!(writes.is_due(begun));
        for minute in 0..=10u32 {
            let now = begun + MINUTE * minute;
            let logs = [
                open("a", 1_000 * u64::from(minute)),
                open("b", 7_000 + 3_000 * u64::from(minute)),
            ];
            // Two desktops: five minutes are ten of one.
            assert_eq!(writes.of("office").bytes_per_hour().is_some(), minute > 5);
            let kept = writes.sample(now, logs);
            assert_eq!(kept.len(), usize::from(minute > 0));
        }
        let history = writes.of("office");
        assert_eq!((history.desktop_ms, history.bytes), (1_200_000, 40_000));
        assert_eq!(history.bytes_per_hour(), Some(120_000));
        assert_eq!(writes.of("lab"), WriteHistory::default());
        assert!(!writes.is_due(begun + MINUTE * 10));
        assert!(writes.is_due(begun + MINUTE * 11));
    }

    #[test]
    fn what_shrinks_or_comes_and_goes_is_no_growth() {
        let writes = Writes::default();
        let begun = Instant::now();
        writes.sample(begun, [open("a", 5_000)]);
        writes.sample(begun + MINUTE, [open("a", 1_000)]);
        // Away for a while, with another log when it is back.
        writes.sample(begun + MINUTE * 2, []);
        writes.sample(begun + MINUTE * 3, [open("a", 900_000)]);
        let history = writes.of("office");
        assert_eq!((history.desktop_ms, history.bytes), (60_000, 0));
        // A host that slept for a day.
        writes.sample(begun + MINUTE * 1_440, [open("a", 900_100)]);
        let history = writes.of("office");
        assert_eq!((history.desktop_ms, history.bytes), (240_000, 100));
    }

    #[test]
    fn old_hours_count_less_and_rows_of_nonsense_end() {
        let mut history = WriteHistory::default();
        for _ in 0..100_000 {
            history.note(60_000, 60_000);
        }
        assert!(history.desktop_ms <= 2 * WINDOW_MS);
        for _ in 0..40_000 {
            history.note(60_000, 0);
        }
        assert!(history.bytes_per_hour() < Some(3_600));
        let mut absurd = WriteHistory {
            desktop_ms: u64::MAX,
            bytes: u64::MAX,
        };
        assert!(absurd.bytes_per_hour().is_some());
        absurd.note(1, 1);
        assert!(absurd.desktop_ms <= 2 * WINDOW_MS);
    }

    #[test]
    fn what_was_kept_is_gone_on_with() {
        let kept = WriteHistory {
            desktop_ms: 3_600_000,
            bytes: 5,
        };
        let writes = Writes::resume([("office".to_owned(), kept)]);
        assert_eq!(writes.of("office").bytes_per_hour(), Some(5));
    }
}
