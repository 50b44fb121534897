//! Updates: what a version has and an earlier one lacks, encoded once, kept on disk, served to every branch that holds the earlier one.
//!
//! ```text
//!            find_or_want            run             make                     make
//!   (none) ───────────────► Waiting ─────► Planning ──────► Growing(batches) ──────► Whole
//!                              └──────────────┴──────────────┴── error ──► (failed, for a while)
//! ```
//!
//! One [`Update`] for each pair, however many ask ([`Updates::find_or_want`]); each making is an operation that IT sees. A process
//! that dies leaves a `.part` file that the next goes on with. Updates can always be made again: a damaged file is thrown away, and
//! when they take too much room those of the oldest versions go first. Serving them is [`crate::sync`]'s.

pub mod file;
mod make;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use datacenter_api::{Operation, OperationKind, OperationResult, Problem, UpdateSummary};
use dedup::VersionId;
use dedup_protocol::update::UpdateSource;
use dedup_protocol::wire::BatchSize;
use dedup_store::disk::{Disk, HostDisk};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub use file::Pair;
use file::{Identity, UpdateFile, UpdateFileError};
use make::Ends;
pub use make::UpdateError;

use crate::datacenter::Datacenter;
use crate::operations::Meter;
use crate::problem::{ManageError, describe};

/// Updates that wait for their turn; more are refused, and branches fetch those versions plain.
const QUEUE_MAX: usize = 32;

/// For how long an update that could not be made is not tried again because a branch asks.
const FAILED_FOR: Duration = Duration::from_secs(600);

/// Failures remembered.
const FAILED_MAX: usize = 256;

/// Complete files kept open. One that is asked for again is opened again.
const OPEN_MAX: usize = 64;

/// Most bytes that all complete updates may take; beyond it those of the oldest versions are removed. Twenty updates of a gigabyte.
const KEPT_BYTES_MAX: u64 = 20 << 30;

/// How often an operation that waits for its turn looks whether it was cancelled.
const TURN_POLL: Duration = Duration::from_millis(100);

/// How often the queue tries to begin while as many operations run as may.
const BUSY_POLL: Duration = Duration::from_secs(2);

/// Where an update stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Others are made before it.
    Waiting,
    /// Chunks are sketched and batches planned.
    Planning,
    /// This many batches are encoded.
    Growing(u32),
    /// All are.
    Whole,
    /// It will not come; why.
    Failed(Arc<str>),
}

/// One update, whole or on its way.
pub struct Update {
    /// Between which versions.
    pub pair: Pair,
    file: OnceLock<UpdateFile>,
    stage: watch::Sender<Stage>,
}

impl Update {
    fn new(pair: Pair) -> Self {
        Self {
            pair,
            file: OnceLock::new(),
            stage: watch::Sender::new(Stage::Waiting),
        }
    }

    /// Follows where it stands.
    pub fn subscribe(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    fn set(&self, stage: Stage) {
        self.stage.send_replace(stage);
    }

    fn planned(&self, file: UpdateFile) -> &UpdateFile {
        // A second try after a failure is a value of its own, so this one is planned once.
        let file = self.file.get_or_init(|| file);
        self.grew();
        file
    }

    fn grew(&self) {
        let file = self.file.get().expect("it grows only once it is planned");
        let done = file.plans().len() - file.missing().len();
        self.set(Stage::Growing(done as u32));
    }

    fn is_whole(&self) -> bool {
        *self.stage.borrow() == Stage::Whole
    }

    /// Its figures, once it is planned.
    fn summary(&self, ends: &Ends) -> Option<UpdateSummary> {
        let file = self.file.get()?;
        let sizes = file.sizes();
        Some(UpdateSummary {
            from: make::name(&ends.parent),
            to: make::name(&ends.version),
            whole: self.is_whole(),
            batches: sizes.len() as u64,
            encoded_batches: sizes.iter().filter(|s| s.packed_bytes > 0).count() as u64,
            new_chunks: sizes.iter().map(|s| u64::from(s.chunks)).sum(),
            plain_bytes: file.plain_bytes(),
            packed_bytes: sizes.iter().map(|s| u64::from(s.packed_bytes)).sum(),
        })
    }
}

impl UpdateSource for Update {
    type Error = UpdateFileError;

