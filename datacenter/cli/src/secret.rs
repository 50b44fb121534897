//! Passwords and codes as they are given: typed without being shown, from a file, or from standard input. Never as an argument, which other users of the
//! machine can see.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::Path;

use rustix::process::{Signal, getpid, kill_process};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};

use crate::failure::Failure;

/// Longest line that is read, in bytes.
const LINE_BYTES_MAX: u64 = 4096;

/// What a terminal sends for these keys where it does not act on them itself.
const INTERRUPT: u8 = 3;
const END: u8 = 4;
const KILL_LINE: u8 = 21;
const BACKSPACES: [u8; 2] = [8, 127];

/// Has the terminal show what is typed again, however reading ends. Until then it hands over every key, those too by which a program is ended or stopped: one
/// that was ended would leave it silent.
struct Hidden(Termios);

impl Hidden {
    fn begin() -> Option<Self> {
        let before = tcgetattr(io::stdin()).ok()?;
        let mut hidden = before.clone();
        let shown = LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG;
        hidden.local_modes.remove(shown);
        hidden.special_codes[SpecialCodeIndex::VMIN] = 1;
        hidden.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(io::stdin(), OptionalActions::Flush, &hidden).ok()?;
        Some(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
        // The end of the line was not shown either.
        let _ = writeln!(io::stderr());
    }
}

/// A secret: the first line of `file`, or what is typed behind `prompt`, or the next line of standard input.
pub fn read(prompt: &str, file: Option<&Path>) -> Result<String, Failure> {
    let line = match file {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| {
                Failure::usage(format!("cannot read the password {}: {e}", path.display()))
            })?;
            text.lines().next().unwrap_or_default().to_owned()
        }
        None => typed(prompt)?,
    };
    if line.is_empty() {
        return Err(Failure::usage(format!("{prompt}: nothing was given")));
    }
    Ok(line)
}

/// A new password, typed twice.
pub fn read_new(file: Option<&Path>) -> Result<String, Failure> {
    let first = read("new password", file)?;
    if file.is_none() && std::io::stdin().is_terminal() && read("once more", None)? != first {
        return Err(Failure::usage("the two passwords are not the same"));
    }
    Ok(first)
}

fn typed(prompt: &str) -> Result<String, Failure> {
    let stdin = io::stdin();
    let unread = |e: io::Error| Failure::failed(format!("cannot read standard input: {e}"));
    if stdin.is_terminal() {
        let mut stderr = io::stderr();
        let _ = write!(stderr, "{prompt}: ").and_then(|()| stderr.flush());
        if let Some(hidden) = Hidden::begin() {
            let line = keys(&mut stdin.lock()).map_err(unread)?;
            drop(hidden);
            return line.ok_or_else(|| {
                // As if the terminal had done it, now that it shows again what is typed.
                let _ = kill_process(getpid(), Signal::INT);
                Failure::failed("interrupted")
            });
        }
    }
    let mut line = String::new();
    stdin
        .lock()
        .take(LINE_BYTES_MAX)
        .read_line(&mut line)
        .map_err(unread)?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

/// A line, out of the keys by which it is typed; `None` if somebody gives up.
fn keys(input: &mut impl Read) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    let mut key = [0];
    loop {
        match input.read(&mut key) {
            Ok(0) => break,
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        }
        match key[0] {
            b'\n' | b'\r' => break,
            INTERRUPT => return Ok(None),
            END if line.is_empty() => break,
            END => {}
            KILL_LINE => line.clear(),
            key if BACKSPACES.contains(&key) => {
                // A character that is several bytes goes whole.
                while line.pop().is_some_and(|byte: u8| byte & 0xc0 == 0x80) {}
            }
            key if (line.len() as u64) < LINE_BYTES_MAX => line.push(key),
            _ => {}
        }
    }
    let line = String::from_utf8(line);
    line.map(Some)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "what was typed is not UTF-8"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn typed(bytes: &[u8]) -> Option<String> {
        keys(&mut &*bytes).unwrap()
    }

    #[test]
    fn what_is_typed_can_be_taken_back_and_given_up() {
        let cases: [(&[u8], Option<&str>); 9] = [
            (b"secret\nmore", Some("secret")),
            (b"secret", Some("secret")),
            (b"sek\x7fcret\r", Some("secret")),
            ("sä\u{8}ecret\n".as_bytes(), Some("secret")),
            (b"\x7f\x7fa\n", Some("a")),
            (b"wrong\x15secret\n", Some("secret")),
            (b"a\x04b\n", Some("ab")),
            (b"\x04", Some("")),
            (b"secr\x03et\n", None),
        ];
        for (bytes, line) in cases {
            assert_eq!(typed(bytes).as_deref(), line, "{bytes:?}");
        }
        assert!(keys(&mut &b"\xff\n"[..]).is_err());
        let long = vec![b'x'; 5000];
        assert_eq!(typed(&long).unwrap().len() as u64, LINE_BYTES_MAX);
    }
}
