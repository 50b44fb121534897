//! The daemon's configuration: TOML with defaults becomes a checked [`Config`].
//!
//! Every key is optional. Keys that this program does not know are named in [`Loaded::unknown`], never an error: an older program
//! must run with a newer file.

mod store;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use datacenter_api::units::{parse_duration, parse_size};
use serde::Deserialize;

pub use store::StoreConfig;
use store::StoreSection;

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{}: cannot read the configuration", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// It is not TOML, or a value has the wrong type.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what, in the parser's words.
        message: String,
    },
    /// A value cannot be used.
    #[error("{}: {key}: {reason}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Which key.
        key: &'static str,
        /// Why not.
        reason: String,
    },
}

/// The daemon's configuration, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where branches connect (UDP).
    pub link: SocketAddr,
    /// Where the management API listens (TCP).
    pub api: SocketAddr,
    /// `host:port` under which branches reach `link`; join tokens carry it.
    pub address: String,
    /// DNS names and IP addresses in the API's certificate, besides localhost.
    pub api_names: Vec<String>,
    /// Folders that disk files may be published from; empty allows all that the daemon can read.
    pub import_dirs: Vec<PathBuf>,
    /// Folders that versions may be exported to; empty allows all that the daemon can write.
    pub export_dirs: Vec<PathBuf>,
    /// Folders that backups may be written to; empty allows all that the daemon can write.
    pub backup_dirs: Vec<PathBuf>,
    /// Where images are converted; `None` is a folder of the data folder.
    pub scratch_dir: Option<PathBuf>,
    /// File with the passphrase that opens the realm's keys; `None` is the data folder's own.
    pub passphrase_file: Option<PathBuf>,
    /// File with a token whose bearer may read metrics and nothing else; `None`: only those who may see the realm may.
    pub metrics_token_file: Option<PathBuf>,
    /// How long an assignment gives new trust.
    pub assignment_validity: Duration,
    /// How long after that an offline branch may still power on.
    pub offline_grace: Duration,
    /// How long a branch's certificate holds; branches renew it before.
    pub branch_certificate_validity: Duration,
    /// Threads that cut, hash and compress while publishing; 0 is one more than there are processors.
    pub publish_workers: usize,
    /// The link's congestion control, by name.
    pub congestion: Option<String>,
    /// The link's receive window, in bytes.
    pub window_bytes: Option<u64>,
    /// How the chunk store is looked after.
    pub store: StoreConfig,
}

