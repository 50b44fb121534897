//! `splice-branch`: enrol this machine as a branch, then serve desktops from it.

mod key_command;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use branch::cache::{Cache, CacheIdentity, CacheKey, CacheOptions};
use branch::catalog::Catalog;
use branch::clock::{Clock, HostClock};
use branch::desktop::machine::confine::{Confinement, Level};
use branch::desktop::machine::uids::{self, UidRange};
use branch::desktop::machine::{DiskFront, MachineHost};
use branch::desktop::{Desktops, Volumes, wiping};
use branch::exports::Exports;
use branch::fetch::Fetcher;
use branch::guest::Directory;
use branch::identity::{self, Identity};
use branch::keys::{self, Mode};
use branch::link::{self, LinkState};
use branch::metrics::Observed;
use branch::network::choice::{InterfaceName, PoolChoice};
use branch::network::subnet::{self, Subnet};
use branch::network::{self, Network};
use branch::people::People;
use branch::portal::Portal;
use branch::portal::house::BranchHouse;
use branch::ready::proof::Proof;
use branch::server::Branch;
use branch::template::{Shelf, TemplateSecret};
use branch::versions::Versions;
use branch::volume::OverlayOptions;
use branch::writeback::lines::Lines;
use clap::{Parser, Subcommand};
use datacenter_observe::logs;
use dedup_protocol::join::JoinToken;
use dedup_protocol::trust::{Signed, TrustAnchor};
use dedup_protocol::wipe::Wipe;
use dedup_store::disk::{Disk, HostDisk};
use dedup_store::kv::{Kv, RocksKv, RocksOptions};
use dedup_transport::congestion::KnownPaths;
use dedup_transport::identity::CertAndKey;
use dedup_transport::link::{Congestion, LinkTuning};
use tokio_util::sync::CancellationToken;
use vmm_api::{CpuVirt, HostVirt, KvmKind};
use vmm_block::nbd::{NbdOptions, NbdServer};

/// How often machines are looked after.
const TEND_EVERY: Duration = Duration::from_secs(1);

/// How often overlays are: a round of theirs moves little, so that guests' flushes carry little of it.
const UPKEEP_EVERY: Duration = Duration::from_millis(250);

/// How often it is looked which templates pools want. Making one takes minutes, and the others wait for that.
const TEMPLATES_EVERY: Duration = Duration::from_secs(5);

/// How often fetched chunks are made durable, so that a version that was complete is still complete after a crash while the line is
/// down. A fill at line speed writes less than this many seconds' worth between two syncs, whatever the cache's own byte limit says.
const SYNC_EVERY: Duration = Duration::from_secs(5);

/// Where what serves desktops' networks has its files until the host starts anew.
const NETWORK_RUN: &str = "/run/splice";

#[derive(Parser)]
#[command(
    name = "splice-branch",
    version,
    about = "The branch server: desktops run here, from a cache of what the datacenter publishes"
)]
#[command(
    after_help = "Examples:\n  splice-branch join splice-join-1.0a1b… --data /var/lib/splice-branch\n  splice-branch run --data /var/lib/splice-branch --cache-size 200GiB\n\nExit codes: 0 stopped as asked, 1 failed, 2 wrong usage."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Enrol this machine with a one-time token from `splice branch token NAME`.
    Join {
        /// The token.
        token: JoinToken,
        /// Where this branch keeps everything.
        #[arg(long, default_value = "/var/lib/splice-branch")]
        data: PathBuf,
        /// The datacenter's link address (host:port), if not the token's.
        #[arg(long)]
        address: Option<String>,
    },
    /// Serve until SIGTERM or SIGINT. Machines of desktops go on running and find the server again when it is back.
    Run(Box<Run>),
    /// What protects this branch's keys, and changing that.
    #[command(subcommand)]
    Key(key_command::KeyCommand),
}

