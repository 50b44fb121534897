//! The parts of a machine's state: each has a number and a version of its own, so that one can change without the others.
//!
//! A part that is missing, is there twice or has a version that is not known is refused; parts that nobody asks for are passed over, so
//! that a later program may add some. Within a part, fields have a fixed order (postcard): a change of them is a new version.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Most parts: far more than there are.
const PARTS_MAX: usize = 64;

/// What can be a part.
pub trait Part: Serialize + DeserializeOwned {
    /// Its number, never used for anything else.
    const NUMBER: u16;
    /// What is written, and all that is read.
    const VERSION: u16;
    /// What messages call it.
    const NAME: &'static str;
}

/// Why a part cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// The body is no list of parts.
    #[error("it is no list of parts")]
    List(#[source] postcard::Error),
    /// Too many.
    #[error("it has more than {PARTS_MAX} parts")]
    TooMany,
    /// Which of them counts?
    #[error("it has part {0} twice")]
    Twice(u16),
    /// Not there.
    #[error("it has no {0}")]
    Missing(&'static str),
    /// Of another program.
    #[error("its {name} has version {found}, known is {known}; use the splice-vmm that wrote it")]
    Version {
        /// Which part.
        name: &'static str,
        /// In the file.
        found: u16,
        /// Here.
        known: u16,
    },
    /// Not to be understood.
    #[error("its {name} cannot be read")]
    Body {
        /// Which part.
        name: &'static str,
        /// Why.
        source: postcard::Error,
    },
    /// Ours.
    #[error("write its {name}")]
    Write {
        /// Which part.
        name: &'static str,
        /// Why.
        source: postcard::Error,
    },
}

#[derive(Serialize, Deserialize)]
struct Raw {
    number: u16,
    version: u16,
    #[serde(with = "serde_bytes")]
    body: Vec<u8>,
}

/// See the module.
#[derive(Default, Serialize, Deserialize)]
pub struct Parts(Vec<Raw>);

impl Parts {
    /// Reads a list of parts; nothing may be behind it.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(body: &[u8]) -> Result<Self, PartError> {
        let (parts, rest): (Self, _) = postcard::take_from_bytes(body).map_err(PartError::List)?;
        if !rest.is_empty() {
            return Err(PartError::List(postcard::Error::DeserializeBadEncoding));
        }
        if parts.0.len() > PARTS_MAX {
            return Err(PartError::TooMany);
        }
        let mut numbers: Vec<u16> = parts.0.iter().map(|raw| raw.number).collect();
        numbers.sort_unstable();
        match numbers.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(PartError::Twice(pair[0])),
            None => Ok(parts),
        }
    }

    /// As it is kept.
    ///
    /// # Errors
    /// Never with the parts that there are.
    pub fn bytes(&self) -> Result<Vec<u8>, PartError> {
        postcard::to_stdvec(self).map_err(PartError::List)
    }

    /// Adds a part.
    ///
    /// # Errors
    /// Never with the parts that there are.
    pub fn put<P: Part>(&mut self, part: &P) -> Result<(), PartError> {
        let body = postcard::to_stdvec(part).map_err(|source| PartError::Write {
            name: P::NAME,
            source,
        })?;
        self.0.push(Raw {
            number: P::NUMBER,
            version: P::VERSION,
            body,
        });
        Ok(())
    }

    /// Reads a part.
    ///
    /// # Errors
    /// It is not there, or cannot be understood.
    pub fn read<P: Part>(&self) -> Result<P, PartError> {
        let raw = self.0.iter().find(|raw| raw.number == P::NUMBER);
        let raw = raw.ok_or(PartError::Missing(P::NAME))?;
        if raw.version != P::VERSION {
            return Err(PartError::Version {
                name: P::NAME,
                found: raw.version,
                known: P::VERSION,
            });
        }
        let wrong = |source| PartError::Body {
            name: P::NAME,
            source,
        };
        let (part, rest) = postcard::take_from_bytes(&raw.body).map_err(wrong)?;
        if rest.is_empty() {
            Ok(part)
        } else {
            Err(wrong(postcard::Error::DeserializeBadEncoding))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize, Debug, PartialEq)]
    struct Old(u32);
    #[derive(Serialize, Deserialize, Debug)]
    struct New(u32, u32);
    #[derive(Serialize, Deserialize, Debug)]
    struct Other;

    impl Part for Old {
        const NUMBER: u16 = 7;
        const VERSION: u16 = 1;
        const NAME: &'static str = "clockwork";
    }
    impl Part for New {
        const NUMBER: u16 = 7;
        const VERSION: u16 = 2;
        const NAME: &'static str = "clockwork";
    }
    impl Part for Other {
        const NUMBER: u16 = 8;
        const VERSION: u16 = 1;
        const NAME: &'static str = "bell";
    }

    #[test]
    fn parts_are_found_by_number_and_refused_by_name() {
        let mut parts = Parts::default();
        parts.put(&Old(5)).expect("put");
        let parts = Parts::parse(&parts.bytes().expect("bytes")).expect("parts");
        assert_eq!(parts.read::<Old>().expect("there"), Old(5));
        let newer = parts.read::<New>().expect_err("another version");
        assert!(
            newer
                .to_string()
                .contains("clockwork has version 1, known is 2")
        );
        let none = parts.read::<Other>().expect_err("not there");
        assert_eq!(none.to_string(), "it has no bell");
    }

    #[test]
    fn what_is_left_over_is_refused() {
        let mut parts = Parts::default();
        parts.put(&Old(5)).expect("put");
        let mut bytes = parts.bytes().expect("bytes");
        bytes.push(0);
        assert!(Parts::parse(&bytes).is_err());
        parts.0[0].body.push(0);
        assert!(matches!(parts.read::<Old>(), Err(PartError::Body { .. })));
        let many = Parts(
            (0..=PARTS_MAX as u16)
                .map(|number| Raw {
                    number,
                    version: 1,
                    body: Vec::new(),
                })
                .collect(),
        );
        let many = Parts::parse(&many.bytes().expect("bytes"));
        assert!(matches!(many, Err(PartError::TooMany)));
        let mut twice = Parts::default();
        for value in [5, 6] {
            twice.put(&Old(value)).expect("put");
        }
        let twice = Parts::parse(&twice.bytes().expect("bytes"));
        assert!(matches!(twice, Err(PartError::Twice(7))));
    }
}
