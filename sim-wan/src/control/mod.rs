//! Live control of running links over a Unix socket: newline-delimited JSON, one answer line per request line.
//!
//! ```text
//! → {"cmd":"stats","link":"branch-a"}
//! ← {"ok":true,"links":[{"name":"branch-a","profile":"dsl","state":"up",…}]}
//! → {"cmd":"profile","profile":"dls"}
//! ← {"ok":false,"error":"unknown profile \"dls\"; known profiles: …"}
//! ```
//!
//! Without `link`, a command means every link. Each answer carries the counters of the links it named, as of after
//! the command.

mod client;
mod server;

use serde::{Deserialize, Serialize};

use crate::link::LinkStats;

pub use client::{Client, ClientError};
pub use server::Server;

/// Longest request or answer line a peer may send, in bytes. A request is under 200; an answer takes about 1.5 KiB per
/// link.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Take links down.
    Cut {
        /// Which; all if none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        link: Option<String>,
    },
    /// End a cut.
    Restore {
        /// Which; all if none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        link: Option<String>,
    },
    /// Change the profile.
    Profile {
        /// Which; all if none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        link: Option<String>,
        /// Its name.
        profile: String,
    },
    /// Read the counters.
    Stats {
        /// Which; all if none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        link: Option<String>,
    },
    /// All links.
    List,
    /// Clear the counters.
    ResetStats {
        /// Which; all if none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        link: Option<String>,
    },
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// Whether the command was carried out.
    pub ok: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The links that the command named, after it.
    #[serde(default)]
    pub links: Vec<LinkStats>,
}