#[derive(clap::Args)]
struct Run {
    /// Where this branch keeps everything.
    #[arg(long, default_value = "/var/lib/splice-branch")]
    data: PathBuf,
    /// How much of the disk the cache may use, as 512MiB or 200GiB.
    #[arg(long, default_value = "20GiB", value_parser = parse_size)]
    cache_size: u64,
    /// Congestion control of the link: delivery, bbr, cubic or newreno.
    #[arg(long, default_value_t = Congestion::default())]
    congestion: Congestion,
    /// The datacenter's link address (host:port), if not the one this branch joined at.
    #[arg(long)]
    address: Option<String>,
    /// Unix socket of the branch-local API [default: DATA/branch.sock].
    #[arg(long)]
    socket: Option<PathBuf>,
    /// How much of the disk stays free of what desktops write: their writes wait below that, and the branch server itself goes on.
    #[arg(long, default_value = "256MiB", value_parser = parse_size)]
    keep_free: u64,
    /// How long a guest's read may wait for the datacenter before the desktop is paused, in seconds.
    #[arg(long, default_value_t = 120)]
    read_wait: u64,
    /// The file whose first line is the passphrase of the branch key. At the first start it protects the key that is made then.
    #[arg(long)]
    passphrase_file: Option<PathBuf>,
    /// The QEMU program.
    #[arg(long, default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// How QEMU reaches desktops' disks: nbd or vhost-user.
    #[arg(long, default_value_t = DiskFront::default())]
    qemu_disk: DiskFront,
    /// The splice-vmm program, if it is neither beside this one nor in PATH.
    #[arg(long)]
    vmm: Option<PathBuf>,
    /// Serve metrics and health on this TCP address too, for Prometheus. Whoever reaches it may read them: choose one of the host's own or
    /// of a management network. Without it they are on the socket alone.
    #[arg(long, value_name = "ADDR")]
    metrics: Option<SocketAddr>,
    /// Serve the portal on this TCP address, over HTTPS: users log in there and have their desktops in the browser. Its certificate is
    /// portal/portal.crt in the data folder unless --portal-certificate says else; `splice-datacenter portal-certificate` issues one.
    #[arg(long, value_name = "ADDR")]
    portal: Option<SocketAddr>,
    /// The portal's certificate, PEM, with those above it if there are any [default: DATA/portal/portal.crt].
    #[arg(long, value_name = "FILE", requires = "portal")]
    portal_certificate: Option<PathBuf>,
    /// Its private key, PEM [default: DATA/portal/portal.key].
    #[arg(long, value_name = "FILE", requires = "portal")]
    portal_key: Option<PathBuf>,
    /// Shut down a desktop of the portal that no browser shows for so many minutes. Without it desktops go on.
    #[arg(long, value_name = "MINUTES", requires = "portal", value_parser = clap::value_parser!(u64).range(1..))]
    idle_stop: Option<u64>,
    /// How much memory desktops may have together; users of the portal wait in line for more [default: the host's, but a tenth and at
    /// least 1GiB].
    #[arg(long, value_name = "SIZE", requires = "portal", value_parser = parse_size)]
    desktop_memory: Option<u64>,
    /// Log as JSON lines.
    #[arg(long)]
    log_json: bool,
    /// Use KVM or TCG without asking `splice-vmm check`.
    #[arg(long, value_parser = ["kvm", "tcg"])]
    accelerator: Option<String>,
    /// How much of its sandbox splice-vmm must have: auto (what the host allows; what it does not is told), full (all, or desktops do not
    /// start) or off.
    #[arg(long, default_value_t = Level::default())]
    sandbox: Level,
    /// Users for desktops' machines, one each, that nobody else on this host has. Only where the branch server runs as root.
    #[arg(long, value_name = "FIRST-LAST", default_value_t = uids::DEFAULT)]
    uids: UidRange,
    /// Control group (version 2) below which each machine on splice-vmm gets one with limits of its pool's sizes. Delegated to the branch
    /// server, and without processes of its own.
    #[arg(long, value_name = "FOLDER")]
    cgroup: Option<PathBuf>,
    /// Desktops' network: none, nat (a bridge of this server's own), or bridge=NAME, which is there.
    #[arg(long, value_name = "none|nat|bridge=NAME", default_value_t = network::Choice::None)]
    network: network::Choice,
    /// The same for one pool, where it differs.
    #[arg(long, value_name = "POOL=none|nat|bridge=NAME")]
    pool_network: Vec<PoolChoice>,
    /// Name of the NAT's bridge.
    #[arg(long, value_name = "NAME", default_value = "splice0")]
    nat_bridge: InterfaceName,
    /// Single-user mode, for a laptop: the socket of the branch-local API belongs to this user (a number), and desktops of two pools are never at
    /// one bridge of somebody else's, where they would reach each other.
    #[arg(long, value_name = "UID")]
    single_user: Option<u32>,
    /// The NAT's addresses: a private network of 22 to 29 bits that this host does not reach otherwise.
    #[arg(long, value_name = "NETWORK/BITS", default_value_t = subnet::DEFAULT)]
    nat_subnet: Subnet,
}

