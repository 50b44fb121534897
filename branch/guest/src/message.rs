//! The messages, and how they stand on a line. Their bytes are under test: agents of former releases live on in images and snapshots.
//!
//! A new protocol gets the next number; each end says the oldest and newest that it speaks. [`Hello`] and [`Refuse`] are how two ends find that out, so
//! they alone may have fields that a reader does not know.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::line::LINE_BYTES_MAX;
use crate::words::{HostName, Id, Reason, Serial, Text};

/// Newest protocol that this program speaks. Revisions: 1, the first; 2, an agent that is told another machine id in one life has its network cards
/// begin anew; 3, reports say whether it became whom it was told to be.
pub const PROTOCOL: u16 = 3;
/// The protocol from which on an agent can live in clones.
pub const PROTOCOL_CLONES: u16 = 3;
/// Oldest protocol that this program speaks.
pub const OLDEST_PROTOCOL: u16 = 1;

/// Most people in one report; more than use one desktop.
pub const USERS_MAX: usize = 32;
/// Most disks in one report.
pub const DISKS_MAX: usize = 8;
/// Most failed units in one report: who has more has one trouble.
pub const FAILED_UNITS_MAX: usize = 16;
/// Most other troubles in one report.
pub const TROUBLES_MAX: usize = 8;
/// Longest that a file system stays frozen, in milliseconds: a user's programs stand still for as long.
pub const FREEZE_MS_MAX: u32 = 60_000;

/// Why a line is not a message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Not JSON, or not a message of this direction and protocol.
    #[error("not a message of the agent's protocol {PROTOCOL}")]
    Malformed(#[from] serde_json::Error),
    /// More than there may be.
    #[error("{what}: more than {limit}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: u64,
    },
}

/// What an agent says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromGuest {
    /// First, and again until it is answered.
    Hello(Hello),
    /// How the desktop is: all of it, at each change and now and then.
    Report(Report),
    /// An order was carried out, or not.
    Done(Done),
}

/// What a branch says. There is nothing else that it can make an agent do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToGuest {
    /// The answer to [`Hello`]: who the desktop is.
    Welcome(Welcome),
    /// The other answer to [`Hello`]: there is no common protocol.
    Refuse(Refuse),
    /// Something to be done, and answered by [`Done`].
    Do(Order),
}

/// An agent's greeting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Newest protocol that it speaks.
    pub protocol: u16,
    /// Oldest protocol that it speaks.
    pub oldest: u16,
    /// Its version.
    pub agent: Text<32>,
    /// The boot that it runs in.
    pub boot: Id,
}

/// A branch's greeting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Welcome {
    /// The protocol that is spoken from here on.
    pub protocol: u16,
    /// Who the desktop is.
    pub identity: Identity,
    /// Its user volume, if it has one.
    pub user_volume: Option<UserVolume>,
}

/// There is no common protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refuse {
    /// Newest protocol that the branch speaks.
    pub protocol: u16,
    /// Oldest protocol that the branch speaks.
    pub oldest: u16,
}

/// Who a desktop is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Its host name.
    pub host_name: HostName,
    /// Its machine id. Keys that tell it from other desktops are made anew when it changes.
    pub machine_id: Id,
}

/// Which disk is the user volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserVolume {
    /// Its virtio serial number.
    pub serial: Serial,
    /// The branch has never taken a write to it.
    pub unwritten: bool,
}

/// Something to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Names the order in its answer.
    pub id: u32,
    /// What.
    pub what: What,
}

/// What can be ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum What {
    /// Nothing but an answer.
    Ping,
    /// Write out the user volume's file system and hold it still, at most this long: it goes on by itself after that.
    Freeze {
        /// In milliseconds, at most [`FREEZE_MS_MAX`].
        for_ms: u32,
    },
    /// Let it go on. Fails if it went on before, so that whoever froze it knows.
    Thaw,
    /// Shut the desktop down.
    ShutDown,
}

/// An order was carried out, or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Done {
    /// Which order.
    pub id: u32,
    /// Why not, if not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Reason>,
}

/// How a desktop is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Its boot is done.
    pub booted: bool,
    /// Who is logged on, at most [`USERS_MAX`].
    pub users: Vec<User>,
    /// How its user volume is.
    pub user_volume: VolumeReport,
    /// What is wrong.
    pub health: Health,
    /// The machine id that it was told, if it is wholly whom it was told to be: by name, keys and the addresses of its network cards. Said from protocol 3 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub itself: Option<Id>,
}

/// Somebody who is logged on, once however often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The user's name.
    pub name: Text<32>,
    /// Since when, unix seconds, by the guest's clock.
    pub since_unix_s: u64,
}

/// How a user volume is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeReport {
    /// The desktop is to have none.
    #[default]
    None,
    /// No disk of that serial number is there.
    Missing,
    /// Mounted where the guest has it.
    Mounted,
    /// Left as it is, and why.
    Refused(Reason),
}

/// What is wrong with a desktop.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// How full file systems are, at most [`DISKS_MAX`].
    pub disks: Vec<DiskHealth>,
    /// Services that failed, at most [`FAILED_UNITS_MAX`].
    pub failed_units: Vec<Text<100>>,
    /// What the agent itself could not do, at most [`TROUBLES_MAX`].
    pub troubles: Vec<Reason>,
}

/// How full a file system is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskHealth {
    /// Where it is mounted.
    pub place: Text<64>,
    /// Used, in percent of what users may use; 0 to 100.
    pub used_percent: u8,
}

/// The protocol to speak with an end that speaks `oldest` to `newest`, if there is one.
pub fn common_protocol(newest: u16, oldest: u16) -> Option<u16> {
    let common = newest.min(PROTOCOL);
    (common >= oldest.max(OLDEST_PROTOCOL)).then_some(common)
}

fn at_most(what: &'static str, count: usize, limit: usize) -> Result<(), MessageError> {
    if count <= limit {
        return Ok(());
    }
    let limit = limit as u64;
    Err(MessageError::TooMany { what, limit })
}

fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<T, MessageError> {
    at_most("bytes of a line", line.len(), LINE_BYTES_MAX)?;
    Ok(serde_json::from_slice(line)?)
}

fn encode(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("messages serialise without failing");
    line.push(b'\n');
    line
}

impl FromGuest {
    /// Reads a line of a guest's.
    ///
    /// # Errors
    /// It is no message, or one that is over a limit.
    pub fn decode(line: &[u8]) -> Result<Self, MessageError> {
        let message: Self = decode(line)?;
        if let Self::Report(report) = &message {
            let health = &report.health;
            at_most("users", report.users.len(), USERS_MAX)?;
            at_most("disks", health.disks.len(), DISKS_MAX)?;
            at_most("failed units", health.failed_units.len(), FAILED_UNITS_MAX)?;
            at_most("troubles", health.troubles.len(), TROUBLES_MAX)?;
            for disk in &health.disks {
                at_most("percent", disk.used_percent.into(), 100)?;
            }
        }
        Ok(message)
    }

    /// The line, with its end.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }
}

impl ToGuest {
    /// Reads a line of a branch's.
    ///
    /// # Errors
    /// As [`FromGuest::decode`].
    pub fn decode(line: &[u8]) -> Result<Self, MessageError> {
        let message: Self = decode(line)?;
        if let Self::Do(Order {
            what: What::Freeze { for_ms },
            ..
        }) = &message
        {
            at_most("milliseconds", *for_ms as usize, FREEZE_MS_MAX as usize)?;
        }
        Ok(message)
    }

    /// The line, with its end.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }
}
