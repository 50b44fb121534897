//! `splice-agent`: runs inside a desktop, as a service that starts before people log on. See the library for what it does.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use branch_agent::agent::{Agent, Settings};
use branch_agent::notify;
use branch_agent::port::{Event, Port, find, may_come};
use branch_agent::root::Root;
use branch_agent::tools::{HostTools, SHORT, Tools};
use branch_guest::{Lines, PORT_NAME, ToGuest};

const USAGE: &str = "\
usage: splice-agent [run|thaw] [--user-volume-at PLACE]

  run     serve the branch that this desktop runs at (the default); ends at once where there is no port splice.agent.0
  thaw    let the user volume's file system go on, as after the agent was killed

  --user-volume-at PLACE    where the user volume is mounted [default: /home]

Exit codes: 0 ended as it should, 1 failed, 2 wrong usage.";

/// How long the port may take to appear: its driver is loaded while the agent starts.
const PORT_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks for it, and while nobody is at the other end.
const STEP: Duration = Duration::from_millis(500);

enum Verb {
    Run,
    Thaw,
}

fn parse(arguments: impl Iterator<Item = String>) -> Option<(Verb, String)> {
    let (mut verb, mut place) = (Verb::Run, "/home".to_owned());
    let mut arguments = arguments.skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "run" => verb = Verb::Run,
            "thaw" => verb = Verb::Thaw,
            "--user-volume-at" => place = arguments.next().filter(|place| is_place(place))?,
            _ => return None,
        }
    }
    Some((verb, place))
}

/// A folder that a disk may be mounted at without taking the system away.
fn is_place(place: &str) -> bool {
    let mut parts = place.strip_prefix('/').unwrap_or_default().split('/');
    let first = parts.next().unwrap_or_default();
    let system = [
        "", "bin", "boot", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "usr",
    ];
    !system.contains(&first)
        && (first != "var" || parts.clone().next().is_some())
        && parts.all(|part| !part.is_empty() && part != "..")
        && first != ".."
}

/// Says something on standard error. That it cannot be written, because a disk is full or nobody reads, must not end what goes on.
fn say(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--version") {
        let told = writeln!(io::stdout(), "splice-agent {}", env!("CARGO_PKG_VERSION"));
        return match told {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let Some((verb, place)) = parse(std::env::args()) else {
        say(USAGE);
        return ExitCode::from(2);
    };
    match verb {
        Verb::Thaw => {
            // Not frozen is as well.
            let _ = HostTools.run("fsfreeze", &["--unfreeze", &place], SHORT);
            ExitCode::SUCCESS
        }
        Verb::Run => match serve(place) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                say(format_args!("splice-agent: port {PORT_NAME}: {error}"));
                ExitCode::FAILURE
            }
        },
    }
}

fn serve(place: String) -> io::Result<()> {
    let root = Root::new("/");
    let begun = Instant::now();
    let found = loop {
        if let Some(found) = find(&root) {
            break found;
        }
        if !may_come(&root) || begun.elapsed() >= PORT_PATIENCE {
            say(format_args!(
                "splice-agent: there is no port {PORT_NAME}: this is no desktop of a branch"
            ));
            return notify::ready();
        }
        std::thread::sleep(STEP);
    };
    let settings = Settings {
        place,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    run(&found, Agent::new(root, HostTools, settings))
}

/// Goes on until the port is gone.
fn run(path: &Path, mut agent: Agent<HostTools>) -> io::Result<()> {
    let mut port = Port::open(path)?;
    let mut lines = Lines::default();
    let mut buf = vec![0; 4096];
    let begun = Instant::now();
    let now_ms = || u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let mut told_ready = false;
    loop {
        if let Some(message) = agent.tick(now_ms())
            && !port.write(&message.encode())?
        {
            agent.was_not_sent();
        }
        if !told_ready && agent.is_settled(now_ms()) {
            told_ready = true;
            if let Err(error) = notify::ready() {
                say(format_args!(
                    "splice-agent: systemd is not told that we are ready: {error}"
                ));
            }
        }
        // Not asleep for longer than people wait.
        let rest = Duration::from_millis(agent.rests_ms(now_ms())).min(Duration::from_secs(2));
        match port.wait(rest)? {
            Event::Late => continue,
            Event::Alone => {}
            Event::Readable => {
                if let Some(read) = port.read(&mut buf)? {
                    let mut heard = Vec::new();
                    lines.push(&buf[..read], |line| {
                        // What is no message is somebody's mistake, and harms nobody.
                        heard.extend(line.ok().and_then(|line| ToGuest::decode(line).ok()));
                    });
                    for message in heard {
                        if let Some(answer) = agent.hear(message, now_ms()) {
                            port.write(&answer.encode())?;
                        }
                    }
                    continue;
                }
            }
        }
        agent.branch_went();
        lines.forget();
        std::thread::sleep(STEP);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn places_are_folders_for_users() {
        for place in ["/home", "/srv/users", "/var/users", "/data"] {
            assert!(is_place(place), "{place}");
        }
        for place in [
            "",
            "/",
            "home",
            "/etc",
            "/usr/x",
            "/home/../etc",
            "/var",
            "/a//b",
            "/..",
        ] {
            assert!(!is_place(place), "{place}");
        }
        let words = |text: &str| parse(text.split(' ').map(str::to_owned));
        assert!(words("splice-agent thaw --user-volume-at /srv").is_some_and(|(_, p)| p == "/srv"));
        assert!(words("splice-agent --user-volume-at /").is_none());
        assert!(words("splice-agent --user-volume-at").is_none());
        assert!(words("splice-agent exec").is_none());
    }
}
