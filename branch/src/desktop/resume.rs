//! Fresh desktops that go on from a template instead of booting.
//!
//! ```text
//!  start ──► may it? ──no, and why──────────────────────────────────────► it boots, and tells why
//!              │ yes                                                   ▲
//!              ▼                                                       │ whatever fails: machine ended, system removed
//!  marked as cloning ──► what the template's boot wrote, on its disk ──► machine, from memory ──► told who it is ──► cable in, mark gone
//! ```
//!
//! Invariant: between the first and the last of these steps the catalog says that the desktop's system is nobody's. A server that ends in between
//! removes it when it comes back, and the desktop begins anew. A guest is on no network before it has a name and an address of its own: a template is
//! saved with its cable pulled.

use std::sync::Arc;
use std::time::{Duration, Instant};

use branch_api::Guest;
use branch_guest::Id;
use dedup::VersionId;
use dedup_protocol::records::{PoolAssignment, StartMode, VersionRecord};

use super::machine::{self, Choice, MachineError, MachineKind, MachineSpec, Resume};
use super::record::{DesktopRecord, MachineRecord};
use super::{DesktopError, Desktops, error_line};
use crate::catalog::CatalogError;
use crate::template::head::MEMORY_MIB_MAX;
use crate::template::thaw;
use crate::template::written::{self, WrittenError};
use crate::template::{Identity, Standing, TemplateError, Thawed};

/// How long the version's part of a template is waited for: a boot has waited less by then.
const THAW: Duration = Duration::from_secs(20);
/// How long a guest may take to become itself: its agent makes host keys.
pub(super) const AGENT: Duration = Duration::from_secs(60);
/// Between two looks at it.
pub(super) const LOOK: Duration = Duration::from_millis(100);
/// Memory that the host keeps beyond what a clone takes at once.
pub(super) const SPARE_BYTES: u64 = 256 << 20;

/// How a desktop began.
pub(super) enum Begun {
    /// It goes on from a template, and runs.
    Resumed,
    /// It is to boot, and why, where its pool asks for something else.
    Boots(Option<String>),
}

