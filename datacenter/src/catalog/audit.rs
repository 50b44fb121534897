//! The rows of the audit log, and the only way to add one: behind the newest, chained to it, in the transaction of what it tells.
//!
//! Invariant: a row is written once and never changed; its text is hashed as it stands ([`datacenter_api::audit::chain`]). Rows of before the chain are
//! read as what they would say today, without a hash.

use datacenter_api::{AuditFacts, AuditLine};
use dedup::{BranchId, DesktopId};
use dedup_protocol::state::Generation;
use serde::{Deserialize, Serialize};

use super::backend::Table;
use super::rows::{NewestFirst, Row};
use super::volumes::AuditEvent;
use super::{CatalogError, Tx};

/// An entry of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRow {
    /// Its hash; `None` if it is of before the chain.
    pub hash: Option<[u8; 32]>,
    /// JSON of [`AuditFacts`].
    pub text: String,
}

/// An entry as programs before the chain wrote it.
#[derive(Deserialize)]
struct FirstAuditRow {
    unix_s: u64,
    event: AuditEvent,
    volume: DesktopId,
    desktop: String,
    generation: Generation,
    branch: Option<BranchId>,
    reason: String,
}

impl Row for AuditRow {
    const TABLE: Table = Table::Audit;
    const FORMAT: u8 = 2;
    type Key = NewestFirst;

    fn upgrade(format: u8, bytes: &[u8]) -> Option<Self> {
        let first: FirstAuditRow = match format {
            1 => postcard::from_bytes(bytes).ok()?,
            _ => return None,
        };
        let facts = AuditFacts {
            unix_s: first.unix_s,
            event: first.event.name().to_owned(),
            who: first.event.who().to_owned(),
            volume: first.volume.to_string(),
            desktop: first.desktop,
            generation: first.generation.0,
            branch: first.branch.map(|branch| branch.to_string()),
            reason: first.reason,
            ..AuditFacts::default()
        };
        Some(Self {
            hash: None,
            text: text_of(&facts),
        })
    }
}

impl AuditRow {
    /// What it says. A text that cannot be read says so itself, rather than to hide all others.
    pub fn facts(&self) -> AuditFacts {
        serde_json::from_str(&self.text).unwrap_or_else(|error| AuditFacts {
            event: "unreadable".into(),
            reason: error.to_string(),
            ..AuditFacts::default()
        })
    }

    /// As it is exported and verified.
    pub fn line(self, id: u64) -> AuditLine {
        AuditLine {
            id,
            hash: self.hash,
            text: self.text,
        }
    }
}

fn text_of(facts: &AuditFacts) -> String {
    serde_json::to_string(facts).expect("text and numbers serialise")
}

/// Adds an entry; answers its number.
pub fn append(tx: &mut Tx<'_>, facts: &AuditFacts) -> Result<u64, CatalogError> {
    let newest = tx.list::<AuditRow>(&[], None, 1)?.into_iter().next();
    let (id, before) = match newest {
        Some((NewestFirst(last), row)) => (last + 1, row.hash),
        None => (1, None),
    };
    let text = text_of(facts);
    let hash = datacenter_api::audit::chain(&before.unwrap_or_default(), id, &text);
    let row = AuditRow {
        hash: Some(hash),
        text,
    };
    tx.put(&NewestFirst(id), &row);
    Ok(id)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::rows::{decode, encode};
    use super::*;

    #[test]
    fn golden_rows() {
        let row = AuditRow {
            hash: Some([3; 32]),
            text: "{}".into(),
        };
        let golden = format!("0201{}027b7d", "03".repeat(32));
        assert_eq!(hex::encode(encode(&row)), golden);
    }

    #[test]
    fn an_entry_of_before_the_chain_is_read() {
        let (volume, branch) = ("dd".repeat(16), "bb".repeat(16));
        let first = format!("010101{volume}05616c696365ac0201{branch}0172");
        let row: AuditRow = decode(&hex::decode(first).unwrap()).unwrap();
        assert_eq!(row.hash, None);
        let facts = row.facts();
        assert_eq!(
            (facts.event.as_str(), facts.who.as_str()),
            ("old_copy", "datacenter")
        );
        assert_eq!((facts.unix_s, facts.generation), (1, 300));
        assert_eq!(facts.branch, Some(branch));
        assert_eq!(
            (facts.volume, facts.desktop, facts.reason),
            (volume, "alice".into(), "r".into())
        );
    }
}
