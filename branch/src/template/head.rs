//! What a template is of, and how its file is to be read: which page of memory is where, and what its boot wrote to the disk.
//!
//! A head comes from a sealed file, and is checked all the same: what is out of bounds is refused before anything is allocated or read by it.

use dedup::VersionId;
use serde::{Deserialize, Serialize};

/// Bytes of a page of a guest's memory, and of what file systems keep together on disks.
pub const PAGE_BYTES: usize = 4096;
/// Pages of a block.
pub const BLOCK_PAGES: usize = 16;
/// Bytes of a block: that of splice-vmm's snapshots.
pub const BLOCK_BYTES: usize = PAGE_BYTES * BLOCK_PAGES;

/// Most memory of a template's machine, MiB: a larger desktop takes less time to boot than to copy.
pub const MEMORY_MIB_MAX: u32 = 64 << 10;
/// Most bytes of a machine's state beside its memory, of which a display's pictures are most.
pub const STATE_BYTES_MAX: u64 = 1 << 30;
/// Most bytes that a boot may have written to its disk: each clone writes them again.
pub const WRITTEN_BYTES_MAX: u64 = 1 << 30;
/// Most extents of them.
pub const EXTENTS_MAX: usize = 1 << 20;
/// Most bytes of the order in which memory is needed: a number for each block.
pub const ORDER_BYTES_MAX: usize = 8 << 20;
/// Most bytes of a head: what the limits above come to.
pub const HEAD_BYTES_MAX: u64 = 256 << 20;

const MIB: u64 = 1 << 20;
const SECTOR_BYTES: u64 = 512;

/// What a template is of. Another version, shape or program is another template.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// The version that booted.
    pub version: VersionId,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Whether it has a network card.
    pub card: bool,
    /// BLAKE3 of the program splice-vmm: the state of a machine is its own matter.
    pub vmm: [u8; 32],
}

impl Identity {
    /// Name of its file.
    pub fn file_name(&self) -> String {
        let bytes = postcard::to_stdvec(self).expect("identities serialise without failing");
        format!("{}.template", &blake3::hash(&bytes).to_hex()[..32])
    }

    /// Bytes of its memory.
    pub fn memory_bytes(&self) -> u64 {
        u64::from(self.memory_mib) * MIB
    }
}

/// Where a page's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Page {
    /// They are zeros.
    Zero,
    /// Next in the body.
    Own,
    /// They are those of this page of the version's disk.
    Image(u32),
}

/// A block of memory that is not all zeros.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// Its number.
    pub index: u32,
    /// BLAKE3 of its bytes.
    pub name: [u8; 32],
    /// Its pages.
    pub pages: [Page; BLOCK_PAGES],
}

/// What a range of a disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// Bytes, next in the body.
    Data,
    /// Zeros.
    Zero {
        /// Whether the guest gave the storage back.
        hole: bool,
    },
}

/// A range that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First byte on the disk.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// What it holds.
    pub content: Content,
}

/// See the module. The body is the machine's state, then its own pages in the order of blocks, then what its extents hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// What it is of.
    pub identity: Identity,
    /// When it was made, unix seconds.
    pub made_unix_s: u64,
    /// Whether an agent runs in it, which gives a clone its own name and address.
    pub agent: bool,
    /// Bytes of the machine's state.
    pub state_bytes: u64,
    /// Blocks of memory, ascending; those that are not here are zeros.
    pub blocks: Vec<Block>,
    /// Bytes of the disk.
    pub disk_bytes: u64,
    /// What its boot wrote there, ascending.
    pub extents: Vec<Extent>,
    /// The order in which a machine that goes on needs its memory, as splice-vmm wrote it; may be empty.
    pub order: Vec<u8>,
}

