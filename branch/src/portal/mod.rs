//! The portal: a user logs in at the branch and has a desktop in the browser, with the line up or cut.
//!
//! ```text
//!   log-in ──► session ──► connect ──► (waits for room) ──► starts ──► ticket ──► screen, until somebody takes over, logs out or may not any more
//! ```
//!
//! Start reading at [`Portal::connect`]: one click, asked again until there is a ticket. It owns sessions, [`tickets`], the [`line`] of those who wait for
//! room, and who looks at which desktop ([`viewers`]). Invariant: each call looks at what its user may do now ([`Portal::caller`]); a user reaches the desktops
//! that [`names`] makes of the user and a pool of the newest roster, and no other, whatever a request names. All of it is in memory: a branch
//! server that starts anew has its users log in again, and their desktops go on.
//!
//! It knows neither HTTP (`http::portal` does) nor machines ([`house::House`] stands for them), and never shows a desktop to two at once.

pub mod house;
pub mod line;
pub mod names;
pub mod sessions;
#[cfg(test)]
pub(crate) mod tests;
pub mod tickets;
pub mod viewers;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use branch_api::portal::{Connection, PortalDesktop, PowerAction};
use branch_api::{DesktopState, LogIn};
use dedup_protocol::people::gate::Gate;

use crate::desktop::{DesktopError, error_line};
use crate::keys::system_random;
use crate::people::LogInError;
use house::{House, Seen};
use line::{Line, Turn};
use sessions::{SESSION_S, Session, Sessions};
use tickets::{Ticket, Tickets};
use viewers::{Entered, Viewers};

/// Why somebody does not get what he asked the portal for.
#[derive(Debug, thiserror::Error)]
pub enum PortalError {
    /// Nobody, or one whose session is over.
    #[error("this needs a session that has not ended; log in again")]
    Nobody,
    /// Not entitled, or no such pool.
    #[error(
        "there is no pool {pool:?} of yours at this branch; your administrator gives it to you with `splice entitle`"
    )]
    NotYours {
        /// What was asked for.
        pool: String,
    },
    /// The name is taken.
    #[error(
        "a desktop {name:?} of pool {pool:?} is in the way of yours; your administrator can delete or rename it"
    )]
    Taken {
        /// Its name.
        name: String,
        /// The pool that it is of.
        pool: String,
    },
    /// Somebody else runs its machine.
    #[error(
        "the disk of {name:?} is served to a machine that the portal does not know; stop it with `splice desktop stop {name}`"
    )]
    Served {
        /// Its name.
        name: String,
    },
    /// It runs and shows nothing.
    #[error(
        "{name:?} has no screen (its machine is too old or has just ended); try again, or power it off and connect again"
    )]
    NoScreen {
        /// Its name.
        name: String,
    },
    /// It could not be begun.
    #[error("{name:?} does not start: {why}")]
    NotStarted {
        /// Its name.
        name: String,
        /// Why not.
        why: String,
    },
    /// Used, over, or another session's.
    #[error("the ticket was used already, is over or is of another session; connect again")]
    Ticket,
    /// Of the branch server.
    #[error(transparent)]
    Desktop(#[from] DesktopError),
}

/// Hash of a secret that somebody else keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// Of this secret.
    pub fn of(secret: &str) -> Self {
        Self(blake3::derive_key(
            "splice branch portal key v1",
            secret.as_bytes(),
        ))
    }
}

/// What a request that changes something repeats, beside the session's cookie: another site's page cannot know it.
pub fn csrf_of(secret: &str) -> String {
    let derived = blake3::derive_key("splice branch portal csrf v1", secret.as_bytes());
    hex::encode(&derived[..16])
}

/// A secret that nobody guesses.
fn word() -> String {
    let mut bytes = [0; 32];
    system_random(&mut bytes);
    hex::encode(bytes)
}

/// A session that has just begun.
#[derive(Clone, PartialEq, Eq)]
pub struct NewSession {
    /// Its secret.
    pub secret: String,
    /// Whose.
    pub user: String,
    /// When it ends at the latest, unix seconds.
    pub ends_unix_s: u64,
}

impl std::fmt::Debug for NewSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NewSession({:?})", self.user)
    }
}

