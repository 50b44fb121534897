//! Leases and write-back. The first byte chooses: foreign bytes as a part of a segment, which has one spelling or is none; or frames, of
//! which each is a piece of the input, to both ends of a desktop that a branch holds, with a segment under way.
#![no_main]

use dedup::{BranchId, DesktopId, NodeId};
use dedup_protocol::records::TreeRef;
use dedup_protocol::state::authority::{
    Authority, AuthorityAction, AuthorityRow, Facts, Hold, HoldRow, PAST_MAX, Standing, Terms,
};
use dedup_protocol::state::lease::Lease;
use dedup_protocol::state::message::AskLease;
use dedup_protocol::state::writeback::{
    LineRow, Part, ReceiveAction, Receiver, SealPolicy, SendAction, SendRow, Sender,
};
use dedup_protocol::state::{Generation, Line, Nonce, Position};
use dedup_protocol::wire::Message;
use libfuzzer_sys::fuzz_target;
use splice_fuzz::content::REALM;
use splice_fuzz::script::Script;

const DESKTOP: DesktopId = DesktopId([1; 16]);
const BRANCH: BranchId = BranchId([2; 16]);
const DISKS: [u64; 2] = [1 << 30, 1 << 20];
const QUESTION: Nonce = Nonce([3; 16]);
const SEGMENT: Nonce = Nonce([4; 16]);
const NOW: u64 = 1_780_000_000;
const TERMS: Terms = Terms {
    lease_s: 60,
    offline_grace_s: 60,
};
const LINE: Line = Line {
    desktop: DESKTOP,
    generation: Generation(1),
    fork: None,
};

fn part(bytes: &[u8]) {
    if let Ok(part) = Part::decode(bytes, &DISKS) {
        assert_eq!(part.encode(), bytes, "one spelling");
        assert!(part.chunks().len() <= part.ranges().len());
    }
}

/// Both ends.
struct Desktop {
    authority: Authority,
    receiver: Receiver,
    hold: Hold,
    sender: Sender,
}

impl Desktop {
    fn new() -> Self {
        let mut authority = Authority::open(AuthorityRow::new(DESKTOP));
        let mut hold = Hold::open(BRANCH, HoldRow::new(DESKTOP));
        let facts = Facts {
            acked: Position::START,
            sealed: Nonce::NONE,
            flushed: 0,
        };
        hold.ask(QUESTION, &facts).expect("nothing is held yet");
        let ask = AskLease {
            desktop: DESKTOP,
            generation: Generation::NONE,
            renewal: 0,
            nonce: QUESTION,
            challenge: 0,
            acked: Position::START,
            sealed: Nonce::NONE,
            flushed: 0,
        };
        let tree = TreeRef {
            root: NodeId([0; 32]),
            size_bytes: DISKS[0],
        };
        let (receiver, _) = Receiver::open(LineRow::new(LINE, vec![tree]));
        let progress = receiver.row().progress(Generation(1));
        let granted = authority.ask(BRANCH, &ask, &progress, &TERMS, 1, NOW);
        let Some(AuthorityAction::Grant(generation, holder)) = granted.last() else {
            panic!("a desktop that nobody holds is granted");
        };
        hold.granted(Lease {
            realm: REALM,
            desktop: DESKTOP,
            branch: BRANCH,
            generation: *generation,
            renewal: holder.renewal,
            nonce: holder.nonce,
            base: holder.base,
            issued_unix_s: holder.issued_unix_s,
            expires_unix_s: holder.expires_unix_s,
            offline_grace_s: holder.offline_grace_s,
        });
        let row = SendRow {
            line: LINE,
            acked: Position::START,
            sealed: None,
        };
        let mut sender = Sender::open(row, 10, NOW);
        sender.linked();
        let mut desktop = Self {
            authority,
            receiver,
            hold,
            sender,
        };
        let policy = SealPolicy {
            after_s: 0,
            after_records: 1,
        };
        let sealed = desktop.sender.poll(&policy, SEGMENT, NOW);
        desktop.make(sealed);
        desktop
    }

