//! A zlib stream that goes on from rectangle to rectangle: what was sent before makes what comes shorter.

use flate2::{Compress, Compression, FlushCompress};

/// Room for zlib's output at a time.
const OUT_BYTES: usize = 16 << 10;

/// See the module.
pub(super) struct Deflate(Compress);

impl Deflate {
    /// A new stream; levels are zlib's, 0 to 9.
    pub(super) fn new(level: u32) -> Self {
        Self(Compress::new(Compression::new(level), true))
    }

    /// Compresses all of `input` behind what is in `out`, so that a viewer can unpack it without what comes later.
    pub(super) fn put(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        loop {
            out.reserve(OUT_BYTES);
            let before = self.0.total_in();
            self.0
                .compress_vec(input, out, FlushCompress::Sync)
                .expect("a stream that was never ended takes everything");
            input = &input[(self.0.total_in() - before) as usize..];
            // All of it is out when there was room for more.
            if input.is_empty() && out.len() < out.capacity() {
                break;
            }
        }
    }
}