impl Run {
    fn networks(&self) -> network::Settings {
        let pools = self.pool_network.iter();
        network::Settings {
            default: self.network.clone(),
            pools: pools
                .map(|one| (one.pool.clone(), one.choice.clone()))
                .collect(),
            nat_bridge: self.nat_bridge.0.clone(),
            nat_subnet: self.nat_subnet,
        }
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = match unit.trim() {
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        "" | "B" => 0,
        other => return Err(format!("unknown unit {other:?}; use KiB, MiB, GiB or TiB")),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text:?} is not a size like 20GiB"))?;
    number
        .checked_mul(1 << shift)
        .filter(|bytes| *bytes >= 64 << 20)
        .ok_or_else(|| format!("{text:?} is out of range; at least 64MiB"))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    logs::init(matches!(&arguments.command, Command::Run(options) if options.log_json));
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // What cannot be written must not become a panic.
            let _ = writeln!(io::stderr(), "splice-branch: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A desktop's overlay is a file for each 64 MiB, all of them open, and 1,024 descriptors are 200 desktops that wrote 300 MiB each.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

fn run(arguments: Arguments) -> Result<()> {
    raise_file_limit();
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    match arguments.command {
        Command::Join {
            token,
            data,
            address,
        } => {
            let tuning = LinkTuning::default();
            let joined = identity::join(&data, &token, address.as_deref(), &tuning);
            let identity = runtime.block_on(joined)?;
            Ok(writeln!(
                io::stdout(),
                "joined as branch {:?}; start it with `splice-branch run --data {}`",
                identity.name,
                data.display()
            )?)
        }
        Command::Key(command) => key_command::run(command, lock),
        Command::Run(options) => {
            let result = runtime.block_on(serve(*options));
            // A guest's read may still sit in the blocking pool, waiting for the link.
            runtime.shutdown_timeout(Duration::from_secs(2));
            result
        }
    }
}

/// Keeps two servers off one data directory.
fn lock(data: &Path) -> Result<std::fs::File> {
    let path = data.join("lock");
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!(
            "{} is in use by another splice-branch; stop that one first",
            data.display()
        );
    }
    Ok(file)
}

async fn serve(options: Run) -> Result<()> {
    let data = std::path::absolute(&options.data)?;
    let wiped = wipe_order(&data)?;
    if wiped.is_some() && identity::is_destroyed(&data) {
        // Also the datacenter knows it.
        identity::destroy(&data)?;
        bail!(keys::KeyError::Wiped);
    }
    let mut identity = Identity::load(&data)?;
    identity.finish_renewal()?;
    if let Some(address) = &options.address {
        identity.address.clone_from(address);
    }
    let _lock = lock(&data)?;
    if let Some(order) = wiped {
        let (folder, anchor) = (data.clone(), identity.anchor.clone());
        tokio::task::spawn_blocking(move || end_machines(&folder, anchor)).await??;
        return finish_wipe(&options, &data, &identity, order).await;
    }
    let bearer = identity.clone();
    let cancel = CancellationToken::new();
    let (branch, nbd) = open(&options, &data, identity)?;
    let socket = options
        .socket
        .clone()
        .unwrap_or_else(|| data.join("branch.sock"));
    let listener = branch::http::bind(&socket)
        .with_context(|| format!("branch-local API at {}", socket.display()))?;
    if let Some(uid) = options.single_user {
        std::os::unix::fs::chown(&socket, Some(uid), None)
            .with_context(|| format!("give {} to user {uid}", socket.display()))?;
    }
    let metrics = match options.metrics {
        None => None,
        Some(address) => Some(bind_metrics(address).await?),
    };
    let portal = match options.portal {
        None => None,
        Some(address) => Some(bind_portal(&options, &data, address)?),
    };
    tracing::info!(branch = branch.identity.name, socket = %socket.display(), "serving");

    let tuning = LinkTuning {
        congestion: options.congestion,
        ..LinkTuning::default()
    };
    let link = tokio::spawn(branch::link::run(
        Arc::clone(&branch),
        tuning,
        Arc::new(KnownPaths::open(data.join("paths"))),
        cancel.clone(),
    ));
    let http = tokio::spawn(branch::http::serve(
        Arc::clone(&branch),
        listener,
        cancel.clone(),
    ));
    if let Some(listener) = metrics {
        tokio::spawn(branch::http::serve_metrics(
            Arc::clone(&branch),
            listener,
            cancel.clone(),
        ));
    }
    let portal = portal.map(|(listener, tls)| {
        let limit_mib = options.desktop_memory.map(|bytes| bytes >> 20);
        let house = Arc::new(BranchHouse::new(Arc::clone(&branch), limit_mib));
        let idle_stop_s = options.idle_stop.map(|minutes| minutes.saturating_mul(60));
        let portal = Arc::new(Portal::new(house, idle_stop_s));
        tokio::spawn(branch::http::portal::serve(
            portal,
            listener,
            tls,
            cancel.clone(),
        ))
    });
    let tending = tokio::spawn(tend(Arc::clone(&branch), cancel.clone()));
    let directory: Arc<dyn Directory> = branch.desktops.clone();
    let guests = Arc::clone(branch.desktops.guests());
    let attending = tokio::spawn(branch::guest::watch(directory, guests, cancel.clone()));
    let keeping = tokio::spawn(keep_cache(Arc::clone(&branch), cancel.clone()));
    let upkeep = tokio::spawn(keep_overlays(Arc::clone(&branch), cancel.clone()));
    let templates = tokio::spawn(keep_templates(Arc::clone(&branch), cancel.clone()));
    branch.observed.set_serving(true);
    tokio::select! {
        signal = wait_for_signal() => {
            signal?;
            tracing::info!("stopping; machines go on running");
        }
        () = branch.link.wiped() => {}
    }
    branch.observed.set_serving(false);
    branch.desktops.stop_templates();
    cancel.cancel();
    let _ = tokio::time::timeout(Duration::from_secs(5), link).await;
    let _ = tokio::time::timeout(Duration::from_secs(5), http).await;
    if let Some(portal) = portal {
        let _ = tokio::time::timeout(Duration::from_secs(5), portal).await;
    }
    let _ = tokio::time::timeout(Duration::from_secs(5), tending).await;
    let _ = tokio::time::timeout(Duration::from_secs(5), attending).await;
    let _ = tokio::time::timeout(Duration::from_secs(5), keeping).await;
    let _ = tokio::time::timeout(Duration::from_secs(5), upkeep).await;
    let _ = tokio::time::timeout(Duration::from_secs(5), templates).await;
    tokio::task::spawn_blocking(move || {
        branch.desktops.volumes().stop_serving();
        nbd.shutdown(Duration::from_secs(5));
        if let Err(error) = branch.fetcher.cache().sync() {
            tracing::warn!(
                error = branch::desktop::error_line(&error),
                "cache not synced"
            );
        }
    })
    .await?;
    let _ = std::fs::remove_file(&socket);
    match wipe_order(&data)? {
        // It goes last, so what is there is not done.
        Some(_) if data.join("desktops").exists() => bail!(
            "the keys of this branch are destroyed, but not all that its machines left in the clear is removed; start the server again"
        ),
        Some(order) => finish_wipe(&options, &data, &bearer, order).await,
        None => Ok(()),
    }
}

/// The order by which all keys of this branch were destroyed, if there is one.
fn wipe_order(data: &Path) -> Result<Option<Vec<u8>>> {
    // Not made by looking.
    if !data.join("keys").exists() {
        return Ok(None);
    }
    Ok(keys::wiped(&*key_command::disk(data)?)?)
}

/// Ends machines that a server which was wiped left.
fn end_machines(data: &Path, anchor: TrustAnchor) -> Result<()> {
    let rows = RocksKv::open(data.join("state"), &RocksOptions::default())?;
    let catalog = Catalog::new(Arc::new(rows), anchor);
    Ok(wiping::end_all(&catalog, &data.join("desktops"))?)
}

/// Completes a wipe of everything, tells the datacenter, then gives up being a branch. Machines have ended.
async fn finish_wipe(
    options: &Run,
    data: &Path,
    identity: &Identity,
    order: Vec<u8>,
) -> Result<()> {
    let wipe = Signed::<Wipe>::from_bytes(&order)?.open_own()?;
    let disk = key_command::disk(data)?;
    // What is reported is done.
    tokio::task::spawn_blocking(move || keys::wipe(&*disk, &order, keys::system_random)).await??;
    let tuning = LinkTuning {
        congestion: options.congestion,
        ..LinkTuning::default()
    };
    tracing::warn!("this branch is wiped; the datacenter is told");
    tokio::select! {
        () = link::wiped::tell(identity, &wipe, &tuning) => {}
        signal = wait_for_signal() => {
            signal?;
            bail!("this branch is wiped, and the datacenter does not know it yet; start the server again where there is a line");
        }
    }
    identity::destroy(data)?;
    bail!(keys::KeyError::Wiped)
}

/// Listens for users, with the certificate that the portal shows them.
fn bind_portal(
    options: &Run,
    data: &Path,
    address: SocketAddr,
) -> Result<(std::net::TcpListener, Arc<rustls::ServerConfig>)> {
    let file = |chosen: &Option<PathBuf>, name: &str| match chosen {
        Some(path) => path.clone(),
        None => data.join("portal").join(name),
    };
    let certificate = file(&options.portal_certificate, "portal.crt");
    let key = file(&options.portal_key, "portal.key");
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| {
            format!(
                "{}: the portal needs a certificate with its key; have one issued with `splice-datacenter portal-certificate`, or name your own with --portal-certificate and --portal-key",
                path.display()
            )
        })
    };
    let pair = CertAndKey {
        cert_pem: read(&certificate)?,
        key_pem: read(&key)?.into(),
    };
    let tls = dedup_transport::tls::portal_server_config(&pair)
        .with_context(|| format!("{} and {}", certificate.display(), key.display()))?;
    let listener = std::net::TcpListener::bind(address).with_context(|| {
        format!("cannot listen for the portal on TCP {address}; is another program using that port? choose another with --portal")
    })?;
    let address = listener.local_addr()?;
    tracing::info!(%address, "the portal is served");
    Ok((listener, tls))
}

