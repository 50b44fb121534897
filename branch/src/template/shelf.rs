//! The templates of this branch: which are there, which are in memory, and what went wrong with others.
//!
//! Invariant: a template that is found to be of no use is removed before anything else is done, and is not made again at once. No lock is held while a
//! file is read or removed, but the one by which a template is thawed once for all who want it at the same time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use dedup_store::disk::{Disk, Open};

use super::file::{DIR, PARTIAL, path};
use super::{Identity, TemplateError, TemplateFile, TemplateSecret, Thawed, Writer};
use crate::volume::Base;

/// How long a template stays in memory after a machine went on from it: people come to work within minutes of each other.
const WARM: Duration = Duration::from_secs(300);
/// After what time one is made again that could not be made, or was removed because something was wrong with it.
const AGAIN: Duration = Duration::from_secs(1800);

/// How a template stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is there.
    Ready {
        /// Bytes of its file.
        bytes: u64,
        /// Whether it is in memory.
        warm: bool,
    },
    /// It is being made.
    Making,
    /// It is not there, and why not.
    Missing(String),
    /// It is to be made.
    Wanted,
}

#[derive(Default)]
struct Known {
    is_making: bool,
    trouble: Option<(String, Instant)>,
    warm: Option<(Arc<Thawed>, Instant)>,
}

/// See the module.
pub struct Shelf {
    disk: Arc<dyn Disk>,
    secret: TemplateSecret,
    known: Mutex<HashMap<Identity, Known>>,
    thawing: Mutex<()>,
    is_stopping: AtomicBool,
}

impl Shelf {
    /// Those in `templates/` on `disk`. What was being made when the server ended is removed.
    pub fn open(disk: Arc<dyn Disk>, secret: TemplateSecret) -> Self {
        let shelf = Self {
            disk,
            secret,
            known: Mutex::default(),
            thawing: Mutex::default(),
            is_stopping: AtomicBool::new(false),
        };
        for name in shelf.names() {
            if name.ends_with(PARTIAL) {
                shelf.remove_file(&name, "it was not whole");
            }
        }
        shelf
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Identity, Known>> {
        self.known.lock().expect("no panic under this lock")
    }

    /// Names of all files; none where they cannot be had.
    fn names(&self) -> Vec<String> {
        self.disk.list(DIR).unwrap_or_else(|error| {
            tracing::error!(%error, "templates cannot be listed");
            Vec::new()
        })
    }

    fn remove_file(&self, name: &str, why: &str) {
        let removed = self.disk.remove(&path(name));
        let removed = removed.and_then(|()| self.disk.sync_dir(DIR));
        match removed {
            Ok(()) => tracing::info!(template = name, why, "removed"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::error!(template = name, why, %error, "not removed"),
        }
    }

    /// Whoever makes one is to leave off.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Release);
    }

    /// Whether that was said.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    /// How a template stands.
    pub fn standing(&self, identity: &Identity) -> Standing {
        let file = self.disk.open(&path(&identity.file_name()), Open::Read);
        let bytes = file.and_then(|file| file.len()).ok();
        let known = self.known();
        let known = known.get(identity);
        if known.is_some_and(|known| known.is_making) {
            return Standing::Making;
        }
        if let Some(bytes) = bytes {
            let warm = known.is_some_and(|known| known.warm.is_some());
            return Standing::Ready { bytes, warm };
        }
        match known.and_then(|known| known.trouble.as_ref()) {
            Some((why, _)) => Standing::Missing(why.clone()),
            None => Standing::Wanted,
        }
    }

    /// Whether a template is to be made now: it is not there, and was not tried lately.
    pub fn is_due(&self, identity: &Identity) -> bool {
        match self.standing(identity) {
            Standing::Wanted => true,
            Standing::Missing(_) => {
                let known = self.known();
                let trouble = known.get(identity).and_then(|known| known.trouble.as_ref());
                trouble.is_none_or(|(_, at)| at.elapsed() >= AGAIN)
            }
            Standing::Ready { .. } | Standing::Making => false,
        }
    }

    /// Begins to write a template.
    ///
    /// # Errors
    /// The disk fails.
    pub fn write(&self, identity: &Identity) -> Result<Writer<'_>, TemplateError> {
        let id = rand::random();
        Writer::create(&*self.disk, &identity.file_name(), &self.secret, id)
    }

