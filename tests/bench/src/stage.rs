//! The line under test: two network namespaces joined by sim-wan's TUN link, in this process, so that its shape can be
//! changed and its counters read at any instant.
//!
//! ```text
//!   splice-bench-dc  10.88.0.1 ── TUN link ── 10.88.0.2  splice-bench-br
//! ```
//!
//! Invariant: wire bytes are what both senders offered to the link, in IP packet bytes, before any loss.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use sim_wan::Profile;
use sim_wan::model::{Loss, Shape};
use sim_wan::tun::{self, LinkSpec, Namespaces, TunLink};

use crate::process::Program;

/// The datacenter's namespace and address.
pub(crate) const DATACENTER: &str = "splice-bench-dc";
pub(crate) const DATACENTER_ADDRESS: &str = "10.88.0.1";
/// The branch's namespace and address.
pub(crate) const BRANCH: &str = "splice-bench-br";
pub(crate) const BRANCH_ADDRESS: &str = "10.88.0.2";

/// Largest socket buffers that TCP may grow to in both namespaces, in bytes: twice the largest bandwidth-delay product here
/// (100 Mbit/s at 600 ms), so that a peer is not measured by a default that an administrator would raise.
const TCP_BUFFER_BYTES_MAX: u64 = 32 << 20;

/// A line: the same both ways, with a queue of one round trip but at least 5 ms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Line {
    pub(crate) mbit: f64,
    pub(crate) rtt_ms: f64,
    pub(crate) loss_percent: f64,
    /// Mean length of a run of lost packets; 1 = independent losses.
    pub(crate) burst_packets: f64,
}

/// No limit to what is prepared over it.
pub(crate) const PREPARING: Line = Line {
    mbit: 2000.0,
    rtt_ms: 0.2,
    loss_percent: 0.0,
    burst_packets: 1.0,
};
/// The line of `update`, `boot` and `storm`.
pub(crate) const OFFICE: Line = Line {
    mbit: 100.0,
    rtt_ms: 20.0,
    loss_percent: 0.0,
    burst_packets: 1.0,
};

impl Line {
    /// Such as `20m-100ms-0.1pct`, `100m-100ms-1pct-burst8` or `1g-20ms-0pct`.
    pub(crate) fn name(&self) -> String {
        let rate = if self.mbit >= 1000.0 {
            format!("{}g", self.mbit / 1000.0)
        } else {
            format!("{}m", self.mbit)
        };
        let burst = if self.burst_packets > 1.0 {
            format!("-burst{}", self.burst_packets)
        } else {
            String::new()
        };
        format!("{rate}-{}ms-{}pct{burst}", self.rtt_ms, self.loss_percent)
    }

    /// C·(1−p) in bytes a second.
    pub(crate) fn bytes_per_s(&self) -> f64 {
        self.mbit * 1e6 / 8.0 * (1.0 - self.loss_percent / 100.0)
    }

    /// The least time in which `bytes` of one direction can cross it.
    pub(crate) fn seconds_for(&self, bytes: f64) -> f64 {
        bytes / self.bytes_per_s() + self.rtt_ms / 1000.0
    }

    fn profile(&self) -> Profile {
        let p = self.loss_percent / 100.0;
        let loss = match (p > 0.0, self.burst_packets > 1.0) {
            (false, _) => Loss::None,
            (true, false) => Loss::Random { p },
            (true, true) => Loss::Bursts {
                p,
                mean_packets: self.burst_packets,
            },
        };
        let ms = |ms: f64| Duration::from_secs_f64(ms / 1000.0);
        let queue = ms(self.rtt_ms.max(5.0));
        let mut shape = Shape::clean((self.mbit * 1e6) as u64, ms(self.rtt_ms / 2.0), queue);
        shape.loss = loss;
        Profile {
            name: self.name(),
            summary: String::new(),
            down: shape.clone(),
            up: shape,
        }
    }
}

