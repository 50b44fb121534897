//! `splice desktop` and `splice branch-status`: what an operator does at a branch, over the branch server's own socket.

use std::fmt::Write as _;
use std::io::{IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use branch_api::{
    CheckedOut, Client, ClientError, Desktop, Guest, GuestVolume, Rebase, SnapshotAsked,
    StartDesktop, StopDesktop, VolumeLine,
};
use clap::{Args, Subcommand};
use datacenter_api::units::format_size;

use crate::config::Context;
use crate::failure::Failure;
use crate::{output, preflight};

/// Which branch server is meant.
#[derive(Args)]
pub struct Socket {
    /// The branch server's Unix socket.
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "SPLICE_BRANCH_SOCKET",
        default_value = "/var/lib/splice-branch/branch.sock"
    )]
    branch_socket: PathBuf,
}

impl Socket {
    /// Its path.
    pub fn path(&self) -> &Path {
        &self.branch_socket
    }
}

/// `splice desktop …`
#[derive(Args)]
#[command(
    after_help = "Examples:\n  splice desktop start office --name alice\n  splice desktop console alice\n  splice desktop stop alice"
)]
pub struct Arguments {
    #[command(flatten)]
    socket: Socket,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Start a desktop: a fresh one on the pool's version, or a stopped one with what was written to it.
    Start {
        /// Its pool.
        pool: String,
        /// Its name (a-z, 0-9, -).
        #[arg(long)]
        name: String,
        /// Only serve its disk: somebody else runs its machine, for example libvirt (see libvirt-xml).
        #[arg(long)]
        serve_only: bool,
    },
    /// List the desktops of this branch.
    List,
    /// Show a desktop.
    Show {
        /// Its name.
        name: String,
    },
    /// Stop a desktop by its power button; what was written to it is kept.
    Stop {
        /// Its name.
        name: String,
        /// End the machine at once.
        #[arg(long)]
        force: bool,
    },
    /// Have a stopped desktop's system begin anew, on the version that its pool runs now. Its user volume stays.
    Reset {
        /// Its name.
        name: String,
    },
    /// Have a stopped desktop run another version with what its user has.
    ///
    /// A pooled desktop's system begins anew on it. What was written to a persistent one's system goes on over it where nothing changes under that, and else
    /// the desktop stays on its version and says why.
    #[command(
        after_help = "Examples:\n  splice desktop rebase alice\n  splice desktop rebase alice --version debian@8"
    )]
    Rebase {
        /// Its name.
        name: String,
        /// The version [default: what its pool runs, now and from now on].
        #[arg(long, value_name = "IMAGE@N")]
        version: Option<String>,
    },
    /// Try a stopped desktop out on another version, with what its user has, in a machine without a network that is thrown away.
    #[command(
        after_help = "Examples:\n  splice desktop preflight alice --version debian@8\n  splice desktop preflight alice --last"
    )]
    Preflight {
        /// Its name.
        name: String,
        /// The version [default: what its pool runs].
        #[arg(long, value_name = "IMAGE@N", conflicts_with_all = ["last", "cancel"])]
        version: Option<String>,
        /// Only show how it goes, or what came of the last one.
        #[arg(long, conflicts_with = "cancel")]
        last: bool,
        /// End it.
        #[arg(long)]
        cancel: bool,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
    /// Ask for a snapshot of what a desktop has written; the datacenter cuts it when that is there.
    Snapshot {
        /// Its name.
        name: String,
    },
    /// Have a stopped desktop that is checked out to this laptop go back. It leaves when all of it is at the datacenter.
    CheckIn {
        /// Its name.
        name: String,
    },
    /// Delete a stopped desktop and all that was written to it, its user volume as well.
    Delete {
        /// Its name.
        name: String,
    },
    /// Print a desktop's machine as a libvirt domain, for those who run libvirt.
    ///
    /// The disk stays the branch's: start the desktop with --serve-only before its domain, and stop it after. libvirt's QEMU must be able
    /// to open the sockets that the domain names, which are the branch server's user's.
    #[command(
        after_help = "Example:\n  splice desktop start office --name alice --serve-only\n  splice desktop libvirt-xml alice >alice.xml\n  virsh define alice.xml"
    )]
    LibvirtXml {
        /// Its name.
        name: String,
        /// How its disk is reached.
        #[arg(long, default_value = "vhost-user", value_parser = ["vhost-user", "nbd"])]
        disk: String,
    },
    /// Attach to a desktop's serial console; Ctrl-] detaches.
    Console {
        /// Its name.
        name: String,
    },
}

