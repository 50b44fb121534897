//! `splice-datacenter`: the command line of the daemon.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use datacenter::backup::machine::{self, RestoreOptions};
use datacenter::clock::SystemClock;
use datacenter::daemon::{self, InitOptions, RunOptions};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The Splice datacenter: owns a realm's images and versions and feeds its branches.
#[derive(Parser)]
#[command(name = "splice-datacenter", version, about, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  splice-datacenter init --data /var/lib/splice --name acme --address dc.acme.example:7443
  splice-datacenter run --data /var/lib/splice
  splice-datacenter restore /mnt/backup/splice --data /var/lib/splice --passphrase-file /media/usb/passphrase
  splice-datacenter endorse --data /var/lib/splice --root-key /media/usb/root.key";

const RESTORE_EXAMPLES: &str = "Examples:
  splice-datacenter restore /mnt/backup/splice --data /var/lib/splice --passphrase-file /media/usb/passphrase
  splice-datacenter restore /mnt/backup/splice --data /var/lib/splice --passphrase-file ./passphrase --revoke new-york
  splice-datacenter restore s3://backups/splice --s3-file ./s3.toml --data /var/lib/splice --passphrase-file ./passphrase";

#[derive(Subcommand)]
enum Command {
    /// Make a new realm in a data folder: keys, certificate authority, configuration.
    Init {
        /// The data folder; it is made if it does not exist.
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
        /// The realm's name, for people.
        #[arg(long)]
        name: Option<String>,
        /// Address under which branches reach this datacenter's link [default: this machine's name, port 7443].
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
        /// DNS name or IP address under which the API is reached, besides localhost; may be repeated.
        #[arg(long, value_name = "NAME")]
        api_name: Vec<String>,
        /// Address that the link listens on (UDP) [default: 0.0.0.0:7443].
        #[arg(long, value_name = "ADDR")]
        link: Option<SocketAddr>,
        /// Address that the API listens on (TCP) [default: 0.0.0.0:7480].
        #[arg(long, value_name = "ADDR")]
        api: Option<SocketAddr>,
        /// Keep the passphrase that seals the keys in this file rather than in the data folder. It is made if it does not exist.
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
    /// Run the daemon until SIGTERM or SIGINT.
    Run {
        /// The data folder.
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
        /// Address that the link listens on (UDP), instead of the configured one.
        #[arg(long, value_name = "ADDR")]
        link: Option<SocketAddr>,
        /// Address that the API listens on (TCP), instead of the configured one.
        #[arg(long, value_name = "ADDR")]
        api: Option<SocketAddr>,
        /// File with the passphrase, instead of the configured one.
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
        /// Log as JSON lines.
        #[arg(long)]
        log_json: bool,
    },
    /// Restore a backup that `splice store backup` made, into a new data folder. Everything is proven before it is used.
    ///
    /// Branches connect again by themselves, with the certificates and keys that they have: the restored datacenter must be reached under the
    /// same address, and the former one must never run again. A restore that is interrupted goes on when it is run again.
    #[command(after_help = RESTORE_EXAMPLES)]
    Restore {
        /// The backup's folder, or s3://BUCKET/FOLDER.
        folder: PathBuf,
        /// File with endpoint, region, access_key_id and secret_access_key of a backup in a bucket.
        #[arg(long, value_name = "FILE")]
        s3_file: Option<PathBuf>,
        /// The new data folder; it is made if it does not exist, and must be empty.
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
        /// File with the passphrase that opens the realm's keys, from where it was kept.
        #[arg(long, value_name = "FILE")]
        passphrase_file: PathBuf,
        /// A branch that was revoked after the backup was taken, by its name then: it is refused from the start. May be repeated.
        #[arg(long, value_name = "NAME")]
        revoke: Vec<String>,
        /// Go on although the store had lost content of some versions before the backup was taken.
        #[arg(long)]
        accept_damage: bool,
    },
    /// Renew the publisher key's endorsement with the realm's root key. The daemon may be running.
    Endorse {
        /// The data folder.
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
        /// The root key's file [default: root.key in the data folder].
        #[arg(long, value_name = "FILE")]
        root_key: Option<PathBuf>,
        /// How long the endorsement holds.
        #[arg(long, default_value_t = 365)]
        days: u64,
    },
    /// Replace all API tokens by a new one, in cli.toml. The daemon must not be running.
    ResetToken {
        /// The data folder.
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
    },
    /// Print the management API's OpenAPI document.
    Openapi,
    /// Print what each endpoint of the management API needs, and which roles have it.
    Rights,
}

fn main() -> ExitCode {
    match execute(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // As with the results below: what cannot be written must not become a panic.
            let _ = writeln!(io::stderr(), "splice-datacenter: {}", line(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes on one line; a cause whose words are there already is not repeated.
fn line(error: &anyhow::Error) -> String {
    datacenter::problem::describe(error.as_ref())
}

fn execute(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Init {
            data,
            name,
            address,
            api_name,
            link,
            api,
            passphrase_file,
        } => {
            let options = InitOptions {
                name,
                address,
                api_names: api_name,
                link,
                api,
                passphrase_file,
            };
            for line in daemon::init(&data, &options)? {
                writeln!(io::stdout(), "{line}")?;
            }
            Ok(())
        }
        Command::Run {
            data,
            link,
            api,
            passphrase_file,
            log_json,
        } => {
            datacenter_observe::logs::init(log_json);
            let options = RunOptions {
                link,
                api,
                passphrase_file,
            };
            run(&data, &options)
        }
        Command::Restore {
            folder,
            s3_file,
            data,
            passphrase_file,
            revoke,
            accept_damage,
        } => {
            let options = RestoreOptions {
                folder,
                s3_file,
                data,
                passphrase_file,
                revoke,
                accept_damage,
            };
            // A terminal or a log: a line for each percent is enough of either.
            let mut told = None;
            let lines = machine::restore(&options, &SystemClock, &mut |what, done, total| {
                let percent = (done * 100).checked_div(total).unwrap_or(100);
                if told != Some((what, percent)) {
                    told = Some((what, percent));
                    let _ = writeln!(io::stderr(), "{what}: {percent} %");
                }
            })?;
            for line in lines {
                writeln!(io::stdout(), "{line}")?;
            }
            Ok(())
        }
        Command::Endorse {
            data,
            root_key,
            days,
        } => {
            let until = daemon::endorse(&data, root_key.as_deref(), days)?;
            Ok(writeln!(io::stdout(), "{until}")?)
        }
        Command::ResetToken { data } => {
            let token = daemon::reset_token(&data)?;
            Ok(writeln!(io::stdout(), "{token}")?)
        }
        Command::Openapi => {
            let document = datacenter::http::openapi();
            Ok(io::stdout().write_all(document.as_bytes())?)
        }
        Command::Rights => {
            let document = datacenter::http::rights();
            Ok(io::stdout().write_all(document.as_bytes())?)
        }
    }
}

fn run(data: &std::path::Path, options: &RunOptions) -> anyhow::Result<()> {
    let (datacenter, _lock) = daemon::open(data, options)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let cancel = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = cancel.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stop.cancel();
        });
        daemon::run(datacenter, cancel, |link, api| {
            // One line for scripts that started us and wait. Nobody may be reading.
            let mut out = std::io::stdout();
            writeln!(out, "ready link={link} api={api}").ok();
            out.flush().ok();
        })
        .await
    })
}
