//! Who gets room next: desktops that are begun, and those whose users wait because the host's memory is given away.
//!
//! ```text
//!   asked for ──room, and nobody before──► starting ──► (runs)
//!       │                                     └──────► failed, told once ──► (forgotten)
//!       └──else──► waiting, asked for every second or two ──room and first──► starting
//! ```
//!
//! Invariant: what is begun never exceeds the limit together with what runs; who came first is first, also before a smaller desktop that would
//! fit, so that nobody waits for ever. Who asks no longer (a closed page) loses the place. Time and memory are arguments. Names are of
//! people on the roster and pools of the assignment, which bounds all of it.

use std::collections::HashMap;

/// Seconds after which somebody who does not ask is thought to have gone; pages ask every two.
const PATIENCE_S: u64 = 15;

/// Memory of the host's desktops, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// What all may have together.
    pub limit_mib: u64,
    /// What those have that run.
    pub used_mib: u64,
}

/// What becomes of a desktop that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// It is to be begun, by the caller; [`Line::begun`] says how that went.
    Begin,
    /// Somebody begins it.
    Starting,
    /// Beginning it failed. It is told once: who asks again tries again.
    Failed(String),
    /// There is no room.
    Waiting {
        /// Place in the line; 1 is the next.
        position: usize,
        /// What is lacking.
        reason: String,
    },
}

#[derive(Debug)]
struct Waiting {
    name: String,
    asked_unix_s: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Line {
    waiting: Vec<Waiting>,
    /// Those that are begun, with the MiB that they need.
    starting: HashMap<String, u64>,
    failed: HashMap<String, String>,
}

impl Line {
    /// Whether it is being begun.
    pub fn is_starting(&self, name: &str) -> bool {
        self.starting.contains_key(name)
    }

    /// Asks for a desktop that does not run.
    pub fn ask(&mut self, name: &str, wants_mib: u64, memory: Memory, now_unix_s: u64) -> Turn {
        if self.is_starting(name) {
            return Turn::Starting;
        }
        if let Some(why) = self.failed.remove(name) {
            return Turn::Failed(why);
        }
        if wants_mib > memory.limit_mib {
            self.leave(name);
            return Turn::Failed(format!(
                "it needs {wants_mib} MiB of memory, and all desktops of this branch server together may have {}",
                memory.limit_mib
            ));
        }
        let position = self.place(name, now_unix_s);
        let begun: u64 = self.starting.values().sum();
        let taken = memory.used_mib.saturating_add(begun);
        let fits = taken.saturating_add(wants_mib) <= memory.limit_mib;
        if position == 0 && fits {
            self.leave(name);
            self.starting.insert(name.to_owned(), wants_mib);
            return Turn::Begin;
        }
        let reason = match fits {
            true => "others came before".to_owned(),
            false => format!(
                "the branch server has no memory for another desktop now: {taken} of {} MiB are in use, and this one needs {wants_mib}",
                memory.limit_mib
            ),
        };
        Turn::Waiting {
            position: position + 1,
            reason,
        }
    }

    /// Its place, from 0. Those who have gone leave.
    fn place(&mut self, name: &str, now_unix_s: u64) -> usize {
        // A clock that was set back has nobody stay for long.
        self.waiting
            .retain(|one| one.name == name || one.asked_unix_s.abs_diff(now_unix_s) <= PATIENCE_S);
        match self.waiting.iter().position(|one| one.name == name) {
            Some(at) => {
                self.waiting[at].asked_unix_s = now_unix_s;
                at
            }
            None => {
                self.waiting.push(Waiting {
                    name: name.to_owned(),
                    asked_unix_s: now_unix_s,
                });
                self.waiting.len() - 1
            }
        }
    }

    /// Gives up its place.
    pub fn leave(&mut self, name: &str) {
        self.waiting.retain(|one| one.name != name);
    }