/// `splice branch-status`
#[derive(Args)]
#[command(
    after_help = "Example:\n  splice branch-status --branch-socket /var/lib/splice-branch/branch.sock --json"
)]
pub struct StatusArguments {
    #[command(flatten)]
    socket: Socket,
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match &error {
            ClientError::Unreachable { .. } => Self::unreachable(error.to_string()),
            ClientError::Problem { status: 404, .. } => Self::not_found(error.to_string()),
            ClientError::Problem { status: 409, .. } => Self::conflict(error.to_string()),
            _ => Self::failed(error.to_string()),
        }
    }
}

fn state(desktop: &Desktop) -> String {
    serde_json::to_value(desktop.state)
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned))
        .unwrap_or_default()
}

fn agent(guest: &Guest) -> String {
    let state = match (guest.connected, guest.booted) {
        (false, _) => "silent",
        (true, false) => "booting",
        (true, true) => "booted",
    };
    let volume = match guest.user_volume {
        GuestVolume::Mounted => ", user volume mounted",
        GuestVolume::Missing | GuestVolume::Refused => ", user volume not mounted",
        GuestVolume::None | GuestVolume::Unknown => "",
    };
    format!("{}, {state}{volume}", guest.agent)
}

fn users(guest: &Guest) -> Option<String> {
    let users = guest.users.iter();
    let users: Vec<String> = users
        .map(|user| format!("{} since {}", user.name, output::time(user.since_unix_s)))
        .collect();
    (!users.is_empty()).then(|| users.join(", "))
}

fn complaints(guest: &Guest) -> Option<String> {
    let complaints = guest.complaints();
    (!complaints.is_empty()).then(|| complaints.join("; "))
}

/// How far each of its volumes is written back.
fn volumes(desktop: &Desktop) -> Option<String> {
    let lines: Vec<String> = desktop.volumes.iter().map(volume).collect();
    (!lines.is_empty()).then(|| lines.join("; "))
}

fn volume(volume: &VolumeLine) -> String {
    let mut line = format!("{} {}: {}", volume.kind, volume.id, volume.lag());
    if volume.generation > 0 {
        let _ = write!(
            line,
            ", {} (generation {})",
            volume.lease, volume.generation
        );
    }
    if let Some(end) = volume.ends_unix_s {
        let _ = write!(
            line,
            ", runs without the datacenter until {}",
            output::time(end)
        );
    }
    for what in volume.no_right.iter().chain(&volume.trouble) {
        let _ = write!(line, ", {what}");
    }
    line
}

fn checkout(checkout: CheckedOut) -> String {
    let until = output::time(checkout.until_unix_s);
    let state = match (checkout.ending, checkout.missing_bytes) {
        (true, _) => "it goes back when it stands still and all of it is at the datacenter".into(),
        (false, None) => "what it goes on behind is on its way".into(),
        (false, Some(0)) => "all of it is here".into(),
        (false, Some(bytes)) => format!("{} of it are not here yet", format_size(bytes)),
    };
    format!("until {until}; {state}")
}

/// The volume that is behind the longest.
fn lag(desktop: &Desktop) -> String {
    let volumes = desktop.volumes.iter();
    let worst = volumes.max_by_key(|v| (v.behind_records.is_none(), v.behind_s, v.behind_records));
    worst.map_or_else(|| "-".into(), VolumeLine::lag)
}

fn snapshot_line(asked: SnapshotAsked) -> String {
    let frozen = if asked.frozen {
        ", with the user volume frozen"
    } else {
        ""
    };
    match asked.volumes {
        0 => {
            "nothing is new: the newest state at the datacenter is what the desktop shows\n".into()
        }
        1 => format!("a snapshot of 1 volume is asked for{frozen}\n"),
        count => format!("a snapshot of {count} volumes is asked for{frozen}\n"),
    }
}

