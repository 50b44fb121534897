//! The keys on the disk: `DATA/keys`.
//!
//! | file | content |
//! |---|---|
//! | `branch.key` | the branch key, under what opens it |
//! | `branch.next` | only while the branch key is changed: the new one |
//! | `unlock.key` | the key file, if that is the mode: 64 hexadecimal digits |
//! | `cache.key` | the cache's key, under the branch key |
//! | `plain.key` | only until the first start has seen all overlays: a token under the branch key that lets those in the clear be taken |
//! | `wipe.order` | the order by which all of them were destroyed: [`super::wipe`] |
//! | `desktops/NAME.key` | a desktop's key, under the branch key; `NAME.user.key`: its user volume's |
//!
//! Invariant: a file is replaced whole or not at all, and a key is durable before anything is encrypted with it. Changing the branch key
//! can stop at any moment: each file says which branch key it is under, both are there until the last file is done, and the next opening
//! goes on. It does not decide when keys change, and keeps no key of a desktop in memory.

use std::sync::{Arc, Mutex, MutexGuard};

use dedup_store::disk::{Disk, Open};
use zeroize::Zeroizing;

use super::error::KeyError;
use super::files::{destroy, io_error, overwrite, read, replace};
use super::key_file::{UNLOCK, make_key_file, unlock_for};
use super::unlock::{BranchKeyFile, Mode, Unlock, UnlockError};
use super::wipe;
use super::wrap::{DataKey, Purpose, Secret, WrapError};
use crate::volume::{FillRandom, OverlayKey, OverlayState};

pub(super) const BRANCH: &str = "branch.key";
pub(super) const NEXT: &str = "branch.next";
const CACHE: &str = "cache.key";
const PLAIN: &str = "plain.key";
pub(super) const DESKTOPS: &str = "desktops";

/// Figures about the keys, for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyStatus {
    /// How the branch key is protected.
    pub mode: Mode,
    /// Public name of the branch key.
    pub key_id: [u8; 8],
    /// Keys of desktops: one for the system of each, one for each user volume.
    pub desktops: u64,
    /// Whether the cache has a key.
    pub cache: bool,
    /// Whether a change of the branch key was cut; the next start completes it.
    pub is_changing: bool,
}

/// The keys of a branch, unlocked.
pub struct KeyStore {
    disk: Arc<dyn Disk>,
    random: FillRandom,
    state: Mutex<State>,
}

struct State {
    branch_key: Secret,
    mode: Mode,
    /// All keys were destroyed: none is made or opened any more.
    is_wiped: bool,
}

impl KeyStore {
    /// Opens the keys on `disk`, making a branch key if there is none: under `passphrase` if one is given, else under a key file that
    /// is made beside it. Completes a change of the branch key that was cut.
    ///
    /// # Errors
    /// [`KeyError::Unlock`], [`KeyError::NoKeyFile`], [`KeyError::Data`], [`KeyError::Io`]; [`KeyError::Wiped`] if an order to destroy them was
    /// begun, which is completed first.
    pub fn open(
        disk: Arc<dyn Disk>,
        passphrase: Option<Zeroizing<Vec<u8>>>,
        random: FillRandom,
    ) -> Result<Self, KeyError> {
        disk.create_dir(DESKTOPS)
            .map_err(io_error(DESKTOPS, "create the directory"))?;
        if wipe::wiped(&*disk)?.is_some() {
            wipe::destroy_all(&*disk, random)?;
            return Err(KeyError::Wiped);
        }
        let Some(file) = load_branch_key(&*disk, BRANCH)? else {
            return Self::create(disk, passphrase, random);
        };
        let unlock = unlock_for(&*disk, file.mode, passphrase)?;
        let branch_key = file.open(&unlock).map_err(unlock_error(BRANCH))?;
        let store = Self {
            disk,
            random,
            state: Mutex::new(State {
                branch_key,
                mode: file.mode,
                is_wiped: false,
            }),
        };
        if let Some(next) = load_branch_key(&*store.disk, NEXT)? {
            let next_key = next.open(&unlock).map_err(unlock_error(NEXT))?;
            tracing::info!("going on with a change of the branch key that was cut");
            // A process that died may have given a file its name and not made that durable: the new key's, which the others depend on
            // from now on, or one of those that are done.
            for dir in ["", DESKTOPS] {
                store.disk.sync_dir(dir).map_err(io_error(dir, "sync"))?;
            }
            store.change(&mut store.lock(), next_key)?;
        }
        Ok(store)
    }

