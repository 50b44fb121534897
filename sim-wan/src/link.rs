//! A running link: two pipes under one clock, shared between the threads that move packets and the control socket.
//!
//! Invariant: both directions always have the same profile and the same cut. The pipes' locks are held for a batch of
//! model calls, never across a system call.

use std::io;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{DirectionStats, Mode, Pipe};
use crate::profile::Profile;
use crate::sys::{Bell, Clock, monotonic_ns};

/// Which way packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Datacenter → branch.
    Down,
    /// Branch → datacenter.
    Up,
}

/// Whether a link carries packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// It does.
    Up,
    /// Cut by hand, until restored.
    Cut,
    /// In a planned outage of its profile.
    Outage,
    /// Its data path ended with an error; see [`LinkStats::failure`].
    Failed,
}

/// Counters of a link at one instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStats {
    /// The link's name.
    pub name: String,
    /// Its profile's name.
    pub profile: String,
    /// Whether it carries packets.
    pub state: LinkState,
    /// CLOCK_MONOTONIC in nanoseconds when the counters were read: plot against this.
    pub monotonic_ns: u64,
    /// Nanoseconds since the link was made.
    pub uptime_ns: u64,
    /// Datacenter → branch.
    pub down: DirectionStats,
    /// Branch → datacenter.
    pub up: DirectionStats,
    /// Why the data path ended, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl LinkStats {
    /// Bytes both senders put on the link: the wire cost of what ran over it.
    pub fn wire_bytes(&self) -> u64 {
        self.down.offered_bytes + self.up.offered_bytes
    }
}

/// What the control socket can do to a link, whatever carries its packets.
pub trait Controlled: Send + Sync {
    /// The link's name.
    fn name(&self) -> &str;
    /// Takes the link down until `restore`.
    fn cut(&self);
    /// Ends a cut.
    fn restore(&self);
    /// Changes the profile while the link runs.
    fn set_profile(&self, profile: &Profile);
    /// Counters now.
    fn stats(&self) -> LinkStats;
    /// Clears the counters.
    fn reset_stats(&self);
}

/// One direction and the bell of the thread that serves it.
pub(crate) struct Lane<P> {
    pipe: Mutex<Pipe<P>>,
    pub(crate) bell: Bell,
}

impl<P> Lane<P> {
    pub(crate) fn pipe(&self) -> MutexGuard<'_, Pipe<P>> {
        self.pipe
            .lock()
            .expect("no code panics while it holds a pipe")
    }
}

/// A link with packets of type `P`.
pub(crate) struct SharedLink<P> {
    name: String,
    profile: Mutex<String>,
    pub(crate) clock: Clock,
    pub(crate) down: Lane<P>,
    pub(crate) up: Lane<P>,
    failure: OnceLock<String>,
}

impl<P: Clone> SharedLink<P> {
    pub(crate) fn new(name: &str, profile: &Profile, mode: Mode, seed: u64) -> io::Result<Self> {
        let lane = |shape, seed| -> io::Result<Lane<P>> {
            Ok(Lane {
                pipe: Mutex::new(Pipe::new(Duration::ZERO, shape, mode, seed)),
                bell: Bell::new()?,
            })
        };
        Ok(Self {
            name: name.to_owned(),
            profile: Mutex::new(profile.name.clone()),
            clock: Clock::start(),
            // Distinct seeds, or both directions would lose the same packets.
            down: lane(profile.down.clone(), seed)?,
            up: lane(profile.up.clone(), !seed)?,
            failure: OnceLock::new(),
        })
    }

    pub(crate) fn lane(&self, direction: Direction) -> &Lane<P> {
        match direction {
            Direction::Down => &self.down,
            Direction::Up => &self.up,
        }
    }

    /// Records why the data path ended; the first cause stays.
    pub(crate) fn fail(&self, cause: String) {
        let _ = self.failure.set(cause);
    }

    pub(crate) fn ring(&self) {
        self.down.bell.ring();
        self.up.bell.ring();
    }

    /// Changes both directions at one instant and wakes their threads.
    fn steer(&self, change: impl Fn(Direction, &mut Pipe<P>, Duration)) {
        let (mut down, mut up) = (self.down.pipe(), self.up.pipe());
        let now = self.clock.now();
        change(Direction::Down, &mut down, now);
        change(Direction::Up, &mut up, now);
        drop((down, up));
        self.ring();
    }
}

impl<P: Clone + Send> Controlled for SharedLink<P> {
    fn name(&self) -> &str {
        &self.name
    }

    fn cut(&self) {
        self.steer(|_, pipe, now| pipe.cut(now));
    }

    fn restore(&self) {
        self.steer(|_, pipe, now| pipe.restore(now));
    }

    fn set_profile(&self, profile: &Profile) {
        let mut name = self
            .profile
            .lock()
            .expect("no code panics while it holds the name");
        name.clone_from(&profile.name);
        self.steer(|direction, pipe, now| {
            let shape = match direction {
                Direction::Down => &profile.down,
                Direction::Up => &profile.up,
            };
            pipe.set_shape(now, shape.clone());
        });
    }

    fn stats(&self) -> LinkStats {
        let profile = self
            .profile
            .lock()
            .expect("no code panics while it holds the name")
            .clone();
        let (mut down, mut up) = (self.down.pipe(), self.up.pipe());
        let now = self.clock.now();
        let failure = self.failure.get().cloned();
        let state = match (failure.is_some(), down.is_cut(), down.is_up(now)) {
            (true, _, _) => LinkState::Failed,
            (_, true, _) => LinkState::Cut,
            (_, _, false) => LinkState::Outage,
            _ => LinkState::Up,
        };
        LinkStats {
            name: self.name.clone(),
            profile,
            state,
            monotonic_ns: monotonic_ns(),
            uptime_ns: now.as_nanos() as u64,
            down: down.stats(now),
            up: up.stats(now),
            failure,
        }
    }

    fn reset_stats(&self) {
        self.steer(|_, pipe, _| pipe.reset_stats());
    }
}
