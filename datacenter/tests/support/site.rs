//! A branch with one volume, as the protocol's machines and an overlay that is a list of writes: no link, no files.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU16, Ordering};

use bytes::Bytes;
use datacenter::Datacenter;
use datacenter::catalog::volumes::LineKey;
use datacenter::volumes::{Received, StateError};
use datacenter_api::{BranchStatus, DesktopStatus, TokenRequest, VolumeKind, VolumeReport};
use dedup::{BranchId, DesktopId, ExtentSource, IdKey, Manifest, NodeId, NodeSource};
use dedup_protocol::join::JoinToken;
use dedup_protocol::records::TreeRef;
use dedup_protocol::state::authority::{Hold, HoldAction, HoldRow, Stage};
use dedup_protocol::state::lease::Lease;
use dedup_protocol::state::message::{Cut, DenyReason, PartChunks, WantChunks};
use dedup_protocol::state::writeback::{
    LineRow, Part, Range, RangeSource, SealPolicy, SendAction, SendRow, Sender,
};
use dedup_protocol::state::{Generation, Line, Nonce, Position};
use dedup_protocol::trust::Signed;
use dedup_protocol::wire::{Batch, BatchEncoding, Message};
use dedup_store::StoreError;
use dedup_transport::identity::BranchKey;
use rand::{RngCore, SeedableRng};

use super::Bench;

/// Bytes of a write.
pub const BLOCK: usize = 4096;
/// Blocks in a part: few, so that a segment has several.
const PART_BLOCKS: usize = 3;
const AT_ONCE: SealPolicy = SealPolicy {
    after_s: 0,
    after_records: 1,
};

/// What a block shows that was written as `value`: zeros for 0.
pub fn block(value: u8) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    if value > 0 {
        rand::rngs::StdRng::seed_from_u64(value.into()).fill_bytes(&mut bytes);
    }
    bytes
}

struct Nodes<'a>(&'a Datacenter);

impl NodeSource for Nodes<'_> {
    type Error = StoreError;

    fn node(&self, id: NodeId) -> Result<Bytes, StoreError> {
        self.0.store().node(id)
    }
}

/// All that a tree shows.
pub fn read_disk(dc: &Datacenter, tree: &TreeRef) -> Vec<u8> {
    let manifest = Manifest::load(&Nodes(dc), tree.root).unwrap();
    let mut disk = Vec::new();
    for index in 0..manifest.leaves.len() {
        for extent in manifest.leaf(&Nodes(dc), index).unwrap().extents {
            let len = extent.len as usize;
            match extent.source {
                ExtentSource::Zero => disk.resize(disk.len() + len, 0),
                ExtentSource::Chunk {
                    id,
                    chunk_len,
                    offset,
                } => {
                    let chunk = dc.store().chunk(id).unwrap();
                    assert_eq!(chunk.bytes().len(), chunk_len as usize);
                    let from = offset as usize;
                    disk.extend_from_slice(&chunk.bytes()[from..from + len]);
                }
            }
        }
    }
    assert_eq!(disk.len() as u64, tree.size_bytes);
    disk
}

/// A line's row.
pub fn line_row(dc: &Datacenter, key: LineKey) -> Option<LineRow> {
    dc.catalog().read(|tx| tx.get::<LineRow>(&key)).unwrap()
}

/// Lets a branch join.
pub fn join(bench: &Bench, name: &str) -> BranchId {
    let made = bench.dc.create_join_token(name, &TokenRequest::default());
    let token: JoinToken = made.unwrap().token.parse().unwrap();
    let key = BranchKey::generate();
    let now = bench.dc.now_unix_s();
    let joined = bench
        .dc
        .redeem_join_token(&token.secret, key.csr_der(), now);
    joined.unwrap().branch
}

pub struct Site {
    pub branch: BranchId,
    pub volume: DesktopId,
    pub hold: Hold,
    pub sender: Sender,
    /// What lies under the overlay.
    pub base: Vec<u8>,
    /// The overlay: block and value, from sequence number 1.
    pub log: Vec<(usize, u8)>,
    /// The last refusal.
    pub denied: Option<DenyReason>,
    /// Parts that are offered before the link goes.
    pub offers_left: usize,
    key: IdKey,
    now: u64,
    /// The distinct chunks of the part under way.
    made: Vec<Vec<u8>>,
}

