//! Which templates pools ask for, and how they stand.
//!
//! A template is made ahead of the desktops that go on from it, as soon as its version can boot here, and is removed when no pool asks for it any more:
//! the version is another, or the shape of its desktops, or the program splice-vmm.

use std::time::Instant;

use branch_api::{Template, TemplateState};
use dedup_protocol::records::{PoolAssignment, StartMode, VersionRecord};

use super::machine::{self, Choice, Needs};
use super::resume::SPARE_BYTES;
use super::{DesktopError, Desktops, error_line};
use crate::template::{Identity, Standing, thaw};

/// A template that a pool asks for.
pub(super) struct Wanted {
    /// The pool.
    pub(super) pool: PoolAssignment,
    /// What it is of.
    pub(super) identity: Identity,
    /// The version.
    pub(super) record: VersionRecord,
    /// What runs it.
    pub(super) choice: Choice,
}

impl Desktops {
    /// What a pool asks for, or why it can have none.
    fn wanted(&self, pool: &PoolAssignment) -> Result<Result<Wanted, String>, DesktopError> {
        let (_, version) = self.pool_version(&pool.pool)?;
        let record = self.versions.catalog().version(version)?;
        let record = record.ok_or_else(|| DesktopError::NotHere {
            version: version.to_string(),
        })?;
        let needs = Needs {
            has_kernel: record.boot.is_some(),
            tpm: pool.tpm,
            vcpus: pool.vcpus,
        };
        let choice = machine::choose(pool.machine, needs, &self.host);
        let wanted = choice
            .map_err(|error| error.to_string())
            .and_then(|choice| {
                let shape = (pool.memory_mib, pool.vcpus);
                let identity = self.template_identity(pool, version, shape, &choice)?;
                Ok(Wanted {
                    pool: pool.clone(),
                    identity,
                    record,
                    choice,
                })
            });
        Ok(wanted)
    }

    fn resuming_pools(&self) -> Vec<PoolAssignment> {
        let assignment = self.versions.assignment();
        let pools = assignment.iter().flat_map(|a| &a.pools);
        let resuming = pools.filter(|pool| pool.start == StartMode::Resume);
        resuming.cloned().collect()
    }

    /// Removes templates that no pool wants, and makes one that is wanted, which takes minutes. To be called again and again by one thread.
    pub fn tend_templates(&self) {
        let Some(shelf) = &self.templates else {
            return;
        };
        let (mut wanted, mut is_known) = (Vec::new(), true);
        for pool in self.resuming_pools() {
            match self.wanted(&pool) {
                Ok(Ok(one)) => wanted.push(one),
                // It boots, and each of its desktops tells why.
                Ok(Err(_)) => {}
                // What it runs is not known at this moment: nothing is given up for that.
                Err(_) => is_known = false,
            }
        }
        if is_known {
            let identities: Vec<Identity> = wanted.iter().map(|w| w.identity.clone()).collect();
            shelf.retain(&identities);
        }
        let due = wanted.iter().find(|wanted| shelf.is_due(&wanted.identity));
        let Some(wanted) = due.filter(|_| !shelf.is_stopping()) else {
            return;
        };
        let (pool, version) = (&wanted.pool.pool, wanted.identity.version);
        tracing::info!(pool, %version, "a template is being made");
        shelf.begins(&wanted.identity);
        let begun = Instant::now();
        let made = self.check_room(wanted).and_then(|()| {
            let made = self.make(shelf, wanted);
            made.map_err(|error| error_line(&error))
        });
        match &made {
            Ok(()) => {
                let seconds = begun.elapsed().as_secs();
                tracing::info!(pool, %version, seconds, "a template is made");
            }
            Err(why) => tracing::warn!(pool, %version, why, "no template is made"),
        }
        shelf.ended(&wanted.identity, made);
    }

    /// Whoever makes a template is to leave off: the server ends.
    pub fn stop_templates(&self) {
        if let Some(shelf) = &self.templates {
            shelf.stop();
        }
    }

    /// Whether the host has what making one takes for a while: the machine, a copy of its memory, and the file.
    fn check_room(&self, wanted: &Wanted) -> Result<(), String> {
        let bytes = wanted.identity.memory_bytes();
        let needed = bytes.saturating_mul(2).saturating_add(SPARE_BYTES);
        let is_short = |there: Option<u64>| there.is_some_and(|there| there < needed);
        if is_short(thaw::available_bytes()) {
            return Err(format!("making it takes {needed} bytes of memory"));
        }
        if is_short(self.volumes.free_bytes()) {
            return Err(format!(
                "making it takes {needed} bytes of the branch's disk"
            ));
        }
        Ok(())
    }

    /// The templates that pools ask for, and how they stand.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn templates(&self) -> Result<Vec<Template>, DesktopError> {
        let mut templates = Vec::new();
        for pool in self.resuming_pools() {
            let mut told = Template {
                pool: pool.pool.clone(),
                version: pool.version.to_string(),
                image: pool.image.clone(),
                version_number: 0,
                state: TemplateState::Missing,
                why: None,
                bytes: None,
                in_memory: false,
            };
            match self.wanted(&pool) {
                Err(error) => told.why = Some(error_line(&error)),
                Ok(Err(why)) => told.why = Some(why),
                Ok(Ok(wanted)) => self.tell_standing(&wanted, &mut told),
            }
            templates.push(told);
        }
        Ok(templates)
    }

    fn tell_standing(&self, wanted: &Wanted, told: &mut Template) {
        told.version = wanted.identity.version.to_string();
        told.version_number = wanted.record.number;
        let Some(shelf) = &self.templates else {
            told.why = Some("this branch server keeps no templates".into());
            return;
        };
        match shelf.standing(&wanted.identity) {
            Standing::Ready { bytes, warm } => {
                told.state = TemplateState::Ready;
                (told.bytes, told.in_memory) = (Some(bytes), warm);
            }
            Standing::Making => told.state = TemplateState::Making,
            Standing::Wanted => told.state = TemplateState::Wanted,
            Standing::Missing(why) => told.why = Some(why),
        }
    }
}
