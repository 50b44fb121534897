//! Who is logged on, by reading: logind's files where there is logind, else utmp. Nothing is asked of anybody, so that nothing can hold us up.
//!
//! logind's files are its own and may change: a file that does not say what is expected is passed over. A user counts once, from the first log-on.

use std::collections::BTreeMap;

use branch_guest::{Text, USERS_MAX, User};

use crate::root::Root;

const LOGIND: &str = "/run/systemd/sessions";
const UTMP: &str = "/run/utmp";

/// Bytes of a record of utmp on 64-bit Linux (utmp(5)).
const UTMP_RECORD_BYTES: usize = 384;
/// A record of a session.
const USER_PROCESS: i16 = 7;
/// Most of utmp that is read: some 2,700 records.
const UTMP_BYTES_MAX: usize = 1 << 20;

/// Who is logged on, by name.
pub fn users(root: &Root) -> Vec<User> {
    let sessions = if root.path(LOGIND).is_dir() {
        let names = root.names(LOGIND);
        let texts = names.iter().map(|name| format!("{LOGIND}/{name}"));
        texts
            .filter_map(|path| logind_session(&root.text(&path)?))
            .collect()
    } else {
        utmp_sessions(&std::fs::read(root.path(UTMP)).unwrap_or_default())
    };
    first_of_each(sessions)
}

/// A user's name, and since when in unix seconds.
type Session = (String, u64);

fn first_of_each(sessions: Vec<Session>) -> Vec<User> {
    let mut users: BTreeMap<String, u64> = BTreeMap::new();
    for (name, since) in sessions {
        let first = users.entry(name).or_insert(since);
        *first = since.min(*first);
    }
    let users = users.into_iter().take(USERS_MAX);
    users
        .map(|(name, since_unix_s)| User {
            name: Text::near(&name),
            since_unix_s,
        })
        .collect()
}

/// A session's file: lines of `KEY=value`.
fn logind_session(text: &str) -> Option<Session> {
    let value = |key: &str| {
        let mut lines = text.lines();
        lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    };
    // A greeter or a service of a user is nobody at work; who is closing has logged off.
    let is_user = value("CLASS") == Some("user");
    let is_there = matches!(value("STATE"), Some("active" | "online"));
    if !is_user || !is_there {
        return None;
    }
    let since_us: u64 = value("REALTIME")?.parse().ok()?;
    let name = value("USER").filter(|name| !name.is_empty())?;
    Some((name.to_owned(), since_us / 1_000_000))
}

fn utmp_sessions(bytes: &[u8]) -> Vec<Session> {
    let bytes = &bytes[..bytes.len().min(UTMP_BYTES_MAX)];
    let records = bytes.chunks_exact(UTMP_RECORD_BYTES);
    records
        .filter_map(|record| {
            let kind = i16::from_le_bytes(record[..2].try_into().ok()?);
            let name = record[44..76].split(|byte| *byte == 0).next()?;
            let seconds = u32::from_le_bytes(record[340..344].try_into().ok()?);
            let name = String::from_utf8_lossy(name).into_owned();
            (kind == USER_PROCESS && !name.is_empty()).then_some((name, u64::from(seconds)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    fn logind(root: &Root, id: &str, text: &str) {
        root.write(&format!("{LOGIND}/{id}"), text, 0o644).unwrap();
    }

    #[test]
    fn logind_s_sessions_are_read_and_greeters_are_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        logind(
            &root,
            "1",
            "# Private.\nUID=1000\nUSER=alice\nSTATE=active\nCLASS=user\nREALTIME=1700000002000000\n",
        );
        logind(
            &root,
            "2",
            "USER=alice\nSTATE=online\nCLASS=user\nREALTIME=1700000001000000\n",
        );
        logind(
            &root,
            "3",
            "USER=bob\nSTATE=closing\nCLASS=user\nREALTIME=1700000001000000\n",
        );
        logind(
            &root,
            "c1",
            "USER=lightdm\nSTATE=active\nCLASS=greeter\nREALTIME=1700000001000000\n",
        );
        logind(&root, "4", "USER=\u{fffd}\nnonsense");
        let users = users(&root);
        assert_eq!(users.len(), 1, "{users:?}");
        assert_eq!(users[0].name.as_str(), "alice");
        assert_eq!(users[0].since_unix_s, 1_700_000_001);
    }

    #[test]
    fn without_logind_utmp_is_read() {
        let record = |kind: i16, name: &[u8], seconds: u32| {
            let mut record = vec![0; UTMP_RECORD_BYTES];
            record[..2].copy_from_slice(&kind.to_le_bytes());
            record[44..44 + name.len()].copy_from_slice(name);
            record[340..344].copy_from_slice(&seconds.to_le_bytes());
            record
        };
        let mut utmp = record(2, b"reboot", 5);
        utmp.extend(record(USER_PROCESS, b"alice", 7));
        utmp.extend(record(USER_PROCESS, b"alice", 6));
        utmp.extend(record(USER_PROCESS, &[b'\x1b'; 32], 8));
        utmp.extend([0; 17]);
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        assert!(users(&root).is_empty());
        std::fs::create_dir_all(root.path("/run")).unwrap();
        std::fs::write(root.path(UTMP), &utmp).unwrap();
        let users = users(&root);
        let told: Vec<_> = users
            .iter()
            .map(|user| (user.name.as_str(), user.since_unix_s))
            .collect();
        assert_eq!(
            told,
            [("????????????????????????????????", 8), ("alice", 6)]
        );
    }

    #[test]
    fn a_crowd_is_cut() {
        let crowd = (0..100).map(|n| (format!("user{n}"), n)).collect();
        assert_eq!(first_of_each(crowd).len(), USERS_MAX);
    }
}
