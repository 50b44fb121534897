//! Which datacenter a command speaks to: flags and environment, then a session, then the configuration file.

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
        let session = crate::session::load()?;
        let missing = |what: &str, flag: &str| {
            Failure::usage(format!("no {what} is configured")).help(format!(
                "use --config with the cli.toml that `splice-datacenter init` wrote, or {flag}"
            ))
        };
        let url = self.global.url.clone().or(file.url);
        let url = url.or_else(|| Some(session.as_ref()?.url.clone()));
        let url = url.ok_or_else(|| missing("datacenter", "--url"))?;
        // Of another datacenter it is nobody's.
        let session = session.filter(|session| session.url == url);
        let token = self.global.token.clone();
        let token = token.or_else(|| Some(session.as_ref()?.token.clone()));
        let token = token
            .or(file.token)
            .ok_or_else(|| missing("token", "$SPLICE_TOKEN, or log in: `splice login`"))?;
        let ca_pem = match (self.global.ca.clone().or(file.ca), session) {
            (Some(ca), _) => read(&ca, "CA certificate")?,
            (None, Some(session)) => session.ca_pem,
            (None, None) => return Err(missing("CA certificate", "--ca")),
        };
        Ok(Client::new(&ClientOptions { url, token, ca_pem })?)
    }

    /// A client that nobody is known by as yet, with the datacenter's URL and the realm's authority.
    pub fn stranger(&self) -> Result<(Client, String, String), Failure> {
        let file = self.file()?;
        let session = crate::session::load()?;
        let missing = |what: &str, flag: &str| {
            Failure::usage(format!("no {what} is known")).help(format!(
                "pass {flag}; `ca.pem` of the datacenter's data folder is the realm's certificate, and no secret"
            ))
        };
        let url = self.global.url.clone().or(file.url);
        let url = url.or_else(|| Some(session.as_ref()?.url.clone()));
        let url = url.ok_or_else(|| missing("datacenter", "--url"))?;
        let session = session.filter(|session| session.url == url);
        let ca_pem = match (self.global.ca.clone().or(file.ca), session) {
            (Some(ca), _) => read(&ca, "CA certificate")?,
            (None, Some(session)) => session.ca_pem,
            (None, None) => return Err(missing("CA certificate", "--ca")),
        };
        let options = ClientOptions {
            url: url.clone(),
            token: String::new(),
            ca_pem: ca_pem.clone(),
        };
        Ok((Client::new(&options)?, url, ca_pem))
    }

    /// The tokens that commands may use: the one that was passed, the configured one, a session's.
    pub fn tokens(&self) -> Vec<String> {
        let file = self.file().ok().and_then(|file| file.token);
        let session = crate::session::load().ok().flatten();
        let session = session.map(|session| session.token);
        let tokens = [self.global.token.clone(), file, session];
        tokens.into_iter().flatten().collect()
    }

    fn file(&self) -> Result<ConfigFile, Failure> {
        if let Some(path) = &self.global.config {
            return parse(path);
        }
        let candidates = [
            home().map(|home| home.join("splice/cli.toml")),
            Some(PathBuf::from("/etc/splice/cli.toml")),
        ];
        match candidates.into_iter().flatten().find(|path| path.exists()) {
            Some(path) => parse(&path),
            None => Ok(ConfigFile::default()),
        }
    }
}

/// Where a person's configuration is.
pub(crate) fn home() -> Option<PathBuf> {
    std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".config")))
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
