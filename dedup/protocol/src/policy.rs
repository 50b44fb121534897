//! What a branch may take of its line, and when: told by the datacenter on the control stream.
//!
//! Pure; time is an argument. It bounds what nobody waits for; a guest that waits is bounded by the line's cap alone. It is no signed
//! record: whoever could forge it holds the datacenter's end of the link, and could as well withhold what it bounds.

use serde::{Deserialize, Serialize};

const DAY_MIN: u16 = 24 * 60;
/// Clocks on Earth are at most 14 hours from UTC.
const UTC_OFFSET_MIN_MAX: i16 = 14 * 60;

/// Caps and hours of one branch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// All that one end sends, in bytes a second; 0 for no limit.
    pub link_bytes_per_s: u64,
    /// Fill and write-back, in bytes a second; 0 for no limit.
    pub fill_bytes_per_s: u64,
    /// When fill may run; `None` for always.
    pub fill_hours: Option<Hours>,
}

/// A part of each day, by the wall clock of a fixed offset from UTC. Summer time is for whoever sets the offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hours {
    /// First minute of it, of the day's 1440.
    pub from_min: u16,
    /// First minute behind it; smaller than `from_min` if it spans midnight. Equal to it: the whole day.
    pub until_min: u16,
    /// Minutes that the wall clock is ahead of UTC.
    pub utc_offset_min: i16,
}

impl Hours {
    /// Whether its fields are minutes of a day and an offset that exists.
    pub fn is_valid(&self) -> bool {
        self.from_min < DAY_MIN
            && self.until_min < DAY_MIN
            && (-UTC_OFFSET_MIN_MAX..=UTC_OFFSET_MIN_MAX).contains(&self.utc_offset_min)
    }

    fn minute(&self, now_unix_s: u64) -> u16 {
        let minutes = (now_unix_s / 60) as i64 + i64::from(self.utc_offset_min);
        minutes.rem_euclid(i64::from(DAY_MIN)) as u16
    }

    /// Whether the moment is in it.
    pub fn contains(&self, now_unix_s: u64) -> bool {
        let minute = self.minute(now_unix_s);
        if self.from_min < self.until_min {
            (self.from_min..self.until_min).contains(&minute)
        } else {
            minute >= self.from_min || minute < self.until_min
        }
    }
}

impl Policy {
    /// Whether it makes sense.
    pub fn is_valid(&self) -> bool {
        self.fill_hours.is_none_or(|hours| hours.is_valid())
    }

    /// Whether fill may run at a moment.
    pub fn fill_allowed(&self, now_unix_s: u64) -> bool {
        self.fill_hours
            .is_none_or(|hours| hours.contains(now_unix_s))
    }

    /// The cap of all that one end sends.
    pub fn link_cap(&self) -> Option<u64> {
        (self.link_bytes_per_s > 0).then_some(self.link_bytes_per_s)
    }

    /// The cap of what nobody waits for.
    pub fn fill_cap(&self) -> Option<u64> {
        (self.fill_bytes_per_s > 0).then_some(self.fill_bytes_per_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: u64 = 60;
    const H: u64 = 3600;

    fn hours(from_h: u16, until_h: u16, utc_offset_min: i16) -> Hours {
        Hours {
            from_min: from_h * 60,
            until_min: until_h * 60,
            utc_offset_min,
        }
    }

    #[test]
    fn a_night_spans_midnight() {
        let night = hours(20, 6, 0);
        for (at, open) in [
            (0, true),
            (6 * H - 1, true),
            (6 * H, false),
            (20 * H - 1, false),
            (20 * H, true),
        ] {
            assert_eq!(night.contains(100 * 24 * H + at), open, "{at}");
        }
        assert!(hours(7, 7, 0).contains(3 * H), "the whole day");
    }

    #[test]
    fn hours_are_by_the_branchs_wall_clock() {
        // 20:00 to 06:00 in Kathmandu (UTC+5:45) is 14:15 to 00:15 UTC.
        let night = hours(20, 6, 345);
        assert!(night.contains(14 * H + 15 * MIN));
        assert!(!night.contains(14 * H + 15 * MIN - 1));
        assert!(night.contains(14 * MIN));
        assert!(!night.contains(15 * MIN));
        // Behind UTC, on the first day there ever was.
        assert!(hours(20, 6, -300).contains(H));
    }

    #[test]
    fn every_minute_of_every_offset_is_in_the_hours_or_in_their_complement() {
        for offset in (-840..=840).step_by(35) {
            for (from, until) in [(0, 1), (9, 17), (20, 6), (23, 0)] {
                let (in_it, rest) = (hours(from, until, offset), hours(until, from, offset));
                for minute in 0..1440 {
                    let now = 1_700_000_000 + minute * MIN;
                    assert_ne!(in_it.contains(now), rest.contains(now));
                }
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_known_for_it() {
        assert!(Policy::default().is_valid());
        for bad in [
            hours(24, 6, 0),
            hours(6, 24, 0),
            hours(1, 2, 841),
            hours(1, 2, i16::MAX),
        ] {
            assert!(!bad.is_valid());
        }
    }
}