/// Listens for Prometheus.
async fn bind_metrics(address: SocketAddr) -> Result<tokio::net::TcpListener> {
    let bound = tokio::net::TcpListener::bind(address).await;
    let listener = bound.with_context(|| {
        format!("cannot listen for metrics on TCP {address}; is another program using that port? choose another with --metrics")
    })?;
    let address = listener.local_addr()?;
    if address.ip().is_loopback() {
        tracing::info!(%address, "metrics are served");
    } else {
        tracing::warn!(%address, "metrics are served to whoever reaches this address");
    }
    Ok(listener)
}

/// Opens everything that lives in the data directory, then the NBD server.
fn open(options: &Run, data: &Path, identity: Identity) -> Result<(Arc<Branch>, NbdServer)> {
    let clock: Arc<dyn Clock> = Arc::new(HostClock);
    let keys = key_command::open(data, options.passphrase_file.as_deref())?;
    match keys.mode() {
        Mode::KeyFile => tracing::warn!(
            "keys are protected by {}; `splice-branch key protect` changes that",
            Mode::KeyFile.protects()
        ),
        mode => tracing::info!("keys are protected by {}", mode.protects()),
    }
    let keys = Arc::new(keys);
    let kv: Arc<dyn Kv> = Arc::new(RocksKv::open(data.join("state"), &RocksOptions::default())?);
    let disk: Arc<dyn Disk> = Arc::new(HostDisk::new(data.join("disks"))?);
    let cache_disk: Arc<dyn Disk> = Arc::new(HostDisk::new(data.join("cache"))?);
    let catalog = Catalog::new(Arc::clone(&kv), identity.anchor.clone());
    catalog.set_endorsements(&identity.endorsements)?;
    let people = People::open(Arc::clone(&kv), catalog.clone(), &keys.cache()?);
    let versions = Arc::new(Versions::open(catalog)?);
    let cache = Cache::open(
        cache_disk,
        "slabs",
        kv,
        CacheIdentity {
            realm: identity.anchor.realm,
            key_id: identity.id_key.key_id(),
        },
        rand::random(),
        CacheKey::new(*keys.cache()?.bytes()),
        CacheOptions {
            capacity_bytes: options.cache_size,
            ..CacheOptions::default()
        },
    )?;
    let wait_max = Duration::from_secs(options.read_wait);
    let fetcher =
        Arc::new(Fetcher::new(Arc::new(cache), wait_max).with_wall_clock(Arc::clone(&clock)));
    let needing = Arc::clone(&versions);
    fetcher.set_needs(Box::new(move || needing.ranks()));
    let vmm = find_vmm(options);
    let cgroup = options.cgroup.clone();
    let virt = host_virt(options, vmm.as_deref());
    // Where it never runs, nothing is to be said about it.
    let confined = vmm.as_deref().filter(|_| virt.kind.runs_desktops());
    let confinement = Confinement::settle(options.sandbox, options.uids, cgroup, confined)?;
    let host = MachineHost {
        virt,
        vmm,
        qemu: options.qemu.clone(),
        qemu_disk: options.qemu_disk,
        nbd_socket: data.join("nbd.sock"),
        confinement,
    };
    let nbd_socket = host.nbd_socket.clone();
    let lines = Arc::new(Lines::new(
        versions.catalog().clone(),
        identity.branch,
        identity.id_key.clone(),
        Arc::clone(&clock),
    ));
    let overlay_options = OverlayOptions {
        floor_bytes: options.keep_free,
        ..OverlayOptions::default()
    };
    let networks = options.networks();
    if options.single_user.is_some()
        && let Some(bridge) = networks.shared_bridge()
    {
        bail!(
            "desktops of several pools would reach each other at bridge {bridge}; in single-user mode give each pool its own with --pool-network, or use nat, which keeps desktops apart"
        );
    }
    let secret = TemplateSecret::new(keys.cache()?.bytes());
    let templates = Shelf::open(Arc::clone(&disk), secret);
    let network = Network::new(networks, data, Path::new(NETWORK_RUN));
    let desktops = Desktops::new(
        data.join("desktops"),
        Arc::clone(&versions),
        Arc::clone(&fetcher),
        Volumes::new(disk, keys, lines, overlay_options),
        host,
        Arc::new(network),
        Arc::clone(&clock),
    );
    let desktops = Arc::new(desktops.with_templates(templates));
    desktops.recover()?;
    desktops.prepare_network();
    let exports = Exports::new(
        Arc::clone(&versions),
        Arc::clone(&fetcher),
        Arc::clone(&desktops),
    );
    let nbd = NbdServer::new(Arc::new(exports), NbdOptions::default())?;
    nbd.listen_unix(&nbd_socket)?;
    let branch = Branch {
        identity,
        versions,
        fetcher,
        desktops,
        people,
        proof: Proof::default(),
        link: LinkState::default(),
        observed: Observed::new(clock.now_unix_s()),
        passphrase_file: options.passphrase_file.clone(),
        clock,
    };
    branch.follow_policy(branch.versions.catalog().policy()?);
    Ok((Arc::new(branch), nbd))
}

