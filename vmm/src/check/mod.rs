//! Tells hardware KVM, ring-0-emulated KVM and no KVM apart, by running tiny guests.
//!
//! Looking at `/dev/kvm` or at CPU flags is not enough: there are machines whose `/dev/kvm` opens, creates VMs and
//! runs a guest's user mode at full speed, while its kernel mode goes through the host kernel's instruction emulator.
//! A desktop then dies minutes into its boot with an error that nobody understands. So the guests here run in kernel
//! mode, use the instructions that a desktop's kernel uses, and are timed.
//!
//! Everything is bounded in time: a guest that does not finish is kicked out (see [`guest`]).

mod classify;
mod guest;
mod host;
mod probes;
mod watchdog;

use std::time::Duration;

use kvm_ioctls::Kvm;
use vmm_api::{HostVirt, Probe, ProbeOutcome};

use classify::{Facts, classify};
use guest::{Outcome, run};
use probes::{ARITHMETIC_INSTRUCTIONS_PER_ROUND, Program};

/// The KVM API version; it has been this one since Linux 2.6.22 and never changes.
const API_VERSION: i32 = 12;

/// Time for one instruction's guest. It needs microseconds on hardware and about 100 µs where emulated.
const PROBE_TIME: Duration = Duration::from_millis(500);

/// Time for the timed loop.
const LOOP_TIME: Duration = Duration::from_secs(3);

/// Rounds of the first timed loop: 30,000 instructions, some 30 ms where kernel mode is emulated.
const ROUNDS_FIRST: u64 = 10_000;

/// Rounds of the second one, where the first was over too soon to be timed: about 20 ms on hardware.
const ROUNDS_SECOND: u64 = 20_000_000;

/// A first loop at least this long is a good enough measurement.
const TIMED_WELL: Duration = Duration::from_millis(5);

/// Finds out what this machine has. Takes some 100 ms, and never more than about 30 s.
///
/// While it runs, the signal SIGRTMIN+4 is handled by this module, because a guest that hangs is interrupted by it.
#[must_use]
pub fn host_virt() -> HostVirt {
    let cpu = host::cpu_virt();
    let device = host::open_kvm();
    let mut facts = Facts {
        cpu,
        device: Ok(()),
        probes: Vec::new(),
        instructions_per_second: None,
    };
    match device {
        Ok(kvm) => run_probes(&kvm, &mut facts),
        Err(failure) => facts.device = Err(failure),
    }
    classify(facts)
}

fn run_probes(kvm: &Kvm, facts: &mut Facts) {
    for program in probes::programs(kvm) {
        let probe = if program.offered {
            let ran = run(kvm, &program, PROBE_TIME);
            Probe {
                name: program.name.to_owned(),
                outcome: judge(&program, &ran.outcome),
                micros: micros(ran.took),
            }
        } else {
            Probe {
                name: program.name.to_owned(),
                outcome: ProbeOutcome::NotOffered,
                micros: 0,
            }
        };
        facts.probes.push(probe);
    }
    for rounds in [ROUNDS_FIRST, ROUNDS_SECOND] {
        let program = probes::arithmetic(rounds);
        let ran = run(kvm, &program, LOOP_TIME);
        let outcome = judge(&program, &ran.outcome);
        let finished = outcome == ProbeOutcome::Works;
        if finished {
            let instructions = (rounds * ARITHMETIC_INSTRUCTIONS_PER_ROUND) as f64;
            facts.instructions_per_second =
                Some((instructions / ran.took.as_secs_f64().max(1e-9)) as u64);
        }
        let is_measured = !finished || ran.took >= TIMED_WELL || rounds == ROUNDS_SECOND;
        if is_measured {
            facts.probes.insert(
                0,
                Probe {
                    name: program.name.to_owned(),
                    outcome,
                    micros: micros(ran.took),
                },
            );
            return;
        }
    }
}

fn judge(program: &Program, outcome: &Outcome) -> ProbeOutcome {
    match outcome {
        Outcome::Halted { result } if *result == program.expected => ProbeOutcome::Works,
        Outcome::Halted { result } => ProbeOutcome::Wrong {
            got: *result,
            expected: program.expected,
        },
        Outcome::NotEmulated => ProbeOutcome::NotEmulated,
        Outcome::Fault => ProbeOutcome::Fault,
        Outcome::TimedOut => ProbeOutcome::TimedOut,
        Outcome::Refused(error) => ProbeOutcome::Refused {
            error: error.clone(),
        },
    }
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}
