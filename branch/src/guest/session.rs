//! One connection to an agent, as a value: no socket, no clock.
//!
//! ```text
//!   Silent ──Hello──► Greeted ──welcome──► Speaking ──Report, Done──► Speaking
//!                        │ no common protocol       └──Hello (the agent or its machine began anew)──► Greeted
//!                        ▼
//!                     Refused ──Hello──► Greeted
//! ```
//!
//! What does not fit is counted and passed over: a guest cannot end anything but its own words.

use branch_api::{Guest, GuestDisk, GuestUser, GuestVolume};
use branch_guest::{
    FromGuest, Hello, OLDEST_PROTOCOL, Order, PROTOCOL, Refuse, Report, Text, ToGuest, TooLong,
    VolumeReport, Welcome, What, common_protocol,
};

use super::Facts;

/// Without a word for so long an agent counts as gone: it reports twice a minute, and is silent for one at most while it holds a file system still.
const SILENT_MS: u64 = 100_000;

/// What is to be done about a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing.
    Nothing,
    /// It greets: [`Session::welcome`] it.
    Greeting,
    /// This is to be said.
    Say(Vec<u8>),
    /// The order that was waited for is carried out, or not.
    Done(Result<(), String>),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Session {
    hello: Option<Hello>,
    protocol: Option<u16>,
    report: Option<Report>,
    heard_ms: u64,
    last_order: u32,
    /// The order that was given, and until when it is waited for.
    waits: Option<(u32, u64)>,
    malformed: u64,
}

impl Session {
    /// Takes a line of the guest's.
    pub fn hear(&mut self, line: Result<&[u8], TooLong>, now_ms: u64) -> Heard {
        let message = line.ok().and_then(|line| FromGuest::decode(line).ok());
        let Some(message) = message else {
            self.malformed = self.malformed.saturating_add(1);
            return Heard::Nothing;
        };
        self.heard_ms = now_ms;
        match message {
            FromGuest::Hello(hello) => self.greeted(hello),
            FromGuest::Report(report) if self.protocol.is_some() => {
                self.report = Some(report);
                Heard::Nothing
            }
            FromGuest::Done(done) if self.waits.is_some_and(|(id, _)| id == done.id) => {
                self.waits = None;
                Heard::Done(done.error.map_or(Ok(()), |why| Err(why.into())))
            }
            // Of a connection that was before, or made up.
            FromGuest::Report(_) | FromGuest::Done(_) => Heard::Nothing,
        }
    }

    fn greeted(&mut self, hello: Hello) -> Heard {
        // What it said before may be of another boot.
        self.report = None;
        self.protocol = common_protocol(hello.protocol, hello.oldest);
        self.hello = Some(hello);
        if self.protocol.is_some() {
            return Heard::Greeting;
        }
        let refuse = Refuse {
            protocol: PROTOCOL,
            oldest: OLDEST_PROTOCOL,
        };
        Heard::Say(ToGuest::Refuse(refuse).encode())
    }

    /// The answer to a greeting.
    pub fn welcome(&self, facts: Facts) -> Option<Vec<u8>> {
        let welcome = Welcome {
            protocol: self.protocol?,
            identity: facts.identity,
            user_volume: facts.user_volume,
        };
        Some(ToGuest::Welcome(welcome).encode())
    }

    /// Gives an order, to be answered until then: what is to be said. None if the agent does not understand, or one is being waited for.
    pub fn order(&mut self, what: What, until_ms: u64) -> Option<Vec<u8>> {
        self.protocol?;
        if self.waits.is_some() {
            return None;
        }
        self.last_order = self.last_order.wrapping_add(1);
        self.waits = Some((self.last_order, until_ms));
        let order = Order {
            id: self.last_order,
            what,
        };
        Some(ToGuest::Do(order).encode())
    }

    /// Whether an order is being waited for.
    pub fn is_waiting(&self) -> bool {
        self.waits.is_some()
    }

    /// Gives up the order that is waited for, if its time is over. Returns whether that was so.
    pub fn gives_up(&mut self, now_ms: u64) -> bool {
        let is_over = self.waits.is_some_and(|(_, until)| now_ms >= until);
        if is_over {
            self.waits = None;
        }
        is_over
    }

    /// What there is to show, once it has greeted.
    pub fn shown(&self, now_ms: u64, heard_unix_ms: u64) -> Option<Guest> {
        let hello = self.hello.as_ref()?;
        let report = self.report.as_ref();
        let health = report.map(|report| &report.health);
        let (user_volume, refusal) = match report.map(|report| &report.user_volume) {
            None => (GuestVolume::Unknown, None),
            Some(VolumeReport::None) => (GuestVolume::None, None),
            Some(VolumeReport::Missing) => (GuestVolume::Missing, None),
            Some(VolumeReport::Mounted) => (GuestVolume::Mounted, None),
            Some(VolumeReport::Refused(why)) => (GuestVolume::Refused, Some(why.to_string())),
        };
        Some(Guest {
            agent: hello.agent.to_string(),
            protocol: self.protocol,
            connected: now_ms.saturating_sub(self.heard_ms) < SILENT_MS,
            heard_unix_ms,
            booted: report.is_some_and(|report| report.booted),
            itself: report
                .and_then(|report| report.itself)
                .map(|id| id.to_string()),
            users: report.map_or_else(Vec::new, users),
            user_volume,
            user_volume_refusal: refusal,
            disks: report.map_or_else(Vec::new, disks),
            failed_units: health.map_or_else(Vec::new, |health| texts(&health.failed_units)),
            troubles: health.map_or_else(Vec::new, |health| texts(&health.troubles)),
            malformed_lines: self.malformed,
        })
    }
}

fn texts<const MAX: usize>(texts: &[Text<MAX>]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

fn users(report: &Report) -> Vec<GuestUser> {
    let users = report.users.iter().map(|user| GuestUser {
        name: user.name.to_string(),
        since_unix_s: user.since_unix_s,
    });
    users.collect()
}

fn disks(report: &Report) -> Vec<GuestDisk> {
    let disks = report.health.disks.iter().map(|disk| GuestDisk {
        place: disk.place.to_string(),
        used_percent: disk.used_percent,
    });
    disks.collect()
}
