//! Boot profiles at the branch: what a boot touches is recorded, and what boots touch is fetched ahead of the guest.
//!
//! [`recorder`] notes the first touch of each chunk while a desktop boots. [`plan`] turns the version's profile into the order in which
//! chunks are fetched, and a recording into entries and a score. [`boots`] owns the boots that run. Invariant: nothing here is
//! needed for a read: without a profile, or with a wrong one, guests get the same bytes by demand.

pub mod boots;
pub mod plan;
pub mod recorder;

pub use boots::Boots;
pub use recorder::{BOOT_MS_MAX, Recorder, SETTLED_MS, Touch, Watch};
