//! `splice-datacenter`: making a data folder, opening it, and running everything that stands on it.
//!
//! Invariant: whoever works on a data folder holds its lock. Errors here end the process, so they say what, where and the way out.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use dedup::RealmId;
use dedup_store::disk::{Disk, HostDisk};
use dedup_store::kv::Kv;
use dedup_store::kv::{RocksKv, RocksOptions};
use dedup_store::{ChunkStore, StoreError, StoreOptions};
use dedup_transport::congestion::KnownPaths;
use dedup_transport::identity::CertAndKey;
use dedup_transport::link::{LinkServer, LinkTuning};
use dedup_transport::tls;
use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, check_address};
use crate::datacenter::Datacenter;
use crate::http;
use crate::identity::{log_in, tokens};
use crate::metrics::MetricsTokenError;
use crate::problem::describe;
use crate::realm::files::{DataDir, DataLock, create_private_dir, write_durably};
use crate::realm::{self, Realm};

/// How long the datacenter's own certificate holds. It is made anew at each start and kept in memory only; two years are more than
/// any machine runs between reboots.
const CERTIFICATE_VALIDITY: Duration = Duration::from_secs(2 * 365 * 86_400);
/// How often renewed endorsements are looked for.
const ENDORSEMENT_INTERVAL: Duration = Duration::from_secs(30);
/// How long operations may take to stop when the daemon does.
const OPERATIONS_STOP_MAX: Duration = Duration::from_secs(20);

/// What `init` is told.
#[derive(Debug, Clone, Default)]
pub struct InitOptions {
    /// The realm's name, for people.
    pub name: Option<String>,
    /// `host:port` under which branches reach the datacenter.
    pub address: Option<String>,
    /// DNS names and addresses for the API's certificate.
    pub api_names: Vec<String>,
    /// Where the link listens.
    pub link: Option<SocketAddr>,
    /// Where the API listens.
    pub api: Option<SocketAddr>,
    /// Where the passphrase is kept, if not in the data folder.
    pub passphrase_file: Option<PathBuf>,
}

/// Makes a realm in `data`; answers what the operator should know, line by line.
pub fn init(data: &Path, options: &InitOptions) -> anyhow::Result<Vec<String>> {
    let dir = absolute(data)?;
    realm::refuse_existing(&dir)?;
    if let Some(address) = &options.address {
        check_address(address).map_err(anyhow::Error::msg)?;
    }
    create_private_dir(dir.root())
        .with_context(|| format!("cannot create {}", dir.root().display()))?;
    let _lock = DataLock::take(&dir)?;
    realm::refuse_existing(&dir)?;

    let config_text = config_text(options)?;
    let config = Config::parse(&config_text, &dir.config())?.config;
    let passphrase_file = config.passphrase_file.clone().unwrap_or(dir.passphrase());
    let now = SystemClock.unix_s();
    let name = options.name.as_deref().unwrap_or("splice");
    let realm = Realm::init(&dir, &passphrase_file, name, now)?;
    // A wrong name is found here, not at the first start.
    issue_certificate(&realm, &config)?;

    // What an interrupted init left in the catalog belongs to a realm that never was.
    match std::fs::remove_dir_all(dir.catalog()) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("cannot clear {}", dir.catalog().display()));
        }
        _ => {}
    }
    let token = tokens::new_api_token();
    let catalog = open_catalog(&dir, realm.id)?;
    tokens::replace_api_tokens(&catalog, "init", &token, now)?;
    let (code, row) = log_in::new_setup_code(now);
    catalog.transact(|tx| log_in::keep_setup_code(tx, &code, &row))?;
    drop(catalog);

    write(&dir.config(), 0o644, &config_text)?;
    write(&dir.cli(), 0o600, &cli_text(&dir, config.api, &token))?;
    realm.finish_init(&dir, now)?;
    Ok(vec![
        format!(
            "realm {} ({name}) is ready in {}",
            realm.id,
            dir.root().display()
        ),
        format!(
            "MOVE {} OFFLINE NOW: whoever has it can speak for the realm; it is needed once a year, for `splice-datacenter endorse`",
            dir.root_key().display()
        ),
        format!(
            "keep a copy of {} on another machine, and back up with `splice store backup DIR`: a backup cannot be restored without the passphrase",
            passphrase_file.display()
        ),
        format!("branches will connect to {}", config.address),
        format!(
            "the `splice` command's configuration is {} (a secret)",
            dir.cli().display()
        ),
        format!(
            "the first administrator is made within a day with the one-time code {code}: `splice setup NAME`; later ones with a code of `splice setup-code`"
        ),
        format!(
            "start with: splice-datacenter run --data {}",
            dir.root().display()
        ),
    ])
}

