//! A desktop's serial console: what it prints is read from its log, what is typed goes to its socket.
//!
//! The log is complete from the first byte, whenever we come; the socket carries only what is printed while somebody
//! listens. What arrives there is read and dropped, so that the guest never waits for us.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::wait::{Limit, interrupted};

/// An open console.
pub(crate) struct Console {
    log: PathBuf,
    socket: UnixStream,
    /// Bytes of the log that earlier expectations used up.
    seen: usize,
    /// Commands that were typed, so that no two answers look alike.
    asked: u32,
}

/// How long a shell that may not be there yet is waited for, before it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(3);

impl Console {
    /// Connects to the console of a running desktop.
    ///
    /// # Errors
    /// Nobody listens at `socket`.
    pub(crate) fn open(log: &Path, socket: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("serial console {}", socket.display()))?;
        let mut listener = stream.try_clone().context("serial console")?;
        thread::Builder::new()
            .name("serial".into())
            .spawn(move || {
                let mut dropped = [0; 4096];
                while listener.read(&mut dropped).is_ok_and(|n| n > 0) {}
            })
            .context("starting the console's reader")?;
        Ok(Self {
            log: log.to_owned(),
            socket: stream,
            seen: 0,
            asked: 0,
        })
    }

    /// Whether anything was printed yet.
    pub(crate) fn has_output(&self) -> bool {
        std::fs::metadata(&self.log).is_ok_and(|log| log.len() > 0)
    }

    /// Waits for `text` in what was printed after the last expectation, and returns what came before it. `along` is
    /// called at every look, to watch for other things meanwhile.
    ///
    /// # Errors
    /// It is not printed within `limit`, or `along` refuses to wait on.
    pub(crate) fn expect(
        &mut self,
        text: &str,
        limit: Duration,
        mut along: impl FnMut(&Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<String> {
        let what = format!("{text:?} on the serial console");
        let log = self.log.clone();
        let (before, used) = Limit::new(&what, limit).with_log(&log).wait(|| {
            along(self)?;
            let printed = std::fs::read(&self.log).unwrap_or_default();
            Ok(find(&printed, self.seen, text.as_bytes()))
        })?;
        self.seen = used;
        Ok(before)
    }

    /// Types a line.
    ///
    /// # Errors
    /// The console is gone.
    pub(crate) fn type_line(&mut self, line: &str) -> anyhow::Result<()> {
        self.socket
            .write_all(line.as_bytes())
            .context("typing at the serial console")?;
        self.socket
            .write_all(b"\n")
            .context("typing at the serial console")
    }

    /// Logs in at a prompt that was seen, and leaves the terminal without echo and with a prompt of our own.
    ///
    /// # Errors
    /// The guest does not answer, or refuses.
    pub(crate) fn log_in(
        &mut self,
        user: &str,
        password: &str,
        limit: Duration,
    ) -> anyhow::Result<()> {
        self.type_line(user)?;
        self.expect("assword:", limit, |_| Ok(()))?;
        self.type_line(password)?;
        // What is typed before the shell is there is thrown away, and how it greets is its own affair: ask until it
        // answers.
        let deadline = Instant::now() + limit;
        loop {
            match self.run("stty -echo", ASK_AGAIN) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() >= deadline || interrupted() => {
                    return Err(error.context("logging in"));
                }
                Err(_) => {}
            }
        }
    }

    /// Runs a command in the shell and returns what it printed.
    ///
    /// # Errors
    /// It does not end within `limit`, or fails.
    pub(crate) fn run(&mut self, command: &str, limit: Duration) -> anyhow::Result<String> {
        self.asked += 1;
        let mark = self.asked;
        // The shell works the sum out, so that its answer cannot be mistaken for the terminal's echo of what we type.
        self.type_line(&format!("{command} && echo done-{mark}-$((20 + 1))"))?;
        self.expect(&format!("done-{mark}-21"), limit, |_| Ok(()))
    }
}

/// The text between byte `from` and `wanted`, and where the search may go on.
fn find(printed: &[u8], from: usize, wanted: &[u8]) -> Option<(String, usize)> {
    let unread = printed.get(from..)?;
    let at = unread
        .windows(wanted.len())
        .position(|window| window == wanted)?;
    Some((
        String::from_utf8_lossy(&unread[..at]).into_owned(),
        from + at + wanted.len(),
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_search_goes_on_where_the_last_one_ended() {
        let printed = b"one login: two login: three";
        let (before, used) = find(printed, 0, b"login:").unwrap();
        assert_eq!((before.as_str(), used), ("one ", 10));
        assert_eq!(find(printed, used, b"login:").unwrap().1, 21);
        assert_eq!(find(printed, 21, b"login:"), None);
        assert_eq!(find(printed, 99, b"login:"), None);
    }

    /// A guest that greets, asks, echoes what is typed and answers, all through a log and a socket as QEMU does.
    #[test]
    fn a_session_is_typed_and_read() {
        let folder = tempfile::tempdir().unwrap();
        let (log, socket) = (
            folder.path().join("serial.log"),
            folder.path().join("serial.sock"),
        );
        let listener = UnixListener::bind(&socket).unwrap();
        std::fs::write(&log, "Linux version 6\r\ndesktop login: ").unwrap();
        let guest_log = log.clone();
        let guest = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut typed = BufReader::new(stream).lines().map(Result::unwrap);
            let print = |text: &str| {
                let mut file = std::fs::OpenOptions::new()
                    .append(true)
                    .open(&guest_log)
                    .unwrap();
                file.write_all(text.as_bytes()).unwrap();
            };
            assert_eq!(typed.next().unwrap(), "user");
            print("user\r\nPassword: ");
            assert_eq!(typed.next().unwrap(), "secret");
            // Typed before the shell is there: lost.
            assert!(typed.next().unwrap().starts_with("stty"));
            for line in typed {
                // The echo shows the sum unsolved; only the shell's answer has it solved.
                print(&format!("{line}\r\n"));
                print(&format!(
                    "hello\r\n{}\r\n",
                    line.rsplit_once("echo ")
                        .unwrap()
                        .1
                        .replace("$((20 + 1))", "21")
                ));
            }
        });
        let mut console = Console::open(&log, &socket).unwrap();
        assert!(console.has_output());
        let limit = Duration::from_secs(5);
        console.expect("login:", limit, |_| Ok(())).unwrap();
        console.log_in("user", "secret", limit).unwrap();
        assert!(console.run("cat note", limit).unwrap().contains("hello"));
        console.socket.shutdown(std::net::Shutdown::Both).unwrap();
        guest.join().unwrap();
    }
}
