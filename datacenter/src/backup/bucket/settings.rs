//! Where buckets are and who we are to them: a small file beside the other secrets, and the place that a backup is given.
//!
//! The file is TOML, readable by its owner only; nothing of it is in a backup.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use zeroize::Zeroizing;

/// What a place in a bucket begins with.
pub const SCHEME: &str = "s3://";
/// Longest settings file, in bytes.
const FILE_BYTES_MAX: usize = 16 << 10;
/// The authorities that this system trusts, as Debian has them.
const CA_FILE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Why buckets cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("the settings of buckets in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others can read it.
    #[error(
        "{} holds a secret and can be read by others; `chmod 600` it, and consider the key known",
        path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
    },
    /// It does not say what it should.
    #[error(
        "{}: {reason}; it is to have endpoint, region, access_key_id and secret_access_key",
        path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Not a place in a bucket.
    #[error(
        "{0:?} is no place in a bucket; write it as s3://BUCKET/FOLDER, the bucket of a-z, 0-9, '.' and '-', the folder of letters, digits, '.', '_', '-' and '/'"
    )]
    Place(String),
}

/// Who we are to S3.
#[derive(Clone)]
pub struct Credentials {
    /// The key's public name.
    pub access_key_id: String,
    /// What requests are signed with.
    pub secret_access_key: Zeroizing<String>,
    /// Of temporary credentials.
    pub session_token: Option<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials(access_key_id={})", self.access_key_id)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    endpoint: String,
    region: String,
    access_key_id: String,
    secret_access_key: String,
    #[serde(default)]
    session_token: Option<String>,
    #[serde(default)]
    ca_file: Option<PathBuf>,
}

/// Where buckets are.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `https://host[:port]`, or `http://` in a network that is trusted: what is stored crosses it in the clear.
    pub endpoint: String,
    /// The region that requests are signed for.
    pub region: String,
    /// Who we are.
    pub credentials: Credentials,
    /// The authorities that the endpoint's certificate may be of (PEM).
    pub ca_file: PathBuf,
}

impl Settings {
    /// Reads the file.
    ///
    /// # Errors
    /// See [`SettingsError`].
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let failed = |source| SettingsError::Read {
            path: path.into(),
            source,
        };
        let mode = path.metadata().map_err(failed)?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(SettingsError::Open { path: path.into() });
        }
        let bytes = crate::realm::files::read_small(path, FILE_BYTES_MAX).map_err(failed)?;
        let text = Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned());
        Self::parse(&text).map_err(|reason| SettingsError::Malformed {
            path: path.into(),
            reason,
        })
    }

    /// Reads its text.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        // The error of the parser shows the line, and with it perhaps the secret.
        let file: File = toml::from_str(text).map_err(|e| e.message().to_owned())?;
        let endpoint = file.endpoint.trim_end_matches('/').to_owned();
        let host = endpoint
            .strip_prefix("https://")
            .or_else(|| endpoint.strip_prefix("http://"));
        if host.is_none_or(|host| host.is_empty() || host.contains(['/', '?', '#', '@'])) {
            return Err(format!(
                "endpoint {:?} is not of the form https://host:port",
                file.endpoint
            ));
        }
        for (name, value) in [
            ("region", &file.region),
            ("access_key_id", &file.access_key_id),
            ("secret_access_key", &file.secret_access_key),
        ] {
            let is_plain = value.bytes().all(|byte| byte.is_ascii_graphic());
            if value.is_empty() || !is_plain {
                return Err(format!("{name} is empty or has spaces"));
            }
        }
        Ok(Self {
            endpoint,
            region: file.region,
            credentials: Credentials {
                access_key_id: file.access_key_id,
                secret_access_key: file.secret_access_key.into(),
                session_token: file.session_token,
            },
            ca_file: file.ca_file.unwrap_or_else(|| CA_FILE.into()),
        })
    }
}

/// A folder in a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketPlace {
    /// The bucket.
    pub bucket: String,
    /// What names of objects begin with: empty, or with a slash at the end.
    pub prefix: String,
}

impl BucketPlace {
    /// Whether a text is meant as such a place.
    pub fn is_meant(text: &str) -> bool {
        text.starts_with(SCHEME)
    }

    /// Reads `s3://BUCKET/FOLDER`.
    ///
    /// # Errors
    /// [`SettingsError::Place`].
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        let wrong = || SettingsError::Place(text.to_owned());
        let rest = text.strip_prefix(SCHEME).ok_or_else(wrong)?;
        let (bucket, folder) = rest.split_once('/').unwrap_or((rest, ""));
        let is_bucket = (3..=63).contains(&bucket.len())
            && bucket
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
            && bucket.starts_with(|c: char| c.is_ascii_alphanumeric());
        let folder = folder.trim_end_matches('/');
        let is_part = |part: &str| {
            !part.is_empty()
                && part != "."
                && part != ".."
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let is_folder = folder.is_empty() || folder.split('/').all(is_part);
        if !is_bucket || !is_folder || folder.len() > 512 {
            return Err(wrong());
        }
        let prefix = match folder {
            "" => String::new(),
            folder => format!("{folder}/"),
        };
        Ok(Self {
            bucket: bucket.to_owned(),
            prefix,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn places_are_buckets_with_plain_folders() {
        let place = BucketPlace::parse("s3://backup-1/splice/nightly/").unwrap();
        assert_eq!(
            (&*place.bucket, &*place.prefix),
            ("backup-1", "splice/nightly/")
        );
        assert_eq!(BucketPlace::parse("s3://abc").unwrap().prefix, "");
        for wrong in [
            "/mnt/backup",
            "s3://",
            "s3://ab",
            "s3://Backup/x",
            "s3://-ab/x",
            "s3://abc/a//b",
            "s3://abc/../x",
            "s3://abc/a b",
            "s3://abc/ä",
            "s3:/abc",
        ] {
            assert!(BucketPlace::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn settings_are_whole_plain_and_their_owner_s_alone() {
        let text = "endpoint = \"https://s3.example:9000/\"\nregion = \"eu-1\"\naccess_key_id = \"A\"\nsecret_access_key = \"S3CRET\"\n";
        let settings = Settings::parse(text).unwrap();
        assert_eq!(settings.endpoint, "https://s3.example:9000");
        assert_eq!(settings.ca_file, Path::new(CA_FILE));
        assert!(!format!("{settings:?}").contains("S3CRET"));
        for (from, to) in [
            ("https://s3.example:9000/", "s3.example"),
            ("https://s3.example:9000/", "https://user@s3.example"),
            ("eu-1", ""),
            ("region", "regoin"),
            ("S3CRET", "S3 CRET"),
        ] {
            let refused = Settings::parse(&text.replace(from, to)).unwrap_err();
            assert!(!refused.contains("CRET"), "{refused}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s3.toml");
        std::fs::write(&path, text).unwrap();
        let mode = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        mode(0o640);
        assert!(matches!(
            Settings::read(&path),
            Err(SettingsError::Open { .. })
        ));
        mode(0o600);
        Settings::read(&path).unwrap();
        let absent = Settings::read(&dir.path().join("absent"));
        assert!(matches!(absent, Err(SettingsError::Read { .. })));
    }
}