/// What `run` is told.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Where the link listens, instead of the configuration's.
    pub link: Option<SocketAddr>,
    /// Where the API listens, instead of the configuration's.
    pub api: Option<SocketAddr>,
    /// Where the passphrase is, instead of the configuration's.
    pub passphrase_file: Option<PathBuf>,
}

/// Opens everything in `data`. The lock must live as long as the datacenter.
pub fn open(data: &Path, options: &RunOptions) -> anyhow::Result<(Arc<Datacenter>, DataLock)> {
    open_at(data, options, Arc::new(SystemClock))
}

/// As [`open`], with its time from `clock`.
pub fn open_at(
    data: &Path,
    options: &RunOptions,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<(Arc<Datacenter>, DataLock)> {
    let dir = absolute(data)?;
    if !dir.root().exists() {
        bail!(realm::RealmError::Missing {
            dir: dir.root().to_owned()
        });
    }
    let lock = DataLock::take(&dir)?;
    let loaded = Config::load(&dir.config())?;
    for key in &loaded.unknown {
        tracing::warn!(key, file = %dir.config().display(), "unknown configuration key, ignored");
    }
    let mut config = loaded.config;
    config.link = options.link.unwrap_or(config.link);
    config.api = options.api.unwrap_or(config.api);
    config.scratch_dir = Some(config.scratch_dir.unwrap_or(dir.scratch()));
    let passphrase_file = options
        .passphrase_file
        .clone()
        .or(config.passphrase_file.clone())
        .unwrap_or(dir.passphrase());
    let realm = Realm::open(&dir, &passphrase_file)?;
    // Operators are told to keep a copy of the one that is in use.
    config.passphrase_file = Some(passphrase_file);
    let catalog = open_catalog(&dir, realm.id)?;
    let store = open_store(&dir, &realm)?;
    let datacenter = Datacenter::new(realm, catalog, Arc::new(store), clock, config, dir)?;
    Ok((datacenter, lock))
}

/// Runs until `cancel`. `ready` is called once, with the addresses that are listened on.
pub async fn run(
    datacenter: Arc<Datacenter>,
    cancel: CancellationToken,
    ready: impl FnOnce(SocketAddr, SocketAddr),
) -> anyhow::Result<()> {
    let config = datacenter.config().clone();
    tls::install_provider();
    let certificate = issue(&datacenter, &config)?;
    let tuning = tuning(&config)?;
    // The certificate's key is new at each start, the authority's is not.
    let authority = datacenter.ca();
    let links = LinkServer::bind_with_resets(
        config.link,
        &certificate,
        &authority.cert_pem(),
        &tuning,
        authority.key_pem().as_bytes(),
    )
    .with_context(|| {
            format!("cannot listen for branches on UDP {}; is another program using that port? choose another with --link", config.link)
        })?;
    links.remember_paths(Arc::new(KnownPaths::open(datacenter.dir().paths())));
    let listener = TcpListener::bind(config.api).with_context(|| {
        format!("cannot listen for the management API on TCP {}; is another program using that port? choose another with --api", config.api)
    })?;
    let (link_address, api_address) = (links.local_addr(), listener.local_addr()?);
    if let Some(file) = &config.metrics_token_file {
        match datacenter.observed().take_metrics_token(file) {
            // A datacenter that was restored on another machine is to serve branches before anybody looks at figures.
            Err(error @ MetricsTokenError::Io { .. }) => tracing::warn!(
                error = describe(&error),
                "metrics are for those alone who may see the realm"
            ),
            taken => taken?,
        }
    }

    let sync = tokio::spawn(crate::sync::serve(
        datacenter.clone(),
        links,
        cancel.clone(),
    ));
    let endorsements = tokio::spawn(watch_endorsements(datacenter.clone(), cancel.clone()));
    let updates = tokio::spawn(crate::update::run(datacenter.clone(), cancel.clone()));
    let upkeep = tokio::spawn(crate::upkeep::run(datacenter.clone(), cancel.clone()));
    let finishing = datacenter.clone();
    // Not waited for: a segment that is left is finished at the next start.
    tokio::task::spawn_blocking(move || match finishing.finish_segments() {
        Ok(0) => {}
        Ok(segments) => tracing::info!(segments, "segments that a crash left whole are applied"),
        Err(error) => {
            tracing::error!(
                error = describe(&error),
                "segments that a crash left cannot be looked up"
            );
        }
    });
    let https = tls::https_server_config(&certificate)?;
    let api = tokio::spawn(http::serve(
        datacenter.clone(),
        listener,
        https,
        cancel.clone(),
    ));
    tracing::info!(realm = %datacenter.realm(), link = %link_address, api = %api_address, "datacenter is up");
    datacenter.observed().set_serving(true);
    ready(link_address, api_address);

    // Either server ending on its own is the end of the daemon: half a datacenter helps nobody.
    let (mut sync, mut api) = (sync, api);
    let ended = tokio::select! {
        ended = &mut sync => ended.context("the sync server").map(|()| "the sync server ended"),
        ended = &mut api => match ended.context("the management API")? {
            Ok(()) => Ok("the management API ended"),
            Err(error) => Err(error).context("the management API"),
        },
    };
    let wanted = cancel.is_cancelled();
    datacenter.observed().set_serving(false);
    cancel.cancel();
    datacenter.operations().cancel_all();
    if !sync.is_finished() {
        sync.await.context("the sync server")?;
    }
    if !api.is_finished() {
        api.await.context("the management API")??;
    }
    endorsements.await.ok();
    updates.await.ok();
    upkeep.await.ok();
    stop_operations(&datacenter).await;
    datacenter.store().commit()?;
    match ended {
        Ok(_) if wanted => {
            tracing::info!("datacenter has stopped");
            Ok(())
        }
        Ok(what) => bail!("{what} without being asked to; its log says more"),
        Err(error) => Err(error),
    }
}

async fn stop_operations(datacenter: &Datacenter) {
    let deadline = tokio::time::Instant::now() + OPERATIONS_STOP_MAX;
    while datacenter.operations().running_count() > 0 {
        // Again: one may have begun since all were asked.
        datacenter.operations().cancel_all();
        if tokio::time::Instant::now() > deadline {
            tracing::warn!("an operation did not stop in time; it will be shown as interrupted");
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Takes over endorsements that `endorse` renewed beside the running daemon.
async fn watch_endorsements(datacenter: Arc<Datacenter>, cancel: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(ENDORSEMENT_INTERVAL) => {}
            () = cancel.cancelled() => return,
        }
        let dir = datacenter.dir().clone();
        let read = tokio::task::spawn_blocking(move || realm::read_endorsements(&dir)).await;
        match read {
            Ok(Ok(new)) if new != datacenter.endorsements() => {
                tracing::info!("the publisher key's endorsement was renewed");
                datacenter.renew_endorsements(new);
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "endorsements cannot be read"),
            Err(error) => tracing::error!(%error, "reading endorsements"),
        }
    }
}

/// Renews the endorsement with the root key; answers a line for the operator.
pub fn endorse(data: &Path, root_key: Option<&Path>, days: u64) -> anyhow::Result<String> {
    let dir = absolute(data)?;
    let root_key = root_key.map_or_else(|| dir.root_key(), Path::to_owned);
    if days == 0 || days > 10 * 365 {
        bail!("an endorsement of {days} days; between 1 and 3650 are possible");
    }
    let until = realm::endorse(&dir, &root_key, SystemClock.unix_s() + days * 86_400)?;
    Ok(format!(
        "the publisher key is endorsed for {days} days, until {until} (unix seconds); a running datacenter takes it over within half a minute"
    ))
}

/// Replaces all API tokens by a new one and writes it to the CLI's configuration; answers a line for the operator. The daemon must
/// not be running.
pub fn reset_token(data: &Path) -> anyhow::Result<String> {
    let dir = absolute(data)?;
    let config = Config::load(&dir.config())?.config;
    let realm = realm::read_id(&dir)?;
    let _lock = DataLock::take(&dir)?;
    let token = tokens::new_api_token();
    let catalog = open_catalog(&dir, realm)?;
    tokens::replace_api_tokens(&catalog, "reset", &token, SystemClock.unix_s())?;
    write(&dir.cli(), 0o600, &cli_text(&dir, config.api, &token))?;
    Ok(format!(
        "all former API tokens are refused from now on; the new one is in {}",
        dir.cli().display()
    ))
}

fn tuning(config: &Config) -> anyhow::Result<LinkTuning> {
    let mut tuning = LinkTuning::default();
    if let Some(name) = &config.congestion {
        tuning.congestion = name
            .parse()
            .context("configuration key transport.congestion")?;
    }
    if let Some(bytes) = config.window_bytes {
        tuning.window_bytes = bytes;
    }
    Ok(tuning)
}

fn issue_certificate(realm: &Realm, config: &Config) -> anyhow::Result<CertAndKey> {
    let names = config.certificate_names();
    realm
        .ca
        .issue_datacenter(&names, CERTIFICATE_VALIDITY)
        .with_context(|| format!("the datacenter's certificate for {}", names.join(", ")))
}

fn issue(datacenter: &Datacenter, config: &Config) -> anyhow::Result<CertAndKey> {
    let names = config.certificate_names();
    datacenter
        .ca()
        .issue_datacenter(&names, CERTIFICATE_VALIDITY)
        .with_context(|| format!("the datacenter's certificate for {}", names.join(", ")))
}

pub(crate) fn open_catalog(dir: &DataDir, realm: RealmId) -> anyhow::Result<Catalog> {
    let kv = RocksKv::open(dir.catalog(), &RocksOptions::default())?;
    Ok(Catalog::open(Arc::new(kv), realm)?)
}

pub(crate) fn open_store(dir: &DataDir, realm: &Realm) -> anyhow::Result<ChunkStore> {
    let disk: Arc<dyn Disk> = Arc::new(HostDisk::new(dir.store())?);
    let kv: Arc<dyn Kv> = Arc::new(RocksKv::open(dir.index(), &RocksOptions::default())?);
    let open = || {
        ChunkStore::open(
            disk.clone(),
            kv.clone(),
            realm.id_key.clone(),
            realm.id,
            StoreOptions::default(),
        )
    };
    let store = match open() {
        Err(StoreError::IndexMissing { packs }) => {
            tracing::warn!(
                packs,
                "the chunk index is missing; it is rebuilt from the packs"
            );
            let mut progress =
                |done, total| tracing::info!(done, total, "rebuilding the chunk index");
            let report =
                ChunkStore::rebuild_index(&*disk, &*kv, &realm.id_key, realm.id, &mut progress)?;
            tracing::warn!(records = report.records, "the chunk index is rebuilt");
            open()?
        }
        other => other?,
    };
    let recovery = store.recovery();
    if recovery.records_indexed > 0 || recovery.bytes_cut > 0 {
        tracing::info!(
            records = recovery.records_indexed,
            bytes_cut = recovery.bytes_cut,
            "the chunk store took in what an interrupted writer left"
        );
    }
    for pack in &recovery.packs_missing {
        tracing::error!(%pack, "a pack file is missing; versions that need it are damaged");
    }
    for damage in &recovery.damaged {
        tracing::error!(?damage, "the chunk store passed over damage");
    }
    Ok(store)
}

pub(crate) fn absolute(data: &Path) -> anyhow::Result<DataDir> {
    let path = std::path::absolute(data)
        .with_context(|| format!("{} is not a usable path", data.display()))?;
    Ok(DataDir::new(path))
}

pub(crate) fn write(path: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    write_durably(path, mode, text.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))
}

/// `datacenter.toml`, with what `init` was told and the defaults as comments.
fn config_text(options: &InitOptions) -> anyhow::Result<String> {
    let mut text = Vec::new();
    let quote = |value: &str| toml::Value::String(value.to_owned()).to_string();
    writeln!(
        text,
        "# splice-datacenter. Durations and sizes carry units: 90s, 24h, 7d; 16KiB, 2GiB."
    )?;
    let defaults = Config::default();
    let mut line = |key: &str, value: Option<String>, default: &str| match value {
        Some(value) => writeln!(text, "{key} = {value}"),
        None => writeln!(text, "# {key} = {default}"),
    };
    let socket = |s: &Option<SocketAddr>| s.map(|s| quote(&s.to_string()));
    line(
        "link",
        socket(&options.link),
        &quote(&defaults.link.to_string()),
    )?;
    line(
        "api",
        socket(&options.api),
        &quote(&defaults.api.to_string()),
    )?;
    line(
        "address",
        options.address.as_deref().map(quote),
        &quote(&defaults.address),
    )?;
    let names: Vec<String> = options.api_names.iter().map(|n| quote(n)).collect();
    let names = (!names.is_empty()).then(|| format!("[{}]", names.join(", ")));
    line("api_names", names, "[]")?;
    let passphrase = options
        .passphrase_file
        .as_ref()
        .map(std::path::absolute)
        .transpose()?;
    let passphrase = passphrase.map(|p| quote(&p.to_string_lossy()));
    line("passphrase_file", passphrase, "\"…/secrets/passphrase\"")?;
    line(
        "metrics_token_file",
        None,
        "\"…/metrics.token\"  # whose bearer may read /metrics and nothing else",
    )?;
    line(
        "import_dirs",
        None,
        "[]  # folders that may be published from; empty allows all",
    )?;
    line(
        "export_dirs",
        None,
        "[]  # folders that versions may be exported to; empty allows all",
    )?;
    line(
        "backup_dirs",
        None,
        "[]  # folders that backups may be written to; empty allows all",
    )?;
    writeln!(
        text,
        "\n[assignment]\n# validity = \"7d\"\n# offline_grace = \"14d\""
    )?;
    writeln!(text, "\n[branch]\n# certificate_validity = \"90d\"")?;
    writeln!(text, "\n[publish]\n# workers = 0  # 0 is one per processor")?;
    writeln!(
        text,
        "\n[transport]\n# congestion = \"bbr\"\n# window = \"64MiB\""
    )?;
    writeln!(
        text,
        "\n[store]\n# undelete_grace = \"7d\"\n# collect_every = \"24h\"  # or never\n# scrub_rate = \"8MiB\"  # a second, or none\n# scrub_hours = \"always\"  # or 20:00-06:00"
    )?;
    Ok(String::from_utf8(text)?)
}

pub(crate) fn cli_text(dir: &DataDir, api: SocketAddr, token: &str) -> String {
    let host = match api.ip() {
        ip if !ip.is_unspecified() => ip,
        std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    let url = format!("https://{}", SocketAddr::new(host, api.port()));
    let quote = |value: &str| toml::Value::String(value.to_owned()).to_string();
    format!(
        "# For the splice command. The token is a secret: whoever has it manages the realm.\nurl = {}\nca = {}\ntoken = {}\n",
        quote(&url),
        quote(&dir.ca().to_string_lossy()),
        quote(token)
    )
}