/// Why a head is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its head makes no sense: {0}")]
pub struct HeadError(pub &'static str);

impl Head {
    /// Reads one, of which nothing may be left over.
    ///
    /// # Errors
    /// It is none.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeadError> {
        let read = postcard::take_from_bytes(bytes);
        let (head, rest): (Self, &[u8]) = read.map_err(|_| HeadError("it is cut or malformed"))?;
        if !rest.is_empty() {
            return Err(HeadError("something follows it"));
        }
        head.check()?;
        Ok(head)
    }

    /// As it is kept.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("heads serialise without failing")
    }

    /// Whether all of it is within bounds.
    ///
    /// # Errors
    /// What is not.
    pub fn check(&self) -> Result<(), HeadError> {
        let refuse = |is_wrong: bool, why| {
            if is_wrong {
                Err(HeadError(why))
            } else {
                Ok(())
            }
        };
        let memory_mib = self.identity.memory_mib;
        refuse(memory_mib == 0 || memory_mib > MEMORY_MIB_MAX, "its memory")?;
        refuse(
            self.state_bytes > STATE_BYTES_MAX,
            "the length of its state",
        )?;
        refuse(
            self.order.len() > ORDER_BYTES_MAX,
            "the length of its order",
        )?;
        let blocks_max = self.identity.memory_bytes() / BLOCK_BYTES as u64;
        let mut next = 0;
        for block in &self.blocks {
            let index = u64::from(block.index);
            refuse(
                index < next || index >= blocks_max,
                "the order of its blocks",
            )?;
            next = index + 1;
        }
        refuse(
            self.extents.len() > EXTENTS_MAX,
            "the number of its extents",
        )?;
        let (mut at, mut written) = (0, 0u64);
        for extent in &self.extents {
            let is_sound = extent.len > 0
                && extent.start >= at
                && extent.start.is_multiple_of(SECTOR_BYTES)
                && extent.len.is_multiple_of(SECTOR_BYTES);
            refuse(!is_sound, "the order of its extents")?;
            let end = extent.start.checked_add(extent.len);
            let end = end.filter(|end| *end <= self.disk_bytes);
            at = end.ok_or(HeadError("an extent beyond the disk's end"))?;
            if extent.content == Content::Data {
                written = written.saturating_add(extent.len);
            }
        }
        refuse(written > WRITTEN_BYTES_MAX, "what was written")
    }

    /// Bytes of the body. Of a head that was checked it is far below 2^64.
    pub fn body_bytes(&self) -> u64 {
        self.extents_at() + self.written_bytes()
    }

    /// Where in the body what its extents hold begins.
    pub fn extents_at(&self) -> u64 {
        self.state_bytes + self.count(|page| page == Page::Own) * PAGE_BYTES as u64
    }

    /// Bytes that clones write to their disks.
    pub fn written_bytes(&self) -> u64 {
        let data = self.extents.iter();
        let data = data.filter(|extent| extent.content == Content::Data);
        data.map(|extent| extent.len).sum()
    }

    /// Bytes of memory that are not zero.
    pub fn used_bytes(&self) -> u64 {
        self.count(|page| page != Page::Zero) * PAGE_BYTES as u64
    }

    /// Bytes of memory that are the disk's, and kept there only.
    pub fn shared_bytes(&self) -> u64 {
        self.count(|page| matches!(page, Page::Image(_))) * PAGE_BYTES as u64
    }

    fn count(&self, which: impl Fn(Page) -> bool) -> u64 {
        let pages = self.blocks.iter().flat_map(|block| block.pages);
        pages.filter(|page| which(*page)).count() as u64
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use proptest::prelude::*;

    use super::*;

    pub(in crate::template) fn identity() -> Identity {
        Identity {
            version: VersionId([7; 32]),
            memory_mib: 1,
            vcpus: 2,
            card: true,
            vmm: [8; 32],
        }
    }

    fn head() -> Head {
        let mut pages = [Page::Zero; BLOCK_PAGES];
        (pages[1], pages[2]) = (Page::Own, Page::Image(300));
        let block = |index| Block {
            index,
            name: [9; 32],
            pages,
        };
        let extent = |start, len, content| Extent {
            start,
            len,
            content,
        };
        Head {
            identity: identity(),
            made_unix_s: 1_700_000_000,
            agent: true,
            state_bytes: 100,
            blocks: vec![block(0), block(15)],
            disk_bytes: 1 << 20,
            extents: vec![
                extent(512, 1024, Content::Data),
                extent(4096, 4096, Content::Zero { hole: true }),
            ],
            order: vec![1, 2, 3],
        }
    }

    #[test]
    fn a_head_comes_back_and_knows_its_body() {
        let head = head();
        assert_eq!(Head::decode(&head.encode()), Ok(head.clone()));
        assert_eq!(head.extents_at(), 100 + 2 * 4096);
        assert_eq!(head.body_bytes(), 100 + 2 * 4096 + 1024);
        assert_eq!(
            (head.used_bytes(), head.shared_bytes()),
            (4 * 4096, 2 * 4096)
        );
    }

    #[test]
    fn another_version_shape_or_program_is_another_file() {
        let name = identity().file_name();
        assert_eq!(name.len(), 32 + ".template".len());
        let others = [
            Identity {
                version: VersionId([8; 32]),
                ..identity()
            },
            Identity {
                memory_mib: 2,
                ..identity()
            },
            Identity {
                vcpus: 1,
                ..identity()
            },
            Identity {
                card: false,
                ..identity()
            },
            Identity {
                vmm: [9; 32],
                ..identity()
            },
        ];
        assert!(others.iter().all(|other| other.file_name() != name));
        assert_eq!(identity().file_name(), name);
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        type Bend = fn(&mut Head);
        let bends: [(Bend, &str); 11] = [
            (|h| h.identity.memory_mib = 0, "memory"),
            (|h| h.identity.memory_mib = MEMORY_MIB_MAX + 1, "memory"),
            (|h| h.state_bytes = u64::MAX, "state"),
            (|h| h.order = vec![0; ORDER_BYTES_MAX + 1], "order"),
            (|h| h.blocks[1].index = 16, "blocks"),
            (|h| h.blocks[1].index = 0, "blocks"),
            (|h| h.extents[0].len = 0, "extents"),
            (|h| h.extents[0].start = 100, "extents"),
            (|h| h.extents.swap(0, 1), "extents"),
            (|h| h.extents[1].len = u64::MAX - 511, "beyond"),
            (
                |h| {
                    h.disk_bytes = u64::MAX;
                    h.extents[0].start = 1 << 40;
                    h.extents[0].len = WRITTEN_BYTES_MAX + 512;
                    h.extents.truncate(1);
                },
                "written",
            ),
        ];
        for (number, (bend, word)) in bends.into_iter().enumerate() {
            let mut head = head();
            bend(&mut head);
            let error = head.check().unwrap_err();
            assert!(error.to_string().contains(word), "{number}: {error}");
            assert!(Head::decode(&head.encode()).is_err());
        }
        let mut longer = head().encode();
        longer.push(0);
        assert!(Head::decode(&longer).is_err());
        assert!(Head::decode(&longer[..50]).is_err());
    }

    proptest! {
        /// Whatever bytes come, they end in a head that is within bounds, or in a refusal.
        #[test]
        fn no_bytes_are_trusted(noise in prop::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let _ = Head::decode(&noise);
            let mut bytes = head().encode();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(head) = Head::decode(&bytes) {
                prop_assert!(head.check().is_ok());
                prop_assert!(head.body_bytes() >= head.extents_at());
            }
        }
    }
}
