//! What the agent has others do: programs of the guest's own system, each with an end to the wait for it, and two calls of the kernel.
//!
//! Programs are found in fixed folders, get no shell, no input and a clean environment, and what they print is bounded.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Most of a program's output that is kept.
const OUTPUT_BYTES_MAX: u64 = 64 << 10;
/// Where programs are looked for.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// Between two looks at a program that runs.
const STEP: Duration = Duration::from_millis(10);

/// For what answers at once.
pub const SHORT: Duration = Duration::from_secs(10);
/// For what works through a disk.
pub const LONG: Duration = Duration::from_secs(600);

/// Why a program did not do what it was to.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It is not installed.
    #[error("{0} is not installed")]
    Absent(String),
    /// It could not be run or watched.
    #[error("{program}")]
    Io {
        /// Which program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It failed.
    #[error("{program} failed with status {status}: {said}")]
    Failed {
        /// Which program.
        program: String,
        /// Its exit status; -1 if a signal ended it.
        status: i32,
        /// The last line that it printed.
        said: String,
    },
    /// It took too long, and was ended.
    #[error("{program} was not done after {patience:?}")]
    Slow {
        /// Which program.
        program: String,
        /// How long it was waited for.
        patience: Duration,
    },
}

/// See the module.
pub trait Tools {
    /// Runs a program to its end and answers what it printed on standard output.
    ///
    /// # Errors
    /// It is not there, fails, or takes longer than `patience`.
    fn run(
        &mut self,
        program: &str,
        arguments: &[&str],
        patience: Duration,
    ) -> Result<String, ToolError>;

    /// Sets the kernel's host name.
    ///
    /// # Errors
    /// As of the kernel.
    fn set_host_name(&mut self, name: &str) -> io::Result<()>;

    /// How full a file system is, in percent of what users may use.
    ///
    /// # Errors
    /// As of the kernel.
    fn used_percent(&mut self, place: &Path) -> io::Result<u8>;
}

/// The guest's own.
#[derive(Debug, Default)]
pub struct HostTools;

impl Tools for HostTools {
    fn run(
        &mut self,
        program: &str,
        arguments: &[&str],
        patience: Duration,
    ) -> Result<String, ToolError> {
        let failed = |source| ToolError::Io {
            program: program.into(),
            source,
        };
        let mut paths = PATH
            .split(':')
            .map(|folder| Path::new(folder).join(program));
        let path = paths.find(|path| path.is_file());
        let path = path.ok_or_else(|| ToolError::Absent(program.into()))?;
        let mut child = Command::new(path)
            .args(arguments)
            .env_clear()
            .env("PATH", PATH)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let output = collect(child.stdout.take());
        let errors = collect(child.stderr.take());
        let ended = wait(&mut child, patience).map_err(failed)?;
        if !ended {
            // One that is stuck in the kernel ends when that lets it.
            std::thread::spawn(move || child.wait());
            return Err(ToolError::Slow {
                program: program.into(),
                patience,
            });
        }
        let status = child.wait().map_err(failed)?;
        let (output, errors) = (text_of(output), text_of(errors));
        if status.success() {
            return Ok(output);
        }
        let mut said = output.lines().chain(errors.lines());
        Err(ToolError::Failed {
            program: program.into(),
            status: status.code().unwrap_or(-1),
            said: said.next_back().unwrap_or_default().to_owned(),
        })
    }

    fn set_host_name(&mut self, name: &str) -> io::Result<()> {
        Ok(rustix::system::sethostname(name.as_bytes())?)
    }

    fn used_percent(&mut self, place: &Path) -> io::Result<u8> {
        let stat = rustix::fs::statvfs(place)?;
        let used = stat.f_blocks.saturating_sub(stat.f_bfree);
        let usable = used.saturating_add(stat.f_bavail);
        let percent = u128::from(used) * 100 / u128::from(usable.max(1));
        Ok(u8::try_from(percent).unwrap_or(100).min(100))
    }
}

/// A thread that takes what a program prints, so that no full pipe holds it up.
type Collecting = Option<std::sync::mpsc::Receiver<Vec<u8>>>;

fn collect(pipe: Option<impl Read + Send + 'static>) -> Collecting {
    let mut pipe = pipe?;
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.by_ref().take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes);
        let _ = send.send(bytes);
        let _ = io::copy(&mut pipe, &mut io::sink());
    });
    Some(receive)
}

fn text_of(collecting: Collecting) -> String {
    // The program has ended; only a child of it could still print.
    let bytes = collecting.and_then(|c| c.recv_timeout(Duration::from_secs(1)).ok());
    String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
}

/// Waits for a program, and ends it when it takes too long. Returns whether it ended by itself.
fn wait(child: &mut Child, patience: Duration) -> io::Result<bool> {
    let begun = Instant::now();
    while child.try_wait()?.is_none() {
        if begun.elapsed() >= patience {
            child.kill()?;
            return Ok(false);
        }
        std::thread::sleep(STEP);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn programs_are_run_bounded_and_named_in_errors() {
        let mut tools = HostTools;
        let said = tools.run("echo", &["a b"], SHORT).unwrap();
        assert_eq!(said, "a b\n");
        let absent = tools.run("no-such-program", &[], SHORT).unwrap_err();
        assert_eq!(absent.to_string(), "no-such-program is not installed");
        let script = "echo one; echo two >&2; exit 3";
        let failed = tools.run("sh", &["-c", script], SHORT).unwrap_err();
        assert!(failed.to_string().ends_with("status 3: two"), "{failed}");
        let slow = tools.run("sleep", &["60"], Duration::from_millis(1));
        assert!(matches!(slow, Err(ToolError::Slow { .. })));
        let much = tools.run("head", &["-c", "1000000", "/dev/zero"], SHORT);
        assert_eq!(much.unwrap().len() as u64, OUTPUT_BYTES_MAX);
        assert!(tools.used_percent(Path::new("/")).unwrap() <= 100);
    }
}
