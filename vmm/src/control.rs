//! The control socket of a machine: whoever may open it may do with the machine what its owner may. One JSON object a line; files that a
//! command needs come with it as descriptors, because a machine in its sandbox opens nothing.
//!
//! Invariant: a client has at most [`LINE_BYTES_MAX`] bytes of a line and two files here; they are closed with its command, or
//! with its connection.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags};
use vmm_api::{Answer, Command, LINE_BYTES_MAX};

use crate::machine::event::{Event, Events};
use crate::threads::{Role, Service};

/// How long the machine's thread may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// How long it may take to save the machine: the largest memory on a slow disk.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(3600);
/// How long a client that takes no answer is waited for.
const CLIENT_PATIENCE: Duration = Duration::from_secs(5);
/// Most files of a command: a snapshot has two.
const FILES_MAX: usize = 2;

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
    let mut lines = Lines::new(client);
    while let Some(line) = lines.next()? {
        let answer = match &line {
            Line::Whole(line) => ask(line, &mut lines.files, machine),
            Line::Broken => Answer::Refused(format!("a line has {LINE_BYTES_MAX} bytes at most")),
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        (&lines.client).write_all(&text)?;
        if matches!(line, Line::Broken) {
            break;
        }
    }
    Ok(())
}

/// What a client says.
enum Line {
    /// With its end.
    Whole(Vec<u8>),
    /// Too long, or cut off.
    Broken,
}

/// A client, and what has come of it and was not taken yet.
struct Lines {
    client: UnixStream,
    bytes: Vec<u8>,
    /// The system may tell of files a line too early, never too late: they wait for the command that takes them.
    files: Vec<OwnedFd>,
}

impl Lines {
    fn new(client: UnixStream) -> Self {
        Self {
            client,
            bytes: Vec::new(),
            files: Vec::new(),
        }
    }

    /// The next line. `None`: the client has nothing more to say.
    fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            let end = self.bytes.iter().position(|byte| *byte == b'\n');
            if let Some(end) = end.filter(|end| *end < LINE_BYTES_MAX) {
                let rest = self.bytes.split_off(end + 1);
                let line = std::mem::replace(&mut self.bytes, rest);
                return Ok(Some(Line::Whole(line)));
            }
            if self.bytes.len() >= LINE_BYTES_MAX {
                return Ok(Some(Line::Broken));
            }
            if !self.receive()? {
                let is_torn = !std::mem::take(&mut self.bytes).is_empty();
                return Ok(is_torn.then_some(Line::Broken));
            }
        }
    }

    /// Takes what has come, or waits for it. False: that was all.
    fn receive(&mut self) -> io::Result<bool> {
        let mut bytes = [0; LINE_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = loop {
            match rustix::net::recvmsg(&self.client, &mut slices, &mut control, flags) {
                Err(Errno::INTR) => {}
                received => break received?,
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                self.files.extend(files);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) || self.files.len() > FILES_MAX {
            return Err(io::Error::other("more files than any command has"));
        }
        self.bytes.extend_from_slice(&bytes[..received.bytes]);
        Ok(received.bytes > 0)
    }
}

fn ask(line: &[u8], files: &mut Vec<OwnedFd>, machine: &impl Fn() -> Option<Events>) -> Answer {
    let command: Command = match serde_json::from_slice(line) {
        Ok(command) => command,
        Err(error) => return Answer::Refused(format!("no such command: {error}")),
    };
    let (patience, files) = match command {
        Command::Snapshot { .. } => (SNAPSHOT_WAIT, std::mem::take(files)),
        _ => (ANSWER_WAIT, Vec::new()),
    };
    let Some(events) = machine() else {
        return Answer::Refused("the machine is being made".into());
    };
    let (sender, answers) = sync_channel(1);
    events.put(Event::Command(command, files, sender));
    match answers.recv_timeout(patience) {
        Ok(answer) => answer,
        Err(_) => Answer::Refused("the machine does not answer: it has just ended".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::fd::AsFd;

    use super::*;
    use crate::snapshot::send;

    /// Says this with so many files, then nothing more; what is answered.
    fn answers(said: &[u8], files: usize, machine: Option<Events>) -> Vec<String> {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        let null = std::fs::File::open("/dev/null").expect("it is everywhere");
        send(&ours, said, &vec![null.as_fd(); files]).expect("sent");
        ours.shutdown(std::net::Shutdown::Write).expect("ended");
        let served = serve_one(theirs, &|| machine.clone());
        assert_eq!(served.is_ok(), files <= FILES_MAX, "{served:?}");
        let lines = BufReader::new(ours).lines();
        lines.map_while(Result::ok).collect()
    }

    #[test]
    fn lines_are_answered_one_by_one_and_what_is_none_ends_the_connection() {
        let being_made = r#"{"refused":"the machine is being made"}"#;
        let said = b"{\"do\":\"status\"}\n{\"do\":\"pause\"}\n";
        assert_eq!(answers(said, 0, None), [being_made, being_made]);
        for broken in [vec![b' '; 2 * LINE_BYTES_MAX], b"{\"do\"".to_vec()] {
            let answers = answers(&broken, 0, None);
            assert_eq!(answers.len(), 1);
            assert!(answers[0].contains("4096 bytes at most"), "{answers:?}");
        }
        let answers = answers(b"nonsense\n", 0, None);
        assert!(answers[0].contains("no such command"), "{answers:?}");
    }

    #[test]
    fn files_go_to_the_command_that_takes_them() {
        let (events, taken) = Events::new();
        let machine = std::thread::spawn(move || {
            let mut files = Vec::new();
            while let Ok(Event::Command(_, came, answer)) = taken.recv() {
                files.push(came.len());
                let _ = answer.send(Answer::Done);
            }
            files
        });
        let said = b"{\"do\":\"status\"}\n{\"do\":\"snapshot\"}\n{\"do\":\"snapshot\"}\n";
        let done = r#""done""#;
        assert_eq!(
            answers(said, 2, Some(events.clone())),
            [done, done, done],
            "each of them"
        );
        assert!(answers(b"{\"do\":\"snapshot\"}\n", 3, Some(events)).is_empty());
        assert_eq!(machine.join().expect("no panic"), [0, 2, 0]);
    }
}
