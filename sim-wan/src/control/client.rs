//! The asking end of the control socket, for tests, benchmarks and `sim-wan ctl`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{LINE_BYTES_MAX, Request, Response};
use crate::link::LinkStats;

/// An answer is a few model calls away; longer means the emulator hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("control socket {}: {source}; is sim-wan running with --socket {}?", path.display(), path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("control socket: {0}")]
    Io(#[from] io::Error),
    /// The answer is not one.
    #[error("control socket: answer is not understood: {0}")]
    Answer(#[from] serde_json::Error),
    /// The emulator refused; its own words.
    #[error("{0}")]
    Refused(String),
}

/// A connection to a running emulator.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let connected = UnixStream::connect(path).and_then(|stream| {
            stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            Ok(stream)
        });
        match connected {
            Ok(stream) => Ok(Self {
                stream: BufReader::new(stream),
            }),
            Err(source) => Err(ClientError::Connect {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Sends one request and waits for its answer: the links it named, as of after the command.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the emulator's reason, or the connection broke.
    pub fn request(&mut self, request: &Request) -> Result<Vec<LinkStats>, ClientError> {
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes())?;
        line.clear();
        if (&mut self.stream)
            .take(LINE_BYTES_MAX)
            .read_line(&mut line)?
            == 0
        {
            return Err(ClientError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        let response: Response = serde_json::from_str(&line)?;
        if response.ok {
            Ok(response.links)
        } else {
            Err(ClientError::Refused(
                response
                    .error
                    .unwrap_or_else(|| "refused without a reason".to_owned()),
            ))
        }
    }

    /// Takes a link (None: all) down.
    ///
    /// # Errors
    /// As [`Client::request`], as for all that follow.
    pub fn cut(&mut self, link: Option<&str>) -> Result<(), ClientError> {
        self.request(&Request::Cut {
            link: link.map(str::to_owned),
        })
        .map(drop)
    }

    /// Ends a cut.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn restore(&mut self, link: Option<&str>) -> Result<(), ClientError> {
        self.request(&Request::Restore {
            link: link.map(str::to_owned),
        })
        .map(drop)
    }

    /// Changes the profile.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn set_profile(&mut self, link: Option<&str>, profile: &str) -> Result<(), ClientError> {
        let (link, profile) = (link.map(str::to_owned), profile.to_owned());
        self.request(&Request::Profile { link, profile }).map(drop)
    }

    /// Counters of one link.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn stats(&mut self, link: &str) -> Result<LinkStats, ClientError> {
        let links = self.request(&Request::Stats {
            link: Some(link.to_owned()),
        })?;
        links
            .into_iter()
            .next()
            .ok_or_else(|| ClientError::Refused(format!("no answer about link {link:?}")))
    }

    /// Counters of all links.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn list(&mut self) -> Result<Vec<LinkStats>, ClientError> {
        self.request(&Request::List)
    }

    /// Clears the counters.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn reset_stats(&mut self, link: Option<&str>) -> Result<(), ClientError> {
        self.request(&Request::ResetStats {
            link: link.map(str::to_owned),
        })
        .map(drop)
    }
}
