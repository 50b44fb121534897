//! Named link profiles: the built-in ones (`profiles.toml`) and a user's own file of the same form.
//!
//! Every key is checked against a range, and an unknown key is an error, not a warning: a misspelt `loss_percent`
//! would make a measurement wrong without anybody noticing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::{Table, Value};

use crate::model::{Loss, Outage, Reorder, Shape};

const BUILT_IN: &str = include_str!("../profiles.toml");

/// One link profile: both directions.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Its name in the file.
    pub name: String,
    /// One line for people.
    pub summary: String,
    /// Datacenter → branch.
    pub down: Shape,
    /// Branch → datacenter.
    pub up: Shape,
}

impl Profile {
    /// A built-in profile by name.
    ///
    /// # Errors
    /// [`ProfileError::Unknown`] names the ones there are.
    pub fn named(name: &str) -> Result<Self, ProfileError> {
        Profiles::built_in().find(name).cloned()
    }

    /// Round trip without queueing, serialisation or jitter.
    pub fn rtt(&self) -> Duration {
        self.down.delay + self.up.delay
    }

    /// The same profile without losses and outages, for a test that wants only rate and delay.
    #[must_use]
    pub fn lossless(mut self) -> Self {
        for shape in [&mut self.down, &mut self.up] {
            shape.loss = Loss::None;
            shape.outage = None;
        }
        self
    }
}

