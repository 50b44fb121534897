//! Asking a running machine for a snapshot, from outside: the folder and its files are made here and handed in, because a machine in its
//! sandbox opens nothing.
//!
//! The folder gets its name when the machine has said that all of it is on the disk, or when it is gone and all of it is there. Refused: a
//! place where something is already.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use vmm_api::{Answer, Command, LINE_BYTES_MAX, Then};

use super::folder::{self, FolderError};
use super::sealed::{self, Kind};
use super::{MEMORY, STATE, state_bytes_max};

/// Most files of a line: what a snapshot has, and some that tests have too many.
const FILES_MAX: usize = 4;

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// Its folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Its files.
    #[error("make or sync {}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The way to the machine.
    #[error("control socket {}", .path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The machine says why not.
    #[error("the machine was not saved: {0}")]
    Refused(String),
    /// Nobody knows what it says.
    #[error("the machine's answer makes no sense: {0:?}")]
    Answer(String),
}

/// Has the machine whose control socket is `socket` saved into the folder `dir`, which is not there yet. It goes on or ends `then`.
///
/// # Errors
/// See [`TakeError`]; nothing is left then, unless the disk fails in the last moment, which the error tells.
pub fn take(socket: &Path, dir: &Path, then: Then) -> Result<(), TakeError> {
    folder::create(dir, is_whole, |folder| {
        let make = |name: &str| {
            let path = folder.join(name);
            File::create_new(&path).map_err(|source| TakeError::File { path, source })
        };
        let (state, memory) = (make(STATE)?, make(MEMORY)?);
        let files = [state.as_fd(), memory.as_fd()];
        let answer = match ask(socket, &Command::Snapshot { then }, &files) {
            Ok(answer) => answer,
            // A machine that ends may be gone before it has told. What it has written tells as well.
            Err(_) if is_whole(folder) => {
                let synced = memory.sync_all().and_then(|()| state.sync_all());
                let path = folder.to_owned();
                return synced.map_err(|source| TakeError::File { path, source });
            }
            Err(source) => {
                let path = socket.to_owned();
                return Err(TakeError::Socket { path, source });
            }
        };
        match serde_json::from_str(&answer) {
            Ok(Answer::Done) => Ok(()),
            Ok(Answer::Refused(reason)) => Err(TakeError::Refused(reason)),
            Ok(Answer::Status(_)) | Err(_) => Err(TakeError::Answer(answer)),
        }
    })
}

/// Whether there is a snapshot in a folder that never got its name. Its memory was on the disk before its state was written.
fn is_whole(folder: &Path) -> bool {
    let memory = std::fs::metadata(folder.join(MEMORY));
    let state = File::open(folder.join(STATE));
    let (Ok(memory), Ok(state)) = (memory, state) else {
        return false;
    };
    sealed::read(Kind::State, &state, state_bytes_max(memory.len())).is_ok()
}

/// The line that is answered.
fn ask(socket: &Path, command: &Command, files: &[BorrowedFd<'_>]) -> io::Result<String> {
    let stream = UnixStream::connect(socket)?;
    let mut line = serde_json::to_vec(command)?;
    line.push(b'\n');
    send(&stream, &line, files)?;
    let mut answer = String::new();
    let mut answers = BufReader::new(stream).take(LINE_BYTES_MAX as u64);
    match answers.read_line(&mut answer)? {
        0 => Err(io::Error::new(
            ErrorKind::UnexpectedEof,
            "it was closed before the machine had answered",
        )),
        _ => Ok(answer),
    }
}

/// Sends bytes, and files with the first of them.
pub(crate) fn send(stream: &UnixStream, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(ErrorKind::InvalidInput.into());
    }
    let slices = [IoSlice::new(bytes)];
    let sent = rustix::net::sendmsg(stream, &slices, &mut control, SendFlags::NOSIGNAL)?;
    let mut stream = stream;
    stream.write_all(&bytes[sent..])
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread::JoinHandle;

    use super::*;

    /// A machine that answers one client with this.
    fn machine(socket: &Path, answer: &'static str) -> JoinHandle<String> {
        let listener = UnixListener::bind(socket).expect("a socket");
        std::thread::spawn(move || {
            let (client, _) = listener.accept().expect("a client");
            let mut lines = BufReader::new(client);
            let mut line = String::new();
            lines.read_line(&mut line).expect("a line");
            lines.get_mut().write_all(answer.as_bytes()).expect("told");
            line
        })
    }

    #[test]
    fn a_folder_is_there_when_the_machine_says_so() {
        let temp = tempfile::tempdir().expect("a folder");
        let (socket, dir) = (temp.path().join("control"), temp.path().join("snap"));
        for (answer, told) in [
            (
                "{\"refused\":\"not now\"}\n",
                "the machine was not saved: not now",
            ),
            (
                "nonsense\n",
                "the machine's answer makes no sense: \"nonsense\\n\"",
            ),
            ("", "control socket"),
        ] {
            let machine = machine(&socket, answer);
            let refused = take(&socket, &dir, Then::GoOn).expect_err("not saved");
            assert!(refused.to_string().starts_with(told), "{refused}");
            machine.join().expect("no panic");
            std::fs::remove_file(&socket).expect("removed");
            let left = std::fs::read_dir(temp.path()).expect("a folder");
            assert_eq!(left.count(), 0, "{told}");
        }
        let machine = machine(&socket, "\"done\"\n");
        take(&socket, &dir, Then::Quit).expect("saved");
        let line = machine.join().expect("no panic");
        assert_eq!(line, "{\"do\":\"snapshot\",\"then\":\"quit\"}\n");
        assert!(dir.join(STATE).exists() && dir.join(MEMORY).exists());
        let again = take(&socket, &dir, Then::Quit).expect_err("there already");
        assert!(matches!(again, TakeError::Folder(FolderError::Exists(_))));
    }

    #[test]
    fn a_machine_that_was_saved_and_is_gone_before_it_has_told_is_saved() {
        let temp = tempfile::tempdir().expect("a folder");
        let (socket, dir) = (temp.path().join("control"), temp.path().join("snap"));
        let listener = UnixListener::bind(&socket).expect("a socket");
        let state = temp.path().join("snap.partial").join(STATE);
        let machine = std::thread::spawn(move || {
            let (client, _) = listener.accept().expect("a client");
            let mut line = String::new();
            let mut lines = BufReader::new(client);
            lines.read_line(&mut line).expect("a line");
            std::fs::write(state, sealed::seal(Kind::State, b"body")).expect("written");
        });
        take(&socket, &dir, Then::Quit).expect("all of it is there");
        machine.join().expect("no panic");
        assert!(is_whole(&dir));
    }

    #[test]
    fn one_that_is_whole_and_has_no_name_is_kept() {
        let temp = tempfile::tempdir().expect("a folder");
        let partial = temp.path().join("snap.partial");
        std::fs::create_dir(&partial).expect("made");
        std::fs::write(partial.join(MEMORY), "").expect("written");
        let state = sealed::seal(Kind::State, b"body");
        std::fs::write(partial.join(STATE), &state[..20]).expect("written");
        assert!(!is_whole(&partial));
        std::fs::write(partial.join(STATE), &state).expect("written");
        let refused = take(Path::new("/nowhere"), &temp.path().join("snap"), Then::Quit);
        let refused = refused.expect_err("somebody may want it").to_string();
        assert!(refused.contains("snap.partial is whole"), "{refused}");
        assert!(is_whole(&partial));
    }
}
