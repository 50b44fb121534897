//! What a running machine is asked over its control socket: one JSON object a line, one answer a line.

use serde::{Deserialize, Serialize};

/// Most processors of a machine: local APIC ids of one byte, and more than a desktop uses.
pub const VCPUS_MAX: u8 = 64;

/// Longest line of either side, bytes.
pub const LINE_BYTES_MAX: usize = 4096;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Command {
    /// How it is.
    Status,
    /// Press the power button: a guest that listens shuts down.
    PowerButton,
    /// Stop its processors.
    Pause,
    /// Let them go on.
    Resume,
    /// Ask the guest for so much of its memory, MiB.
    Balloon {
        /// How much in all; 0 gives it all back.
        mib: u32,
    },
    /// Save it; it is paused meanwhile. The files are handed in with this line as descriptors (SCM_RIGHTS), empty and open for writing:
    /// first the one for its state, then the one for its memory. Its disks are not in there: a machine that goes on from it needs them as
    /// they are at this moment.
    Snapshot {
        /// What it does when it was saved.
        #[serde(default)]
        then: Then,
    },
    /// Pull a network card's cable, or put it in again.
    Link {
        /// Which card, the first is 0.
        card: u8,
        /// In.
        up: bool,
    },
    /// End it now, as if the power went.
    Quit,
}

/// What a machine does when it was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Then {
    /// What it did before.
    #[default]
    GoOn,
    /// It ends, without having run again: its disks stay as the snapshot needs them.
    Quit,
}

impl Command {
    /// Whether the machine ends when it was done.
    #[must_use]
    pub fn ends(&self) -> bool {
        matches!(self, Self::Quit | Self::Snapshot { then: Then::Quit })
    }
}

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineState {
    /// Its processors run.
    Running,
    /// They do not.
    Paused,
}

/// How a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineStatus {
    /// What it is doing.
    pub state: MachineState,
    /// Memory that it was given, MiB.
    pub memory_mib: u64,
    /// Memory that its guest has given back through the balloon, MiB.
    pub balloon_mib: u32,
    /// Processors.
    pub vcpus: u8,
    /// Times that the guest has reset it.
    pub resets: u32,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It was done.
    Done,
    /// How it is.
    Status(MachineStatus),
    /// It was not, for this reason.
    Refused(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_answers_are_as_documented() {
        let line = |command: &Command| serde_json::to_string(command).expect("JSON");
        assert_eq!(line(&Command::PowerButton), r#"{"do":"power-button"}"#);
        assert_eq!(
            line(&Command::Balloon { mib: 256 }),
            r#"{"do":"balloon","mib":256}"#
        );
        let snapshot: Command = serde_json::from_str(r#"{"do":"snapshot"}"#).expect("JSON");
        assert_eq!(snapshot, Command::Snapshot { then: Then::GoOn });
        assert!(!snapshot.ends());
        let last = Command::Snapshot { then: Then::Quit };
        assert_eq!(line(&last), r#"{"do":"snapshot","then":"quit"}"#);
        assert!(last.ends() && Command::Quit.ends());
        assert_eq!(
            line(&Command::Link { card: 0, up: false }),
            r#"{"do":"link","card":0,"up":false}"#
        );
        let answer = serde_json::to_string(&Answer::Refused("no".into())).expect("JSON");
        assert_eq!(answer, r#"{"refused":"no"}"#);
        let wrong: Result<Command, _> = serde_json::from_str(r#"{"do":"explode"}"#);
        assert!(wrong.is_err());
    }
}
