//! Which datacenter a command speaks to: flags and environment before the configuration file.

use std::path::{Path, PathBuf};

use datacenter_api::{Client, ClientOptions};
use serde::Deserialize;

use crate::Global;
use crate::failure::Failure;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ConfigFile {
    url: Option<String>,
    token: Option<String>,
    /// Relative to the file.
    ca: Option<PathBuf>,
}

/// What every command is given.
pub struct Context {
    /// Print results as JSON.
    pub json: bool,
    global: Global,
}

impl Context {
    pub(crate) fn new(global: Global) -> Self {
        Self {
            json: global.json,
            global,
        }
    }

    /// A client of the datacenter. Commands that speak to something else never ask for it.
    pub fn client(&self) -> Result<Client, Failure> {
        let file = self.file()?;
        let missing = |what: &str, flag: &str| {
            Failure::usage(format!("no {what} is configured")).help(format!(
                "use --config with the cli.toml that `splice-datacenter init` wrote, or {flag}"
            ))
        };
        let url = self.global.url.clone().or(file.url);
        let token = self.global.token.clone().or(file.token);
        let ca = self.global.ca.clone().or(file.ca);
        let url = url.ok_or_else(|| missing("datacenter", "--url"))?;
        let token = token.ok_or_else(|| missing("token", "$SPLICE_TOKEN"))?;
        let ca = ca.ok_or_else(|| missing("CA certificate", "--ca"))?;
        let ca_pem = read(&ca, "CA certificate")?;
        Ok(Client::new(&ClientOptions { url, token, ca_pem })?)
    }

    /// The API token that commands use, if one is configured.
    pub fn token(&self) -> Option<String> {
        let file = self.file().ok().and_then(|file| file.token);
        self.global.token.clone().or(file)
    }

    fn file(&self) -> Result<ConfigFile, Failure> {
        if let Some(path) = &self.global.config {
            return parse(path);
        }
        let home = std::env::var_os("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".config")));
        let candidates = [
            home.map(|home| home.join("splice/cli.toml")),
            Some(PathBuf::from("/etc/splice/cli.toml")),
        ];
        match candidates.into_iter().flatten().find(|path| path.exists()) {
            Some(path) => parse(&path),
            None => Ok(ConfigFile::default()),
        }
    }
}

fn parse(path: &Path) -> Result<ConfigFile, Failure> {
    let text = read(path, "configuration")?;
    let mut file: ConfigFile = toml::from_str(&text).map_err(|e| {
        Failure::usage(format!("{}: {}", path.display(), e.message()))
            .help("its keys are url, token and ca")
    })?;
    if let (Some(ca), Some(dir)) = (&file.ca, path.parent()) {
        file.ca = Some(dir.join(ca));
    }
    Ok(file)
}

fn read(path: &Path, what: &str) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|e| Failure::usage(format!("cannot read the {what} {}: {e}", path.display())))
}
