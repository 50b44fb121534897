//! How a record's bytes are stored: plain, or as one zstd frame where that is shorter.
//!
//! Decoding never allocates more than the recorded length, which the caller has checked against the limit of its kind. The frame
//! says nothing that is trusted. Contexts are kept per thread, because making one costs more than a chunk.

use std::cell::RefCell;

use bytes::Bytes;
use zstd::bulk::{Compressor, Decompressor};

/// How stored bytes encode the plain ones. The numbers are part of the pack format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Encoding {
    /// The plain bytes.
    Raw = 0,
    /// One zstd frame, no dictionary (RFC 8878).
    Zstd = 1,
}

impl Encoding {
    /// The encoding that a format calls `tag`.
    pub fn from_tag(tag: u8) -> Option<Self> {
        match tag {
            0 => Some(Encoding::Raw),
            1 => Some(Encoding::Zstd),
            _ => None,
        }
    }
}

/// The stored bytes do not decode to what was recorded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The lengths cannot belong together.
    #[error("{stored_len} bytes cannot be the {encoding:?} form of {raw_len} bytes")]
    Length {
        /// The encoding.
        encoding: Encoding,
        /// Bytes as stored.
        stored_len: usize,
        /// Bytes as recorded.
        raw_len: usize,
    },
    /// The frame is broken, or holds more than was recorded.
    #[error("the zstd frame does not decode into {raw_len} bytes: {message}")]
    Frame {
        /// Bytes as recorded.
        raw_len: usize,
        /// The decoder's words.
        message: String,
    },
}

thread_local! {
    static COMPRESSOR: RefCell<Option<(i32, Compressor<'static>)>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// The shorter of the plain bytes and their zstd form at `level`.
pub fn encode(plain: &Bytes, level: i32) -> (Encoding, Bytes) {
    let frame = COMPRESSOR.with_borrow_mut(|slot| {
        if slot.as_ref().is_none_or(|(l, _)| *l != level) {
            *slot = Compressor::new(level).ok().map(|c| (level, c));
        }
        let (_, compressor) = slot.as_mut()?;
        compressor.compress(plain).ok()
    });
    // A compressor that is out of memory is no reason not to store.
    match frame {
        Some(frame) if frame.len() < plain.len() => (Encoding::Zstd, frame.into()),
        _ => (Encoding::Raw, plain.clone()),
    }
}

/// The plain bytes, exactly `raw_len` of them. Allocates no more than that.
pub fn decode(encoding: Encoding, stored: &Bytes, raw_len: usize) -> Result<Bytes, DecodeError> {
    let plausible = match encoding {
        Encoding::Raw => stored.len() == raw_len,
        Encoding::Zstd => stored.len() < raw_len,
    };
    if !plausible {
        return Err(DecodeError::Length {
            encoding,
            stored_len: stored.len(),
            raw_len,
        });
    }
    if encoding == Encoding::Raw {
        return Ok(stored.clone());
    }
    let broken = |message: String| DecodeError::Frame { raw_len, message };
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => slot.insert(Decompressor::new().map_err(|e| broken(e.to_string()))?),
        };
        let mut plain = vec![0; raw_len];
        let len = decompressor
            .decompress_to_buffer(stored, &mut plain[..])
            .map_err(|e| broken(e.to_string()))?;
        if len != raw_len {
            return Err(broken(format!("it holds {len}")));
        }
        Ok(plain.into())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_shrinks_is_compressed_and_what_does_not_is_plain() {
        let soft = Bytes::from(vec![7; 10_000]);
        let (encoding, stored) = encode(&soft, 3);
        assert_eq!(encoding, Encoding::Zstd);
        assert_eq!(decode(encoding, &stored, 10_000).unwrap(), soft);
        let hard = Bytes::from_static(b"xyz");
        assert_eq!(encode(&hard, 3), (Encoding::Raw, hard.clone()));
        assert_eq!(encode(&Bytes::new(), 3), (Encoding::Raw, Bytes::new()));
    }

    #[test]
    fn a_frame_that_holds_more_or_less_than_recorded_is_refused() {
        let bomb = Bytes::from(zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap());
        assert!(matches!(
            decode(Encoding::Zstd, &bomb, 16_384),
            Err(DecodeError::Frame { .. })
        ));
        let (_, stored) = encode(&Bytes::from(vec![7; 10_000]), 3);
        assert!(decode(Encoding::Zstd, &stored, 9_999).is_err());
        assert!(decode(Encoding::Zstd, &stored, 10_001).is_err());
        assert!(decode(Encoding::Zstd, &Bytes::from_static(b"no frame"), 100).is_err());
        assert!(decode(Encoding::Raw, &stored, 10_000).is_err());
    }
}
