//! Bar charts as SVG text: one bar a system, its range, and the limit or reference as a line.

use std::fmt::Write;

use crate::row::{Row, figure};

const WIDTH: f64 = 760.0;
const LABEL: f64 = 110.0;
const VALUE: f64 = 110.0;
const BAR: f64 = 18.0;
const GAP: f64 = 8.0;
const TOP: f64 = 44.0;

/// A chart of rows that share bench, case and metric; red is a limit or else what another reached.
pub(crate) fn bars(title: &str, is_limit: bool, rows: &[&Row]) -> String {
    let height = TOP + rows.len() as f64 * (BAR + GAP) + 18.0;
    let limits = rows.iter().filter_map(|row| row.limit);
    let most = rows
        .iter()
        .map(|row| row.max)
        .chain(limits)
        .fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - LABEL - VALUE) / most;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height:.0}\" fill=\"#fff\"/>\n\
         <text x=\"8\" y=\"20\" font-size=\"14\" fill=\"#222\">{}</text>\n",
        escaped(title)
    );
    for (index, row) in rows.iter().enumerate() {
        let y = TOP + index as f64 * (BAR + GAP);
        let middle = y + BAR * 0.72;
        let colour = if row.system == "splice" {
            "#1769aa"
        } else {
            "#9aa7b0"
        };
        // Writing to a string cannot fail.
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{middle:.1}\" text-anchor=\"end\" fill=\"#222\">{}</text>\n\
             <rect x=\"{LABEL}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\n\
             <text x=\"{:.1}\" y=\"{middle:.1}\" fill=\"#222\">{}</text>\n",
            LABEL - 6.0,
            escaped(&row.system),
            (row.median * scale).max(0.5),
            LABEL + row.max.max(row.limit.unwrap_or(0.0)) * scale + 6.0,
            figure(row.median),
        );
        let line = |x: f64, colour: &str, y1: f64, y2: f64| {
            format!(
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{y1:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\" stroke-width=\"1.5\"/>\n"
            )
        };
        if row.n > 1 {
            let (from, to) = (LABEL + row.min * scale, LABEL + row.max * scale);
            let half = y + BAR / 2.0;
            let _ = writeln!(
                svg,
                "<line x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{half:.1}\" y2=\"{half:.1}\" stroke=\"#222\"/>"
            );
        }
        if let Some(limit) = row.limit {
            svg += &line(LABEL + limit * scale, "#c0392b", y - 2.0, y + BAR + 2.0);
        }
    }
    let _ = write!(
        svg,
        "<text x=\"8\" y=\"{:.1}\" font-size=\"10\" fill=\"#666\">red: {}; thin line: range of the runs</text>\n</svg>\n",
        height - 6.0,
        if is_limit {
            "no system can do better on this machine or line"
        } else {
            "what these are held against"
        }
    );
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::row::{Metric, Sample, rows};

    #[test]
    fn every_system_has_its_bar_and_nothing_leaves_the_picture() {
        let sample = |system: &str, value| Sample {
            case: "v1".into(),
            system: system.into(),
            metric: Metric::MbPerS,
            value,
            limit: Some(525.0),
        };
        let rows = rows(
            "ingest",
            &[
                sample("splice", 120.0),
                sample("a<b", 44.0),
                sample("a<b", 46.0),
            ],
        );
        let svg = bars("ingest v1 & more", true, &rows.iter().collect::<Vec<_>>());
        assert_eq!(svg.matches("<rect").count(), 3);
        assert!(svg.contains("a&lt;b") && svg.contains("v1 &amp; more"));
        let ends = svg
            .split("x2=\"")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap().parse::<f64>().unwrap());
        assert!(ends.into_iter().all(|x| (0.0..=WIDTH).contains(&x)));
    }
}