/// Who makes a request, and what he may use now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The session.
    pub session: Key,
    /// The account's name.
    pub user: String,
    /// Pools.
    pub pools: Vec<String>,
    /// When the session ends at the latest, unix seconds.
    pub ends_unix_s: u64,
}

/// A desktop that is to be begun: whoever was given this does it, by [`Portal::begin`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begin {
    pool: String,
    name: String,
}

/// A screen that a ticket opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Screen {
    /// The desktop.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// The user.
    pub user: String,
    /// The session.
    pub session: Key,
    /// Its Unix socket.
    pub socket: PathBuf,
}

/// See the module.
pub struct Portal {
    house: Arc<dyn House>,
    idle_stop_s: Option<u64>,
    gate: Mutex<Gate>,
    sessions: Mutex<Sessions>,
    tickets: Mutex<Tickets>,
    viewers: Mutex<Viewers>,
    line: Mutex<Line>,
    /// Desktops that were begun or seen here and that nobody looks at, with since when.
    idle: Mutex<HashMap<String, u64>>,
}

/// What a panic left is whole: each change is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

impl Portal {
    /// Over a branch server. Desktops that nobody looks at for `idle_stop_s` are shut down; without, they go on.
    pub fn new(house: Arc<dyn House>, idle_stop_s: Option<u64>) -> Self {
        Self {
            house,
            idle_stop_s,
            gate: Mutex::default(),
            sessions: Mutex::default(),
            tickets: Mutex::default(),
            viewers: Mutex::default(),
            line: Mutex::default(),
            idle: Mutex::default(),
        }
    }

    /// The branch server behind it.
    pub fn house(&self) -> &Arc<dyn House> {
        &self.house
    }

    /// Lets somebody who is not known try to log in, or says in how many seconds.
    pub fn pass(&self, from: IpAddr) -> Result<(), u64> {
        lock(&self.gate).pass(from, self.house.now_unix_s())
    }

    /// Begins a session. Takes the time of stretching a password; [`House::stretching`] gives turns.
    pub fn log_in(&self, request: &LogIn) -> Result<NewSession, LogInError> {
        let admitted = self.house.log_in(request)?;
        // Off the roster in this moment.
        let standing = self.house.standing(&admitted.name);
        let standing = standing.ok_or(LogInError::Wrong)?;
        let secret = word();
        let ends_unix_s = self.house.now_unix_s() + SESSION_S;
        let session = Session {
            user: admitted.name.clone(),
            epoch: standing.epoch,
            ends_unix_s,
        };
        let gave_way = lock(&self.sessions).begin(Key::of(&secret), session);
        if let Some(gone) = gave_way {
            self.end_views(gone);
        }
        tracing::info!(user = admitted.name, "logged in at the portal");
        Ok(NewSession {
            secret,
            user: admitted.name,
            ends_unix_s,
        })
    }

    /// Whose a session's secret is, and what he may use at this moment.
    pub fn caller(&self, secret: &str) -> Result<Caller, PortalError> {
        self.caller_of(Key::of(secret))
    }

    fn caller_of(&self, session: Key) -> Result<Caller, PortalError> {
        let now = self.house.now_unix_s();
        let found = lock(&self.sessions).find(session, now).cloned();
        let found = found.ok_or(PortalError::Nobody)?;
        let standing = self.house.standing(&found.user);
        let standing = standing.filter(|standing| standing.epoch == found.epoch);
        Ok(Caller {
            session,
            pools: standing.ok_or(PortalError::Nobody)?.pools,
            user: found.user,
            ends_unix_s: found.ends_unix_s,
        })
    }

    /// Ends a session, and what it looks at. Its desktops go on.
    pub fn log_out(&self, caller: &Caller) {
        lock(&self.sessions).end(caller.session);
        self.end_views(caller.session);
        tracing::info!(user = caller.user, "logged out of the portal");
    }

    fn end_views(&self, session: Key) {
        lock(&self.viewers).sweep(|of, _, _| of != session);
    }

