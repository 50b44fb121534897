//! Files that are either whole and as they were written, or refused: a head, and a body that the head's checksum is of.
//!
//! ```text
//!  0 magic (8)   8 version u32   12 zero u32   16 bytes of the body u64   24 BLAKE3 of the body (32)   56 body
//! ```
//!
//! Numbers are little-endian. Nothing of a body is looked at before its checksum holds. It protects from damage, not from somebody who
//! can write the file: what is read is checked all the same.

use std::fs::File;
use std::io::{self, Read};

/// Bytes before the body.
pub const HEAD_BYTES: usize = 56;
/// The one version of the head and of how parts are kept in the body; parts have versions of their own.
const VERSION: u32 = 1;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The state of a machine.
    State,
    /// The order in which a machine that goes on touches its memory.
    WorkingSet,
}

impl Kind {
    fn magic(self) -> [u8; 8] {
        match self {
            Self::State => *b"SPLSTATE",
            Self::WorkingSet => *b"SPLTOUCH",
        }
    }
}

/// Why a file is refused.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// It cannot be read.
    #[error("read it")]
    Read(#[source] io::Error),
    /// Another kind of file.
    #[error("it is no such file: it begins otherwise")]
    Magic,
    /// Of a later program.
    #[error(
        "it has version {0}, known is {VERSION}; use the splice-vmm that wrote it, or a later one"
    )]
    Version(u32),
    /// Too short, too long.
    #[error("it has {there} bytes where {said} should be: it is not whole")]
    Length {
        /// Bytes there should be.
        said: u64,
        /// Bytes there are.
        there: u64,
    },
    /// Damaged.
    #[error("it is damaged: its checksum is another one")]
    Checksum,
}

/// Puts a head before a body.
pub fn seal(kind: Kind, body: &[u8]) -> Vec<u8> {
    let mut file = Vec::with_capacity(HEAD_BYTES + body.len());
    file.extend(kind.magic());
    file.extend(VERSION.to_le_bytes());
    file.extend([0; 4]);
    file.extend((body.len() as u64).to_le_bytes());
    file.extend(blake3::hash(body).as_bytes());
    file.extend(body);
    file
}

/// The body of a file that is whole.
///
/// # Errors
/// See [`SealError`].
pub fn unseal(kind: Kind, file: &[u8]) -> Result<&[u8], SealError> {
    let short = || SealError::Length {
        said: HEAD_BYTES as u64,
        there: file.len() as u64,
    };
    let (head, body) = file.split_at_checked(HEAD_BYTES).ok_or_else(short)?;
    if head[..8] != kind.magic() || head[12..16] != [0; 4] {
        return Err(SealError::Magic);
    }
    let version = u32::from_le_bytes(head[8..12].try_into().expect("four bytes"));
    if version != VERSION {
        return Err(SealError::Version(version));
    }
    let said = u64::from_le_bytes(head[16..24].try_into().expect("eight bytes"));
    if said != body.len() as u64 {
        return Err(SealError::Length {
            said: said.saturating_add(HEAD_BYTES as u64),
            there: file.len() as u64,
        });
    }
    if blake3::hash(body).as_bytes() != &head[24..HEAD_BYTES] {
        return Err(SealError::Checksum);
    }
    Ok(body)
}

/// Reads the body of a file that is whole and has no more than `bytes_max` bytes, from where the file is now.
///
/// # Errors
/// See [`SealError`].
pub fn read(kind: Kind, file: &File, bytes_max: u64) -> Result<Vec<u8>, SealError> {
    let mut bytes = Vec::new();
    // Nothing but reads: the file's length is not asked for, which a sandbox has no call for.
    let read = file.take(bytes_max + 1).read_to_end(&mut bytes);
    read.map_err(SealError::Read)?;
    if bytes.len() as u64 > bytes_max {
        return Err(SealError::Length {
            said: bytes_max,
            there: bytes.len() as u64,
        });
    }
    let len = unseal(kind, &bytes)?.len();
    bytes.drain(..bytes.len() - len);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_file_is_as_documented() {
        let file = seal(Kind::State, b"body");
        assert_eq!(&file[..8], b"SPLSTATE");
        assert_eq!(
            file[8..24],
            [1, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(&file[24..56], blake3::hash(b"body").as_bytes());
        assert_eq!(&file[56..], b"body");
        assert_eq!(unseal(Kind::State, &file).expect("whole"), b"body");
        let other = unseal(Kind::WorkingSet, &file);
        assert!(matches!(other, Err(SealError::Magic)));
    }

    proptest! {
        /// Whatever bit falls over and wherever the file is cut, it is refused.
        #[test]
        fn no_damage_is_overlooked(body in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), bit in 0u32..8) {
            let file = seal(Kind::State, &body);
            prop_assert_eq!(unseal(Kind::State, &file).expect("whole"), &body[..]);
            let at = at.index(file.len());
            prop_assert!(unseal(Kind::State, &file[..at]).is_err());
            let mut damaged = file.clone();
            damaged[at] ^= 1u8 << bit;
            prop_assert!(unseal(Kind::State, &damaged).is_err());
            let longer = [&file[..], &[0]].concat();
            prop_assert!(unseal(Kind::State, &longer).is_err());
        }
    }
}
