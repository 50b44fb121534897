//! How people name things: `IMAGE`, `IMAGE@NUMBER`, and which names are allowed at all.

use std::fmt;
use std::str::FromStr;

/// Longest name of an image, branch, site or pool, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// A name that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} cannot be the name of {what}: use 1 to {NAME_BYTES_MAX} letters, digits, '.', '_' or '-', beginning with a letter or digit"
)]
pub struct NameError {
    what: &'static str,
    name: String,
}

/// Checks a name that ends up in URLs, paths and logs; `what` is for the error, with its article.
pub fn check_name(what: &'static str, name: &str) -> Result<(), NameError> {
    let ok = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.as_bytes()[0].is_ascii_alphanumeric()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if ok {
        return Ok(());
    }
    Err(NameError {
        what,
        name: name.chars().take(2 * NAME_BYTES_MAX).collect(),
    })
}

/// A version as people name it: `IMAGE@NUMBER`, or `IMAGE` for its latest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VersionRef {
    /// The image's name.
    pub image: String,
    /// Which version; `None` is the latest.
    pub number: Option<u32>,
}

/// Text that names no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionRefError {
    /// The part before the `@`.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The part after the `@`.
    #[error(
        "{0:?} is not a version number; versions are named IMAGE@1, IMAGE@2 … or IMAGE for the latest"
    )]
    Number(String),
}

impl FromStr for VersionRef {
    type Err = VersionRefError;

    fn from_str(text: &str) -> Result<Self, VersionRefError> {
        let (image, number) = match text.split_once('@') {
            None => (text, None),
            Some((image, "latest")) => (image, None),
            Some((image, number)) => {
                let bad = || VersionRefError::Number(number.chars().take(80).collect());
                let number: u32 = number.parse().map_err(|_| bad())?;
                if number == 0 {
                    return Err(bad());
                }
                (image, Some(number))
            }
        };
        check_name("an image", image)?;
        Ok(Self {
            image: image.to_owned(),
            number,
        })
    }
}

impl fmt::Display for VersionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            Some(number) => write!(f, "{}@{number}", self.image),
            None => f.write_str(&self.image),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_parse_and_print() {
        for text in ["debian", "debian-12.desktop@3"] {
            assert_eq!(
                text.parse::<VersionRef>().map(|r| r.to_string()),
                Ok(text.into())
            );
        }
        assert_eq!("a@latest".parse::<VersionRef>().map(|r| r.number), Ok(None));
        for text in ["", "@1", "a@", "a@0", "a@-1", "a@x", "a/b", "../a", "-a"] {
            assert!(text.parse::<VersionRef>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn names_that_could_leave_a_url_or_folder_are_refused() {
        assert_eq!(check_name("a branch", "new-york_2"), Ok(()));
        for name in ["", ".", "..", "a b", "a/b", "ä", &"x".repeat(65)] {
            assert!(check_name("a branch", name).is_err(), "{name:?}");
        }
    }
}
