//! Sketches: a few numbers per chunk of which two similar chunks are likely to share one.

/// Super-features of a chunk. Chunks that share one are likely to share most of their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sketch(pub [u32; 3]);

impl Sketch {
    /// Length of [`Self::to_bytes`].
    pub const LEN: usize = 12;

    /// For a cache of sketches: little-endian.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        for (slot, feature) in out.chunks_exact_mut(4).zip(self.0) {
            slot.copy_from_slice(&feature.to_le_bytes());
        }
        out
    }

    /// Reads [`Self::to_bytes`] back.
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        let mut features = [0; 3];
        for (feature, slot) in features.iter_mut().zip(bytes.chunks_exact(4)) {
            *feature = u32::from_le_bytes(slot.try_into().expect("chunks of four"));
        }
        Self(features)
    }
}

/// Sketches a chunk's plain bytes.
pub fn sketch(_bytes: &[u8]) -> Sketch {
    Sketch::default()
}
