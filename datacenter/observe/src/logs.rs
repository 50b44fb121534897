//! Logs: to standard error, for people or as JSON lines, and their end in memory for support bundles.
//!
//! `RUST_LOG` says what is logged, `info` without it. With JSON each line is an object with `timestamp`, `level`, `target`, `fields`, and
//! `spans`, which hold the ids of request, desktop, volume, branch and operation. Whoever runs the daemon keeps the lines (journald, a
//! container's runtime): it writes no files of its own. Memory holds the last [`BYTES_MAX`] bytes of them.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How much of the log is in memory: a day of a quiet daemon, a minute of a noisy one.
pub const BYTES_MAX: usize = 1 << 20;
/// Longest line there; what is longer is cut.
const LINE_BYTES_MAX: usize = 8 << 10;

static TAIL: Tail = Tail::new();

/// Begins to log. To be called once, before anything else.
pub fn init(json: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Tee);
    if json {
        builder.json().init();
    } else {
        builder.with_ansi(false).init();
    }
}

/// The end of this process's log.
pub fn tail() -> String {
    TAIL.text()
}

/// Writes each line to standard error and into memory.
struct Tee;

impl<'a> MakeWriter<'a> for Tee {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}

impl Write for Tee {
    /// One call is one event: the subscriber formats it whole before it writes.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        TAIL.push(line);
        io::stderr().write_all(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

struct Tail {
    lines: Mutex<Lines>,
}

struct Lines {
    bytes: usize,
    lines: VecDeque<String>,
}

impl Tail {
    const fn new() -> Self {
        let lines = Lines {
            bytes: 0,
            lines: VecDeque::new(),
        };
        Self {
            lines: Mutex::new(lines),
        }
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let line = &line[..line.len().min(LINE_BYTES_MAX)];
        let mut line = String::from_utf8_lossy(line).into_owned();
        if !line.ends_with('\n') {
            line.push('\n');
        }
        let mut lines = self.lines();
        lines.bytes += line.len();
        lines.lines.push_back(line);
        while lines.bytes > BYTES_MAX {
            let Some(oldest) = lines.lines.pop_front() else {
                break;
            };
            lines.bytes -= oldest.len();
        }
    }

    fn text(&self) -> String {
        let lines = self.lines();
        lines.lines.iter().map(String::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_log_is_kept() {
        let tail = Tail::new();
        let long = vec![b'x'; LINE_BYTES_MAX * 2];
        let lines = BYTES_MAX / LINE_BYTES_MAX + 10;
        tail.push(b"first\n");
        for _ in 0..lines {
            tail.push(&long);
        }
        tail.push(b"last \xff\n");
        let text = tail.text();
        assert!(text.len() <= BYTES_MAX && text.len() > BYTES_MAX / 2);
        assert!(!text.contains("first") && text.ends_with("\nlast \u{fffd}\n"));
    }
}
