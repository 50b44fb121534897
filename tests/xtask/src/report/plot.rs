//! Plots as inline SVG. Colours are the page's CSS variables, so that both colour schemes work; every mark has a title
//! that a pointer shows, and every plot is drawn from figures that stand in a table as well.

use std::fmt::Write;

use super::{Boot, LinkRates, LinkTrace, Step, mb};

/// Drawing units; the page scales them to its width.
const WIDTH: f64 = 960.0;
const LEFT: f64 = 130.0;
const RIGHT: f64 = 90.0;
const TOP: f64 = 22.0;
const BOTTOM: f64 = 30.0;
const LINE_HEIGHT: f64 = 150.0;
const ROW: f64 = 28.0;

/// Points of a curve; more than this cannot be told apart.
const POINTS_MAX: usize = 440;

/// What an empty plot's scale ends at, since no scale can end at zero.
const NOT_ZERO: f64 = 1e-9;

/// A linear scale from values to drawing units.
struct Scale {
    max: f64,
    from: f64,
    to: f64,
}

impl Scale {
    fn at(&self, value: f64) -> f64 {
        self.from + (self.to - self.from) * (value / self.max).clamp(0.0, 1.0)
    }

    /// Round values to mark: from zero, at most `count` steps of 1, 2 or 5 times a power of ten.
    fn ticks(&self, count: u32) -> Vec<f64> {
        let rough = self.max / f64::from(count);
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .map(|m| m * power)
            .into_iter()
            .find(|s| *s >= rough)
            .unwrap_or(rough);
        (0..=count)
            .map(|n| f64::from(n) * step)
            .take_while(|tick| *tick <= self.max * 1.0001)
            .collect()
    }
}

/// A horizontal scale over the plot's width; `max` is kept off zero.
fn across(max: f64) -> Scale {
    Scale {
        max: max.max(1e-9),
        from: LEFT,
        to: WIDTH - RIGHT,
    }
}

/// Mbit/s on one link over time, with the steps behind it.
pub(super) fn line(trace: &LinkTrace, rates: &LinkRates, steps: &[&Step], seconds: f64) -> String {
    let points = rates_of(trace);
    let line_mbit = rates.down_bits_per_second as f64 / 1e6;
    let peak = points
        .iter()
        .map(|point| point.down.max(point.up))
        .fold(line_mbit, f64::max);
    let x = across(seconds);
    let y = Scale {
        max: (peak * 1.05).max(NOT_ZERO),
        from: TOP + LINE_HEIGHT,
        to: TOP,
    };
    let height = TOP + LINE_HEIGHT + BOTTOM;
    let mut svg = open(height, &format!("traffic on {} over time", trace.link));
    for (number, step) in (1..).zip(steps) {
        let (begin, end) = (
            x.at(step.begun_seconds),
            x.at(step.begun_seconds + step.seconds),
        );
        put(
            &mut svg,
            format_args!(
                r#"<g><title>{}: {:.1} s</title><rect class="band" x="{begin:.1}" y="{TOP}" width="{:.1}" height="{LINE_HEIGHT}"/><text class="number" x="{:.1}" y="15">{number}</text></g>"#,
                escape(&step.name),
                step.seconds,
                (end - begin).max(0.5),
                f64::midpoint(begin, end),
            ),
        );
    }
    for tick in y.ticks(4) {
        let at = y.at(tick);
        put(
            &mut svg,
            format_args!(
                r#"<line class="grid" x1="{LEFT}" x2="{:.1}" y1="{at:.1}" y2="{at:.1}"/><text class="end" x="{:.1}" y="{:.1}">{tick} Mbit/s</text>"#,
                WIDTH - RIGHT,
                LEFT - 8.0,
                at + 4.0
            ),
        );
    }
    seconds_axis(&mut svg, &x, TOP + LINE_HEIGHT);
    let at = y.at(line_mbit);
    put(
        &mut svg,
        format_args!(
            r#"<line class="limit" x1="{LEFT}" x2="{:.1}" y1="{at:.1}" y2="{at:.1}"/><text x="{:.1}" y="{:.1}">line rate</text>"#,
            WIDTH - RIGHT,
            WIDTH - RIGHT + 6.0,
            at + 4.0
        ),
    );
    if let (Some(first), Some(last)) = (points.first(), points.last()) {
        let curve = |value: fn(&Rate) -> f64| {
            points.iter().fold(String::new(), |path, p| {
                path + &format!(" {:.1},{:.1}", x.at(p.seconds), y.at(value(p)))
            })
        };
        let floor = y.at(0.0);
        put(
            &mut svg,
            format_args!(
                r#"<polygon class="down" points="{:.1},{floor:.1}{} {:.1},{floor:.1}"/><polyline class="up" points="{}"/>"#,
                x.at(first.seconds),
                curve(|p| p.down),
                x.at(last.seconds),
                curve(|p| p.up).trim_start(),
            ),
        );
    }
    svg + "</svg>"
}

