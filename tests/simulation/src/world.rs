//! Events by virtual time, and the troubles.

use std::sync::Arc;

use crash::Rng;
use dedup::VersionId;
use dedup_protocol::records::{MachineType, PoolAssignment, StartMode};
use dedup_protocol::wire::Message;

use crate::carrier::{Arrival, Carrier, End};
use crate::content::{Scale, first_disk, next_disk};
use crate::keys::Keys;
use crate::master::Master;
use crate::messages::Messages;
use crate::quic::Quic;
use crate::schedule::Schedule;
use crate::site::Site;
use crate::tally::Tally;

/// Everything must be whole so long after the troubles ended. The slowest line here carries the largest disk in minutes, if its links
/// last; on one that loses runs of packets, and with a congestion control that then goes silent, they may not for hours.
const SETTLE_MAX_MS: u64 = 6 * 3600 * 1000;
/// Between two attempts of the branch to reach the datacenter: doubled from the first to the last, as the branch server does.
const PAUSE_MIN_MS: u64 = 250;
const PAUSE_MAX_MS: u64 = 15_000;

enum Event {
    Dial,
    Read,
    Publish,
    Trouble,
    StartMaster,
    StartSite,
    Wake,
}

/// A disk and its kernel.
type Disks = (Arc<Vec<u8>>, Arc<Vec<u8>>);

struct World {
    rng: Rng,
    now_ms: u64,
    events: Schedule<Event>,
    master: Master,
    site: Site,
    carrier: Box<dyn Carrier>,
    scale: Scale,
    pause_ms: u64,
    published: Vec<VersionId>,
    /// The disk being published: a death in the middle is followed by another attempt.
    attempt: Option<Disks>,
    last: Option<Disks>,
    assigned: u64,
    to_publish: u64,
    troubles_until_ms: u64,
    wake_at_ms: Option<u64>,
    tally: Tally,
}

/// Runs the world of `seed` over a line that carries messages to its end; panics where anything that must hold does not.
pub fn run(seed: u64) -> Tally {
    let mut rng = Rng::new(seed);
    let carrier = Messages::new(rng.bits());
    World::new(rng, Box::new(carrier), Scale::Messages).live()
}

/// As [`run`], over QUIC connections and a line that carries packets.
pub fn run_over_quic(seed: u64) -> Tally {
    let mut rng = Rng::new(seed);
    let carrier = Quic::new(rng.bits());
    World::new(rng, Box::new(carrier), Scale::Packets).live()
}

impl World {
    fn new(mut rng: Rng, carrier: Box<dyn Carrier>, scale: Scale) -> Self {
        let keys = Keys::new();
        Self {
            now_ms: 0,
            events: Schedule::new(),
            master: Master::new(rng.bits(), keys.clone(), scale.chunk_bytes_min(&mut rng)),
            site: Site::new(rng.bits(), keys),
            carrier,
            scale,
            pause_ms: PAUSE_MIN_MS,
            published: Vec::new(),
            attempt: None,
            last: None,
            assigned: 0,
            to_publish: 1 + rng.below(4),
            troubles_until_ms: 2_000 + rng.below(scale.troubles_ms_max()),
            wake_at_ms: None,
            tally: Tally::default(),
            rng,
        }
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.events.add(self.now_ms + ms, event);
    }

    fn live(mut self) -> Tally {
        self.after(0, Event::Publish);
        self.carrier.dial();
        for _ in 0..self.rng.below(self.scale.reads_max()) {
            let at = self.rng.below(self.troubles_until_ms);
            self.after(at, Event::Read);
        }
        for _ in 0..self.rng.below(self.scale.troubles_max()) {
            let at = self.rng.below(self.troubles_until_ms);
            self.after(at, Event::Trouble);
        }
        while !self.is_whole() {
            self.step();
            assert!(
                self.now_ms < self.troubles_until_ms + SETTLE_MAX_MS,
                "not whole after {} virtual seconds",
                self.now_ms / 1000
            );
        }
        self.tally.compared = self.site.compare() as u64;
        self.tally.virtual_ms = self.now_ms;
        self.tally.site_deaths = self.site.tally.deaths;
        self.tally.reads = self.site.tally.reads;
        self.tally.read_timeouts = self.site.tally.read_timeouts;
        self.tally.demanded = self.site.tally.demanded;
        self.tally.requests = self.site.tally.requests;
        self.carrier.count(&mut self.tally);
        self.tally
    }

    fn is_whole(&self) -> bool {
        self.now_ms >= self.troubles_until_ms
            && self.to_publish == 0
            && self.site.is_settled(self.assigned)
    }

    /// Goes on to what happens next, on the line or elsewhere.
    fn step(&mut self) {
        let next = self.events.next_ms().expect("a look is always ahead");
        match self.carrier.advance(next) {
            Some((ms, arrival)) => {
                self.now_ms = ms;
                self.arrive(arrival);
            }
            None => {
                let (ms, event) = self.events.pop().expect("it was seen");
                self.now_ms = ms;
                self.happen(event);
            }
        }
        self.pump();
    }

