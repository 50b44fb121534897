//! Where a backup lies: a folder of whole, named objects, on a disk or in a bucket.
//!
//! An object is written once, under a name that nothing else has, and is never changed: it is there whole or not at all. One object, the
//! manifest, is replaced, and whoever reads it finds the old one or the new one. Nothing more is asked of the place, so a bucket can stand
//! where the folder does ([`super::bucket`]): its parts are uploads in pieces, its objects appear when they are complete. Objects can be read by their owner
//! only; in a bucket that is for its owner to see to. What the names mean is for [`super::manifest`] to say.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use dedup_store::disk::{Disk, DiskFile, Open};
use dedup_store::{PACK_DIR, PackNumber};

use super::bucket::{Bucket, Upload};

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

/// What lies under it.
enum Place {
    Disk(Arc<dyn Disk>),
    Bucket(Box<Bucket>),
}

/// The folder.
pub struct Folder {
    place: Place,
    shown: String,
}

/// An object that is being written.
pub struct Part<'a> {
    folder: &'a Folder,
    name: String,
    sink: Sink<'a>,
    len: u64,
    hasher: blake3::Hasher,
}

/// Where its bytes go.
enum Sink<'a> {
    File(&'a Arc<dyn Disk>, Arc<dyn DiskFile>),
    Upload(Upload<'a>),
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
            place: Place::Disk(disk),
            shown: shown.into(),
        }
    }

    /// A folder in a bucket, called `shown` in errors.
    pub fn in_bucket(bucket: Bucket, shown: impl Into<String>) -> Self {
        Self {
            place: Place::Bucket(Box::new(bucket)),
            shown: shown.into(),
        }
    }

    /// What it is called.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    fn fail<'a, E>(&'a self, action: &'static str, name: &'a str) -> impl FnOnce(E) -> FolderError
    where
        io::Error: From<E>,
    {
        move |source| FolderError {
            folder: self.shown.clone(),
            action,
            name: name.to_owned(),
            source: source.into(),
        }
    }

    /// Makes it ready to be written to.
    pub fn prepare(&self) -> Result<(), FolderError> {
        match &self.place {
            Place::Disk(disk) => disk
                .create_dir(PACK_DIR)
                .map_err(self.fail("make the folder", PACK_DIR)),
            Place::Bucket(bucket) => bucket
                .give_up_parts()
                .map_err(self.fail("look for unfinished uploads", "in the bucket")),
        }
    }

    /// Names directly in `dir`, whole objects or not.
    pub fn list(&self, dir: &str) -> Result<Vec<String>, FolderError> {
        match &self.place {
            Place::Disk(disk) => disk.list(dir).map_err(self.fail("list", dir)),
            Place::Bucket(bucket) => bucket.list(dir).map_err(self.fail("list", dir)),
        }
    }

    /// Begins to write an object. What an earlier writer left of it is dropped.
    pub fn begin(&self, name: &str) -> Result<Part<'_>, FolderError> {
        let sink = match &self.place {
            Place::Disk(disk) => self.begin_file(disk, name)?,
            Place::Bucket(bucket) => Sink::Upload(Upload::new(bucket, name)),
        };
        Ok(Part {
            folder: self,
            name: name.to_owned(),
            sink,
            len: 0,
            hasher: blake3::Hasher::new(),
        })
    }

    fn begin_file<'a>(
        &'a self,
        disk: &'a Arc<dyn Disk>,
        name: &str,
    ) -> Result<Sink<'a>, FolderError> {
        let part = format!("{name}{PART}");
        match disk.remove(&part) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(self.fail("remove", &part)(e));
            }
            _ => {}
        }
        let file = disk
            .open(&part, Open::CreateNew)
            .map_err(self.fail("create", &part))?;
        Ok(Sink::File(disk, file))
    }

    /// Writes an object at once.
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<Sum, FolderError> {
        if let Place::Bucket(bucket) = &self.place {
            bucket
                .put(name, Bytes::copy_from_slice(bytes))
                .map_err(self.fail("write", name))?;
            return Ok(Sum::of(bytes));
        }
        let mut part = self.begin(name)?;
        part.write(bytes)?;
        part.finish()
    }

    /// Makes the names of all objects durable that are whole by now.
    pub fn settle(&self) -> Result<(), FolderError> {
        // A bucket answers when an object is durable.
        if let Place::Disk(disk) = &self.place {
            for dir in [PACK_DIR, ""] {
                disk.sync_dir(dir).map_err(self.fail("sync", dir))?;
            }
        }
        Ok(())
    }

    /// The object's file on a disk, if it is there.
    fn file(
        &self,
        disk: &Arc<dyn Disk>,
        name: &str,
    ) -> Result<Option<Arc<dyn DiskFile>>, FolderError> {
        match disk.open(name, Open::Read) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.fail("open", name)(e)),
        }
    }

    /// An object's length, if it is there.
    pub fn len(&self, name: &str) -> Result<Option<u64>, FolderError> {
        match &self.place {
            Place::Disk(disk) => {
                let file = self.file(disk, name)?;
                let len = file.map(|file| file.len()).transpose();
                len.map_err(self.fail("measure", name))
            }
            Place::Bucket(bucket) => bucket.len(name).map_err(self.fail("measure", name)),
        }
    }

    /// An object's bytes, if it is there and not longer than `bytes_max`; `Ok(Err(length))` if it is longer.
    pub fn get(
        &self,
        name: &str,
        bytes_max: u64,
    ) -> Result<Option<Result<Vec<u8>, u64>>, FolderError> {
        let Some(len) = self.len(name)? else {
            return Ok(None);
        };
        if len > bytes_max {
            return Ok(Some(Err(len)));
        }
        let mut bytes = Vec::with_capacity(len as usize);
        let shown = self.stream(name, &mut |piece| bytes.extend_from_slice(piece))?;
        Ok(shown.map(|_| Ok(bytes)))
    }

    /// Shows an object's bytes, piece by piece, and answers their sum; `None` if it is not there.
    pub fn stream(
        &self,
        name: &str,
        piece: &mut dyn FnMut(&[u8]),
    ) -> Result<Option<Sum>, FolderError> {
        const PIECE: u64 = 1 << 20;
        let mut hasher = blake3::Hasher::new();
        let disk = match &self.place {
            Place::Disk(disk) => disk,
            Place::Bucket(bucket) => {
                let shown = bucket.stream(name, &mut |bytes| {
                    hasher.update(bytes);
                    piece(bytes);
                });
                let len = shown.map_err(self.fail("read", name))?;
                return Ok(len.map(|bytes| Sum {
                    bytes,
                    blake3: *hasher.finalize().as_bytes(),
                }));
            }
        };
        let Some(file) = self.file(disk, name)? else {
            return Ok(None);
        };
        let len = file.len().map_err(self.fail("measure", name))?;
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
        match &self.place {
            Place::Disk(disk) => disk.remove(name).map_err(self.fail("remove", name)),
            Place::Bucket(bucket) => bucket.remove(name).map_err(self.fail("remove", name)),
        }
    }
}

impl Part<'_> {
    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FolderError> {
        let failed = |source| FolderError {
            folder: self.folder.shown.clone(),
            action: "write",
            name: self.name.clone(),
            source,
        };
        match &mut self.sink {
            Sink::File(_, file) => file.write_at(self.len, bytes).map_err(failed)?,
            Sink::Upload(upload) => upload.write(bytes).map_err(|e| failed(e.into()))?,
        }
        self.len += bytes.len() as u64;
        self.hasher.update(bytes);
        Ok(())
    }

    /// Makes its bytes durable and gives it its name; [`Folder::settle`] makes that durable.
    pub fn finish(self) -> Result<Sum, FolderError> {
        let (folder, name) = (self.folder, self.name.as_str());
        match self.sink {
            Sink::File(disk, file) => {
                file.sync().map_err(folder.fail("sync", name))?;
                disk.rename(&format!("{name}{PART}"), name)
                    .map_err(folder.fail("rename", name))?;
            }
            Sink::Upload(upload) => upload.finish().map_err(folder.fail("write", name))?,
        }
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