/// One bar per boot: until the machine runs, until the console speaks, until the login prompt.
pub(super) fn boots(boots: &[Boot]) -> String {
    let x = across(
        boots
            .iter()
            .map(|boot| boot.login_seconds)
            .fold(0.0, f64::max),
    );
    let floor = TOP + ROW * boots.len() as f64;
    let mut svg = open(floor + BOTTOM, "how long each boot took");
    for (row, boot) in boots.iter().enumerate() {
        let y = TOP + ROW * row as f64;
        label(&mut svg, y, &boot.step);
        let parts = [
            (
                "fetch",
                "kernel and initrd arrive",
                0.0,
                boot.machine_seconds,
            ),
            (
                "firmware",
                "the machine starts",
                boot.machine_seconds,
                boot.output_seconds,
            ),
            (
                "guest",
                "the guest boots",
                boot.output_seconds,
                boot.login_seconds,
            ),
        ];
        for (class, what, from, to) in parts {
            bar(
                &mut svg,
                class,
                &format!("{what}: {:.1} s", to - from),
                y,
                x.at(from),
                x.at(to),
            );
        }
        value(
            &mut svg,
            x.at(boot.login_seconds),
            y,
            &format!("{:.1} s", boot.login_seconds),
        );
    }
    seconds_axis(&mut svg, &x, floor);
    svg + "</svg>"
}

/// One bar per row of bytes: down and up after each other.
pub(super) fn bytes(rows: &[(String, u64, u64)]) -> String {
    let x = across(
        rows.iter()
            .map(|(_, down, up)| (down + up) as f64)
            .fold(0.0, f64::max),
    );
    let mut svg = open(
        TOP + ROW * rows.len() as f64 + 6.0,
        "bytes on the line for each step",
    );
    for (row, (name, down, up)) in rows.iter().enumerate() {
        let y = TOP + ROW * row as f64;
        label(&mut svg, y, name);
        let middle = x.at(*down as f64);
        let end = x.at((down + up) as f64);
        bar(
            &mut svg,
            "down-bar",
            &format!("to the branches: {}", mb(*down)),
            y,
            LEFT,
            middle,
        );
        bar(
            &mut svg,
            "up-bar",
            &format!("to the datacenter: {}", mb(*up)),
            y,
            middle,
            end,
        );
        value(&mut svg, end, y, &mb(down + up));
    }
    svg + "</svg>"
}

/// Mean rates in Mbit/s between two samples.
struct Rate {
    seconds: f64,
    down: f64,
    up: f64,
}

