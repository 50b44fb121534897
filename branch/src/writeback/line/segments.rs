//! A line's segments: when one is sealed, and what its actions do.

use std::sync::Arc;

use dedup_protocol::state::message::{Cut, WantChunks};
use dedup_protocol::state::writeback::{SendAction, SendRow, pack};
use dedup_protocol::wire::Message;

use super::super::make::{MadePart, Maker};
use super::{Line, LineError, Making};
use crate::volume::OverlayError;

impl Making {
    /// Makes a part that was not passed over yet.
    fn make(&mut self, part: u32) -> Result<MadePart, OverlayError> {
        while self.maker.next_part() < part {
            self.maker.skip()?;
        }
        self.maker.make()
    }
}

impl Line {
    /// A snapshot is wished for, of all that is written now. False: nothing is, that is not at the datacenter.
    ///
    /// # Errors
    /// What is written cannot be made durable.
    pub fn wish(&mut self, cut: Cut, now_unix_s: u64) -> Result<bool, LineError> {
        let (Some(attached), Some(_)) = (&self.attached, &self.send) else {
            return Ok(false);
        };
        attached.overlay.flush()?;
        self.note_flushed(now_unix_s);
        let Some(send) = &mut self.send else {
            return Ok(false);
        };
        let facts = send.facts();
        if facts.acked.seq == facts.flushed {
            return Ok(false);
        }
        send.wish(cut, facts.flushed);
        Ok(true)
    }

    pub(super) fn hear_of_segment(
        &mut self,
        message: &Message,
        now_unix_s: u64,
    ) -> Result<(), LineError> {
        let sealed_unix_s = self.sealed_unix_s();
        let Some(send) = &mut self.send else {
            return Ok(());
        };
        let actions = match message {
            Message::WantChunks(want) => send.wanted(want),
            Message::PartStaged(staged) => send.staged(staged),
            Message::RestartSegment(restart) => send.restart(restart),
            Message::SegmentApplied(applied) => {
                let actions = send.applied(applied);
                if !actions.is_empty() {
                    self.applied_unix_s = sealed_unix_s;
                    self.trouble = None;
                }
                actions
            }
            other => return Err(LineError::Unexpected(other.name())),
        };
        self.do_sends(actions, now_unix_s)
    }

    pub(super) fn sealed_unix_s(&self) -> Option<u64> {
        let sealed = self.send.as_ref()?.row().sealed.as_ref()?;
        Some(sealed.sealed_unix_s)
    }

    pub(super) fn keep_send(&mut self, row: &SendRow) -> Result<(), LineError> {
        let result = self.common.rows.keep_send(row);
        self.is_broken |= result.is_err();
        Ok(result?)
    }

    /// Tells the sender what is durable.
    pub(super) fn note_flushed(&mut self, now_unix_s: u64) {
        let (Some(attached), Some(send)) = (&self.attached, &mut self.send) else {
            return;
        };
        let row = send.row();
        if row.line.fork.is_none() {
            send.flushed(attached.overlay.guest_flushed_seq(), now_unix_s);
        } else if row.acked.seq == 0 && row.sealed.is_none() && !attached.in_use {
            // All that there is, marks and moves included: of a fork only nothing is nothing.
            send.flushed(attached.overlay.stats().seq, now_unix_s);
        }
    }

    /// Goes on with the segment under way, if nothing of it is on its way.
    pub(super) fn go_on(&mut self, now_unix_s: u64) -> Result<(), LineError> {
        if !self.is_linked || !self.out.is_empty() {
            return Ok(());
        }
        let Some(send) = &mut self.send else {
            return Ok(());
        };
        if send.row().sealed.is_none() {
            return Ok(());
        }
        let actions = send.linked();
        self.do_sends(actions, now_unix_s)
    }

    pub(super) fn poll(&mut self, now_unix_s: u64) -> Result<(), LineError> {
        self.note_flushed(now_unix_s);
        let fresh = (self.common.fresh)();
        let (Some(attached), Some(send)) = (&self.attached, &mut self.send) else {
            return Ok(());
        };
        if attached.overlay.failure().is_some() {
            return Ok(());
        }
        let policy = &self.common.policy;
        let row = send.row();
        let actions = if row.line.fork.is_some() {
            if attached.in_use {
                return Ok(());
            }
            send.poll(policy, fresh, now_unix_s)
        } else if row.sealed.is_some() {
            Vec::new()
        } else {
            let acked = row.acked.seq;
            // Held before it is known where the segment ends, so that nothing of it is dropped in between.
            let newest = attached.overlay.hold(acked, u64::MAX);
            send.flushed(newest, now_unix_s);
            let actions = send.poll(policy, fresh, now_unix_s);
            match &send.row().sealed {
                Some(sealed) => {
                    attached.overlay.hold(acked, sealed.to);
                }
                None => attached.overlay.release(acked),
            }
            actions
        };
        self.do_sends(actions, now_unix_s)
    }

    pub(super) fn do_sends(
        &mut self,
        actions: Vec<SendAction>,
        now_unix_s: u64,
    ) -> Result<(), LineError> {
        for action in actions {
            match action {
                SendAction::Keep(row) => self.keep_send(&row)?,
                SendAction::Make { after, to, part } => self.make(after, to, part, now_unix_s)?,
                SendAction::Offer(offer) => self.out.push_back(Message::OfferPart(offer)),
                SendAction::SendChunks(want) => self.pack_chunks(&want)?,
                SendAction::Release(seq) => {
                    self.making = None;
                    if let Some(attached) = &self.attached {
                        attached.overlay.release(seq);
                    }
                }
                SendAction::Settled(fork) => {
                    let actions = self.hold.settled(fork);
                    self.do_holds(actions, now_unix_s)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn pack_chunks(&mut self, want: &WantChunks) -> Result<(), LineError> {
        let made = self.making.as_ref().and_then(|making| making.made.as_ref());
        let frames = made
            .filter(|made| made.part == want.part)
            .and_then(|made| pack(want, &made.chunks));
        let frames = frames.ok_or(LineError::Wanted(want.part))?;
        self.replies
            .extend(frames.into_iter().map(Message::PartChunks));
        Ok(())
    }

    /// Makes a part, if the overlay is there: else it is made when that is.
    pub(super) fn make(
        &mut self,
        after: u64,
        to: u64,
        part: u32,
        now_unix_s: u64,
    ) -> Result<(), LineError> {
        let (Some(attached), Some(send)) = (&self.attached, &mut self.send) else {
            return Ok(());
        };
        let is_fork = send.row().line.fork.is_some();
        if is_fork && attached.in_use {
            return Ok(());
        }
        let bounds = (after, to);
        let making = self
            .making
            .take()
            .filter(|making| making.bounds == bounds && making.maker.next_part() <= part);
        let mut making = making.unwrap_or_else(|| {
            let overlay = Arc::clone(&attached.overlay);
            let changes = if is_fork {
                overlay.changes_to_base()
            } else {
                overlay.changes(after, to)
            };
            Making {
                bounds,
                maker: Maker::new(overlay, self.common.key.clone(), changes),
                made: None,
            }
        });
        let made = making.make(part);
        let made = made.inspect_err(|error| self.trouble = Some(error.to_string()))?;
        let actions = send.made(to, part, made.ranges.clone(), made.is_last);
        making.made = Some(made);
        self.making = Some(making);
        self.do_sends(actions, now_unix_s)
    }
}
