//! The serving end of the control socket: one thread that accepts, one per connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags};

use super::{LINE_BYTES_MAX, Request, Response};
use crate::link::Controlled;
use crate::profile::Profiles;
use crate::sys::{Bell, wait};

/// Connections served at once; pollers and a person, with room to spare. More are closed at once.
const CONNECTIONS_MAX: usize = 64;

struct State {
    links: Vec<Arc<dyn Controlled>>,
    profiles: Profiles,
    connections: AtomicUsize,
    stop: AtomicBool,
    bell: Bell,
}

/// A control socket; it is closed and its file removed when dropped.
pub struct Server {
    state: Arc<State>,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on `path` and serves `links`. A socket file left by a dead process is replaced.
    ///
    /// # Errors
    /// `AddrInUse` when a live process listens there; otherwise as bind(2).
    pub fn start(
        path: &Path,
        links: Vec<Arc<dyn Controlled>>,
        profiles: Profiles,
    ) -> io::Result<Self> {
        let listener = bind(path)?;
        listener.set_nonblocking(true)?;
        let state = Arc::new(State {
            links,
            profiles,
            connections: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            bell: Bell::new()?,
        });
        let serving = state.clone();
        let thread = thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || accept(&listener, &serving))?;
        Ok(Self {
            state,
            path: path.to_owned(),
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Release);
        self.state.bell.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        done => done,
    }
}

fn accept(listener: &UnixListener, state: &Arc<State>) {
    while !state.stop.load(Ordering::Acquire) {
        let mut fds = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::new(&state.bell, PollFlags::IN),
        ];
        if wait(&mut fds, None).is_err() {
            return;
        }
        let Ok((stream, _)) = listener.accept() else {
            continue;
        };
        if state.connections.load(Ordering::Acquire) >= CONNECTIONS_MAX {
            continue;
        }
        state.connections.fetch_add(1, Ordering::AcqRel);
        let serving = state.clone();
        let spawned = thread::Builder::new()
            .name("control-peer".to_owned())
            .spawn(move || {
                // A peer that goes away in the middle of a line has ended its connection, nothing more.
                let _ = converse(&stream, &serving);
                serving.connections.fetch_sub(1, Ordering::AcqRel);
            });
        if spawned.is_err() {
            state.connections.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

fn converse(stream: &UnixStream, state: &State) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    while !state.stop.load(Ordering::Acquire) {
        line.clear();
        if (&mut lines).take(LINE_BYTES_MAX).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let response = match serde_json::from_str(&line) {
            Ok(request) => state.answer(request).unwrap_or_else(Response::refusal),
            Err(error) => Response::refusal(format!("request is not understood: {error}")),
        };
        let mut text = serde_json::to_string(&response)?;
        text.push('\n');
        let mut writer = stream;
        writer.write_all(text.as_bytes())?;
    }
    Ok(())
}

impl Response {
    fn refusal(error: String) -> Self {
        Self {
            ok: false,
            error: Some(error),
            links: Vec::new(),
        }
    }
}

impl State {
    fn answer(&self, request: Request) -> Result<Response, String> {
        let links = match request {
            Request::Cut { link } => self.each(link, |link| link.cut()),
            Request::Restore { link } => self.each(link, |link| link.restore()),
            Request::Profile { link, profile } => {
                let profile = self
                    .profiles
                    .find(&profile)
                    .map_err(|error| error.to_string())?;
                self.each(link, |link| link.set_profile(profile))
            }
            Request::Stats { link } => self.each(link, |_| {}),
            Request::List => self.each(None, |_| {}),
            Request::ResetStats { link } => self.each(link, |link| link.reset_stats()),
        }?;
        let links = links.into_iter().map(|link| link.stats()).collect();
        Ok(Response {
            ok: true,
            error: None,
            links,
        })
    }

    /// Does `work` to the named link, or to all, and returns them.
    fn each(
        &self,
        name: Option<String>,
        work: impl Fn(&dyn Controlled),
    ) -> Result<Vec<&Arc<dyn Controlled>>, String> {
        let named =
            |link: &&Arc<dyn Controlled>| name.as_deref().is_none_or(|name| link.name() == name);
        let chosen: Vec<_> = self.links.iter().filter(named).collect();
        if chosen.is_empty() {
            let known: Vec<_> = self.links.iter().map(|link| link.name()).collect();
            return Err(format!(
                "no link {:?}; links: {}",
                name.unwrap_or_default(),
                known.join(", ")
            ));
        }
        for link in &chosen {
            work(link.as_ref());
        }
        Ok(chosen)
    }
}
