//! The datacenter: the master that owns a realm's images, versions and branches.
//!
//! Start reading at [`Datacenter`], the value that everything shares; then [`realm`] (keys), [`catalog`] (what there is),
//! [`publish`] (a disk file becomes a signed version), [`update`] (what is new in it, encoded), [`branches`] and [`assign`] (who runs what), [`rollouts`] (how that changes, branch by branch), [`http`] (the management API),
//! [`sync`] (the links); [`retain`] and [`roots`] (how long versions and their content are kept), [`upkeep`] (collections, scrubs, repair) and
//! [`volumes`] (who may write desktops' volumes, and what was written);
//! [`export`] (a version becomes a disk file); [`identity`] (who calls, and what they may do) and [`audit`] (what they did); [`backup`] takes all of it elsewhere and back, [`restored`] is how it goes on then. [`status`] and [`metrics`] are what it tells of itself. [`daemon`] puts them together as `splice-datacenter`.

pub mod assign;
pub mod audit;
pub mod backup;
pub mod branches;
pub mod catalog;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod datacenter;
pub mod export;
pub mod http;
pub mod identity;
pub mod images;
mod kin;
pub mod metrics;
pub mod operations;
pub mod policy;
pub mod problem;
pub mod profiles;
pub mod publish;
pub mod realm;
pub mod restored;
pub mod retain;
pub mod rollouts;
pub mod roots;
pub mod status;
mod support;
pub mod sync;
pub mod update;
pub mod upkeep;
pub mod volumes;

pub use branches::{JoinError, JoinedBranch, RenewError};
pub use datacenter::{Datacenter, LinkPresence, VersionError};
