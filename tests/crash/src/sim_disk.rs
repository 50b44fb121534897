//! A disk in memory that behaves as a real one does when the power goes.
//!
//! - What [`DiskFile::sync`] covered survives every cut. What it did not may be lost, applied, torn between 512-byte sectors and
//!   reordered; so may lengths, truncations and holes.
//! - Names (created, renamed, removed) may be lost one by one until [`Disk::sync_dir`] of their directory, a synced file included.
//! - [`SimDisk::crash`] is a power cut, [`SimDisk::clone_live`] the death of the process only: the kernel keeps what it has.
//! - Faults are set by hand and happen once: a stop after a number of operations, a full disk, EIO.
//!
//! It does not invent bit rot: [`SimDisk::corrupt`] does, where it is told to.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use dedup_store::disk::{Disk, DiskFile, Open};

use crate::content::{Change, Inode};
use crate::power::{Kind, Power, Step, eio, enospc, stopped};
use crate::rng::Rng;

/// The disk. Clones are handles of the same disk.
#[derive(Clone)]
pub struct SimDisk {
    world: Arc<Mutex<World>>,
    power: Arc<Power>,
}

#[derive(Debug, Clone)]
struct World {
    rng: Rng,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    pending_names: Vec<NameChange>,
    dirs: BTreeSet<String>,
    space: Option<u64>,
}

#[derive(Debug, Clone)]
enum NameChange {
    Create {
        name: String,
        inode: u64,
    },
    Remove {
        name: String,
    },
    Rename {
        from: String,
        to: String,
        inode: u64,
    },
}

impl NameChange {
    /// The directory whose sync makes this durable.
    fn dir(&self) -> &str {
        match self {
            NameChange::Create { name, .. } | NameChange::Remove { name } => dir_of(name),
            NameChange::Rename { to, .. } => dir_of(to),
        }
    }

    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            NameChange::Create { name, inode } => {
                names.insert(name.clone(), *inode);
            }
            NameChange::Remove { name } => {
                names.remove(name);
            }
            NameChange::Rename { from, to, inode } => {
                names.remove(from);
                names.insert(to.clone(), *inode);
            }
        }
    }
}

fn dir_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(dir, _)| dir)
}

fn plain(dir: &str) -> &str {
    dir.trim_matches('/').trim_start_matches("./")
}

impl SimDisk {
    /// An empty, endless disk. The seed decides what a failed sync leaves.
    pub fn new(seed: u64) -> Self {
        Self::boot(World {
            rng: Rng::new(seed),
            inodes: BTreeMap::new(),
            next_inode: 0,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending_names: Vec::new(),
            dirs: BTreeSet::from([String::new()]),
            space: None,
        })
    }

    fn boot(world: World) -> Self {
        Self {
            world: Arc::new(Mutex::new(world)),
            power: Arc::default(),
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }

    pub(crate) fn power(&self) -> &Arc<Power> {
        &self.power
    }

    /// The power goes and comes back: the disk as the next boot finds it, without faults. The same seed finds the same.
    /// This machine stops.
    pub fn crash(&self, seed: u64) -> SimDisk {
        self.power.stop_now();
        let mut rng = Rng::new(seed);
        let world = self.world();
        let mut names = world.durable_names.clone();
        for change in world.surviving_names(&mut rng) {
            change.apply(&mut names);
        }
        let mut inodes = BTreeMap::new();
        for inode in names.values() {
            inodes
                .entry(*inode)
                .or_insert_with(|| world.inodes[inode].rebooted(&mut rng));
        }
        Self::boot(World {
            rng,
            inodes,
            next_inode: world.next_inode,
            names: names.clone(),
            durable_names: names,
            pending_names: Vec::new(),
            dirs: world.dirs.clone(),
            space: world.space,
        })
    }

    /// The process dies, the kernel lives: the disk as the next process finds it, where what was not synced still may be lost by
    /// a later crash. This machine stops.
    pub fn clone_live(&self) -> SimDisk {
        self.power.stop_now();
        Self::boot(self.world().clone())
    }

    /// Lets `changes` more changing operations succeed (writes, syncs, names; and commits of a [`crate::SimKv`] on this machine),
    /// then stops: the next one may take effect but reports an error, as does everything after it.
    pub fn stop_after(&self, changes: u64) {
        self.power.stop_after(changes);
    }

    /// Whether the machine has stopped.
    pub fn is_stopped(&self) -> bool {
        self.power.is_stopped()
    }

    /// Changing operations since the boot; the range from which to draw [`Self::stop_after`].
    pub fn operations(&self) -> u64 {
        self.power.changes()
    }

    /// Limits the space of all named files to `bytes`, or lifts the limit. Space is counted in pages of 4,096 bytes.
    pub fn limit_space(&self, bytes: Option<u64>) {
        self.world().space = bytes;
    }

    /// Space that the named files take, in bytes.
    pub fn used_bytes(&self) -> u64 {
        self.world().used()
    }

    /// The `nth` operation of this kind from now on, counted from 1, fails with EIO, once. A sync that fails makes only some of its
    /// changes durable and forgets the others, and a later sync does not report them again.
    pub fn fail_nth(&self, kind: Kind, nth: u64) {
        self.power.fail_nth(kind, nth);
    }

    /// Overwrites bytes on the medium and in the cache, as rot does. The file must be there.
    pub fn corrupt(&self, name: &str, offset: u64, data: &[u8]) {
        let mut world = self.world();
        let inode = *world.names.get(name).expect("the file to corrupt exists");
        let inode = world.inode(inode);
        inode.change(Change::Write {
            offset,
            data: data.to_vec(),
        });
        inode.sync();
    }

    /// The content of a file as programs see it, for assertions.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let world = self.world();
        let live = &world.inodes[world.names.get(name)?].live;
        let mut bytes = vec![0; usize::try_from(live.len()).expect("tests use small files")];
        live.read(0, &mut bytes);
        Some(bytes)
    }