/// A configuration and what was not understood in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Unknown keys, dotted.
    pub unknown: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FileConfig {
    link: Option<String>,
    api: Option<String>,
    address: Option<String>,
    api_names: Vec<String>,
    import_dirs: Vec<PathBuf>,
    export_dirs: Vec<PathBuf>,
    backup_dirs: Vec<PathBuf>,
    scratch_dir: Option<PathBuf>,
    passphrase_file: Option<PathBuf>,
    metrics_token_file: Option<PathBuf>,
    assignment: AssignmentSection,
    branch: BranchSection,
    publish: PublishSection,
    transport: TransportSection,
    store: StoreSection,
    #[serde(flatten)]
    unknown: BTreeMap<String, toml::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AssignmentSection {
    validity: Option<String>,
    offline_grace: Option<String>,
    #[serde(flatten)]
    unknown: BTreeMap<String, toml::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct BranchSection {
    certificate_validity: Option<String>,
    #[serde(flatten)]
    unknown: BTreeMap<String, toml::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PublishSection {
    workers: usize,
    #[serde(flatten)]
    unknown: BTreeMap<String, toml::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TransportSection {
    congestion: Option<String>,
    window: Option<String>,
    #[serde(flatten)]
    unknown: BTreeMap<String, toml::Value>,
}

/// Default link port.
pub const LINK_PORT: u16 = 7443;
/// Default API port.
pub const API_PORT: u16 = 7480;

const DAY_S: u64 = 86_400;

impl Default for Config {
    fn default() -> Self {
        Self {
            link: ([0, 0, 0, 0], LINK_PORT).into(),
            api: ([0, 0, 0, 0], API_PORT).into(),
            address: format!("{}:{LINK_PORT}", host_name()),
            api_names: Vec::new(),
            import_dirs: Vec::new(),
            export_dirs: Vec::new(),
            backup_dirs: Vec::new(),
            scratch_dir: None,
            passphrase_file: None,
            metrics_token_file: None,
            assignment_validity: Duration::from_secs(7 * DAY_S),
            offline_grace: Duration::from_secs(14 * DAY_S),
            branch_certificate_validity: Duration::from_secs(90 * DAY_S),
            publish_workers: 0,
            congestion: None,
            window_bytes: None,
            store: StoreConfig::default(),
        }
    }
}

/// The machine's name, for defaults.
pub fn host_name() -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    if name.is_empty() {
        "localhost".into()
    } else {
        name
    }
}

impl Config {
    /// Reads `path`; a file that does not exist gives the defaults.
    pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Self::parse("", path),
            Err(source) => Err(ConfigError::Io {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Reads configuration text; `path` is for errors.
    pub fn parse(text: &str, path: &Path) -> Result<Loaded, ConfigError> {
        let file: FileConfig = toml::from_str(text).map_err(|e| ConfigError::Syntax {
            path: path.to_owned(),
            message: e.to_string().trim_end().to_owned(),
        })?;
        let bad = |key: &'static str| {
            move |reason: String| ConfigError::Value {
                path: path.to_owned(),
                key,
                reason,
            }
        };
        // Taken apart completely, so that a new key cannot be forgotten here.
        let FileConfig {
            link,
            api,
            address,
            api_names,
            import_dirs,
            export_dirs,
            backup_dirs,
            scratch_dir,
            passphrase_file,
            metrics_token_file,
            assignment,
            branch,
            publish,
            transport,
            mut store,
            unknown,
        } = file;
        let mut unknown: Vec<String> = unknown.into_keys().collect();
        let mut note = |section: &str, keys: BTreeMap<String, toml::Value>| {
            unknown.extend(keys.into_keys().map(|key| format!("{section}.{key}")));
        };
        note("assignment", assignment.unknown);
        note("branch", branch.unknown);
        note("publish", publish.unknown);
        note("transport", transport.unknown);
        note("store", std::mem::take(&mut store.unknown));

        let defaults = Self::default();
        let socket = |key, text: Option<String>, default| match text {
            None => Ok(default),
            Some(text) => text.parse::<SocketAddr>().map_err(|_| {
                bad(key)(format!(
                    "{text:?} is not an address like 0.0.0.0:{LINK_PORT}"
                ))
            }),
        };
        let duration = |key, text: Option<String>, default: Duration, min: Duration| {
            let Some(text) = text else { return Ok(default) };
            let value = parse_duration(&text).map_err(|e| bad(key)(e.to_string()))?;
            if value < min || value > Duration::from_secs(10 * 365 * DAY_S) {
                return Err(bad(key)(format!(
                    "{text:?} is below {min:?} or above 10 years"
                )));
            }
            Ok(value)
        };
        let dirs = import_dirs.iter().chain(&export_dirs).chain(&backup_dirs);
        for dir in dirs.chain(&scratch_dir) {
            if !dir.is_absolute() {
                return Err(bad("import_dirs, export_dirs, backup_dirs or scratch_dir")(
                    format!("{} is not an absolute path", dir.display()),
                ));
            }
        }
        let link = socket("link", link, defaults.link)?;
        let address = address.unwrap_or_else(|| format!("{}:{}", host_name(), link.port()));
        check_address(&address).map_err(bad("address"))?;
        if publish.workers > 64 {
            return Err(bad("publish.workers")("at most 64".into()));
        }
        let window_bytes = transport
            .window
            .map(|text| parse_size(&text).map_err(|e| bad("transport.window")(e.to_string())))
            .transpose()?;
        let store = store.check().map_err(|(key, reason)| bad(key)(reason))?;
        let minute = Duration::from_secs(60);
        let config = Self {
            link,
            api: socket("api", api, defaults.api)?,
            address,
            api_names,
            import_dirs,
            export_dirs,
            backup_dirs,
            scratch_dir,
            passphrase_file,
            metrics_token_file,
            assignment_validity: duration(
                "assignment.validity",
                assignment.validity,
                defaults.assignment_validity,
                minute,
            )?,
            offline_grace: duration(
                "assignment.offline_grace",
                assignment.offline_grace,
                defaults.offline_grace,
                Duration::ZERO,
            )?,
            branch_certificate_validity: duration(
                "branch.certificate_validity",
                branch.certificate_validity,
                defaults.branch_certificate_validity,
                minute,
            )?,
            publish_workers: publish.workers,
            congestion: transport.congestion,
            window_bytes,
            store,
        };
        Ok(Loaded { config, unknown })
    }

    /// Names in the API's certificate: what is configured, the address's host, and the local ones.
    pub fn certificate_names(&self) -> Vec<String> {
        let host = self.address.rsplit_once(':').map_or("", |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".into(), "::1".into()];
        let more = self.api_names.iter().map(String::as_str).chain([host]);
        for name in more {
            if !name.is_empty() && !names.iter().any(|n| n == name) {
                names.push(name.to_owned());
            }
        }
        names
    }
}

/// Checks `host:port`.
pub fn check_address(address: &str) -> Result<(), String> {
    let ok = address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty()
            && host.len() <= 253
            && !host.contains(char::is_whitespace)
            && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    if ok {
        return Ok(());
    }
    Err(format!(
        "{address:?} is not host:port like datacenter.example:{LINK_PORT}"
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(text: &str) -> Result<Loaded, ConfigError> {
        Config::parse(text, Path::new("datacenter.toml"))
    }

    #[test]
    fn an_empty_file_is_the_defaults_and_all_keys_are_read() {
        let loaded = parse("").unwrap();
        assert_eq!(loaded.config, Config::default());
        let loaded = parse(
            r#"
            link = "127.0.0.1:1"
            api = "[::1]:2"
            address = "dc.example:3"
            api_names = ["console.example"]
            import_dirs = ["/srv/images"]
            backup_dirs = ["/mnt/backup"]
            scratch_dir = "/var/tmp"
            passphrase_file = "/run/splice/passphrase"
            metrics_token_file = "/run/splice/metrics.token"
            [assignment]
            validity = "1d"
            offline_grace = "2h"
            [branch]
            certificate_validity = "30d"
            [publish]
            workers = 3
            [transport]
            congestion = "cubic"
            window = "8MiB"
            [store]
            undelete_grace = "2d"
            collect_every = "never"
            collect_grace = "1h"
            collect_rate = "none"
            compact_below = 50
            scrub_rate = "1MiB"
            scrub_hours = "20:00-06:00"
            utc_offset = "-05:00"
            "#,
        )
        .unwrap();
        assert!(loaded.unknown.is_empty());
        assert_eq!(loaded.config.offline_grace, Duration::from_secs(7200));
        assert_eq!(loaded.config.window_bytes, Some(8 << 20));
        let store = &loaded.config.store;
        assert_eq!(
            (store.collect_every, store.collect_bytes_per_s),
            (None, None)
        );
        assert_eq!(store.scrub_bytes_per_s, Some(1 << 20));
        assert!(
            store.scrub_hours.unwrap().contains(2 * 3600),
            "21:00 in New York"
        );
        let names = loaded.config.certificate_names();
        assert!(names.contains(&"dc.example".into()) && names.contains(&"console.example".into()));
    }

    #[test]
    fn unknown_keys_are_named() {
        let loaded = parse("colour = 1\n[publish]\nthreads = 2\n").unwrap();
        assert_eq!(loaded.unknown, ["colour", "publish.threads"]);
    }

    #[test]
    fn bad_values_name_the_key() {
        for (text, part) in [
            ("link = 'here'", "link"),
            ("address = 'nowhere'", "address"),
            ("import_dirs = ['images']", "import_dirs"),
            ("[assignment]\nvalidity = '5'", "assignment.validity"),
            ("[assignment]\nvalidity = '1s'", "assignment.validity"),
            ("[transport]\nwindow = 'big'", "transport.window"),
            ("[store]\nscrub_hours = 'night'", "store.scrub_hours"),
            ("[store]\ncollect_grace = '10y'", "store.collect_grace"),
            ("[store]\ncompact_below = 101", "store.compact_below"),
            ("link = 5", "link"),
            ("link = ", "line 1"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
