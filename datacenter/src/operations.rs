//! Long work: each piece is a resource with progress, kept in the catalog, run on a thread of its own.
//!
//! Invariant: an operation that the catalog calls running runs in this process; what a former process left is marked as
//! interrupted when the catalog is opened. Progress lives in memory and reaches the catalog at the end.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use datacenter_api::{
    Operation, OperationKind, OperationResult, OperationState, Phase, Problem, ProblemCode,
    Progress,
};

use crate::catalog::rows::{NewestFirst, OperationRow};
use crate::catalog::{Catalog, CatalogError, Tx};
use crate::clock::Clock;
use crate::problem::{ManageError, problem};

/// Finished operations kept for people to look at; older ones are forgotten.
const KEPT: usize = 1000;

/// Operations at work at once. Each reads and hashes as fast as it can; more would only slow each other down.
const RUNNING_MAX: usize = 8;

/// How far some work is; written by the work, read by whoever asks.
#[derive(Debug, Default)]
pub struct Meter {
    phase: AtomicU8,
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
    /// Chunks that the store did not have.
    pub new_chunks: AtomicU64,
    /// Chunks that it had.
    pub known_chunks: AtomicU64,
    /// Compressed bytes stored.
    pub stored_bytes: AtomicU64,
    cancelled: AtomicBool,
}

const PHASES: [Phase; 13] = [
    Phase::Open,
    Phase::Import,
    Phase::Verify,
    Phase::Sketch,
    Phase::Encode,
    Phase::Publish,
    Phase::Mark,
    Phase::Sweep,
    Phase::Compact,
    Phase::Scrub,
    Phase::Export,
    Phase::Copy,
    Phase::Done,
];

impl Meter {
    /// Begins a phase of `total_bytes`.
    pub fn begin(&self, phase: Phase, total_bytes: u64) {
        self.done_bytes.store(0, Ordering::Relaxed);
        self.total_bytes.store(total_bytes, Ordering::Relaxed);
        let index = PHASES.iter().position(|p| *p == phase).unwrap_or(0);
        self.phase.store(index as u8, Ordering::Relaxed);
    }

    /// Goes on in a phase, or begins it: so much of it is done.
    pub fn at(&self, phase: Phase, done: u64, total: u64) {
        let index = PHASES.iter().position(|p| *p == phase).unwrap_or(0);
        self.phase.store(index as u8, Ordering::Relaxed);
        self.total_bytes.store(total, Ordering::Relaxed);
        self.done_bytes.store(done, Ordering::Relaxed);
    }

    /// Counts bytes of the phase as done.
    pub fn advance(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Asks the work to stop.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        Progress {
            phase: PHASES[usize::from(self.phase.load(Ordering::Relaxed)) % PHASES.len()],
            done_bytes: self.done_bytes.load(Ordering::Relaxed),
            total_bytes: self.total_bytes.load(Ordering::Relaxed),
            new_chunks: self.new_chunks.load(Ordering::Relaxed),
            known_chunks: self.known_chunks.load(Ordering::Relaxed),
            stored_bytes: self.stored_bytes.load(Ordering::Relaxed),
        }
    }
}

struct Running {
    operation: Operation,
    meter: Arc<Meter>,
}

impl Running {
    fn shown(&self) -> Operation {
        Operation {
            progress: self.meter.progress(),
            ..self.operation.clone()
        }
    }
}

/// All long work of this process.
#[derive(Clone)]
pub struct Operations {
    catalog: Catalog,
    clock: Arc<dyn Clock>,
    running: Arc<Mutex<HashMap<u64, Running>>>,
}

fn row(operation: &Operation) -> OperationRow {
    OperationRow {
        json: serde_json::to_string(operation).expect("operations serialise without failing"),
    }
}

fn read(row: &OperationRow) -> Option<Operation> {
    serde_json::from_str(&row.json).ok()
}

impl Operations {
    /// Opens the list; what is called running there was interrupted.
    pub(crate) fn open(catalog: Catalog, clock: Arc<dyn Clock>) -> Result<Self, CatalogError> {
        let now = clock.unix_s();
        catalog.transact(|tx| {
            for (key, kept) in tx.list::<OperationRow>(&[], None, KEPT + RUNNING_MAX)? {
                let Some(mut operation) = read(&kept) else {
                    continue;
                };
                if operation.state != OperationState::Running {
                    continue;
                }
                operation.state = OperationState::Failed;
                operation.finished_unix_s = Some(now);
                operation.error = Some(problem(
                    ProblemCode::Unavailable,
                    "the datacenter was restarted while it worked on this",
                    Some("start it again; what it stored so far is reused".into()),
                ));
                tx.put(&key, &row(&operation));
            }
            Ok::<_, CatalogError>(())
        })?;
        Ok(Self {
            catalog,
            clock,
            running: Arc::default(),
        })
    }

