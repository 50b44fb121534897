//! Sizes and durations as people write them: `16KiB`, `1.5 GiB`, `24h`, `7d`.

use std::time::Duration;

/// Text that is no size or duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a size.
    #[error("{0:?} is not a size; write it like 4096, 16KiB, 512MiB or 2GiB")]
    Size(String),
    /// Not a duration.
    #[error("{0:?} is not a duration; write it like 90s, 30min, 24h or 7d")]
    Duration(String),
}

const SIZES: [(&str, u64); 9] = [
    ("", 1),
    ("b", 1),
    ("kib", 1 << 10),
    ("k", 1 << 10),
    ("mib", 1 << 20),
    ("m", 1 << 20),
    ("gib", 1 << 30),
    ("g", 1 << 30),
    ("tib", 1 << 40),
];

const DURATIONS: [(&str, u64); 6] = [
    ("s", 1),
    ("min", 60),
    ("m", 60),
    ("h", 3600),
    ("d", 86_400),
    ("y", 365 * 86_400),
];

/// Reads a size in bytes. Units are binary; a number alone is bytes.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    scaled(text, &SIZES).ok_or_else(|| UnitError::Size(text.chars().take(40).collect()))
}

/// Reads a duration. A unit is required, so that seconds and minutes are never confused.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    scaled(text, &DURATIONS)
        .map(Duration::from_secs)
        .ok_or_else(|| UnitError::Duration(text.chars().take(40).collect()))
}

/// Reads `number unit`; decimals are allowed, and the product must be whole after rounding down.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.trim().to_ascii_lowercase();
    let (_, factor) = *units.iter().find(|(name, _)| *name == unit)?;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let value = number.parse::<f64>().ok()? * factor as f64;
    (value.is_finite() && (0.0..1e18).contains(&value)).then_some(value as u64)
}

/// A size for people: three figures and a binary unit.
pub fn format_size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// A duration for people: its two largest units.
pub fn format_duration(seconds: u64) -> String {
    let (d, h, m, s) = (
        seconds / 86_400,
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60,
    );
    match (d, h, m) {
        (0, 0, 0) => format!("{s}s"),
        (0, 0, _) => format!("{m}min {s}s"),
        (0, _, _) => format!("{h}h {m}min"),
        _ => format!("{d}d {h}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("16KiB", 16 << 10),
            ("16 kib", 16 << 10),
            ("1.5GiB", 3 << 29),
            ("64K", 64 << 10),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "KiB",
            "16KB",
            "-1",
            "1e9",
            "99999999999999999999",
            "16777216TiB",
            "1.2.3k",
        ] {
            assert!(parse_size(text).is_err(), "{text:?}");
        }
        assert_eq!(format_size(1023), "1023 B");
        assert_eq!(format_size(16 << 10), "16.0 KiB");
        assert_eq!(format_size(3_700_000_000), "3.45 GiB");
        assert_eq!(format_size(1023 << 20), "1.00 GiB");
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(604_800)));
        for text in ["", "5", "h", "1w", "-1h"] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
        assert_eq!(format_duration(59), "59s");
        assert_eq!(format_duration(3 * 3600 + 120), "3h 2min");
        assert_eq!(format_duration(200_000), "2d 7h");
    }
}
