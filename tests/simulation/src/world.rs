//! Events by virtual time, and the troubles.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use crash::Rng;
use dedup::VersionId;
use dedup_protocol::records::PoolAssignment;
use dedup_protocol::wire::Message;

use crate::content::{first_disk, next_disk};
use crate::keys::Keys;
use crate::line::{Line, Way};
use crate::master::Master;
use crate::site::Site;

/// Everything must be whole so long after the troubles ended. The slowest line here carries the largest disk in minutes.
const SETTLE_MAX_MS: u64 = 6 * 3600 * 1000;

enum Event {
    ToMaster {
        connection: u64,
        stream: u64,
        frame: Vec<u8>,
    },
    /// `None`: the stream's end.
    ToSite {
        connection: u64,
        stream: u64,
        frame: Option<Vec<u8>>,
    },
    Pull {
        connection: u64,
        stream: u64,
    },
    Dialled(u64),
    Read,
    Publish,
    Trouble,
    StartMaster,
    StartSite,
    Wake,
}

struct At {
    ms: u64,
    order: u64,
    event: Event,
}

impl PartialEq for At {
    fn eq(&self, other: &Self) -> bool {
        (self.ms, self.order) == (other.ms, other.order)
    }
}

impl Eq for At {}

impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for At {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.ms, self.order).cmp(&(other.ms, other.order))
    }
}

/// What a run met.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    /// Connections that were cut.
    pub cuts: u64,
    /// Deaths of the datacenter.
    pub master_deaths: u64,
    /// Deaths of the branch.
    pub site_deaths: u64,
    /// Versions published.
    pub versions: u64,
    /// Guests' reads, and those that were given up.
    pub reads: u64,
    /// Reads that waited for longer than a guest does.
    pub read_timeouts: u64,
    /// Chunks that guests waited for.
    pub demanded: u64,
    /// Chunk requests.
    pub requests: u64,
    /// Trees compared at the end.
    pub compared: u64,
    /// Virtual milliseconds.
    pub virtual_ms: u64,
    /// Bytes that the line was given.
    pub line_bytes: u64,
}

impl Tally {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.cuts, other.cuts),
            (&mut self.master_deaths, other.master_deaths),
            (&mut self.site_deaths, other.site_deaths),
            (&mut self.versions, other.versions),
            (&mut self.reads, other.reads),
            (&mut self.read_timeouts, other.read_timeouts),
            (&mut self.demanded, other.demanded),
            (&mut self.requests, other.requests),
            (&mut self.compared, other.compared),
            (&mut self.virtual_ms, other.virtual_ms),
            (&mut self.line_bytes, other.line_bytes),
        ] {
            *mine += theirs;
        }
    }
}

/// A disk and its kernel.
type Disks = (Arc<Vec<u8>>, Arc<Vec<u8>>);

struct World {
    rng: Rng,
    now_ms: u64,
    order: u64,
    heap: BinaryHeap<Reverse<At>>,
    master: Master,
    site: Site,
    line: Line,
    connection: Option<u64>,
    next_connection: u64,
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

/// Runs the world of `seed` to its end; panics where anything that must hold does not.
pub fn run(seed: u64) -> Tally {
    let mut rng = Rng::new(seed);
    let keys = Keys::new();
    let master = Master::new(rng.bits(), keys.clone(), &mut rng);
    let site = Site::new(rng.bits(), keys);
    let mut world = World {
        line: Line::new(&mut rng),
        now_ms: 0,
        order: 0,
        heap: BinaryHeap::new(),
        master,
        site,
        connection: None,
        next_connection: 1,
        published: Vec::new(),
        attempt: None,
        last: None,
        assigned: 0,
        to_publish: 1 + rng.below(4),
        troubles_until_ms: 2_000 + rng.below(120_000),
        wake_at_ms: None,
        tally: Tally::default(),
        rng,
    };
    world.live();
    world.tally
}

impl World {
    fn after(&mut self, ms: u64, event: Event) {
        self.order += 1;
        self.heap.push(Reverse(At {
            ms: self.now_ms + ms,
            order: self.order,
            event,
        }));
    }

