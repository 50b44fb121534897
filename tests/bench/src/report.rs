//! `bench report`: `docs/performance.md` and its plots from the files that `--json` wrote. Figures as they are, met or not.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::row::{Metric, Results, Row, figure};
use crate::svg::bars;
use crate::tree;

/// Below this share of a limit nothing is said to be at it.
const AT_LIMIT: f64 = 0.95;

/// Which files, and where to.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What --json wrote; of two files with the same bench the later one counts.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The folder of performance.md and performance/ [default: docs/ of the checkout].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// What the figures are to reach, whether they do, and what comes next where not: judged by people, hence not made from the files.
const TARGETS: &str = include_str!("../targets.md");

/// What each bench is, for its reader.
const ABOUT: [(&str, &str); 7] = [
    (
        "ingest",
        "A 10 GiB desktop disk into an empty store, then its upgrade. MB/s are of bytes that are not zero. The limit of `v1` is zstd level 3 on all cores over data in memory; of what follows, reading from the page cache. Ours reads every new chunk back before a version is visible; the peers do not.",
    ),
    (
        "update",
        "From version to version: bytes that crossed the emulated line (100 Mbit/s, 20 ms) both ways, index included; for tools without a protocol, what their store grows by. The reference of bytes is the best pairwise delta by a tool that has both disks at hand, which is no limit; the limit of seconds is the system's own bytes at the line's rate. Ours is encoded before the line is measured: `…-encode` is the datacenter's work for that, `cpu_s` of the case itself its work while it sends. `mb_per_s` of ours is the new chunks by all of the branch's CPU seconds, receiving and storing included; of the delta tools, the whole disk's data by decoding time.",
    ),
    (
        "link",
        "Payload that arrived after the first ten round trips as a share of C·(1−p); packet headers are in what is missing to 1. Losses and delay both ways, a queue of one round trip. `demand-idle-…`: what two guests wait that ask for 16 KiB now and then; `demand-…`: the same guests on the same connection while it is filled. What is not answered at the end counts as what it has waited. `outage-…`: seconds from the end of a 10 s cut until half a second carries 80 % of what it did before. At 1 Gbit/s the processors are the limit, the emulator's work included.",
    ),
    (
        "read",
        "fio on the NBD export, against qemu-nbd and nbdkit on the raw file, all from the page cache. `raw` is the file itself (pread; io_uring at depth), and the others' limit; of sequential reads its best run, which a server that reads ahead better than the kernel can still pass. `-restarted`: the server was restarted a moment ago.",
    ),
    (
        "write",
        "The same for writing, each peer on a copy of its own with all blocks allocated; `write4k-flush` is a flush behind every write, on `raw` an fdatasync.",
    ),
    (
        "boot",
        "A recorded boot of the desktop, replayed on a desktop's export over 100 Mbit/s and 20 ms: in the guest's order, with its parallelism and its thinking scaled to 15 s (`-nothink`: none). `local`: the raw file. `cold`: the branch holds nothing; `cold-previous`: the whole previous version, which has been booted elsewhere before the next was published, so that the next has what was carried over of its boot profile (`-noprofile`: nobody has booted it); `cold-profile`: nothing, but the version's boot profile is known; `warm`: everything, and for `raw` the file behind nbdkit, from the page cache. `…-start`: seconds of them until the desktop was there. The limit is the thinking or, of cold boots, what the guest touches (pieces of 16 KiB, zstd level 3) at 95 % of the line's rate, and a round trip.",
    ),
    (
        "storm",
        "As `boot`, many desktops of one pool at once. `seconds` is the last one's end, `wire_bytes` are beside those that one cold boot touches; `stored_bytes` is what the branch read from its disk, for `warm-…` with an empty page cache, beside the distinct blocks that a guest reads.",
    ),
];

/// What stands in the last column.
fn held_against(bench: &str, metric: Metric) -> &'static str {
    match (bench, metric) {
        ("update", Metric::WireBytes) | ("storm", Metric::StoredBytes) => "reference",
        _ => "limit",
    }
}

/// Writes page and plots.
///
/// # Errors
/// A file cannot be read or written.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut results = Vec::new();
    for file in &options.files {
        let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
        let result: Results =
            serde_json::from_slice(&bytes).with_context(|| file.display().to_string())?;
        results.push(result);
    }
    let out = options.out.clone().unwrap_or_else(|| tree().join("docs"));
    let plots = out.join("performance");
    std::fs::create_dir_all(&plots).with_context(|| plots.display().to_string())?;
    for entry in std::fs::read_dir(&plots)
        .context("the folder of plots")?
        .flatten()
    {
        if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "svg")
        {
            std::fs::remove_file(entry.path()).context("an old plot")?;
        }
    }
    let page = render(&results, |name, svg| {
        let path = plots.join(name);
        std::fs::write(&path, svg).with_context(|| path.display().to_string())
    })?;
    let path = out.join("performance.md");
    std::fs::write(&path, page).with_context(|| path.display().to_string())?;
    println!("{}", path.display());
    Ok(())
}