/// Why a desktop does not go on from a template that is there.
#[derive(Debug, thiserror::Error)]
pub(super) enum CloneError {
    /// As of any start.
    #[error(transparent)]
    Desktop(#[from] DesktopError),
    /// The template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// What its boot wrote.
    #[error(transparent)]
    Written(#[from] WrittenError),
    /// Its volume was closed by somebody.
    #[error("its volume is not open")]
    Closed,
    /// It would share an address with others.
    #[error("its template has a network card and no agent that gives it an address of its own")]
    NoAddress,
    /// The machine is gone.
    #[error("its machine ended before it had become itself")]
    Ended,
    /// Nobody answers inside.
    #[error("its agent did not answer within {AGENT:?}")]
    Silent,
    /// It has names, keys or addresses of the desktop that it was, for all that is known.
    #[error("its agent did not make it a desktop of its own: {0}")]
    Another(String),
    /// It would have no network.
    #[error("its machine does not take the network's cable")]
    Cable,
}

impl From<CatalogError> for CloneError {
    fn from(error: CatalogError) -> Self {
        Self::Desktop(error.into())
    }
}

impl From<MachineError> for CloneError {
    fn from(error: MachineError) -> Self {
        Self::Desktop(error.into())
    }
}

impl CloneError {
    /// Whether the template is to blame, so that it is removed and made anew.
    fn blames_template(&self) -> bool {
        match self {
            Self::Desktop(DesktopError::Machine(error)) => matches!(
                error,
                MachineError::Ended { .. } | MachineError::Silent { .. }
            ),
            Self::Template(error) | Self::Written(WrittenError::Template(error)) => {
                error.is_spoiled()
            }
            Self::Written(WrittenError::Size { .. })
            | Self::NoAddress
            | Self::Ended
            | Self::Silent
            | Self::Another(_)
            | Self::Cable => true,
            Self::Desktop(_) | Self::Written(_) | Self::Closed => false,
        }
    }
}

impl Desktops {
    /// What a pool asks for, if that is desktops that go on from a template.
    fn resuming_pool(&self, pool: &str) -> Option<PoolAssignment> {
        let assignment = self.versions.assignment()?;
        let mut pools = assignment.pools.iter();
        let found = pools.find(|p| p.pool == pool && p.start == StartMode::Resume);
        found.cloned()
    }

    /// What a template would be of for desktops of this pool, version and shape, or why they cannot go on from one.
    pub(super) fn template_identity(
        &self,
        pool: &PoolAssignment,
        version: VersionId,
        (memory_mib, vcpus): (u32, u32),
        choice: &Choice,
    ) -> Result<Identity, String> {
        if pool.user_volume_mib > 0 {
            return Err("its pool has user volumes, which a guest takes up as it boots".into());
        }
        if choice.kind != MachineKind::Splice {
            return Err(format!(
                "it runs on {}, and only splice-vmm goes on ({})",
                choice.kind.name(),
                choice.reason
            ));
        }
        if memory_mib > MEMORY_MIB_MAX {
            return Err(format!("templates have {MEMORY_MIB_MAX} MiB at most"));
        }
        let vmm = self.host.vmm.as_deref().ok_or("there is no splice-vmm")?;
        let program = std::fs::read(vmm).map_err(|error| format!("{}: {error}", vmm.display()))?;
        Ok(Identity {
            version,
            memory_mib,
            vcpus,
            card: *self.network.choice(&pool.pool) != crate::network::Choice::None,
            vmm: blake3::hash(&program).into(),
        })
    }

    /// Has a fresh desktop go on from a template, if its pool asks for that and one is there.
    ///
    /// # Errors
    /// What was begun could not be taken back. All else is a reason to boot.
    pub(super) fn go_on(
        &self,
        desktop: &mut DesktopRecord,
        version: VersionId,
        record: &VersionRecord,
        choice: &Choice,
    ) -> Result<Begun, DesktopError> {
        let Some(pool) = self.resuming_pool(&desktop.pool) else {
            return Ok(Begun::Boots(None));
        };
        let begun = Instant::now();
        let (identity, thawed) = match self.thawed_for(desktop, &pool, version, choice) {
            Ok(found) => found,
            Err(why) => {
                tracing::info!(desktop = desktop.name, why, "boots instead of resuming");
                return Ok(Begun::Boots(Some(why)));
            }
        };
        let error = match self.clone_from(desktop, version, record, choice, &thawed) {
            Ok(()) => {
                let ms = begun.elapsed().as_millis();
                tracing::info!(desktop = desktop.name, %version, ms, "resumed");
                return Ok(Begun::Resumed);
            }
            Err(error) => error,
        };
        let why = error_line(&error);
        tracing::warn!(desktop = desktop.name, why, "does not resume, and boots");
        if let Some(shelf) = self.templates.as_ref().filter(|_| error.blames_template()) {
            shelf.give_up(&identity, &why);
        }
        self.end_cloning(desktop)?;
        // Its system may be another one now.
        self.take_leases(desktop)?;
        Ok(Begun::Boots(Some(why)))
    }

    /// The template for a desktop, in memory, or why there is none.
    fn thawed_for(
        &self,
        desktop: &DesktopRecord,
        pool: &PoolAssignment,
        version: VersionId,
        choice: &Choice,
    ) -> Result<(Identity, Arc<Thawed>), String> {
        if !self.volumes.is_fresh(desktop).map_err(|e| error_line(&e))? {
            return Err("it goes on with what was written to its system".into());
        }
        if desktop.user_volume.is_some() {
            return Err("it has a user volume, which a guest takes up as it boots".into());
        }
        let state = self.state_under(desktop.system_volume());
        if state.map_err(|e| error_line(&e))?.is_some() {
            return Err("its system goes on behind what the datacenter has of it".into());
        }
        let shape = (desktop.memory_mib, desktop.vcpus);
        if shape != (pool.memory_mib, pool.vcpus) {
            return Err("it was made with other memory or processors than its pool has now".into());
        }
        let shelf = self.templates.as_ref();
        let shelf = shelf.ok_or("this branch server keeps no templates")?;
        let identity = self.template_identity(pool, version, shape, choice)?;
        let copies = match shelf.standing(&identity) {
            Standing::Ready { bytes, warm: true } => bytes,
            Standing::Ready { bytes, warm: false } => bytes.saturating_mul(2),
            Standing::Making => return Err("its template is being made".into()),
            Standing::Wanted => return Err("its template is not made yet".into()),
            Standing::Missing(why) => return Err(format!("it has no template: {why}")),
        };
        // Others run here: what a clone takes at once must be there.
        let available = thaw::available_bytes().unwrap_or(u64::MAX);
        if available < copies.saturating_add(SPARE_BYTES) {
            return Err(format!(
                "the host has {available} bytes of memory left, too little to copy its template"
            ));
        }
        let base = self.system_base(desktop).map_err(|e| error_line(&e))?;
        let begun = Instant::now();
        let enough = || begun.elapsed() >= THAW;
        let thawed = shelf.thawed(&identity, &*base, &enough);
        let thawed = thawed.map_err(|e| error_line(&e))?;
        let thawed = thawed.ok_or("its template has just been removed")?;
        Ok((identity, thawed))
    }

    /// Runs a desktop's machine from a template.
    fn clone_from(
        &self,
        desktop: &mut DesktopRecord,
        version: VersionId,
        record: &VersionRecord,
        choice: &Choice,
        thawed: &Thawed,
    ) -> Result<(), CloneError> {
        // What it boots when its guest resets it.
        let kernel = self.boot_files(version, record)?;
        desktop.cloning = true;
        desktop.boot = None;
        desktop.error = None;
        self.give_user(desktop)?;
        let card = self.plug(desktop)?;
        let has_agent = thawed.template().head().agent;
        if card.is_some() && !has_agent {
            return Err(CloneError::NoAddress);
        }
        self.versions.catalog().put_desktop(desktop)?;
        self.open_volume(desktop)?;
        let volume = self.volumes.find(&desktop.name);
        let volume = volume.ok_or(CloneError::Closed)?;
        written::lay(thawed.template(), &**volume.device())?;
        let has_card = card.is_some();
        let spec = MachineSpec {
            card,
            resume: Some(Resume {
                files: thawed.hand()?,
                records: false,
            }),
            ..self.spec(desktop, version, kernel, choice.clone())?
        };
        let machine = MachineRecord {
            start: Some("resumed".into()),
            ..spec.start(self.clock.now_unix_ms())?
        };
        // From here on its agent is attended to.
        desktop.machine = Some(machine.clone());
        self.versions.catalog().put_desktop(desktop)?;
        if has_agent {
            self.wait_for_agent(desktop, &machine)?;
        }
        if has_card && !machine::plug(&self.files(&desktop.name), true) {
            return Err(CloneError::Cable);
        }
        desktop.cloning = false;
        let noted = self.versions.catalog().put_desktop(desktop);
        // One that is not noted as itself is taken back, machine and all.
        desktop.cloning = noted.is_err();
        Ok(noted?)
    }

    /// Waits until the agent of a machine that has just been started has said that it has become who it was told to be.
    pub(super) fn wait_for_agent(
        &self,
        desktop: &DesktopRecord,
        machine: &MachineRecord,
    ) -> Result<(), CloneError> {
        let begun = Instant::now();
        loop {
            if !machine::is_alive(machine) {
                return Err(CloneError::Ended);
            }
            let shown = self.guests.shown(&desktop.name);
            if let Some(guest) = shown.filter(|guest| has_reported(guest, machine)) {
                return became(&guest, desktop.id);
            }
            if begun.elapsed() >= AGENT {
                return Err(CloneError::Silent);
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// Whether a guest has reported since its machine was started.
pub(super) fn has_reported(guest: &Guest, machine: &MachineRecord) -> bool {
    // Its boot is done, so that its first report says so.
    guest.connected && guest.booted && guest.heard_unix_ms >= machine.started_unix_ms
}

/// Whether a guest that has reported says that it became the desktop of this id. One that does not say so is taken for the one that it was.
fn became(guest: &Guest, id: [u8; 16]) -> Result<(), CloneError> {
    let own = Id::new(id).map(|id| id.to_string());
    if own.is_some() && guest.itself == own {
        return Ok(());
    }
    let why = match guest.troubles.as_slice() {
        [] => "it does not say why".to_owned(),
        troubles => troubles.join("; "),
    };
    Err(CloneError::Another(why))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use branch_api::GuestVolume;

    use super::*;
    use crate::template::head::HeadError;

    /// It gets its cable, and with that a network, only if it says that it is who it is to be.
    #[test]
    fn a_clone_that_is_not_wholly_itself_is_none() {
        let guest = |itself: Option<String>, troubles: &[&str]| Guest {
            agent: "0.1.0".into(),
            protocol: Some(3),
            connected: true,
            heard_unix_ms: 1,
            booted: true,
            itself,
            users: Vec::new(),
            user_volume: GuestVolume::None,
            user_volume_refusal: None,
            disks: Vec::new(),
            failed_units: Vec::new(),
            troubles: troubles.iter().map(|&trouble| trouble.to_owned()).collect(),
            malformed_lines: 0,
        };
        let own = Some("ab".repeat(16));
        assert!(became(&guest(own.clone(), &[]), [0xab; 16]).is_ok());
        let of_template = guest(Some("cd".repeat(16)), &[]);
        assert!(became(&of_template, [0xab; 16]).is_err());
        let half = guest(None, &["host keys of ssh are not made"]);
        let error = became(&half, [0xab; 16]).unwrap_err().to_string();
        assert!(error.contains("host keys"), "{error}");
        assert!(became(&guest(None, &[]), [0; 16]).is_err(), "nobody's id");
    }

    #[test]
    fn a_template_is_blamed_for_what_it_may_have_caused() {
        let file = || "one".to_owned();
        let damaged = || TemplateError::Damaged {
            file: file(),
            what: "its body",
        };
        let head = TemplateError::Head {
            file: file(),
            source: HeadError("its memory"),
        };
        let base = TemplateError::Base {
            file: file(),
            source: vmm_block::BlockError::new(vmm_block::BlockErrorKind::Unavailable, "away"),
        };
        let ended = MachineError::Ended {
            name: "alice".into(),
            log: "no".into(),
        };
        for error in [
            damaged().into(),
            CloneError::Written(damaged().into()),
            head.into(),
            ended.into(),
            CloneError::Silent,
            CloneError::Another("no ssh-keygen".into()),
        ] {
            assert!(error.blames_template(), "{error}");
        }
        let network = MachineError::NoUefi {
            name: "alice".into(),
        };
        for error in [base.into(), network.into(), CloneError::Closed] {
            assert!(!error.blames_template(), "{error}");
        }
    }
}
