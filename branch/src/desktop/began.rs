//! What lies under the overlays of a desktop's volumes: its version, nothing, or a state that was written under an earlier lease.
//!
//! Invariant: the same is under an overlay from its making to its end; the overlay names it and is refused over anything else.

use std::sync::Arc;

use dedup::{DesktopId, VersionId};
use dedup_protocol::records::Tree;

use super::record::DesktopRecord;
use super::volumes::UserBase;
use super::{DesktopError, Desktops};
use crate::fetch::base::CachedBase;

impl Desktops {
    /// The state under the overlay of a volume of `desktop`, if one is: the name that stands for it, and its size in bytes.
    pub(super) fn state_under(
        &self,
        volume: DesktopId,
    ) -> Result<Option<(VersionId, u64)>, DesktopError> {
        let state = self.versions.catalog().state_under(volume)?;
        Ok(state.map(|state| (state.name().as_version(), state.disk.size_bytes)))
    }

    /// The same, to be read.
    fn state_base(
        &self,
        desktop: &DesktopRecord,
        volume: DesktopId,
    ) -> Result<Option<Arc<CachedBase>>, DesktopError> {
        let Some((state, _)) = self.state_under(volume)? else {
            return Ok(None);
        };
        let tree = self.versions.tree(state, Tree::Disk)?;
        let tree = tree.ok_or_else(|| DesktopError::NoState {
            name: desktop.name.clone(),
        })?;
        let base = CachedBase::new(tree, Arc::clone(&self.fetcher));
        Ok(Some(Arc::new(base)))
    }

    /// What is under the overlay of a desktop's system volume.
    pub(super) fn system_base(
        &self,
        desktop: &DesktopRecord,
    ) -> Result<Arc<CachedBase>, DesktopError> {
        if let Some(base) = self.state_base(desktop, desktop.system_volume())? {
            return Ok(base);
        }
        let (version, _) = self.version_of(desktop)?;
        let tree = self.versions.tree(version, Tree::Disk)?;
        let tree = tree.ok_or_else(|| DesktopError::NotHere {
            version: desktop.version.clone(),
        })?;
        Ok(Arc::new(CachedBase::new(tree, Arc::clone(&self.fetcher))))
    }

    /// What is under the overlay of its user volume; `None`: nothing, or it has none.
    pub(super) fn user_base(
        &self,
        desktop: &DesktopRecord,
    ) -> Result<Option<UserBase>, DesktopError> {
        let Some(user) = &desktop.user_volume else {
            return Ok(None);
        };
        let base = self.state_base(desktop, DesktopId(user.id))?;
        Ok(base.map(|base| UserBase {
            name: base.version(),
            base,
        }))
    }
}