fn render(results: &[Results], mut plot: impl FnMut(&str, &str) -> Result<()>) -> Result<String> {
    let mut page = String::from(
        "# Performance\n\nMade by `./x bench report` from what `./x bench` measured; figures as they are, met or not. Medians, with the range where \
         there is more than one run. A limit is what no system can beat on that machine or line; a reference is what somebody else reached. Runs below a load of 0.5 are of a \
         quiet machine; in others bytes hold, and seconds are as good as the neighbours let them be.\n\n\
         To repeat it: `./x bench all --quick --json bench.json` (45 minutes on two quiet cores) or the same without `--quick` (more \
         lines, sizes and delta tools, and what the quick run has of ours three times; two hours and a quarter), then `./x bench report bench.json`. The desktop disks are made once before, which takes half an hour more. An interrupted run goes on \
         when it is given again.\n",
    );
    page += TARGETS;
    let mut any = false;
    for (bench, about) in ABOUT {
        let Some(result) = results
            .iter()
            .rev()
            .find(|result| result.rows.iter().any(|row| row.bench == bench))
        else {
            continue;
        };
        any = true;
        let rows: Vec<&Row> = result
            .rows
            .iter()
            .filter(|row| row.bench == bench)
            .collect();
        let host = &result.host;
        // Writing to a string cannot fail, here and below.
        let _ = write!(
            page,
            "\n## {bench}\n\n{about}\n\n{}; {} cores, {:.0} GB, Linux {}; load {:.1} before and {:.1} after{}.\n",
            if host.cpu.is_empty() {
                "unknown processor"
            } else {
                &host.cpu
            },
            host.cores,
            host.memory_gb,
            host.kernel,
            host.load_before,
            host.load_after,
            if result.quick { "; a quick run" } else { "" },
        );
        for metric in metrics(&rows) {
            let of_metric: Vec<&Row> = rows
                .iter()
                .copied()
                .filter(|row| row.metric == metric)
                .collect();
            page += &table(bench, metric, &of_metric);
            for case in cases(&of_metric) {
                let of_case: Vec<&Row> = of_metric
                    .iter()
                    .copied()
                    .filter(|row| row.case == case)
                    .collect();
                // One bar says nothing; and the contract's first metrics are the ones people ask for.
                if of_case.len() > 1 && is_headline(bench, metric, &case) {
                    let name = format!("{bench}-{case}-{}.svg", metric.name());
                    let title = format!("{bench} {case}: {} ({})", metric.name(), metric.unit());
                    plot(
                        &name,
                        &bars(&title, held_against(bench, metric) == "limit", &of_case),
                    )?;
                    let _ = writeln!(page, "\n![{title}](performance/{name})");
                }
            }
        }
        let head = format!("{bench}: ");
        for note in result
            .notes
            .iter()
            .filter_map(|note| note.strip_prefix(&head))
        {
            let _ = writeln!(page, "\nNote: {note}");
        }
        let missing: Vec<_> = result
            .missing
            .iter()
            .filter(|missing| missing.bench == bench)
            .collect();
        if !missing.is_empty() {
            page += "\nNot measured:\n\n";
            for missing in missing {
                let reason = missing.reason.lines().next().unwrap_or_default();
                let _ = writeln!(page, "- {} ({}): {reason}", missing.system, missing.what);
            }
        }
    }
    if !any {
        bail!("the files hold no rows");
    }
    Ok(page)
}

fn is_headline(bench: &str, metric: Metric, case: &str) -> bool {
    let restarted = case.ends_with("-restarted") || case.ends_with("-index");
    match bench {
        "ingest" => matches!(metric, Metric::MbPerS | Metric::StoredBytes) && !restarted,
        "update" => matches!(metric, Metric::WireBytes | Metric::Seconds) && !restarted,
        "link" => matches!(
            metric,
            Metric::GoodputShare | Metric::P99Us | Metric::Seconds
        ),
        "read" | "write" => {
            metric
                == (if case == "seq1m" {
                    Metric::MbPerS
                } else {
                    Metric::Iops
                })
                && !restarted
        }
        _ => metric == Metric::Seconds,
    }
}

fn metrics(rows: &[&Row]) -> Vec<Metric> {
    let mut metrics = Vec::new();
    for row in rows {
        if !metrics.contains(&row.metric) {
            metrics.push(row.metric);
        }
    }
    metrics
}

