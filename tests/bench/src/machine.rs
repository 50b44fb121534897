//! A stand-in for a desktop's machine, so that a replay is the desktop's only guest.
//!
//! The branch is told that this is its QEMU. It starts, answers on its monitor like a machine that runs, and reads and writes
//! nothing: the desktop's export is open, its boot is under way as far as the branch knows, and whoever replays a trace on the
//! export takes the guest's place. With real machines, 50 emulated processors would be measured instead of the branch.
//!
//! It outlives its branch, as machines do, and ends when the bench that owns it has ended.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// The name under which the bench's own program is this.
const NAME: &str = "bench-machine";

/// Environment variable with the process id of the bench.
pub(crate) const OWNER: &str = "SPLICE_BENCH_PID";

/// How often it is looked whether the bench still runs.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Puts the program into a folder under its name.
///
/// # Errors
/// The folder cannot be written.
pub(crate) fn install(folder: &Path, bench: &Path) -> Result<PathBuf> {
    let path = folder.join(NAME);
    match std::os::unix::fs::symlink(bench, &path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(error).context("the stand-in machine")
        }
        _ => Ok(path),
    }
}

/// Whether this process was started as a machine.
pub(crate) fn is_asked_for() -> bool {
    std::env::args_os().next().is_some_and(|name| {
        Path::new(&name)
            .file_name()
            .is_some_and(|name| name == NAME)
    })
}

/// Is the machine.
pub(crate) fn run() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{NAME}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<()> {
    let owner = std::env::var(OWNER).context(OWNER)?;
    let arguments: Vec<String> = std::env::args().collect();
    let monitor = monitor_socket(&arguments).context("-qmp unix:PATH,… is missing")?;
    let listener = UnixListener::bind(&monitor).with_context(|| monitor.clone())?;
    std::thread::Builder::new()
        .name("owner".into())
        .spawn(move || {
            while Path::new("/proc").join(&owner).exists() {
                std::thread::sleep(LOOK_EVERY);
            }
            std::process::exit(0);
        })
        .context("a thread")?;
    for stream in listener.incoming() {
        let stream = stream.context("a monitor connection")?;
        std::thread::spawn(move || {
            // A branch that hangs up in the midst of an answer is its own business.
            let _ = answer(stream);
        });
    }
    Ok(())
}

/// Of QEMU's arguments, the path behind `-qmp unix:`; commas in it are doubled.
fn monitor_socket(arguments: &[String]) -> Option<String> {
    let at = arguments.iter().position(|argument| argument == "-qmp")?;
    let value = arguments.get(at + 1)?.strip_prefix("unix:")?;
    let value = value.strip_suffix(",server=on,wait=off").unwrap_or(value);
    Some(value.replace(",,", ","))
}

fn answer(stream: UnixStream) -> Result<()> {
    let mut out = stream.try_clone().context("a descriptor")?;
    let mut say = |line: &Value| writeln!(out, "{line}").context("answering");
    say(&json!({"QMP": {"version": {}, "capabilities": []}}))?;
    for line in BufReader::new(stream).lines() {
        let command: Value =
            serde_json::from_str(&line.context("a command")?).context("a command")?;
        match command["execute"].as_str() {
            Some("query-status") => {
                say(&json!({"return": {"status": "running", "running": true}}))?
            }
            Some("quit" | "system_powerdown") => {
                say(&json!({"return": {}}))?;
                std::process::exit(0);
            }
            _ => say(&json!({"return": {}}))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_monitors_path_is_found_among_qemus_arguments() {
        let arguments = |value: &str| {
            ["qemu", "-m", "512M", "-qmp", value]
                .map(str::to_owned)
                .to_vec()
        };
        let found = monitor_socket(&arguments("unix:/a,,b/qmp.sock,server=on,wait=off"));
        assert_eq!(found.as_deref(), Some("/a,b/qmp.sock"));
        assert_eq!(monitor_socket(&arguments("stdio")), None);
    }

    #[test]
    fn it_answers_like_a_machine_that_runs() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || answer(theirs));
        let mut lines = BufReader::new(ours.try_clone().unwrap()).lines();
        let mut ours = ours;
        assert!(lines.next().unwrap().unwrap().contains("QMP"));
        writeln!(ours, "{}", json!({"execute": "qmp_capabilities"})).unwrap();
        assert!(lines.next().unwrap().unwrap().contains("return"));
        writeln!(ours, "{}", json!({"execute": "query-status"})).unwrap();
        assert!(lines.next().unwrap().unwrap().contains("running"));
    }
}
