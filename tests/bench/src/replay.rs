//! Replaying a boot trace against a disk, as the guest that was recorded would have read it.
//!
//! A read is issued when the guest could have issued it: the read before it was, all but `in_flight` of the earlier ones are
//! answered, and the guest has thought as long as it did (scaled). So a slow disk delays what hangs on it and nothing else.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::nbd;
use crate::process::{interrupted, pause};
use crate::row::quantile;
use crate::trace::Trace;

/// A desktop's boot on a local disk is taken to last this long: thinking is scaled to it.
pub(crate) const LOCAL_BOOT_S: f64 = 15.0;

/// How soon an interruption is noticed.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Who answers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Disk<'a> {
    File(&'a Path),
    Nbd { socket: &'a Path, export: &'a str },
}

/// What a replay came to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outcome {
    /// From the first read to the last answer.
    pub(crate) seconds: f64,
    /// What single reads waited.
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// A replay's limit was passed with so many reads answered.
#[derive(Debug)]
pub(crate) struct Late {
    pub(crate) answered: usize,
}

impl std::fmt::Display for Late {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "only {} reads were answered in time", self.answered)
    }
}

impl std::error::Error for Late {}

/// How long the guest thinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Think {
    /// Scaled so that all of it together is [`LOCAL_BOOT_S`].
    Scaled,
    /// Not at all.
    None,
}

/// What both threads know.
#[derive(Default)]
struct Progress {
    answered: usize,
    /// When the last answer came.
    last: Option<Instant>,
    issued_at: Vec<Option<Instant>>,
    waits_us: Vec<f64>,
    failed: Option<String>,
}

impl Progress {
    fn answer(&mut self, index: usize) {
        let now = Instant::now();
        if let Some(issued) = self.issued_at[index].take() {
            self.waits_us.push((now - issued).as_secs_f64() * 1e6);
        }
        self.answered += 1;
        self.last = Some(now);
    }
}

/// Replays `trace`, for at most `limit`.
///
/// # Errors
/// A read failed, the run is interrupted, or the limit is passed ([`Late`]).
pub(crate) fn replay(
    trace: &Trace,
    disk: Disk<'_>,
    think: Think,
    limit: Duration,
) -> Result<Outcome> {
    let scale = match think {
        Think::Scaled => LOCAL_BOOT_S / trace.think_s().max(1e-9),
        Think::None => 0.0,
    };
    let progress = Mutex::new(Progress {
        issued_at: vec![None; trace.reads.len()],
        ..Progress::default()
    });
    let answered = Condvar::new();
    let begun = Instant::now();
    match disk {
        Disk::File(path) => {
            let file = File::open(path).with_context(|| path.display().to_string())?;
            let mut buffer = Vec::new();
            issue(trace, scale, begun + limit, &progress, &answered, |index| {
                let read = trace.reads[index];
                buffer.resize(read.len as usize, 0);
                // The image's size is a whole number of sectors, but a read may end behind a smaller one.
                file.read_exact_at(&mut buffer, read.offset)
                    .context("reading the disk")?;
                progress
                    .lock()
                    .expect("nothing panics while it holds the progress")
                    .answer(index);
                Ok(())
            })?;
        }
        Disk::Nbd { socket, export } => {
            let (mut requests, mut answers) = nbd::open(socket, export)?;
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for _ in 0..trace.reads.len() {
                        let got = answers.next(|cookie| {
                            Some(trace.reads.get(usize::try_from(cookie).ok()?)?.len)
                        });
                        let mut progress = progress
                            .lock()
                            .expect("nothing panics while it holds the progress");
                        match got {
                            Ok(index) => progress.answer(index as usize),
                            Err(error) => {
                                progress.failed.get_or_insert(format!("{error:#}"));
                            }
                        }
                        answered.notify_all();
                        if progress.failed.is_some() {
                            return;
                        }
                    }
                });
                let issued = issue(trace, scale, begun + limit, &progress, &answered, |index| {
                    let read = trace.reads[index];
                    requests.read(index as u64, read.offset, read.len)
                });
                let waited = issued.and_then(|()| {
                    wait_answered(&progress, &answered, trace.reads.len(), begun + limit)
                });
                // Ends the other thread too, if it still waits: the server closes the connection.
                requests.close();
                waited
            })?;
        }
    }
    let mut progress = progress
        .into_inner()
        .expect("nothing panics while it holds the progress");
    progress.waits_us.sort_by(f64::total_cmp);
    Ok(Outcome {
        seconds: progress
            .last
            .map_or(0.0, |last| (last - begun).as_secs_f64()),
        p50_us: quantile(&progress.waits_us, 0.5),
        p99_us: quantile(&progress.waits_us, 0.99),
    })
}