    fn sizes(&self) -> Result<Option<Vec<BatchSize>>, UpdateFileError> {
        Ok(self.file.get().map(UpdateFile::sizes))
    }

    fn batch(&self, number: u32) -> Result<Option<Bytes>, UpdateFileError> {
        self.file.get().map_or(Ok(None), |file| file.read(number))
    }
}

/// Why an update will not come.
#[derive(Debug, thiserror::Error)]
pub enum NoUpdate {
    /// Too many are waiting.
    #[error("{QUEUE_MAX} updates are waiting to be encoded already")]
    Busy,
    /// It was tried not long ago.
    #[error("it could not be made: {0}")]
    Failed(Arc<str>),
    /// The disk.
    #[error("the folder of updates")]
    Io(#[from] io::Error),
}

/// All updates of a datacenter.
pub struct Updates {
    dir: PathBuf,
    disk: OnceLock<Arc<dyn Disk>>,
    state: Mutex<State>,
    wanted: Notify,
    /// Held by whoever makes one.
    turn: Mutex<()>,
}

#[derive(Default)]
struct State {
    /// Those that are waiting, being made, or open for reading.
    known: HashMap<Pair, Arc<Update>>,
    queue: VecDeque<Pair>,
    failed: HashMap<Pair, (Instant, Arc<str>)>,
}

impl Updates {
    /// Keeps them in `dir`, which is made when it is first needed.
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            disk: OnceLock::new(),
            state: Mutex::default(),
            wanted: Notify::new(),
            turn: Mutex::default(),
        }
    }

