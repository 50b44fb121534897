//! The stage of the scenario tests: the product's own programs as processes, an emulated line between them, disks made from seeds.
//!
//! Nothing here links the product: what a scenario sees is what an operator sees, command lines, exit codes, JSON, NBD exports and
//! logs. Invariant: when a [`Lab`] is dropped nothing that it started is left, its folder is gone, and no log in it holds a panic.
//! Every wait has a limit and waits for a condition. What fails panics with the words of the program and the ends of the logs.

pub mod branch;
pub mod daemon;
pub mod datacenter;
pub mod disk;
pub mod lab;
pub mod nbd;
pub mod replay;
pub mod rng;
pub mod run;

pub use branch::Branch;
pub use datacenter::Datacenter;
pub use disk::{Disk, MIB};
pub use lab::{Lab, SmallDisk, Wan, wait_for};
pub use rng::Rng;