fn wait_answered(
    progress: &Mutex<Progress>,
    answered: &Condvar,
    count: usize,
    deadline: Instant,
) -> Result<()> {
    let mut progress = progress
        .lock()
        .expect("nothing panics while it holds the progress");
    while progress.answered < count {
        if let Some(reason) = &progress.failed {
            bail!("{reason}");
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Late {
                answered: progress.answered,
            }
            .into());
        }
        if interrupted() {
            bail!("interrupted");
        }
        progress = answered
            .wait_timeout(progress, left.min(LOOK_EVERY))
            .expect("nothing panics while it holds the progress")
            .0;
    }
    Ok(())
}

fn issue(
    trace: &Trace,
    scale: f64,
    deadline: Instant,
    progress: &Mutex<Progress>,
    answered: &Condvar,
    mut send: impl FnMut(usize) -> Result<()>,
) -> Result<()> {
    // Sleeps are rounded up by the kernel; what was slept too long is taken off the thoughts that follow.
    let mut owed = Duration::ZERO;
    for (index, read) in trace.reads.iter().enumerate() {
        wait_answered(
            progress,
            answered,
            index.saturating_sub(read.in_flight as usize),
            deadline,
        )?;
        owed += Duration::from_secs_f64(read.think_us as f64 / 1e6 * scale);
        if owed > Duration::from_millis(1) {
            let slept = Instant::now();
            pause(owed)?;
            owed = owed.saturating_sub(slept.elapsed());
        }
        progress
            .lock()
            .expect("nothing panics while it holds the progress")
            .issued_at[index] = Some(Instant::now());
        send(index)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::process::{Program, TICK, wait_for};
    use crate::trace::ReadOp;

    fn trace(in_flight: u32, think_us: u64) -> Trace {
        let reads = (0..40).map(|n| ReadOp {
            offset: n * 8192,
            len: 4096,
            think_us,
            in_flight: if n == 0 { 0 } else { in_flight },
        });
        Trace::new(reads.collect())
    }

    #[test]
    fn thinking_takes_its_time_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        std::fs::write(&disk, vec![3; 1 << 20]).unwrap();
        let trace = trace(0, 5_000);
        let quick = replay(&trace, Disk::File(&disk), Think::None, LIMIT).unwrap();
        assert!(quick.seconds < 1.0, "{quick:?}");
        let slow = replay(&trace, Disk::File(&disk), Think::Scaled, LIMIT).unwrap();
        assert!(
            (LOCAL_BOOT_S..LOCAL_BOOT_S * 1.2).contains(&slow.seconds),
            "{slow:?}"
        );
    }

    const LIMIT: Duration = Duration::from_secs(60);

    /// A server that answers each read after 20 ms: 40 in a row take 0.8 s, four at a time a quarter of that.
    #[test]
    fn reads_wait_for_what_the_guest_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        std::fs::write(&disk, vec![3; 1 << 20]).unwrap();
        let socket = folder.path().join("nbd.sock");
        let server = Program::new("nbdkit")
            .args(["-f", "-r", "-U"])
            .arg(&socket)
            .args(["--filter=delay", "file"])
            .arg(&disk)
            .arg("rdelay=20ms")
            .start(&folder.path().join("log"))
            .unwrap();
        wait_for("nbdkit", LIMIT, TICK, || {
            server.check().map(|()| socket.exists().then_some(()))
        })
        .unwrap();
        let disk = Disk::Nbd {
            socket: &socket,
            export: "",
        };
        let serial = replay(&trace(0, 0), disk, Think::None, LIMIT).unwrap();
        assert!(
            serial.seconds >= 0.8 && serial.p50_us >= 20_000.0,
            "{serial:?}"
        );
        let parallel = replay(&trace(3, 0), disk, Think::None, LIMIT).unwrap();
        assert!(
            parallel.seconds < serial.seconds / 2.0 && parallel.seconds >= 0.2,
            "{parallel:?}"
        );
        let late = replay(&trace(0, 0), disk, Think::None, Duration::from_millis(200)).unwrap_err();
        assert!(late.to_string().contains("answered in time"), "{late}");
        assert!(late.is::<Late>());
    }
}
