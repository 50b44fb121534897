//! The boots that run: what is fetched ahead of them, what is recorded of them, what is to be told of them.
//!
//! ```text
//!   prepare ──► fetched ahead ──begin──► recorded too ──settled, or end──► score, recording kept for the datacenter
//!                    └───────────────────────────────────end────────────► (nothing)
//! ```
//!
//! A recording waits in the branch's catalog, one for each version, until the datacenter has taken it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use dedup::VersionId;
use dedup_protocol::profile::{BOOTS_MAX, BootScore, RECORDING_BYTES_MAX};
use dedup_protocol::records::Tree;
use dedup_protocol::wire::{BootRecorded, Message, ProfileAvailable};
use tokio::sync::Notify;

use super::plan::{self, Plan};
use super::recorder::{Recorder, TOUCHES_MIN};
use crate::catalog::CatalogError;
use crate::fetch::Fetcher;
use crate::fetch::base::CachedBase;
use crate::fetch::queue::TreeHandle;
use crate::versions::Versions;

/// A tree, and chunks of it in the order in which a boot touches them.
pub type Ordered = (TreeHandle, Arc<[u32]>);

/// Of a version whose profile is made of many boots already, a boot is told this often at most.
const TELL_KNOWN_EVERY: Duration = Duration::from_secs(3600);

/// Announcements remembered; an honest datacenter announces what is assigned.
const ANNOUNCED_MAX: usize = 1024;

struct Boot {
    version: VersionId,
    tree: TreeHandle,
    plan: Plan,
    /// The prefetches of kernel and initrd in the fetcher.
    files: Vec<u64>,
    /// That of what the plan names.
    prefetch: Option<u64>,
    recorded: Option<Recorded>,
}

struct Recorded {
    recorder: Arc<Recorder>,
    base: Arc<CachedBase>,
    began: Instant,
}

/// See the module.
pub struct Boots {
    versions: Arc<Versions>,
    fetcher: Arc<Fetcher>,
    /// By desktop.
    running: Mutex<HashMap<String, Boot>>,
    /// When a boot of a version was last kept to be told.
    told: Mutex<HashMap<VersionId, Instant>>,
    announced: Mutex<HashMap<VersionId, u64>>,
    /// Something was announced or recorded.
    work: Notify,
}