impl Site {
    pub fn new(bench: &Bench, branch: BranchId, volume: DesktopId, base: Vec<u8>) -> Self {
        let line = Line {
            desktop: volume,
            generation: Generation::NONE,
            fork: None,
        };
        let row = SendRow {
            line,
            acked: Position::START,
            sealed: None,
        };
        let now = bench.dc.now_unix_s();
        Self {
            branch,
            volume,
            hold: Hold::open(branch, HoldRow::new(volume)),
            sender: Sender::open(row, 0, now),
            base,
            log: Vec::new(),
            denied: None,
            offers_left: usize::MAX,
            key: bench.dc.id_key().clone(),
            now,
            made: Vec::new(),
        }
    }

    /// Tells the datacenter of the volume.
    pub fn report(&self, bench: &Bench, version: &str) {
        let desktop = DesktopStatus {
            id: "alice".into(),
            pool: "office".into(),
            version: version.into(),
            volumes: vec![VolumeReport {
                id: self.volume.to_string(),
                kind: VolumeKind::System,
                size_bytes: self.base.len() as u64,
            }],
            ..DesktopStatus::default()
        };
        let status = BranchStatus {
            desktops: vec![desktop],
            ..BranchStatus::default()
        };
        bench.dc.record_branch_status(self.branch, status).unwrap();
    }

