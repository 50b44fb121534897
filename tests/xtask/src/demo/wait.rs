//! Bounded waiting, and the interrupt that ends any wait.
//!
//! Everything the demo waits for is polled against a limit, so that nothing hangs and Ctrl-C is noticed within a
//! tick wherever it comes.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;

/// How often a condition is looked at. A login prompt is timed no finer than this.
pub(crate) const TICK: Duration = Duration::from_millis(50);

/// Lines of a log that an error shows.
const TAIL_LINES: usize = 15;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note_interrupt(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on SIGINT, SIGTERM and SIGHUP end the wait in progress instead of the process, so that the demo clears up.
pub(crate) fn catch_interrupts() {
    let handler = note_interrupt as extern "C" fn(libc::c_int);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe, and is a plain function of the
        // right type; programs that are started later get the default disposition again.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// Whether somebody asked for an end.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Sleeps for a tick.
///
/// # Errors
/// Interrupted.
pub(crate) fn tick() -> anyhow::Result<()> {
    if interrupted() {
        bail!("interrupted");
    }
    std::thread::sleep(TICK);
    Ok(())
}

/// A limit on one wait, and where to look when it is passed.
pub(crate) struct Limit<'a> {
    what: &'a str,
    deadline: Instant,
    limit: Duration,
    log: Option<&'a Path>,
}

impl<'a> Limit<'a> {
    /// A wait for `what`, for at most `limit` from now.
    pub(crate) fn new(what: &'a str, limit: Duration) -> Self {
        Self {
            what,
            deadline: Instant::now() + limit,
            limit,
            log: None,
        }
    }

    /// The log whose end explains why the wait was in vain.
    pub(crate) fn with_log(mut self, log: &'a Path) -> Self {
        self.log = Some(log);
        self
    }

    /// Polls `condition` until it gives a value.
    ///
    /// # Errors
    /// The limit is passed, the wait is interrupted, or the condition itself cannot come true any more.
    pub(crate) fn wait<T>(
        &self,
        mut condition: impl FnMut() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        loop {
            if let Some(value) = condition()? {
                return Ok(value);
            }
            if Instant::now() >= self.deadline {
                let tail = self.log.map(tail).unwrap_or_default();
                bail!("{}: not within {} s{tail}", self.what, self.limit.as_secs());
            }
            tick()?;
        }
    }
}

/// The end of a log, ready to be appended to a message.
pub(crate) fn tail(log: &Path) -> String {
    let text = match std::fs::read(log) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => return format!("\n  {}: {error}", log.display()),
    };
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let mut shown = format!("\n  the end of {}:", log.display());
    for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
        shown.push_str("\n  | ");
        // A serial console may hold anything; only what a terminal shows harmlessly is passed on.
        shown.extend(line.chars().filter(|c| !c.is_control()).take(200));
    }
    shown
}

/// A file inside `folder` that has not been there before: logs of runs that share a name get numbers.
pub(crate) fn fresh_file(folder: &Path, name: &str, extension: &str) -> PathBuf {
    (1u32..)
        .map(|n| {
            folder.join(if n == 1 {
                format!("{name}.{extension}")
            } else {
                format!("{name}-{n}.{extension}")
            })
        })
        .find(|path| !path.exists())
        .expect("no folder holds four billion logs")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_wait_in_vain_names_what_it_was_for_and_shows_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("branch.log");
        std::fs::write(&log, "first\n\nlast \x1b[31mwords\n").unwrap();
        let wait = Limit::new("the branch is ready", Duration::ZERO).with_log(&log);
        let message = wait.wait(|| Ok(None::<()>)).unwrap_err().to_string();
        assert!(
            message.starts_with("the branch is ready: not within 0 s\n"),
            "{message}"
        );
        assert!(
            message.ends_with("  | first\n  | last [31mwords"),
            "{message}"
        );
    }

    #[test]
    fn a_condition_that_is_true_at_once_needs_no_time() {
        assert_eq!(
            Limit::new("x", Duration::ZERO)
                .wait(|| Ok(Some(7)))
                .unwrap(),
            7
        );
    }

    #[test]
    fn logs_do_not_overwrite_each_other() {
        let folder = tempfile::tempdir().unwrap();
        assert!(fresh_file(folder.path(), "splice", "log").ends_with("splice.log"));
        std::fs::write(folder.path().join("splice.log"), "").unwrap();
        assert!(fresh_file(folder.path(), "splice", "log").ends_with("splice-2.log"));
    }
}
