//! The audit log: who did what, from where, and what came of it; each entry chained to the one before it.
//!
//! An entry's text is what was written, byte by byte, and its hash is over that: [`chain`]. So a log that was exported is verified by anybody,
//! with [`Verifier`], and without the datacenter. Invariant: a text is never written anew; what an older program wrote is verified as it is.

use serde::{Deserialize, Serialize};

/// What an entry says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct AuditFacts {
    /// When, unix seconds.
    pub unix_s: u64,
    /// What: `call`, `log_in`, `log_out`, `setup`; of volumes `lease_broken`, `old_copy`, `fork_discarded`, `fork_restored`,
    /// `generation_settled`, `snapshot_deleted`, `volume_deleted`, `home_changed`, `rolled_back`, `checked_out`, `checked_in`, `wipe_ordered`, `wiped`, `moved` or
    /// `move_cancelled`; of rollouts `rollout_paused`, `rollout_turned_back`, `rollout_rolled_back` or `rollout_done`.
    pub event: String,
    /// Who: an account, a token, `root` (the local root credential), or `datacenter`, which saw it.
    pub who: String,
    /// The address that it came from.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub from: String,
    /// The call, as method and path.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub call: String,
    /// What came of it: `begun` before anything is done; then `done`, or `refused` or `failed` and why.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub result: String,
    /// The entry that this one ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends: Option<u64>,
    /// Of which volume.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub volume: String,
    /// The desktop's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub desktop: String,
    /// Of which generation; 0 if it is of none.
    #[serde(skip_serializing_if = "is_zero")]
    pub generation: u64,
    /// At which branch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// In which pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Why, in the words of who did it; what the datacenter saw, if nobody did.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditEntry {
    /// Counts up, without gaps.
    pub id: u64,
    /// Its hash, as 64 hexadecimal digits; none before the log was chained.
    pub hash: Option<String>,
    /// What it says.
    #[serde(flatten)]
    pub facts: AuditFacts,
}

/// A page of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditList {
    /// Newest first. A page may have fewer than were asked for: what the caller may not see is left out.
    pub entries: Vec<AuditEntry>,
    /// Pass as `before` to have the next page.
    pub next: Option<u64>,
}

/// How the log stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditState {
    /// Entries that are chained, all of which were read and fit.
    pub entries: u64,
    /// Entries from before the log was chained.
    pub unchained: u64,
    /// The newest entry's number; 0: there is none.
    pub last: u64,
    /// Its hash. Whoever keeps number and hash elsewhere can prove later that nothing before it was changed.
    pub hash: String,
}

/// An entry as it is exported: its number, its hash (or `-`) and its text, on one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditLine {
    /// Its number.
    pub id: u64,
    /// Its hash; `None` before the log was chained.
    pub hash: Option<[u8; 32]>,
    /// JSON of [`AuditFacts`], as it was written.
    pub text: String,
}

impl std::fmt::Display for AuditLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.hash {
            Some(hash) => write!(f, "{} {} {}", self.id, hex(hash), self.text),
            None => write!(f, "{} - {}", self.id, self.text),
        }
    }
}

impl std::str::FromStr for AuditLine {
    type Err = AuditError;

    fn from_str(line: &str) -> Result<Self, AuditError> {
        let bad = || AuditError::Line(line.chars().take(80).collect());
        let mut parts = line.splitn(3, ' ');
        let mut part = || parts.next().ok_or_else(bad);
        let id = part()?.parse().map_err(|_| bad())?;
        let hash = match part()? {
            "-" => None,
            text => Some(unhex(text).ok_or_else(bad)?),
        };
        let text = part()?.to_owned();
        Ok(Self { id, hash, text })
    }
}

/// Hashes an entry: BLAKE3 of the hash before it (zeros for the first), its number (8 bytes, little-endian) and its text.
pub fn chain(before: &[u8; 32], id: u64, text: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(before);
    hasher.update(&id.to_le_bytes());
    hasher.update(text.as_bytes());
    *hasher.finalize().as_bytes()
}

/// What is wrong with a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// It is no line of an export.
    #[error("{0:?} is not a line of an exported audit log")]
    Line(String),
    /// An entry is missing, or stands elsewhere.
    #[error("entry {found} follows entry {before}: entries were removed or moved")]
    Gap {
        /// The entry before.
        before: u64,
        /// The entry found.
        found: u64,
    },
    /// Its hash is not that of its text behind the entry before.
    #[error("entry {0} is not what was written, or an entry before it was changed")]
    Changed(u64),
    /// It lost its hash.
    #[error("entry {0} has no hash, though one before it has")]
    Unchained(u64),
    /// What somebody kept is not there.
    #[error("entry {0} does not have the hash that was kept of it: the log was written anew")]
    Other(u64),
    /// The log ends before what somebody kept.
    #[error("the log ends at entry {last}, before entry {kept} that was kept: it was cut off")]
    Short {
        /// Its end.
        last: u64,
        /// What was kept.
        kept: u64,
    },
}

/// Verifies a log, entry by entry from its oldest.
#[derive(Debug, Default)]
pub struct Verifier {
    state: AuditState,
    before: Option<[u8; 32]>,
    kept: Option<(u64, [u8; 32])>,
    seen: bool,
}

impl Verifier {
    /// For a whole log, or one whose oldest entries are elsewhere: then the first line's own hash is believed, and `kept` is what ties it to them.
    pub fn new(kept: Option<(u64, [u8; 32])>) -> Self {
        Self {
            kept,
            ..Self::default()
        }
    }