    /// Never drawn before, by another one of the same branch and volume either.
    fn fresh(&self) -> Nonce {
        static DRAWN: AtomicU16 = AtomicU16::new(1);
        let mut bytes = self.branch.0;
        bytes[0] ^= self.volume.0[0];
        bytes[14..].copy_from_slice(&DRAWN.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        Nonce(bytes)
    }

    pub fn holds(&self) -> bool {
        matches!(self.hold.row().stage, Stage::Held { .. })
    }

    pub fn generation(&self) -> Generation {
        match &self.hold.row().stage {
            Stage::Held { lease, .. } => lease.generation,
            Stage::Idle { last } => *last,
            Stage::Fenced { generation, .. } | Stage::Dropped { generation } => *generation,
        }
    }

    /// What the disk shows behind record `seq`.
    pub fn disk_at(&self, seq: u64) -> Vec<u8> {
        let mut disk = self.base.clone();
        for (place, value) in &self.log[..seq as usize] {
            disk[place * BLOCK..][..BLOCK].copy_from_slice(&block(*value));
        }
        disk
    }

    pub fn write(&mut self, place: usize, value: u8) {
        self.log.push((place, value));
        self.sender.flushed(self.log.len() as u64, self.now);
    }

    pub fn ask(&mut self, dc: &Datacenter) -> Result<(), StateError> {
        let (fresh, facts) = (self.fresh(), self.sender.facts());
        let actions = self.hold.ask(fresh, &facts).unwrap_or_default();
        self.do_lease(dc, actions)
    }

    pub fn give_back(&mut self, dc: &Datacenter) -> Result<(), StateError> {
        let facts = self.sender.facts();
        let actions = self.hold.give_back(&facts).unwrap();
        self.do_lease(dc, actions)
    }

    /// Gives up what was written here, or tells that again.
    pub fn drop_writes(&mut self, dc: &Datacenter) -> Result<(), StateError> {
        let actions = self.hold.drop_writes().unwrap();
        self.do_lease(dc, actions)?;
        let facts = self.sender.facts();
        let actions = self.hold.tell_dropped(&facts);
        self.do_lease(dc, actions)
    }

    /// Wants a snapshot of everything that was written.
    pub fn wish(&mut self, cut: Cut) {
        self.sender.wish(cut, self.log.len() as u64);
    }

    fn do_lease(&mut self, dc: &Datacenter, actions: Vec<HoldAction>) -> Result<(), StateError> {
        for action in actions {
            let messages = match action {
                HoldAction::Ask(ask) => dc.ask_lease(self.branch, &ask)?,
                HoldAction::Return(message) => dc.return_lease(self.branch, &message)?,
                HoldAction::Drop(message) => dc.drop_lease(self.branch, &message)?,
                HoldAction::Aim => {
                    if let Some((line, start)) = self.hold.aim() {
                        let flushed = self.log.len() as u64;
                        self.sender.aim(line, start, flushed, self.now);
                    }
                    continue;
                }
                HoldAction::Denied(reason) => {
                    self.denied = Some(reason);
                    continue;
                }
                HoldAction::Keep(_) | HoldAction::Stop | HoldAction::Leave => continue,
            };
            for message in messages {
                self.hear_lease(dc, message)?;
            }
        }
        Ok(())
    }

    fn hear_lease(&mut self, dc: &Datacenter, message: Message) -> Result<(), StateError> {
        let (fresh, facts) = (self.fresh(), self.sender.facts());
        let actions = match message {
            Message::LeaseGranted(signed) => {
                let signed = Signed::<Lease>::from_bytes(&signed.bytes).unwrap();
                self.hold.granted(signed.open_own().unwrap())
            }
            Message::RecallLease(recall) => {
                self.hold.recalled(&recall);
                return Ok(());
            }
            Message::ProveLease(prove) => self.hold.prove(&prove, fresh, &facts),
            Message::DenyLease(deny) => self.hold.denied(&deny),
            Message::FenceLease(fence) => self.hold.fenced(&fence, fresh),
            Message::LeaseReturned(returned) => self.hold.returned(&returned),
            other => panic!("{} about a lease", other.name()),
        };
        self.do_lease(dc, actions)
    }

    /// Links up, goes on with what is under way, then sends what is not there.
    pub fn sync(&mut self, dc: &Datacenter) -> Result<(), StateError> {
        self.sender.unlinked();
        let actions = self.sender.linked();
        self.do_send(dc, actions)?;
        let fresh = self.fresh();
        let actions = self.sender.poll(&AT_ONCE, fresh, self.now);
        self.do_send(dc, actions)
    }

    fn do_send(&mut self, dc: &Datacenter, actions: Vec<SendAction>) -> Result<(), StateError> {
        let mut queue = VecDeque::from(actions);
        while let Some(action) = queue.pop_front() {
            let received = match action {
                SendAction::Keep(_) | SendAction::Release(_) => continue,
                SendAction::Make { after, to, part } => {
                    let (ranges, is_last) = self.make(after, to, part);
                    queue.extend(self.sender.made(to, part, ranges, is_last));
                    continue;
                }
                SendAction::Settled(name) => {
                    let actions = self.hold.settled(name);
                    self.do_lease(dc, actions)?;
                    continue;
                }
                SendAction::Offer(_) if self.offers_left == 0 => return Ok(()),
                SendAction::Offer(offer) => {
                    self.offers_left -= 1;
                    dc.offer_part(self.branch, &offer)?
                }
                SendAction::SendChunks(want) => {
                    dc.take_part_chunks(self.branch, &self.pack(&want))?
                }
            };
            self.hear(dc, received, &mut queue)?;
        }
        Ok(())
    }

    fn hear(
        &mut self,
        dc: &Datacenter,
        received: Received,
        queue: &mut VecDeque<SendAction>,
    ) -> Result<(), StateError> {
        let mut messages = received.messages;
        if let Some((line, segment)) = received.whole {
            messages.extend(dc.finish_segment(line, segment)?);
        }
        for message in messages {
            match message {
                Message::WantChunks(want) => queue.extend(self.sender.wanted(&want)),
                Message::PartStaged(staged) => queue.extend(self.sender.staged(&staged)),
                Message::SegmentApplied(applied) => queue.extend(self.sender.applied(&applied)),
                Message::RestartSegment(restart) => queue.extend(self.sender.restart(&restart)),
                other => self.hear_lease(dc, other)?,
            }
        }
        Ok(())
    }

    /// Part `part` of what the records behind `after` up to `to` left, and whether it is the last.
    fn make(&mut self, after: u64, to: u64, part: u32) -> (Vec<u8>, bool) {
        let written = self.log[after as usize..to as usize].iter();
        let places: BTreeSet<usize> = written.map(|(place, _)| *place).collect();
        let places: Vec<usize> = places.into_iter().collect();
        let disk = self.disk_at(to);
        let parts: Vec<&[usize]> = places.chunks(PART_BLOCKS).collect();
        self.made.clear();
        let mut ranges = Vec::new();
        for place in parts[part as usize] {
            let bytes = disk[place * BLOCK..][..BLOCK].to_vec();
            let source = if bytes.iter().all(|b| *b == 0) {
                RangeSource::Zero
            } else {
                RangeSource::Chunk(self.key.chunk_id(&bytes))
            };
            if source != RangeSource::Zero && !self.made.contains(&bytes) {
                self.made.push(bytes);
            }
            ranges.push(Range {
                disk: 0,
                offset: (place * BLOCK) as u64,
                len: BLOCK as u64,
                source,
            });
        }
        let encoded = Part::new(ranges, &[disk.len() as u64]).unwrap().encode();
        (encoded, part as usize + 1 == parts.len())
    }

    /// The chunks that are wanted, in one frame.
    pub fn pack(&self, want: &WantChunks) -> PartChunks {
        let mut packed = Vec::new();
        for index in &want.wanted {
            let bytes = &self.made[usize::from(*index)];
            packed.extend_from_slice(&((bytes.len() as u32) << 1).to_le_bytes());
            packed.extend_from_slice(bytes);
        }
        PartChunks {
            line: want.line,
            segment: want.segment,
            part: want.part,
            batch: Batch {
                count: want.wanted.len() as u32,
                encoding: BatchEncoding::Each,
                packed,
            },
        }
    }
}