fn show(context: &Context, desktop: &Desktop) -> Result<(), Failure> {
    if context.json {
        return output::json(desktop);
    }
    output::facts(&[
        ("desktop", Some(desktop.name.clone())),
        ("pool", Some(desktop.pool.clone())),
        (
            "version",
            Some(format!(
                "{}@{} ({})",
                desktop.image, desktop.version_number, desktop.version
            )),
        ),
        (
            "system",
            Some(
                if desktop.pooled {
                    "begins anew at log-off"
                } else {
                    "kept"
                }
                .into(),
            ),
        ),
        ("stays on that version", desktop.kept_back.clone()),
        ("state", Some(state(desktop))),
        ("error", desktop.error.clone()),
        ("room missing", desktop.missing_bytes.map(format_size)),
        (
            "machine",
            desktop.machine.as_ref().map(|machine| {
                let disk = desktop.disk.as_deref().unwrap_or("nbd");
                let tpm = if desktop.tpm { ", with a TPM" } else { "" };
                format!("{machine}, disk over {disk}{tpm}")
            }),
        ),
        (
            "why that one",
            desktop.machine_reason.clone().filter(|why| !why.is_empty()),
        ),
        ("how it started", desktop.start.clone()),
        ("sandbox", desktop.sandbox.clone()),
        ("network", desktop.network.clone()),
        ("machine type", Some(desktop.machine_type.name().into())),
        ("process", desktop.pid.map(|pid| pid.to_string())),
        (
            "started",
            desktop.started_unix_ms.map(|ms| output::time(ms / 1000)),
        ),
        ("serial log", Some(desktop.serial_log.clone())),
        ("disk (vhost-user)", desktop.disk_socket.clone()),
        ("screen (VNC)", desktop.screen_socket.clone()),
        ("screen (SPICE)", desktop.spice_socket.clone()),
        ("nbd export", Some(desktop.nbd_export.clone())),
        (
            "waited for",
            Some(format!("{} chunks", output::count(desktop.demand_chunks))),
        ),
        ("boot", desktop.boot.map(|boot| boot.line())),
        ("written", Some(format_size(desktop.overlay_bytes))),
        (
            "user volume",
            desktop.user_volume.as_ref().map(|volume| {
                let size = format_size(volume.size_bytes);
                let written = volume.written_bytes.map(format_size);
                let written = written.map_or(String::new(), |w| format!(", {w} written"));
                format!("{size}{written}, disk {}", volume.serial)
            }),
        ),
        ("checked out", desktop.checkout.map(checkout)),
        ("at the datacenter", volumes(desktop)),
        ("agent", desktop.guest.as_ref().map(agent)),
        ("logged on", desktop.guest.as_ref().and_then(users)),
        ("complaints", desktop.guest.as_ref().and_then(complaints)),
    ])
}

/// Does it.
pub async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let client = Client::new(&arguments.socket.branch_socket)?;
    match arguments.verb {
        Verb::Start {
            pool,
            name,
            serve_only,
        } => {
            let request = StartDesktop {
                pool,
                name,
                serve_only,
            };
            show(context, &client.start(&request).await?)
        }
        Verb::List => list(context, &client.desktops().await?),
        Verb::Show { name } => show(context, &client.desktop(&name).await?),
        Verb::Stop { name, force } => {
            show(context, &client.stop(&name, StopDesktop { force }).await?)
        }
        Verb::Reset { name } => show(context, &client.reset(&name).await?),
        Verb::Rebase { name, version } => {
            show(context, &client.rebase(&name, &Rebase { version }).await?)
        }
        Verb::Preflight {
            name,
            version,
            last,
            cancel,
            no_wait,
        } => {
            let begun = if last {
                client.preflight_of(&name).await?
            } else if cancel {
                client.cancel_preflight(&name).await?
            } else {
                client.preflight(&name, &Rebase { version }).await?
            };
            let waits = !(last || no_wait);
            preflight::follow(context, &client, begun, (waits, cancel)).await
        }
        Verb::Snapshot { name } => {
            let asked = client.snapshot(&name).await?;
            if context.json {
                return output::json(&asked);
            }
            output::text(&snapshot_line(asked))
        }
        Verb::CheckIn { name } => show(context, &client.check_in(&name).await?),
        Verb::Delete { name } => list(context, &client.delete(&name).await?),
        Verb::LibvirtXml { name, disk } => {
            let domain = client.libvirt(&name, &disk).await?;
            if context.json {
                return output::json(&domain);
            }
            output::text(&domain.xml)
        }
        Verb::Console { name } => console(&client.desktop(&name).await?),
    }
}

