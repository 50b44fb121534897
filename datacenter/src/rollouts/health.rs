//! What is asked of desktops before a version counts as good, and what is thought of one that runs it. Pure.
//!
//! It refuses to guess: a desktop that waits for its line, or that nobody has logged on to, is neither well nor bad.

use dedup::VersionId;
use serde::{Deserialize, Serialize};

/// What a branch must show before its wave counts as proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Gate {
    /// A desktop has booted.
    pub boot: bool,
    /// Somebody has logged on to it.
    pub log_in: bool,
    /// Its agent answers, or it answers on the network.
    pub alive: bool,
    /// So many desktops of a pool at a branch; 0: time alone.
    pub desktops: u32,
    /// A desktop that is up and has not booted for so long has failed, in seconds.
    pub boot_s: u64,
    /// A branch is watched at least so long, in seconds.
    pub soak_s: u64,
    /// Without enough desktops for so long the rollout pauses, in seconds.
    pub wait_s: u64,
    /// More failed desktops of a pool at a branch than this turn the rollout back.
    pub failures: u32,
}

/// What a desktop's machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Life {
    /// It runs.
    Up,
    /// It cannot go on for want of the line or of room: that says nothing of its version.
    Held,
    /// It, or its volume, failed.
    Failed,
    /// It is not running.
    Down,
}

/// A desktop that runs the new version, as its branch told.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DesktopSeen {
    /// Its name at the branch.
    pub name: String,
    /// What its machine does.
    pub life: Life,
    /// For how long, in seconds, by the branch's clock.
    pub up_s: u64,
    /// It has booted.
    pub boot: bool,
    /// Somebody is logged on.
    pub log_in: bool,
    /// Its agent answers, or it answers on the network.
    pub alive: bool,
}

/// What is seen of a site.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Seen {
    /// What the pool is assigned; none if there is no such pool any more, or nothing may be decided about it by itself.
    pub version: Option<VersionId>,
    /// The branch follows what it was assigned last.
    pub follows: bool,
    /// All of the new version is at the branch.
    pub whole: bool,
    /// The pool's desktops that run the new version.
    pub desktops: Vec<DesktopSeen>,
}

/// What is thought of a desktop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It has shown all that is asked for.
    Healthy,
    /// It will not.
    Failed,
    /// Nobody knows yet.
    Pending,
}

impl Gate {
    /// What is thought of a desktop.
    pub fn verdict(&self, desktop: &DesktopSeen) -> Verdict {
        let booted = (!self.boot || desktop.boot) && (!self.alive || desktop.alive);
        match desktop.life {
            Life::Failed => Verdict::Failed,
            Life::Down | Life::Held => Verdict::Pending,
            Life::Up if booted && (!self.log_in || desktop.log_in) => Verdict::Healthy,
            // That nobody logs on is no fault of a desktop.
            Life::Up if !booted && desktop.up_s >= self.boot_s => Verdict::Failed,
            Life::Up => Verdict::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATE: Gate = Gate {
        boot: true,
        log_in: true,
        alive: true,
        desktops: 1,
        boot_s: 600,
        soak_s: 0,
        wait_s: 3600,
        failures: 0,
    };

    fn desktop(life: Life, up_s: u64, [boot, log_in, alive]: [bool; 3]) -> DesktopSeen {
        DesktopSeen {
            name: "alice".into(),
            life,
            up_s,
            boot,
            log_in,
            alive,
        }
    }

    #[test]
    fn a_desktop_is_well_with_all_signs_and_failed_without_those_of_its_own() {
        use Verdict::{Failed, Healthy, Pending};
        for (life, up_s, signs, thought) in [
            (Life::Up, 1, [true, true, true], Healthy),
            (Life::Up, 9999, [true, false, true], Pending),
            (Life::Up, 599, [true, true, false], Pending),
            (Life::Up, 600, [true, true, false], Failed),
            (Life::Up, 600, [false, true, true], Failed),
            (Life::Held, 9999, [false, false, false], Pending),
            (Life::Down, 0, [true, true, true], Pending),
            (Life::Failed, 0, [true, true, true], Failed),
        ] {
            let thought_of = GATE.verdict(&desktop(life, up_s, signs));
            assert_eq!(thought_of, thought, "{life:?} {up_s} {signs:?}");
        }
    }

    #[test]
    fn signs_that_are_not_asked_for_are_not_missed() {
        let gate = Gate {
            log_in: false,
            alive: false,
            ..GATE
        };
        let booted = desktop(Life::Up, 9999, [true, false, false]);
        assert_eq!(gate.verdict(&booted), Verdict::Healthy);
    }
}