    fn live(&mut self) {
        self.after(0, Event::Publish);
        self.dial();
        for _ in 0..self.rng.below(30) {
            let at = self.rng.below(self.troubles_until_ms);
            self.after(at, Event::Read);
        }
        for _ in 0..self.rng.below(12) {
            let at = self.rng.below(self.troubles_until_ms);
            self.after(at, Event::Trouble);
        }
        while let Some(Reverse(at)) = self.heap.pop() {
            self.now_ms = at.ms;
            assert!(
                self.now_ms < self.troubles_until_ms + SETTLE_MAX_MS,
                "not whole after {} virtual seconds",
                self.now_ms / 1000
            );
            self.happen(at.event);
            self.pump();
            if self.now_ms >= self.troubles_until_ms
                && self.to_publish == 0
                && self.site.is_settled(self.assigned)
            {
                break;
            }
        }
        assert!(
            self.to_publish == 0 && self.site.is_settled(self.assigned),
            "nothing more happens, and it is not whole"
        );
        self.tally.compared = self.site.compare() as u64;
        self.tally.virtual_ms = self.now_ms;
        self.tally.site_deaths = self.site.tally.deaths;
        self.tally.reads = self.site.tally.reads;
        self.tally.read_timeouts = self.site.tally.read_timeouts;
        self.tally.demanded = self.site.tally.demanded;
        self.tally.requests = self.site.tally.requests;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::ToMaster {
                connection,
                stream,
                frame,
            } if self.connection == Some(connection) => {
                let out = self.master.handle(stream, &frame);
                for (stream, message) in out {
                    self.send_down(connection, stream, Some(&message));
                }
                if self.master.is_answer(stream) {
                    self.after(0, Event::Pull { connection, stream });
                }
            }
            Event::Pull { connection, stream } if self.connection == Some(connection) => {
                if let Some(frame) = self.master.pull(stream) {
                    let sent = self.send_down(connection, stream, frame.as_ref());
                    if frame.is_some() {
                        self.after(sent - self.now_ms, Event::Pull { connection, stream });
                    }
                }
            }
            Event::ToSite {
                connection,
                stream,
                frame,
            } if self.connection == Some(connection) => {
                let taken = self.site.handle(self.now_ms, stream, frame.as_deref());
                if taken.is_err() {
                    self.kill_site();
                }
            }
            // What was on the way when the connection went is gone with it.
            Event::ToMaster { .. } | Event::ToSite { .. } | Event::Pull { .. } => {}
            Event::Dialled(number) => self.dialled(number),
            Event::Read => self.site.begin_read(&mut self.rng, self.now_ms),
            Event::Publish => self.publish(),
            Event::Trouble => self.trouble(),
            Event::StartMaster => {
                self.master.start();
                self.dial();
            }
            Event::StartSite => {
                self.site.start();
                self.dial();
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
        self.send_up(out);
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

    fn send_up(&mut self, out: Vec<(u64, Message)>) {
        let Some(connection) = self.connection else {
            return;
        };
        for (stream, message) in out {
            let frame = message.encode();
            self.tally.line_bytes += frame.len() as u64;
            let path = (connection, stream, Way::Up);
            let (_, arrival) = self
                .line
                .carry(&mut self.rng, self.now_ms, path, frame.len());
            let event = Event::ToMaster {
                connection,
                stream,
                frame,
            };
            self.after(arrival - self.now_ms, event);
        }
    }

    /// Returns when the line has taken it.
    fn send_down(&mut self, connection: u64, stream: u64, message: Option<&Message>) -> u64 {
        let frame = message.map(Message::encode);
        let bytes = frame.as_ref().map_or(1, Vec::len);
        self.tally.line_bytes += bytes as u64;
        let path = (connection, stream, Way::Down);
        let (sent, arrival) = self.line.carry(&mut self.rng, self.now_ms, path, bytes);
        let event = Event::ToSite {
            connection,
            stream,
            frame,
        };
        self.after(arrival - self.now_ms, event);
        sent
    }

    fn dial(&mut self) {
        if self.connection.is_none() && self.site.is_alive() && self.master.is_alive() {
            let number = self.next_connection;
            self.next_connection += 1;
            let pause = self.rng.below(2_000);
            self.after(self.line.handshake_ms() + pause, Event::Dialled(number));
        }
    }

    fn dialled(&mut self, number: u64) {
        let newest = number + 1 == self.next_connection;
        if !newest || self.connection.is_some() || !self.site.is_alive() || !self.master.is_alive()
        {
            return;
        }
        self.connection = Some(number);
        let out = self.site.connected();
        self.send_up(out);
    }

    fn hang_up(&mut self) {
        if self.connection.take().is_some() {
            self.tally.cuts += 1;
        }
        self.line.cut();
        self.master.hung_up();
        self.site.hung_up();
        self.dial();
    }

    fn trouble(&mut self) {
        match self.rng.below(8) {
            0..=2 => self.hang_up(),
            3 if self.master.is_alive() => self.kill_master(),
            4 if self.site.is_alive() => self.kill_site(),
            5 if self.site.is_alive() => self.site.stop_after(self.rng.below(30)),
            6 if self.master.is_alive() => self.master.stop_after(self.rng.below(30)),
            // An outage: nobody gets through for a while.
            7 => {
                self.hang_up();
                self.next_connection += 1;
                let number = self.next_connection - 1;
                let long = self.rng.below(60_000);
                self.after(long, Event::Dialled(number));
            }
            _ => {}
        }
    }

    fn kill_master(&mut self) {
        self.tally.master_deaths += 1;
        self.master.die(&mut self.rng);
        self.hang_up();
        let pause = self.rng.below(5_000);
        self.after(pause, Event::StartMaster);
    }

    fn kill_site(&mut self) {
        self.site.die(&mut self.rng);
        self.hang_up();
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
                    Arc::new(first_disk(&mut self.rng)),
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
        };
        let out = self.master.assign(vec![pool]);
        self.assigned += 1;
        if let Some(connection) = self.connection {
            for (stream, message) in out {
                self.send_down(connection, stream, Some(&message));
            }
        }
    }
}
