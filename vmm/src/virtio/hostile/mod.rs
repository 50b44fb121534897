//! Drivers that do what no driver should, for tests and fuzz targets: one for all devices.
//!
//! A [`Driver`] has a device without a machine around it: memory of a mebibyte, rings at known places, and the device's own threads. A
//! device that is stopped has done what it was kicked for before, so that what a script does can be repeated. [`run`] reads bytes as
//! such a script. What must hold of any device: it never panics, comes to an end with every chain, writes only where a chain lets it and
//! into used rings, and takes no more of the host's memory than its module says. The same of one that takes up what a snapshot may hold
//! ([`take_up`]).

mod driver;
mod places;
mod saved;
mod script;
mod subject;

pub use driver::{BUFFERS, Descriptor, Driver, INDIRECT, MEMORY_BYTES, NEXT, SIZE, WRITE};
pub use places::{boot, configuration, transport};
pub use saved::{saved, take_up};
pub use script::run;
pub use subject::{Host, KINDS, Kind, make};