impl Boots {
    /// No boot runs.
    pub fn new(versions: Arc<Versions>, fetcher: Arc<Fetcher>) -> Self {
        Self {
            versions,
            fetcher,
            running: Mutex::default(),
            told: Mutex::default(),
            announced: Mutex::default(),
            work: Notify::new(),
        }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<String, Boot>> {
        self.running.lock().expect("no panic under this lock")
    }

    /// Chunk numbers that boots of a version touch, in order; `None` without a profile or manifest.
    pub fn order(&self, version: VersionId) -> Result<Option<Ordered>, CatalogError> {
        let Some(profile) = self.versions.catalog().profile(version)? else {
            return Ok(None);
        };
        let tree = self.versions.tree(version, Tree::Disk)?;
        Ok(tree.map(|tree| {
            let order = plan::order(&tree.map, &profile.entries);
            (tree, order)
        }))
    }

    /// A desktop is about to start: the whole of `files`, which its machine starts with, and then what its boot will touch begin to
    /// come. Without a profile, or with one that cannot be read, the guest gets everything by demand.
    pub fn prepare(&self, desktop: &str, version: VersionId, files: &[TreeHandle]) {
        self.forget(desktop);
        let whole = |tree: &TreeHandle| (0..tree.map.chunks().len() as u32).collect();
        let prefetch = |tree: &TreeHandle| self.fetcher.prefetch(tree.clone(), whole(tree));
        let files: Vec<u64> = files.iter().map(prefetch).collect();
        let boot = match self.plan(version) {
            Ok(Some(boot)) => Boot { files, ..boot },
            planned => {
                if let Err(error) = planned {
                    tracing::warn!(desktop, %version, error = crate::desktop::error_line(&error), "no boot profile can be followed");
                }
                // Nothing is kept that could be forgotten: an attempt that is repeated with the link down must not leave its wishes behind.
                for number in files {
                    self.fetcher.stop_prefetch(number);
                }
                return;
            }
        };
        if boot.plan.profile > 0 {
            let (chunks, profile) = (boot.plan.order.len(), boot.plan.profile);
            tracing::info!(desktop, %version, profile, chunks, "boot profile");
        }
        self.running().insert(desktop.to_owned(), boot);
    }

    /// A profile of `version` came: boots of it that run without one follow it from now on.
    pub fn profile_arrived(&self, version: VersionId) {
        let mut running = self.running();
        let open = running
            .values_mut()
            .filter(|b| b.version == version && b.prefetch.is_none());
        for boot in open.filter(|b| b.recorded.is_some()) {
            match self.plan(version) {
                Ok(Some(plan)) => (boot.plan, boot.prefetch) = (plan.plan, plan.prefetch),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%version, error = crate::desktop::error_line(&error), "no boot profile can be followed");
                }
            }
        }
    }

    fn plan(&self, version: VersionId) -> Result<Option<Boot>, CatalogError> {
        let Some(tree) = self.versions.tree(version, Tree::Disk)? else {
            return Ok(None);
        };
        let mut plan = Plan::default();
        let mut prefetch = None;
        if let Some(profile) = self.versions.catalog().profile(version)? {
            let cache = self.fetcher.cache();
            plan = Plan::new(profile.counter, &profile.entries, &tree.map, |id| {
                cache.contains(id)
            });
            prefetch = Some(self.fetcher.prefetch(tree.clone(), Arc::clone(&plan.order)));
        }
        Ok(Some(Boot {
            version,
            tree,
            plan,
            files: Vec::new(),
            prefetch,
            recorded: None,
        }))
    }

    /// The machine of a prepared desktop starts now: what it touches of `base` is recorded.
    pub fn begin(&self, desktop: &str, base: Arc<CachedBase>) {
        let mut running = self.running();
        let Some(boot) = running.get_mut(desktop) else {
            return;
        };
        let recorder = Arc::new(Recorder::new(boot.tree.map.chunks().len()));
        let began = Instant::now();
        base.watch().begin(Arc::clone(&recorder), began);
        boot.recorded = Some(Recorded {
            recorder,
            base,
            began,
        });
    }

    /// What records a desktop's boot, and since when; none if nothing does. It can be asked after the boot has settled.
    pub fn recorder(&self, desktop: &str) -> Option<(Arc<Recorder>, Instant)> {
        let running = self.running();
        let recorded = running.get(desktop)?.recorded.as_ref()?;
        Some((Arc::clone(&recorded.recorder), recorded.began))
    }

    /// Ends a desktop's boot without a word: its machine did not start.
    pub fn forget(&self, desktop: &str) {
        let boot = self.running().remove(desktop);
        if let Some(boot) = boot {
            self.stop_prefetch(&boot);
            if let Some(recorded) = &boot.recorded {
                recorded.base.watch().end();
            }
        }
    }

    fn stop_prefetch(&self, boot: &Boot) {
        for number in boot.files.iter().chain(&boot.prefetch) {
            self.fetcher.stop_prefetch(*number);
        }
    }

    /// A desktop stops: nothing is fetched for it any more. Answers how its boot went, if that is not known yet.
    pub fn end(&self, desktop: &str) -> Option<BootScore> {
        let mut boot = self.running().remove(desktop)?;
        self.stop_prefetch(&boot);
        let recorded = boot.recorded.take()?;
        Some(self.close(desktop, &boot, &recorded))
    }

    /// Boots that are over now, with how they went. What is fetched ahead of them goes on to its end.
    pub fn settled(&self) -> Vec<(String, BootScore)> {
        let mut over = Vec::new();
        {
            let mut running = self.running();
            for (desktop, boot) in running.iter_mut() {
                let is_over = boot
                    .recorded
                    .as_ref()
                    .is_some_and(|r| r.recorder.is_over(r.began.elapsed().as_millis() as u32));
                if is_over && let Some(recorded) = boot.recorded.take() {
                    let closed = Boot {
                        version: boot.version,
                        tree: boot.tree.clone(),
                        plan: std::mem::take(&mut boot.plan),
                        files: Vec::new(),
                        prefetch: None,
                        recorded: None,
                    };
                    over.push((desktop.clone(), closed, recorded));
                }
            }
        }
        over.into_iter()
            .map(|(desktop, boot, recorded)| {
                let score = self.close(&desktop, &boot, &recorded);
                (desktop, score)
            })
            .collect()
    }

    fn close(&self, desktop: &str, boot: &Boot, recorded: &Recorded) -> BootScore {
        recorded.base.watch().end();
        let touches = recorded.recorder.recorded();
        let cache = self.fetcher.cache();
        let map = &boot.tree.map;
        let score = boot.plan.score(map, &touches, |id| cache.contains(id));
        tracing::info!(
            desktop,
            version = %boot.version,
            profile = score.profile,
            boot_ms = score.boot_ms,
            touched_bytes = score.touched_bytes,
            covered_bytes = score.covered_bytes,
            waited_bytes = score.waited_bytes,
            wasted_bytes = score.wasted_bytes,
            "boot settled"
        );
        // Nothing of a trial leaves this branch.
        let is_trial = crate::desktop::is_trial(desktop);
        if is_trial || touches.len() < TOUCHES_MIN || recorded.recorder.has_failed() {
            return score;
        }
        let entries = plan::entries(map, &touches).within(RECORDING_BYTES_MAX);
        let message = BootRecorded {
            version: boot.version,
            score,
            entries,
        };
        if let Err(error) = self.keep(message) {
            tracing::warn!(
                desktop,
                error = crate::desktop::error_line(&error),
                "the boot's recording was not kept"
            );
        }
        score
    }

    fn keep(&self, message: BootRecorded) -> Result<(), CatalogError> {
        let version = message.version;
        let known = self.versions.catalog().profile(version)?;
        let known = known.is_some_and(|p| p.carried_from.is_none() && p.boots >= BOOTS_MAX as u32);
        {
            let mut told = self.told.lock().expect("no panic under this lock");
            let lately = told.get(&version).map(Instant::elapsed);
            if known && lately.is_some_and(|ago| ago < TELL_KNOWN_EVERY) {
                return Ok(());
            }
            told.insert(version, Instant::now());
        }
        let frame = Message::BootRecorded(message).encode();
        self.versions.catalog().put_recording(version, &frame)?;
        self.work.notify_one();
        Ok(())
    }

    /// The datacenter has a profile: it is fetched if it is newer than ours.
    pub fn announce(&self, told: ProfileAvailable) {
        let mut announced = self.announced.lock().expect("no panic under this lock");
        if announced.len() < ANNOUNCED_MAX || announced.contains_key(&told.version) {
            announced.insert(told.version, told.counter);
            drop(announced);
            self.work.notify_one();
        }
    }

    /// What was announced since the last call.
    pub fn take_announced(&self) -> Vec<ProfileAvailable> {
        let mut announced = self.announced.lock().expect("no panic under this lock");
        announced
            .drain()
            .map(|(version, counter)| ProfileAvailable { version, counter })
            .collect()
    }

    /// Returns when something was announced or recorded.
    pub async fn work_arrived(&self) {
        self.work.notified().await;
    }
}
