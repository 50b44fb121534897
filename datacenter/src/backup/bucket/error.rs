//! Why a bucket could not be used, in words that say what to do, and whether it may pass by itself.

use std::path::PathBuf;

use super::answer;

/// Why a bucket could not be used.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// The authorities that it is to be believed by.
    #[error("the authorities in {} (ca_file): {reason}", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The HTTP client.
    #[error("the client of buckets: {0}")]
    Client(String),
    /// No answer, or not all of one.
    #[error("no answer from {host}: {reason}")]
    Unreachable {
        /// Where.
        host: String,
        /// Why.
        reason: String,
    },
    /// It said no.
    #[error(
        "{host} refuses for bucket {bucket}: {code} ({status}{}){}",
        words(message),
        way_out(code)
    )]
    Refused {
        /// Where.
        host: String,
        /// The bucket.
        bucket: String,
        /// HTTP status.
        status: u16,
        /// S3's code.
        code: String,
        /// S3's words.
        message: String,
    },
    /// More came than was asked for.
    #[error("{host} answers with more than {bytes_max} bytes")]
    TooLong {
        /// Where.
        host: String,
        /// As much was expected at most.
        bytes_max: u64,
    },
    /// More names came than a backup has.
    #[error("{host} tells of more objects in {folder:?} than a backup can have")]
    Endless {
        /// Where.
        host: String,
        /// In which folder of the bucket.
        folder: String,
    },
    /// It does not say how long an object is.
    #[error("{host} does not tell the length of {object}; is it an S3?")]
    NoLength {
        /// Where.
        host: String,
        /// Which.
        object: String,
    },
    /// An object changed or went while it was read.
    #[error("{object} changed while it was read; does somebody else write there?")]
    Changed {
        /// Which.
        object: String,
    },
}

fn words(message: &str) -> String {
    match message {
        "" => String::new(),
        message => format!(", {message}"),
    }
}

fn way_out(code: &str) -> &'static str {
    match code {
        "NoSuchBucket" => "; make the bucket first",
        "AccessDenied" | "InvalidAccessKeyId" | "ExpiredToken" | "InvalidToken" => {
            "; the key in s3.toml is to be one that may list the bucket, and read, write and delete in the folder"
        }
        "SignatureDoesNotMatch" => "; check secret_access_key and region in s3.toml",
        "RequestTimeTooSkewed" => "; set this machine's clock",
        "AuthorizationHeaderMalformed" | "PermanentRedirect" => {
            "; check region and endpoint in s3.toml: the bucket is in another region"
        }
        "QuotaExceeded" => "; free space there",
        _ => "",
    }
}

impl BucketError {
    /// From what the HTTP client says.
    pub(super) fn unreachable(host: &str, error: &reqwest::Error) -> Self {
        // Its own words repeat the URL; what matters is the innermost cause.
        let mut cause: &dyn std::error::Error = error;
        while let Some(next) = cause.source() {
            cause = next;
        }
        let reason = match error.is_timeout() {
            true => "it takes too long".to_owned(),
            false => cause.to_string(),
        };
        Self::Unreachable {
            host: host.to_owned(),
            reason,
        }
    }

    /// From an answer.
    pub(super) fn refused(host: &str, bucket: &str, status: u16, text: &str) -> Self {
        let part = |name| answer::text(text, name).map(|text| text.chars().take(200).collect());
        Self::Refused {
            host: host.to_owned(),
            bucket: bucket.to_owned(),
            status,
            code: part("Code").unwrap_or_else(|| "an error".to_owned()),
            message: part("Message").unwrap_or_default(),
        }
    }

    /// Whether the same may be done a moment later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, code, .. } => {
                matches!(status, 429 | 500 | 502..=504) || code == "RequestTimeout"
            }
            _ => false,
        }
    }

    /// Whether there is no room.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Refused { status, code, .. } if *status == 507 || code == "QuotaExceeded")
    }
}

impl From<BucketError> for std::io::Error {
    fn from(error: BucketError) -> Self {
        use std::io::ErrorKind;
        let kind = match &error {
            error if error.is_no_space() => ErrorKind::QuotaExceeded,
            BucketError::Unreachable { .. } => ErrorKind::TimedOut,
            _ => ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
