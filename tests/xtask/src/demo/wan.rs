//! The emulated line: its counters sampled all the while, cut and restored, and what a step cost on it.
//!
//! Invariant: wire bytes are what both senders put on a link (offered bytes), before any loss, over all links.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;
use sim_wan::Profile;
use sim_wan::control::Client;
use sim_wan::model::DirectionStats;

use crate::report::{LinkSample, LinkTrace};

/// Time between two samples of the counters.
const SAMPLE_EVERY: Duration = Duration::from_millis(250);

/// Counters of all links together, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wire {
    /// Datacenter → branches.
    pub(crate) down: u64,
    /// Branches → datacenter.
    pub(crate) up: u64,
    /// Of `down`, what no line carried: its queue was full, or it was cut.
    pub(crate) refused_down: u64,
    /// The same of `up`.
    pub(crate) refused_up: u64,
}

impl Wire {
    /// Both directions.
    pub(crate) fn total(self) -> u64 {
        self.down + self.up
    }

    /// What was added since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            down: self.down - earlier.down,
            up: self.up - earlier.up,
            refused_down: self.refused_down - earlier.refused_down,
            refused_up: self.refused_up - earlier.refused_up,
        }
    }

    /// What no line carried.
    pub(crate) fn refused(self) -> u64 {
        self.refused_down + self.refused_up
    }

    /// The physical limit: one link of this profile cannot carry what it did carry in less time.
    pub(crate) fn limit_seconds(self, profile: &Profile) -> f64 {
        let seconds =
            |bytes: u64, bits_per_second: u64| bytes as f64 * 8.0 / bits_per_second as f64;
        seconds(self.down - self.refused_down, profile.down.rate_bps)
            .max(seconds(self.up - self.refused_up, profile.up.rate_bps))
            + profile.rtt().as_secs_f64()
    }
}

/// The running links.
pub(crate) struct Wan {
    client: Client,
    stop: Arc<AtomicBool>,
    traces: Arc<Mutex<Vec<LinkTrace>>>,
    sampler: Option<JoinHandle<()>>,
}

impl Wan {
    /// Takes the emulator at `socket` over; samples count time from `epoch`.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) fn attach(socket: &Path, epoch: Instant) -> anyhow::Result<Self> {
        let client = Client::connect(socket)?;
        let stop = Arc::new(AtomicBool::new(false));
        let traces = Arc::new(Mutex::new(Vec::new()));
        let sampler = {
            let (socket, stop, traces) = (socket.to_owned(), stop.clone(), traces.clone());
            thread::Builder::new()
                .name("wan-sampler".into())
                .spawn(move || sample(&socket, epoch, &stop, &traces))
                .context("starting the sampler")?
        };
        Ok(Self {
            client,
            stop,
            traces,
            sampler: Some(sampler),
        })
    }

    /// All links' counters now.
    ///
    /// # Errors
    /// The emulator does not answer.
    pub(crate) fn wire(&mut self) -> anyhow::Result<Wire> {
        let mut wire = Wire::default();
        for link in self.client.list().context("reading the link's counters")? {
            wire.down += link.down.offered_bytes;
            wire.up += link.up.offered_bytes;
            wire.refused_down += refused(&link.down);
            wire.refused_up += refused(&link.up);
        }
        Ok(wire)
    }

    /// Cuts a link.
    ///
    /// # Errors
    /// The emulator does not answer.
    pub(crate) fn cut(&mut self, link: &str) -> anyhow::Result<()> {
        self.client
            .cut(Some(link))
            .with_context(|| format!("cutting {link}"))
    }

    /// Mends a link.
    ///
    /// # Errors
    /// The emulator does not answer.
    pub(crate) fn restore(&mut self, link: &str) -> anyhow::Result<()> {
        self.client
            .restore(Some(link))
            .with_context(|| format!("restoring {link}"))
    }

    /// What was sampled so far, one trace for each link.
    pub(crate) fn traces(&self) -> Vec<LinkTrace> {
        self.traces
            .lock()
            .expect("the sampler does not panic")
            .clone()
    }
}

impl Drop for Wan {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(sampler) = self.sampler.take() {
            let _ = sampler.join();
        }
    }
}

/// Bytes that never got onto the line. What is lost after the rate limiter used the line all the same.
fn refused(way: &DirectionStats) -> u64 {
    way.dropped_queue.bytes + way.dropped_outage.bytes
}

/// Reads all counters at a steady beat. Ends when told to, or with the emulator.
fn sample(socket: &Path, epoch: Instant, stop: &AtomicBool, traces: &Mutex<Vec<LinkTrace>>) {
    let Ok(mut client) = Client::connect(socket) else {
        return;
    };
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let Ok(links) = client.list() else { return };
        let seconds = epoch.elapsed().as_secs_f64();
        {
            let mut traces = traces
                .lock()
                .expect("nothing panics while it holds the traces");
            for link in links {
                let sample = LinkSample {
                    seconds,
                    down_bytes: link.down.offered_bytes,
                    up_bytes: link.up.offered_bytes,
                };
                match traces.iter_mut().find(|trace| trace.link == link.name) {
                    Some(trace) => trace.samples.push(sample),
                    None => traces.push(LinkTrace {
                        link: link.name,
                        samples: vec![sample],
                    }),
                }
            }
        }
        next += SAMPLE_EVERY;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_limit_is_the_slower_direction_and_a_round_trip() {
        // 50 Mbit/s down, 10 up, 30 ms.
        let dsl = Profile::named("dsl").unwrap();
        let second_down = Wire {
            down: 50_000_000 / 8,
            up: 1000,
            ..Wire::default()
        };
        assert!((second_down.limit_seconds(&dsl) - 1.03).abs() < 1e-9);
        let second_up = Wire {
            down: 1000,
            up: 10_000_000 / 8,
            ..Wire::default()
        };
        assert!((second_up.limit_seconds(&dsl) - 1.03).abs() < 1e-9);
        // What a full queue refused was sent, but took none of the line's time.
        let crowded = Wire {
            down: 3 * 50_000_000 / 8,
            refused_down: 2 * 50_000_000 / 8,
            ..Wire::default()
        };
        assert!((crowded.limit_seconds(&dsl) - 1.03).abs() < 1e-9);
    }

    #[test]
    fn a_step_costs_what_was_added_in_both_directions() {
        let earlier = Wire {
            down: 4,
            up: 2,
            refused_down: 1,
            refused_up: 0,
        };
        let cost = Wire {
            down: 10,
            up: 7,
            refused_down: 3,
            refused_up: 1,
        }
        .since(earlier);
        assert_eq!(
            cost,
            Wire {
                down: 6,
                up: 5,
                refused_down: 2,
                refused_up: 1
            }
        );
        assert_eq!((cost.total(), cost.refused()), (11, 3));
    }
}