    /// Notes that a template is being made.
    pub fn begins(&self, identity: &Identity) {
        self.known().entry(identity.clone()).or_default().is_making = true;
    }

    /// Notes that it is made, or why not. What was written of it then is removed.
    pub fn ended(&self, identity: &Identity, result: Result<(), String>) {
        if result.is_err() {
            let partial = format!("{}{PARTIAL}", identity.file_name());
            self.remove_file(&partial, "it is not made");
        }
        let mut known = self.known();
        let known = known.entry(identity.clone()).or_default();
        known.is_making = false;
        known.trouble = result.err().map(|why| (why, Instant::now()));
    }

    /// A template in memory, from which machines go on; none if there is none.
    ///
    /// # Errors
    /// It is of no use, and removed, or cannot be had now.
    pub fn thawed(
        &self,
        identity: &Identity,
        base: &dyn Base,
        enough: &dyn Fn() -> bool,
    ) -> Result<Option<Arc<Thawed>>, TemplateError> {
        let _one = self.thawing.lock().expect("no panic under this lock");
        if let Some(known) = self.known().get_mut(identity)
            && let Some((thawed, used)) = &mut known.warm
        {
            *used = Instant::now();
            return Ok(Some(Arc::clone(thawed)));
        }
        let name = identity.file_name();
        let read = TemplateFile::open(&*self.disk, &name, &self.secret).and_then(|template| {
            let Some(template) = template else {
                return Ok(None);
            };
            if template.head().identity != *identity {
                let (file, what) = (name.clone(), "it is of something else");
                return Err(TemplateError::Damaged { file, what });
            }
            Thawed::read(template, base, enough).map(Some)
        });
        let read = read.inspect_err(|error| {
            if error.is_spoiled() {
                self.give_up(identity, &crate::desktop::error_line(error));
            }
        });
        let Some(thawed) = read?.map(Arc::new) else {
            return Ok(None);
        };
        let warm = (Arc::clone(&thawed), Instant::now());
        self.known().entry(identity.clone()).or_default().warm = Some(warm);
        Ok(Some(thawed))
    }

    /// Removes a template that is of no use.
    pub fn give_up(&self, identity: &Identity, why: &str) {
        self.remove_file(&identity.file_name(), why);
        let mut known = self.known();
        let known = known.entry(identity.clone()).or_default();
        known.warm = None;
        known.trouble = Some((why.to_owned(), Instant::now()));
    }

    /// Removes all templates but these, and lets go of memory that no machine asked for lately.
    pub fn retain(&self, wanted: &[Identity]) {
        let kept: Vec<String> = wanted.iter().map(Identity::file_name).collect();
        for name in self.names() {
            // One that is being made is removed by its maker.
            if !kept.contains(&name) && !name.ends_with(PARTIAL) {
                self.remove_file(&name, "no pool has a use for it");
            }
        }
        let mut known = self.known();
        known.retain(|identity, known| known.is_making || wanted.contains(identity));
        for known in known.values_mut() {
            known.warm.take_if(|(_, used)| used.elapsed() >= WARM);
        }
    }

