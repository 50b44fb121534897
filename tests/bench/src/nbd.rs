//! A reading NBD client for replays: requests from one thread, answers on another, in whatever order they come.
//!
//! It speaks the fixed newstyle handshake with NBD_OPT_GO and simple replies, which every server has. Content is thrown away.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_ERROR: u32 = 1 << 31;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const DISCONNECT: u16 = 2;

/// Most that an answer to an option may hold, in bytes; ours and the peers' are below 1 KiB.
const OPTION_REPLY_BYTES_MAX: usize = 64 * 1024;

/// Longer than any branch lets a guest wait.
const ANSWER: Duration = Duration::from_secs(300);

/// The sending half.
pub(crate) struct Requests {
    stream: UnixStream,
}

/// The receiving half.
pub(crate) struct Answers {
    stream: UnixStream,
    buffer: Vec<u8>,
}

/// Opens an export.
///
/// # Errors
/// Nobody listens, there is no such export, or the server speaks something else.
pub(crate) fn open(socket: &Path, export: &str) -> Result<(Requests, Answers)> {
    let at = || format!("export {export:?} at {}", socket.display());
    let mut stream = UnixStream::connect(socket).with_context(at)?;
    stream.set_read_timeout(Some(ANSWER)).with_context(at)?;
    shake_hands(&mut stream, export).with_context(at)?;
    let answers = Answers {
        stream: stream.try_clone().with_context(at)?,
        buffer: Vec::new(),
    };
    Ok((Requests { stream }, answers))
}

fn shake_hands(stream: &mut UnixStream, export: &str) -> Result<()> {
    let mut hello = [0; 18];
    stream.read_exact(&mut hello).context("the greeting")?;
    if &hello[..16] != b"NBDMAGICIHAVEOPT" || hello[17] & 1 == 0 {
        bail!("it does not speak NBD's fixed newstyle");
    }
    let mut go = u32::from(hello[17] & 3).to_be_bytes().to_vec();
    go.extend(b"IHAVEOPT");
    go.extend(OPTION_GO.to_be_bytes());
    go.extend((export.len() as u32 + 6).to_be_bytes());
    go.extend((export.len() as u32).to_be_bytes());
    go.extend(export.as_bytes());
    go.extend([0, 0]);
    stream.write_all(&go).context("asking for the export")?;
    loop {
        let mut head = [0; 20];
        stream.read_exact(&mut head).context("the answer to GO")?;
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let length = word(16) as usize;
        if length > OPTION_REPLY_BYTES_MAX {
            bail!("an answer of {length} bytes to GO");
        }
        let mut data = vec![0; length];
        stream.read_exact(&mut data).context("the answer to GO")?;
        match word(12) {
            REPLY_ACK => return Ok(()),
            kind if kind & REPLY_ERROR != 0 => {
                bail!("refused ({kind:#x}): {}", String::from_utf8_lossy(&data))
            }
            _ => {}
        }
    }
}

impl Requests {
    /// Asks for a range under a number of the caller's.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) fn read(&mut self, cookie: u64, offset: u64, len: u32) -> Result<()> {
        self.send(0, cookie, offset, len).context("sending a read")
    }

    /// Says good-bye.
    pub(crate) fn close(mut self) {
        // The server may have gone already.
        let _ = self.send(DISCONNECT, 0, 0, 0);
    }

    fn send(&mut self, command: u16, cookie: u64, offset: u64, len: u32) -> std::io::Result<()> {
        let mut request = [0; 28];
        request[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        request[6..8].copy_from_slice(&command.to_be_bytes());
        request[8..16].copy_from_slice(&cookie.to_be_bytes());
        request[16..24].copy_from_slice(&offset.to_be_bytes());
        request[24..].copy_from_slice(&len.to_be_bytes());
        self.stream.write_all(&request)
    }
}

impl Answers {
    /// Waits for an answer and returns its number; `len_of` says how many bytes were asked for under it.
    ///
    /// # Errors
    /// The read failed, or the connection broke.
    pub(crate) fn next(&mut self, len_of: impl FnOnce(u64) -> Option<u32>) -> Result<u64> {
        let mut head = [0; 16];
        self.stream
            .read_exact(&mut head)
            .context("waiting for an answer")?;
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("four bytes"));
        if word(0) != REPLY_MAGIC {
            bail!("an answer begins with {:#x}", word(0));
        }
        let cookie = u64::from_be_bytes(head[8..].try_into().expect("eight bytes"));
        if word(4) != 0 {
            bail!("read {cookie} failed with error {}", word(4));
        }
        let len = len_of(cookie)
            .with_context(|| format!("an answer to {cookie}, which was not asked"))?
            as usize;
        if self.buffer.len() < len {
            self.buffer.resize(len, 0);
        }
        self.stream
            .read_exact(&mut self.buffer[..len])
            .context("content")?;
        Ok(cookie)
    }
}
