//! `sim-wan proxy`.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::Context;
use clap::Args;
use sim_wan::proxy::{Proxy, TcpProxy, UdpProxy};

use super::signals::Signals;
use super::{load_profiles, named_profile, seed_of, serve};

/// Arguments of `sim-wan proxy`.
#[derive(Args)]
pub struct ProxyArguments {
    /// A UDP service: LISTEN=TARGET, such as 127.0.0.1:5000=127.0.0.1:4433; port 0 takes a free one. Repeatable.
    #[arg(long, value_name = "LISTEN=TARGET")]
    udp: Vec<Route>,
    /// A TCP service, likewise. Each --udp and --tcp is a link of its own.
    #[arg(long, value_name = "LISTEN=TARGET")]
    tcp: Vec<Route>,
    /// Profile of the links.
    #[arg(long)]
    profile: String,
    /// Profiles file instead of the built-in profiles.
    #[arg(long, value_name = "FILE")]
    profiles: Option<PathBuf>,
    /// Seed of all randomness.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Control socket to serve.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[derive(Clone)]
struct Route {
    listen: SocketAddr,
    target: SocketAddr,
}

impl FromStr for Route {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (listen, target) = text.split_once('=').ok_or("must be LISTEN=TARGET")?;
        let address = |text: &str| {
            let mut found = text
                .to_socket_addrs()
                .map_err(|error| format!("address {text:?}: {error}"))?;
            found
                .next()
                .ok_or_else(|| format!("address {text:?} resolves to nothing"))
        };
        Ok(Self {
            listen: address(listen)?,
            target: address(target)?,
        })
    }
}

pub fn run(arguments: &ProxyArguments) -> anyhow::Result<ExitCode> {
    let profiles = load_profiles(arguments.profiles.as_ref())?;
    let profile = named_profile(&profiles, None, Some(&arguments.profile), "proxy")?.clone();
    if arguments.udp.is_empty() && arguments.tcp.is_empty() {
        anyhow::bail!("nothing to carry; pass --udp LISTEN=TARGET or --tcp LISTEN=TARGET");
    }
    let signals = Signals::block().context("blocking signals")?;
    let udp = arguments.udp.iter().map(|route| ("udp", route));
    let tcp = arguments.tcp.iter().map(|route| ("tcp", route));
    let mut proxies: Vec<Proxy> = Vec::new();
    for (index, (kind, route)) in udp.chain(tcp).enumerate() {
        let seed = seed_of(arguments.seed, index);
        let name = match route.listen.port() {
            0 => format!("{kind}-{index}"),
            port => format!("{kind}-{port}"),
        };
        let started = match kind {
            "udp" => UdpProxy::spawn_named(&name, route.listen, route.target, &profile, seed),
            _ => TcpProxy::spawn_named(&name, route.listen, route.target, &profile, seed),
        };
        let proxy = started.map_err(|error| listen_error(route.listen, error))?;
        println!(
            "{name}: {} → {}, profile {}, seed {seed}",
            proxy.local_addr(),
            route.target,
            profile.name
        );
        proxies.push(proxy);
    }
    let controlled = proxies.iter().map(Proxy::controlled).collect();
    serve(&signals, arguments.socket.as_deref(), controlled, profiles)?;
    Ok(ExitCode::SUCCESS)
}

fn listen_error(listen: SocketAddr, error: io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => "the port is in use; choose another, or 0 for any free one",
        io::ErrorKind::AddrNotAvailable => "no interface of this machine has that address",
        io::ErrorKind::PermissionDenied => "ports below 1024 need root; choose a higher one",
        _ => "cannot listen there",
    };
    anyhow::Error::new(error).context(format!("{listen}: {hint}"))
}
