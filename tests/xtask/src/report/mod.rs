//! What a run of the demo found: facts first, then the same facts as JSON, as a table and as a page.
//!
//! Nothing here measures or judges; a step says itself whether it is ok.

mod html;
mod plot;
mod table;

use std::path::Path;

use anyhow::Context;
use serde::Serialize;

pub(crate) use table::mb;

/// A disk in figures.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct ImageFacts {
    /// Size that a guest sees.
    pub(crate) virtual_bytes: u64,
    /// Bytes of its 4 KiB blocks that are not all zeros.
    pub(crate) data_bytes: u64,
    /// Those as one zstd stream at level 3.
    pub(crate) compressed_bytes: u64,
}

/// One step of the story.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) ok: bool,
    /// How long it took.
    pub(crate) seconds: f64,
    /// Bytes that both senders put on the emulated links meanwhile, both directions.
    pub(crate) wire_bytes: u64,
    /// The least time in which the link can carry what it carried of them: bytes over rate, and a round trip.
    pub(crate) limit_seconds: f64,
    /// Chunks that a guest waited for.
    pub(crate) demand_chunks: u64,
    /// Chunks fetched ahead.
    pub(crate) prefetch_chunks: u64,
    /// Whether a login prompt appeared; false for a step that boots nothing.
    pub(crate) login_seen: bool,
    /// When it began, since the lines were up.
    pub(crate) begun_seconds: f64,
    /// Datacenter → branches, of `wire_bytes`.
    pub(crate) down_bytes: u64,
    /// Branches → datacenter, of `wire_bytes`.
    pub(crate) up_bytes: u64,
    /// Of `wire_bytes`, what no line carried, because its queue was full or it was cut: senders sent it again.
    pub(crate) refused_bytes: u64,
    /// What there is to say about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) note: String,
}

/// A boot, from the order to the login prompt.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Boot {
    pub(crate) step: String,
    /// When the machine ran: kernel and initrd were there.
    pub(crate) machine_seconds: f64,
    /// When the console showed its first bytes.
    pub(crate) output_seconds: f64,
    /// When the login prompt was there.
    pub(crate) login_seconds: f64,
}

/// rsync on the same update over the same line.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Comparison {
    pub(crate) seconds: f64,
    pub(crate) wire_bytes: u64,
    /// Our wire bytes over rsync's.
    pub(crate) ratio: f64,
    /// What the ratio is to be at most.
    pub(crate) target: f64,
    pub(crate) ok: bool,
}

/// Counters of a link at one instant, since it was made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinkSample {
    pub(crate) seconds: f64,
    pub(crate) down_bytes: u64,
    pub(crate) up_bytes: u64,
}

/// A link's samples in order.
#[derive(Debug, Clone)]
pub(crate) struct LinkTrace {
    pub(crate) link: String,
    pub(crate) samples: Vec<LinkSample>,
}

/// Rates of a link, for the page's scales.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct LinkRates {
    pub(crate) down_bits_per_second: u64,
    pub(crate) up_bits_per_second: u64,
    pub(crate) rtt_seconds: f64,
    pub(crate) summary: String,
}

/// A whole run.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) profile: String,
    pub(crate) link: LinkRates,
    /// What desktops ran on: `splice`, `qemu-kvm` or `qemu-tcg`.
    pub(crate) machine: String,
    /// Why, in the branch's words.
    pub(crate) machine_reason: String,
    pub(crate) image: ImageFacts,
    pub(crate) steps: Vec<Step>,
    /// What had to be done between the steps; not part of the story.
    pub(crate) extra_steps: Vec<Step>,
    /// Names of steps that this run did not have.
    pub(crate) skipped: Vec<String>,
    pub(crate) rsync: Option<Comparison>,
    pub(crate) boots: Vec<Boot>,
    /// What ended the run early.
    pub(crate) error: Option<String>,
    #[serde(skip)]
    pub(crate) traces: Vec<LinkTrace>,
}

