//! From one version to another: systems that begin anew, and overlays that go on over another version.
//!
//! ```text
//!   pooled:      each start and each log-off ──► begins anew (what its pool, or somebody for it, wants it to run)
//!   persistent:  start, another version is wanted ──► layouts allow it ──► its overlay lies over that one, as a new volume
//!                                                └──► they do not ──► it stays on its version, and says why
//! ```
//!
//! Invariant: an overlay lies over the version that it names, and the record says the same; where both have to change, where it leads is kept first
//! ([`Rebasing`]) and finished after any stop. The user volume is never touched here. What the datacenter has of a system before is no past of it after, so
//! its volume is another one from then on, and the lease of the former is given up.

use dedup::{DesktopId, VersionId};
use dedup_protocol::records::Tree;

use branch_api::Desktop;

use super::layout;
use super::record::{DesktopRecord, Rebasing};
use super::{DesktopError, Desktops, error_line, refuse_if_up};
use crate::fetch::base::CachedBase;
use crate::writeback::rows::OverlayOf;

impl Desktops {
    /// Has a stopped desktop's system begin anew, on what it is to run now, or on its own version where that cannot be told. Its user volume stays. What was
    /// kept of a persistent desktop's system is given up; its pool says whether the new one is kept.
    pub fn reset(&self, name: &str) -> Result<Desktop, DesktopError> {
        let _turn = self.turn(name)?;
        let desktop = self.record(name)?;
        let mut desktop = desktop.ok_or_else(|| DesktopError::NotFound(name.into()))?;
        refuse_if_up(&desktop)?;
        self.refuse_if_checked_out(&desktop)?;
        let version = self.version_wanted(&desktop).ok();
        self.begin_anew(&mut desktop, version)?;
        tracing::info!(
            desktop = name,
            version = desktop.version,
            "its system begins anew"
        );
        Ok(self.describe(&desktop, false))
    }

    /// Has a stopped desktop run another version with what its user has: `version` (`IMAGE@N`, or an id), until it is rebased again, or what its pool runs.
    ///
    /// # Errors
    /// [`DesktopError::NotRebased`] and nothing is changed, where what was written to its system would be lost.
    pub fn rebase(&self, name: &str, version: Option<&str>) -> Result<Desktop, DesktopError> {
        let _turn = self.turn(name)?;
        let desktop = self.record(name)?;
        let mut desktop = desktop.ok_or_else(|| DesktopError::NotFound(name.into()))?;
        refuse_if_up(&desktop)?;
        self.refuse_if_checked_out(&desktop)?;
        self.finish_rebase(&mut desktop)?;
        let chosen = version.map(|text| self.version_named(text)).transpose()?;
        desktop.chosen = chosen.map(|version| version.to_string());
        let target = self.version_wanted(&desktop)?;
        if desktop.pooled {
            self.begin_anew(&mut desktop, Some(target))?;
        } else if let Some(why) = self.go_over(&mut desktop, target)? {
            let name = name.into();
            return Err(DesktopError::NotRebased { name, why });
        }
        self.versions.catalog().put_desktop(&desktop)?;
        tracing::info!(desktop = name, version = desktop.version, "rebased");
        Ok(self.describe(&desktop, false))
    }

    /// The version that somebody names.
    pub(super) fn version_named(&self, text: &str) -> Result<VersionId, DesktopError> {
        let catalog = self.versions.catalog();
        let mut known = Vec::new();
        for (id, record) in catalog.versions()? {
            if !self.versions.can_boot(&record)? {
                continue;
            }
            let name = format!("{}@{}", record.image, record.number);
            if name == text || id.to_string() == text {
                return Ok(id);
            }
            known.push(name);
        }
        known.sort();
        Err(DesktopError::NoVersion {
            version: text.chars().take(80).collect(),
            known: if known.is_empty() {
                "none".into()
            } else {
                known.join(", ")
            },
        })
    }

    /// What a desktop is to run: what somebody chose for it, as long as that is here, else what its pool runs.
    pub(super) fn version_wanted(
        &self,
        desktop: &DesktopRecord,
    ) -> Result<VersionId, DesktopError> {
        let chosen = desktop.chosen.as_ref().and_then(|id| id.parse().ok());
        if let Some(chosen) = chosen
            && let Some(record) = self.versions.catalog().version(chosen)?
            && self.versions.can_boot(&record)?
        {
            return Ok(chosen);
        }
        Ok(self.pool_version(&desktop.pool)?.1)
    }

