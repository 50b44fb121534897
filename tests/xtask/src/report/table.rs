//! The report for a terminal.

use std::fmt::Write;

use super::{Report, Step};

/// Bytes in the unit that links are sold in: 10⁶.
pub(crate) fn mb(bytes: u64) -> String {
    let mb = bytes as f64 / 1e6;
    if mb < 9.95 {
        format!("{mb:.2} MB")
    } else {
        format!("{mb:.1} MB")
    }
}

/// The whole report as text.
pub(super) fn render(report: &Report) -> String {
    let mut text = String::new();
    let image = &report.image;
    let machine = match report.machine.as_str() {
        "qemu-tcg" => "QEMU without KVM (qemu-tcg)",
        "qemu-kvm" => "QEMU with KVM (qemu-kvm)",
        "splice" => "splice-vmm",
        "" => "not known",
        other => other,
    };
    put(
        &mut text,
        format_args!(
            "line: {} ({})    desktops: {machine}",
            report.profile, report.link.summary
        ),
    );
    if !report.machine_reason.is_empty() {
        put(
            &mut text,
            format_args!("why that machine: {}", report.machine_reason),
        );
    }
    put(
        &mut text,
        format_args!(
            "disk: {} for the guest, {} of data, {} as one zstd stream",
            mb(image.virtual_bytes),
            mb(image.data_bytes),
            mb(image.compressed_bytes)
        ),
    );
    put(&mut text, format_args!(""));
    put(
        &mut text,
        format_args!(
            "{:15} {:6} {:>9} {:>9} {:>11} {:>11} {:>8} {:>10}  login",
            "step", "", "seconds", "limit", "wire", "refused", "demand", "prefetch"
        ),
    );
    for step in in_order(report) {
        let login = if step.login_seen { "seen" } else { "" };
        put(
            &mut text,
            format_args!(
                "{:15} {:6} {:9.1} {:9.1} {:>11} {:>11} {:8} {:10}  {login}",
                step.name,
                if step.ok { "ok" } else { "FAILED" },
                step.seconds,
                step.limit_seconds,
                mb(step.wire_bytes),
                mb(step.refused_bytes),
                step.demand_chunks,
                step.prefetch_chunks
            ),
        );
        if !step.note.is_empty() {
            put(&mut text, format_args!("                {}", step.note));
        }
    }
    for name in &report.skipped {
        put(
            &mut text,
            format_args!("{name:15} not run: there is no second disk"),
        );
    }
    if let Some(rsync) = &report.rsync {
        put(
            &mut text,
            format_args!(
                "\nrsync -z on the same update, same line: {}, {:.1} s. Splice moved {:.2} times that (target: at most {}): {}",
                mb(rsync.wire_bytes),
                rsync.seconds,
                rsync.ratio,
                rsync.target,
                if rsync.ok { "ok" } else { "MISSED" }
            ),
        );
    }
    if let Some(error) = &report.error {
        put(
            &mut text,
            format_args!(
                "\nended early: {}",
                error.lines().next().unwrap_or_default()
            ),
        );
    }
    text
}

/// Steps and what was done between them, by time.
pub(super) fn in_order(report: &Report) -> Vec<&Step> {
    let mut steps: Vec<&Step> = report.steps.iter().chain(&report.extra_steps).collect();
    steps.sort_by(|a, b| a.begun_seconds.total_cmp(&b.begun_seconds));
    steps
}

fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("writing to a string does not fail");
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn every_step_has_its_row_and_failures_stand_out() {
        let mut report = sample::report();
        report.steps[2].ok = false;
        report.steps[2].note = "took too long".into();
        let text = render(&report);
        assert!(
            text.contains(
                "boot-v1         ok          27.5       5.0     31.4 MB     0.00 MB        0          0  seen"
            ),
            "{text}"
        );
        assert!(
            text.contains("prestage-v2     FAILED") && text.contains("took too long"),
            "{text}"
        );
        assert!(
            text.contains("0.62 times that (target: at most 1.1): ok"),
            "{text}"
        );
    }
}
