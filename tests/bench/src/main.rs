//! `./x bench`: measures the product beside its peers, alternately and in one run, and says what no system could beat.
//!
//! Each bench is a module; [`session`] keeps finished measures, so that an interrupted run goes on. Nothing here judges: figures
//! are printed and written as they are. It owns no part of the product and reaches it only by its programs, its NBD exports and
//! its link.

mod block;
mod boot;
mod ends;
mod fiemap;
mod fio;
mod host;
mod images;
mod ingest;
mod layout;
mod link;
mod machine;
mod named;
mod nbd;
mod pairwise;
mod process;
mod record;
mod replay;
mod report;
mod row;
mod session;
mod splice;
mod stage;
mod stores;
mod storm;
mod svg;
mod touched;
mod trace;
mod update;
mod workshop;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};

use row::{Host, Results, rows, table};
use session::{SPLICE, Session, Settings, write_whole};

/// Measures the product beside its peers.
#[derive(Parser)]
#[command(name = "./x bench", args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

const EXAMPLES: &str = "\
Examples:
  ./x bench read --quick
  ./x bench all --quick --json
  ./x bench report bench.json

The desktop disks are made once, which takes half an hour and is in no estimate. A run that was interrupted goes on where it
stopped when the same command is given again.
Exit codes: 0 every figure of the product was measured; 1 one was not, or an error; 2 wrong usage.";

#[derive(Subcommand)]
enum Command {
    /// Render docs/performance.md and its plots from the files that --json wrote.
    Report(report::Options),
    /// Make a boot trace of the log of nbdkit's log filter.
    Trace(record::Options),
    /// Place a trace's files on an image; used by `boot` and `storm` themselves.
    #[command(hide = true)]
    Place(layout::Options),
    /// One end of the line under test; used by `link` itself.
    #[command(hide = true)]
    End(ends::Options),
}

#[derive(Args)]
struct Run {
    /// What to measure.
    #[arg(value_enum)]
    name: Option<Name>,
    /// Write the figures here, after every bench.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "bench.json")]
    json: Option<PathBuf>,
    /// Every bench once and shortly: 45 minutes for all on two quiet cores, without the making of the desktop disks. Without this,
    /// more lines, sizes and delta tools, and what a quick run has of ours three times: two hours and a quarter.
    #[arg(long)]
    quick: bool,
    /// Forget what an interrupted run has measured.
    #[arg(long)]
    fresh: bool,
    /// Measure only what has this in its name, such as cold-previous; the same command without it measures the rest.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    only: String,
    /// Where everything is kept while it runs; it needs 20 GB. Sockets are in it, so its path may not be long.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp/splice-bench")]
    work: PathBuf,
    /// Where the desktop disks are kept from run to run [default: the user's cache].
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// The checkout [default: as ./x says, or the current folder].
    #[arg(long, value_name = "DIR", hide = true)]
    tree: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// A desktop disk into the store: MB/s, CPU, memory, stored bytes.
    Ingest,
    /// From version to version: bytes on the line, seconds.
    Update,
    /// Goodput over bad lines, waits under load, recovery.
    Link,
    /// Reading through a branch's NBD export.
    Read,
    /// Writing through a branch's NBD export.
    Write,
    /// A recorded desktop boot, from a cold branch to a warm one.
    Boot,
    /// Many boots at once.
    Storm,
    /// All of them.
    All,
}

impl Name {
    fn text(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Update => "update",
            Self::Link => "link",
            Self::Read => "read",
            Self::Write => "write",
            Self::Boot => "boot",
            Self::Storm => "storm",
            Self::All => "all",
        }
    }
}

/// Benches that share what they set up, in the order of a run.
const ALL: [&[Name]; 6] = [
    &[Name::Read, Name::Write],
    &[Name::Ingest],
    &[Name::Update],
    &[Name::Link],
    &[Name::Boot],
    &[Name::Storm],
];

fn run(group: &[Name], session: &mut Session) -> Result<()> {
    match group {
        [Name::Read, Name::Write] => block::run(session, &[block::Way::Read, block::Way::Write]),
        [Name::Read] => block::run(session, &[block::Way::Read]),
        [Name::Write] => block::run(session, &[block::Way::Write]),
        [Name::Ingest] => ingest::run(session),
        [Name::Update] => update::run(session),
        [Name::Link] => link::run(session),
        [Name::Boot] => boot::run(session),
        [Name::Storm] => storm::run(session),
        _ => bail!("these benches are not run together"),
    }
}