    /// Takes the next entry.
    pub fn take(&mut self, line: &AuditLine) -> Result<(), AuditError> {
        let before = self.state.last;
        if self.seen && before.checked_add(1) != Some(line.id) {
            return Err(AuditError::Gap {
                before,
                found: line.id,
            });
        }
        match (line.hash, self.before) {
            (None, Some(_)) => return Err(AuditError::Unchained(line.id)),
            (None, None) => self.state.unchained += 1,
            (Some(hash), before) => {
                // The first chained entry of the log follows zeros; the first of a part of it follows what is elsewhere.
                let part = before.is_none() && !self.seen && line.id > 1;
                let expected = chain(&before.unwrap_or_default(), line.id, &line.text);
                if !part && expected != hash {
                    return Err(AuditError::Changed(line.id));
                }
                self.before = Some(hash);
                self.state.entries += 1;
            }
        }
        if let Some((id, hash)) = self.kept
            && id == line.id
            && line.hash != Some(hash)
        {
            return Err(AuditError::Other(id));
        }
        self.state.last = line.id;
        self.seen = true;
        Ok(())
    }

    /// How the log stands, if it reaches as far as what was kept.
    pub fn finish(mut self) -> Result<AuditState, AuditError> {
        if let Some((kept, _)) = self.kept
            && kept > self.state.last
        {
            return Err(AuditError::Short {
                last: self.state.last,
                kept,
            });
        }
        self.state.hash = self.before.map(hex).unwrap_or_default();
        Ok(self.state)
    }
}

/// 64 hexadecimal digits.
pub fn hex(hash: [u8; 32]) -> String {
    blake3::Hash::from_bytes(hash).to_hex().to_string()
}

/// Reads [`hex`].
pub fn unhex(text: &str) -> Option<[u8; 32]> {
    blake3::Hash::from_hex(text)
        .ok()
        .map(|hash| *hash.as_bytes())
}

/// A number and hash that somebody kept, as `NUMBER:HASH`.
pub fn parse_kept(text: &str) -> Result<(u64, [u8; 32]), AuditError> {
    let bad = || AuditError::Line(text.chars().take(80).collect());
    let (id, hash) = text.split_once(':').ok_or_else(bad)?;
    Ok((id.parse().map_err(|_| bad())?, unhex(hash).ok_or_else(bad)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    fn log(unchained: u64, chained: u64) -> Vec<AuditLine> {
        let mut before = [0; 32];
        (1..=unchained + chained)
            .map(|id| {
                let text = format!("{{\"unix_s\":{id}}}");
                let hash = (id > unchained).then(|| {
                    before = chain(&before, id, &text);
                    before
                });
                AuditLine { id, hash, text }
            })
            .collect()
    }

    fn verify(
        lines: &[AuditLine],
        kept: Option<(u64, [u8; 32])>,
    ) -> Result<AuditState, AuditError> {
        let mut verifier = Verifier::new(kept);
        for line in lines {
            // As through a file.
            verifier.take(&line.to_string().parse()?)?;
        }
        verifier.finish()
    }

    #[test]
    fn a_log_stands_as_it_was_written() {
        let lines = log(2, 5);
        let state = verify(&lines, None).unwrap();
        assert_eq!((state.unchained, state.entries, state.last), (2, 5, 7));
        assert_eq!(unhex(&state.hash), lines[6].hash);
        assert_eq!(verify(&[], None).unwrap(), AuditState::default());
        let kept = parse_kept(&format!("5:{}", hex(lines[4].hash.unwrap()))).unwrap();
        assert!(verify(&lines, Some(kept)).is_ok());
        assert!(verify(&lines[3..], Some(kept)).is_ok(), "a part of it");
    }

    #[test]
    fn whatever_is_changed_is_found() {
        let lines = log(0, 6);
        for at in 0..6 {
            let mut changed = lines.clone();
            changed[at].text.push(' ');
            let id = at as u64 + 1;
            assert_eq!(verify(&changed, None), Err(AuditError::Changed(id)));
            let mut removed = lines.clone();
            removed.remove(at);
            // The end and the beginning can be cut off: that is what is kept elsewhere for.
            let kept = Some((6, lines[5].hash.unwrap()));
            assert!(at == 0 || verify(&removed, kept).is_err(), "entry {id}");
        }
        let mut unhashed = lines.clone();
        unhashed[3].hash = None;
        assert_eq!(verify(&unhashed, None), Err(AuditError::Unchained(4)));
        // Written anew from the fourth entry on, with hashes that fit.
        let mut anew = lines.clone();
        for at in 3..6 {
            anew[at].text = "{}".into();
            let before = anew[at - 1].hash.unwrap();
            anew[at].hash = Some(chain(&before, anew[at].id, "{}"));
        }
        assert!(verify(&anew, None).is_ok(), "it fits in itself");
        let kept = Some((6, lines[5].hash.unwrap()));
        assert_eq!(verify(&anew, kept), Err(AuditError::Other(6)));
    }

    /// A difference would not break a chain, which is over what was written, but readers of exported logs.
    #[test]
    fn entries_are_written_without_what_they_lack() {
        let facts = AuditFacts {
            unix_s: 1,
            event: "call".into(),
            who: "alice".into(),
            result: "done".into(),
            ends: Some(3),
            ..AuditFacts::default()
        };
        let text = serde_json::to_string(&facts).unwrap();
        let golden = r#"{"unix_s":1,"event":"call","who":"alice","result":"done","ends":3}"#;
        assert_eq!(text, golden);
        assert_eq!(serde_json::from_str::<AuditFacts>(golden).unwrap(), facts);
    }
}