/// See the module. Its link ends before its namespaces do.
pub(crate) struct Stage {
    link: TunLink,
    _namespaces: Namespaces,
}

impl Stage {
    /// Builds it.
    ///
    /// # Errors
    /// No privilege, or another run has the namespaces.
    pub(crate) fn build(line: Line, scratch: &Path) -> Result<Self> {
        tun::check_privileges()?;
        let namespaces = Namespaces::create(&[DATACENTER.to_owned(), BRANCH.to_owned()])
            .context("network namespaces; if no bench runs, remove them with `ip netns del`")?;
        let spec: LinkSpec = format!(
            "name=bench,dc-ns={DATACENTER},branch-ns={BRANCH},dc-addr={DATACENTER_ADDRESS}/30,branch-addr={BRANCH_ADDRESS}/30"
        )
        .parse()?;
        let link = TunLink::start(&spec, &line.profile(), 1)?;
        let stage = Self {
            link,
            _namespaces: namespaces,
        };
        for namespace in [DATACENTER, BRANCH] {
            let script = format!(
                "cd /proc/sys/net/ipv4; echo 4096 131072 {TCP_BUFFER_BYTES_MAX} >tcp_rmem; \
                 echo 4096 65536 {TCP_BUFFER_BYTES_MAX} >tcp_wmem; echo 1 >tcp_no_metrics_save"
            );
            Program::new("sh")
                .args(["-c", &script])
                .inside(namespace)
                .run(scratch, Duration::from_secs(10))
                .context("TCP's buffers")?;
        }
        Ok(stage)
    }

    /// Changes the line while it runs.
    pub(crate) fn set(&self, line: Line) {
        self.link.controlled().set_profile(&line.profile());
    }

    pub(crate) fn cut(&self) {
        self.link.controlled().cut();
    }

    pub(crate) fn restore(&self) {
        self.link.controlled().restore();
    }

    /// Bytes offered so far, both ways.
    pub(crate) fn wire_bytes(&self) -> u64 {
        self.link.stats().wire_bytes()
    }

    /// Measures something of the line.
    ///
    /// # Errors
    /// The work's own; or [`Overrun`], of which no figure may be taken.
    pub(crate) fn counted<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = self.link.ring_drops().unwrap_or(0);
        let done = work()?;
        match self.link.ring_drops().unwrap_or(0).saturating_sub(before) {
            0 => Ok(done),
            packets => Err(Overrun(packets).into()),
        }
    }
}

/// So many packets overran the devices' rings and are in no counter: that measure is to be repeated.
#[derive(Debug)]
pub(crate) struct Overrun(pub(crate) u64);

impl std::fmt::Display for Overrun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} packets overran the emulator: the machine is too busy for this line",
            self.0
        )
    }
}

impl std::error::Error for Overrun {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines_are_named_as_the_contract_says() {
        let line = |mbit, rtt_ms, loss_percent, burst_packets| Line {
            mbit,
            rtt_ms,
            loss_percent,
            burst_packets,
        };
        assert_eq!(line(20.0, 100.0, 0.1, 1.0).name(), "20m-100ms-0.1pct");
        assert_eq!(line(100.0, 300.0, 5.0, 1.0).name(), "100m-300ms-5pct");
        assert_eq!(
            line(100.0, 100.0, 1.0, 8.0).name(),
            "100m-100ms-1pct-burst8"
        );
        assert_eq!(line(1000.0, 20.0, 0.0, 1.0).name(), "1g-20ms-0pct");
    }

    #[test]
    fn the_limit_of_a_line_is_its_rate_less_its_losses() {
        let line = Line {
            mbit: 100.0,
            rtt_ms: 100.0,
            loss_percent: 1.0,
            burst_packets: 1.0,
        };
        assert!((line.bytes_per_s() - 12_375_000.0).abs() < 1.0);
        assert!((line.seconds_for(12_375_000.0) - 1.1).abs() < 1e-9);
    }
}