impl Report {
    /// Whether every step is ok and nothing ended the run early.
    pub(crate) fn is_ok(&self) -> bool {
        self.error.is_none()
            && self
                .steps
                .iter()
                .chain(&self.extra_steps)
                .all(|step| step.ok)
            && self.rsync.as_ref().is_none_or(|rsync| rsync.ok)
    }

    /// Writes the facts as JSON.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write_json(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self).expect("plain data serialises");
        std::fs::write(path, text + "\n").with_context(|| path.display().to_string())
    }

    /// Writes the page.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write_html(&self, path: &Path) -> anyhow::Result<()> {
        std::fs::write(path, html::page(self)).with_context(|| path.display().to_string())
    }

    /// The table for a terminal.
    pub(crate) fn table(&self) -> String {
        table::render(self)
    }
}

#[cfg(test)]
pub(crate) mod sample {
    use super::*;

    /// A run as it might be.
    pub(crate) fn report() -> Report {
        let step = |name: &str, begun: f64, seconds: f64, down: u64, up: u64| Step {
            name: name.into(),
            ok: true,
            seconds,
            begun_seconds: begun,
            wire_bytes: down + up,
            down_bytes: down,
            up_bytes: up,
            limit_seconds: down as f64 * 8.0 / 50e6,
            login_seen: name.contains("boot"),
            ..Step::default()
        };
        let samples = (0..400u32).map(|n| LinkSample {
            seconds: f64::from(n) / 4.0,
            down_bytes: u64::from(n) * 1_000_000,
            up_bytes: u64::from(n) * 20_000,
        });
        let traces = vec![LinkTrace {
            link: "branch-a".into(),
            samples: samples.collect(),
        }];
        Report {
            profile: "dsl".into(),
            link: LinkRates {
                down_bits_per_second: 50_000_000,
                up_bits_per_second: 10_000_000,
                rtt_seconds: 0.03,
                summary: "business DSL".into(),
            },
            machine: "qemu-tcg".into(),
            machine_reason: "not splice-vmm: there is no usable KVM here".into(),
            image: ImageFacts {
                virtual_bytes: 2 << 30,
                data_bytes: 455_000_000,
                compressed_bytes: 139_000_000,
            },
            steps: vec![
                step("publish-v1", 1.0, 5.0, 3000, 2000),
                step("boot-v1", 7.0, 27.5, 31_000_000, 400_000),
                step("prestage-v2", 50.0, 12.0, 55_000_000, 600_000),
            ],
            rsync: Some(Comparison {
                seconds: 40.0,
                wire_bytes: 90_000_000,
                ratio: 0.62,
                target: 1.1,
                ok: true,
            }),
            boots: vec![Boot {
                step: "boot-v1".into(),
                machine_seconds: 4.0,
                output_seconds: 5.0,
                login_seconds: 27.5,
            }],
            traces,
            ..Report::default()
        }
    }

    #[test]
    fn the_json_has_the_promised_keys() {
        let json: serde_json::Value =
            serde_json::to_value(report()).expect("plain data serialises");
        for key in ["profile", "machine", "machine_reason", "image", "steps"] {
            assert!(json.get(key).is_some(), "{key}");
        }
        for key in ["virtual_bytes", "data_bytes", "compressed_bytes"] {
            assert!(json["image"][key].is_u64(), "{key}");
        }
        for key in [
            "name",
            "ok",
            "seconds",
            "wire_bytes",
            "limit_seconds",
            "demand_chunks",
            "prefetch_chunks",
            "login_seen",
        ] {
            assert!(!json["steps"][0][key].is_null(), "{key}");
        }
    }

    #[test]
    fn one_thing_amiss_is_enough() {
        assert!(report().is_ok());
        let mut late = report();
        late.steps[1].ok = false;
        let mut ended = report();
        ended.error = Some("interrupted".into());
        let mut costly = report();
        costly.rsync.as_mut().expect("the sample has one").ok = false;
        assert!(!late.is_ok() && !ended.is_ok() && !costly.is_ok());
    }
}
