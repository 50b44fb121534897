//! Which pages of a guest's memory are pages of its disk: what a boot read is in its page cache, and need not be kept twice.
//!
//! Only what the boot touched is looked at: it is here, and little beside it could be in memory. Pages are found by the BLAKE3 of their bytes, whole
//! pages of the disk at whole pages' places, as file systems have them.

use std::collections::HashMap;
use std::ops::Range;

use super::head::{BLOCK_BYTES, BLOCK_PAGES, Block, PAGE_BYTES, Page};
use crate::content_map::{ContentMap, Piece};

/// Bytes read at a time.
const READ_BYTES: u64 = 1 << 20;

/// The pages of a disk that were looked at, by the hashes of their bytes.
#[derive(Debug, Default)]
pub struct PageIndex(HashMap<[u8; 32], u32>);

/// Where the chunks lie that `is_touched` names, as long as they can be told together.
pub fn touched_ranges(map: &ContentMap, is_touched: impl Fn(usize) -> bool) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    for piece in map.pieces(0, map.size_bytes()) {
        let (len, is_in) = match piece {
            Piece::Zero { len } => (len, false),
            Piece::Chunk { index, len, .. } => (len, is_touched(index)),
        };
        let end = at + len;
        if is_in {
            match ranges.last_mut() {
                Some(last) if last.end == at => last.end = end,
                _ => ranges.push(at..end),
            }
        }
        at = end;
    }
    ranges
}

pub(super) fn is_zero(bytes: &[u8]) -> bool {
    // Compared in long words, which the compiler does by itself.
    bytes.iter().fold(0, |all, byte| all | byte) == 0
}

