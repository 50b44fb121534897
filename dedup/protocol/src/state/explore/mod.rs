//! Every order of events, up to a bound, over the real state machines of leases and write-back.
//!
//! A [`world::World`] is a datacenter, one or two branches with disks, and every message that was ever sent: any of them may arrive at any
//! time, again and again, or never, so that loss, repetition and overtaking are all in it without being events. Every step may stop
//! between any two of its actions with a crash of whoever performs them. [`search::search`] visits each world that can be reached within a
//! [`world::Budget`] once, and `World::check` looks at each; [`heal::heal`] takes any of them, brings no more trouble, and demands that everything
//! ends well. Then random schedules go beyond the bound ([`tests`]), and defects ([`Mutant`](super::Mutant)) must all be noticed.
//!
//! Own breadth-first search instead of the crate `stateright`: that one brings a web server and twenty crates for what is 60 lines
//! here, and its actors would have to wrap these machines, whose crash points are between actions.
//!
//! A desktop's content is the set of the numbers of the writes in it, at most 32, and the root of its tree spells it. In a segment later
//! writes come first, so that a part of one is never a prefix.

mod center;
mod check;
mod heal;
mod lines;
mod search;
mod site;
mod tests;
mod world;

use dedup::{ChunkId, DesktopId, NodeId, RealmId};

use super::writeback::{Part, Range, RangeSource};
use crate::records::TreeRef;

const DESKTOP: DesktopId = DesktopId([0xDD; 16]);
const REALM: RealmId = RealmId([0xEE; 16]);
const DISK_BYTES: u64 = 1 << 20;
const SECTOR_BYTES: u64 = 512;

/// Number of a write. Each is of one sector that no other writes.
type Write = u8;

/// A tree that shows these writes.
fn tree(writes: &[Write]) -> TreeRef {
    let mut root = [0; 32];
    root[..writes.len()].copy_from_slice(writes);
    TreeRef {
        root: NodeId(root),
        size_bytes: DISK_BYTES,
    }
}

/// The writes that a tree shows, ascending.
fn shown(disks: &[TreeRef]) -> Vec<Write> {
    let root = disks[0].root.0;
    root.into_iter().filter(|write| *write > 0).collect()
}

/// Both together, ascending.
fn union(a: &[Write], b: &[Write]) -> Vec<Write> {
    let mut all = [a, b].concat();
    all.sort_unstable();
    all.dedup();
    all
}

/// The part that says one write.
fn part_of(write: Write) -> Vec<u8> {
    let range = Range {
        disk: 0,
        offset: (256 - u64::from(write)) * SECTOR_BYTES,
        len: SECTOR_BYTES,
        source: RangeSource::Chunk(ChunkId([write; 32])),
    };
    let part = Part::new(vec![range], &[DISK_BYTES]).expect("one sector inside the disk");
    part.encode()
}

/// The writes that a part says.
fn said(bytes: &[u8]) -> Vec<Write> {
    let part = Part::decode(bytes, &[DISK_BYTES]).expect("made by this explorer");
    part.chunks().iter().map(|(id, _)| id.0[0]).collect()
}