    fn arrive(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Up => {
                self.pause_ms = PAUSE_MIN_MS;
                let out = self.site.connected();
                self.send_up(&out);
            }
            Arrival::Down { was_up } => {
                *if was_up {
                    &mut self.tally.cuts
                } else {
                    &mut self.tally.failed_dials
                } += 1;
                self.site.hung_up();
                self.after(self.pause_ms, Event::Dial);
                self.pause_ms = (self.pause_ms * 2).min(PAUSE_MAX_MS);
            }
            Arrival::ToBranch { stream, frame } => {
                let taken = self.site.handle(self.now_ms, stream, frame.as_deref());
                if taken.is_err() {
                    self.kill_site();
                }
            }
            Arrival::ToDatacenter {
                link,
                stream,
                frame,
            } => {
                for message in self.master.handle(link, stream, &frame) {
                    self.carrier.send_down(link, stream, Some(&message));
                }
                self.pull(link, stream);
            }
            Arrival::Room { link, stream } => self.pull(link, stream),
            Arrival::Lost { link } => self.master.hung_up(link),
        }
    }

    /// Sends the next frame of an answer, if the stream is one.
    fn pull(&mut self, link: u64, stream: u64) {
        if let Some(frame) = self.master.pull(link, stream) {
            self.carrier.send_down(link, stream, frame.as_ref());
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Dial => self.carrier.dial(),
            Event::Read => self.site.begin_read(&mut self.rng, self.now_ms),
            Event::Publish => self.publish(),
            Event::Trouble => self.trouble(),
            Event::StartMaster => {
                self.master.start();
                self.carrier.started(End::Datacenter);
            }
            Event::StartSite => {
                self.site.start();
                self.carrier.started(End::Branch);
                self.pause_ms = PAUSE_MIN_MS;
                self.carrier.dial();
            }
            Event::Wake => self.wake_at_ms = None,
        }
    }

    fn pump(&mut self) {
        let out = self.site.pump(self.now_ms);
        if self.site.is_alive() && self.site.disk.is_stopped() {
            self.kill_site();
            return;
        }
        self.send_up(&out);
        // A wait of a guest ends by time alone, hence a look at least every ten seconds.
        let wait = self
            .site
            .idle_ms(self.now_ms)
            .unwrap_or(10_000)
            .clamp(1, 10_000);
        let at = self.now_ms + wait;
        if self.wake_at_ms.is_none_or(|wake| at < wake) {
            self.wake_at_ms = Some(at);
            self.after(wait, Event::Wake);
        }
    }

    fn send_up(&mut self, out: &[(u64, Message)]) {
        for (stream, message) in out {
            self.carrier.send_up(*stream, message);
        }
    }

    fn trouble(&mut self) {
        match self.rng.below(8) {
            0..=2 => self.carrier.cut(),
            3 if self.master.is_alive() => self.kill_master(),
            4 if self.site.is_alive() => self.kill_site(),
            5 if self.site.is_alive() => self.site.stop_after(self.rng.below(30)),
            6 if self.master.is_alive() => self.master.stop_after(self.rng.below(30)),
            7 => self.carrier.outage(),
            _ => {}
        }
    }

    fn kill_master(&mut self) {
        self.tally.master_deaths += 1;
        self.master.die(&mut self.rng);
        self.carrier.died(End::Datacenter);
        let pause = self.rng.below(5_000);
        self.after(pause, Event::StartMaster);
    }

    fn kill_site(&mut self) {
        self.site.die(&mut self.rng);
        self.carrier.died(End::Branch);
        let pause = self.rng.below(5_000);
        self.after(pause, Event::StartSite);
    }

    fn publish(&mut self) {
        if !self.master.is_alive() {
            self.after(1_000, Event::Publish);
            return;
        }
        let (disk, kernel) = match self.attempt.take() {
            Some(attempt) => attempt,
            None => match &self.last {
                None => (
                    Arc::new(first_disk(&mut self.rng, self.scale)),
                    Arc::new(self.rng.bytes(9_000)),
                ),
                Some((disk, kernel)) => (
                    Arc::new(next_disk(&mut self.rng, disk)),
                    Arc::new(next_disk(&mut self.rng, kernel)),
                ),
            },
        };
        let number = self.published.len() as u32 + 1;
        let parent = self.published.last().copied();
        match self
            .master
            .publish(number, parent, Arc::clone(&disk), Arc::clone(&kernel))
        {
            Ok(version) => {
                self.published.push(version.id);
                self.site.learn(version);
                self.last = Some((disk, kernel));
                self.tally.versions += 1;
                self.to_publish -= 1;
                self.assign();
            }
            Err(_) => {
                self.attempt = Some((disk, kernel));
                self.kill_master();
            }
        }
        if self.to_publish > 0 {
            let pause = self.rng.below(self.troubles_until_ms / 2 + 1);
            self.after(pause, Event::Publish);
        }
    }

    fn assign(&mut self) {
        let newest = self.published.len() - 1;
        let last = self.to_publish == 0;
        // Going back to an older version is an assignment like any other.
        let version = if last || !self.rng.one_in(4) {
            newest
        } else {
            self.rng.below(newest as u64 + 1) as usize
        };
        let mut pinned = Vec::new();
        if self.rng.one_in(3) {
            pinned.push(self.published[self.rng.below(newest as u64 + 1) as usize]);
        }
        let pool = PoolAssignment {
            pool: "office".into(),
            image: "desktop".into(),
            version: self.published[version],
            pinned,
            memory_mib: 1024,
            vcpus: 1,
            prestage: last || self.rng.one_in(2),
            machine: MachineType::Auto,
            tpm: false,
            user_volume_mib: 0,
            pooled: false,
            start: StartMode::Boot,
        };
        self.assigned += 1;
        for (link, stream, message) in self.master.assign(vec![pool]) {
            self.carrier.send_down(link, stream, Some(&message));
        }
    }
}