    /// Does one change of names: counted, and lost on EIO.
    fn change_names(
        &self,
        act: impl FnOnce(&mut World) -> io::Result<NameChange>,
    ) -> io::Result<()> {
        let step = self.power.step(Kind::Name)?;
        if step == Step::Fail {
            return Err(eio());
        }
        let mut world = self.world();
        let change = act(&mut world)?;
        change.apply(&mut world.names);
        world.pending_names.push(change);
        finish(step)
    }
}

fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world
        .lock()
        .expect("no code panics while it holds the world")
}

/// The answer of an operation that took effect.
fn finish(step: Step) -> io::Result<()> {
    match step {
        Step::Go => Ok(()),
        Step::Last => Err(stopped()),
        Step::Fail => Err(eio()),
    }
}

impl World {
    fn inode(&mut self, inode: u64) -> &mut Inode {
        self.inodes
            .get_mut(&inode)
            .expect("handles and names hold inodes that exist")
    }

    fn used(&self) -> u64 {
        self.names
            .values()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .map(|inode| self.inodes[inode].live.allocated())
            .sum()
    }

    /// How many bytes of `data` at `offset` fit.
    fn fitting(&self, inode: u64, offset: u64, data: &[u8]) -> usize {
        const PAGE: u64 = 4096;
        let Some(space) = self.space else {
            return data.len();
        };
        let mut free = space.saturating_sub(self.used());
        let live = &self.inodes[&inode].live;
        let mut fits = 0;
        while fits < data.len() {
            let at = offset + fits as u64;
            let piece = ((PAGE - at % PAGE) as usize).min(data.len() - fits);
            let cost = live.would_allocate(at, piece);
            if cost > free {
                break;
            }
            free -= cost;
            fits += piece;
        }
        fits
    }

    /// The changes of names that a cut leaves: per directory none, all, the first few, or each by its own luck.
    fn surviving_names(&self, rng: &mut Rng) -> Vec<NameChange> {
        let mut by_dir: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, change) in self.pending_names.iter().enumerate() {
            by_dir.entry(change.dir()).or_default().push(index);
        }
        let mut kept = BTreeSet::new();
        for indexes in by_dir.into_values() {
            match rng.below(4) {
                0 => {}
                1 => kept.extend(indexes),
                2 => {
                    let count = rng.below(indexes.len() as u64 + 1) as usize;
                    kept.extend(&indexes[..count]);
                }
                _ => kept.extend(indexes.into_iter().filter(|_| rng.one_in(2))),
            }
        }
        kept.into_iter()
            .map(|index| self.pending_names[index].clone())
            .collect()
    }
}