fn main() -> ExitCode {
    if machine::is_asked_for() {
        return machine::run();
    }
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        Some(Command::Report(options)) => report::run(&options).map(|()| true),
        Some(Command::Trace(options)) => record::convert(&options).map(|()| true),
        Some(Command::Place(options)) => layout::place(&options).map(|()| true),
        Some(Command::End(options)) => ends::run(&options).map(|()| true),
        None => measure(&arguments.run),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs what was asked for. Returns whether all of the product's figures are there.
fn measure(options: &Run) -> Result<bool> {
    let name = options
        .name
        .context("say what to measure; ./x bench --help lists it")?;
    if !rustix::process::geteuid().is_root() {
        bail!("namespaces and disk images need root; run it with sudo");
    }
    process::catch_interrupts();
    let json = match &options.json {
        Some(file) => Some(absolute(file)?),
        None => None,
    };
    let mut session = Session::open(settings(options)?)?;
    session.workshop.check_room(options.quick)?;
    let mut host = host::host();
    let one = [name];
    let groups = if name == Name::All {
        ALL.to_vec()
    } else {
        vec![&one[..]]
    };
    let mut benches: Vec<&'static str> = Vec::new();
    for group in groups {
        if let Err(error) = run(group, &mut session) {
            if process::interrupted() || session.workshop.is_full() {
                return Err(error);
            }
            // What could not be set up for one says nothing of the next.
            for bench in group {
                session.miss_of(bench.text(), "all cases", SPLICE, &format!("{error:#}"));
            }
        }
        for bench in group {
            benches.push(bench.text());
            println!(
                "\n{}\n{}",
                bench.text(),
                table(&rows(bench.text(), &samples(*bench, &session)))
            );
        }
        host.load_after = host::load();
        if let Some(file) = &json {
            let results = results(name, &benches, &session, &host);
            write_whole(
                file,
                (serde_json::to_string_pretty(&results)? + "\n").as_bytes(),
            )?;
        }
    }
    for missing in session.missing() {
        println!(
            "not measured: {} {} {}: {}",
            missing.bench, missing.system, missing.what, missing.reason
        );
    }
    for note in benches.iter().flat_map(|bench| session.notes(bench)) {
        println!("note: {note}");
    }
    let whole = benches.iter().all(|bench| session.is_whole(bench));
    if options.only.is_empty() {
        session.finish(&benches)?;
    }
    Ok(whole)
}

/// The samples of a bench with what they can be held against.
fn samples(bench: Name, session: &Session) -> Vec<row::Sample> {
    let mut samples = session.samples(bench.text());
    match bench {
        Name::Update => update::with_references(&mut samples),
        Name::Read | Name::Write => block::with_limits(&mut samples),
        _ => {}
    }
    samples
}

fn results(name: Name, benches: &[&str], session: &Session, host: &Host) -> Results {
    let of = |bench: &&Name| benches.contains(&bench.text());
    let measured: Vec<Name> = ALL.into_iter().flatten().filter(of).copied().collect();
    let found = |bench: &Name| rows(bench.text(), &samples(*bench, session));
    let notes = |bench: &&str| session.notes(bench).to_vec();
    Results {
        bench: name.text().to_owned(),
        quick: session.settings.quick,
        ended_unix_s: host::unix_now(),
        host: host.clone(),
        rows: measured.iter().flat_map(found).collect(),
        missing: session.missing().to_vec(),
        notes: benches.iter().flat_map(notes).collect(),
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| path.display().to_string())
}

/// The checkout: what ./x said, or the current folder.
fn tree() -> PathBuf {
    std::env::var_os("SPLICE_TREE").map_or_else(|| PathBuf::from("."), PathBuf::from)
}

fn settings(options: &Run) -> Result<Settings> {
    let images = match &options.images {
        Some(folder) => absolute(folder)?,
        None => cache()?.join("splice/images"),
    };
    let own = std::env::current_exe().context("finding the folder of programs")?;
    Ok(Settings {
        quick: options.quick,
        fresh: options.fresh,
        only: options.only.clone(),
        work: absolute(&options.work)?,
        images,
        tree: absolute(&options.tree.clone().unwrap_or_else(tree))?,
        programs: own.parent().context("a program is in a folder")?.to_owned(),
    })
}

fn cache() -> Result<PathBuf> {
    match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(cache), _) if !cache.is_empty() => Ok(PathBuf::from(cache)),
        (_, Some(home)) if !home.is_empty() => Ok(Path::new(&home).join(".cache")),
        _ => {
            bail!("neither XDG_CACHE_HOME nor HOME is set; say where disks are kept with --images")
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_file_of_json_may_be_left_out() {
        let parsed = |words: &[&str]| {
            let words = [&["bench"], words].concat();
            Arguments::try_parse_from(words).unwrap().run
        };
        let run = parsed(&["all", "--quick", "--json"]);
        assert!(run.quick && run.name == Some(Name::All));
        assert_eq!(run.json, Some("bench.json".into()));
        let run = parsed(&["read", "--json", "here.json", "--fresh"]);
        assert_eq!(run.json, Some("here.json".into()));
        assert_eq!(parsed(&["read"]).json, None);
    }

    #[test]
    fn every_bench_is_in_a_run_of_all() {
        let all: Vec<Name> = ALL.into_iter().flatten().copied().collect();
        let wanted: Vec<Name> = Name::value_variants().to_vec();
        assert_eq!(all.len(), wanted.len() - 1);
        assert!(
            wanted
                .iter()
                .all(|name| all.contains(name) != (*name == Name::All))
        );
    }
}
