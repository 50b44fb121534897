//! The agents inside desktops, as the branch server sees them: what each one last said, and a way to give it an order.
//!
//! ```text
//!   watch ──a task for each machine──► attend ──lines──► Session (a value) ──► what is shown
//!                                        ▲ orders: freeze, thaw, shut down
//! ```
//!
//! A guest is not trusted. Its lines are bounded ([`branch_guest`]), read no faster than [`allowance::Allowance`] gives, and all that they change is what is
//! shown of that desktop: a guest that says too much or nonsense slows itself down. A desktop without an agent works as well; whoever asks for what
//! needs one is told that there is none.

mod allowance;
mod attend;
mod session;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use branch_api::Guest;
use branch_guest::{FREEZE_MS_MAX, Identity, UserVolume, What};
use tokio::sync::mpsc;

pub use attend::{GuestPort, watch};

/// Orders to one agent that wait: one is carried out at a time, and few parts of the server give any.
const ORDERS_MAX: usize = 4;
/// How long an agent may take to freeze or thaw: it writes out what its file system holds back.
const FREEZE_PATIENCE: Duration = Duration::from_secs(15);
/// How long it may take to begin to shut down.
const SHUT_DOWN_PATIENCE: Duration = Duration::from_secs(5);
/// What handing an order over and its answer back may take beyond that.
const HANDING: Duration = Duration::from_secs(1);

/// Why an agent did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// There is none, or it does not answer.
    #[error(
        "desktop {0:?} has no agent that answers; install the package splice-agent in its image"
    )]
    NoAgent(String),
    /// It has other orders.
    #[error("the agent of desktop {0:?} has not done yet what it was told before; try again")]
    Busy(String),
    /// It did not answer in time.
    #[error("the agent of desktop {0:?} did not answer in time")]
    Late(String),
    /// It says that it could not.
    #[error("the agent of desktop {name:?}: {why}")]
    Refused {
        /// The desktop.
        name: String,
        /// Its words.
        why: String,
    },
}

/// What an agent is told when it greets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Who the desktop is.
    pub identity: Identity,
    /// Its user volume.
    pub user_volume: Option<UserVolume>,
}

/// What the branch server knows of the desktops whose agents are attended to. Its calls may block.
pub trait Directory: Send + Sync {
    /// Where the agents of all machines that run have their ports; none if that cannot be known now.
    fn ports(&self) -> Option<Vec<GuestPort>>;

    /// What a desktop's agent is told when it greets; none if there is no such desktop.
    fn facts(&self, name: &str) -> Option<Facts>;

    /// Unix milliseconds.
    fn now_unix_ms(&self) -> u64;
}

/// An order on its way to an agent.
struct Order {
    what: What,
    /// Nobody waits for it after this.
    until: Instant,
    /// Takes the agent's answer, or its refusal.
    answer: std::sync::mpsc::SyncSender<Result<(), String>>,
}

/// One desktop's place.
struct Seat {
    number: u64,
    shown: Option<Guest>,
    orders: mpsc::Sender<Order>,
}

/// See the module.
#[derive(Default)]
pub struct Guests {
    seats: Mutex<HashMap<String, Seat>>,
    numbers: AtomicU64,
}

/// A desktop's place, for as long as somebody attends to its agent.
struct Taken {
    guests: Arc<Guests>,
    name: String,
    number: u64,
}

impl Guests {
    fn seats(&self) -> MutexGuard<'_, HashMap<String, Seat>> {
        self.seats.lock().expect("no panic under this lock")
    }

    /// Takes a desktop's place, from whoever had it.
    fn take(self: &Arc<Self>, name: &str, orders: mpsc::Sender<Order>) -> Taken {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let seat = Seat {
            number,
            shown: None,
            orders,
        };
        self.seats().insert(name.to_owned(), seat);
        Taken {
            guests: Arc::clone(self),
            name: name.to_owned(),
            number,
        }
    }

    /// What a desktop's agent last said; none if it has none.
    pub fn shown(&self, name: &str) -> Option<Guest> {
        self.seats().get(name)?.shown.clone()
    }

    /// Gives an order and waits until it is carried out.
    fn order(&self, name: &str, what: What, patience: Duration) -> Result<(), GuestError> {
        let orders = {
            let seats = self.seats();
            let seat = seats.get(name).filter(|seat| {
                let shown = seat.shown.as_ref();
                shown.is_some_and(|guest| guest.connected && guest.protocol.is_some())
            });
            let seat = seat.ok_or_else(|| GuestError::NoAgent(name.into()))?;
            seat.orders.clone()
        };
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        let until = Instant::now() + patience;
        let order = Order {
            what,
            until,
            answer,
        };
        let sent = orders.try_send(order);
        sent.map_err(|_| GuestError::Busy(name.into()))?;
        match answered.recv_timeout(patience + HANDING) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => Err(GuestError::Refused {
                name: name.into(),
                why,
            }),
            Err(_) => Err(GuestError::Late(name.into())),
        }
    }

    /// Has a desktop shut itself down.
    ///
    /// # Errors
    /// It has no agent, or that cannot.
    pub fn shut_down(&self, name: &str) -> Result<(), GuestError> {
        self.order(name, What::ShutDown, SHUT_DOWN_PATIENCE)
    }

    /// Has a desktop write out its user volume's file system and hold it still until the result is dropped, or for `at_most` whatever happens here.
    /// Blocks.
    ///
    /// # Errors
    /// It has no agent, or that cannot: it is not frozen then.
    pub fn freeze(&self, name: &str, at_most: Duration) -> Result<Frozen<'_>, GuestError> {
        let for_ms = u32::try_from(at_most.as_millis()).unwrap_or(FREEZE_MS_MAX);
        let for_ms = for_ms.min(FREEZE_MS_MAX);
        let frozen = Frozen {
            guests: self,
            name: name.to_owned(),
            is_over: false,
        };
        match self.order(name, What::Freeze { for_ms }, FREEZE_PATIENCE) {
            Ok(()) => Ok(frozen),
            Err(error) => {
                // One that answers too late is frozen still: dropping it tells it to go on. Whoever is not there needs no telling.
                let may_be_frozen = matches!(error, GuestError::Late(_));
                let mut frozen = frozen;
                frozen.is_over = !may_be_frozen;
                Err(error)
            }
        }
    }
}

/// A file system that stands still.
pub struct Frozen<'a> {
    guests: &'a Guests,
    name: String,
    is_over: bool,
}

impl Frozen<'_> {
    /// Lets it go on.
    ///
    /// # Errors
    /// It went on before, because its time was over: what was done meanwhile may not be of one moment.
    pub fn thaw(mut self) -> Result<(), GuestError> {
        self.is_over = true;
        self.guests.order(&self.name, What::Thaw, FREEZE_PATIENCE)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            // Where it does not hear, its own clock ends it.
            let _ = self.guests.order(&self.name, What::Thaw, FREEZE_PATIENCE);
        }
    }
}

impl Taken {
    /// Shows what an agent says; before it has said anything what was said last stays.
    fn show(&self, guest: Option<Guest>) {
        if let Some(seat) = self.guests.seats().get_mut(&self.name)
            && seat.number == self.number
            && guest.is_some()
        {
            seat.shown = guest;
        }
    }

    /// Nobody is at the other end.
    fn show_alone(&self) {
        let mut shown = self.guests.shown(&self.name);
        if let Some(guest) = &mut shown {
            guest.connected = false;
        }
        self.show(shown);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut seats = self.guests.seats();
        if seats
            .get(&self.name)
            .is_some_and(|seat| seat.number == self.number)
        {
            seats.remove(&self.name);
        }
    }
}
