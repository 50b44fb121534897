//! Following long work: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use datacenter_api::units::format_size;
use datacenter_api::{Client, Operation, OperationKind, Phase};
use indicatif::{ProgressBar, ProgressStyle};

use crate::config::Context;
use crate::failure::Failure;
use crate::output;

/// How often the datacenter is asked.
const INTERVAL: Duration = Duration::from_millis(200);
/// How often a line is written where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Follows an operation until it is done. Interrupting the command does not stop the work.
pub async fn follow(
    context: &Context,
    client: &Client,
    operation: Operation,
) -> Result<Operation, Failure> {
    let mut shown = Shown::new(context);
    let id = operation.id;
    let done = client.follow(id, INTERVAL, tokio::time::sleep, |operation| {
        shown.update(operation);
    });
    tokio::select! {
        done = done => {
            shown.clear();
            Ok(done?)
        }
        _ = tokio::signal::ctrl_c() => {
            shown.clear();
            Err(Failure::failed(format!("interrupted; operation {id} goes on at the datacenter"))
                .help(format!("`splice operation show {id}` shows it, `splice operation cancel {id}` stops it")))
        }
    }
}

enum Shown {
    Bar(ProgressBar),
    Lines { phase: Option<Phase>, last: Instant },
    Nothing,
}

impl Shown {
    fn new(context: &Context) -> Self {
        if context.json {
            return Self::Nothing;
        }
        if !std::io::stderr().is_terminal() {
            return Self::Lines {
                phase: None,
                last: Instant::now(),
            };
        }
        let style = ProgressStyle::with_template(
            "{msg:24} {bar:30} {binary_bytes:>11}/{binary_total_bytes} {binary_bytes_per_sec:>13} {eta}",
        );
        let bar = ProgressBar::new(0);
        if let Ok(style) = style {
            bar.set_style(style);
        }
        Self::Bar(bar)
    }

    fn update(&mut self, operation: &Operation) {
        let progress = &operation.progress;
        match self {
            Self::Nothing => {}
            Self::Bar(bar) => {
                let words = words(operation);
                if bar.message() != words {
                    bar.set_message(words);
                    bar.reset();
                }
                bar.set_length(progress.total_bytes);
                bar.set_position(progress.done_bytes);
            }
            Self::Lines { phase, last } => {
                if *phase == Some(progress.phase) && last.elapsed() < LINE_INTERVAL {
                    return;
                }
                *phase = Some(progress.phase);
                *last = Instant::now();
                let mut line = words(operation).to_owned();
                // Trees and records are not told in bytes.
                let counted = matches!(progress.phase, Phase::Mark | Phase::Sweep);
                if progress.total_bytes > 0 && !counted {
                    line = format!(
                        "{line}: {} of {}",
                        format_size(progress.done_bytes),
                        format_size(progress.total_bytes)
                    );
                }
                output::aside(line);
            }
        }
    }

    fn clear(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn words(operation: &Operation) -> &'static str {
    match (operation.progress.phase, operation.kind) {
        (Phase::Open, OperationKind::Backup) => "writing the catalog",
        (Phase::Open, _) => "opening",
        (Phase::Import, _) => "importing",
        (Phase::Verify, OperationKind::Publish | OperationKind::Export) => "comparing",
        (Phase::Verify, _) => "reading back",
        (Phase::Sketch, _) => "comparing chunks",
        (Phase::Encode, _) => "encoding",
        (Phase::Publish, OperationKind::Update) => "finishing",
        (Phase::Publish, _) => "signing",
        (Phase::Mark, _) => "looking what is reachable",
        (Phase::Sweep, _) => "going through the index",
        (Phase::Compact, _) => "rewriting packs",
        (Phase::Scrub, _) => "reading again",
        (Phase::Export, _) => "writing",
        (Phase::Copy, _) => "copying packs",
        (Phase::Done, _) => "done",
    }
}