    /// Makes the parts that are asked for: three of a segment, all empty.
    fn make(&mut self, actions: Vec<SendAction>) {
        for action in actions {
            if let SendAction::Make { to, part, .. } = action {
                let made = self.sender.made(to, part, vec![0], part >= 2);
                assert!(made.len() <= 1);
            }
        }
    }

    /// Builds what is to be built. Nothing else may change the desktop's state.
    fn build(&mut self, standing: Standing, actions: Vec<ReceiveAction>) {
        let before = self.receiver.row().applied;
        for action in actions {
            if let ReceiveAction::Build { segment } = action {
                let disks = self.receiver.row().disks.clone();
                let done = self.receiver.built(standing, segment, disks);
                let is_applied = self.receiver.row().applied != before;
                assert_eq!(is_applied, !done.is_empty());
                assert!(!is_applied || standing == Standing::Current);
            }
        }
    }

    fn hear(&mut self, frame: &[u8], seed: u8) {
        let Ok(message) = Message::decode(frame) else {
            return;
        };
        let fresh = Nonce([seed | 0x80; 16]);
        let challenge = u64::from(seed) + 2;
        let facts = self.sender.facts();
        match message {
            Message::AskLease(ask) => {
                let progress = self.receiver.row().progress(ask.generation);
                let authority = &mut self.authority;
                authority.ask(BRANCH, &ask, &progress, &TERMS, challenge, NOW);
            }
            Message::ReturnLease(at) => {
                let progress = self.receiver.row().progress(at.generation);
                let authority = &mut self.authority;
                authority.give_back(BRANCH, &at, &progress, challenge, NOW);
            }
            Message::DropLease(message) => {
                drop(self.authority.drop_lease(BRANCH, &message, NOW));
                let row = self.authority.row();
                assert!(row.holder.is_none() || row.last != message.generation);
            }
            Message::OfferPart(offer) => {
                let standing = self.authority.standing(BRANCH, offer.line.generation);
                let Ok(part) = Part::decode(&offer.ranges, &DISKS) else {
                    return;
                };
                let all = 0..part.chunks().len() as u16;
                let missing: Vec<u16> = if seed & 1 == 0 { vec![] } else { all.collect() };
                let taken = self.receiver.offer(standing, &offer, &part, &missing);
                self.build(standing, taken.unwrap_or_default());
            }
            Message::PartChunks(chunks) => {
                let standing = self.authority.standing_of(chunks.line.generation);
                if let Ok(expected) = self.receiver.expected(&chunks) {
                    let actions = self.receiver.stored(standing, expected.len() as u32);
                    self.build(standing, actions);
                }
            }
            Message::ProveLease(prove) => drop(self.hold.prove(&prove, fresh, &facts)),
            Message::RecallLease(recall) => {
                self.hold.recalled(&recall);
                if seed & 1 == 1 {
                    drop(self.hold.drop_writes());
                    drop(self.hold.tell_dropped(&facts));
                }
            }
            Message::DenyLease(deny) => drop(self.hold.denied(&deny)),
            Message::FenceLease(fence) => drop(self.hold.fenced(&fence, fresh)),
            Message::LeaseReturned(returned) => drop(self.hold.returned(&returned)),
            Message::WantChunks(want) => drop(self.sender.wanted(&want)),
            Message::PartStaged(staged) => {
                let actions = self.sender.staged(&staged);
                self.make(actions);
            }
            Message::SegmentApplied(applied) => drop(self.sender.applied(&applied)),
            Message::RestartSegment(restart) => {
                let actions = self.sender.restart(&restart);
                self.make(actions);
            }
            _ => {}
        }
        assert!(self.authority.row().past.len() <= PAST_MAX);
    }
}

fuzz_target!(|data: &[u8]| {
    let mut script = Script::new(data);
    if script.byte().unwrap_or(0) & 1 == 0 {
        part(script.rest());
        return;
    }
    let mut desktop = Desktop::new();
    while let Some(seed) = script.byte() {
        desktop.hear(script.piece(), seed);
    }
});