impl Disk for SimDisk {
    fn open(&self, name: &str, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        let name = plain(name).to_owned();
        let inode = if how == Open::CreateNew {
            let mut inode = 0;
            self.change_names(|world| {
                if !world.dirs.contains(dir_of(&name)) {
                    return Err(missing(dir_of(&name)));
                }
                if world.names.contains_key(&name) {
                    return Err(io::Error::new(
                        io::ErrorKind::AlreadyExists,
                        format!("{name}: already exists"),
                    ));
                }
                inode = world.next_inode;
                world.next_inode += 1;
                world.inodes.insert(inode, Inode::default());
                Ok(NameChange::Create {
                    name: name.clone(),
                    inode,
                })
            })?;
            inode
        } else {
            self.power.alive()?;
            let world = self.world();
            *world.names.get(&name).ok_or_else(|| missing(&name))?
        };
        Ok(Arc::new(SimFile {
            disk: self.clone(),
            inode,
            name,
            writable: how != Open::Read,
        }))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.power.alive()?;
        let dir = plain(dir);
        Ok(self
            .world()
            .names
            .keys()
            .filter(|name| dir_of(name) == dir)
            .map(|name| name[if dir.is_empty() { 0 } else { dir.len() + 1 }..].to_owned())
            .collect())
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        let step = self.power.step(Kind::Name)?;
        if step == Step::Go {
            let mut world = self.world();
            let mut level = plain(dir);
            while !level.is_empty() {
                world.dirs.insert(level.to_owned());
                level = dir_of(level);
            }
        }
        finish(step)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let name = plain(name).to_owned();
        self.change_names(|world| match world.names.contains_key(&name) {
            true => Ok(NameChange::Remove { name }),
            false => Err(missing(&name)),
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (plain(from).to_owned(), plain(to).to_owned());
        self.change_names(|world| {
            if !world.dirs.contains(dir_of(&to)) {
                return Err(missing(dir_of(&to)));
            }
            let inode = *world.names.get(&from).ok_or_else(|| missing(&from))?;
            Ok(NameChange::Rename { from, to, inode })
        })
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let dir = plain(dir);
        let step = self.power.step(Kind::Sync)?;
        let mut world = self.world();
        if !world.dirs.contains(dir) {
            return Err(missing(dir));
        }
        if step == Step::Go {
            let World {
                pending_names,
                durable_names,
                ..
            } = &mut *world;
            let mut moved_away = BTreeSet::new();
            pending_names.retain(|change| {
                let here = change.dir() == dir;
                if here {
                    change.apply(durable_names);
                    if let NameChange::Rename { from, .. } = change {
                        moved_away.insert(from.clone());
                    }
                }
                !here
            });
            // A file that was created elsewhere and durably renamed to here must not come back under its first name.
            pending_names.retain(|change| {
                !matches!(change, NameChange::Create { name, .. } if moved_away.contains(name))
            });
        }
        finish(step)
    }

    fn available_bytes(&self) -> io::Result<u64> {
        self.power.alive()?;
        let world = self.world();
        Ok(world
            .space
            .map_or(1 << 50, |space| space.saturating_sub(world.used())))
    }
}

fn missing(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{name}: no such file"))
}

struct SimFile {
    disk: SimDisk,
    inode: u64,
    name: String,
    writable: bool,
}

impl SimFile {
    fn change(&self, change: Change) -> io::Result<()> {
        if !self.writable {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("{}: opened for reading only", self.name),
            ));
        }
        let step = self.disk.power.step(Kind::Write)?;
        if step == Step::Fail {
            return Err(eio());
        }
        let mut world = self.disk.world();
        if let Change::Write { offset, data } = &change {
            let fits = world.fitting(self.inode, *offset, data);
            if fits < data.len() {
                // As write(2) in a loop: what fits is there when the error comes.
                if fits > 0 {
                    let data = data[..fits].to_vec();
                    let offset = *offset;
                    world
                        .inode(self.inode)
                        .change(Change::Write { offset, data });
                }
                return Err(enospc());
            }
        }
        world.inode(self.inode).change(change);
        finish(step)
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.disk.power.step(Kind::Read)? == Step::Fail {
            return Err(eio());
        }
        let world = self.disk.world();
        let live = &world.inodes[&self.inode].live;
        if offset.saturating_add(buf.len() as u64) > live.len() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!(
                    "{}: ends at {} before {offset}+{}",
                    self.name,
                    live.len(),
                    buf.len()
                ),
            ));
        }
        live.read(offset, buf);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if data.is_empty() {
            return self.disk.power.alive();
        }
        self.change(Change::Write {
            offset,
            data: data.to_vec(),
        })
    }

    fn sync(&self) -> io::Result<()> {
        let step = self.disk.power.step(Kind::Sync)?;
        let mut world = self.disk.world();
        let world = &mut *world;
        let inode = world
            .inodes
            .get_mut(&self.inode)
            .expect("a handle's inode exists");
        match step {
            Step::Go => inode.sync(),
            Step::Last => {}
            Step::Fail => inode.fail_sync(&mut world.rng),
        }
        finish(step)
    }

    fn len(&self) -> io::Result<u64> {
        self.disk.power.alive()?;
        Ok(self.disk.world().inodes[&self.inode].live.len())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.change(Change::Truncate { len })
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(Change::Punch { offset, len })
    }
}
