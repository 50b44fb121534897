//! `./x bench`: measures the product beside its peers, alternately and in one run, and says what no system could beat.
//!
//! Each bench is a module; [`session`] keeps finished measures, so that an interrupted run goes on. Nothing here judges: figures
//! are printed and written as they are. It owns no part of the product and reaches it only by its programs, its NBD exports and
//! its link.

mod block;
mod boot;
mod ends;
mod fio;
mod images;
mod ingest;
mod link;
mod machine;
mod nbd;
mod pairwise;
mod process;
mod replay;
mod report;
mod row;
mod session;
mod splice;
mod stage;
mod stores;
mod storm;
mod svg;
mod trace;
mod update;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};

use row::{Results, rows, table};
use session::{SPLICE, Session, Settings};

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
  ./x bench all --json bench.json
  ./x bench report bench.json

A run that was interrupted goes on where it stopped when the same command is given again.
Exit codes: 0 every figure of the product was measured; 1 one was not, or an error; 2 wrong usage.";

#[derive(Subcommand)]
enum Command {
    /// Render docs/performance.md and its plots from the files that --json wrote.
    Report(report::Options),
    /// Make a boot trace of the log of nbdkit's log filter.
    Trace(trace::Options),
    /// One end of the line under test; used by `link` itself.
    #[command(hide = true)]
    End(ends::Options),
}

#[derive(Args)]
struct Run {
    /// What to measure.
    #[arg(value_enum)]
    name: Option<Name>,
    /// Write the figures here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Every bench once and shortly: 45 minutes for all on two quiet cores.
    #[arg(long)]
    quick: bool,
    /// Forget what an interrupted run has measured.
    #[arg(long)]
    fresh: bool,
    /// Where everything is kept while it runs; it needs 20 GB.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp/splice-bench")]
    work: PathBuf,
    /// Where the desktop disks are kept from run to run [default: the user's cache].
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// The checkout [default: the current folder].
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

    fn run(self, session: &mut Session) -> Result<()> {
        match self {
            Self::Ingest => ingest::run(session),
            Self::Update => update::run(session),
            Self::Link => link::run(session),
            Self::Read => block::run(session, block::Way::Read),
            Self::Write => block::run(session, block::Way::Write),
            Self::Boot => boot::run(session),
            Self::Storm => storm::run(session),
            Self::All => bail!("all is run one by one"),
        }
    }
}

const ALL: [Name; 7] = [
    Name::Read,
    Name::Write,
    Name::Ingest,
    Name::Update,
    Name::Link,
    Name::Boot,
    Name::Storm,
];

fn main() -> ExitCode {
    if machine::is_asked_for() {
        return machine::run();
    }
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        Some(Command::Report(options)) => report::run(&options).map(|()| true),
        Some(Command::Trace(options)) => trace::convert(&options).map(|()| true),
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
    let mut session = Session::open(settings(options)?)?;
    let mut host = session::host();
    let benches = if name == Name::All {
        &ALL[..]
    } else {
        std::slice::from_ref(&name)
    };
    let mut all_rows = Vec::new();
    for bench in benches {
        bench.run(&mut session)?;
        let mut samples = session.samples();
        if *bench == Name::Update {
            update::with_limits(&mut samples);
        }
        let found = rows(bench.text(), &samples);
        println!("\n{}\n{}", bench.text(), table(&found));
        all_rows.extend(found);
    }
    host.load_after = session::load();
    for missing in session.missing() {
        println!(
            "not measured: {} {} {}: {}",
            missing.bench, missing.system, missing.what, missing.reason
        );
    }
    if let Some(file) = &options.json {
        let results = Results {
            bench: name.text().to_owned(),
            quick: options.quick,
            ended_unix_s: session::unix_now(),
            host,
            rows: all_rows,
            missing: session.missing().to_vec(),
        };
        std::fs::write(file, serde_json::to_string_pretty(&results)? + "\n")
            .with_context(|| file.display().to_string())?;
    }
    let whole = !session
        .missing()
        .iter()
        .any(|missing| missing.system == SPLICE && !missing.is_expected());
    session.finish()?;
    Ok(whole)
}

fn settings(options: &Run) -> Result<Settings> {
    let absolute =
        |path: &Path| std::path::absolute(path).with_context(|| path.display().to_string());
    let images = match &options.images {
        Some(folder) => absolute(folder)?,
        None => cache()?.join("splice/images"),
    };
    let own = std::env::current_exe().context("finding the folder of programs")?;
    Ok(Settings {
        quick: options.quick,
        fresh: options.fresh,
        work: absolute(&options.work)?,
        images,
        tree: absolute(options.tree.as_deref().unwrap_or(Path::new(".")))?,
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