/// Rates from counters, thinned out to what can be seen. A mean over the whole interval loses no byte.
fn rates_of(trace: &LinkTrace) -> Vec<Rate> {
    let stride = trace.samples.len().div_ceil(POINTS_MAX).max(1);
    let mut kept: Vec<_> = trace.samples.iter().step_by(stride).collect();
    if let Some(last) = trace.samples.last() {
        kept.push(last);
    }
    kept.windows(2)
        .filter(|pair| pair[1].seconds > pair[0].seconds)
        .map(|pair| {
            let mbit = |from: u64, to: u64| {
                to.saturating_sub(from) as f64 * 8e-6 / (pair[1].seconds - pair[0].seconds)
            };
            Rate {
                seconds: f64::midpoint(pair[0].seconds, pair[1].seconds),
                down: mbit(pair[0].down_bytes, pair[1].down_bytes),
                up: mbit(pair[0].up_bytes, pair[1].up_bytes),
            }
        })
        .collect()
}

fn open(height: f64, what: &str) -> String {
    format!(
        r#"<svg viewBox="0 0 {WIDTH} {height:.0}" role="img" aria-label="{}">"#,
        escape(what)
    )
}

fn seconds_axis(svg: &mut String, x: &Scale, floor: f64) {
    for tick in x.ticks(10) {
        let at = x.at(tick);
        put(
            svg,
            format_args!(
                r#"<line class="grid" x1="{at:.1}" x2="{at:.1}" y1="{TOP}" y2="{floor:.1}"/><text class="middle" x="{at:.1}" y="{:.1}">{tick} s</text>"#,
                floor + 18.0
            ),
        );
    }
}

fn label(svg: &mut String, y: f64, name: &str) {
    put(
        svg,
        format_args!(
            r#"<text class="end" x="{:.1}" y="{:.1}">{}</text>"#,
            LEFT - 8.0,
            y + 14.0,
            escape(name)
        ),
    );
}

fn value(svg: &mut String, x: f64, y: f64, text: &str) {
    put(
        svg,
        format_args!(
            r#"<text x="{:.1}" y="{:.1}">{}</text>"#,
            x + 6.0,
            y + 14.0,
            escape(text)
        ),
    );
}

fn bar(svg: &mut String, class: &str, title: &str, y: f64, from: f64, to: f64) {
    put(
        svg,
        format_args!(
            r#"<rect class="{class}" x="{from:.1}" y="{y:.1}" width="{:.1}" height="18"><title>{}</title></rect>"#,
            (to - from).max(0.0),
            escape(title)
        ),
    );
}

fn put(svg: &mut String, markup: std::fmt::Arguments<'_>) {
    svg.write_fmt(markup)
        .expect("writing to a string does not fail");
}

/// Text made safe inside markup and attributes.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::LinkSample;
    use super::*;

    #[test]
    fn rates_keep_every_byte_however_many_samples_there_are() {
        let samples = (0..10_007u32).map(|n| LinkSample {
            seconds: f64::from(n) * 0.25,
            down_bytes: u64::from(n) * 1000,
            up_bytes: 0,
        });
        let rates = rates_of(&LinkTrace {
            link: "a".into(),
            samples: samples.collect(),
        });
        assert!(rates.len() <= POINTS_MAX + 1, "{}", rates.len());
        // 1000 bytes each 250 ms are 32 kbit/s, at every point.
        assert!(rates.iter().all(|rate| (rate.down - 0.032).abs() < 1e-9));
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let ticks = across(52.5).ticks(4);
        assert_eq!(ticks, [0.0, 20.0, 40.0]);
        assert_eq!(across(0.0).at(0.0), LEFT);
    }

    #[test]
    fn an_empty_trace_is_drawn_as_nothing() {
        let trace = LinkTrace {
            link: "a".into(),
            samples: Vec::new(),
        };
        let svg = line(&trace, &LinkRates::default(), &[], 0.0);
        assert!(svg.ends_with("</svg>") && !svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn names_cannot_end_the_markup() {
        assert_eq!(escape("<b a=\"&\">"), "&lt;b a=&quot;&amp;&quot;&gt;");
    }
}
