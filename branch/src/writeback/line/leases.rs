//! A line's lease: when it is asked for, and what its actions do.

use dedup_protocol::state::authority::{Facts, HoldAction, HoldRow, Right, Stage};
use dedup_protocol::state::writeback::{SendRow, Sender};
use dedup_protocol::state::{Generation, Head, Nonce, Position};
use dedup_protocol::wire::Message;

use super::super::rows::{KeptHold, OverlayOf};
use super::super::shown::NoRight;
use super::{Line, LineError};

/// A lease is renewed so long after it was signed, while there is a link: what a disk that is set back further is noticed by.
const RENEW_EVERY_S: u64 = 300;
/// A question without an answer is asked again after this.
const ASK_AGAIN_S: u64 = 30;

impl Line {
    /// What may be done with the volume.
    ///
    /// # Errors
    /// Why it may not be run.
    pub fn may_run(&self, now_unix_s: u64) -> Result<(), NoRight> {
        let row = self.hold.row();
        match (&row.stage, self.overlay_of) {
            // Nobody but this branch knows of it.
            (Stage::Idle { last }, OverlayOf::Unleased) if *last == Generation::NONE => Ok(()),
            (Stage::Idle { .. }, _) => Err(NoRight::NotHeld {
                why: self.denied.as_ref().map(|deny| deny.message.clone()),
            }),
            (Stage::Fenced { ended, .. }, _) => Err(NoRight::Fenced {
                why: ended.reason(),
            }),
            (Stage::Dropped { .. }, _) => Err(NoRight::Dropped),
            (
                Stage::Held {
                    is_returning: true, ..
                },
                _,
            ) => Err(NoRight::Returning),
            (Stage::Held { lease, .. }, overlay) => match self.hold.right(now_unix_s) {
                Right::Run | Right::Grace if overlay == OverlayOf::Under(lease.generation) => {
                    Ok(())
                }
                Right::Run | Right::Grace if overlay == OverlayOf::Gone => Err(NoRight::Coming),
                Right::Run | Right::Grace => Err(NoRight::Elsewhere),
                Right::Over | Right::None => Err(NoRight::Over {
                    until_unix_s: lease.ends_unix_s(),
                }),
            },
        }
    }

    /// Somebody wants to run the volume here: if it has to be asked for, that is done.
    pub fn want(&mut self) {
        self.is_wanted = true;
        self.asked_unix_s = None;
    }

    /// Whether somebody wants to run it here, and it was not granted since.
    pub fn is_wanted(&self) -> bool {
        self.is_wanted
    }

    /// It is to be given back: as soon as no machine uses it and all of it is at the datacenter. Until then it can be run.
    pub fn hand_back(&mut self) {
        if !self.is_recalled {
            (self.is_recalled, self.asked_unix_s) = (true, None);
        }
    }

    /// Whether nothing of it is here, no right to it, and no question out that may yet be granted.
    pub fn is_away(&self) -> bool {
        let row = self.hold.row();
        let is_idle = matches!(row.stage, Stage::Idle { .. }) && row.asking.is_none();
        is_idle && self.overlay_of == OverlayOf::Gone
    }

    /// Nobody wants it here any more, and nothing of it is: what a question that is out is granted ends at once. Whoever forgets the line before that leaves
    /// a lease to nobody.
    ///
    /// # Errors
    /// It could not be kept.
    pub fn want_no_more(&mut self, now_unix_s: u64) -> Result<(), LineError> {
        self.is_wanted = false;
        let row = self.hold.row();
        let is_asking = matches!(row.stage, Stage::Idle { .. }) && row.asking.is_some();
        if is_asking && self.overlay_of == OverlayOf::Gone {
            self.drop_writes(now_unix_s)?;
        }
        Ok(())
    }

    /// Whether it is to be given back as soon as no machine uses it and all of it is at the datacenter. Until then it can be run.
    pub fn is_recalled(&self) -> bool {
        self.is_recalled || self.hold.is_recalled()
    }

