//! Where a machine's threads are started, each for a [`Role`].
//!
//! In a sandbox ([`confine`]) a thread may do what its role needs and nothing else. A thread inherits what restricts the one that starts
//! it, so one thread, the starter, starts all others: a processor's thread, which starts devices, needs none of their system calls for
//! itself. Without a sandbox, threads are started at once by whoever wants them.

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::{Builder, JoinHandle};

pub use crate::sandbox::seccomp::Role;
use crate::sandbox::seccomp::{Filters, SeccompError};

/// Threads that wait to be started: whoever wants one waits for it, so that there are never more than threads that do.
const JOBS_MAX: usize = 16;

type Job = Box<dyn FnOnce() + Send>;

struct Starter {
    jobs: SyncSender<Job>,
    filters: Arc<Filters>,
}

static STARTER: OnceLock<Starter> = OnceLock::new();

/// Why threads cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The kernel refuses.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// No thread is to be had.
    #[error("the thread that starts others")]
    Thread(#[from] io::Error),
    /// A mistake of ours.
    #[error("this process is confined already")]
    Twice,
}

/// From now on the calling thread is [`Role::Main`], and every thread that is started here keeps to its role's list.
///
/// # Errors
/// See [`ConfineError`].
pub fn confine(filters: Filters) -> Result<(), ConfineError> {
    let filters = Arc::new(filters);
    let (jobs, taken) = sync_channel::<Job>(JOBS_MAX);
    let (ready, entered) = sync_channel(1);
    let own = Arc::clone(&filters);
    // Before there is any list: with a process's first thread the C library sets up things that no later one needs.
    Builder::new().name("starter".into()).spawn(move || {
        // What all roles have together: others get theirs from it.
        let _ = ready.send(own.enter_process());
        for job in taken {
            job();
        }
    })?;
    entered.recv().map_err(io::Error::other)??;
    filters.enter_process()?;
    let starter = Starter {
        jobs,
        filters: Arc::clone(&filters),
    };
    STARTER.set(starter).map_err(|_| ConfineError::Twice)?;
    Ok(filters.enter(Role::Main)?)
}

/// Whether threads keep to their lists.
pub fn are_confined() -> bool {
    STARTER.get().is_some()
}

/// Starts a thread.
///
/// # Errors
/// None is to be had.
pub fn spawn<T, F>(role: Role, name: &str, work: F) -> io::Result<JoinHandle<T>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let builder = Builder::new().name(name.to_owned());
    let Some(starter) = STARTER.get() else {
        return builder.spawn(work);
    };
    let filters = Arc::clone(&starter.filters);
    let (done, started) = sync_channel(1);
    let job: Job = Box::new(move || {
        let thread = builder.spawn(move || {
            if let Err(error) = filters.enter(role) {
                // A thread without its list must not run, and those who wait for it would wait for ever.
                tracing::error!(%error, ?role, "a thread cannot be confined");
                std::process::exit(1);
            }
            work()
        });
        let _ = done.send(thread);
    });
    let gone = || io::Error::other("the thread that starts others is gone");
    starter.jobs.send(job).map_err(|_| gone())?;
    started.recv().map_err(|_| gone())?
}

/// A thread that serves for as long as the process lives, and is not started yet: what it serves is bound before the sandbox is entered,
/// and served inside.
#[must_use = "nobody is served before it is started"]
pub struct Service {
    role: Role,
    name: &'static str,
    work: Job,
}

impl Service {
    /// See the type.
    pub fn new(role: Role, name: &'static str, work: impl FnOnce() + Send + 'static) -> Self {
        let work = Box::new(work);
        Self { role, name, work }
    }

    /// Starts it.
    ///
    /// # Errors
    /// No thread is to be had.
    pub fn start(self) -> io::Result<()> {
        spawn(self.role, self.name, self.work).map(drop)
    }
}
