//! Making templates: one at a time, of a desktop that nobody sees, which is removed afterwards whatever becomes of it.
//!
//! ```text
//!  boot ──idle at its log-in──► cable out ──► saved, ended ──► body written ──► goes on once: works, and tells in which order ──► head, name
//! ```
//!
//! Idle is: its boot reads nothing new any more, its agent (if it has one) says that it has booted, and nobody is logged on. Going on once before there
//! is a template proves that machines can, and records which memory they need first. A server that ends in between leaves a desktop of the throwaway's
//! name, which the next one removes, and a file without its name.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use branch_guest::PROTOCOL_CLONES;
use dedup_protocol::records::Tree;
use vmm_block::BlockError;

use super::machine::{self, MachineError, MachineSpec, Resume};
use super::record::{DesktopRecord, MachineRecord, THROWAWAY};
use super::resume::{CloneError, LOOK};
use super::templates::Wanted;
use super::{DesktopError, Desktops};
use crate::catalog::CatalogError;
use crate::profile::Recorder;
use crate::template::head::{Head, ORDER_BYTES_MAX};
use crate::template::pages::{PageIndex, touched_ranges};
use crate::template::save::{self, SaveError};
use crate::template::thaw::Files;
use crate::template::written::{self, WrittenError};
use crate::template::{Shelf, TemplateError};
use crate::volume::Base;

/// How long a throwaway may take until it is idle: boots are over by then, and the line may be slow.
const SETTLE: Duration = Duration::from_secs(900);
/// For how long a boot that has read hardly anything must be quiet.
const IDLE_MS: u32 = 60_000;
/// How long the order is waited for in which it needs its memory: splice-vmm records for ten seconds.
const ORDER: Duration = Duration::from_secs(30);