    /// Gives up what was written here, which is destroyed next. The datacenter is told when there is a link, again and again until it answers. False, and
    /// no change: it was fenced, and what was written is sent as a fork first.
    ///
    /// # Errors
    /// It could not be kept.
    pub fn drop_writes(&mut self, now_unix_s: u64) -> Result<bool, LineError> {
        let Ok(actions) = self.hold.drop_writes() else {
            return Ok(false);
        };
        if !actions.is_empty() {
            self.detach();
            (self.send, self.is_spent) = (None, false);
            (self.is_wanted, self.asked_unix_s) = (false, None);
            self.overlay_of = OverlayOf::Gone;
            self.out.clear();
        }
        self.do_holds(actions, now_unix_s)?;
        Ok(true)
    }

    /// Whether it was given up, and the datacenter may not know it.
    pub fn is_dropped(&self) -> bool {
        matches!(self.hold.row().stage, Stage::Dropped { .. })
    }

    /// Whether it can be given back now: how much was written is known, and all of it is at the datacenter.
    fn can_be_given_back(&self) -> bool {
        let is_known = self.attached.is_some() || self.is_spent || self.send.is_none();
        is_known && !self.is_in_use() && self.is_drained()
    }

    /// The generation that is held while the state that it goes on behind is not here, and the base of its leases.
    pub fn awaited(&self) -> Option<(Generation, Head)> {
        match &self.hold.row().stage {
            Stage::Held {
                lease,
                is_returning: false,
            } if self.overlay_of == OverlayOf::Gone && lease.base != Head::START => {
                Some((lease.generation, lease.base))
            }
            _ => None,
        }
    }

    /// What a generation goes on behind is here: its overlay lies over that from now on. False: it is not waited for any more.
    ///
    /// # Errors
    /// It could not be kept.
    pub fn begin_behind(
        &mut self,
        generation: Generation,
        now_unix_s: u64,
    ) -> Result<bool, LineError> {
        if self.is_broken
            || self
                .awaited()
                .is_none_or(|(awaited, _)| awaited != generation)
        {
            return Ok(false);
        }
        self.overlay_of = OverlayOf::Under(generation);
        let row = self.hold.row().clone();
        self.keep_hold(row)?;
        self.aim(now_unix_s)?;
        Ok(true)
    }

    pub(super) fn ask_if_due(&mut self, now_unix_s: u64) -> Result<(), LineError> {
        // Also if the clock was set back.
        let is_again = self
            .asked_unix_s
            .is_none_or(|asked| now_unix_s.abs_diff(asked) >= ASK_AGAIN_S);
        let row = self.hold.row();
        if self.is_dropped() {
            if is_again {
                self.asked_unix_s = Some(now_unix_s);
                let facts = self.facts();
                let actions = self.hold.tell_dropped(&facts);
                return self.do_holds(actions, now_unix_s);
            }
            return Ok(());
        }
        let (is_due, gives_back) = match &row.stage {
            // First what was is to be removed: what is asked for now begins behind it.
            Stage::Idle { .. } if self.is_to_leave() => return Ok(()),
            Stage::Idle { .. } => (
                self.is_wanted || row.asking.is_some() || self.is_only_copy(),
                false,
            ),
            Stage::Held {
                lease,
                is_returning,
            } => {
                let age = now_unix_s.abs_diff(lease.issued_unix_s);
                let goes = self.is_recalled() && self.can_be_given_back();
                let is_due = row.asking.is_some() || age >= RENEW_EVERY_S;
                (is_due, *is_returning || goes)
            }
            Stage::Fenced { .. } | Stage::Dropped { .. } => return Ok(()),
        };
        if !is_again || !(is_due || gives_back) {
            return Ok(());
        }
        let facts = self.facts();
        let actions = if gives_back {
            self.hold.give_back(&facts)
        } else {
            self.hold.ask((self.common.fresh)(), &facts)
        };
        self.asked_unix_s = Some(now_unix_s);
        self.do_holds(actions.unwrap_or_default(), now_unix_s)
    }

    pub(super) fn is_only_copy(&self) -> bool {
        self.overlay_of == OverlayOf::Unleased
    }

    pub(super) fn granted(&mut self, envelope: Vec<u8>, now_unix_s: u64) -> Result<(), LineError> {
        let lease = self.common.rows.open_lease(&envelope, now_unix_s)?;
        let actions = self.hold.granted(lease);
        if matches!(actions.first(), Some(HoldAction::Keep(_))) {
            self.lease = Some(envelope);
            (self.denied, self.is_wanted) = (None, false);
        }
        self.do_holds(actions, now_unix_s)
    }

