//! What was seen of desktops since their machines started, told to the datacenter: that one booted, that somebody logged on, that it answers.
//!
//! A log-on may be over by the next report, so what was seen once stays until the machine ends. Whether a desktop without an agent answers is asked over the
//! branch's own network, by a connection that it accepts or refuses: both are an answer, silence is none. Nothing here decides anything, and who is
//! logged on is not kept.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use branch_api::Desktop;
use datacenter_api::DesktopSigns;

use super::record::DesktopRecord;
use super::{Desktops, machine};

/// The port that is asked for: "discard", where nobody listens, so that the guest's kernel refuses.
const PORT: u16 = 9;
/// How long a desktop may take to answer: it is one hop away.
const PATIENCE: Duration = Duration::from_millis(500);
/// Desktops that are asked in one round: with nobody answering it takes some seconds.
const ASKED_MAX: usize = 16;

/// What was seen of one run of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    /// When it started, unix milliseconds: tells it from others.
    started_unix_ms: u64,
    logged_in: bool,
    network: bool,
}

/// What was seen of each desktop that runs.
#[derive(Debug, Default)]
pub(super) struct Signs {
    runs: Mutex<HashMap<String, Run>>,
}

impl Signs {
    fn runs(&self) -> MutexGuard<'_, HashMap<String, Run>> {
        // Nothing leaves it half changed.
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what is seen now; answers what was seen of this run in all.
    fn add(&self, name: &str, started_unix_ms: u64, logged_in: bool, network: bool) -> Run {
        let fresh = Run {
            started_unix_ms,
            logged_in: false,
            network: false,
        };
        let mut runs = self.runs();
        let run = runs.entry(name.to_owned()).or_insert(fresh);
        if run.started_unix_ms != started_unix_ms {
            *run = fresh;
        }
        run.logged_in |= logged_in;
        run.network |= network;
        *run
    }

    fn has_answered(&self, name: &str, started_unix_ms: u64) -> bool {
        let runs = self.runs();
        let run = runs.get(name);
        run.is_some_and(|run| run.started_unix_ms == started_unix_ms && run.network)
    }

    fn keep_only(&self, running: &[(String, u64)]) {
        let mut runs = self.runs();
        runs.retain(|name, _| running.iter().any(|(other, _)| other == name));
    }
}

impl Desktops {
    /// What was seen of a desktop since its machine started; none if none runs.
    pub fn signs(&self, desktop: &Desktop) -> Option<DesktopSigns> {
        let started_unix_ms = desktop.started_unix_ms?;
        let guest = desktop.guest.as_ref();
        let is_logged_in = guest.is_some_and(|guest| !guest.users.is_empty());
        let name = &desktop.name;
        let run = self.signs.add(name, started_unix_ms, is_logged_in, false);
        Some(DesktopSigns {
            booted: guest.is_some_and(|guest| guest.booted),
            logged_in: run.logged_in,
            agent: guest.is_some_and(|guest| guest.connected && guest.protocol.is_some()),
            network: run.network,
        })
    }

    /// Asks desktops that run and have not answered yet whether they do. Blocks for some seconds at most.
    pub fn ask_for_answers(&self) {
        let Ok(desktops) = self.versions.catalog().desktops() else {
            // That it cannot be read is told where machines are looked after.
            return;
        };
        let running: Vec<(String, u64)> = desktops.iter().filter_map(run_of).collect();
        self.signs.keep_only(&running);
        let silent = desktops.iter().filter_map(|desktop| {
            let (name, started_unix_ms) = run_of(desktop)?;
            let address = desktop.address?;
            let is_known = self.signs.has_answered(&name, started_unix_ms);
            (!is_known).then_some((name, started_unix_ms, address))
        });
        for (name, started_unix_ms, address) in silent.take(ASKED_MAX) {
            if answers(address) {
                self.signs.add(&name, started_unix_ms, false, true);
            }
        }
    }
}

/// The run of a desktop's machine, if one runs.
fn run_of(desktop: &DesktopRecord) -> Option<(String, u64)> {
    let alive = desktop.machine.as_ref().filter(|m| machine::is_alive(m))?;
    Some((desktop.name.clone(), alive.started_unix_ms))
}

/// Whether a machine answers at an address: it lets a connection in, or says no.
fn answers(address: Ipv4Addr) -> bool {
    match TcpStream::connect_timeout(&SocketAddr::from((address, PORT)), PATIENCE) {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::ConnectionRefused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_stays_until_the_machine_starts_again() {
        let signs = Signs::default();
        assert!(signs.add("alice", 1, true, false).logged_in);
        let later = signs.add("alice", 1, false, true);
        assert!(later.logged_in && later.network);
        assert!(signs.has_answered("alice", 1));
        assert!(!signs.has_answered("alice", 2));
        let again = signs.add("alice", 2, false, false);
        assert!(!again.logged_in && !again.network);
        signs.keep_only(&[("bob".into(), 1)]);
        assert!(signs.runs().is_empty());
    }

    #[test]
    fn a_refusal_is_an_answer() {
        // This machine's own kernel: whether or not something listens there.
        assert!(answers(Ipv4Addr::LOCALHOST));
    }
}
