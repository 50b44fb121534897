//! A template's file: made once, whole or not at all, and read as foreign bytes.
//!
//! ```text
//!  0 magic "SPLTMPLT"   8 version u32   12 zero u32   16 id, random (16)   32 place of the head u64   40 its length, with its tag, u64
//!  4096 body, in frames of 1 MiB and a tag each, the last one shorter
//!  …    head, one frame, bound to the 48 bytes above; the file ends with it
//! ```
//!
//! Numbers are little-endian. It is written under another name, synced, and renamed: a file that has its name is whole, unless its disk has damaged it.
//! Refused, by an error that says what to do: other versions, other lengths, and whatever does not open under the branch's key. A template is
//! never repaired: it is removed, and another one made.

use std::io;
use std::sync::Arc;

use dedup_store::disk::{Disk, DiskFile, Open};

use super::TemplateError;
use super::frames::{Cipher, FRAME_BYTES, Place, TAG_BYTES, TemplateSecret};
use super::head::{HEAD_BYTES_MAX, Head, HeadError};

/// Where templates lie on the disk of overlays.
pub const DIR: &str = "templates";
/// What ends the name of one that is being made.
pub const PARTIAL: &str = ".partial";

const MAGIC: [u8; 8] = *b"SPLTMPLT";
/// The one version that is written and read.
pub const VERSION: u32 = 1;
const HEADER_BYTES: usize = 48;
const BODY_AT: u64 = 4096;

pub(super) fn path(name: &str) -> String {
    format!("{DIR}/{name}")
}

/// Bytes that a body takes in its file.
fn framed(body_bytes: u64) -> u64 {
    body_bytes + body_bytes.div_ceil(FRAME_BYTES as u64) * TAG_BYTES as u64
}

fn header(id: &[u8; 16], head_at: u64, head_len: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..32].copy_from_slice(id);
    header[32..40].copy_from_slice(&head_at.to_le_bytes());
    header[40..].copy_from_slice(&head_len.to_le_bytes());
    header
}

/// A template that is being written. Dropped before it is finished, it leaves nothing but what the next one, or a start of the server, removes.
pub struct Writer<'a> {
    disk: &'a dyn Disk,
    name: String,
    file: Arc<dyn DiskFile>,
    id: [u8; 16],
    cipher: Cipher,
    frame: Vec<u8>,
    number: u64,
    at: u64,
    written: u64,
}

impl<'a> Writer<'a> {
    /// Begins the file `name`; `id` is random and its own.
    ///
    /// # Errors
    /// The disk fails.
    pub fn create(
        disk: &'a dyn Disk,
        name: &str,
        secret: &TemplateSecret,
        id: [u8; 16],
    ) -> Result<Self, TemplateError> {
        let partial = format!("{}{PARTIAL}", path(name));
        let made = disk.create_dir(DIR).and_then(|()| {
            match disk.remove(&partial) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            disk.open(&partial, Open::CreateNew)
        });
        let file = made.map_err(|source| TemplateError::Io {
            step: "make",
            file: name.to_owned(),
            source,
        })?;
        Ok(Self {
            disk,
            name: name.to_owned(),
            file,
            id,
            cipher: secret.cipher(&id),
            frame: Vec::with_capacity(FRAME_BYTES + TAG_BYTES),
            number: 0,
            at: BODY_AT,
            written: 0,
        })
    }

    fn io(&self, source: io::Error) -> TemplateError {
        TemplateError::Io {
            step: "write",
            file: self.name.clone(),
            source,
        }
    }

    /// Appends to the body.
    ///
    /// # Errors
    /// The disk fails.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), TemplateError> {
        self.written += bytes.len() as u64;
        while !bytes.is_empty() {
            let taken = bytes.len().min(FRAME_BYTES - self.frame.len());
            let (now, later) = bytes.split_at(taken);
            self.frame.extend_from_slice(now);
            bytes = later;
            if self.frame.len() == FRAME_BYTES {
                self.end_frame()?;
            }
        }
        Ok(())
    }

    fn end_frame(&mut self) -> Result<(), TemplateError> {
        self.cipher
            .seal(Place::Body(self.number), &[], &mut self.frame);
        self.put()?;
        self.number += 1;
        Ok(())
    }

    /// Writes a sealed frame.
    fn put(&mut self) -> Result<(), TemplateError> {
        let written = self.file.write_at(self.at, &self.frame);
        written.map_err(|source| self.io(source))?;
        self.at += self.frame.len() as u64;
        self.frame.clear();
        Ok(())
    }

    /// Puts the head behind the body, and gives the file its name when all of it is on the disk.
    ///
    /// # Errors
    /// The disk fails, or the head is none of this body.
    pub fn finish(mut self, head: &Head) -> Result<(), TemplateError> {
        let checked = head.check().and_then(|()| {
            let is_whole = head.body_bytes() == self.written;
            is_whole
                .then_some(())
                .ok_or(HeadError("it is of another body"))
        });
        checked.map_err(|source| TemplateError::Head {
            file: self.name.clone(),
            source,
        })?;
        if !self.frame.is_empty() {
            self.end_frame()?;
        }
        self.frame = head.encode();
        let (head_at, head_len) = (self.at, (self.frame.len() + TAG_BYTES) as u64);
        let header = header(&self.id, head_at, head_len);
        self.cipher.seal(Place::Head, &header, &mut self.frame);
        self.put()?;
        let to = path(&self.name);
        let named = self
            .file
            .write_at(0, &header)
            .and_then(|()| self.file.sync())
            .and_then(|()| self.disk.rename(&format!("{to}{PARTIAL}"), &to))
            .and_then(|()| self.disk.sync_dir(DIR));
        named.map_err(|source| self.io(source))
    }
}