    fn disk(&self) -> io::Result<&Arc<dyn Disk>> {
        if let Some(disk) = self.disk.get() {
            return Ok(disk);
        }
        let opened: Arc<dyn Disk> = Arc::new(HostDisk::new(self.dir.clone())?);
        Ok(self.disk.get_or_init(|| opened))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing leaves it half changed.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The update of a pair, if there is one or one is on its way.
    pub fn find(&self, dc: &Datacenter, pair: Pair) -> Result<Option<Arc<Update>>, io::Error> {
        if let Some(known) = self.state().known.get(&pair) {
            return Ok(Some(Arc::clone(known)));
        }
        let disk = self.disk()?;
        let (whole, _) = file::names(&pair);
        let identity = Identity::new(dc.realm(), dc.id_key(), pair);
        // Not under the lock: a large file takes thousands of reads, and every request for any update would wait for them.
        let opened = UpdateFile::open(disk.as_ref(), &whole, &identity);
        let mut state = self.state();
        if let Some(known) = state.known.get(&pair) {
            return Ok(Some(Arc::clone(known)));
        }
        match opened {
            Ok(file) => {
                let update = Arc::new(Update::new(pair));
                update.planned(file);
                update.set(Stage::Whole);
                if state.known.len() >= OPEN_MAX {
                    state.known.retain(|_, update| !update.is_whole());
                }
                state.known.insert(pair, Arc::clone(&update));
                Ok(Some(update))
            }
            Err(UpdateFileError::Io(e)) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(UpdateFileError::Io(e)) => Err(e),
            Err(error @ UpdateFileError::Damaged { .. }) => {
                tracing::warn!(error = %error, "an encoded update is thrown away; it is made again when it is needed");
                disk.remove(&whole)?;
                Ok(None)
            }
        }
    }

    /// The update of a pair; if there is none yet, it is put into the queue.
    pub fn find_or_want(&self, dc: &Datacenter, pair: Pair) -> Result<Arc<Update>, NoUpdate> {
        if let Some(found) = self.find(dc, pair)? {
            return Ok(found);
        }
        let mut state = self.state();
        if let Some((at, reason)) = state.failed.get(&pair)
            && at.elapsed() < FAILED_FOR
        {
            return Err(NoUpdate::Failed(Arc::clone(reason)));
        }
        if state.queue.len() >= QUEUE_MAX {
            return Err(NoUpdate::Busy);
        }
        let update = Self::enter(&mut state, pair);
        if !state.queue.contains(&pair) {
            state.queue.push_back(pair);
        }
        drop(state);
        self.wanted.notify_one();
        Ok(update)
    }

    /// The one value of a pair that is not whole yet.
    fn enter(state: &mut State, pair: Pair) -> Arc<Update> {
        let fresh = || Arc::new(Update::new(pair));
        Arc::clone(state.known.entry(pair).or_insert_with(fresh))
    }

    /// A new version was published: those who hold its parent will ask for this.
    pub fn published(&self, dc: &Datacenter, pair: Pair) {
        if let Err(error) = self.find_or_want(dc, pair) {
            tracing::warn!(
                error = describe(&error),
                "no update is encoded for a new version; branches fetch it plain"
            );
        }
    }

    /// Makes the update of a pair, now or when those before it are done. Long: the work of an operation.
    pub fn make(
        &self,
        dc: &Datacenter,
        pair: Pair,
        meter: &Meter,
    ) -> Result<UpdateSummary, UpdateError> {
        // Neither version is given up while its chunks are read.
        let _uses = [pair.parent, pair.version].map(|id| dc.use_version(id));
        let ends = Ends::open(dc, &pair).inspect_err(|e| self.fail_waiting(pair, e))?;
        let turn = loop {
            match self.turn.try_lock() {
                Ok(turn) => break turn,
                Err(std::sync::TryLockError::Poisoned(turn)) => break turn.into_inner(),
                Err(std::sync::TryLockError::WouldBlock) => std::thread::sleep(TURN_POLL),
            }
            if meter.is_cancelled() {
                self.fail_waiting(pair, &UpdateError::Cancelled);
                return Err(UpdateError::Cancelled);
            }
        };
        let io = |e| UpdateError::File(UpdateFileError::Io(e));
        let known = self.find(dc, pair).map_err(io)?;
        if let Some(known) = known.filter(|known| known.is_whole()) {
            return Ok(known.summary(&ends).expect("a whole update is planned"));
        }
        let disk = Arc::clone(self.disk().map_err(io)?);
        let update = {
            let mut state = self.state();
            state.queue.retain(|queued| *queued != pair);
            state.failed.remove(&pair);
            Self::enter(&mut state, pair)
        };
        update.set(Stage::Planning);
        if dc.free_bytes() < make::FREE_BYTES_MIN {
            self.prune(dc, pair, 0);
        }
        // A panic must not leave branches waiting for what nobody makes.
        let mut guard = FailOnDrop {
            updates: self,
            pair,
            reason: Some("a defect of the datacenter ended it".into()),
        };
        let made = make::make(dc, disk.as_ref(), &update, meter);
        guard.reason = made.as_ref().err().map(|error| describe(error).into());
        drop(guard);
        if made.as_ref().is_err_and(UpdateError::is_for_want_of_room) {
            // Gone on with it cannot be, and others need the room.
            let _ = disk.remove(&file::names(&pair).1);
        }
        drop(turn);
        if made.is_ok() {
            self.prune(dc, pair, KEPT_BYTES_MAX);
        }
        made
    }

    /// Tells everybody who waits for an update that it will not come.
    fn fail(&self, pair: Pair, reason: Arc<str>) {
        let mut state = self.state();
        let update = state.known.remove(&pair);
        state.queue.retain(|queued| *queued != pair);
        if state.failed.len() >= FAILED_MAX {
            state.failed.retain(|_, (at, _)| at.elapsed() < FAILED_FOR);
        }
        if state.failed.len() < FAILED_MAX {
            let failed = (Instant::now(), Arc::clone(&reason));
            state.failed.insert(pair, failed);
        }
        drop(state);
        if let Some(update) = update {
            update.set(Stage::Failed(reason));
        }
    }

    /// The same, unless somebody else is at work on it.
    fn fail_waiting(&self, pair: Pair, error: &UpdateError) {
        let known = self.state().known.get(&pair).map(Arc::clone);
        if known.is_some_and(|update| *update.stage.borrow() == Stage::Waiting) {
            self.fail(pair, describe(error).into());
        }
    }

    /// What a file that did not read back leaves: nothing. It is made again when somebody asks.
    pub fn discard(&self, update: &Arc<Update>, reason: &str) {
        let (whole, _) = file::names(&update.pair);
        let mut state = self.state();
        let known = state.known.get(&update.pair);
        if !update.is_whole() || known.is_some_and(|known| !Arc::ptr_eq(known, update)) {
            // Somebody else did, or makes it anew already.
            return;
        }
        tracing::warn!(
            file = whole,
            reason,
            "an encoded update is thrown away; it is made again when it is needed"
        );
        state.known.remove(&update.pair);
        if let Ok(disk) = self.disk()
            && let Err(error) = disk.remove(&whole)
        {
            tracing::warn!(%error, "it could not be removed");
        }
    }

    /// Removes updates of the oldest versions, half-made ones too, while all take more than `bytes_max`. `keep` stays.
    fn prune(&self, dc: &Datacenter, keep: Pair, bytes_max: u64) {
        let Ok(disk) = self.disk() else { return };
        let mut kept = Vec::new();
        for name in disk.list("").unwrap_or_default() {
            let Some((pair, growing)) = file::pair_of_name(&name) else {
                continue;
            };
            let bytes = std::fs::metadata(self.dir.join(&name)).map_or(0, |m| m.len());
            let age = dc.version(pair.version).ok().flatten();
            let age = age.and_then(|signed| signed.open_own().ok());
            kept.push((
                age.map_or(0, |record| record.created_unix_s),
                pair,
                name,
                bytes,
                growing,
            ));
        }
        kept.sort();
        let mut total: u64 = kept.iter().map(|(.., bytes, _)| bytes).sum();
        for (_, pair, name, bytes, growing) in kept {
            if total <= bytes_max {
                return;
            }
            if pair != keep && disk.remove(&name).is_ok() {
                tracing::info!(file = name, bytes, "an old update was removed to make room");
                // Who waits for a half-made one waits on: it is made from the start.
                if !growing {
                    self.state().known.remove(&pair);
                }
                total -= bytes;
            }
        }
    }

    /// The pairs whose updates are being made at this moment. One that waits for its turn keeps nobody from anything.
    pub(crate) fn being_made(&self) -> Vec<Pair> {
        let at_work = |update: &&Arc<Update>| {
            matches!(*update.stage.borrow(), Stage::Planning | Stage::Growing(_))
        };
        let state = self.state();
        let making = state.known.values().filter(at_work);
        making.map(|update| update.pair).collect()
    }

    /// Removes the updates from and to a version that is given up.
    pub(crate) fn forget(&self, version: VersionId) {
        let concerns = |pair: &Pair| pair.parent == version || pair.version == version;
        {
            let mut state = self.state();
            state.known.retain(|pair, _| !concerns(pair));
            state.queue.retain(|pair| !concerns(pair));
        }
        let Ok(disk) = self.disk() else { return };
        for name in disk.list("").unwrap_or_default() {
            if let Some((pair, _)) = file::pair_of_name(&name)
                && concerns(&pair)
                && let Err(error) = disk.remove(&name)
            {
                tracing::warn!(file = name, %error, "an update of a version that is gone was not removed");
            }
        }
    }

    /// The figures of a pair's update, if there is one or one is being made.
    pub fn summary(&self, dc: &Datacenter, pair: Pair) -> Option<UpdateSummary> {
        let ends = Ends::open(dc, &pair).ok()?;
        self.find(dc, pair).ok()??.summary(&ends)
    }

    /// Puts what a former process left half made into the queue, and removes what belongs to no version.
    fn take_up(&self, dc: &Datacenter) -> io::Result<()> {
        let disk = self.disk()?;
        for name in disk.list("")? {
            let Some((pair, growing)) = file::pair_of_name(&name) else {
                continue;
            };
            if matches!(Ends::open(dc, &pair), Err(UpdateError::Missing(_))) {
                tracing::info!(
                    file = name,
                    "an update of versions that are not here is removed"
                );
                disk.remove(&name)?;
            } else if growing && let Err(error) = self.find_or_want(dc, pair) {
                tracing::warn!(
                    error = describe(&error),
                    "a half-made update waits until it is asked for"
                );
            }
        }
        Ok(())
    }

    fn next(&self) -> Option<Pair> {
        let mut state = self.state();
        loop {
            let pair = state.queue.front().copied()?;
            if state.known.get(&pair).is_some_and(|u| !u.is_whole()) {
                return Some(pair);
            }
            state.queue.pop_front();
        }
    }
}

/// Fails an update at its end, if it has a reason by then.
struct FailOnDrop<'a> {
    updates: &'a Updates,
    pair: Pair,
    reason: Option<Arc<str>>,
}

