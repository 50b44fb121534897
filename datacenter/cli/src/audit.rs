//! `splice audit`: who did what; whether the log is what was written; and a copy of it, which can be verified without the datacenter.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use datacenter_api::audit::{AuditError, Verifier, parse_kept};
use datacenter_api::{AuditEntry, AuditLine, AuditState, Client};

use crate::config::Context;
use crate::failure::Failure;
use crate::output;

/// `splice audit`
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// What can be done with the log.
#[derive(Subcommand)]
pub enum Verb {
    /// Show its newest entries. This is what `splice audit` alone does.
    List,
    /// Verify its chain: all of it at the datacenter, or an exported copy.
    #[command(after_help = "Examples:
  splice audit verify
  splice audit verify --kept 412:9f86d081…
  splice audit verify --file audit.log --kept 412:9f86d081…

Keep the number and hash that it prints where those who could change the datacenter's disk cannot: with --kept they prove later that
nothing before them was changed.")]
    Verify {
        /// An exported copy, which needs no datacenter.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// A number and hash that were kept before.
        #[arg(long, value_name = "NUMBER:HASH")]
        kept: Option<String>,
    },
    /// Write all of it to a file, an entry a line: number, hash, and what was written (JSON).
    #[command(after_help = "Example:\n  splice audit export audit.log")]
    Export {
        /// The file; it must not exist.
        file: PathBuf,
    },
}

/// Does it.
pub async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    match arguments.verb.unwrap_or(Verb::List) {
        Verb::List => list(context).await,
        Verb::Verify { file, kept } => {
            let kept = kept.as_deref().map(parse_kept).transpose();
            let kept =
                kept.map_err(|_| Failure::usage("--kept takes a number and a hash: NUMBER:HASH"))?;
            let state = match file {
                Some(file) => verify_file(&file, kept)?,
                // The whole log is read here, and not only believed to fit.
                None => verify_remote(&context.client()?, kept).await?,
            };
            show(context, &state)
        }
        Verb::Export { file } => export(context, &file).await,
    }
}

async fn list(context: &Context) -> Result<(), Failure> {
    let entries = context.client()?.audit().await?;
    if context.json {
        return output::json(&entries);
    }
    let rows: Vec<Vec<String>> = entries.iter().map(row).collect();
    let heads = &["ENTRY", "WHEN", "WHO", "FROM", "WHAT", "RESULT", "WHY"];
    output::table(heads, &rows, "nothing to answer for")
}

fn row(entry: &AuditEntry) -> Vec<String> {
    let facts = &entry.facts;
    let or_dash = |text: &str| match text {
        "" => "-".to_owned(),
        text => text.to_owned(),
    };
    let what = match (facts.call.as_str(), facts.desktop.as_str()) {
        ("", "") => facts.event.clone(),
        ("", desktop) => format!("{} {desktop}", facts.event),
        (call, _) => call.to_owned(),
    };
    vec![
        entry.id.to_string(),
        output::time(facts.unix_s),
        or_dash(&facts.who),
        or_dash(&facts.from),
        what,
        or_dash(&facts.result),
        or_dash(&facts.reason),
    ]
}

fn broken(error: AuditError) -> Failure {
    Failure::failed(format!("the audit log is not what was written: {error}"))
}

async fn verify_remote(
    client: &Client,
    kept: Option<(u64, [u8; 32])>,
) -> Result<AuditState, Failure> {
    let mut verifier = Verifier::new(kept);
    let mut after = 0;
    loop {
        let lines = client.audit_lines(after).await?;
        let Some(last) = lines.last() else {
            // That nothing is missing at its ends is for the datacenter to say, which knows where they are.
            let claimed = client.audit_state().await?;
            let state = verifier.finish().map_err(broken)?;
            if claimed.last < state.last {
                return Err(broken(AuditError::Short {
                    last: claimed.last,
                    kept: state.last,
                }));
            }
            return Ok(state);
        };
        after = last.id;
        for line in &lines {
            verifier.take(line).map_err(broken)?;
        }
    }
}

fn verify_file(path: &Path, kept: Option<(u64, [u8; 32])>) -> Result<AuditState, Failure> {
    let failed =
        |e: std::io::Error| Failure::failed(format!("cannot read {}: {e}", path.display()));
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut verifier = Verifier::new(kept);
    for line in BufReader::new(file).lines() {
        let line: AuditLine = line.map_err(failed)?.parse().map_err(broken)?;
        verifier.take(&line).map_err(broken)?;
    }
    verifier.finish().map_err(broken)
}

fn show(context: &Context, state: &AuditState) -> Result<(), Failure> {
    if context.json {
        return output::json(state);
    }
    let unchained = (state.unchained > 0).then(|| output::count(state.unchained));
    output::facts(&[
        (
            "chained entries, all as written",
            Some(output::count(state.entries)),
        ),
        ("entries from before the chain", unchained),
        (
            "to be kept elsewhere",
            Some(format!("{}:{}", state.last, state.hash)),
        ),
    ])
}

async fn export(context: &Context, path: &Path) -> Result<(), Failure> {
    let client = context.client()?;
    let failed =
        |e: std::io::Error| Failure::failed(format!("cannot write {}: {e}", path.display()));
    let file = std::fs::File::create_new(path).map_err(failed)?;
    let mut file = std::io::BufWriter::new(file);
    let (mut after, mut written) = (0, 0u64);
    loop {
        let lines = client.audit_lines(after).await?;
        let Some(last) = lines.last() else { break };
        after = last.id;
        written += lines.len() as u64;
        for line in lines {
            writeln!(file, "{line}").map_err(failed)?;
        }
    }
    file.flush().map_err(failed)?;
    file.get_ref().sync_all().map_err(failed)?;
    // What was written is what is promised: a copy that can be verified.
    let state = verify_file(path, None)?;
    if context.json {
        return output::json(&state);
    }
    output::text(&format!(
        "{} entries are in {}\n",
        output::count(written),
        path.display()
    ))
}
