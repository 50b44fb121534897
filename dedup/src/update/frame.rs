//! zstd with a prefix, both ways, and the limits that hold whatever a frame's own header says.

use zstd::zstd_safe::{CCtx, CParameter, DCtx, compress_bound, get_error_name};

use crate::update::{BATCH_PLAIN_BYTES_MAX, PREFIX_BYTES_MAX};

/// Log of the window that holds the largest prefix and batch at once.
const WINDOW_LOG_MAX: u32 = (BATCH_PLAIN_BYTES_MAX + PREFIX_BYTES_MAX)
    .next_power_of_two()
    .ilog2();

/// The window log below which zstd does not go.
const WINDOW_LOG_MIN: u32 = 10;

/// A zstd level with tables that hold all positions of prefix and batch: those of the level itself forget most of the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Strength {
    level: i32,
    hash_log: u32,
    chain_log: u32,
}

impl Strength {
    pub(super) const fn new(level: i32, hash_log: u32, chain_log: u32) -> Self {
        Self {
            level,
            hash_log,
            chain_log,
        }
    }

    #[cfg(test)]
    pub(super) fn level(self) -> i32 {
        self.level
    }
}

/// Packs `plain` into one zstd frame that refers to `prefix`.
pub(super) fn pack(prefix: &[u8], plain: &[u8], strength: Strength) -> Vec<u8> {
    let bytes = prefix.len() + plain.len();
    let window_log = log_at_least(bytes).clamp(WINDOW_LOG_MIN, WINDOW_LOG_MAX);
    let pack = || -> Result<Vec<u8>, usize> {
        let mut context = CCtx::create();
        for parameter in [
            CParameter::CompressionLevel(strength.level),
            CParameter::WindowLog(window_log),
            CParameter::HashLog(strength.hash_log.min(window_log + 1)),
            CParameter::ChainLog(strength.chain_log.min(window_log + 1)),
        ] {
            context.set_parameter(parameter)?;
        }
        context.ref_prefix(prefix)?;
        let mut packed = Vec::with_capacity(compress_bound(plain.len()));
        context.compress2(&mut packed, plain)?;
        Ok(packed)
    };
    let mut packed = pack().expect("parameters in range, and a buffer of zstd's own bound");
    packed.shrink_to_fit();
    packed
}

/// Unpacks a foreign frame into exactly `len` bytes.
///
/// The output buffer is the limit. zstd decodes straight into it, so that the window a frame claims is never allocated, and one that
/// would unpack to more fails where the buffer ends.
pub(super) fn unpack(prefix: &[u8], packed: &[u8], len: usize) -> Result<Vec<u8>, String> {
    let describe = |code| get_error_name(code).to_owned();
    let mut context = DCtx::create();
    context.ref_prefix(prefix).map_err(describe)?;
    let mut plain = vec![0; len];
    let got = context
        .decompress(&mut plain[..], packed)
        .map_err(describe)?;
    if got != len {
        return Err(format!("it holds {got} bytes"));
    }
    Ok(plain)
}

/// Log of the least power of two that is not below `bytes`.
fn log_at_least(bytes: usize) -> u32 {
    bytes.next_power_of_two().ilog2()
}