    /// Brings a stopped desktop that is about to start to the version that it is to run. A pooled one begins anew anyway. That a persistent one cannot
    /// follow keeps it from nothing.
    pub(super) fn follow_version(&self, desktop: &mut DesktopRecord) -> Result<(), DesktopError> {
        if self.is_checked_out(desktop) {
            // It goes back as it came.
            return Ok(());
        }
        self.finish_rebase(desktop)?;
        let wanted = self.version_wanted(desktop).ok();
        if desktop.pooled {
            return self.begin_anew(desktop, wanted);
        }
        let Some(wanted) = wanted else {
            return Ok(());
        };
        let why = self.go_over(desktop, wanted)?;
        if desktop.kept_back != why {
            if let Some(why) = &why {
                tracing::info!(desktop = desktop.name, why, "it stays on its version");
            }
            desktop.kept_back = why;
            self.versions.catalog().put_desktop(desktop)?;
        }
        Ok(())
    }

    /// What was written to a pooled desktop's system goes as soon as its machine has ended. If it does not, the next start has it go.
    pub(super) fn drop_pooled(&self, desktop: &mut DesktopRecord) {
        if !desktop.pooled {
            return;
        }
        if let Err(error) = self.begin_anew(desktop, None) {
            let error = error_line(&error);
            tracing::warn!(
                desktop = desktop.name,
                error,
                "its system begins anew at its next start"
            );
        }
    }

    /// Has a stopped desktop's system begin anew on `version`, or on its own. Interrupted, it is to be done again: its line says that it was given up.
    pub(super) fn begin_anew(
        &self,
        desktop: &mut DesktopRecord,
        version: Option<VersionId>,
    ) -> Result<(), DesktopError> {
        let name = desktop.name.clone();
        let former = [desktop.system_volume()];
        let was_leased = desktop.volumes().contains(&former[0]);
        self.remove_system(desktop)?;
        if let Some(version) = version {
            desktop.version = version.to_string();
        }
        let assignment = self.versions.assignment();
        let mut pools = assignment.iter().flat_map(|a| &a.pools);
        if let Some(pool) = pools.find(|pool| pool.pool == desktop.pool) {
            desktop.pooled = pool.pooled;
        }
        desktop.machine = None;
        desktop.error = None;
        desktop.boot = None;
        desktop.kept_back = None;
        desktop.rebasing = None;
        self.versions.catalog().put_desktop(desktop)?;
        if was_leased && !desktop.volumes().contains(&former[0]) {
            self.forget_lines(&name, &former)?;
        }
        Ok(())
    }

    /// Has a persistent desktop's overlay lie over another version, if nothing of it is lost by that. Else says why, and changes nothing.
    fn go_over(
        &self,
        desktop: &mut DesktopRecord,
        target: VersionId,
    ) -> Result<Option<String>, DesktopError> {
        if desktop.version == target.to_string() {
            desktop.kept_back = None;
            return Ok(None);
        }
        self.volumes.close(&desktop.name)?;
        if let Some(why) = self.why_not_over(desktop, target)? {
            return Ok(Some(why));
        }
        desktop.rebasing = Some(Rebasing {
            version: target.to_string(),
            system: rand::random(),
        });
        self.versions.catalog().put_desktop(desktop)?;
        self.finish_rebase(desktop)?;
        Ok(None)
    }

    /// Why a persistent desktop's overlay cannot go on over another version.
    pub(super) fn why_not_over(
        &self,
        desktop: &DesktopRecord,
        target: VersionId,
    ) -> Result<Option<String>, DesktopError> {
        let volume = desktop.system_volume();
        if self.state_under(volume)?.is_some() {
            let why = "its system goes on behind a state that came from the datacenter (after a move, a roll-back or a broken lease), not over a version";
            return Ok(Some(why.into()));
        }
        let kept = self.versions.catalog().hold(volume)?;
        if kept.is_some_and(|kept| kept.overlay == OverlayOf::Gone) {
            return Ok(Some("what was written to its system is not here".into()));
        }
        if let Some(why) = self.why_not_worked_on(desktop, volume)? {
            return Ok(Some(why));
        }
        let (former, _) = self.version_of(desktop)?;
        let (Some(old), Some(new)) = (
            self.versions.tree(former, Tree::Disk)?,
            self.versions.tree(target, Tree::Disk)?,
        ) else {
            return Ok(Some(
                "the manifest of one of the two versions is not here".into(),
            ));
        };
        let size_bytes = old.map.size_bytes();
        let overlay = self
            .volumes
            .system_overlay(desktop, (former, size_bytes), false)?;
        let maps = (old.map.clone(), new.map.clone());
        let bases = [old, new].map(|tree| CachedBase::new(tree, self.fetcher.clone()));
        let (before, after) = match (layout::read(&bases[0]), layout::read(&bases[1])) {
            (Ok(before), Ok(after)) => (before, after),
            (Err(error), _) | (_, Err(error)) => {
                let error = error_line(&error);
                return Ok(Some(format!("a partition table does not tell: {error}")));
            }
        };
        let why = layout::why_not(
            (&before, &after),
            |range| layout::differ(&maps.0, &maps.1, &range),
            |range| overlay.has_records(0, &range),
        );
        Ok(why)
    }

