//! The words that messages are made of. Each type holds only what its alphabet and length allow, so that whoever has one need not check it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A word that is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not {0}")]
pub struct WordError(&'static str);

/// 1 to `MAX` bytes of printable ASCII.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Text<const MAX: usize>(String);

/// Why something could not be done, for people.
pub type Reason = Text<200>;

fn is_printable(c: char) -> bool {
    matches!(c, ' '..='~')
}

impl<const MAX: usize> Text<MAX> {
    /// The nearest such text: what is not printable becomes `?`, what is too long is cut, nothing becomes `?`.
    pub fn near(text: &str) -> Self {
        let kept = text.chars().take(MAX);
        let mut text: String = kept
            .map(|c| if is_printable(c) { c } else { '?' })
            .collect();
        if text.is_empty() {
            text.push('?');
        }
        Self(text)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> TryFrom<String> for Text<MAX> {
    type Error = WordError;

    fn try_from(text: String) -> Result<Self, WordError> {
        let fits = (1..=MAX).contains(&text.len()) && text.chars().all(is_printable);
        fits.then_some(Self(text))
            .ok_or(WordError("a short printable text"))
    }
}

impl<const MAX: usize> From<Text<MAX>> for String {
    fn from(text: Text<MAX>) -> Self {
        text.0
    }
}

impl<const MAX: usize> fmt::Display for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A host name of one label: 1 to 63 of `a`–`z`, `0`–`9` and `-`, with no `-` at either end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

impl HostName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_plain(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

impl TryFrom<String> for HostName {
    type Error = WordError;

    fn try_from(name: String) -> Result<Self, WordError> {
        let fits = (1..=63).contains(&name.len())
            && is_plain(&name)
            && !name.starts_with('-')
            && !name.ends_with('-');
        fits.then_some(Self(name)).ok_or(WordError("a host name"))
    }
}

impl From<HostName> for String {
    fn from(name: HostName) -> Self {
        name.0
    }
}

/// Serial number of a virtio disk: 1 to 20 of `a`–`z`, `0`–`9` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Serial(String);

impl Serial {
    /// The number.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Serial {
    type Error = WordError;

    fn try_from(serial: String) -> Result<Self, WordError> {
        let fits = (1..=20).contains(&serial.len()) && is_plain(&serial);
        fits.then_some(Self(serial))
            .ok_or(WordError("a disk's serial number"))
    }
}

impl From<Serial> for String {
    fn from(serial: Serial) -> Self {
        serial.0
    }
}

/// 16 bytes, as 32 lower-case hexadecimal digits: a machine's or a boot's id. Never all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id([u8; 16]);

impl Id {
    /// These bytes; none if all are zero, which systemd takes for no id.
    pub fn new(bytes: [u8; 16]) -> Option<Self> {
        (bytes != [0; 16]).then_some(Self(bytes))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Id {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let error = WordError("an id of 32 lower-case hexadecimal digits");
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        if text.len() != 32 {
            return Err(error);
        }
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = digit(pair[0]).ok_or(error)? << 4 | digit(pair[1]).ok_or(error)?;
        }
        Self::new(bytes).ok_or(error)
    }
}

impl TryFrom<String> for Id {
    type Error = WordError;

    fn try_from(text: String) -> Result<Self, WordError> {
        text.parse()
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn words_hold_what_they_say() {
        for (text, fits) in [("a b~", true), ("", false), ("12345", false), ("é", false)] {
            assert_eq!(Text::<4>::try_from(text.to_owned()).is_ok(), fits, "{text}");
        }
        assert_eq!(Text::<4>::near("a\u{1b}béd").as_str(), "a?b?");
        assert_eq!(Text::<4>::near("").as_str(), "?");
        for (name, fits) in [("a", true), ("a-1", true), ("-a", false), ("a-", false)] {
            assert_eq!(HostName::try_from(name.to_owned()).is_ok(), fits, "{name}");
        }
        for name in ["", "A", "a.b", "a/b", &"a".repeat(64)] {
            assert!(HostName::try_from(name.to_owned()).is_err(), "{name}");
        }
        for serial in ["", "a/b", "A", &"a".repeat(21)] {
            assert!(Serial::try_from(serial.to_owned()).is_err(), "{serial}");
        }
    }

    #[test]
    fn ids_are_hexadecimal_and_not_zero() {
        let id = Id::new([0xa0; 16]).unwrap();
        assert_eq!(id.to_string(), "a0".repeat(16));
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in [
            "",
            &"00".repeat(16),
            &"A0".repeat(16),
            &"a0".repeat(15),
            &"é".repeat(16),
        ] {
            assert!(wrong.parse::<Id>().is_err(), "{wrong}");
        }
        assert_eq!(Id::new([0; 16]), None);
    }
}