    /// The caller's desktops: one of each pool.
    pub fn desktops(&self, caller: &Caller) -> Result<Vec<PortalDesktop>, PortalError> {
        let mut desktops = Vec::with_capacity(caller.pools.len());
        for pool in &caller.pools {
            let name = names::desktop_of(&caller.user, pool);
            let seen = self.house.desktop(&name)?.filter(|seen| seen.pool == *pool);
            let starts = lock(&self.line).is_starting(&name);
            let state = seen.as_ref().map(|seen| seen.state);
            desktops.push(PortalDesktop {
                pool: pool.clone(),
                state: if starts {
                    Some(DesktopState::Starting)
                } else {
                    state
                },
                error: seen.as_ref().and_then(|seen| seen.error.clone()),
                pooled: seen.as_ref().map(|seen| seen.pooled),
                viewed: lock(&self.viewers).sees(&name),
                name,
            });
        }
        Ok(desktops)
    }

    /// The caller's desktop of a pool, if the pool is his and the name nobody else's.
    fn own(&self, caller: &Caller, pool: &str) -> Result<(String, Option<Seen>), PortalError> {
        if !caller.pools.iter().any(|own| own == pool) {
            return Err(PortalError::NotYours { pool: pool.into() });
        }
        let name = names::desktop_of(&caller.user, pool);
        match self.house.desktop(&name)? {
            Some(seen) if seen.pool != pool => Err(PortalError::Taken {
                name,
                pool: seen.pool,
            }),
            seen => Ok((name, seen)),
        }
    }

    /// One click: reconnects to the caller's desktop of a pool, or has it begun, or has him wait. To be asked again until there is a ticket.
    /// Whoever gets something to [`Self::begin`] must do that.
    ///
    /// # Errors
    /// It is not his, or cannot be shown or started. That it did not start is told once.
    pub fn connect(
        &self,
        caller: &Caller,
        pool: &str,
    ) -> Result<(Connection, Option<Begin>), PortalError> {
        let (name, seen) = self.own(caller, pool)?;
        if lock(&self.line).is_starting(&name) {
            return Ok((Connection::Starting, None));
        }
        let state = seen.as_ref().map(|seen| seen.state);
        match state {
            Some(DesktopState::Starting) => return Ok((Connection::Starting, None)),
            Some(DesktopState::Served) => return Err(PortalError::Served { name }),
            Some(DesktopState::Running | DesktopState::Paused) => {
                lock(&self.line).leave(&name);
                if seen.and_then(|seen| seen.screen).is_none() {
                    return Err(PortalError::NoScreen { name });
                }
                let ticket = self.ticket(caller, pool, name);
                return Ok((Connection::Ready { ticket }, None));
            }
            Some(DesktopState::Stopped | DesktopState::Failed) | None => {}
        }
        let wants_mib = self.house.wants_mib(pool);
        let wants_mib = wants_mib.ok_or_else(|| PortalError::NotYours { pool: pool.into() })?;
        let now = self.house.now_unix_s();
        // Looked at under the line's lock: what another call begins meanwhile is counted.
        let mut line = lock(&self.line);
        let memory = self.house.memory()?;
        match line.ask(&name, wants_mib, memory, now) {
            Turn::Begin => {
                let pool = pool.to_owned();
                Ok((Connection::Starting, Some(Begin { pool, name })))
            }
            Turn::Starting => Ok((Connection::Starting, None)),
            Turn::Failed(why) => Err(PortalError::NotStarted { name, why }),
            Turn::Waiting { position, reason } => {
                Ok((Connection::Waiting { position, reason }, None))
            }
        }
    }

    fn ticket(&self, caller: &Caller, pool: &str, name: String) -> String {
        let word = word();
        let ticket = Ticket {
            session: caller.session,
            pool: pool.to_owned(),
            name,
        };
        lock(&self.tickets).give(Key::of(&word), ticket, self.house.now_unix_s());
        word
    }

    /// Begins a desktop. Blocks until its machine runs or it is known why not.
    pub fn begin(&self, begin: &Begin) {
        let started = self.house.start(&begin.pool, &begin.name);
        let failed = started.err().filter(|_| {
            // Somebody else may have begun it in the same moment.
            let seen = self.house.desktop(&begin.name).ok().flatten();
            seen.is_none_or(|seen| seen.state != DesktopState::Running)
        });
        let failed = failed.map(|error| error_line(&error));
        match &failed {
            None => self.note_idle(&begin.name),
            Some(error) => tracing::warn!(desktop = begin.name, error, "not started for its user"),
        }
        lock(&self.line).begun(&begin.name, failed);
    }