/// The splice-vmm program, if there is one.
fn find_vmm(options: &Run) -> Option<PathBuf> {
    if options.vmm.is_some() {
        return options.vmm.clone();
    }
    let own = std::env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent).map(Path::to_owned);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = beside.into_iter().chain(std::env::split_paths(&path));
    let programs = folders.map(|folder| folder.join("splice-vmm"));
    programs.into_iter().find(|program| program.is_file())
}

/// What this host's KVM can do; `splice-vmm check` finds out by running guests.
fn host_virt(options: &Run, vmm: Option<&Path>) -> HostVirt {
    let virt = |kind, reason: String| HostVirt {
        kind,
        reasons: vec![reason],
        advice: None,
        probes: Vec::new(),
        instructions_per_second: None,
        cpu: CpuVirt::default(),
    };
    match options.accelerator.as_deref() {
        Some("kvm") => return virt(KvmKind::Hardware, "--accelerator kvm says so".into()),
        Some(_) => return virt(KvmKind::None, "--accelerator tcg says so".into()),
        None => {}
    }
    let Some(vmm) = vmm else {
        let reason = "splice-vmm, which finds out, is neither beside splice-branch nor in PATH";
        tracing::warn!(reason, "desktops run under TCG");
        return virt(KvmKind::None, reason.into());
    };
    let checked = std::process::Command::new(vmm)
        .args(["check", "--json"])
        .output()
        .map_err(anyhow::Error::from)
        .and_then(|output| Ok(serde_json::from_slice::<HostVirt>(&output.stdout)?));
    match checked {
        Ok(host) if host.kind.runs_desktops() => host,
        Ok(host) => {
            tracing::warn!(
                kvm = ?host.kind,
                reasons = host.reasons.join("; "),
                advice = host.advice.as_deref().unwrap_or_default(),
                "this host's KVM cannot run desktops: they run under QEMU's TCG, ten to fifty times slower"
            );
            host
        }
        Err(error) => {
            let error = format!("{error:#}");
            tracing::warn!(program = %vmm.display(), error, "splice-vmm check did not run; desktops run under TCG");
            virt(
                KvmKind::None,
                format!("splice-vmm check did not run: {error}"),
            )
        }
    }
}