impl Drop for FailOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(reason) = self.reason.take() {
            self.updates.fail(self.pair, reason);
        }
    }
}

/// Makes what is wanted, one after the other, until `cancel`.
pub async fn run(dc: Arc<Datacenter>, cancel: CancellationToken) {
    let worker = Arc::clone(&dc);
    let taken_up = tokio::task::spawn_blocking(move || worker.updates().take_up(&worker)).await;
    match taken_up {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "the folder of updates cannot be read"),
        Err(error) => tracing::error!(%error, "taking up updates"),
    }
    loop {
        let Some(pair) = dc.updates().next() else {
            tokio::select! {
                () = dc.updates().wanted.notified() => continue,
                () = cancel.cancelled() => return,
            }
        };
        tokio::select! {
            () = make_one(&dc, pair) => {}
            () = cancel.cancelled() => return,
        }
    }
}

/// Makes one update as an operation and waits for its end.
async fn make_one(dc: &Arc<Datacenter>, pair: Pair) {
    let (ended, end) = tokio::sync::oneshot::channel::<()>();
    let worker = Arc::clone(dc);
    let started =
        tokio::task::spawn_blocking(move || begin(&worker, pair, Some(ended)).map(|_| ())).await;
    match started {
        Ok(Ok(())) => {}
        // Too many operations at once: what people start by hand goes first.
        Ok(Err(ManageError::Conflict { .. })) => return tokio::time::sleep(BUSY_POLL).await,
        Ok(Err(error)) => return dc.updates().fail(pair, describe(&error).into()),
        Err(error) => return dc.updates().fail(pair, describe(&error).into()),
    }
    // The work drops its end when it is over, however it is.
    let _ = end.await;
}

/// Starts the operation that makes an update.
pub fn operation(dc: &Arc<Datacenter>, pair: Pair) -> Result<Operation, ManageError> {
    begin(dc, pair, None)
}

fn begin(
    dc: &Arc<Datacenter>,
    pair: Pair,
    ended: Option<tokio::sync::oneshot::Sender<()>>,
) -> Result<Operation, ManageError> {
    let ends = Ends::open(dc, &pair).map_err(|e| ManageError::invalid(describe(&e)))?;
    let (from, to) = (make::name(&ends.parent), make::name(&ends.version));
    let worker = Arc::clone(dc);
    let work = move |meter: &Meter| {
        let _ended = ended;
        match worker.updates().make(&worker, pair, meter) {
            Ok(summary) => Ok(OperationResult::Update(summary)),
            Err(error) => Err(Problem::from(&error)),
        }
    };
    dc.operations()
        .start(OperationKind::Update, format!("{from}..{to}"), work)
}