impl PageIndex {
    /// Takes in the whole pages within these ranges, which `read` reads.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn read<E>(
        ranges: &[Range<u64>],
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut index = Self::default();
        let page_bytes = PAGE_BYTES as u64;
        let mut bytes = vec![0; READ_BYTES as usize];
        for range in ranges {
            let mut at = range.start.next_multiple_of(page_bytes);
            let end = range.end - range.end % page_bytes;
            while at < end {
                let len = READ_BYTES.min(end - at);
                let bytes = &mut bytes[..len as usize];
                read(at, bytes)?;
                for (number, page) in (at / page_bytes..).zip(bytes.chunks_exact(PAGE_BYTES)) {
                    index.add(number, page);
                }
                at += len;
            }
        }
        Ok(index)
    }

    fn add(&mut self, number: u64, page: &[u8]) {
        // A disk of more than 16 TiB has pages that cannot be named: they are kept.
        if let Ok(number) = u32::try_from(number)
            && !is_zero(page)
        {
            // Of the same content the first is as good as any, and stays so that reads of a block may lie side by side.
            let name = blake3::hash(page).into();
            self.0.entry(name).or_insert(number);
        }
    }

    /// How a block of memory is kept; none if it is all zeros.
    pub fn plan(&self, index: u32, bytes: &[u8; BLOCK_BYTES]) -> Option<Block> {
        let mut pages = [Page::Zero; BLOCK_PAGES];
        for (page, bytes) in pages.iter_mut().zip(bytes.chunks_exact(PAGE_BYTES)) {
            if is_zero(bytes) {
                continue;
            }
            let found = self.0.get(blake3::hash(bytes).as_bytes());
            *page = found.map_or(Page::Own, |number| Page::Image(*number));
        }
        let is_needed = pages.iter().any(|page| *page != Page::Zero);
        is_needed.then(|| Block {
            index,
            name: blake3::hash(bytes).into(),
            pages,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init, clippy::unwrap_used, missing_docs)]
    use std::convert::Infallible;

    use dedup::{ChunkerParams, IdKey, ManifestBuilder};
    use proptest::prelude::*;

    use super::*;

    struct Nodes(std::collections::HashMap<dedup::NodeId, Vec<u8>>);

    impl dedup::NodeSource for Nodes {
        type Error = Infallible;

        fn node(&self, id: dedup::NodeId) -> Result<bytes::Bytes, Infallible> {
            Ok(self.0[&id].clone().into())
        }
    }

    #[test]
    fn chunks_that_were_touched_lie_where_the_map_says() {
        let key = IdKey::new([1; 32]);
        let mut builder = ManifestBuilder::new(key.clone(), ChunkerParams::default());
        // 0: 5,000 bytes, 1: 6,000, zeros: 10,000, 2: 7,000.
        builder.push_chunk(key.chunk_id(b"a"), 5000);
        builder.push_chunk(key.chunk_id(b"b"), 6000);
        builder.push_zero(10_000);
        builder.push_chunk(key.chunk_id(b"c"), 7000);
        let (manifest, leaves) = builder.finish();
        let map = ContentMap::load(&manifest, &Nodes(leaves.into_iter().collect())).unwrap();
        let of = |touched: &[usize]| touched_ranges(&map, |index| touched.contains(&index));
        assert_eq!(of(&[0, 1]), [0..11_000u64]);
        assert_eq!(of(&[1, 2]), [5000..11_000u64, 21_000..28_000]);
        assert!(of(&[]).is_empty());
    }

    /// Page `number` of a disk whose pages all differ, but for each seventh, which is zero.
    fn page(number: u64) -> Vec<u8> {
        let mut page = vec![0; PAGE_BYTES];
        if !number.is_multiple_of(7) {
            page[..8].copy_from_slice(&number.to_le_bytes());
        }
        page
    }

    fn read(at: u64, bytes: &mut [u8]) -> Result<(), Infallible> {
        for (number, bytes) in (at / PAGE_BYTES as u64..).zip(bytes.chunks_exact_mut(PAGE_BYTES)) {
            bytes.copy_from_slice(&page(number));
        }
        Ok(())
    }

    #[test]
    fn pages_of_the_disk_are_named_and_others_kept() {
        let ranges = [1000..3 * 4096 + 100, 1 << 21..(1 << 21) + (3 << 20)];
        let Ok(index) = PageIndex::read(&ranges, read);
        let far = (2 << 20) / 4096 + 700;
        let mut bytes = Box::new([0u8; BLOCK_BYTES]);
        let mut put = |at: usize, page: &[u8]| {
            bytes[at * PAGE_BYTES..][..PAGE_BYTES].copy_from_slice(page);
        };
        put(0, &page(1));
        // It was touched in part only.
        put(1, &page(3));
        put(2, &page(far));
        put(3, &[5; PAGE_BYTES]);
        let block = index.plan(9, &bytes).unwrap();
        assert_eq!(
            block.pages[..5],
            [
                Page::Image(1),
                Page::Own,
                Page::Image(far as u32),
                Page::Own,
                Page::Zero
            ]
        );
        assert_eq!(block.name, *blake3::hash(&*bytes).as_bytes());
        assert_eq!(index.plan(9, &[0; BLOCK_BYTES]), None);
    }

    proptest! {
        /// Each page is what its plan says, whatever is in the block.
        #[test]
        fn a_plan_is_true(numbers in prop::collection::vec(0u64..40, BLOCK_PAGES)) {
            let Ok(index) = PageIndex::read(&[0..20 * 4096], read);
            let bytes: Vec<u8> = numbers.iter().flat_map(|number| page(*number)).collect();
            let bytes: &[u8; BLOCK_BYTES] = bytes[..].try_into().unwrap();
            let pages = index.plan(0, bytes).map_or([Page::Zero; BLOCK_PAGES], |block| block.pages);
            for (planned, number) in pages.iter().zip(numbers) {
                match planned {
                    Page::Zero => prop_assert!(number.is_multiple_of(7)),
                    Page::Image(at) => prop_assert_eq!(u64::from(*at), number),
                    Page::Own => prop_assert!(number >= 20 && !number.is_multiple_of(7)),
                }
            }
        }
    }
}