/// A template that was opened: its head is whole, its body is checked as it is read.
pub struct TemplateFile {
    name: String,
    file: Arc<dyn DiskFile>,
    cipher: Cipher,
    head: Head,
}

impl TemplateFile {
    /// Opens the file `name`; none if there is none.
    ///
    /// # Errors
    /// It is damaged, of another program, or the disk fails.
    pub fn open(
        disk: &dyn Disk,
        name: &str,
        secret: &TemplateSecret,
    ) -> Result<Option<Self>, TemplateError> {
        let io_error = |source| TemplateError::Io {
            step: "read",
            file: name.to_owned(),
            source,
        };
        let damaged = |what| TemplateError::Damaged {
            file: name.to_owned(),
            what,
        };
        let file = match disk.open(&path(name), Open::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(io_error)?,
        };
        let len = file.len().map_err(io_error)?;
        if len < BODY_AT {
            return Err(damaged("it is too short"));
        }
        let mut header = [0; HEADER_BYTES];
        file.read_at(0, &mut header).map_err(io_error)?;
        if header[..8] != MAGIC || header[12..16] != [0; 4] {
            return Err(damaged("it begins otherwise"));
        }
        let found = u32::from_le_bytes(header[8..12].try_into().expect("four bytes"));
        if found != VERSION {
            let file = name.to_owned();
            return Err(TemplateError::Version { file, found });
        }
        let id: [u8; 16] = header[16..32].try_into().expect("sixteen bytes");
        let number =
            |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        let (head_at, head_len) = (number(32), number(40));
        let is_there = head_at >= BODY_AT && head_at.checked_add(head_len) == Some(len);
        if !is_there || head_len > HEAD_BYTES_MAX + TAG_BYTES as u64 {
            return Err(damaged("its length"));
        }
        let cipher = secret.cipher(&id);
        let mut bytes = vec![0; head_len as usize];
        file.read_at(head_at, &mut bytes).map_err(io_error)?;
        if !cipher.open(Place::Head, &header, &mut bytes) {
            return Err(damaged("its head"));
        }
        let head = Head::decode(&bytes).map_err(|source| TemplateError::Head {
            file: name.to_owned(),
            source,
        })?;
        if framed(head.body_bytes()) != head_at - BODY_AT {
            return Err(damaged("the length of its body"));
        }
        Ok(Some(Self {
            name: name.to_owned(),
            file,
            cipher,
            head,
        }))
    }

    /// What it is of, and how it is read.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Name of its file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its body, from byte `at` on.
    pub fn body(&self, at: u64) -> Body<'_> {
        Body {
            template: self,
            at,
            number: None,
            frame: Vec::new(),
        }
    }
}

/// A template's body, read in turn.
pub struct Body<'a> {
    template: &'a TemplateFile,
    at: u64,
    /// Which frame is in `frame`.
    number: Option<u64>,
    frame: Vec<u8>,
}

impl Body<'_> {
    /// Fills `buf` with what comes next.
    ///
    /// # Errors
    /// It is damaged, or ends before, or the disk fails.
    pub fn read(&mut self, mut buf: &mut [u8]) -> Result<(), TemplateError> {
        while !buf.is_empty() {
            let number = self.at / FRAME_BYTES as u64;
            if self.number != Some(number) {
                self.load(number)?;
            }
            let from = (self.at % FRAME_BYTES as u64) as usize;
            let there = self.frame.get(from..).unwrap_or_default();
            let taken = there.len().min(buf.len());
            if taken == 0 {
                return Err(self.damaged("its body ends early"));
            }
            let (now, later) = std::mem::take(&mut buf).split_at_mut(taken);
            now.copy_from_slice(&there[..taken]);
            buf = later;
            self.at += taken as u64;
        }
        Ok(())
    }

    fn load(&mut self, number: u64) -> Result<(), TemplateError> {
        self.number = None;
        let template = self.template;
        let before = number.saturating_mul(FRAME_BYTES as u64);
        let left = template.head.body_bytes().saturating_sub(before);
        let len = left.min(FRAME_BYTES as u64) as usize;
        if len == 0 {
            return Err(self.damaged("its body ends early"));
        }
        self.frame.resize(len + TAG_BYTES, 0);
        let read = template
            .file
            .read_at(BODY_AT + framed(before), &mut self.frame);
        read.map_err(|source| TemplateError::Io {
            step: "read",
            file: template.name.clone(),
            source,
        })?;
        let place = Place::Body(number);
        if !template.cipher.open(place, &[], &mut self.frame) {
            return Err(self.damaged("its body"));
        }
        self.number = Some(number);
        Ok(())
    }

    fn damaged(&self, what: &'static str) -> TemplateError {
        TemplateError::Damaged {
            file: self.template.name.clone(),
            what,
        }
    }
}

#[cfg(test)]
mod tests;