    /// Gives all templates up, for what desktops write: they can be made again. Returns how many bytes came free.
    pub fn give_room(&self) -> u64 {
        let mut freed = 0;
        for name in self.names() {
            let file = self.disk.open(&path(&name), Open::Read);
            if !name.ends_with(PARTIAL) {
                freed += file.and_then(|file| file.len()).unwrap_or(0);
                self.remove_file(&name, "desktops have no room to write");
            }
        }
        for known in self.known().values_mut() {
            known.warm = None;
            let why = "it was given up because the branch's disk was full".to_owned();
            known.trouble = Some((why, Instant::now()));
        }
        freed
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use dedup_store::disk::HostDisk;

    use super::super::Head;
    use super::super::head::tests::identity;
    use super::*;
    use crate::volume::NoBase;

    fn shelf(folder: &tempfile::TempDir) -> Shelf {
        let disk = Arc::new(HostDisk::new(folder.path()).unwrap());
        Shelf::open(disk, TemplateSecret::new(&[1; 32]))
    }

    fn head(identity: &Identity) -> Head {
        Head {
            identity: identity.clone(),
            made_unix_s: 1,
            agent: false,
            state_bytes: 3,
            blocks: Vec::new(),
            disk_bytes: 0,
            extents: Vec::new(),
            order: Vec::new(),
        }
    }

    fn make(shelf: &Shelf, identity: &Identity, head: &Head) {
        shelf.begins(identity);
        assert_eq!(shelf.standing(identity), Standing::Making);
        assert!(!shelf.is_due(identity));
        let mut writer = shelf.write(identity).unwrap();
        writer.write(b"abc").unwrap();
        writer.finish(head).unwrap();
        shelf.ended(identity, Ok(()));
    }

    fn thaw(shelf: &Shelf, identity: &Identity) -> Result<Option<Arc<Thawed>>, TemplateError> {
        shelf.thawed(identity, &NoBase, &|| false)
    }

    #[test]
    fn a_template_is_there_until_no_pool_wants_it() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = shelf(&folder);
        let identity = identity();
        assert_eq!(shelf.standing(&identity), Standing::Wanted);
        assert!(shelf.is_due(&identity) && thaw(&shelf, &identity).unwrap().is_none());
        make(&shelf, &identity, &head(&identity));
        let is_warm = || match shelf.standing(&identity) {
            Standing::Ready { bytes, warm } => {
                assert!(bytes > 4096);
                warm
            }
            other => panic!("{other:?}"),
        };
        assert!(!is_warm());
        let first = thaw(&shelf, &identity).unwrap().unwrap();
        let second = thaw(&shelf, &identity).unwrap().unwrap();
        assert!(Arc::ptr_eq(&first, &second) && is_warm());
        shelf.retain(std::slice::from_ref(&identity));
        assert!(is_warm());
        shelf.retain(&[]);
        assert_eq!(shelf.standing(&identity), Standing::Wanted);
    }

    #[test]
    fn one_that_is_of_no_use_is_removed_and_made_again_later() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = shelf(&folder);
        let identity = identity();
        let other = Identity {
            vcpus: 9,
            ..identity.clone()
        };
        // Under its name, but of something else.
        let file = path(&identity.file_name());
        let mut writer = shelf.write(&other).unwrap();
        writer.write(b"abc").unwrap();
        writer.finish(&head(&other)).unwrap();
        shelf.disk.rename(&path(&other.file_name()), &file).unwrap();
        let refused = thaw(&shelf, &identity).err().unwrap();
        assert!(refused.to_string().contains("something else"), "{refused}");
        let Standing::Missing(why) = shelf.standing(&identity) else {
            panic!("it is removed");
        };
        assert!(why.contains("something else"), "{why}");
        assert!(!shelf.is_due(&identity), "not at once");
        make(&shelf, &identity, &head(&identity));
        // Cut.
        let path = folder.path().join(file);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(thaw(&shelf, &identity).err().unwrap().is_spoiled());
        assert!(!path.exists());
    }

    #[test]
    fn what_was_not_finished_is_removed_and_what_takes_room_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let identity = identity();
        {
            let shelf = shelf(&folder);
            let mut writer = shelf.write(&identity).unwrap();
            writer.write(b"a").unwrap();
        }
        let shelf = shelf(&folder);
        assert_eq!(shelf.names(), [""; 0]);
        shelf.begins(&identity);
        let _writer = shelf.write(&identity).unwrap();
        shelf.retain(&[]);
        assert_eq!(shelf.names().len(), 1, "its maker has it");
        shelf.ended(&identity, Err("no agent".into()));
        assert_eq!(shelf.names(), [""; 0]);
        let missing = Standing::Missing("no agent".into());
        assert_eq!(shelf.standing(&identity), missing);
        make(&shelf, &identity, &head(&identity));
        assert!(shelf.give_room() > 4096);
        assert!(matches!(shelf.standing(&identity), Standing::Missing(_)));
        assert_eq!(shelf.give_room(), 0);
        assert!(!shelf.is_stopping());
        shelf.stop();
        assert!(shelf.is_stopping());
    }
}
