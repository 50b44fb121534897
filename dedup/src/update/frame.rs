//! zstd with a prefix, both ways, and the limits that hold whatever a frame's own header says.

use zstd::zstd_safe::{CCtx, CParameter, DCtx, DParameter, SafeResult, get_error_name};

use crate::update::{BATCH_PLAIN_BYTES_MAX, PREFIX_BYTES_MAX};

/// Log of the window that holds the largest prefix and batch at once.
const WINDOW_LOG: u32 = (BATCH_PLAIN_BYTES_MAX + PREFIX_BYTES_MAX)
    .next_power_of_two()
    .ilog2();

/// Packs `plain` into one zstd frame that refers to `prefix`.
pub(super) fn pack(prefix: &[u8], plain: &[u8], level: i32) -> Vec<u8> {
    let packed = || -> Result<Vec<u8>, usize> {
        let mut context = CCtx::create();
        context.set_parameter(CParameter::CompressionLevel(level))?;
        context.set_parameter(CParameter::WindowLog(window_log(
            prefix.len() + plain.len(),
        )))?;
        context.ref_prefix(prefix)?;
        let mut packed = Vec::with_capacity(zstd::zstd_safe::compress_bound(plain.len()));
        context.compress2(&mut packed, plain)?;
        Ok(packed)
    };
    packed().expect("zstd compresses into a buffer of its own bound")
}

/// Unpacks a foreign frame into exactly `len` bytes. The output buffer is the limit: a frame that would unpack to more fails there.
pub(super) fn unpack(prefix: &[u8], packed: &[u8], len: usize) -> Result<Vec<u8>, String> {
    let describe = |code| get_error_name(code).to_owned();
    let mut context = DCtx::create();
    context
        .set_parameter(DParameter::WindowLogMax(WINDOW_LOG))
        .map_err(describe)?;
    context.ref_prefix(prefix).map_err(describe)?;
    let mut plain = Vec::with_capacity(len);
    let got: SafeResult = context.decompress(&mut plain, packed);
    let got = got.map_err(describe)?;
    if got != len {
        return Err(format!("it holds {got} bytes"));
    }
    Ok(plain)
}

fn window_log(bytes: usize) -> u32 {
    bytes.next_power_of_two().ilog2().clamp(10, WINDOW_LOG)
}
