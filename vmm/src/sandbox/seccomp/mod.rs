//! Which system calls a thread may make: a list for each [`Role`], kept by the kernel (seccomp).
//!
//! [`calls`] is the one table, with a reason for each entry. The process as a whole gets the union of all roles' lists ([`Filters`]); each
//! thread then gets its own list on top, which can only take away. Threads share their memory, so that a guest which breaks into one of
//! them can in the end act through others: the union is what bounds a hostile guest, the lists of roles make its way there longer.

pub mod calls;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::str::FromStr;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

use calls::{CALLS, Call, Is};

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Builds machines and waits for what ends them.
    Main,
    /// Starts other threads.
    Starter,
    /// Runs a processor, and what its guest configures of devices.
    Vcpu,
    /// A queue of a disk in this process.
    Disk,
    /// Keeps a disk's server supplied.
    Remote,
    /// Loads the memory of a machine that goes on from a snapshot.
    Pager,
    /// A network card.
    Net,
    /// Ports between guest and host.
    Ports,
    /// Any other device: it has its queues and its events, nothing else.
    Device,
    /// The screen's socket and its viewers.
    Screen,
    /// The serial console.
    Line,
    /// The control socket.
    Control,
    /// Waits for signals.
    Signals,
    /// The process outside, which is no part of the machine.
    Outer,
}

/// Roles inside of the sandbox.
pub const INNER: [Role; 13] = [
    Role::Main,
    Role::Starter,
    Role::Vcpu,
    Role::Disk,
    Role::Remote,
    Role::Pager,
    Role::Net,
    Role::Ports,
    Role::Device,
    Role::Screen,
    Role::Line,
    Role::Control,
    Role::Signals,
];

/// What becomes of a process that makes a system call which is not on its thread's list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Violation {
    /// The process is killed; the kernel's log names the call.
    #[default]
    Kill,
    /// The call is made, and the kernel's log names it. For finding out what a list lacks.
    Log,
    /// There are no lists.
    Off,
}

impl FromStr for Violation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "kill" => Ok(Self::Kill),
            "log" => Ok(Self::Log),
            "off" => Ok(Self::Off),
            _ => Err("kill, log or off".into()),
        }
    }
}

/// Why lists are not in force.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// A mistake of ours.
    #[error("a list of system calls cannot be made into a program")]
    Compile(#[source] seccompiler::BackendError),
    /// It was built without seccomp, or something else that runs us does not allow it.
    #[error("the kernel does not take a list of system calls; --seccomp off does without")]
    Apply(#[source] seccompiler::Error),
}

/// The lists as programs for the kernel.
pub struct Filters {
    /// A newer call that cannot be checked is answered as if it did not exist: the C library then uses the older one, whose flags are
    /// checked.
    older_clone: BpfProgram,
    process: BpfProgram,
    roles: BTreeMap<Role, BpfProgram>,
}

impl Filters {
    /// The lists of roles inside. `None`: there shall be none. To be called by the process that will keep to them, because its number is
    /// part of them.
    ///
    /// # Errors
    /// A mistake of ours.
    pub fn inner(violation: Violation) -> Result<Option<Self>, SeccompError> {
        let Some(action) = action(violation) else {
            return Ok(None);
        };
        let own = std::process::id();
        let of = |roles: &[Role]| program(roles, own, action.clone());
        let roles = INNER.map(|role| of(&[role]).map(|program| (role, program)));
        Ok(Some(Self {
            older_clone: older_clone()?,
            process: of(&INNER)?,
            roles: roles.into_iter().collect::<Result<_, _>>()?,
        }))
    }

    /// Bounds the calling thread, and all that it starts, by what all roles have together.
    pub(crate) fn enter_process(&self) -> Result<(), SeccompError> {
        apply_filter(&self.process).map_err(SeccompError::Apply)?;
        apply_filter(&self.older_clone).map_err(SeccompError::Apply)
    }

    /// Bounds the calling thread by a role's list.
    pub(crate) fn enter(&self, role: Role) -> Result<(), SeccompError> {
        self.roles.get(&role).map_or(Ok(()), |program| {
            apply_filter(program).map_err(SeccompError::Apply)
        })
    }
}

/// Bounds the outer process; `inner` is the only one that it may send signals to.
pub(crate) fn enter_outer(violation: Violation, inner: u32) -> Result<(), SeccompError> {
    let Some(action) = action(violation) else {
        return Ok(());
    };
    let program = program(&[Role::Outer], inner, action)?;
    apply_filter(&program).map_err(SeccompError::Apply)
}

fn action(violation: Violation) -> Option<SeccompAction> {
    match violation {
        Violation::Kill => Some(SeccompAction::KillProcess),
        Violation::Log => Some(SeccompAction::Log),
        Violation::Off => None,
    }
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, SeccompError> {
    SeccompFilter::new(rules, otherwise, matched, TargetArch::x86_64)
        .and_then(TryInto::try_into)
        .map_err(SeccompError::Compile)
}

fn older_clone() -> Result<BpfProgram, SeccompError> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let missing = SeccompAction::Errno(libc::ENOSYS as u32);
    compile(rules, SeccompAction::Allow, missing)
}

/// What any of these roles may do; `process` is the one that signals may be sent to.
fn program(
    roles: &[Role],
    process: u32,
    violation: SeccompAction,
) -> Result<BpfProgram, SeccompError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut unconditional = Vec::new();
    for call in CALLS.iter().filter(|call| call.is_for(roles)) {
        let of_call = rules.entry(call.number).or_default();
        if call.arguments.is_empty() {
            unconditional.push(call.number);
        } else {
            of_call.push(rule(call, process).map_err(SeccompError::Compile)?);
        }
    }
    // No rule means any arguments.
    for number in unconditional {
        rules.insert(number, Vec::new());
    }
    compile(rules, violation, SeccompAction::Allow)
}

fn rule(call: &Call, process: u32) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions = call.arguments.iter().map(|(index, is)| {
        let (operator, value) = match is {
            Is::Equal(value) => (SeccompCmpOp::Eq, *value),
            Is::Masked(mask, value) => (SeccompCmpOp::MaskedEq((*mask).into()), *value),
            Is::Process => (SeccompCmpOp::Eq, process),
        };
        // All arguments that are looked at are of 32 bits.
        SeccompCondition::new(*index, SeccompCmpArgLen::Dword, operator, value.into())
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}
