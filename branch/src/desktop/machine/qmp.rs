//! A little of QEMU's machine protocol: one command at a time over its Unix socket.
//!
//! QEMU is trusted as little as its guest: answers are bounded, and so is the wait for them.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// Longest line of an answer.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// Why a command got no answer.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket.
    #[error("qmp socket {path}")]
    Io {
        /// Its path.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Not JSON, or not what the protocol says.
    #[error("qmp answer is malformed: {0}")]
    Malformed(String),
    /// QEMU said no.
    #[error("qmp command {command}: {message}")]
    Refused {
        /// What was asked.
        command: String,
        /// Its words.
        message: String,
    },
}

/// An open monitor.
pub struct Qmp {
    path: String,
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and takes the greeting.
    pub fn connect(path: &Path) -> Result<Self, QmpError> {
        let name = path.display().to_string();
        let io = |source| QmpError::Io {
            path: name.clone(),
            source,
        };
        let stream = UnixStream::connect(path).map_err(io)?;
        let limit = Some(Duration::from_secs(10));
        stream.set_read_timeout(limit).map_err(io)?;
        stream.set_write_timeout(limit).map_err(io)?;
        let mut qmp = Self {
            path: name,
            reader: BufReader::new(stream),
        };
        qmp.line()?;
        qmp.run("qmp_capabilities")?;
        Ok(qmp)
    }

    /// Runs a command without arguments; events that come between are passed over.
    pub fn run(&mut self, command: &str) -> Result<Value, QmpError> {
        let line = format!("{}\n", json!({ "execute": command }));
        let path = self.path.clone();
        self.reader
            .get_mut()
            .write_all(line.as_bytes())
            .map_err(|source| QmpError::Io { path, source })?;
        loop {
            let mut answer = self.line()?;
            if let Some(error) = answer.get("error") {
                return Err(QmpError::Refused {
                    command: command.into(),
                    message: error["desc"].as_str().unwrap_or("no reason given").into(),
                });
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    fn line(&mut self) -> Result<Value, QmpError> {
        let mut line = String::new();
        let io = |source| QmpError::Io {
            path: self.path.clone(),
            source,
        };
        let read = (&mut self.reader)
            .take(LINE_BYTES_MAX)
            .read_line(&mut line)
            .map_err(io)?;
        if read == 0 {
            return Err(io(std::io::ErrorKind::UnexpectedEof.into()));
        }
        serde_json::from_str(&line).map_err(|e| QmpError::Malformed(e.to_string()))
    }
}