/// Makes fetched chunks durable; nothing happens if all are.
async fn keep_cache(branch: Arc<Branch>, cancel: CancellationToken) {
    let mut told = String::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(SYNC_EVERY) => {}
            () = cancel.cancelled() => return,
        }
        let worker = Arc::clone(&branch);
        let synced = tokio::task::spawn_blocking(move || worker.fetcher.cache().sync()).await;
        let trouble = match synced {
            Ok(Err(error)) => branch::desktop::error_line(&error),
            _ => String::new(),
        };
        // A disk that stays full is told once.
        if trouble != told && !trouble.is_empty() {
            tracing::warn!(error = trouble, "cache not synced");
        }
        told = trouble;
    }
}

/// Keeps overlays short and quick to open.
async fn keep_overlays(branch: Arc<Branch>, cancel: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(UPKEEP_EVERY) => {}
            () = cancel.cancelled() => return,
        }
        let worker = Arc::clone(&branch);
        let _ = tokio::task::spawn_blocking(move || worker.desktops.volumes().tend()).await;
    }
}

/// Makes the templates that pools want, one after the other.
async fn keep_templates(branch: Arc<Branch>, cancel: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(TEMPLATES_EVERY) => {}
            () = cancel.cancelled() => return,
        }
        let worker = Arc::clone(&branch);
        let _ = tokio::task::spawn_blocking(move || worker.desktops.tend_templates()).await;
    }
}

async fn tend(branch: Arc<Branch>, cancel: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(TEND_EVERY) => {}
            () = cancel.cancelled() => return,
        }
        let worker = Arc::clone(&branch);
        let connected = branch.link.is_connected();
        let _ = tokio::task::spawn_blocking(move || worker.desktops.tend(connected)).await;
    }
}

async fn wait_for_signal() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
