//! What a repair datagram says. Foreign bytes: every length is checked against limits before it is used.
//!
//! The layout is in `docs/wire.md`, section Repair. A datagram that does not parse is dropped, as if it had been lost.

use bytes::{BufMut, Bytes, BytesMut};

use super::code::{DATA_MAX, REPAIR_MAX};

/// First byte, as of frames.
const VERSION: u8 = 1;
const TAG_SYMBOLS: u8 = 0x41;
const TAG_PIECE: u8 = 0x42;

/// Bytes before a piece's own.
pub(super) const PIECE_HEAD_BYTES: usize = 19;
/// Bytes before the symbols.
pub(super) const SYMBOLS_HEAD_BYTES: usize = 26;

/// A share of lost packets in thousandths, 0 for none measured, 255 for that much or more.
pub(super) type LossPerMille = u8;

/// A parsed datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::link) struct Repair {
    /// Loss that the sender measured on its own packets.
    pub(super) loss: LossPerMille,
    /// QUIC's number of the stream that it repairs.
    pub(super) stream: u64,
    /// Offset in that stream of the piece, or of the block.
    pub(super) offset: u64,
    pub(super) body: Body,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::link) enum Body {
    /// Bytes of the stream as they are.
    Piece(Bytes),
    /// Repair symbols of a block of the stream.
    Symbols {
        /// Length of the block.
        block_bytes: u32,
        symbol_bytes: u16,
        /// Number of the first repair symbol here.
        first: u8,
        /// One or more, each of `symbol_bytes`.
        symbols: Bytes,
    },
}

impl Repair {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(SYMBOLS_HEAD_BYTES + self.body_bytes());
        out.put_u8(VERSION);
        out.put_u8(match self.body {
            Body::Symbols { .. } => TAG_SYMBOLS,
            Body::Piece(_) => TAG_PIECE,
        });
        out.put_u8(self.loss);
        out.put_u64_le(self.stream);
        out.put_u64_le(self.offset);
        match &self.body {
            Body::Piece(bytes) => out.put_slice(bytes),
            Body::Symbols {
                block_bytes,
                symbol_bytes,
                first,
                symbols,
            } => {
                out.put_u32_le(*block_bytes);
                out.put_u16_le(*symbol_bytes);
                out.put_u8(*first);
                out.put_slice(symbols);
            }
        }
        out.freeze()
    }

    fn body_bytes(&self) -> usize {
        match &self.body {
            Body::Piece(bytes) => bytes.len(),
            Body::Symbols { symbols, .. } => symbols.len(),
        }
    }

    /// Parses a datagram; `None` for one that is no repair or makes no sense.
    pub(super) fn decode(datagram: &Bytes) -> Option<Self> {
        let head: &[u8; PIECE_HEAD_BYTES] = datagram.first_chunk()?;
        let [VERSION, tag, loss, rest @ ..] = head else {
            return None;
        };
        let (stream, offset) = rest.split_first_chunk::<8>()?;
        let stream = u64::from_le_bytes(*stream);
        let offset = u64::from_le_bytes(*offset.first_chunk()?);
        let body = match *tag {
            TAG_PIECE => {
                let bytes = datagram.slice(PIECE_HEAD_BYTES..);
                (!bytes.is_empty()).then_some(Body::Piece(bytes))?
            }
            TAG_SYMBOLS => {
                let head = datagram
                    .get(PIECE_HEAD_BYTES..SYMBOLS_HEAD_BYTES)?
                    .first_chunk::<7>()?;
                let block_bytes = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
                let symbol_bytes = u16::from_le_bytes([head[4], head[5]]);
                let first = head[6];
                let symbols = datagram.slice(SYMBOLS_HEAD_BYTES..);
                let size = usize::from(symbol_bytes);
                if size == 0 || symbols.is_empty() || !symbols.len().is_multiple_of(size) {
                    return None;
                }
                let count = symbols.len() / size;
                let data = (block_bytes as usize).div_ceil(size);
                if data == 0 || data > DATA_MAX || usize::from(first) + count > REPAIR_MAX {
                    return None;
                }
                Body::Symbols {
                    block_bytes,
                    symbol_bytes,
                    first,
                    symbols,
                }
            }
            _ => return None,
        };
        // Streams end at 2^62; sums below stay far from overflow.
        (stream < 1 << 62 && offset < 1 << 62).then_some(Self {
            loss: *loss,
            stream,
            offset,
            body,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn piece() -> Repair {
        Repair {
            loss: 10,
            stream: 0x0102,
            offset: 3,
            body: Body::Piece(Bytes::from_static(b"\xaa\xbb")),
        }
    }

    fn symbols() -> Repair {
        Repair {
            loss: 0,
            stream: 4,
            offset: 0x1000,
            body: Body::Symbols {
                block_bytes: 9,
                symbol_bytes: 4,
                first: 2,
                symbols: Bytes::from_static(&[1, 2, 3, 4, 5, 6, 7, 8]),
            },
        }
    }

    #[test]
    fn golden_bytes() {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(
            hex(&piece().encode()),
            "01420a02010000000000000300000000000000aabb"
        );
        assert_eq!(
            hex(&symbols().encode()),
            "014100040000000000000000100000000000000900000004000\
             20102030405060708"
        );
        for repair in [piece(), symbols()] {
            assert_eq!(Repair::decode(&repair.encode()), Some(repair));
        }
    }

    #[test]
    fn nonsense_is_dropped() {
        for repair in [piece(), symbols()] {
            let whole = repair.encode();
            for cut in 0..PIECE_HEAD_BYTES + 1 {
                assert_eq!(Repair::decode(&whole.slice(..cut.min(whole.len()))), None);
            }
        }
        let change = |at: usize, to: u8| {
            let mut bytes = symbols().encode().to_vec();
            bytes[at] = to;
            Repair::decode(&bytes.into())
        };
        assert_eq!(change(0, 2), None, "another version");
        assert_eq!(change(1, 0x43), None, "another tag");
        assert_eq!(change(10, 0xff), None, "a stream beyond QUIC's");
        assert_eq!(change(18, 0xff), None, "an offset beyond QUIC's");
        assert_eq!(change(19, 0), None, "an empty block");
        assert_eq!(change(20, 0xff), None, "a block of too many symbols");
        assert_eq!(change(23, 0), None, "symbols of nothing");
        assert_eq!(change(23, 3), None, "a torn symbol");
        assert_eq!(change(25, 31), None, "a symbol beyond the code");
    }
}
