//! The report as one page that needs nothing else: no script, no font, no file beside it. Light and dark follow the
//! reader's own setting.

use super::plot::{self, escape};
use super::table::in_order;
use super::{Report, Step, mb};

/// The whole page.
pub(super) fn page(report: &Report) -> String {
    let verdict = if report.is_ok() {
        r#"<b class="good">every step ok</b>"#.to_owned()
    } else {
        let failed = report
            .steps
            .iter()
            .chain(&report.extra_steps)
            .filter(|step| !step.ok)
            .count();
        match (failed, &report.error) {
            (0, None) => r#"<b class="bad">a target is missed</b>"#.to_owned(),
            (0, Some(_)) => r#"<b class="bad">ended early</b>"#.to_owned(),
            (n, _) => format!(
                r#"<b class="bad">{n} step{} failed</b>"#,
                if n == 1 { "" } else { "s" }
            ),
        }
    };
    let steps = in_order(report);
    let end = steps
        .iter()
        .map(|step| step.begun_seconds + step.seconds)
        .fold(1.0, f64::max);
    let facts = [
        ("verdict", verdict),
        (
            "line",
            strong(&format!("{} ({})", report.profile, report.link.summary)),
        ),
        (
            "desktops on",
            strong(if report.machine.is_empty() {
                "not known"
            } else {
                &report.machine
            }),
        ),
        ("data in the disk", strong(&mb(report.image.data_bytes))),
        (
            "as one zstd stream",
            strong(&mb(report.image.compressed_bytes)),
        ),
    ];
    let facts: String = facts
        .iter()
        .map(|(name, value)| format!("<div>{value}<span>{name}</span></div>"))
        .collect();
    let error = report.error.as_ref().map_or(String::new(), |error| {
        format!(
            r#"<h2>What ended the run</h2><pre class="bad scroll">{}</pre>"#,
            escape(error)
        )
    });
    let why = if report.machine_reason.is_empty() {
        String::new()
    } else {
        format!(
            "<p>Why desktops ran on that machine: {}.</p>",
            escape(&report.machine_reason)
        )
    };
    let lines: String = report
        .traces
        .iter()
        .map(|trace| {
            format!(
                r#"<p class="key">{}</p>{}"#,
                escape(&trace.link),
                plot::line(trace, &report.link, &steps, end)
            )
        })
        .collect();
    let boots = if report.boots.is_empty() {
        String::new()
    } else {
        format!(
            r#"<h2>Boots</h2><p>From the order to start to the login prompt on the serial console.</p>
<p class="key"><span class="swatch fetch"></span>kernel and initrd arrive<span class="swatch firmware"></span>the machine starts<span class="swatch down"></span>the guest boots</p>
{}"#,
            plot::boots(&report.boots)
        )
    };
    format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Splice demo: {profile}</title>
<style>
{style}</style>
</head>
<body>
<h1>Splice demo</h1>
<p>One datacenter, two branches and an emulated line on one machine. Times on a machine without hardware KVM say nothing
of a branch server; bytes do.</p>
<div class="facts">{facts}</div>
{why}
{error}
<h2>Steps</h2>
<p>“Wire” is what the senders put on the line; “refused” is the part of it that met a full queue or a cut line and was sent
again. “Limit” is the least time in which the line can carry the rest. “Demand” chunks were waited for by a guest; “prefetch”
chunks came before they were asked for.</p>
<div class="scroll">{table}</div>
<h2>Traffic</h2>
<p>Bytes that the senders put on each line, every 250 ms. Numbers are the steps of the table.</p>
<p class="key"><span class="swatch down"></span>to the branch<span class="swatch up"></span>to the datacenter</p>
{lines}
<h2>Bytes on the line</h2>
<p>Both directions, protocol included, against copying the whole disk compressed.</p>
{bytes}
{boots}
</body>
</html>
"#,
        profile = escape(&report.profile),
        style = include_str!("style.css"),
        table = table(&steps),
        bytes = plot::bytes(&byte_rows(report, &steps)),
    )
}

fn table(steps: &[&Step]) -> String {
    let head = [
        "", "step", "", "seconds", "limit", "wire", "refused", "demand", "prefetch", "login",
    ];
    let mut rows: String = head.iter().map(|name| format!("<th>{name}</th>")).collect();
    for (number, step) in (1..).zip(steps) {
        let (class, verdict) = if step.ok {
            ("good", "ok")
        } else {
            ("bad", "failed")
        };
        rows += &format!(
            r#"</tr><tr{noted}><td>{number}</td><td>{name}</td><td class="{class}">{verdict}</td><td>{:.1}</td><td>{:.1}</td><td>{wire}</td><td>{refused}</td><td>{}</td><td>{}</td><td>{login}</td>"#,
            step.seconds,
            step.limit_seconds,
            step.demand_chunks,
            step.prefetch_chunks,
            noted = if step.note.is_empty() {
                ""
            } else {
                r#" class="noted""#
            },
            name = escape(&step.name),
            wire = mb(step.wire_bytes),
            refused = mb(step.refused_bytes),
            login = if step.login_seen { "seen" } else { "" },
        );
        if !step.note.is_empty() {
            rows += &format!(
                r#"</tr><tr><td></td><td class="note" colspan="9">{}</td>"#,
                escape(&step.note)
            );
        }
    }
    format!("<table><tr>{rows}</tr></table>")
}

fn byte_rows(report: &Report, steps: &[&Step]) -> Vec<(String, u64, u64)> {
    let mut rows: Vec<_> = steps
        .iter()
        .map(|step| (step.name.clone(), step.down_bytes, step.up_bytes))
        .collect();
    if report.image.compressed_bytes > 0 {
        rows.insert(
            0,
            (
                "whole disk, zstd".to_owned(),
                report.image.compressed_bytes,
                0,
            ),
        );
    }
    rows
}

fn strong(text: &str) -> String {
    format!("<b>{}</b>", escape(text))
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn the_page_stands_alone_and_has_every_step() {
        let report = sample::report();
        let page = page(&report);
        for step in &report.steps {
            assert!(page.contains(&step.name), "{}", step.name);
        }
        for outside in ["http:", "https:", "<script", "src=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("every step ok") && page.contains("prefers-color-scheme: dark"));
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert!(!page.contains("NaN"));
    }

    #[test]
    fn a_failed_run_says_so_and_why() {
        let mut report = sample::report();
        report.steps[1].ok = false;
        report.error = Some("\"login:\" on the <serial> console".into());
        let page = page(&report);
        assert!(
            page.contains("1 step failed") && page.contains("&lt;serial&gt;"),
            "{page}"
        );
    }
}
