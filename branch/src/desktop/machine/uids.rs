//! Users of desktops' machines: a number for each, out of a range that nobody else on the host has.
//!
//! A machine that was broken into meets other machines' processes and memory as a stranger. A desktop keeps its number for as long as it is
//! there. Refused: a range with accounts, groups or delegated numbers in it, and a number that processes of somebody else run under.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::str::FromStr;

/// A range of user (and group) numbers, both ends in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UidRange {
    /// The first.
    pub first: u32,
    /// The last.
    pub last: u32,
}

/// Above what Debian and systemd give to accounts and services (up to 65,535), below what they delegate to containers (from 100,000 and
/// 524,288 on), and four thousand desktops long.
pub const DEFAULT: UidRange = UidRange {
    first: 70_000,
    last: 74_095,
};

/// Numbers up to here belong to the system and to people's accounts.
const FIRST_MIN: u32 = 1_000;

/// Why a desktop gets no user.
#[derive(Debug, thiserror::Error)]
pub enum UidError {
    /// Accounts or delegated numbers lie in it.
    #[error("--uids {range}: {who} in {file} has numbers of it; name a range that nobody has")]
    Taken {
        /// The range.
        range: UidRange,
        /// Whose they are.
        who: String,
        /// Where that stands.
        file: &'static str,
    },
    /// All are in use.
    #[error(
        "--uids {range}: none is left ({desktops} are of desktops, {strangers} of other processes); delete desktops or name a larger range"
    )]
    Exhausted {
        /// The range.
        range: UidRange,
        /// Those of other desktops.
        desktops: usize,
        /// Those that processes run under.
        strangers: usize,
    },
    /// Who runs what cannot be seen.
    #[error("which users have processes is not to be seen in /proc")]
    Processes(#[source] io::Error),
}

impl std::fmt::Display for UidRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for UidRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ends = text.split_once('-');
        let ends = ends.and_then(|(first, last)| {
            Some((first.parse::<u32>().ok()?, last.parse::<u32>().ok()?))
        });
        match ends {
            // The last number of all means "no user" to the kernel, and 65534 and 65535 nobody.
            Some((first, last))
                if first <= last
                    && first >= FIRST_MIN
                    && last < u32::MAX
                    && !(first..=last).contains(&65_534)
                    && !(first..=last).contains(&65_535) =>
            {
                Ok(Self { first, last })
            }
            _ => Err(format!(
                "{text:?}: FIRST-LAST is needed, such as {DEFAULT}, from {FIRST_MIN} on and without 65534 and 65535"
            )),
        }
    }
}

impl UidRange {
    fn meets(self, first: u64, count: u64) -> bool {
        let end = first.saturating_add(count);
        first <= u64::from(self.last) && end > u64::from(self.first)
    }

    /// Refuses the range if this host's accounts have numbers of it.
    ///
    /// # Errors
    /// [`UidError::Taken`].
    pub fn check_host(self) -> Result<(), UidError> {
        // What is not there has nobody in it.
        let read = |file: &str| std::fs::read_to_string(Path::new("/etc").join(file));
        let read = |file: &str| read(file).unwrap_or_default();
        self.check_accounts(&read("passwd"), "/etc/passwd")?;
        self.check_accounts(&read("group"), "/etc/group")?;
        self.check_delegated(&read("subuid"), "/etc/subuid")?;
        self.check_delegated(&read("subgid"), "/etc/subgid")
    }

    /// Lines `NAME:x:NUMBER:…`.
    fn check_accounts(self, text: &str, file: &'static str) -> Result<(), UidError> {
        self.check(text, file, |fields| Some((fields.get(2)?.parse().ok()?, 1)))
    }

    /// Lines `NAME:FIRST:COUNT`.
    fn check_delegated(self, text: &str, file: &'static str) -> Result<(), UidError> {
        self.check(text, file, |fields| {
            Some((fields.get(1)?.parse().ok()?, fields.get(2)?.parse().ok()?))
        })
    }

    fn check(
        self,
        text: &str,
        file: &'static str,
        numbers: impl Fn(&[&str]) -> Option<(u64, u64)>,
    ) -> Result<(), UidError> {
        for line in text.lines() {
            let fields: Vec<&str> = line.trim().split(':').collect();
            // What is no such line names nobody.
            if let Some((first, count)) = numbers(&fields)
                && self.meets(first, count)
            {
                return Err(UidError::Taken {
                    range: self,
                    who: fields[0].to_owned(),
                    file,
                });
            }
        }
        Ok(())
    }

