//! Decompression of single clusters. Output never exceeds one cluster, and neither does memory by more than the
//! window that QEMU's own compressors use.

use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use super::header::Compression;

/// The largest zstd window accepted: four times QEMU's largest cluster, which is the most a window can be of use.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// A reusable decompressor of one kind.
pub(super) enum Inflater {
    Deflate(Box<Decompress>),
    Zstd(Box<Decoder<'static>>),
}

impl Inflater {
    pub(super) fn new(compression: Compression) -> std::io::Result<Self> {
        Ok(match compression {
            // QEMU writes bare streams with a 4 KiB window; a decoder with the largest window reads them all.
            Compression::Deflate => Self::Deflate(Box::new(Decompress::new(false))),
            Compression::Zstd => {
                let mut decoder = Decoder::new()?;
                decoder.set_parameter(zstd::zstd_safe::DParameter::WindowLogMax(
                    ZSTD_WINDOW_LOG_MAX,
                ))?;
                Self::Zstd(Box::new(decoder))
            }
        })
    }

    /// Fills `cluster` from the stream at the start of `compressed`, or says what is wrong with it. What follows the
    /// stream is ignored: the stored length is in whole sectors.
    pub(super) fn inflate(&mut self, compressed: &[u8], cluster: &mut [u8]) -> Result<(), String> {
        let produced = match self {
            Self::Deflate(decoder) => {
                decoder.reset(false);
                loop {
                    let (taken, produced) =
                        (decoder.total_in() as usize, decoder.total_out() as usize);
                    if produced == cluster.len() {
                        break produced;
                    }
                    let status = decoder
                        .decompress(
                            &compressed[taken..],
                            &mut cluster[produced..],
                            FlushDecompress::Finish,
                        )
                        .map_err(|e| format!("a cluster does not inflate: {e}"))?;
                    let stuck = decoder.total_in() as usize == taken
                        && decoder.total_out() as usize == produced;
                    if status == Status::StreamEnd || stuck {
                        break decoder.total_out() as usize;
                    }
                }
            }
            Self::Zstd(decoder) => {
                decoder
                    .reinit()
                    .map_err(|e| format!("the zstd decoder: {e}"))?;
                let mut input = InBuffer::around(compressed);
                let mut output = OutBuffer::around(cluster);
                loop {
                    let before = (input.pos(), output.pos());
                    let hint = decoder
                        .run(&mut input, &mut output)
                        .map_err(|e| format!("a cluster does not decompress: {e}"))?;
                    // 0 means the frame is over.
                    if hint == 0
                        || output.pos() == output.capacity()
                        || before == (input.pos(), output.pos())
                    {
                        break output.pos();
                    }
                }
            }
        };
        if produced == cluster.len() {
            Ok(())
        } else {
            Err(format!(
                "a compressed cluster holds {produced} bytes instead of {}",
                cluster.len()
            ))
        }
    }
}
