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
/// After what time one is made again that could not be made, or was removed because something was wrong with it; twice as long each time that it was,
/// because an image without an agent has none the next time either.
const AGAIN: Duration = Duration::from_secs(1800);
/// How often it is doubled at most: sixteen hours.
const DOUBLED_MAX: u32 = 5;

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
    /// How often there was any.
    troubles: u32,
    warm: Option<(Arc<Thawed>, Instant)>,
}

impl Known {
    fn note(&mut self, why: String) {
        self.trouble = Some((why, Instant::now()));
        self.troubles = self.troubles.saturating_add(1);
    }

    /// Whether it is to be tried again, `ago` after the last trouble.
    fn is_due(&self, ago: Duration) -> bool {
        let doubled = self.troubles.saturating_sub(1).min(DOUBLED_MAX);
        ago >= AGAIN * (1 << doubled)
    }
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
                known.get(identity).is_none_or(|known| {
                    let trouble = known.trouble.as_ref();
                    trouble.is_none_or(|(_, at)| known.is_due(at.elapsed()))
                })
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
        known.trouble = None;
        if let Err(why) = result {
            known.note(why);
        }
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
        known.note(why.to_owned());
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
            known.note("it was given up because the branch's disk was full".to_owned());
        }
        freed
    }
}

#[cfg(test)]
mod tests;