    /// A number that neither another desktop has nor a process runs under: `had`, if it still is one.
    ///
    /// # Errors
    /// [`UidError::Exhausted`].
    pub fn give(
        self,
        had: Option<u32>,
        desktops: &BTreeSet<u32>,
        running: &BTreeSet<u32>,
    ) -> Result<u32, UidError> {
        let all = self.first..=self.last;
        let is_free = |uid: &u32| !desktops.contains(uid) && !running.contains(uid);
        let kept = had.filter(|uid| all.contains(uid) && is_free(uid));
        if let Some(uid) = kept.or_else(|| all.clone().find(is_free)) {
            return Ok(uid);
        }
        let within = |users: &BTreeSet<u32>| users.range(all.clone()).count();
        let strangers = running.difference(desktops).copied().collect();
        Err(UidError::Exhausted {
            range: self,
            desktops: within(desktops),
            strangers: within(&strangers),
        })
    }
}

/// Users that have processes now.
///
/// # Errors
/// There is no /proc.
pub fn running() -> Result<BTreeSet<u32>, UidError> {
    let mut users = BTreeSet::new();
    for entry in std::fs::read_dir("/proc").map_err(UidError::Processes)? {
        let entry = entry.map_err(UidError::Processes)?;
        let name = entry.file_name();
        let is_process = name
            .to_str()
            .is_some_and(|name| name.parse::<u32>().is_ok());
        if !is_process {
            continue;
        }
        // One that has ended meanwhile has no user any more. A folder's owner would not do: of processes that hide from debuggers it is root.
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        users.extend(users_in(&status));
    }
    Ok(users)
}

/// The four numbers of a process's status: who it is, acts as, may become again, and reads files as.
fn users_in(status: &str) -> impl Iterator<Item = u32> + '_ {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let numbers = line.unwrap_or_default().split_ascii_whitespace();
    numbers.filter_map(|number| number.parse().ok())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_range_is_two_numbers_that_may_be_users() {
        let range: UidRange = "70000-70009".parse().unwrap();
        assert_eq!((range.first, range.last), (70_000, 70_009));
        assert_eq!(DEFAULT.to_string().parse(), Ok(DEFAULT));
        for wrong in [
            "",
            "70000",
            "70000-",
            "70009-70000",
            "0-100",
            "999-1100",
            "60000-70000",
            "70000-4294967295",
            "-1-5",
            "a-b",
        ] {
            assert!(wrong.parse::<UidRange>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_range_with_accounts_in_it_is_refused_by_name() {
        let range = DEFAULT;
        let accounts = "root:x:0:0:root:/root:/bin/bash\nalice:x:70001:100::/:\n";
        let refused = range.check_accounts(accounts, "/etc/passwd").unwrap_err();
        let text = refused.to_string();
        for word in ["70000-74095", "alice", "/etc/passwd", "name a range"] {
            assert!(text.contains(word), "{text}");
        }
        for (line, taken) in [
            ("bob:60000:10000", false),
            ("bob:60000:10001", true),
            ("bob:74095:1", true),
            ("bob:74096:65536", false),
            ("bob:1:18446744073709551615", true),
            ("bob:x", false),
            ("", false),
            ("#bob:70000:1 and more:", false),
        ] {
            let refused = range.check_delegated(line, "/etc/subuid").is_err();
            assert_eq!(refused, taken, "{line:?}");
        }
        for nonsense in ["nobody:x:65534:", "x:y", "::::", "\u{fffd}:x:999999999999"] {
            assert!(range.check_accounts(nonsense, "/etc/group").is_ok());
        }
    }

    #[test]
    fn a_range_that_is_used_up_says_by_whom() {
        let range: UidRange = "2000-2003".parse().unwrap();
        let desktops = BTreeSet::from([2000, 2001, 5000]);
        let running = BTreeSet::from([0, 2000, 2002, 2003]);
        let text = range.give(None, &desktops, &running).unwrap_err();
        let text = text.to_string();
        assert!(
            text.contains("2 are of desktops") && text.contains("2 of other processes"),
            "{text}"
        );
        assert!(text.contains("--uids 2000-2003"), "{text}");
    }

    #[test]
    fn processes_and_their_users_are_seen() {
        let own = rustix::process::geteuid().as_raw();
        assert!(running().unwrap().contains(&own));
        let status = "Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t5\t5\t5\n";
        assert_eq!(users_in(status).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(users_in("Uid:\tx").count() + users_in("").count(), 0);
    }

    proptest! {
        /// Whoever has what: no number is given twice, and one that a desktop had is kept while it can be.
        #[test]
        fn a_number_is_of_the_range_free_and_kept(
            had in proptest::option::of(1990..2020u32),
            desktops in prop::collection::btree_set(1990..2020u32, 0..20),
            running in prop::collection::btree_set(1990..2020u32, 0..20),
        ) {
            let range = UidRange { first: 2000, last: 2009 };
            let free: Vec<u32> = (2000..=2009)
                .filter(|uid| !desktops.contains(uid) && !running.contains(uid))
                .collect();
            match range.give(had, &desktops, &running) {
                Ok(uid) => {
                    prop_assert!(free.contains(&uid));
                    let kept = had.filter(|had| free.contains(had));
                    prop_assert!(kept.is_none_or(|kept| kept == uid));
                }
                Err(_) => prop_assert!(free.is_empty()),
            }
        }
    }
}