/// Why profiles could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// No profile of that name.
    #[error("unknown profile {name:?}; known profiles: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// Comma-separated names.
        known: String,
    },
    /// The file could not be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The text is not TOML.
    #[error("profiles file is not valid TOML: {0}")]
    Syntax(#[from] toml::de::Error),
    /// A value is missing, of the wrong type or out of range.
    #[error("profile {profile:?}, key {key:?}: {problem}")]
    Key {
        /// The profile's name.
        profile: String,
        /// The key's name.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A top-level entry that is not a table.
    #[error("profile {0:?} must be a table, such as [{0}]")]
    NotATable(String),
}

/// A set of profiles in alphabetical order of their names.
#[derive(Debug, Clone)]
pub struct Profiles {
    all: Vec<Profile>,
}

impl Profiles {
    /// The profiles that come with the emulator.
    pub fn built_in() -> Self {
        Self::parse(BUILT_IN).expect("the embedded file is parsed by a unit test")
    }

    /// Reads a user's file, which replaces the built-in set.
    ///
    /// # Errors
    /// The file cannot be read, or as [`Profiles::parse`].
    pub fn load(path: &Path) -> Result<Self, ProfileError> {
        let text = std::fs::read_to_string(path).map_err(|source| ProfileError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text)
    }

    /// Parses the TOML form described in `profiles.toml`.
    ///
    /// # Errors
    /// Names the profile and the key at fault.
    pub fn parse(text: &str) -> Result<Self, ProfileError> {
        let file: Table = text.parse()?;
        let all = file
            .into_iter()
            .map(|(name, value)| match value {
                Value::Table(table) => Keys {
                    profile: name,
                    table,
                }
                .into_profile(),
                _ => Err(ProfileError::NotATable(name)),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { all })
    }

    /// The profile of that name.
    ///
    /// # Errors
    /// [`ProfileError::Unknown`].
    pub fn find(&self, name: &str) -> Result<&Profile, ProfileError> {
        self.all
            .iter()
            .find(|profile| profile.name == name)
            .ok_or_else(|| ProfileError::Unknown {
                name: name.to_owned(),
                known: self
                    .all
                    .iter()
                    .map(|p| p.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Profile> {
        self.all.iter()
    }
}

/// The keys of one profile; each is taken out as it is understood, so that what is left over is unknown.
struct Keys {
    profile: String,
    table: Table,
}

impl Keys {
    fn into_profile(mut self) -> Result<Profile, ProfileError> {
        let summary = match self.table.remove("summary") {
            None => String::new(),
            Some(Value::String(text)) => text,
            Some(_) => return Err(self.error("summary", "must be a string")),
        };
        // 10 Gbit/s is more than a user-space link can carry; 1 kbit/s is below any modem.
        let down_mbit = self.required("down_mbit", 0.001, 10_000.0)?;
        let up_mbit = self.required("up_mbit", 0.001, 10_000.0)?;
        let rtt_ms = self.required("rtt_ms", 0.0, 60_000.0)?;
        let queue_ms = self.required("queue_ms", 0.1, 60_000.0)?;
        let jitter_ms = self.number("jitter_ms", 0.0, 60_000.0)?.unwrap_or(0.0);
        if jitter_ms > rtt_ms {
            return Err(self.error(
                "jitter_ms",
                format!("is {jitter_ms}, more than rtt_ms = {rtt_ms}"),
            ));
        }
        let duplicate = self.number("duplicate_percent", 0.0, 100.0)?.unwrap_or(0.0) / 100.0;
        let loss = self.loss()?;
        let reorder = self.reorder()?;
        let outage = self.outage()?;
        if let Some(key) = self.table.keys().next().cloned() {
            return Err(self.error(
                &key,
                "is not a known key; see the head of profiles.toml for all keys",
            ));
        }
        let shape = |mbit: f64| Shape {
            rate_bps: (mbit * 1e6).round() as u64,
            delay: millis(rtt_ms / 2.0),
            jitter: millis(jitter_ms / 2.0),
            loss,
            reorder,
            duplicate,
            queue: millis(queue_ms),
            outage,
        };
        Ok(Profile {
            down: shape(down_mbit),
            up: shape(up_mbit),
            name: self.profile,
            summary,
        })
    }

    fn loss(&mut self) -> Result<Loss, ProfileError> {
        let p = self.number("loss_percent", 0.0, 100.0)?.unwrap_or(0.0) / 100.0;
        let mean_packets = self
            .number("loss_burst_packets", 1.0, 10_000.0)?
            .unwrap_or(1.0);
        if mean_packets > 1.0 && p > 0.5 {
            return Err(self.error("loss_percent", "must be at most 50 with loss_burst_packets"));
        }
        if mean_packets > 1.0 && p == 0.0 {
            return Err(self.error("loss_burst_packets", "needs loss_percent above 0"));
        }
        Ok(match (p > 0.0, mean_packets > 1.0) {
            (false, _) => Loss::None,
            (true, false) => Loss::Random { p },
            (true, true) => Loss::Bursts { p, mean_packets },
        })
    }

    fn reorder(&mut self) -> Result<Option<Reorder>, ProfileError> {
        let p = self.number("reorder_percent", 0.0, 100.0)?;
        let delay_ms = self.number("reorder_delay_ms", 0.001, 60_000.0)?;
        match (p, delay_ms) {
            (None, None) => Ok(None),
            (Some(p), Some(ms)) => Ok(Some(Reorder {
                p: p / 100.0,
                delay: millis(ms),
            })),
            (None, Some(_)) => {
                Err(self.error("reorder_percent", "is missing: reorder_delay_ms needs it"))
            }
            (Some(_), None) => {
                Err(self.error("reorder_delay_ms", "is missing: reorder_percent needs it"))
            }
        }
    }

    fn outage(&mut self) -> Result<Option<Outage>, ProfileError> {
        let every = self.number("outage_every_s", 0.001, 1e6)?;
        let length = self.number("outage_for_s", 0.001, 1e6)?;
        match (every, length) {
            (None, None) => Ok(None),
            (Some(every), Some(length)) if length < every => Ok(Some(Outage {
                period: millis(every * 1e3),
                length: millis(length * 1e3),
            })),
            (Some(every), Some(length)) => Err(self.error(
                "outage_for_s",
                format!("is {length}, must be less than outage_every_s = {every}"),
            )),
            (None, Some(_)) => {
                Err(self.error("outage_every_s", "is missing: outage_for_s needs it"))
            }
            (Some(_), None) => {
                Err(self.error("outage_for_s", "is missing: outage_every_s needs it"))
            }
        }
    }

    fn required(&mut self, key: &str, min: f64, max: f64) -> Result<f64, ProfileError> {
        self.number(key, min, max)?
            .ok_or_else(|| self.error(key, "is missing"))
    }

    fn number(&mut self, key: &str, min: f64, max: f64) -> Result<Option<f64>, ProfileError> {
        let number = match self.table.remove(key) {
            None => return Ok(None),
            Some(Value::Integer(n)) => n as f64,
            Some(Value::Float(n)) => n,
            Some(other) => {
                return Err(self.error(key, format!("must be a number, is a {}", other.type_str())));
            }
        };
        if (min..=max).contains(&number) {
            Ok(Some(number))
        } else {
            Err(self.error(key, format!("is {number}, must be {min} to {max}")))
        }
    }

    fn error(&self, key: &str, problem: impl Into<String>) -> ProfileError {
        ProfileError::Key {
            profile: self.profile.clone(),
            key: key.to_owned(),
            problem: problem.into(),
        }
    }
}

fn millis(ms: f64) -> Duration {
    Duration::from_nanos((ms * 1e6).round() as u64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_built_in_profiles_have_the_documented_figures() {
        let profiles = Profiles::built_in();
        let names: Vec<_> = profiles.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "bad-day",
                "dsl",
                "intercontinental",
                "lan",
                "lte",
                "t1",
                "vsat-geo"
            ]
        );
        let bad = profiles.find("bad-day").unwrap();
        assert_eq!(
            (bad.down.rate_bps, bad.up.rate_bps),
            (10_000_000, 2_000_000)
        );
        assert_eq!((bad.rtt(), bad.down.jitter), (millis(250.0), millis(40.0)));
        assert_eq!(bad.down.outage.unwrap().length, Duration::from_secs(10));
        assert_eq!(profiles.find("t1").unwrap().up.rate_bps, 1_500_000);
        assert_eq!(
            profiles.find("lan").unwrap().down.delay,
            Duration::from_micros(250)
        );
    }

    #[test]
    fn errors_name_the_profile_and_the_key() {
        let base = "[x]\ndown_mbit = 1\nup_mbit = 1\nrtt_ms = 10\nqueue_ms = 10\n";
        let cases = [
            ("rtt_ms", base.replace("rtt_ms = 10", ""), "is missing"),
            (
                "up_mbit",
                base.replace("up_mbit = 1", "up_mbit = 0"),
                "must be 0.001 to 10000",
            ),
            (
                "up_mbit",
                base.replace("up_mbit = 1", "up_mbit = \"fast\""),
                "must be a number, is a string",
            ),
            (
                "los_percent",
                format!("{base}los_percent = 1"),
                "not a known key",
            ),
            (
                "jitter_ms",
                format!("{base}jitter_ms = 11"),
                "more than rtt_ms",
            ),
            (
                "outage_for_s",
                format!("{base}outage_every_s = 5"),
                "is missing",
            ),
            (
                "outage_for_s",
                format!("{base}outage_every_s = 5\noutage_for_s = 5"),
                "less than outage_every_s",
            ),
            (
                "loss_burst_packets",
                format!("{base}loss_burst_packets = 5"),
                "needs loss_percent",
            ),
            (
                "queue_ms",
                base.replace("queue_ms = 10", "queue_ms = nan"),
                "must be",
            ),
        ];
        for (key, text, problem) in cases {
            let message = Profiles::parse(&text).unwrap_err().to_string();
            assert!(
                message.starts_with(&format!("profile \"x\", key \"{key}\": ")),
                "{message}"
            );
            assert!(message.contains(problem), "{message}");
        }
        assert!(
            Profiles::parse("x = 1")
                .unwrap_err()
                .to_string()
                .contains("must be a table")
        );
        let unknown = Profile::named("dls").unwrap_err().to_string();
        assert!(
            unknown.contains("bad-day, dsl, intercontinental"),
            "{unknown}"
        );
    }
}
