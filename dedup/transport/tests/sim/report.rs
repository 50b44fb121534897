//! What a simulation has seen, by virtual time.

use std::ops::Range;
use std::time::Duration;

use sim_wan::model::DirectionStats;

use dedup_transport::congestion::Figures;

use super::flow::Flow;
use super::{Line, SAMPLE_EVERY};

struct Sample {
    received: Vec<u64>,
    windows: Vec<u64>,
    figures: Option<Figures>,
    offered: u64,
    delivered: u64,
    queue_drops: u64,
    queue: Duration,
}

/// Figures every 10 ms of virtual time.
pub struct Report {
    line: Line,
    flows: usize,
    samples: Vec<Sample>,
    /// Why links ended, if any did.
    pub ended: Vec<String>,
    /// Largest UDP payload of each link at the end.
    pub mtu: Vec<u16>,
    /// Packets that each datacenter took for lost.
    pub lost_packets: Vec<u64>,
}

impl Report {
    pub(super) fn new(line: Line, flows: usize) -> Self {
        Self {
            line,
            flows,
            samples: Vec::new(),
            ended: Vec::new(),
            mtu: Vec::new(),
            lost_packets: Vec::new(),
        }
    }

    pub(super) fn sample(
        &mut self,
        _at: Duration,
        stats: DirectionStats,
        queue: Duration,
        flows: &mut [Flow],
    ) {
        self.samples.push(Sample {
            received: flows.iter().map(Flow::received).collect(),
            windows: flows
                .iter()
                .map(|flow| flow.path().map_or(0, |path| path.1))
                .collect(),
            figures: flows.first().and_then(Flow::figures),
            offered: stats.offered_bytes,
            delivered: stats.delivered_bytes,
            queue_drops: stats.dropped_queue.bytes,
            queue,
        });
    }

    pub(super) fn finish(&mut self, flows: &mut [Flow]) {
        for flow in flows {
            self.ended.extend(flow.lost().map(str::to_owned));
            let path = flow.path();
            self.mtu.push(path.map_or(0, |path| path.2));
            self.lost_packets.push(path.map_or(0, |path| path.3));
        }
    }

    fn at(&self, time: Duration) -> &Sample {
        let index = (time.as_nanos() / SAMPLE_EVERY.as_nanos()) as usize;
        &self.samples[index.min(self.samples.len() - 1)]
    }

    /// Application bytes of one flow in a span of time.
    pub fn received(&self, flow: usize, span: &Range<Duration>) -> u64 {
        self.at(span.end).received[flow] - self.at(span.start).received[flow]
    }

    /// Application bits a second of one flow, in 10^6.
    pub fn mbit(&self, flow: usize, span: &Range<Duration>) -> f64 {
        self.received(flow, span) as f64 * 8e-6 / (span.end - span.start).as_secs_f64()
    }

    /// All flows' application bytes as a share of what the line can deliver after its mean loss.
    pub fn goodput(&self, span: &Range<Duration>) -> f64 {
        let sum: f64 = (0..self.flows).map(|flow| self.mbit(flow, span)).sum();
        sum * 1e6 / (self.line.down.rate_bps as f64 * (1.0 - self.line.down.loss.mean()))
    }

    /// Share of the line that carried packets, headers and all, to the branch.
    pub fn carried(&self, span: &Range<Duration>) -> f64 {
        let bytes = self.at(span.end).delivered - self.at(span.start).delivered;
        let bits_per_s = bytes as f64 * 8.0 / (span.end - span.start).as_secs_f64();
        bits_per_s / (self.line.down.rate_bps as f64 * (1.0 - self.line.down.loss.mean()))
    }

    /// Bytes put on the line for each byte that an application got.
    pub fn offered_per_received(&self, span: &Range<Duration>) -> f64 {
        let received: u64 = (0..self.flows).map(|flow| self.received(flow, span)).sum();
        (self.at(span.end).offered - self.at(span.start).offered) as f64 / received.max(1) as f64
    }

    /// Share of the offered bytes that a full queue dropped.
    pub fn overflow(&self, span: &Range<Duration>) -> f64 {
        let (from, to) = (self.at(span.start), self.at(span.end));
        (to.queue_drops - from.queue_drops) as f64 / (to.offered - from.offered).max(1) as f64
    }

    /// The wait in the queue that `share` of the samples stay below.
    pub fn queue(&self, span: &Range<Duration>, share: f64) -> Duration {
        let index = |time: Duration| {
            ((time.as_nanos() / SAMPLE_EVERY.as_nanos()) as usize).min(self.samples.len() - 1)
        };
        let mut waits: Vec<_> = self.samples[index(span.start)..=index(span.end)]
            .iter()
            .map(|sample| sample.queue)
            .collect();
        waits.sort_unstable();
        waits[((waits.len() - 1) as f64 * share) as usize]
    }

    /// When a flow had received `bytes`; None if it never had.
    pub fn reached(&self, flow: usize, bytes: u64) -> Option<Duration> {
        let index = self
            .samples
            .iter()
            .position(|sample| sample.received[flow] >= bytes)?;
        Some(SAMPLE_EVERY * index as u32)
    }

    /// Time, Mbit/s, window in bytes and queue of a flow, `every` so often: for looking at a run.
    pub fn trace(
        &self,
        flow: usize,
        every: Duration,
    ) -> Vec<(Duration, f64, u64, Duration, Option<Figures>)> {
        let end = SAMPLE_EVERY * (self.samples.len() as u32 - 1);
        let mut rows = Vec::new();
        let mut from = Duration::ZERO;
        while from + every <= end {
            let sample = self.at(from + every);
            rows.push((
                from,
                self.mbit(flow, &(from..from + every)),
                sample.windows[flow],
                sample.queue,
                sample.figures,
            ));
            from += every;
        }
        rows
    }
}
