//! How a record's bytes are stored: plain, or as one zstd frame where that is shorter.
//!
//! Decoding never allocates more than the recorded length, which the caller has checked against the limit of its kind. The frame
//! says nothing that is trusted. Contexts and their buffers are kept per thread, because making them costs more than a chunk.
//!
//! Invariant: a frame leaves [`encode`] only after it was decoded again and gave the plain bytes. So from here on a checksum of the
//! frame is enough to know that it decodes (decision 0026).

use std::cell::RefCell;

use bytes::Bytes;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{CParameter, compress_bound};

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

/// Table sizes of the compressor at the default level, as logarithms: 64 KiB for long matches, 32 KiB for short ones. zstd's own
/// choice for inputs above 16 KiB is six times that, which falls out of the core's second cache for nothing: chunks are short.
const DEFAULT_LEVEL: i32 = 3;
const LONG_TABLE_LOG: u32 = 14;
const SHORT_TABLE_LOG: u32 = 13;
/// The window: the longest chunk that realms use by default. Longer ones are compressed piece by piece, as zstd does.
const WINDOW_LOG: u32 = 16;
/// Shortest match that the compressor looks for.
const MATCH_BYTES_MIN: u32 = 5;

/// What a thread compresses with.
struct Encoder {
    level: i32,
    compressor: Compressor<'static>,
    frame: Vec<u8>,
    plain: Vec<u8>,
}

impl Encoder {
    fn new(level: i32) -> std::io::Result<Self> {
        let mut compressor = Compressor::new(level)?;
        if level == DEFAULT_LEVEL {
            compressor.set_parameter(CParameter::WindowLog(WINDOW_LOG))?;
            compressor.set_parameter(CParameter::HashLog(LONG_TABLE_LOG))?;
            compressor.set_parameter(CParameter::ChainLog(SHORT_TABLE_LOG))?;
            compressor.set_parameter(CParameter::MinMatch(MATCH_BYTES_MIN))?;
        }
        Ok(Self {
            level,
            compressor,
            frame: Vec::new(),
            plain: Vec::new(),
        })
    }

    /// The frame of `plain`, if it is shorter and decodes to it.
    fn encode(&mut self, plain: &[u8]) -> Option<Bytes> {
        let bound = compress_bound(plain.len());
        if self.frame.len() < bound {
            self.frame.resize(bound, 0);
        }
        let frame = &mut self.frame[..bound];
        let len = self.compressor.compress_to_buffer(plain, frame).ok()?;
        if len >= plain.len() {
            return None;
        }
        let frame = &frame[..len];
        if self.plain.len() < plain.len() {
            self.plain.resize(plain.len(), 0);
        }
        let decoded = &mut self.plain[..plain.len()];
        let same = decode_to(frame, decoded).is_ok_and(|len| decoded[..len] == *plain);
        if !same {
            // Nothing is lost, as the plain bytes are stored; but who runs this machine should know.
            tracing::error!(
                bytes = plain.len(),
                "a compressed chunk does not decode to what it was made of: processor or memory of this machine are faulty"
            );
            return None;
        }
        Some(Bytes::copy_from_slice(frame))
    }
}

thread_local! {
    static ENCODER: RefCell<Option<Encoder>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// The shorter of the plain bytes and their zstd form at `level`, proven to decode.
pub fn encode(plain: &Bytes, level: i32) -> (Encoding, Bytes) {
    let frame = ENCODER.with_borrow_mut(|slot| {
        if slot.as_ref().is_none_or(|encoder| encoder.level != level) {
            *slot = Encoder::new(level).ok();
        }
        slot.as_mut()?.encode(plain)
    });
    // A compressor that is out of memory is no reason not to store.
    match frame {
        Some(frame) => (Encoding::Zstd, frame),
        None => (Encoding::Raw, plain.clone()),
    }
}

/// Decodes one frame into `plain`; answers how many bytes it held.
fn decode_to(frame: &[u8], plain: &mut [u8]) -> std::io::Result<usize> {
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => slot.insert(Decompressor::new()?),
        };
        decompressor.decompress_to_buffer(frame, plain)
    })
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
    let mut plain = vec![0; raw_len];
    let len = decode_to(stored, &mut plain).map_err(|e| broken(e.to_string()))?;
    if len != raw_len {
        return Err(broken(format!("it holds {len}")));
    }
    Ok(plain.into())
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
