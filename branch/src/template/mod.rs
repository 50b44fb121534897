//! Templates: desktops that have booted and wait at their log-in, kept so that fresh desktops go on from them instead of booting.
//!
//! ```text
//!  templates/NAME.template   head: which page of memory is where │ body: the machine's state, pages of its own, what its boot wrote
//!         │                                                      pages of the image ──► the version's chunks in the cache
//!         └── thawed once ──► memory that all clones read (memfd, sealed) ──► a machine's own memory, by userfaultfd
//! ```
//!
//! One is of a version, a machine's shape and a build of splice-vmm ([`head::Identity`]); it is on the disk, encrypted, whole or not at all
//! ([`file`]), with pages that the image has kept as references ([`pages`]). What it is made of can be made again: whatever is wrong with one, it is
//! removed, and desktops boot. Which are wanted, how one is made, and how a desktop goes on from one is [`crate::desktop`]'s. Why it is so is decision
//! 0050.

mod error;
pub mod file;
pub mod frames;
pub mod head;
pub mod pages;
pub mod save;
mod shelf;
pub mod thaw;
pub mod written;

pub use error::TemplateError;
pub use file::{TemplateFile, Writer};
pub use frames::TemplateSecret;
pub use head::{Head, Identity};
pub use shelf::{Shelf, Standing};
pub use thaw::{Handed, Thawed};