    /// Has something done to the machine of the caller's desktop. Blocks until it is done.
    pub fn power(
        &self,
        caller: &Caller,
        pool: &str,
        action: PowerAction,
    ) -> Result<(), PortalError> {
        let (name, seen) = self.own(caller, pool)?;
        lock(&self.line).leave(&name);
        let runs = seen
            .is_some_and(|seen| matches!(seen.state, DesktopState::Running | DesktopState::Paused));
        if !runs {
            return Ok(());
        }
        tracing::info!(user = caller.user, desktop = name, ?action, "power");
        self.house.stop(&name, action == PowerAction::PowerOff)?;
        lock(&self.idle).remove(&name);
        Ok(())
    }

    /// Uses a ticket up, for the session that it was given to and while its user may use the pool.
    pub fn screen(&self, ticket: &str, secret: &str) -> Result<Screen, PortalError> {
        let now = self.house.now_unix_s();
        let ticket = lock(&self.tickets).take(Key::of(ticket), now);
        let ticket = ticket.ok_or(PortalError::Ticket)?;
        let caller = self.caller(secret)?;
        if ticket.session != caller.session {
            return Err(PortalError::Ticket);
        }
        let (name, seen) = self.own(&caller, &ticket.pool)?;
        let socket = seen.and_then(|seen| seen.screen);
        let Some(socket) = socket.filter(|_| name == ticket.name) else {
            return Err(PortalError::NoScreen { name });
        };
        Ok(Screen {
            name,
            pool: ticket.pool,
            user: caller.user,
            session: caller.session,
            socket,
        })
    }

    /// Lets a browser look at a screen; one that did before is told that it is taken over.
    pub fn enter(&self, screen: &Screen) -> Entered {
        lock(&self.idle).remove(&screen.name);
        tracing::info!(user = screen.user, desktop = screen.name, "looked at");
        lock(&self.viewers).enter(&screen.name, &screen.pool, &screen.user, screen.session)
    }

    /// Notes that a browser looks no longer.
    pub fn leave(&self, screen: &Screen, number: u64) {
        if lock(&self.viewers).leave(&screen.name, number) {
            self.note_idle(&screen.name);
        }
    }

    fn note_idle(&self, name: &str) {
        let now = self.house.now_unix_s();
        lock(&self.idle).insert(name.to_owned(), now);
    }

    /// Ends what is over: sessions, and looks at desktops of those who may not any more; shuts idle desktops down. To be called every few seconds; blocks.
    pub fn tend(&self) {
        let now = self.house.now_unix_s();
        let ended = lock(&self.sessions).sweep(now, |session| {
            let standing = self.house.standing(&session.user);
            standing.is_some_and(|standing| standing.epoch == session.epoch)
        });
        if !ended.is_empty() {
            tracing::info!(sessions = ended.len(), "sessions of the portal ended");
        }
        // By the session itself: one may have ended between a ticket's use and the look that came of it.
        lock(&self.viewers).sweep(|session, user, pool| {
            let is_on = lock(&self.sessions).find(session, now).is_some();
            let standing = self.house.standing(user);
            is_on && standing.is_some_and(|now| now.pools.iter().any(|own| own == pool))
        });
        // Looked for without the lock: a stop takes up to a minute.
        for name in self.idle_since(now) {
            let seen = self.house.desktop(&name).ok().flatten();
            if seen.is_none_or(|seen| seen.state != DesktopState::Running) {
                continue;
            }
            tracing::info!(desktop = name, "nobody looks at it: shut down");
            if let Err(error) = self.house.stop(&name, false) {
                let error = error_line(&error);
                tracing::warn!(desktop = name, error, "an idle desktop does not stop");
            }
        }
    }

    /// Takes those whose time is over.
    fn idle_since(&self, now_unix_s: u64) -> Vec<String> {
        let Some(limit_s) = self.idle_stop_s else {
            return Vec::new();
        };
        let mut idle = lock(&self.idle);
        let over = idle.extract_if(|_, since| now_unix_s.saturating_sub(*since) >= limit_s);
        over.map(|(name, _)| name).collect()
    }
}
