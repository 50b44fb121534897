//! A memory of paths in one small file.
//!
//! Losing it costs a slow start, so it is written now and then and never synced; a rename keeps it whole. A file that is not ours, torn
//! or too long counts as empty. Format, all little-endian: 8 bytes `SPLPATH1`; per path one byte of key length, the key, and a
//! [`PathRecord`] of 32 bytes; at the end the first 8 bytes of the SHA-256 of all that.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{PathMemory, PathRecord};

const MAGIC: &[u8; 8] = b"SPLPATH1";
const DIGEST_BYTES: usize = 8;
const RECORD_BYTES: usize = 32;
/// Paths kept; the one measured longest ago gives way. Four times the fleet that a datacenter is planned for.
const PATHS_MAX: usize = 4096;
/// The longest such a file can be.
const FILE_BYTES_MAX: u64 =
    (MAGIC.len() + PATHS_MAX * (1 + 255 + RECORD_BYTES) + DIGEST_BYTES) as u64;
/// A thousand links that each tell once a minute must not mean seventeen writes a second.
const WRITE_EVERY: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub struct KnownPaths {
    file: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    paths: HashMap<Vec<u8>, PathRecord>,
    written: Option<Instant>,
    dirty: bool,
}

impl KnownPaths {
    /// Reads `file`; without one, or with one that cannot be used, nothing is known.
    pub fn open(file: impl Into<PathBuf>) -> Self {
        let file = file.into();
        let paths = read(&file).unwrap_or_default();
        Self {
            file,
            state: Mutex::new(State {
                paths,
                written: None,
                dirty: false,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, state: &mut State) {
        state.dirty = false;
        state.written = Some(Instant::now());
        let mut bytes = MAGIC.to_vec();
        for (key, record) in &state.paths {
            bytes.push(u8::try_from(key.len()).expect("longer keys are not kept"));
            bytes.extend_from_slice(key);
            bytes.extend_from_slice(&record.to_bytes());
        }
        let digest = digest(&bytes);
        bytes.extend_from_slice(&digest);
        let new = self.file.with_extension("new");
        let written = std::fs::write(&new, &bytes).and_then(|()| std::fs::rename(&new, &self.file));
        if let Err(error) = written {
            tracing::debug!(file = %self.file.display(), %error, "what is known of paths is not kept");
        }
    }
}

impl PathMemory for KnownPaths {
    fn load(&self, key: &[u8]) -> Option<PathRecord> {
        self.state().paths.get(key).copied()
    }

    fn store(&self, key: &[u8], record: &PathRecord) {
        if key.len() > usize::from(u8::MAX) {
            return;
        }
        let mut state = self.state();
        if state.paths.len() >= PATHS_MAX && !state.paths.contains_key(key) {
            let oldest = state
                .paths
                .iter()
                .min_by_key(|(_, known)| known.measured_unix_s);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                state.paths.remove(&oldest);
            }
        }
        state.paths.insert(key.to_owned(), *record);
        state.dirty = true;
        if state.written.is_none_or(|at| at.elapsed() >= WRITE_EVERY) {
            self.write(&mut state);
        }
    }
}

impl Drop for KnownPaths {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.dirty {
            self.write(&mut state);
        }
    }
}

fn digest(bytes: &[u8]) -> [u8; DIGEST_BYTES] {
    let whole = ring::digest::digest(&ring::digest::SHA256, bytes);
    let mut digest = [0; DIGEST_BYTES];
    digest.copy_from_slice(&whole.as_ref()[..DIGEST_BYTES]);
    digest
}

fn read(file: &Path) -> Option<HashMap<Vec<u8>, PathRecord>> {
    if std::fs::metadata(file).ok()?.len() > FILE_BYTES_MAX {
        return None;
    }
    parse(&std::fs::read(file).ok()?)
}

fn parse(bytes: &[u8]) -> Option<HashMap<Vec<u8>, PathRecord>> {
    let (body, told) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST_BYTES)?)?;
    if digest(body) != told {
        return None;
    }
    let mut rest = body.strip_prefix(MAGIC)?;
    let mut paths = HashMap::new();
    while let Some((&length, after)) = rest.split_first() {
        let (key, after) = after.split_at_checked(length.into())?;
        let (record, after) = after.split_at_checked(RECORD_BYTES)?;
        if paths.len() == PATHS_MAX {
            return None;
        }
        // A record of a later version is passed over.
        paths.extend(PathRecord::from_bytes(record).map(|record| (key.to_owned(), record)));
        rest = after;
    }
    Some(paths)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Network;
    use super::*;

    fn record(measured_unix_s: u64) -> PathRecord {
        PathRecord {
            rate: 1_000_000,
            rtt: Duration::from_millis(30),
            mtu: 1452,
            network: Network::of("192.0.2.1".parse().unwrap()),
            measured_unix_s,
        }
    }

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("splice-paths-{}-{name}", std::process::id()))
    }

    #[test]
    fn what_is_known_survives_a_restart_and_damage_is_nothing_known() {
        let file = scratch("restart");
        let known = KnownPaths::open(&file);
        known.store(b"a", &record(1));
        known.store(b"b", &record(2));
        drop(known);
        let known = KnownPaths::open(&file);
        assert_eq!(known.load(b"a"), Some(record(1)));
        assert_eq!(known.load(b"b"), Some(record(2)));
        drop(known);
        let mut bytes = std::fs::read(&file).unwrap();
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut]), None, "cut at {cut}");
        }
        bytes[12] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        assert_eq!(KnownPaths::open(&file).load(b"a"), None);
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn the_oldest_gives_way() {
        let file = scratch("full");
        let known = KnownPaths::open(&file);
        for n in 0..=PATHS_MAX as u64 {
            known.store(&n.to_le_bytes(), &record(n));
        }
        assert_eq!(known.load(&0u64.to_le_bytes()), None);
        assert!(known.load(&1u64.to_le_bytes()).is_some());
        drop(known);
        assert_eq!(KnownPaths::open(&file).state().paths.len(), PATHS_MAX);
        std::fs::remove_file(&file).unwrap();
    }
}
