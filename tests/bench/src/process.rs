//! Programs that are measured: commands with what they used, and daemons.
//!
//! Invariant: nothing that is started here outlives us. Every program is a process group of its own which is killed when
//! its handle is dropped or its limit passed (an image maker is first told to end), and the kernel kills it when we die (`setpriv --pdeathsig`). That signal
//! follows the thread, so a daemon is started from the main thread only, and a command's thread waits for it.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often a condition is looked at.
pub(crate) const TICK: Duration = Duration::from_millis(20);

/// How long a daemon may take to end in good order.
const ENDING: Duration = Duration::from_secs(30);

/// Bytes of a command's last words that an error shows.
const TAIL_BYTES: u64 = 1500;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note_interrupt(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on a signal to end is noticed by the wait in progress, so that everything is cleared up.
pub(crate) fn catch_interrupts() {
    let handler = note_interrupt as extern "C" fn(libc::c_int);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe, and has the right type; programs that
        // are started later get the default disposition again.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// Whether somebody asked for an end.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Polls `condition` every `every` until it gives a value.
///
/// # Errors
/// `limit` is passed, the run is interrupted, or the condition fails.
pub(crate) fn wait_for<T>(
    what: &str,
    limit: Duration,
    every: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("{what}: not within {} s", limit.as_secs());
        }
        pause(every)?;
    }
}

/// Sleeps.
///
/// # Errors
/// Interrupted.
pub(crate) fn pause(time: Duration) -> Result<()> {
    let until = Instant::now() + time;
    loop {
        if interrupted() {
            bail!("interrupted");
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(100)));
    }
}

/// What a command used.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// Wall clock.
    pub(crate) seconds: f64,
    /// User and system time of it and what it waited for.
    pub(crate) cpu_s: f64,
    /// Peak resident set of its largest process, in 10^6 bytes. The kernel counts what we held ourselves when we started it, so it
    /// is never below our own peak, which is why large buffers are avoided here.
    pub(crate) rss_mb: f64,
}

/// A command that ended well.
pub(crate) struct Finished {
    pub(crate) usage: Usage,
    pub(crate) stdout: String,
}

/// A program and how it is run.
#[derive(Clone)]
pub(crate) struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    variables: Vec<(String, OsString)>,
    namespace: Option<String>,
    folder: Option<PathBuf>,
    stdin: Option<PathBuf>,
    grace: Duration,
}

