//! What volumes of desktops add up to. There may be hundreds of thousands, so that they are looked up page by page, and once a minute.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use datacenter_api::Volume;

use crate::datacenter::Datacenter;
use crate::problem::ManageError;

/// How long figures are told before they are looked up again, in seconds.
const KEPT_S: u64 = 60;
/// Volumes that one look into the catalog takes: writers do not wait for more.
const PAGE: usize = 500;

/// Sums over all volumes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct VolumeFigures {
    pub(super) held: u64,
    pub(super) free: u64,
    pub(super) behind_records: u64,
    /// Seconds of work that would be lost at most, by the branch that holds the volumes.
    pub(super) rpo_s: BTreeMap<String, u64>,
    pub(super) snapshots: u64,
    pub(super) forks: u64,
}

impl VolumeFigures {
    fn count(&mut self, volume: &Volume) {
        match &volume.lease {
            None => self.free += 1,
            Some(lease) => {
                self.held += 1;
                let rpo_s = self.rpo_s.entry(lease.branch.clone()).or_default();
                *rpo_s = (*rpo_s).max(volume.rpo_s.unwrap_or(0));
            }
        }
        self.behind_records += volume.lag_records.unwrap_or(0);
        self.snapshots += volume.snapshots;
        self.forks += volume.forks;
    }
}

/// The last figures, and when they were looked up, unix seconds.
#[derive(Default)]
pub(super) struct Kept(Mutex<Option<(u64, Arc<VolumeFigures>)>>);

impl Datacenter {
    pub(super) fn volume_figures(&self) -> Result<Arc<VolumeFigures>, ManageError> {
        let now = self.now_unix_s();
        let kept = &self.observed().volumes.0;
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, figures)) = &*kept
            && now < at.saturating_add(KEPT_S)
        {
            return Ok(Arc::clone(figures));
        }
        let mut figures = VolumeFigures::default();
        let mut after: Option<String> = None;
        loop {
            let page = self.volume_list(after.as_deref(), None, PAGE)?;
            page.iter().for_each(|volume| figures.count(volume));
            match page.last() {
                Some(last) if page.len() == PAGE => after = Some(last.id.clone()),
                _ => break,
            }
        }
        let figures = Arc::new(figures);
        *kept = Some((now, Arc::clone(&figures)));
        Ok(figures)
    }
}

#[cfg(test)]
mod tests {
    use datacenter_api::{VolumeKind, VolumeLease};

    use super::*;

    fn volume(held_by: Option<&str>, rpo_s: u64) -> Volume {
        let lease = held_by.map(|branch| VolumeLease {
            branch: branch.into(),
            generation: 1,
            renewal: 1,
            issued_unix_s: 1,
            expires_unix_s: 2,
            ends_unix_s: 3,
        });
        Volume {
            id: "01".into(),
            desktop: "a".into(),
            kind: VolumeKind::System,
            pool: "p".into(),
            home: "ny".into(),
            size_bytes: 1,
            version: None,
            rpo_s: lease.as_ref().map(|_| rpo_s),
            lease,
            applied_unix_s: None,
            lag_records: Some(5),
            snapshots: 2,
            forks: 1,
        }
    }

    #[test]
    fn a_branch_costs_what_its_worst_volume_does() {
        let mut figures = VolumeFigures::default();
        for volume in [
            volume(Some("ny"), 30),
            volume(Some("ny"), 10),
            volume(Some("rome"), 7),
            volume(None, 0),
        ] {
            figures.count(&volume);
        }
        let expected = VolumeFigures {
            held: 3,
            free: 1,
            behind_records: 20,
            rpo_s: [("ny".to_owned(), 30), ("rome".to_owned(), 7)].into(),
            snapshots: 8,
            forks: 4,
        };
        assert_eq!(figures, expected);
    }
}
