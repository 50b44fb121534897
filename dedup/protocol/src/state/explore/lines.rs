//! The datacenter's lines: what is staged, built and kept of the desktop and of forks.

use std::collections::BTreeMap;

use super::super::Line;
use super::super::writeback::{LineRow, ReceiveAction, Receiver};
use super::center::{Build, LineDisk, received};
use super::world::{Act, Actor, ForkKey, World};
use super::{DESKTOP, Write, said, shown, tree, union};
use crate::wire::Message;

impl World {
    /// Whether the line exists. A fork does from its first offer on, if its generation may have one.
    pub(super) fn open_fork(&mut self, fork: Option<ForkKey>) -> bool {
        let Some(key) = fork else { return true };
        let center = &mut self.center;
        if center.forks.contains_key(&key) {
            return true;
        }
        let past = center.authority.row().past.iter();
        let Some(past) = past.rev().find(|past| past.generation == key.0) else {
            return false;
        };
        let base = self
            .oracle
            .shown
            .get(&past.base)
            .cloned()
            .unwrap_or_default();
        let line = Line {
            desktop: DESKTOP,
            generation: key.0,
            fork: Some(key.1),
        };
        let (receiver, _) = Receiver::open(LineRow::new(line, vec![tree(&base)]));
        center.forks.insert(key, receiver);
        true
    }

    /// Manifests are built of the parts that are kept.
    pub(super) fn center_builds(&mut self, build: Build) -> Vec<Act> {
        let (fork, segment) = build;
        let center = &mut self.center;
        center.builds.remove(&build);
        let standing = center.standing_on(fork);
        let Some(line) = center.line_disk(fork) else {
            return Vec::new();
        };
        let parts = line.parts.values().flat_map(|part| said(part));
        let parts: Vec<Write> = parts.collect();
        let disks = vec![tree(&union(&shown(&line.row.disks), &parts))];
        let Some(receiver) = center.receiver(fork) else {
            return Vec::new();
        };
        received(fork, receiver.built(standing, segment, disks))
    }

    pub(super) fn receive_acts(
        &mut self,
        fork: Option<ForkKey>,
        action: ReceiveAction,
    ) -> Vec<Act> {
        match action {
            ReceiveAction::Keep {
                row,
                drops_parts,
                part,
                cut: _,
            } => self.keep_line(fork, row, drops_parts, part),
            // It takes its time.
            ReceiveAction::Build { segment } => {
                self.center.builds.insert((fork, segment));
            }
            ReceiveAction::Want(want) => {
                self.answer(&want.line, &Message::WantChunks(want.clone()))
            }
            ReceiveAction::Staged(staged) => {
                self.answer(&staged.line, &Message::PartStaged(staged.clone()));
            }
            ReceiveAction::Applied(applied) => {
                if fork.is_none() {
                    self.center.authority.reassured();
                }
                self.answer(&applied.line, &Message::SegmentApplied(applied.clone()));
            }
            ReceiveAction::Restart(restart) => {
                self.answer(&restart.line, &Message::RestartSegment(restart.clone()));
            }
            ReceiveAction::Doubt(generation) => {
                let fresh = self.center.drawn + 1;
                let actions = self.center.authority.doubt(generation, fresh);
                let site = self.holder_of(generation).unwrap_or_default();
                return self.drawn(site, actions);
            }
            ReceiveAction::Fence(_) => {}
        }
        Vec::new()
    }

    fn keep_line(
        &mut self,
        fork: Option<ForkKey>,
        row: LineRow,
        drops_parts: bool,
        part: Option<(u32, Vec<u8>)>,
    ) {
        let authority = &self.center.disk.authority;
        let is_applied = row.applied.seq > 0 && drops_parts && part.is_none();
        if fork.is_none() && is_applied {
            let may = authority.holder.is_some() && authority.last == row.line.generation;
            self.oracle
                .shown
                .insert(row.applied.head, shown(&row.disks));
            if !may {
                self.fault("a segment of an ended generation was applied to the desktop");
            }
        }
        let disk = match fork {
            None => &mut self.center.disk.main,
            Some(key) => {
                let forks = &mut self.center.disk.forks;
                forks.entry(key).or_insert_with(|| LineDisk {
                    row: row.clone(),
                    parts: BTreeMap::new(),
                })
            }
        };
        disk.row = row;
        if drops_parts {
            disk.parts.clear();
        }
        disk.parts.extend(part);
    }

    fn answer(&mut self, line: &Line, message: &Message) {
        if let Some(site) = self.holder_of(line.generation) {
            self.post(Actor::Site(site), site, message);
        }
    }

    /// The forks that are kept.
    pub(super) fn fork_rows(&self) -> impl Iterator<Item = (&ForkKey, &LineRow)> {
        let forks = self.center.disk.forks.iter();
        forks.map(|(key, fork)| (key, &fork.row))
    }
}
