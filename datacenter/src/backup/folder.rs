//! Where a backup lies: a folder of whole, named objects.
//!
//! An object is written once, under a name that nothing else has, and is never changed: it is there whole or not at all. One object, the
//! manifest, is replaced, and whoever reads it finds the old one or the new one. Nothing more is asked of the place, so a bucket can stand
//! where the folder does: its parts are uploads in pieces, its objects appear when they are complete. Objects can be read by their owner
//! only. What the names mean is for [`super::manifest`] to say.

use std::io;
use std::sync::Arc;

use dedup_store::disk::{Disk, DiskFile, Open};
use dedup_store::{PACK_DIR, PackNumber};

/// What the name of an object ends with until it is whole.
const PART: &str = ".new";

/// Why the folder could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{folder}: cannot {action} {name}")]
pub struct FolderError {
    folder: String,
    action: &'static str,
    name: String,
    /// The system's answer.
    source: io::Error,
}

impl FolderError {
    /// Whether there is no room.
    pub fn is_no_space(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }
}

/// The folder.
pub struct Folder {
    disk: Arc<dyn Disk>,
    shown: String,
}

/// An object that is being written.
pub struct Part<'a> {
    folder: &'a Folder,
    name: String,
    file: Arc<dyn DiskFile>,
    len: u64,
    hasher: blake3::Hasher,
}

/// What an object's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum {
    /// How many.
    pub bytes: u64,
    /// Their BLAKE3.
    pub blake3: [u8; 32],
}

impl Sum {
    /// Of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.len() as u64,
            blake3: *blake3::hash(bytes).as_bytes(),
        }
    }
}

impl Folder {
    /// The root of `disk`, called `shown` in errors.
    pub fn new(disk: Arc<dyn Disk>, shown: impl Into<String>) -> Self {
        Self {
            disk,
            shown: shown.into(),
        }
    }

    /// What it is called.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    fn fail<'a>(
        &'a self,
        action: &'static str,
        name: &'a str,
    ) -> impl FnOnce(io::Error) -> FolderError + 'a {
        move |source| FolderError {
            folder: self.shown.clone(),
            action,
            name: name.into(),
            source,
        }
    }

    /// Makes it ready to be written to.
    pub fn prepare(&self) -> Result<(), FolderError> {
        self.disk
            .create_dir(PACK_DIR)
            .map_err(self.fail("make the folder", PACK_DIR))
    }

    /// Free space, in bytes.
    pub fn available_bytes(&self) -> Result<u64, FolderError> {
        self.disk
            .available_bytes()
            .map_err(self.fail("measure the free space of", "the disk"))
    }

    /// Names directly in `dir`, whole objects or not.
    pub fn list(&self, dir: &str) -> Result<Vec<String>, FolderError> {
        self.disk.list(dir).map_err(self.fail("list", dir))
    }

    /// Begins to write an object. What an earlier writer left of it is dropped.
    pub fn begin(&self, name: &str) -> Result<Part<'_>, FolderError> {
        let part = format!("{name}{PART}");
        match self.disk.remove(&part) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(self.fail("remove", &part)(e));
            }
            _ => {}
        }
        let file = self
            .disk
            .open(&part, Open::CreateNew)
            .map_err(self.fail("create", &part))?;
        Ok(Part {
            folder: self,
            name: name.into(),
            file,
            len: 0,
            hasher: blake3::Hasher::new(),
        })
    }

    /// Writes an object at once.
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<Sum, FolderError> {
        let mut part = self.begin(name)?;
        part.write(bytes)?;
        part.finish()
    }

    /// Makes the names of all objects durable that are whole by now.
    pub fn settle(&self) -> Result<(), FolderError> {
        for dir in [PACK_DIR, ""] {
            self.disk.sync_dir(dir).map_err(self.fail("sync", dir))?;
        }
        Ok(())
    }

    /// An object's length, if it is there.
    pub fn len(&self, name: &str) -> Result<Option<u64>, FolderError> {
        match self.disk.open(name, Open::Read) {
            Ok(file) => file.len().map(Some).map_err(self.fail("measure", name)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.fail("open", name)(e)),
        }
    }

    /// An object's bytes, if it is there and not longer than `bytes_max`; `Ok(Err(length))` if it is longer.
    pub fn get(
        &self,
        name: &str,
        bytes_max: u64,
    ) -> Result<Option<Result<Vec<u8>, u64>>, FolderError> {
        let file = match self.disk.open(name, Open::Read) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(self.fail("open", name)(e)),
        };
        let len = file.len().map_err(self.fail("measure", name))?;
        if len > bytes_max {
            return Ok(Some(Err(len)));
        }
        let mut bytes = vec![0; len as usize];
        file.read_at(0, &mut bytes)
            .map_err(self.fail("read", name))?;
        Ok(Some(Ok(bytes)))
    }

    /// Shows an object's bytes, piece by piece, and answers their sum; `None` if it is not there.
    pub fn stream(
        &self,
        name: &str,
        piece: &mut dyn FnMut(&[u8]),
    ) -> Result<Option<Sum>, FolderError> {
        const PIECE: u64 = 1 << 20;
        let file = match self.disk.open(name, Open::Read) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(self.fail("open", name)(e)),
        };
        let len = file.len().map_err(self.fail("measure", name))?;
        let mut hasher = blake3::Hasher::new();
        let mut bytes: Vec<u8> = Vec::new();
        let mut at = 0;
        while at < len {
            bytes.resize((len - at).min(PIECE) as usize, 0);
            file.read_at(at, &mut bytes)
                .map_err(self.fail("read", name))?;
            hasher.update(&bytes);
            piece(&bytes);
            at += bytes.len() as u64;
        }
        Ok(Some(Sum {
            bytes: len,
            blake3: *hasher.finalize().as_bytes(),
        }))
    }

    /// Removes an object.
    pub fn remove(&self, name: &str) -> Result<(), FolderError> {
        self.disk.remove(name).map_err(self.fail("remove", name))
    }
}

impl Part<'_> {
    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FolderError> {
        self.file
            .write_at(self.len, bytes)
            .map_err(self.folder.fail("write", &self.name))?;
        self.len += bytes.len() as u64;
        self.hasher.update(bytes);
        Ok(())
    }

    /// Makes its bytes durable and gives it its name; [`Folder::settle`] makes that durable.
    pub fn finish(self) -> Result<Sum, FolderError> {
        let (folder, name) = (self.folder, &self.name);
        self.file.sync().map_err(folder.fail("sync", name))?;
        folder
            .disk
            .rename(&format!("{name}{PART}"), name)
            .map_err(folder.fail("rename", name))?;
        Ok(Sum {
            bytes: self.len,
            blake3: *self.hasher.finalize().as_bytes(),
        })
    }
}

/// The pack that a name in the pack folder means, whole or not; `None` for what is not ours.
pub fn pack_of_name(name: &str) -> Option<PackNumber> {
    PackNumber::from_file_name(name.strip_suffix(PART).unwrap_or(name))
}

/// The name without the mark of an object that is not whole.
pub fn whole_name(name: &str) -> &str {
    name.strip_suffix(PART).unwrap_or(name)
}