fn cases(rows: &[&Row]) -> Vec<String> {
    let mut cases = Vec::new();
    for row in rows {
        if !cases.contains(&row.case) {
            cases.push(row.case.clone());
        }
    }
    cases
}

/// One line a case, one column a system.
fn table(bench: &str, metric: Metric, rows: &[&Row]) -> String {
    let mut systems: Vec<&str> = Vec::new();
    for row in rows {
        if !systems.contains(&row.system.as_str()) {
            systems.push(&row.system);
        }
    }
    let mut text = format!(
        "\n| {} ({}) | {} | {} |\n|---|",
        metric.name(),
        metric.unit(),
        systems.join(" | "),
        held_against(bench, metric)
    );
    text += &"---:|".repeat(systems.len() + 1);
    text.push('\n');
    for case in cases(rows) {
        let of_case = || rows.iter().filter(|row| row.case == case);
        let best = of_case().map(|row| row.median);
        let best = if metric.more_is_better() {
            best.max_by(f64::total_cmp)
        } else {
            best.min_by(f64::total_cmp)
        };
        let _ = write!(text, "| {case} |");
        for system in &systems {
            let cell = of_case()
                .find(|row| row.system == **system)
                .map(|row| cell(row, best, held_against(bench, metric) == "limit"))
                .unwrap_or_default();
            let _ = write!(text, " {cell} |");
        }
        // Systems may have limits of their own (their own bytes at the line's rate); ours is shown.
        let limit = of_case()
            .find(|row| row.system == "splice")
            .or_else(|| of_case().next());
        let limit = limit
            .and_then(|row| row.limit)
            .map(figure)
            .unwrap_or_default();
        let _ = writeln!(text, " {limit} |");
    }
    text
}

fn cell(row: &Row, best: Option<f64>, is_limit: bool) -> String {
    let range = if row.n > 1 {
        format!(" ({}–{})", figure(row.min), figure(row.max))
    } else {
        String::new()
    };
    let text = format!("{}{range}", figure(row.median));
    let at_limit = row.limit.filter(|_| is_limit).is_some_and(|limit| {
        let share = if row.metric.more_is_better() {
            row.median / limit
        } else {
            limit / row.median
        };
        share >= AT_LIMIT
    });
    match (best == Some(row.median), at_limit) {
        (true, _) => format!("**{text}**"),
        (false, true) => format!("*{text}*"),
        (false, false) => text,
    }
}

/// Reads a results file, for tests.
#[cfg(test)]
fn example() -> Results {
    use crate::row::{Host, Missing, Sample, rows};
    let sample = |system: &str, value| Sample {
        case: "v1".into(),
        system: system.into(),
        metric: Metric::MbPerS,
        value,
        limit: Some(500.0),
    };
    Results {
        bench: "ingest".into(),
        quick: true,
        ended_unix_s: 0,
        host: Host::default(),
        rows: rows(
            "ingest",
            &[
                sample("splice", 80.0),
                sample("borg", 120.0),
                sample("borg", 118.0),
            ],
        ),
        missing: vec![Missing {
            bench: "ingest".into(),
            what: "all cases".into(),
            system: "desync".into(),
            reason: "not in Debian".into(),
        }],
        notes: vec!["ingest: a sentence.".into(), "boot: another.".into()],
    }
}

/// Where the page of the tree is.
#[cfg(test)]
fn folder() -> &'static std::path::Path {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_page_shows_figures_that_were_not_met_too() {
        let mut plots = Vec::new();
        let page = render(&[example()], |name, svg| {
            plots.push(name.to_owned());
            assert!(svg.starts_with("<svg"));
            Ok(())
        })
        .unwrap();
        assert!(
            page.contains("| v1 | 80.00 | **119.0 (118.0–120.0)** | 500.0 |"),
            "{page}"
        );
        assert!(page.contains("desync (all cases): not in Debian"), "{page}");
        assert!(page.contains("Note: a sentence.") && !page.contains("another"));
        assert_eq!(plots, ["ingest-v1-mb_per_s.svg"]);
    }

    #[test]
    fn the_committed_figures_make_the_committed_page() {
        let results = folder().join("results");
        let Ok(entries) = std::fs::read_dir(&results) else {
            return;
        };
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        let results: Vec<Results> = files
            .iter()
            .map(|file| serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap())
            .collect();
        let page = render(&results, |_, _| Ok(())).unwrap();
        let committed =
            std::fs::read_to_string(folder().join("../../docs/performance.md")).unwrap();
        assert_eq!(
            page, committed,
            "run ./x bench report tests/bench/results/*.json"
        );
    }
}