    /// Notes how beginning it went: why not, if not.
    pub fn begun(&mut self, name: &str, failed: Option<String>) {
        self.starting.remove(name);
        if let Some(why) = failed {
            self.failed.insert(name.to_owned(), why);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn memory(used_mib: u64) -> Memory {
        Memory {
            limit_mib: 4096,
            used_mib,
        }
    }

    fn position(turn: &Turn) -> usize {
        match turn {
            Turn::Waiting { position, .. } => *position,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn who_is_begun_has_its_room_before_it_runs() {
        let mut line = Line::default();
        assert_eq!(line.ask("a", 2048, memory(0), 0), Turn::Begin);
        assert_eq!(line.ask("a", 2048, memory(0), 0), Turn::Starting);
        assert_eq!(line.ask("b", 2048, memory(0), 0), Turn::Begin);
        let waits = line.ask("c", 1, memory(0), 0);
        assert_eq!(position(&waits), 1);
        assert!(
            format!("{waits:?}").contains("4096 of 4096 MiB"),
            "{waits:?}"
        );
        line.begun("a", None);
        // It runs now.
        assert_eq!(position(&line.ask("c", 1, memory(2048), 1)), 1);
        line.begun("b", Some("no kernel".into()));
        assert_eq!(line.ask("c", 1, memory(2048), 2), Turn::Begin);
        assert_eq!(
            line.ask("b", 1, memory(2048), 2),
            Turn::Failed("no kernel".into())
        );
        assert_eq!(line.ask("b", 1, memory(2048), 2), Turn::Begin);
    }

    #[test]
    fn who_came_first_is_first_and_who_went_away_is_not_waited_for() {
        let mut line = Line::default();
        assert_eq!(position(&line.ask("a", 2048, memory(4096), 0)), 1);
        assert_eq!(position(&line.ask("b", 512, memory(4096), 1)), 2);
        // It would fit, but the first would wait for ever then.
        let second = line.ask("b", 512, memory(3584), 2);
        assert_eq!(position(&second), 2);
        assert!(format!("{second:?}").contains("others"), "{second:?}");
        assert_eq!(position(&line.ask("b", 512, memory(3584), PATIENCE_S)), 2);
        let later = PATIENCE_S + 1;
        assert_eq!(line.ask("b", 512, memory(3584), later), Turn::Begin);
        // Who comes back stands behind.
        assert_eq!(position(&line.ask("c", 4096, memory(3584), later)), 1);
        assert_eq!(position(&line.ask("a", 2048, memory(3584), later)), 2);
        line.leave("c");
        assert_eq!(position(&line.ask("a", 2048, memory(3584), later)), 1);
    }

    #[test]
    fn what_never_fits_is_said_at_once_and_keeps_nobody_waiting() {
        let mut line = Line::default();
        assert!(
            matches!(line.ask("a", 5000, memory(0), 0), Turn::Failed(why) if why.contains("5000 MiB"))
        );
        assert_eq!(line.ask("b", 4096, memory(0), 0), Turn::Begin);
    }

    proptest! {
        /// Whatever is asked for and ends, in whatever order.
        #[test]
        fn what_is_begun_and_runs_never_exceeds_the_limit(
            steps in prop::collection::vec((0usize..6, 1u64..3000, 0u64..4), 1..200)
        ) {
            let (mut line, mut now) = (Line::default(), 0);
            let mut running: HashMap<String, u64> = HashMap::new();
            let mut begun: Vec<(String, u64)> = Vec::new();
            for (who, mib, what) in steps {
                now += 1;
                let name = format!("d{who}");
                let used: u64 = running.values().sum();
                match what {
                    0 | 1 if !running.contains_key(&name) => {
                        if line.ask(&name, mib, memory(used), now) == Turn::Begin {
                            begun.push((name, mib));
                        }
                    }
                    2 => {
                        if let Some((name, mib)) = begun.pop() {
                            line.begun(&name, None);
                            running.insert(name, mib);
                        }
                    }
                    _ => {
                        running.remove(&name);
                    }
                }
                let all: u64 = running.values().sum::<u64>() + begun.iter().map(|(_, mib)| mib).sum::<u64>();
                prop_assert!(all <= 4096, "{all}");
            }
        }
    }
}
