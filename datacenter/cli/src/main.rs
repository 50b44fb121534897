//! `splice`: what central IT does, as nouns and verbs.
//!
//! One file per noun. Results go to standard output (as a table, or with `--json` as the API's JSON), everything else to standard
//! error. Failures are one line: what, where, way out. Exit codes are documented in [`failure`].

mod audit;
mod backup;
mod branch;
mod config;
mod desktop;
mod failure;
mod group;
mod image;
mod laptop;
mod login;
mod moves;
mod operation;
mod output;
mod preflight;
mod progress;
mod ready;
mod rollout;
mod secret;
mod session;
mod status;
mod store;
mod support;
mod token;
mod user;
mod version;
mod volume;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use config::Context;
use failure::Failure;

const HELP: &str = "Examples:
  splice image create debian
  splice version publish debian /srv/images/debian-12.qcow2 --note 'January updates'
  splice branch token new-york --expires 24h
  splice branch assign new-york --pool office --image debian@3
  splice rollout start debian@4 --channel stable --canary new-york
  splice store gc --dry-run
  splice store backup /mnt/backup/splice
  splice login carol
  splice user add alice && splice entitle add office --user alice
  splice status --json

The configuration is the first of: --config, $SPLICE_CONFIG, ~/.config/splice/cli.toml, /etc/splice/cli.toml.
`splice-datacenter init` writes one into its data folder.

Exit codes: 0 success, 1 failure, 2 wrong usage or configuration, 3 not found, 4 conflict with what is there,
5 datacenter unreachable.";

/// Manage a Splice realm: images, versions, branches.
#[derive(Parser)]
#[command(name = "splice", version, about, after_help = HELP, propagate_version = true)]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    noun: Noun,
}

/// Flags of every command.
#[derive(Args)]
struct Global {
    /// Print results as JSON.
    #[arg(long, global = true)]
    json: bool,
    /// Configuration file.
    #[arg(long, global = true, value_name = "FILE", env = "SPLICE_CONFIG")]
    config: Option<PathBuf>,
    /// The datacenter's API, instead of the configured one.
    #[arg(long, global = true, value_name = "URL", env = "SPLICE_URL")]
    url: Option<String>,
    /// The API token, instead of the configured one. Other users of this machine can see it: prefer the environment.
    #[arg(
        long,
        global = true,
        value_name = "TOKEN",
        env = "SPLICE_TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,
    /// The realm's CA certificate (PEM), instead of the configured one.
    #[arg(long, global = true, value_name = "FILE", env = "SPLICE_CA")]
    ca: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Noun {
    /// Named lineages of golden disks.
    #[command(subcommand)]
    Image(image::Verb),
    /// Published revisions of images.
    #[command(subcommand)]
    Version(version::Verb),
    /// Sites with a branch server.
    #[command(subcommand)]
    Branch(branch::Verb),
    /// Versions that come to pools branch by branch, in waves, and go back by themselves where desktops fail.
    #[command(subcommand)]
    Rollout(rollout::Verb),
    /// Named places among an image's versions that pools follow.
    #[command(subcommand)]
    Channel(rollout::ChannelVerb),
    /// The chunk store: what it holds, garbage, damage; and backups of the datacenter.
    #[command(subcommand)]
    Store(store::Verb),
    /// Long work: publishes, verifies, exports, collections, scrubs, backups.
    #[command(subcommand)]
    Operation(operation::Verb),
    /// Desktops at a branch (over the branch server's socket).
    Desktop(desktop::Arguments),
    /// A branch as it sees itself (over the branch server's socket).
    BranchStatus(desktop::StatusArguments),
    /// Whether a branch's pools boot with the WAN cut (over the branch server's socket).
    BranchReady(ready::ReadyArguments),
    /// What a branch's cache holds, by pool, and what goes first (over the branch server's socket).
    BranchCache(ready::CacheArguments),
    /// What a branch's pools go on from instead of booting (over the branch server's socket).
    BranchTemplates(ready::TemplateArguments),
    /// What the datacenter keeps of desktops: leases, snapshots, forks.
    #[command(subcommand)]
    DesktopState(volume::Verb),
    /// The audit log: who did what, from where, and what came of it.
    Audit(audit::Arguments),
    /// Log in to the datacenter, or show who you are.
    Login(login::LogInArguments),
    /// End the session.
    Logout,
    /// Make an administrator with a one-time code.
    Setup(login::SetupArguments),
    /// Make a one-time code for an administrator's account.
    SetupCode,
    /// People's accounts.
    #[command(subcommand)]
    User(user::Verb),
    /// Groups of people.
    #[command(subcommand)]
    Group(group::Verb),
    /// Who may use which pool.
    #[command(subcommand)]
    Entitle(group::EntitleVerb),
    /// Tokens for programs.
    #[command(subcommand)]
    Token(token::Verb),
    /// Whether a branch lets somebody in, and to which pools (over the branch server's socket).
    BranchLogIn(login::BranchArguments),
    /// Desktops that are checked out to laptops.
    #[command(subcommand)]
    Laptop(laptop::Verb),
    /// The datacenter as a whole.
    Status(status::Arguments),
    /// What both daemons tell of themselves, in one archive for somebody who is to help: without secrets.
    SupportBundle(support::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let context = Context::new(arguments.global);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(&context, arguments.noun)),
        Err(error) => Err(Failure::failed(format!("cannot start: {error}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(context.json),
    }
}

async fn run(context: &Context, noun: Noun) -> Result<(), Failure> {
    match noun {
        Noun::Image(verb) => image::run(context, verb).await,
        Noun::Version(verb) => version::run(context, verb).await,
        Noun::Branch(verb) => branch::run(context, verb).await,
        Noun::Rollout(verb) => rollout::run(context, verb).await,
        Noun::Channel(verb) => rollout::channel(context, verb).await,
        Noun::Store(verb) => store::run(context, verb).await,
        Noun::Operation(verb) => operation::run(context, verb).await,
        Noun::Desktop(arguments) => desktop::run(context, arguments).await,
        Noun::BranchStatus(arguments) => desktop::status(context, arguments).await,
        Noun::BranchReady(arguments) => ready::run(context, arguments).await,
        Noun::BranchCache(arguments) => ready::cache(context, arguments).await,
        Noun::BranchTemplates(arguments) => ready::templates(context, arguments).await,
        Noun::DesktopState(verb) => volume::run(context, verb).await,
        Noun::Audit(arguments) => audit::run(context, arguments).await,
        Noun::Login(arguments) => login::log_in(context, arguments).await,
        Noun::Logout => login::log_out(context).await,
        Noun::Setup(arguments) => login::set_up(context, arguments).await,
        Noun::SetupCode => login::setup_code(context).await,
        Noun::User(verb) => user::run(context, verb).await,
        Noun::Group(verb) => group::run(context, verb).await,
        Noun::Entitle(verb) => group::entitle(context, verb).await,
        Noun::Token(verb) => token::run(context, verb).await,
        Noun::BranchLogIn(arguments) => login::at_branch(context, arguments).await,
        Noun::Laptop(verb) => laptop::run(context, verb).await,
        Noun::Status(arguments) => status::run(context, arguments).await,
        Noun::SupportBundle(arguments) => support::run(context, arguments).await,
    }
}
