//! The configuration's section `[store]`: how the chunk store is looked after.

use std::collections::BTreeMap;
use std::time::Duration;

use datacenter_api::policy::{DayPart, parse_utc_offset};
use datacenter_api::units::{parse_duration, parse_size};
use dedup_protocol::policy::Hours;
use serde::Deserialize;

const DAY_S: u64 = 86_400;
/// A grace is told in hours that fit 15 bits.
const GRACE_MAX: Duration = Duration::from_secs(32_767 * 3600);

/// How the chunk store is looked after.
#[derive(Debug, Clone, PartialEq)]
pub struct StoreConfig {
    /// How long a deleted version can be had back.
    pub undelete_grace: Duration,
    /// How often garbage is collected; `None`: only when it is asked for.
    pub collect_every: Option<Duration>,
    /// How long a condemned record stays readable.
    pub collect_grace: Duration,
    /// What a collection reads and writes in packs, in bytes a second; `None` for no limit.
    pub collect_bytes_per_s: Option<u64>,
    /// Packs of which less than this is wanted are rewritten, in percent.
    pub compact_below_percent: u8,
    /// What the scrub reads, in bytes a second; `None`: only when it is asked for.
    pub scrub_bytes_per_s: Option<u64>,
    /// When the scrub works; `None` for always.
    pub scrub_hours: Option<Hours>,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            undelete_grace: Duration::from_secs(7 * DAY_S),
            collect_every: Some(Duration::from_secs(DAY_S)),
            collect_grace: Duration::from_secs(DAY_S),
            collect_bytes_per_s: Some(64 << 20),
            compact_below_percent: 60,
            // 15 TiB in three weeks.
            scrub_bytes_per_s: Some(8 << 20),
            scrub_hours: None,
        }
    }
}

/// As it stands in the file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct StoreSection {
    undelete_grace: Option<String>,
    collect_every: Option<String>,
    collect_grace: Option<String>,
    collect_rate: Option<String>,
    compact_below: Option<u8>,
    scrub_rate: Option<String>,
    scrub_hours: Option<String>,
    utc_offset: Option<String>,
    #[serde(flatten)]
    pub(super) unknown: BTreeMap<String, toml::Value>,
}

impl StoreSection {
    /// Checks it; the error names the key.
    pub(super) fn check(self) -> Result<StoreConfig, (&'static str, String)> {
        let defaults = StoreConfig::default();
        let duration = |key, text: Option<String>, default: Duration, max: Duration| {
            let Some(text) = text else { return Ok(default) };
            let value = parse_duration(&text).map_err(|e| (key, e.to_string()))?;
            if value > max {
                return Err((
                    key,
                    format!("{text:?} is above {} days", max.as_secs() / DAY_S),
                ));
            }
            Ok(value)
        };
        let rate = |key, text: Option<String>, default: Option<u64>| match text.as_deref() {
            None => Ok(default),
            Some("none") => Ok(None),
            Some(text) => match parse_size(text) {
                Ok(0) => Err((key, "write none for no rate".to_owned())),
                Ok(rate) => Ok(Some(rate)),
                Err(e) => Err((key, e.to_string())),
            },
        };
        let years = Duration::from_secs(10 * 365 * DAY_S);
        let never = self.collect_every.as_deref() == Some("never");
        let asked = self.collect_every.filter(|_| !never);
        let every = duration(
            "store.collect_every",
            asked,
            Duration::from_secs(DAY_S),
            years,
        )?;
        let collect_every = (!never && !every.is_zero()).then_some(every);
        let offset = self.utc_offset.as_deref().map_or(Ok(0), parse_utc_offset);
        let utc_offset_min = offset.map_err(|e| ("store.utc_offset", e.to_string()))?;
        let scrub_hours = match self.scrub_hours.as_deref() {
            None | Some("always") => None,
            Some(text) => {
                let part: DayPart =
                    text.parse()
                        .map_err(|e: datacenter_api::policy::PolicyError| {
                            ("store.scrub_hours", e.to_string())
                        })?;
                Some(Hours {
                    from_min: part.from_min,
                    until_min: part.until_min,
                    utc_offset_min,
                })
            }
        };
        let compact_below_percent = self.compact_below.unwrap_or(defaults.compact_below_percent);
        if compact_below_percent > 100 {
            return Err((
                "store.compact_below",
                format!("{compact_below_percent} percent is above 100"),
            ));
        }
        Ok(StoreConfig {
            undelete_grace: duration(
                "store.undelete_grace",
                self.undelete_grace,
                defaults.undelete_grace,
                years,
            )?,
            collect_every,
            collect_grace: duration(
                "store.collect_grace",
                self.collect_grace,
                defaults.collect_grace,
                GRACE_MAX,
            )?,
            collect_bytes_per_s: rate(
                "store.collect_rate",
                self.collect_rate,
                defaults.collect_bytes_per_s,
            )?,
            compact_below_percent,
            scrub_bytes_per_s: rate(
                "store.scrub_rate",
                self.scrub_rate,
                defaults.scrub_bytes_per_s,
            )?,
            scrub_hours,
        })
    }
}