    pub(super) fn facts(&self) -> Facts {
        if let Some(send) = &self.send {
            return send.facts();
        }
        let acked = match &self.hold.row().stage {
            // What it goes on behind has not come, so it is where it began.
            Stage::Held { lease, .. } => Position::begin(lease.base),
            Stage::Idle { .. } | Stage::Fenced { .. } | Stage::Dropped { .. } => Position::START,
        };
        Facts {
            acked,
            sealed: Nonce::NONE,
            flushed: 0,
        }
    }

    pub(super) fn do_holds(
        &mut self,
        actions: Vec<HoldAction>,
        now_unix_s: u64,
    ) -> Result<(), LineError> {
        for action in actions {
            match action {
                HoldAction::Keep(row) => self.keep_hold(row)?,
                HoldAction::Ask(ask) => self.send_out(Message::AskLease(ask), now_unix_s),
                HoldAction::Return(at) => self.send_out(Message::ReturnLease(at), now_unix_s),
                HoldAction::Drop(told) => self.send_out(Message::DropLease(told), now_unix_s),
                HoldAction::Aim => self.aim(now_unix_s)?,
                // Who has machines and overlays looks at `may_run` and `is_to_leave`; no fork is made while a machine uses the overlay.
                HoldAction::Stop | HoldAction::Leave | HoldAction::Denied(_) => {}
            }
        }
        Ok(())
    }

    pub(super) fn send_out(&mut self, message: Message, now_unix_s: u64) {
        self.asked_unix_s = Some(now_unix_s);
        // One that waits still is of the same question.
        self.out
            .retain(|message| matches!(message, Message::OfferPart(_)));
        self.out.push_front(message);
    }

    pub(super) fn keep_hold(&mut self, row: HoldRow) -> Result<(), LineError> {
        if !matches!(row.stage, Stage::Held { .. }) {
            (self.lease, self.is_recalled) = (None, false);
        }
        let kept = KeptHold {
            row,
            lease: self.lease.clone(),
            overlay: self.overlay_of,
        };
        let result = self.common.rows.keep_hold(&kept);
        self.is_broken |= result.is_err();
        Ok(result?)
    }

    /// Aims write-back by the lease. Only the overlay that was written under it goes there.
    pub(super) fn aim(&mut self, now_unix_s: u64) -> Result<(), LineError> {
        let Some((line, start)) = self.hold.aim() else {
            return Ok(());
        };
        if let Some(fork) = line.fork
            && matches!(self.overlay_of, OverlayOf::Gone | OverlayOf::Unleased)
        {
            // What it went on behind had not come, or what is here does not lie over that: nothing was written under it.
            let actions = self.hold.settled(fork);
            return self.do_holds(actions, now_unix_s);
        }
        if self.overlay_of != OverlayOf::Under(line.generation) {
            let begins = line.fork.is_none() && start.head == Head::START;
            if !begins || matches!(self.overlay_of, OverlayOf::Under(_)) {
                // What the generation goes on behind is not here: it is fetched, and then `begin_behind` called.
                return Ok(());
            }
            self.overlay_of = OverlayOf::Under(line.generation);
            let row = self.hold.row().clone();
            self.keep_hold(row)?;
        }
        if let Some(send) = &mut self.send {
            let actions = send.aim(line, start, 0, now_unix_s);
            if actions.is_empty() {
                return Ok(());
            }
            // What was under way went somewhere else, and what was there counts for nothing here.
            (self.making, self.is_spent) = (None, false);
            self.out
                .retain(|message| !matches!(message, Message::OfferPart(_)));
            self.do_sends(actions, now_unix_s)?;
        } else {
            let row = SendRow {
                line,
                acked: start,
                sealed: None,
            };
            self.keep_send(&row)?;
            let mut send = Sender::open(row, 0, now_unix_s);
            if self.is_linked {
                // Nothing is sealed, so there is nothing to go on with.
                send.linked();
            }
            self.send = Some(send);
            // That there was nothing to be sent is over.
            self.is_spent = false;
        }
        if let Some(attached) = &self.attached {
            attached.overlay.send_after(start.seq)?;
        }
        self.note_flushed(now_unix_s);
        Ok(())
    }
}
