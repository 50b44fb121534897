//! Results on standard output: tables for people, JSON for programs.

use std::io::Write;

use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::failure::Failure;

/// Writes text. A reader that went away (`| head`) is no failure.
pub fn text(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("cannot write the result: {e}")))
        }
        _ => Ok(()),
    }
}

/// Says something beside the result, on standard error. That it cannot be written, because the disk of a log is full, is no failure.
pub fn aside(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Writes one JSON value.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let mut line = serde_json::to_string_pretty(value)
        .map_err(|e| Failure::failed(format!("cannot write the result: {e}")))?;
    line.push('\n');
    text(&line)
}

/// Writes rows under their heads; `none` is said when there are no rows.
pub fn table(heads: &[&str], rows: &[Vec<String>], none: &str) -> Result<(), Failure> {
    if rows.is_empty() {
        return text(&format!("{none}\n"));
    }
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
        widest.max(heads[column].len())
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let mut out = String::new();
    let heads = heads.iter().map(|head| (*head).to_owned()).collect();
    for row in std::iter::once(&heads).chain(rows) {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    text(&out)
}

/// Writes names and values, one pair a line; pairs without a value are left out.
pub fn facts(facts: &[(&str, Option<String>)]) -> Result<(), Failure> {
    let shown = facts
        .iter()
        .filter_map(|(name, value)| Some((name, value.as_ref()?)));
    let width = shown.clone().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: String = shown
        .map(|(name, value)| format!("{name:width$}  {value}\n"))
        .collect();
    text(&lines)
}

/// A time for people, UTC.
pub fn time(unix_s: u64) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
    i64::try_from(unix_s)
        .ok()
        .and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok())
        .and_then(|t| t.format(format).ok())
        .unwrap_or_else(|| format!("{unix_s} s"))
}

/// A number with its thousands apart.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_for_people() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(time(1_700_000_000), "2023-11-14 22:13:20Z");
    }
}
