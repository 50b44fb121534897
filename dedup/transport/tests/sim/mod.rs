//! Links on a virtual clock: real QUIC connections (quinn-proto) under the product's settings, over sim-wan's model of a line.
//!
//! Everything that decides when a packet leaves runs for real: handshake, loss detection, flow control, pacing, congestion control.
//! Only sockets and clock are replaced, so that a minute on a satellite line takes a second or two, and the same seed gives the same
//! run. Invariant: no result depends on the machine's speed or load. Not modelled: CPU cost, socket buffers, segmentation offload.
#![allow(clippy::unwrap_used, missing_docs, dead_code)]

mod flow;
mod report;

use std::time::{Duration, Instant};

use sim_wan::Profile;
use sim_wan::model::{Loss, Mode, Pipe, Shape};

#[allow(unused_imports)]
pub use flow::{Load, Spec};
pub use report::Report;

use flow::{Flow, Packet, Side};

/// IPv4 and UDP headers: what a line carries besides the UDP payload.
const HEADER_BYTES: usize = 28;
/// How often figures are recorded.
const SAMPLE_EVERY: Duration = Duration::from_millis(10);

/// A line in both directions.
#[derive(Debug, Clone)]
pub struct Line {
    pub down: Shape,
    pub up: Shape,
}

impl Line {
    /// `mbit` down and a fifth of it up, `rtt_ms`, random loss down, a queue of `queue` round trips.
    pub fn new(mbit: f64, rtt_ms: f64, loss: Loss, queue: f64) -> Self {
        let half = Duration::from_secs_f64(rtt_ms / 2000.0);
        let queue = Duration::from_secs_f64(rtt_ms * queue / 1000.0);
        let mut down = Shape::clean((mbit * 1e6) as u64, half, queue);
        down.loss = loss;
        let mut up = Shape::clean((mbit * 0.2e6) as u64, half, queue);
        up.loss = loss;
        Self { down, up }
    }

    pub fn profile(name: &str) -> Self {
        let profile = Profile::named(name).unwrap();
        Self {
            down: profile.down,
            up: profile.up,
        }
    }

    pub fn rtt(&self) -> Duration {
        self.down.delay + self.up.delay
    }
}

/// Something that happens to the line.
#[derive(Debug, Clone)]
pub enum Event {
    Cut,
    Restore,
    Shape(Box<Line>),
}

/// Runs `flows` over one line for `length` and reports.
pub fn run(
    line: &Line,
    flows: &[Spec],
    events: &[(Duration, Event)],
    length: Duration,
    seed: u64,
) -> Report {
    Simulation::new(line, flows, seed).run(events, length)
}

struct Simulation {
    base: Instant,
    now: Duration,
    down: Pipe<(usize, Packet)>,
    up: Pipe<(usize, Packet)>,
    flows: Vec<Flow>,
    report: Report,
}

impl Simulation {
    fn new(line: &Line, specs: &[Spec], seed: u64) -> Self {
        let base = Instant::now();
        let flows = specs
            .iter()
            .enumerate()
            .map(|(index, spec)| Flow::new(index, spec.clone(), base, seed))
            .collect::<Vec<_>>();
        Self {
            base,
            now: Duration::ZERO,
            down: Pipe::new(Duration::ZERO, line.down.clone(), Mode::Datagram, seed),
            up: Pipe::new(
                Duration::ZERO,
                line.up.clone(),
                Mode::Datagram,
                seed ^ 0x5555,
            ),
            report: Report::new(line.clone(), flows.len()),
            flows,
        }
    }

    fn run(mut self, events: &[(Duration, Event)], length: Duration) -> Report {
        let mut events = events.iter().peekable();
        let mut sample_at = Duration::ZERO;
        while self.now <= length {
            while let Some((_, event)) = events.next_if(|(at, _)| *at <= self.now) {
                self.happen(event);
            }
            while sample_at <= self.now {
                self.sample(sample_at);
                sample_at += SAMPLE_EVERY;
            }
            self.deliver();
            self.drive();
            let next = [
                self.down.next_event(),
                self.up.next_event(),
                events.peek().map(|(at, _)| *at),
            ]
            .into_iter()
            .flatten()
            .chain(self.flows.iter_mut().filter_map(Flow::next_event))
            .chain([sample_at])
            .min()
            .unwrap();
            // Never stand still: a lower bound of the pipe's may already be past.
            self.now = next.max(self.now + Duration::from_nanos(1000));
        }
        self.report.finish(&mut self.flows);
        self.report
    }

    fn happen(&mut self, event: &Event) {
        let now = self.now;
        match event {
            Event::Cut => {
                self.down.cut(now);
                self.up.cut(now);
            }
            Event::Restore => {
                self.down.restore(now);
                self.up.restore(now);
            }
            Event::Shape(line) => {
                self.down.set_shape(now, line.down.clone());
                self.up.set_shape(now, line.up.clone());
            }
        }
    }

    fn deliver(&mut self) {
        while let Some((flow, packet)) = self.down.poll(self.now) {
            self.flows[flow].receive(Side::Branch, self.now, packet);
        }
        while let Some((flow, packet)) = self.up.poll(self.now) {
            self.flows[flow].receive(Side::Datacenter, self.now, packet);
        }
    }

    fn drive(&mut self) {
        let Self {
            flows,
            down,
            up,
            now,
            ..
        } = self;
        for (index, flow) in flows.iter_mut().enumerate() {
            flow.drive(*now, |side, packet| {
                let bytes = (packet.len() + HEADER_BYTES) as u64;
                match side {
                    Side::Datacenter => down.enqueue(*now, (index, packet), bytes),
                    Side::Branch => up.enqueue(*now, (index, packet), bytes),
                };
            });
        }
    }

    fn sample(&mut self, at: Duration) {
        let stats = self.down.stats(self.now);
        let queue = self.down.queue_delay(self.now);
        self.report.sample(at, stats, queue, &mut self.flows);
    }
}