    /// Finishes a rebase that was begun: the former volume is given up, the overlay lies over the other version, and the record says so.
    pub(super) fn finish_rebase(&self, desktop: &mut DesktopRecord) -> Result<(), DesktopError> {
        let Some(rebasing) = desktop.rebasing.clone() else {
            return Ok(());
        };
        if self.is_overtaken(desktop)? {
            desktop.rebasing = None;
            return Ok(self.versions.catalog().put_desktop(desktop)?);
        }
        let name = desktop.name.clone();
        let not_here = || DesktopError::NotHere {
            version: rebasing.version.clone(),
        };
        let version: VersionId = rebasing.version.parse().map_err(|_| not_here())?;
        let (former, record) = self.version_of(desktop)?;
        let disk = record.tree(Tree::Disk).ok_or_else(not_here)?;
        self.volumes.close(&name)?;
        let volume = [desktop.system_volume()];
        self.give_up(&name, &volume)?;
        self.volumes
            .rebase_system(desktop, (former, version), disk.size_bytes)?;
        desktop.version = rebasing.version;
        desktop.system = Some(rebasing.system);
        (desktop.rebasing, desktop.kept_back, desktop.boot) = (None, None, None);
        self.versions.catalog().put_desktop(desktop)?;
        self.forget_lines(&name, &volume)?;
        tracing::info!(
            desktop = name,
            version = desktop.version,
            "what was written to its system goes on over another version"
        );
        Ok(())
    }

    /// Whether a rebase that was begun, and has not given its volume up yet, has no overlay over a version any more: that was sent away meanwhile, or is
    /// a state that came back. What is at the datacenter is the desktop's then, so it is not to begin anew.
    fn is_overtaken(&self, desktop: &DesktopRecord) -> Result<bool, DesktopError> {
        let volume = desktop.system_volume();
        if self.was_given_up(desktop, volume)? {
            return Ok(false);
        }
        if self.state_under(volume)?.is_some() {
            return Ok(true);
        }
        let kept = self.versions.catalog().hold(volume)?;
        let is_gone = kept.is_some_and(|kept| kept.overlay == OverlayOf::Gone);
        Ok(is_gone && self.volumes.is_fresh(desktop)?)
    }

    /// Finishes what a stop of this server interrupted: a rebase, and overlays that were given up and not removed. What cannot be done now is done at the
    /// desktop's next start, or told there.
    pub(super) fn finish_interrupted(&self, desktop: &mut DesktopRecord) {
        if let Err(error) = self.try_finish(desktop) {
            let error = error_line(&error);
            tracing::error!(
                desktop = desktop.name,
                error,
                "what was interrupted cannot be finished"
            );
        }
    }

    fn try_finish(&self, desktop: &mut DesktopRecord) -> Result<(), DesktopError> {
        if desktop.is_up() {
            return Ok(());
        }
        self.finish_rebase(desktop)?;
        for volume in desktop.volumes() {
            if !self.was_given_up(desktop, volume)? {
                continue;
            }
            if volume == desktop.system_volume() {
                self.volumes.delete_system(desktop)?;
            } else {
                self.volumes.delete_user(desktop)?;
                if let Some(user) = &mut desktop.user_volume {
                    user.made = false;
                }
                self.versions.catalog().put_desktop(desktop)?;
            }
            self.versions.forget_state(volume)?;
        }
        Ok(())
    }

    fn was_given_up(
        &self,
        desktop: &DesktopRecord,
        volume: DesktopId,
    ) -> Result<bool, DesktopError> {
        let dropped = self.lines().with(volume, |line, _| Ok(line.is_dropped()));
        dropped.map_err(|source| Self::line_error(&desktop.name, source))
    }
}
