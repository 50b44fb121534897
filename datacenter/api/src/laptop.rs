//! Desktops that are checked out to laptops, and orders to wipe.
//!
//! A checkout is named by the id of the desktop's system volume, or by a beginning of it, as volumes are.

use serde::{Deserialize, Serialize};

/// Where a checkout stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum CheckoutStage {
    /// The branch that the desktop is at is to give it back first: as soon as it is stopped there and all of it is here.
    Waiting,
    /// It is the laptop's.
    Out,
    /// It is wanted back.
    Returning,
}

impl CheckoutStage {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Out => "out",
            Self::Returning => "returning",
        }
    }
}

/// A desktop that is checked out to a laptop, or about to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Checkout {
    /// Id of its system volume.
    pub volume: String,
    /// Id of its user volume, if it has one.
    pub user_volume: Option<String>,
    /// Its name.
    pub desktop: String,
    /// Its pool.
    pub pool: String,
    /// Name of the branch that it was at, and goes back to.
    pub from: String,
    /// Name of the laptop.
    pub laptop: String,
    /// Where it stands.
    pub stage: CheckoutStage,
    /// When it was ordered, unix seconds.
    pub since_unix_s: u64,
    /// Until when it starts without the datacenter's word, unix seconds.
    pub until_unix_s: u64,
}

/// Checkouts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CheckoutList {
    /// By laptop.
    pub checkouts: Vec<Checkout>,
}

/// Checks a desktop out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CheckOutRequest {
    /// The laptop's name.
    pub to: String,
    /// For how long from now it starts without the datacenter's word, in seconds.
    pub for_s: u64,
    /// Who does it and why; kept in the audit log.
    pub reason: String,
}

/// Changes until when a desktop is checked out; the laptop hears of it when it is connected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ExtendRequest {
    /// For how long from now, in seconds; 0 ends it: it does not start any more once the laptop hears of that.
    pub for_s: u64,
    /// Who does it and why; kept in the audit log.
    pub reason: String,
}

/// Wants a desktop back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CheckInRequest {
    /// Who does it and why; kept in the audit log.
    pub reason: String,
    /// At once, without the laptop: its leases are broken, and what it still brings becomes a fork.
    #[serde(default)]
    pub force: bool,
}

/// Orders a branch to destroy keys at its next contact.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct WipeRequest {
    /// Only this desktop's. Without it, all of the branch's, which is revoked at once and let in for nothing else.
    #[serde(default)]
    pub desktop: Option<String>,
    /// Who does it and why; kept in the audit log.
    pub reason: String,
}

/// An order to destroy keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WipeOrder {
    /// Its number.
    pub number: u64,
    /// Name of the branch.
    pub branch: String,
    /// Which desktop's; none: all.
    pub desktop: Option<String>,
    /// Who ordered it and why.
    pub reason: String,
    /// When, unix seconds.
    pub ordered_unix_s: u64,
    /// When the branch said that it was done, unix seconds; none: it has not been in contact since, or cannot do it.
    pub done_unix_s: Option<u64>,
}

/// Orders to destroy keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WipeOrderList {
    /// In the order in which they were given.
    pub orders: Vec<WipeOrder>,
}