impl Program {
    pub(crate) fn new(path: impl AsRef<Path>) -> Self {
        Self {
            path: path.as_ref().to_owned(),
            arguments: Vec::new(),
            variables: Vec::new(),
            namespace: None,
            folder: None,
            stdin: None,
            grace: Duration::ZERO,
        }
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, more: impl IntoIterator<Item = A>) -> Self {
        self.arguments
            .extend(more.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    pub(crate) fn arg(self, one: impl AsRef<OsStr>) -> Self {
        self.args([one])
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.variables
            .push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// In a network namespace.
    pub(crate) fn inside(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    pub(crate) fn folder(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    /// A file as its standard input.
    pub(crate) fn stdin(mut self, file: &Path) -> Self {
        self.stdin = Some(file.to_owned());
        self
    }

    /// Its group is told to end, and killed only so much later, when the run is interrupted or its limit passed.
    pub(crate) fn grace(mut self, time: Duration) -> Self {
        self.grace = time;
        self
    }

    /// As a user would type it.
    pub(crate) fn line(&self) -> String {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str());
        self.arguments
            .iter()
            .fold(name.to_string_lossy().into_owned(), |line, argument| {
                line + " " + &argument.to_string_lossy()
            })
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new("setpriv");
        command
            .env("NO_COLOR", "1")
            .env("LC_ALL", "C.UTF-8")
            .args(["--pdeathsig", "KILL", "--"]);
        for variable in ["SPLICE_CONFIG", "SPLICE_URL", "SPLICE_TOKEN", "SPLICE_CA"] {
            command.env_remove(variable);
        }
        for (name, value) in &self.variables {
            command.env(name, value);
        }
        if let Some(namespace) = &self.namespace {
            command.args(["ip", "netns", "exec", namespace]);
        }
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        let stdin = match &self.stdin {
            Some(file) => {
                Stdio::from(File::open(file).with_context(|| file.display().to_string())?)
            }
            None => Stdio::null(),
        };
        command
            .arg(&self.path)
            .args(&self.arguments)
            .stdin(stdin)
            .process_group(0);
        Ok(command)
    }

    /// Runs it to its end, for at most `limit`; what it prints goes through files in `scratch`.
    ///
    /// # Errors
    /// It fails (its last words are in the error), takes too long, or the run is interrupted.
    pub(crate) fn run(&self, scratch: &Path, limit: Duration) -> Result<Finished> {
        let line = self.line();
        let (mut out, mut err) = (spool(scratch, "out")?, spool(scratch, "err")?);
        let begun = Instant::now();
        let child = self
            .command()?
            .stdout(out.try_clone().context("a descriptor")?)
            .stderr(err.try_clone().context("a descriptor")?)
            .spawn()
            .with_context(|| line.clone())?;
        let group = Group {
            leader: child.id() as i32,
            grace: self.grace,
        };
        let (status, used) = wait_for(
            &format!("`{line}`"),
            limit,
            Duration::from_millis(5),
            || reap(group.leader),
        )?;
        let seconds = begun.elapsed().as_secs_f64();
        if !status_ok(status) {
            let mut words = tail(&mut err);
            if words.is_empty() {
                words = tail(&mut out);
            }
            bail!("`{line}` ended with status {status}: {words}");
        }
        let time = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
        let mut stdout = String::new();
        out.seek(SeekFrom::Start(0)).context("output")?;
        out.read_to_string(&mut stdout)
            .with_context(|| format!("what `{line}` printed"))?;
        Ok(Finished {
            usage: Usage {
                seconds,
                cpu_s: time(used.ru_utime) + time(used.ru_stime),
                rss_mb: used.ru_maxrss as f64 * 1024.0 / 1e6,
            },
            stdout,
        })
    }

    /// Starts it; both outputs go to `log`, which grows over restarts.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(&self, log: &Path) -> Result<Daemon> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| log.display().to_string())?;
        let child = self
            .command()?
            .stdout(file.try_clone().context("a descriptor")?)
            .stderr(file)
            .spawn()
            .with_context(|| self.line())?;
        Ok(Daemon {
            line: self.line(),
            group: Group {
                leader: child.id() as i32,
                grace: Duration::ZERO,
            },
            log: log.to_owned(),
        })
    }
}

/// A process group that ends with its handle: at once, or after a while in which it may clear up.
struct Group {
    leader: i32,
    grace: Duration,
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.grace.is_zero() && matches!(reap(self.leader), Ok(None)) {
            // SAFETY: as below.
            unsafe { libc::kill(-self.leader, libc::SIGTERM) };
            wait_gone(self.leader, self.grace);
        }
        // SAFETY: kill takes any numbers. The leader's id is ours until it is reaped; a group that has ended is gone, and its
        // number is not given again while a member lives.
        unsafe { libc::kill(-self.leader, libc::SIGKILL) };
        let _ = wait_gone(self.leader, Duration::from_secs(5));
    }
}

fn wait_gone(pid: i32, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while matches!(reap(pid), Ok(None)) {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(TICK);
    }
    true
}

fn reap(pid: i32) -> Result<Option<(i32, libc::rusage)>> {
    let mut status = 0;
    // SAFETY: rusage is plain numbers, for which zero is a value.
    let mut used: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live locals of the right types.
    match unsafe { libc::wait4(pid, &mut status, libc::WNOHANG, &mut used) } {
        0 => Ok(None),
        found if found == pid => Ok(Some((status, used))),
        _ => Err(std::io::Error::last_os_error()).context("waiting for a program"),
    }
}

fn status_ok(status: i32) -> bool {
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}

/// A file without a name for what a program prints: a pipe would block it when nobody reads.
fn spool(scratch: &Path, kind: &str) -> Result<File> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = scratch.join(format!(".{kind}-{}-{number}", std::process::id()));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    std::fs::remove_file(&path).context("a spool file")?;
    Ok(file)
}

fn tail(file: &mut File) -> String {
    let length = file.metadata().map_or(0, |m| m.len());
    let mut bytes = Vec::new();
    let _ = file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)));
    let _ = file.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

/// A program that runs until it is told to end.
pub(crate) struct Daemon {
    line: String,
    group: Group,
    log: PathBuf,
}

impl Daemon {
    /// Checks that it runs.
    ///
    /// # Errors
    /// It has ended by itself; the end of its log is in the error.
    pub(crate) fn check(&self) -> Result<()> {
        match reap(self.group.leader) {
            Ok(None) => Ok(()),
            _ => bail!("`{}` ended by itself: {}", self.line, self.last_words()),
        }
    }

    /// The end of its log.
    pub(crate) fn last_words(&self) -> String {
        File::open(&self.log).map_or_else(|_| String::new(), |mut file| tail(&mut file))
    }

