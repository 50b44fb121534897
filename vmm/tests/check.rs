//! `splice-vmm check` on the machine at hand, as another program sees it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Command;
use std::time::{Duration, Instant};

use vmm_api::{HostVirt, KvmKind, ProbeOutcome};

fn check(arguments: &[&str]) -> (Option<i32>, String) {
    let started = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_splice-vmm"))
        .arg("check")
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        started.elapsed() < Duration::from_secs(30),
        "the check took {:?}",
        started.elapsed()
    );
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
    )
}

#[test]
fn json_exit_status_and_evidence_agree() {
    let (status, json) = check(&["--json"]);
    let host: HostVirt = serde_json::from_str(&json).unwrap();
    assert_eq!(status, Some(i32::from(host.kind.exit_code())));
    match host.kind {
        KvmKind::Hardware => {
            assert_eq!(host.broken().count(), 0, "{json}");
            assert!(host.advice.is_none());
        }
        KvmKind::EmulatedRing0 => {
            // The arithmetic guest ran to its right result: it is KVM, only not hardware.
            assert_eq!(
                (host.probes[0].name.as_str(), &host.probes[0].outcome),
                ("arithmetic", &ProbeOutcome::Works)
            );
            assert!(host.instructions_per_second.unwrap() > 10_000, "{json}");
            assert!(host.advice.unwrap().contains("qemu"));
        }
        KvmKind::None => {
            assert!(!host.reasons.is_empty() && host.advice.is_some(), "{json}");
        }
    }
    // A processor that shows VT-x or AMD-V and lets us at it runs everything it offers.
    if !host.cpu.vmx && !host.cpu.svm {
        assert_ne!(
            host.kind,
            KvmKind::Hardware,
            "hardware KVM without VT-x or AMD-V: {json}"
        );
    }
}

#[test]
fn people_get_a_table_with_one_verdict() {
    let (_, text) = check(&[]);
    assert_eq!(
        text.lines()
            .filter(|line| line.starts_with("verdict"))
            .count(),
        1,
        "{text}"
    );
    assert!(
        text.lines().last().unwrap().starts_with("verdict"),
        "{text}"
    );
}