    fn running(&self) -> MutexGuard<'_, HashMap<u64, Running>> {
        self.running.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Starts `work` on a thread of its own.
    pub fn start(
        &self,
        kind: OperationKind,
        subject: String,
        work: impl FnOnce(&Meter) -> Result<OperationResult, Problem> + Send + 'static,
    ) -> Result<Operation, ManageError> {
        let mut running = self.running();
        if running.len() >= RUNNING_MAX {
            return Err(ManageError::conflict(
                format!("{RUNNING_MAX} operations are running already"),
                "wait until one has finished: `splice status`",
            ));
        }
        let mut operation = Operation {
            id: 0,
            kind,
            subject,
            state: OperationState::Running,
            progress: Progress::default(),
            started_unix_s: self.clock.unix_s(),
            finished_unix_s: None,
            result: None,
            error: None,
        };
        operation.id = self.catalog.transact(|tx: &mut Tx<'_>| {
            let newest = tx.list::<OperationRow>(&[], None, 1)?;
            let id = newest.first().map_or(1, |(NewestFirst(id), _)| id + 1);
            let numbered = Operation {
                id,
                ..operation.clone()
            };
            tx.put(&NewestFirst(id), &row(&numbered));
            // Old ones are forgotten a few at a time, as new ones come.
            if let Some(oldest_kept) = id.checked_sub(KEPT as u64) {
                for (key, _) in tx.list::<OperationRow>(&[], Some(&NewestFirst(oldest_kept)), 4)? {
                    tx.delete::<OperationRow>(&key);
                }
            }
            Ok::<_, CatalogError>(id)
        })?;
        let meter = Arc::new(Meter::default());
        let id = operation.id;
        running.insert(
            id,
            Running {
                operation: operation.clone(),
                meter: meter.clone(),
            },
        );
        drop(running);
        let operations = self.clone();
        let spawned = std::thread::Builder::new()
            .name(format!("operation-{id}"))
            .spawn(move || {
                let _span = tracing::info_span!("operation", id).entered();
                let outcome = catch_unwind(AssertUnwindSafe(|| work(&meter)));
                let outcome = outcome.unwrap_or_else(|_| {
                    Err(problem(
                        ProblemCode::Internal,
                        "a defect of the datacenter ended this; its log says more",
                        None,
                    ))
                });
                operations.finish(id, outcome);
            });
        if let Err(error) = spawned {
            let failed = problem(
                ProblemCode::Unavailable,
                format!("no thread to work on this: {error}"),
                None,
            );
            self.finish(id, Err(failed));
        }
        Ok(operation)
    }

    fn finish(&self, id: u64, outcome: Result<OperationResult, Problem>) {
        let Some(mut operation) = self.running().get(&id).map(Running::shown) else {
            return;
        };
        operation.finished_unix_s = Some(self.clock.unix_s());
        match outcome {
            Ok(result) => {
                tracing::info!(operation = id, subject = %operation.subject, "operation succeeded");
                operation.state = OperationState::Succeeded;
                operation.progress.phase = Phase::Done;
                operation.result = Some(result);
            }
            Err(failure) => {
                tracing::warn!(operation = id, subject = %operation.subject, error = %failure.message, "operation failed");
                operation.state = OperationState::Failed;
                operation.error = Some(failure);
            }
        }
        let kept = self.catalog.transact(|tx| {
            tx.put(&NewestFirst(id), &row(&operation));
            Ok::<_, CatalogError>(())
        });
        if let Err(error) = kept {
            tracing::error!(operation = id, %error, "the outcome of an operation was not kept");
            // It stays visible, with its outcome, until the process ends.
            if let Some(running) = self.running().get_mut(&id) {
                running.operation = operation;
            }
            return;
        }
        self.running().remove(&id);
    }

    /// One operation.
    pub fn get(&self, id: u64) -> Result<Option<Operation>, CatalogError> {
        if let Some(running) = self.running().get(&id) {
            return Ok(Some(running.shown()));
        }
        let row = self
            .catalog
            .read(|tx| tx.get::<OperationRow>(&NewestFirst(id)))?;
        Ok(row.as_ref().and_then(read))
    }

    /// At most `limit` operations older than `before`, newest first.
    pub fn list(&self, before: Option<u64>, limit: usize) -> Result<Vec<Operation>, CatalogError> {
        let after = before.map(NewestFirst);
        let rows = self
            .catalog
            .read(|tx| tx.list::<OperationRow>(&[], after.as_ref(), limit))?;
        let running = self.running();
        let shown = rows.iter().filter_map(|(NewestFirst(id), row)| {
            running.get(id).map(Running::shown).or_else(|| read(row))
        });
        Ok(shown.collect())
    }

    /// How many are at work.
    pub fn running_count(&self) -> u64 {
        self.running().len() as u64
    }

    /// Asks an operation to stop; whether it is running.
    pub fn cancel(&self, id: u64) -> bool {
        let running = self.running();
        let found = running.get(&id);
        if let Some(running) = found {
            running.meter.cancel();
        }
        found.is_some()
    }

    /// Asks all to stop, for the end of the process.
    pub fn cancel_all(&self) {
        for running in self.running().values() {
            running.meter.cancel();
        }
    }
}
