//! Frames on a stream, laid out as the product's links do: `u32` little-endian length, then that many bytes.
//!
//! The product's own code for this (`dedup/transport/src/link/frame.rs`) is one with quinn's asynchronous streams, so these few lines
//! repeat the layout. They trust the peer, which is honest here; the product's do not.

use bytes::{Bytes, BytesMut};

const HEADER_BYTES: usize = 4;

/// A payload with its length before it.
pub(super) fn framed(payload: &[u8]) -> Bytes {
    let length = u32::try_from(payload.len()).expect("a message is far below 4 GiB");
    [&length.to_le_bytes(), payload].concat().into()
}

/// A stream's bytes, until they are frames.
#[derive(Debug, Default)]
pub(super) struct Reassembly {
    bytes: BytesMut,
}

impl Reassembly {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame's payload.
    pub(super) fn next_frame(&mut self) -> Option<Vec<u8>> {
        let header = self.bytes.first_chunk::<HEADER_BYTES>()?;
        let whole = HEADER_BYTES + u32::from_le_bytes(*header) as usize;
        if self.bytes.len() < whole {
            return None;
        }
        Some(self.bytes.split_to(whole)[HEADER_BYTES..].to_vec())
    }

    /// Whether the stream may end here.
    pub(super) fn is_between_frames(&self) -> bool {
        self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole_however_they_are_cut() {
        let frames: [&[u8]; 4] = [b"one", b"", &[7; 300], b"last"];
        let stream: Vec<u8> = frames.iter().flat_map(|f| framed(f).to_vec()).collect();
        assert_eq!(
            stream[..7],
            *b"\x03\0\0\0one",
            "the layout of docs/transport.md"
        );
        for step in [1, 2, 3, 5, 64, stream.len()] {
            let mut reassembly = Reassembly::default();
            let mut out = Vec::new();
            for part in stream.chunks(step) {
                reassembly.push(part);
                while let Some(frame) = reassembly.next_frame() {
                    out.push(frame);
                }
            }
            assert_eq!(out, frames, "in steps of {step}");
            assert!(reassembly.is_between_frames());
        }
    }
}
