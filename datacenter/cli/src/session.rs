//! The session that `splice login` began: where it is kept, and for which datacenter it is.
//!
//! `session.toml` beside the configuration in the home folder, mode 0600: URL, the realm's authority, and the session's token. It ends by itself; the file is
//! removed by `splice logout`.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// The datacenter's API.
    pub url: String,
    /// The realm's CA certificate.
    pub ca_pem: String,
    /// The secret.
    pub token: String,
}

fn path() -> Option<PathBuf> {
    Some(crate::config::home()?.join("splice/session.toml"))
}

/// The session that is kept, if there is one.
pub fn load() -> Result<Option<Session>, Failure> {
    let Some(path) = path() else { return Ok(None) };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => {
            let message = format!("cannot read the session {}: {e}", path.display());
            return Err(Failure::usage(message));
        }
    };
    let session = toml::from_str(&text).map_err(|e| {
        Failure::usage(format!("{}: {}", path.display(), e.message())).help("remove it, and log in")
    })?;
    Ok(Some(session))
}

/// Keeps a session instead of the one before.
pub fn store(session: &Session) -> Result<(), Failure> {
    let path = path().ok_or_else(|| Failure::usage("neither $XDG_CONFIG_HOME nor $HOME is set"))?;
    let failed = |e: std::io::Error| {
        Failure::failed(format!("cannot write the session {}: {e}", path.display()))
    };
    let text = toml::to_string(session)
        .map_err(|e| Failure::failed(format!("cannot write the session: {e}")))?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let new = path.with_extension("new");
    // A file of another mode that is left there would keep that.
    let _ = std::fs::remove_file(&new);
    let mut options = std::fs::OpenOptions::new();
    let options = options.write(true).create_new(true).mode(0o600);
    let written = options
        .open(&new)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(failed)?;
    std::fs::rename(&new, &path).map_err(failed)
}

/// Forgets it.
pub fn remove() -> Result<(), Failure> {
    let Some(path) = path() else { return Ok(()) };
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Failure::failed(format!(
            "cannot remove the session {}: {e}",
            path.display()
        ))),
        _ => Ok(()),
    }
}