    fn create(
        disk: Arc<dyn Disk>,
        passphrase: Option<Zeroizing<Vec<u8>>>,
        random: FillRandom,
    ) -> Result<Self, KeyError> {
        // Without the branch key the others are noise, and a new one would hide that.
        for dir in ["", DESKTOPS] {
            for name in disk.list(dir).map_err(io_error(dir, "list"))? {
                if name.ends_with(".key") && name != UNLOCK && name != PLAIN {
                    return Err(KeyError::NoBranchKey {
                        file: join(dir, &name),
                    });
                }
            }
        }
        let unlock = match passphrase {
            Some(passphrase) => Unlock::Passphrase(passphrase),
            None => make_key_file(&*disk, random)?,
        };
        let branch_key = Secret::random(random);
        let file = BranchKeyFile::seal(&branch_key, &unlock, random);
        let file = file.map_err(unlock_error(BRANCH))?;
        // Before the branch key, so that a stop in between forgets no overlay that an earlier release wrote.
        let token = DataKey::seal(
            &Secret::random(random),
            (Purpose::Adoption, [0; 16]),
            false,
            &branch_key,
            random,
        );
        replace(&*disk, PLAIN, &token.encode())?;
        replace(&*disk, BRANCH, &file.encode())?;
        Ok(Self {
            disk,
            random,
            state: Mutex::new(State {
                branch_key,
                mode: file.mode,
                is_wiped: false,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }

    /// The state, if there are still keys.
    fn live(&self) -> Result<MutexGuard<'_, State>, KeyError> {
        let state = self.lock();
        if state.is_wiped {
            return Err(KeyError::Wiped);
        }
        Ok(state)
    }

    /// Destroys all keys, on the disk and here, by an order that is kept as it was signed. What was handed out before is its holders' to forget.
    ///
    /// # Errors
    /// [`KeyError::Io`]; what is done stays done, and the next opening goes on.
    pub fn wipe(&self, order: &[u8]) -> Result<(), KeyError> {
        let mut state = self.lock();
        state.is_wiped = true;
        state.branch_key = Secret::random(self.random);
        wipe::wipe(&*self.disk, order, self.random)
    }

    /// How the branch key is protected.
    pub fn mode(&self) -> Mode {
        self.lock().mode
    }

    /// Figures for operators, of keys that need not be opened for it; none if there is no branch key yet.
    ///
    /// # Errors
    /// [`KeyError::Unlock`] for a damaged file, [`KeyError::Io`].
    pub fn status(disk: &dyn Disk) -> Result<Option<KeyStatus>, KeyError> {
        let Some(file) = load_branch_key(disk, BRANCH)? else {
            return Ok(None);
        };
        Ok(Some(KeyStatus {
            mode: file.mode,
            key_id: file.key_id,
            desktops: desktop_files(disk)?.len() as u64,
            cache: read(disk, CACHE)?.is_some(),
            is_changing: read(disk, NEXT)?.is_some(),
        }))
    }

    /// The key of a desktop's overlay (`NAME`; of its user volume: `NAME.user`); made, and durable, if that overlay is absent, or in the clear and to
    /// be taken.
    ///
    /// # Errors
    /// [`KeyError::Destroyed`], [`KeyError::InTheClear`], [`KeyError::OtherDesktop`], [`KeyError::Data`], [`KeyError::Io`].
    pub fn desktop(
        &self,
        name: &str,
        id: &[u8; 16],
        overlay: OverlayState,
    ) -> Result<OverlayKey, KeyError> {
        let file = desktop_file(name);
        let state = self.live()?;
        let may_make = overlay != OverlayState::Plain || self.takes_plain(&state)?;
        let found = match self.load_data_key(&file) {
            // A destruction that was cut leaves a file of noise.
            Err(KeyError::Data { .. }) if overlay == OverlayState::Absent => None,
            found => found?,
        };
        let found = match found {
            Some(key) if key.owner == *id && key.purpose == Purpose::Desktop => Some(key),
            // Left over from a desktop of that name that was deleted.
            Some(_) if overlay == OverlayState::Absent => None,
            Some(_) => {
                return Err(KeyError::OtherDesktop {
                    name: owner(name).to_owned(),
                    file,
                });
            }
            None if overlay == OverlayState::Sealed => {
                return Err(KeyError::Destroyed {
                    name: owner(name).to_owned(),
                    file,
                    way_out: way_out(name),
                });
            }
            None if !may_make => {
                return Err(KeyError::InTheClear {
                    name: owner(name).to_owned(),
                    file,
                    way_out: way_out(name),
                });
            }
            None => None,
        };
        let (secret, takes_plain) = match found {
            Some(key) => (
                key.open(&state.branch_key).map_err(data_error(&file))?,
                key.takes_plain,
            ),
            None => {
                let secret = Secret::random(self.random);
                let takes_plain = overlay == OverlayState::Plain;
                let key = DataKey::seal(
                    &secret,
                    (Purpose::Desktop, *id),
                    takes_plain,
                    &state.branch_key,
                    self.random,
                );
                replace(&*self.disk, &file, &key.encode())?;
                (secret, takes_plain)
            }
        };
        let key = OverlayKey::new(*secret.bytes(), self.random);
        Ok(if takes_plain { key.taking_plain() } else { key })
    }

    /// Whether overlays in the clear are taken. Only the branch key makes the token, so nobody else can have one taken later by putting
    /// it in the place of an encrypted one whose key they remove.
    fn takes_plain(&self, state: &State) -> Result<bool, KeyError> {
        let token = match self.load_data_key(PLAIN) {
            Err(KeyError::Data { .. }) => None,
            token => token?,
        };
        Ok(token.is_some_and(|token| {
            token.purpose == Purpose::Adoption && token.open(&state.branch_key).is_ok()
        }))
    }

    /// Whether the first start has not seen all overlays yet.
    ///
    /// # Errors
    /// [`KeyError::Io`].
    pub fn is_adopting(&self) -> Result<bool, KeyError> {
        self.takes_plain(&self.lock())
    }

    /// Every overlay that there was at the first start has its key: from now on none in the clear is taken.
    ///
    /// # Errors
    /// [`KeyError::Io`].
    pub fn end_adoption(&self) -> Result<(), KeyError> {
        let _state = self.lock();
        destroy(&*self.disk, PLAIN, self.random)
    }

    /// Notes that a desktop's overlay is encrypted now: one in the clear is not taken in its place any more.
    ///
    /// # Errors
    /// [`KeyError::Data`], [`KeyError::Io`].
    pub fn desktop_is_sealed(&self, name: &str) -> Result<(), KeyError> {
        let file = desktop_file(name);
        let state = self.live()?;
        let Some(key) = self.load_data_key(&file)?.filter(|key| key.takes_plain) else {
            return Ok(());
        };
        let secret = key.open(&state.branch_key).map_err(data_error(&file))?;
        let key = DataKey::seal(
            &secret,
            (key.purpose, key.owner),
            false,
            &state.branch_key,
            self.random,
        );
        replace(&*self.disk, &file, &key.encode())
    }

    /// Destroys a desktop's key, and so whatever lies under it, wherever it lies. Nothing happens if there is none.
    ///
    /// The file is overwritten before it is removed. Where the disk keeps old blocks (flash, copy-on-write file systems), a change of the
    /// branch key makes sure: what was wrapped under the old one is noise then.
    ///
    /// # Errors
    /// [`KeyError::Io`].
    pub fn destroy_desktop(&self, name: &str) -> Result<(), KeyError> {
        let _state = self.lock();
        destroy(&*self.disk, &desktop_file(name), self.random)
    }

    /// The cache's key, made if there is none.
    ///
    /// # Errors
    /// [`KeyError::Data`], [`KeyError::Io`].
    pub fn cache(&self) -> Result<Secret, KeyError> {
        let state = self.live()?;
        let opened = self.load_data_key(CACHE).and_then(|found| {
            found
                .filter(|key| key.purpose == Purpose::Cache)
                .map(|key| key.open(&state.branch_key).map_err(data_error(CACHE)))
                .transpose()
        });
        match opened {
            Ok(Some(secret)) => return Ok(secret),
            Ok(None) => {}
            // What it kept can be fetched again, so this is no reason to stop.
            Err(error @ KeyError::Data { .. }) => {
                let error = crate::desktop::error_line(&error);
                tracing::warn!(error, "the cache starts empty");
            }
            Err(error) => return Err(error),
        }
        let secret = Secret::random(self.random);
        let key = DataKey::seal(
            &secret,
            (Purpose::Cache, [0; 16]),
            false,
            &state.branch_key,
            self.random,
        );
        replace(&*self.disk, CACHE, &key.encode())?;
        Ok(secret)
    }

    /// Makes a new branch key and wraps all keys under it. No data is touched. Needs what opens the branch key once more.
    ///
    /// # Errors
    /// As [`KeyStore::open`]. What is done stays done, and the next opening goes on.
    pub fn rotate(&self, passphrase: Option<Zeroizing<Vec<u8>>>) -> Result<(), KeyError> {
        let mut state = self.live()?;
        let unlock = unlock_for(&*self.disk, state.mode, passphrase)?;
        // It must be what opens the key at the next start as well.
        let file = load_branch_key(&*self.disk, BRANCH)?;
        let file = file
            .ok_or(UnlockError::Damaged)
            .map_err(unlock_error(BRANCH))?;
        file.open(&unlock).map_err(unlock_error(BRANCH))?;
        // A key that does not open now never would again.
        for file in self.data_files()? {
            if let Some(key) = self.load_data_key(&file)? {
                key.open(&state.branch_key).map_err(data_error(&file))?;
            }
        }
        let next_key = Secret::random(self.random);
        let next = BranchKeyFile::seal(&next_key, &unlock, self.random);
        let next = next.map_err(unlock_error(NEXT))?;
        replace(&*self.disk, NEXT, &next.encode())?;
        self.change(&mut state, next_key)
    }

    /// Wraps every key under `next_key`, whose file is there, then makes that the branch key.
    fn change(&self, state: &mut State, next_key: Secret) -> Result<(), KeyError> {
        for file in self.data_files()? {
            let opened = match self.load_data_key(&file) {
                Ok(Some(key)) if key.branch_key != next_key.id() => key
                    .open(&state.branch_key)
                    .map(|secret| (key, secret))
                    .map_err(data_error(&file)),
                Ok(_) => continue,
                Err(error) => Err(error),
            };
            let (key, secret) = match opened {
                Ok(opened) => opened,
                // Damaged since the change began. The others must not wait for it.
                Err(error @ KeyError::Data { .. }) => {
                    let error = crate::desktop::error_line(&error);
                    tracing::error!(error, "a key is lost");
                    continue;
                }
                Err(error) => return Err(error),
            };
            let key = DataKey::seal(
                &secret,
                (key.purpose, key.owner),
                key.takes_plain,
                &next_key,
                self.random,
            );
            replace(&*self.disk, &file, &key.encode())?;
        }
        // Held open, so that its blocks can be overwritten once nothing needs them.
        let old = self
            .disk
            .open(BRANCH, Open::Write)
            .map_err(io_error(BRANCH, "open"))?;
        self.disk
            .rename(NEXT, BRANCH)
            .and_then(|()| self.disk.sync_dir(""))
            .map_err(io_error(BRANCH, "replace"))?;
        overwrite(&*old, self.random).map_err(io_error(BRANCH, "overwrite the old one"))?;
        state.branch_key = next_key;
        Ok(())
    }

    /// Protects the branch key in another way: by `unlock`, or by a key file that is made (`None`). The branch key stays.
    ///
    /// # Errors
    /// [`KeyError::Unlock`], [`KeyError::Io`].
    pub fn protect(&self, unlock: Option<Unlock>) -> Result<(), KeyError> {
        let mut state = self.live()?;
        let unlock = match unlock {
            Some(unlock) => unlock,
            None => make_key_file(&*self.disk, self.random)?,
        };
        let file = BranchKeyFile::seal(&state.branch_key, &unlock, self.random);
        let file = file.map_err(unlock_error(BRANCH))?;
        let old = self
            .disk
            .open(BRANCH, Open::Write)
            .map_err(io_error(BRANCH, "open"))?;
        replace(&*self.disk, BRANCH, &file.encode())?;
        overwrite(&*old, self.random).map_err(io_error(BRANCH, "overwrite the old one"))?;
        if file.mode != Mode::KeyFile {
            destroy(&*self.disk, UNLOCK, self.random)?;
        }
        state.mode = file.mode;
        Ok(())
    }

    fn data_files(&self) -> Result<Vec<String>, KeyError> {
        let mut files = desktop_files(&*self.disk)?;
        files.extend([CACHE, PLAIN].map(str::to_owned));
        Ok(files)
    }

    fn load_data_key(&self, file: &str) -> Result<Option<DataKey>, KeyError> {
        let Some(bytes) = read(&*self.disk, file)? else {
            return Ok(None);
        };
        DataKey::decode(&bytes).map(Some).map_err(data_error(file))
    }
}

fn desktop_files(disk: &dyn Disk) -> Result<Vec<String>, KeyError> {
    let mut files: Vec<String> = disk
        .list(DESKTOPS)
        .map_err(io_error(DESKTOPS, "list"))?
        .into_iter()
        .filter(|name| name.ends_with(".key"))
        .map(|name| join(DESKTOPS, &name))
        .collect();
    files.sort();
    Ok(files)
}

pub(super) fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() {
        name.to_owned()
    } else {
        format!("{dir}/{name}")
    }
}

fn desktop_file(name: &str) -> String {
    format!("{DESKTOPS}/{name}.key")
}

/// The desktop that a key's name belongs to. No desktop's name has a dot; what follows one says which of its keys it is.
fn owner(name: &str) -> &str {
    name.split_once('.').map_or(name, |(desktop, _)| desktop)
}

/// How to go on without what a key opened. A system can begin anew; nothing else of a desktop is given up with it.
fn way_out(name: &str) -> String {
    let desktop = owner(name);
    if desktop == name {
        format!("`splice desktop reset {desktop}` has its system begin anew")
    } else {
        format!("`splice desktop delete {desktop}` gives it up, and the desktop with it")
    }
}

fn data_error(file: &str) -> impl Fn(WrapError) -> KeyError + '_ {
    move |source| KeyError::Data {
        file: file.to_owned(),
        source,
    }
}

fn unlock_error(file: &'static str) -> impl Fn(UnlockError) -> KeyError {
    move |source| KeyError::Unlock { file, source }
}

fn load_branch_key(disk: &dyn Disk, file: &'static str) -> Result<Option<BranchKeyFile>, KeyError> {
    let Some(bytes) = read(disk, file)? else {
        return Ok(None);
    };
    BranchKeyFile::decode(&bytes)
        .map(Some)
        .map_err(unlock_error(file))
}