    /// User and system time so far.
    ///
    /// # Errors
    /// It is gone.
    pub(crate) fn cpu_s(&self) -> Result<f64> {
        let stat = self.proc("stat")?;
        let (_, rest) = stat.rsplit_once(')').context("/proc/PID/stat")?;
        let fields: Vec<f64> = rest
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|f| f.parse().ok())
            .collect();
        // SAFETY: sysconf only looks a number up.
        let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
        Ok(fields.iter().sum::<f64>() / ticks)
    }

    /// Peak resident set in 10^6 bytes.
    ///
    /// # Errors
    /// It is gone.
    pub(crate) fn rss_mb(&self) -> Result<f64> {
        Ok(self.field("status", "VmHWM:")? * 1024.0 / 1e6)
    }

    /// Forgets the peak: from now on it is counted anew.
    ///
    /// # Errors
    /// It is gone.
    pub(crate) fn reset_peak(&self) -> Result<()> {
        let path = format!("/proc/{}/clear_refs", self.group.leader);
        std::fs::write(&path, "5").context(path)
    }

    /// Bytes that it made the disk read.
    ///
    /// # Errors
    /// It is gone.
    pub(crate) fn disk_read_bytes(&self) -> Result<f64> {
        self.field("io", "read_bytes:")
    }

    fn proc(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.group.leader);
        std::fs::read_to_string(&path).context(path)
    }

    fn field(&self, file: &str, name: &str) -> Result<f64> {
        let text = self.proc(file)?;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let word = line.and_then(|rest| rest.split_whitespace().next());
        word.and_then(|word| word.parse().ok())
            .with_context(|| format!("{name} in /proc/PID/{file}"))
    }

    /// Asks it to end and waits; kills it when it does not.
    pub(crate) fn stop(self) {
        // SAFETY: see `Group::drop`; the leader has not been reaped.
        unsafe { libc::kill(self.group.leader, libc::SIGTERM) };
        wait_gone(self.group.leader, ENDING);
    }
}

/// Whether a program is in the path.
pub(crate) fn is_installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_command_tells_what_it_used_and_a_failure_its_words() {
        let folder = tempfile::tempdir().unwrap();
        let limit = Duration::from_secs(20);
        let busy = Program::new("sh").args([
            "-c",
            "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done",
        ]);
        let done = busy.run(folder.path(), limit).unwrap();
        assert_eq!(done.stdout, "done\n");
        assert!(done.usage.cpu_s > 0.0 && done.usage.cpu_s <= done.usage.seconds * 1.5 + 0.1);
        assert!(done.usage.rss_mb > 0.5, "{}", done.usage.rss_mb);

        let bad = Program::new("sh").args(["-c", "echo why >&2; exit 3"]);
        let error = bad.run(folder.path(), limit).err().unwrap().to_string();
        assert!(error.ends_with("why"), "{error}");
    }

    #[test]
    fn a_command_that_takes_too_long_is_ended_with_all_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("pid");
        let script = format!("sleep 60 & echo $! > {}; wait", mark.display());
        let slow = Program::new("sh").args(["-c", &script]);
        let begun = Instant::now();
        let error = slow
            .run(folder.path(), Duration::from_millis(500))
            .err()
            .unwrap();
        assert!(error.to_string().contains("not within"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(10));
        let pid = std::fs::read_to_string(&mark).unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        // Gone, or a zombie that init has not looked at yet.
        assert!(stat.is_err() || stat.unwrap().contains(") Z "));
    }

    #[test]
    fn a_command_with_grace_may_clear_up() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("cleared");
        let script = format!(
            "trap 'echo > {}' EXIT; trap 'exit 130' TERM; sleep 60",
            mark.display()
        );
        let slow = Program::new("bash")
            .args(["-c", &script])
            .grace(Duration::from_secs(20));
        let begun = Instant::now();
        slow.run(folder.path(), Duration::from_millis(700))
            .err()
            .unwrap();
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert!(mark.exists());
    }

    #[test]
    fn a_daemon_is_watched_and_ends() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let daemon = Program::new("sleep").arg("60").start(&log).unwrap();
        wait_for("sleep runs", Duration::from_secs(10), TICK, || {
            daemon.check()?;
            Ok((daemon.rss_mb().unwrap_or(0.0) > 0.0).then_some(()))
        })
        .unwrap();
        daemon.stop();

        let short = Program::new("sh")
            .args(["-c", "echo reason; exit 1"])
            .start(&log)
            .unwrap();
        let error = wait_for("its end", Duration::from_secs(10), TICK, || {
            Ok(short.check().err())
        });
        assert!(error.unwrap().to_string().contains("reason"));
    }
}
