//! The carrier for many worlds: a message is one event, and a cut is known to both ends at once.

use std::collections::VecDeque;

use crash::Rng;
use dedup_protocol::wire::Message;

use crate::carrier::{Arrival, Carrier, End};
use crate::line::{Line, Way};
use crate::schedule::Schedule;
use crate::tally::Tally;

enum Event {
    /// The attempt of this number gets through, if anybody does.
    Dialled(u64),
    /// Of the link of this number; void when that is gone.
    Arrives(u64, Arrival),
}

/// See the module.
pub(crate) struct Messages {
    rng: Rng,
    line: Line,
    now_ms: u64,
    events: Schedule<Event>,
    /// What is to be told at once.
    arrivals: VecDeque<Arrival>,
    branch_is_alive: bool,
    datacenter_is_alive: bool,
    down_until_ms: u64,
    attempt: Option<u64>,
    link: Option<u64>,
    next_link: u64,
    bytes: u64,
}

impl Messages {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        Self {
            line: Line::new(&mut rng),
            rng,
            now_ms: 0,
            events: Schedule::new(),
            arrivals: VecDeque::new(),
            branch_is_alive: true,
            datacenter_is_alive: true,
            down_until_ms: 0,
            attempt: None,
            link: None,
            next_link: 1,
            bytes: 0,
        }
    }

    fn hang_up(&mut self) {
        self.line.cut();
        if let Some(link) = self.link.take() {
            if self.datacenter_is_alive {
                self.arrivals.push_back(Arrival::Lost { link });
            }
            if self.branch_is_alive {
                self.arrivals.push_back(Arrival::Down { was_up: true });
            }
        }
    }

    fn dialled(&mut self, number: u64) -> Option<Arrival> {
        self.attempt.take_if(|attempt| *attempt == number)?;
        if !self.datacenter_is_alive || self.now_ms < self.down_until_ms {
            return Some(Arrival::Down { was_up: false });
        }
        self.link = Some(number);
        Some(Arrival::Up)
    }
}

impl Carrier for Messages {
    fn dial(&mut self) {
        if self.branch_is_alive && self.attempt.is_none() && self.link.is_none() {
            let number = self.next_link;
            self.next_link += 1;
            self.attempt = Some(number);
            let ms = self.now_ms + self.line.handshake_ms();
            self.events.add(ms, Event::Dialled(number));
        }
    }

    fn send_up(&mut self, stream: u64, message: &Message) {
        let Some(link) = self.link else {
            return;
        };
        let frame = message.encode();
        self.bytes += frame.len() as u64;
        let path = (link, stream, Way::Up);
        let (_, arrival) = self
            .line
            .carry(&mut self.rng, self.now_ms, path, frame.len());
        let frame = Arrival::ToDatacenter {
            link,
            stream,
            frame,
        };
        self.events.add(arrival, Event::Arrives(link, frame));
    }

    fn send_down(&mut self, link: u64, stream: u64, message: Option<&Message>) {
        if self.link != Some(link) {
            return;
        }
        let frame = message.map(Message::encode);
        let bytes = frame.as_ref().map_or(1, Vec::len);
        self.bytes += bytes as u64;
        let path = (link, stream, Way::Down);
        let (sent, arrival) = self.line.carry(&mut self.rng, self.now_ms, path, bytes);
        if frame.is_some() {
            self.events
                .add(sent, Event::Arrives(link, Arrival::Room { link, stream }));
        }
        let frame = Arrival::ToBranch { stream, frame };
        self.events.add(arrival, Event::Arrives(link, frame));
    }

    fn died(&mut self, end: End) {
        match end {
            End::Branch => {
                self.branch_is_alive = false;
                self.attempt = None;
            }
            End::Datacenter => self.datacenter_is_alive = false,
        }
        self.arrivals.retain(|arrival| arrival.end() != end);
        self.hang_up();
    }

    fn started(&mut self, end: End) {
        match end {
            End::Branch => self.branch_is_alive = true,
            End::Datacenter => self.datacenter_is_alive = true,
        }
    }

    fn cut(&mut self) {
        self.hang_up();
    }

    fn outage(&mut self) {
        self.hang_up();
        self.down_until_ms = self.now_ms + self.rng.below(60_000);
    }

    fn advance(&mut self, until_ms: u64) -> Option<(u64, Arrival)> {
        loop {
            if let Some(arrival) = self.arrivals.pop_front() {
                return Some((self.now_ms, arrival));
            }
            if self.events.next_ms().is_none_or(|ms| ms > until_ms) {
                self.now_ms = self.now_ms.max(until_ms);
                return None;
            }
            let (ms, event) = self.events.pop()?;
            self.now_ms = ms;
            match event {
                Event::Dialled(number) => {
                    let arrival = self.dialled(number);
                    self.arrivals.extend(arrival);
                }
                Event::Arrives(link, arrival) if self.link == Some(link) => {
                    return Some((self.now_ms, arrival));
                }
                // What was on the way when the link went is gone with it.
                Event::Arrives(..) => {}
            }
        }
    }

    fn count(&mut self, tally: &mut Tally) {
        tally.line_bytes = self.bytes;
    }
}
