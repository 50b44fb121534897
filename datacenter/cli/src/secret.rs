//! Passwords and codes as they are given: typed without being shown, from a file, or from standard input. Never as an argument, which other users of the
//! machine can see.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::path::Path;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::failure::Failure;

/// Longest line that is read, in bytes.
const LINE_BYTES_MAX: u64 = 4096;

/// Has the terminal show what is typed again, however reading ends.
struct Hidden(Termios);

impl Hidden {
    fn begin() -> Option<Self> {
        let before = tcgetattr(std::io::stdin()).ok()?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        hidden.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &hidden).ok()?;
        Some(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.0);
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
    let stdin = std::io::stdin();
    let _hidden = if stdin.is_terminal() {
        let mut stderr = std::io::stderr();
        let _ = write!(stderr, "{prompt}: ").and_then(|()| stderr.flush());
        Hidden::begin()
    } else {
        None
    };
    let mut line = String::new();
    stdin
        .lock()
        .take(LINE_BYTES_MAX)
        .read_line(&mut line)
        .map_err(|e| Failure::failed(format!("cannot read standard input: {e}")))?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}