fn list(context: &Context, list: &branch_api::DesktopList) -> Result<(), Failure> {
    if context.json {
        return output::json(list);
    }
    let rows: Vec<Vec<String>> = list
        .desktops
        .iter()
        .map(|d| {
            vec![
                d.name.clone(),
                d.pool.clone(),
                format!("{}@{}", d.image, d.version_number),
                state(d),
                d.machine.clone().unwrap_or_else(|| "-".into()),
                lag(d),
                d.error.clone().unwrap_or_default(),
            ]
        })
        .collect();
    output::table(
        &[
            "DESKTOP",
            "POOL",
            "VERSION",
            "STATE",
            "MACHINE",
            "AT DATACENTER",
            "",
        ],
        &rows,
        "no desktops",
    )
}

/// Shows what a branch reports about itself.
pub async fn status(context: &Context, arguments: StatusArguments) -> Result<(), Failure> {
    let status = Client::new(&arguments.socket.branch_socket)?
        .status()
        .await?;
    if context.json {
        return output::json(&status);
    }
    let link = match (status.link.connected, status.link.rtt_ms) {
        (true, Some(rtt)) => format!("up, {} ({rtt:.0} ms)", status.link.address),
        (true, None) => format!("up, {}", status.link.address),
        (false, _) => format!("down, {}", status.link.address),
    };
    let cache = &status.cache;
    output::facts(&[
        ("link", Some(link)),
        (
            "cache",
            Some(format!(
                "{} chunks, {} of {}",
                output::count(cache.chunks),
                format_size(cache.bytes),
                format_size(cache.capacity_bytes)
            )),
        ),
        (
            "received",
            Some(format_size(status.counters.received_bytes)),
        ),
        (
            "by updates",
            Some(format_size(status.counters.update_bytes)),
        ),
        ("software", Some(status.software.clone())),
    ])?;
    let rows: Vec<Vec<String>> = status
        .versions
        .iter()
        .map(|v| {
            vec![
                format!("{}@{}", v.image, v.number),
                format!(
                    "{} of {}",
                    format_size(v.resident_bytes),
                    format_size(v.total_bytes)
                ),
                if v.complete { "whole" } else { "partly here" }.into(),
            ]
        })
        .collect();
    output::table(&["VERSION", "RESIDENT", ""], &rows, "no versions")?;
    match &status.readiness {
        Some(readiness) => {
            output::text("\n")?;
            crate::ready::show(readiness)
        }
        None => Ok(()),
    }
}

/// Restores the terminal when dropped.
struct RawTerminal(Option<rustix::termios::Termios>);

impl RawTerminal {
    fn enter() -> Self {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Self(None);
        }
        let Ok(before) = rustix::termios::tcgetattr(&stdin) else {
            return Self(None);
        };
        let mut raw = before.clone();
        raw.make_raw();
        let _ = rustix::termios::tcsetattr(&stdin, rustix::termios::OptionalActions::Now, &raw);
        Self(Some(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = rustix::termios::tcsetattr(
                std::io::stdin(),
                rustix::termios::OptionalActions::Now,
                before,
            );
        }
    }
}

/// Ctrl-].
const DETACH: u8 = 0x1D;

fn console(desktop: &Desktop) -> Result<(), Failure> {
    let failed =
        |e: std::io::Error| Failure::failed(format!("serial console of {}: {e}", desktop.name));
    let mut stream = UnixStream::connect(&desktop.serial_socket).map_err(failed)?;
    let mut reader = stream.try_clone().map_err(failed)?;
    output::aside(format_args!(
        "attached to {}; Ctrl-] detaches",
        desktop.name
    ));
    let _terminal = RawTerminal::enter();
    let printer = std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::stdout()));
    let mut buf = [0; 256];
    loop {
        let read = std::io::stdin().read(&mut buf).map_err(failed)?;
        let typed = &buf[..read];
        let end = typed.iter().position(|b| *b == DETACH);
        stream
            .write_all(&typed[..end.unwrap_or(read)])
            .map_err(failed)?;
        if read == 0 || end.is_some() || printer.is_finished() {
            return Ok(());
        }
    }
}
