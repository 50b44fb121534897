//! What a branch may take of its line, and when.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Lowest cap, in bits a second: below it not even what the ends tell each other gets through in time.
pub const CAP_BITS_PER_S_MIN: u64 = 64_000;

/// Caps and hours of a branch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct BranchPolicy {
    /// All that either end of the link sends, in bits a second; none: no limit.
    pub link_cap_bits_per_s: Option<u64>,
    /// Fill and write-back, in bits a second; none: no limit but the link's.
    pub fill_cap_bits_per_s: Option<u64>,
    /// When fill may run, `HH:MM-HH:MM` by the wall clock of `utc_offset`; none: always.
    pub fill_hours: Option<String>,
    /// How far that wall clock is ahead of UTC, `+HH:MM` or `-HH:MM`. It knows no summer time.
    pub utc_offset: String,
}

/// Changes caps and hours of a branch. Fields left out keep what the branch has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PolicyRequest {
    /// All that either end of the link sends, in bits a second, at least 64000; 0 for no limit.
    #[serde(default)]
    pub link_cap_bits_per_s: Option<u64>,
    /// Fill and write-back, in bits a second, at least 64000; 0 for no limit.
    #[serde(default)]
    pub fill_cap_bits_per_s: Option<u64>,
    /// When fill may run: `HH:MM-HH:MM`, over midnight if the second is the earlier, or `always`.
    #[serde(default)]
    pub fill_hours: Option<String>,
    /// How far the branch's wall clock is ahead of UTC: `+HH:MM` or `-HH:MM`.
    #[serde(default)]
    pub utc_offset: Option<String>,
}

/// Text that is no part of a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Not hours.
    #[error("{0:?} are no hours of a day; write them like 20:00-06:00, or always")]
    Hours(String),
    /// Not an offset.
    #[error("{0:?} is no offset from UTC; write it like +01:00 or -05:30")]
    Offset(String),
    /// Not a rate.
    #[error("{0:?} is not a rate; write it like 512kbit, 5Mbit or 1Gbit, or none")]
    Rate(String),
}

fn shown(text: &str) -> String {
    text.chars().take(40).collect()
}

/// Reads `HH:MM`.
fn minutes(text: &str, hours_max: u16) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str| {
        let plain = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| text.parse::<u16>().ok()).flatten()
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (hours <= hours_max && minutes < 60).then_some(hours * 60 + minutes)
}

/// A part of each day, in minutes of it. The text `always` is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DayPart {
    /// First minute.
    pub from_min: u16,
    /// First minute behind it.
    pub until_min: u16,
}

impl FromStr for DayPart {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let parsed = text.split_once('-').and_then(|(from, until)| {
            Some(Self {
                from_min: minutes(from, 23)?,
                until_min: minutes(until, 23)?,
            })
        });
        parsed.ok_or_else(|| PolicyError::Hours(shown(text)))
    }
}

impl fmt::Display for DayPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            from_min,
            until_min,
        } = self;
        write!(
            f,
            "{:02}:{:02}-{:02}:{:02}",
            from_min / 60,
            from_min % 60,
            until_min / 60,
            until_min % 60
        )
    }
}

/// Reads `+HH:MM` or `-HH:MM`, at most 14 hours, in minutes ahead of UTC.
pub fn parse_utc_offset(text: &str) -> Result<i16, PolicyError> {
    let refused = || PolicyError::Offset(shown(text));
    let (sign, rest) = match text.split_at_checked(1) {
        Some(("+", rest)) => (1, rest),
        Some(("-", rest)) => (-1, rest),
        _ => return Err(refused()),
    };
    match minutes(rest, 14) {
        Some(minutes) if minutes <= 14 * 60 => Ok(sign * minutes as i16),
        _ => Err(refused()),
    }
}

/// An offset as [`parse_utc_offset`] reads it.
pub fn format_utc_offset(offset_min: i16) -> String {
    let sign = if offset_min < 0 { '-' } else { '+' };
    let minutes = offset_min.unsigned_abs();
    format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60)
}

/// Reads a rate in bits a second, in decimal units as lines are sold: `512kbit`, `5Mbit`, `1.5Gbit`. `none` is 0.
pub fn parse_rate(text: &str) -> Result<u64, PolicyError> {
    let refused = || PolicyError::Rate(shown(text));
    let lower = text.trim().to_ascii_lowercase();
    if lower == "none" {
        return Ok(0);
    }
    let split = lower
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .ok_or_else(refused)?;
    let (number, unit) = lower.split_at(split);
    let unit = unit.trim();
    let unit = unit
        .strip_suffix("it/s")
        .or_else(|| unit.strip_suffix("it"))
        .ok_or_else(refused)?;
    let factor = match unit {
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        _ => return Err(refused()),
    };
    let value = number.parse::<f64>().map_err(|_| refused())? * factor;
    if value.is_finite() && (1.0..=1e12).contains(&value) {
        Ok(value as u64)
    } else {
        Err(refused())
    }
}

/// A rate for people.
pub fn format_rate(bits_per_s: u64) -> String {
    let (value, unit) = match bits_per_s {
        b if b >= 1_000_000_000 => (b as f64 / 1e9, "Gbit/s"),
        b if b >= 1_000_000 => (b as f64 / 1e6, "Mbit/s"),
        b => (b as f64 / 1e3, "kbit/s"),
    };
    format!("{} {unit}", (value * 100.0).round() / 100.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rates_as_lines_are_sold() {
        for (text, bits) in [
            ("512kbit", 512_000),
            ("5Mbit", 5_000_000),
            ("1.5 Gbit/s", 1_500_000_000),
            ("none", 0),
        ] {
            assert_eq!(parse_rate(text), Ok(bits));
        }
        for bad in [
            "",
            "5",
            "5MB",
            "Mbit",
            "-1Mbit",
            "1e9Mbit",
            "9999999Gbit",
            "it",
            "0Mbit",
        ] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
        assert_eq!(format_rate(5_000_000), "5 Mbit/s");
        assert_eq!(format_rate(1_500_000_000), "1.5 Gbit/s");
        assert_eq!(format_rate(64_000), "64 kbit/s");
    }

    #[test]
    fn hours_and_offsets_read_and_write_the_same() {
        let night: DayPart = "20:00-06:30".parse().unwrap();
        assert_eq!((night.from_min, night.until_min), (1200, 390));
        assert_eq!(night.to_string(), "20:00-06:30");
        for bad in [
            "20-06",
            "24:00-06:00",
            "20:60-06:00",
            "2:00-06:00",
            "20:00",
            "+1:00-06:00",
        ] {
            assert!(bad.parse::<DayPart>().is_err(), "{bad}");
        }
        for (text, minutes) in [("+00:00", 0), ("-05:30", -330), ("+14:00", 840)] {
            assert_eq!(parse_utc_offset(text), Ok(minutes));
            assert_eq!(format_utc_offset(minutes), text);
        }
        for bad in ["", "01:00", "+14:01", "+1:00", "é1:00"] {
            assert!(parse_utc_offset(bad).is_err(), "{bad}");
        }
    }
}
