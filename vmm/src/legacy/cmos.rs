//! The clock of a PC (MC146818), which tells UTC and cannot be set: a guest keeps its time by its own means, and the next one that
//! starts must not find what this one wrote.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::machine::bus::Registers;

/// Status A: the divider of a running clock, never in the middle of an update.
const STATUS_A: u8 = 0x26;
/// Status B: 24 hours, and decimal digits: Linux takes no others on a PC.
const STATUS_B: u8 = 0b010;
/// Status D: the battery is good.
const STATUS_D: u8 = 0x80;

/// A moment as the clock's registers show it, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Moment {
    year: u32,
    month: u8,
    day: u8,
    weekday: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl Moment {
    /// Of seconds since 1970, by the proleptic Gregorian calendar (H. Hinnant, "chrono-compatible low-level date algorithms").
    fn of(unix_s: u64) -> Self {
        let days = unix_s / 86_400;
        let rest = unix_s % 86_400;
        let z = days + 719_468;
        let era = z / 146_097;
        let day_of_era = z % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let month = if shifted < 10 {
            shifted + 3
        } else {
            shifted - 9
        };
        Self {
            year: (year_of_era + era * 400 + u64::from(month <= 2)) as u32,
            month: month as u8,
            day: (day_of_year - (153 * shifted + 2) / 5 + 1) as u8,
            // 1 January 1970 was a Thursday; Sunday is 1.
            weekday: ((days + 4) % 7 + 1) as u8,
            hour: (rest / 3600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
        }
    }
}

/// The clock's two ports: which register, and its value. What it tells is always now, so that this is all of its state.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cmos {
    index: u8,
}

impl Cmos {
    fn register(&self, unix_s: u64) -> u8 {
        let now = Moment::of(unix_s);
        let value = match self.index {
            0x00 => now.second,
            0x02 => now.minute,
            0x04 => now.hour,
            0x06 => now.weekday,
            0x07 => now.day,
            0x08 => now.month,
            0x09 => (now.year % 100) as u8,
            0x0a => return STATUS_A,
            0x0b => return STATUS_B,
            0x0d => return STATUS_D,
            0x32 => (now.year / 100) as u8,
            _ => 0,
        };
        ((value / 10) << 4) | (value % 10)
    }
}

impl Registers for Cmos {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs());
        data.fill(if offset == 1 {
            self.register(now)
        } else {
            0xff
        });
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (0, [index]) = (offset, data) {
            // The highest bit masks the NMI of old machines.
            self.index = index & 0x7f;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_of_known_dates() {
        let moment = |year, month, day, weekday, hour, minute, second| Moment {
            year,
            month,
            day,
            weekday,
            hour,
            minute,
            second,
        };
        // By `date -u -d @N`.
        assert_eq!(Moment::of(0), moment(1970, 1, 1, 5, 0, 0, 0));
        assert_eq!(Moment::of(951_827_696), moment(2000, 2, 29, 3, 12, 34, 56));
        assert_eq!(
            Moment::of(1_735_689_599),
            moment(2024, 12, 31, 3, 23, 59, 59)
        );
        assert_eq!(Moment::of(4_107_542_400), moment(2100, 3, 1, 2, 0, 0, 0));
    }

    #[test]
    fn registers_are_chosen_by_the_first_port() {
        let mut cmos = Cmos::default();
        let mut read = |index: u8| {
            cmos.write(0, &[index | 0x80]);
            cmos.register(951_827_696)
        };
        assert_eq!(
            [0, 2, 4, 7, 8, 9, 0x32].map(&mut read),
            [0x56, 0x34, 0x12, 0x29, 2, 0, 0x20]
        );
        assert_eq!(read(0x0b), STATUS_B);
    }
}
