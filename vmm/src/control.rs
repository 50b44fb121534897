//! The control socket of a machine: whoever may open it may do with the machine what its owner may. One JSON object a line.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use vmm_api::{Answer, Command, LINE_BYTES_MAX};

use crate::machine::event::{Event, Events};
use crate::threads::{Role, Service};

/// How long the machine's thread may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// How long it may take to save the machine: the largest memory on a slow disk.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(3600);
/// How long a client that takes no answer is waited for.
const CLIENT_PATIENCE: Duration = Duration::from_secs(5);

/// Serves clients one after another for as long as the process lives.
pub struct Control {
    listener: UnixListener,
}

impl Control {
    /// A socket at `path`, in place of one that a former process left.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn listen(path: &Path) -> io::Result<Self> {
        let _ = std::fs::remove_file(path);
        UnixListener::bind(path).map(|listener| Self { listener })
    }

    /// Who serves it; `machine` says where the events of the machine that runs now go.
    pub fn serve(self, machine: impl Fn() -> Option<Events> + Send + 'static) -> Service {
        Service::new(Role::Control, "control", move || {
            for client in self.listener.incoming().flatten() {
                // A client that breaks off hurts only itself.
                let _ = serve_one(client, &machine);
            }
        })
    }
}

fn serve_one(client: UnixStream, machine: &impl Fn() -> Option<Events>) -> io::Result<()> {
    client.set_write_timeout(Some(CLIENT_PATIENCE))?;
    let mut out = client.try_clone()?;
    let mut lines = BufReader::new(client);
    loop {
        let mut line = Vec::new();
        let read = lines
            .by_ref()
            .take(LINE_BYTES_MAX as u64)
            .read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(());
        }
        let is_whole = line.last() == Some(&b'\n');
        let answer = if is_whole {
            ask(&line, machine)
        } else {
            Answer::Refused(format!("a line has {LINE_BYTES_MAX} bytes at most"))
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        out.write_all(&text)?;
        if !is_whole {
            return Ok(());
        }
    }
}

fn ask(line: &[u8], machine: &impl Fn() -> Option<Events>) -> Answer {
    let command: Command = match serde_json::from_slice(line) {
        Ok(command) => command,
        Err(error) => return Answer::Refused(format!("no such command: {error}")),
    };
    let Some(events) = machine() else {
        return Answer::Refused("the machine is being made".into());
    };
    let patience = match command {
        Command::Snapshot { .. } => SNAPSHOT_WAIT,
        _ => ANSWER_WAIT,
    };
    let (sender, answers) = sync_channel(1);
    events.put(Event::Command(command, sender));
    match answers.recv_timeout(patience) {
        Ok(answer) => answer,
        Err(_) => Answer::Refused("the machine does not answer: it has just ended".into()),
    }
}
