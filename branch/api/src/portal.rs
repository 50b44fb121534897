//! What the portal's page asks of a branch server over HTTPS: a user's log-in, his desktops, and tickets to their screens.

use serde::{Deserialize, Serialize};

use crate::DesktopState;

/// A user's session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortalSession {
    /// The account's name.
    pub name: String,
    /// The branch's name.
    pub branch: String,
    /// What each request that changes something repeats in the header `X-Splice-Csrf`.
    pub csrf: String,
    /// When it ends at the latest, unix seconds.
    pub ends_unix_s: u64,
}

/// A desktop that the user has or may have: one of each pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortalDesktop {
    /// Its pool.
    pub pool: String,
    /// Its name at the branch.
    pub name: String,
    /// What it is doing; none if it was not made yet.
    pub state: Option<DesktopState>,
    /// Why, if it failed or is paused.
    pub error: Option<String>,
    /// Whether its system begins anew at log-off; none if it was not made yet.
    pub pooled: Option<bool>,
    /// Whether a browser shows it now.
    pub viewed: bool,
}

/// A user's desktops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortalDesktops {
    /// By pool.
    pub desktops: Vec<PortalDesktop>,
}

/// How far a desktop is that somebody wants to see. Who is not told `ready` asks again after a second or two; who stops asking loses his place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Connection {
    /// Its screen is at `/v1/screen?ticket=…`.
    Ready {
        /// Good once, for half a minute, in this session.
        ticket: String,
    },
    /// Its machine is being started.
    Starting,
    /// There is no room for it now.
    Waiting {
        /// Place in the line; 1 is the next.
        position: usize,
        /// What is lacking.
        reason: String,
    },
}

/// What is to be done with a desktop's machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerAction {
    /// Ask the guest to shut down; if it does not, its machine is ended after a minute.
    ShutDown,
    /// End the machine at once, as if its cord was pulled.
    PowerOff,
}

/// Asks for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Power {
    /// What.
    pub action: PowerAction,
}
