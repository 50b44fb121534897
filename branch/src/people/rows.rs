//! What is kept of people in the branch's key-value store: the roster, encrypted, and each person's attempts. `docs/disk-formats/branch.md` tells the bytes.

use std::ops::ControlFlow;

use dedup_protocol::people::Roster;
use dedup_protocol::people::strikes::Strikes;
use dedup_store::kv::{Batch, Durability, Kv, KvError};
use serde::{Deserialize, Serialize};

use super::LogInError;

/// Where the roster is.
pub(super) const ROSTER: &[u8] = b"r";
/// What the keys of attempts begin with; the name follows.
const ATTEMPTS: u8 = b'l';
/// First byte of a row of attempts.
const VERSION: u8 = 1;

/// A person's attempts to log in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AttemptsRow {
    /// Wrong passwords in a row.
    pub(super) strikes: Strikes,
    /// Step of the last code that was taken.
    pub(super) last_step: u64,
}

fn key(name: &str) -> Vec<u8> {
    [&[ATTEMPTS][..], name.as_bytes()].concat()
}

/// Keeps a roster, and forgets the attempts of those who are not on it any more.
pub(super) fn put_roster(kv: &dyn Kv, row: Vec<u8>, roster: &Roster) -> Result<(), KvError> {
    let mut batch = Batch::new();
    batch.put(ROSTER.to_vec(), row);
    kv.scan(&[ATTEMPTS], &[ATTEMPTS], &mut |key, _| {
        let name = std::str::from_utf8(&key[1..]).unwrap_or_default();
        if roster.person(name).is_none() {
            batch.delete(key.to_vec());
        }
        ControlFlow::Continue(())
    })?;
    kv.commit(batch, Durability::Synced)
}

/// A person's attempts. A row that cannot be read is an error: it may be a lock.
pub(super) fn attempts(kv: &dyn Kv, name: &str) -> Result<AttemptsRow, LogInError> {
    let Some(row) = kv.get(&key(name))? else {
        return Ok(AttemptsRow::default());
    };
    let malformed = |reason: String| LogInError::Row { reason };
    match row.split_first() {
        Some((&VERSION, body)) => postcard::from_bytes(body).map_err(|e| malformed(e.to_string())),
        Some((version, _)) => Err(malformed(format!(
            "version {version} of attempts; run the newer program"
        ))),
        None => Err(malformed("an empty row".into())),
    }
}

/// Keeps them.
pub(super) fn put_attempts(kv: &dyn Kv, name: &str, row: &AttemptsRow) -> Result<(), KvError> {
    let mut batch = Batch::new();
    let body = postcard::to_extend(row, vec![VERSION]);
    batch.put(key(name), body.expect("numbers serialise without failing"));
    kv.commit(batch, Durability::Synced)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use dedup_store::kv::MemKv;

    use super::*;

    #[test]
    fn golden_rows() {
        let kv = MemKv::new();
        let row = AttemptsRow {
            strikes: Strikes {
                failures: 5,
                until_unix_s: 300,
            },
            last_step: 7,
        };
        put_attempts(&kv, "al", &row).unwrap();
        let bytes = kv.get(b"lal").unwrap().unwrap();
        assert_eq!(hex::encode(&bytes), "0105ac0207");
        assert_eq!(attempts(&kv, "al").unwrap(), row);
        assert_eq!(attempts(&kv, "bob").unwrap(), AttemptsRow::default());
        for bad in [&b""[..], b"\x02", b"\x01\x05"] {
            let mut batch = Batch::new();
            batch.put(b"lal".to_vec(), bad.to_vec());
            kv.commit(batch, Durability::Synced).unwrap();
            assert!(attempts(&kv, "al").is_err(), "{bad:?}");
        }
    }
}