/// Why there is no template.
#[derive(Debug, thiserror::Error)]
pub(super) enum MakeError {
    /// As of any start.
    #[error(transparent)]
    Desktop(#[from] DesktopError),
    /// Its file.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// What its boot wrote.
    #[error(transparent)]
    Written(#[from] WrittenError),
    /// What was saved.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// As of a clone.
    #[error(transparent)]
    Clone(#[from] CloneError),
    /// Memory of the host.
    #[error("{0}")]
    Memory(&'static str, #[source] io::Error),
    /// Its disk.
    #[error("its disk")]
    Disk(#[from] BlockError),
    /// It is not fit for one.
    #[error("{0}")]
    Unfit(&'static str),
    /// The machine says why.
    #[error("it was not saved: {0}")]
    NotSaved(String),
}

impl From<CatalogError> for MakeError {
    fn from(error: CatalogError) -> Self {
        Self::Desktop(error.into())
    }
}

impl From<MachineError> for MakeError {
    fn from(error: MachineError) -> Self {
        Self::Desktop(error.into())
    }
}

/// A throwaway that was saved.
struct Saved {
    files: Files,
    has_agent: bool,
    /// Chunks of the disk that its boot read.
    touched: HashSet<usize>,
}

impl Desktops {
    /// Makes a template. Blocks for minutes.
    pub(super) fn make(&self, shelf: &Shelf, wanted: &Wanted) -> Result<(), MakeError> {
        let _turn = self.turn(THROWAWAY)?;
        self.discard_throwaway()?;
        let made = self.make_of_throwaway(shelf, wanted);
        let discarded = self.discard_throwaway();
        made?;
        Ok(discarded?)
    }

    /// Ends and removes what a template was made of. The caller has its turn, or is alone.
    pub(super) fn discard_throwaway(&self) -> Result<(), DesktopError> {
        self.boots.forget(THROWAWAY);
        let Some(mut desktop) = self.record(THROWAWAY)? else {
            return Ok(());
        };
        self.end_throwaway(&mut desktop);
        self.volumes.close(THROWAWAY)?;
        self.remove(&desktop)
    }

    fn end_throwaway(&self, desktop: &mut DesktopRecord) {
        let files = self.files(THROWAWAY);
        match desktop.machine.take() {
            Some(machine) => machine::stop(&machine, &files, Duration::ZERO, false),
            None => machine::end_unnoted(&files),
        }
    }

    fn make_of_throwaway(&self, shelf: &Shelf, wanted: &Wanted) -> Result<(), MakeError> {
        let version = wanted.identity.version;
        let mut desktop = self.fresh(&wanted.pool.pool, THROWAWAY)?;
        if desktop.version != version.to_string() {
            return Err(MakeError::Unfit("its pool runs another version by now"));
        }
        let saved = self.save_throwaway(shelf, wanted, &mut desktop)?;
        let volume = self.volumes.find(THROWAWAY);
        let volume = volume.ok_or(CloneError::Closed)?;
        // Nothing of the disk may change before it is written down.
        volume.device().flush()?;
        let extents = written::extents(volume.overlay())?;
        let disk_bytes = volume.device().geometry().size_bytes;
        let tree = self.versions.tree(version, Tree::Disk)?;
        let tree = tree.ok_or(MakeError::Unfit("its manifest is not here any more"))?;
        let ranges = touched_ranges(&tree.map, |index| saved.touched.contains(&index));
        let base = volume.base();
        let is_over = || shelf.is_stopping();
        let index = PageIndex::read(&ranges, |at, bytes| base.read_until(at, bytes, &is_over))?;
        let mut writer = shelf.write(&wanted.identity)?;
        let mut head = Head {
            identity: wanted.identity.clone(),
            made_unix_s: self.clock.now_unix_s(),
            agent: saved.has_agent,
            state_bytes: save::state(&saved.files, &mut writer)?,
            blocks: Vec::new(),
            disk_bytes,
            extents,
            order: Vec::new(),
        };
        save::memory(&saved.files, &index, &mut head, &mut writer)?;
        written::save(&head.extents, &**volume.device(), &mut writer)?;
        head.order = self.go_on_once(shelf, wanted, &saved, &mut desktop)?;
        let (used, shared) = (head.used_bytes(), head.shared_bytes());
        let written = head.written_bytes();
        tracing::info!(%version, used, shared, written, "a template's memory");
        Ok(writer.finish(&head)?)
    }

    /// Boots the throwaway, and saves it when it is idle.
    fn save_throwaway(
        &self,
        shelf: &Shelf,
        wanted: &Wanted,
        desktop: &mut DesktopRecord,
    ) -> Result<Saved, MakeError> {
        let version = wanted.identity.version;
        self.fetcher.boot_begins();
        let files = self.absent_boot_files(version, &wanted.record)?;
        self.boots.prepare(THROWAWAY, version, &files);
        self.start_machine(desktop, version, &wanted.record, wanted.choice.clone())?;
        let recorder = self.boots.recorder(THROWAWAY);
        let (recorder, began) = recorder.ok_or(MakeError::Unfit("its boot is not recorded"))?;
        let machine = desktop.machine.clone().ok_or(CloneError::Ended)?;
        let agent = self.settle(shelf, &machine, &recorder, began)?;
        // What is read of the disk from now on is no part of its boot.
        self.boots.end(THROWAWAY);
        let touched = recorder.recorded();
        let touched = touched.iter().map(|touch| touch.index as usize).collect();
        // One that does not say whether a clone became itself is no proof of that.
        if agent.map_or(wanted.identity.card, |protocol| protocol < PROTOCOL_CLONES) {
            return Err(MakeError::Unfit(
                "its image has no agent (the package splice-agent), or an older one, that makes each clone a desktop of its own and says so",
            ));
        }
        let its = self.files(THROWAWAY);
        if wanted.identity.card && !machine::plug(&its, false) {
            return Err(CloneError::Cable.into());
        }
        let files = Files::empty();
        let files = files.map_err(|error| MakeError::Memory("memory to save it into", error))?;
        let saved = machine::save(&its, &files.state, &files.memory);
        saved.map_err(MakeError::NotSaved)?;
        self.end_throwaway(desktop);
        self.versions.catalog().put_desktop(desktop)?;
        Ok(Saved {
            files,
            has_agent: agent.is_some(),
            touched,
        })
    }

    /// Waits until the throwaway is idle at its log-in. Answers which protocol its agent speaks, if it has one.
    fn settle(
        &self,
        shelf: &Shelf,
        machine: &MachineRecord,
        recorder: &Recorder,
        began: Instant,
    ) -> Result<Option<u16>, MakeError> {
        let begun = Instant::now();
        loop {
            if shelf.is_stopping() {
                return Err(MakeError::Unfit("the branch server ends"));
            }
            if !machine::is_alive(machine) {
                return Err(CloneError::Ended.into());
            }
            if recorder.has_failed() {
                return Err(MakeError::Unfit(
                    "something of its disk could not be read while it booted",
                ));
            }
            let now_ms = u32::try_from(began.elapsed().as_millis()).unwrap_or(u32::MAX);
            // One that is not understood is as good as none.
            let guest = self.guests.shown(THROWAWAY);
            let guest = guest.filter(|guest| guest.protocol.is_some());
            let is_ready = guest.as_ref().is_none_or(|g| g.connected && g.booted);
            let is_idle = recorder.is_over(now_ms) || recorder.is_quiet(now_ms, IDLE_MS);
            if is_idle && is_ready {
                if guest.as_ref().is_some_and(|g| !g.users.is_empty()) {
                    return Err(MakeError::Unfit(
                        "somebody is logged on as soon as it has booted (an automatic log-in), whose session all clones would share",
                    ));
                }
                return Ok(guest.and_then(|guest| guest.protocol));
            }
            if begun.elapsed() >= SETTLE {
                return Err(MakeError::Unfit(
                    "it was not idle after a quarter of an hour",
                ));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Has the throwaway go on, on its own disk, until it works and the order is known in which it needs its memory.
    fn go_on_once(
        &self,
        shelf: &Shelf,
        wanted: &Wanted,
        saved: &Saved,
        desktop: &mut DesktopRecord,
    ) -> Result<Vec<u8>, MakeError> {
        let version = wanted.identity.version;
        let kernel = self.boot_files(version, &wanted.record)?;
        let card = self.plug(desktop)?;
        let handed = saved.files.hand(true);
        let handed = handed.map_err(|error| MakeError::Memory("files to hand over", error))?;
        let spec = MachineSpec {
            card,
            resume: Some(Resume {
                files: handed,
                records: true,
            }),
            ..self.spec(desktop, version, kernel, wanted.choice.clone())?
        };
        let machine = spec.start(self.clock.now_unix_ms())?;
        desktop.machine = Some(machine.clone());
        self.versions.catalog().put_desktop(desktop)?;
        if saved.has_agent {
            self.wait_for_agent(desktop, &machine)?;
        }
        let begun = Instant::now();
        let order_bytes = || saved.files.order.metadata().map_or(0, |about| about.len());
        // Where the host tells of no missing pages, none is ever written.
        while order_bytes() == 0 && begun.elapsed() < ORDER {
            if shelf.is_stopping() || !machine::is_alive(&machine) {
                return Err(CloneError::Ended.into());
            }
            std::thread::sleep(LOOK);
        }
        self.end_throwaway(desktop);
        let mut order = vec![0; order_bytes().min(ORDER_BYTES_MAX as u64) as usize];
        let read = saved.files.order.read_exact_at(&mut order, 0);
        read.map_err(|error| MakeError::Memory("the order of its memory", error))?;
        Ok(order)
    }
}
