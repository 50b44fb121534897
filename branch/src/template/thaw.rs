//! A template in memory, from which machines go on.
//!
//! The memory that was saved lies in one sealed file of memory (memfd). Each machine is given descriptors of it for reading, and takes pages from there
//! into its own memory as its guest touches them. That copy of its own is what a machine needs: a server of vhost-user disks maps it, so that a private
//! mapping of the shared file, whose pages nobody else would see change, cannot stand in its place (decision 0050).
//!
//! Invariant: a block is there only if its hash is the head's. A machine finds nothing missing later: what of a template is the version's is read here,
//! before there is a machine, where it can still be told that it cannot be had.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};

use super::TemplateError;
use super::file::TemplateFile;
use super::head::{BLOCK_BYTES, BLOCK_PAGES, Block, PAGE_BYTES, Page};
use crate::volume::Base;

/// What a machine that goes on is handed: descriptions of its own, because a description's place in its file is shared by all who have it.
#[derive(Debug, Clone)]
pub struct Handed {
    /// Its state.
    pub state: Arc<OwnedFd>,
    /// Its memory.
    pub memory: Arc<OwnedFd>,
    /// The order in which it needs its memory.
    pub order: Arc<OwnedFd>,
}

/// An empty file in memory.
///
/// # Errors
/// The host has none.
pub fn memory_file(name: &str) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    Ok(File::from(rustix::fs::memfd_create(name, flags)?))
}

fn seal(file: &File) -> io::Result<()> {
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    Ok(rustix::fs::fcntl_add_seals(file, seals)?)
}

/// The same file once more, for another process.
fn again(file: &File, is_written: bool) -> io::Result<Arc<OwnedFd>> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let file = File::options().read(true).write(is_written).open(path)?;
    Ok(Arc::new(file.into()))
}

/// Bytes that the host can still give to somebody, if it tells.
pub fn available_bytes() -> Option<u64> {
    let told = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = told.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Files of one machine, or of one template.
#[derive(Debug)]
pub struct Files {
    /// The machine's state.
    pub state: File,
    /// Its memory.
    pub memory: File,
    /// The order in which it is needed; empty if it is to be recorded.
    pub order: File,
}

impl Files {
    /// Empty ones, for a machine that is to be saved.
    ///
    /// # Errors
    /// The host has no memory for them.
    pub fn empty() -> io::Result<Self> {
        Ok(Self {
            state: memory_file("template-state")?,
            memory: memory_file("template-memory")?,
            order: memory_file("template-order")?,
        })
    }

    /// What one machine is handed. One that `records` writes the order.
    ///
    /// # Errors
    /// Too many files are open.
    pub fn hand(&self, records: bool) -> io::Result<Handed> {
        Ok(Handed {
            state: again(&self.state, false)?,
            memory: again(&self.memory, false)?,
            order: again(&self.order, records)?,
        })
    }
}

/// See the module.
pub struct Thawed {
    template: TemplateFile,
    files: Files,
}

impl Thawed {
    /// Takes a template from the disk, and what of it is the version's from `base`. Gives up waiting for that when it is `enough`.
    ///
    /// # Errors
    /// It is damaged, or something of it cannot be had.
    pub fn read(
        template: TemplateFile,
        base: &dyn Base,
        enough: &dyn Fn() -> bool,
    ) -> Result<Self, TemplateError> {
        let no_memory = |step| {
            let file = template.name().to_owned();
            move |source| TemplateError::Memory { file, step, source }
        };
        let files = Files::empty().map_err(no_memory("make it"))?;
        let head = template.head();
        let mut state = vec![0; head.state_bytes as usize];
        template.body(0).read(&mut state)?;
        let state = files.state.write_all_at(&state, 0);
        state.map_err(no_memory("fill it"))?;
        let memory_bytes = head.identity.memory_bytes();
        let sized = files.memory.set_len(memory_bytes);
        sized.map_err(no_memory("set its size"))?;
        let mut body = template.body(head.state_bytes);
        let mut bytes = Box::new([0u8; BLOCK_BYTES]);
        for block in &head.blocks {
            let read = Reader {
                template: &template,
                base,
                enough,
            };
            read.block(block, &mut body, &mut bytes)?;
            let put = put(block, &bytes, &files.memory);
            put.map_err(no_memory("fill it"))?;
        }
        let order = files.order.write_all_at(&head.order, 0);
        order.map_err(no_memory("fill it"))?;
        for file in [&files.state, &files.memory, &files.order] {
            // One machine must not change what others go on from.
            seal(file).map_err(no_memory("seal it"))?;
        }
        Ok(Self { template, files })
    }

    /// The template.
    pub fn template(&self) -> &TemplateFile {
        &self.template
    }

    /// What one machine is handed.
    ///
    /// # Errors
    /// Too many files are open.
    pub fn hand(&self) -> Result<Handed, TemplateError> {
        let handed = self.files.hand(false);
        handed.map_err(|source| TemplateError::Memory {
            file: self.template.name().to_owned(),
            step: "open it",
            source,
        })
    }
}

struct Reader<'a> {
    template: &'a TemplateFile,
    base: &'a dyn Base,
    enough: &'a dyn Fn() -> bool,
}

impl Reader<'_> {
    /// Reads a block, of which own pages come next in `body`.
    fn block(
        &self,
        block: &Block,
        body: &mut super::file::Body<'_>,
        bytes: &mut [u8; BLOCK_BYTES],
    ) -> Result<(), TemplateError> {
        let file = || self.template.name().to_owned();
        let mut at = 0;
        while at < BLOCK_PAGES {
            let len = run(&block.pages[at..]);
            let buf = &mut bytes[at * PAGE_BYTES..(at + len) * PAGE_BYTES];
            match block.pages[at] {
                Page::Zero => buf.fill(0),
                Page::Own => body.read(buf)?,
                Page::Image(first) => {
                    let from = u64::from(first) * PAGE_BYTES as u64;
                    if from + buf.len() as u64 > self.base.size_bytes() {
                        let what = "a page beyond the disk's end";
                        return Err(TemplateError::Damaged { file: file(), what });
                    }
                    let read = self.base.read_until(from, buf, self.enough);
                    read.map_err(|source| TemplateError::Base {
                        file: file(),
                        source,
                    })?;
                }
            }
            at += len;
        }
        if *blake3::hash(&bytes[..]).as_bytes() != block.name {
            let what = "a block of memory";
            return Err(TemplateError::Damaged { file: file(), what });
        }
        Ok(())
    }
}

/// How many of the first pages lie side by side.
fn run(pages: &[Page]) -> usize {
    let follows = |pair: &&[Page]| match (pair[0], pair[1]) {
        (Page::Image(one), Page::Image(next)) => one.checked_add(1) == Some(next),
        (one, next) => one == next,
    };
    1 + pages.windows(2).take_while(follows).count()
}

/// Writes the pages of a block that are not zero.
fn put(block: &Block, bytes: &[u8; BLOCK_BYTES], memory: &File) -> io::Result<()> {
    let start = u64::from(block.index) * BLOCK_BYTES as u64;
    let mut at = 0;
    while at < BLOCK_PAGES {
        let is_zero = |page: &Page| *page == Page::Zero;
        let zeros = block.pages[at..].iter().take_while(|page| is_zero(page));
        at += zeros.count();
        let full = block.pages[at..].iter().take_while(|page| !is_zero(page));
        let end = at + full.count();
        let run = &bytes[at * PAGE_BYTES..end * PAGE_BYTES];
        memory.write_all_at(run, start + (at * PAGE_BYTES) as u64)?;
        at = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init, clippy::unwrap_used, missing_docs)]
    use std::convert::Infallible;
    use std::io::{Read, Write};

    use dedup_store::disk::HostDisk;
    use proptest::prelude::*;

    use super::super::Writer;
    use super::super::frames::TemplateSecret;
    use super::super::head::Head;
    use super::super::head::tests::identity;
    use super::super::pages::PageIndex;
    use super::*;
    use crate::volume::MemBase;

    const NAME: &str = "one.template";
    const MIB: usize = 1 << 20;

    fn secret() -> TemplateSecret {
        TemplateSecret::new(&[1; 32])
    }

    /// A disk whose pages all differ.
    fn image() -> Vec<u8> {
        let mut bytes = vec![0; MIB];
        for (number, page) in bytes.chunks_exact_mut(PAGE_BYTES).enumerate() {
            page.fill(number as u8);
            page[0] = 1;
        }
        bytes
    }

    /// A template of this memory of 1 MiB, with references to the image.
    fn write(disk: &HostDisk, memory: &[u8]) -> Head {
        let image = image();
        let Ok(index) = PageIndex::read(&[0..MIB as u64], |at, bytes: &mut [u8]| {
            bytes.copy_from_slice(&image[at as usize..][..bytes.len()]);
            Ok::<_, Infallible>(())
        });
        let mut writer = Writer::create(disk, NAME, &secret(), [5; 16]).unwrap();
        writer.write(b"state").unwrap();
        let mut blocks = Vec::new();
        for (number, bytes) in memory.chunks_exact(BLOCK_BYTES).enumerate() {
            let bytes: &[u8; BLOCK_BYTES] = bytes.try_into().unwrap();
            let Some(block) = index.plan(number as u32, bytes) else {
                continue;
            };
            for (page, bytes) in block.pages.iter().zip(bytes.chunks_exact(PAGE_BYTES)) {
                if *page == Page::Own {
                    writer.write(bytes).unwrap();
                }
            }
            blocks.push(block);
        }
        let head = Head {
            identity: identity(),
            made_unix_s: 1,
            agent: true,
            state_bytes: 5,
            blocks,
            disk_bytes: MIB as u64,
            extents: Vec::new(),
            order: b"order".to_vec(),
        };
        writer.finish(&head).unwrap();
        head
    }

    fn thaw(disk: &HostDisk, image: Vec<u8>) -> Result<Thawed, TemplateError> {
        let template = TemplateFile::open(disk, NAME, &secret()).unwrap().unwrap();
        Thawed::read(template, &MemBase::new(image), &|| false)
    }

    fn all(file: &Arc<OwnedFd>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut file = File::from(file.try_clone().unwrap());
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn runs_are_pages_that_lie_side_by_side() {
        use Page::{Image, Own, Zero};
        assert_eq!(run(&[Zero, Zero, Own]), 2);
        assert_eq!(run(&[Own]), 1);
        assert_eq!(run(&[Image(3), Image(4), Image(4)]), 2);
        assert_eq!(run(&[Image(u32::MAX), Image(0)]), 1);
        assert_eq!(run(&[Image(3), Own]), 1);
    }

    #[test]
    fn each_machine_is_handed_all_of_it_and_can_change_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let disk = HostDisk::new(folder.path()).unwrap();
        let mut memory = vec![0; MIB];
        memory[3 * PAGE_BYTES..5 * PAGE_BYTES].copy_from_slice(&image()[..2 * PAGE_BYTES]);
        memory[MIB - 1] = 9;
        let head = write(&disk, &memory);
        assert_eq!(head.shared_bytes(), 2 * PAGE_BYTES as u64);
        assert_eq!(head.used_bytes(), 3 * PAGE_BYTES as u64);
        let thawed = thaw(&disk, image()).unwrap();
        for _ in 0..2 {
            let handed = thawed.hand().unwrap();
            assert_eq!(all(&handed.state), b"state");
            assert_eq!(all(&handed.memory), memory);
            assert_eq!(all(&handed.order), b"order");
            let mut file = File::from(handed.memory.try_clone().unwrap());
            assert!(file.write_all(b"x").is_err());
        }
        // What the disk holds now is not what it held.
        let mut other = image();
        other[5] ^= 1;
        let refused = thaw(&disk, other).err().unwrap();
        assert!(refused.is_spoiled(), "{refused}");
        let refused = thaw(&disk, vec![0; PAGE_BYTES]).err().unwrap();
        assert!(refused.to_string().contains("beyond"), "{refused}");
        assert!(available_bytes().is_none_or(|bytes| bytes > 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// Whatever pages a memory is of, it comes back.
        #[test]
        fn memory_comes_back(pages in prop::collection::vec(0usize..400, MIB / PAGE_BYTES)) {
            let folder = tempfile::tempdir().unwrap();
            let disk = HostDisk::new(folder.path()).unwrap();
            let image = image();
            let mut memory = Vec::new();
            for number in pages {
                // Pages of the image, pages of nobody, zeros.
                match number {
                    0..256 => memory.extend_from_slice(&image[number * PAGE_BYTES..][..PAGE_BYTES]),
                    256..320 => memory.extend_from_slice(&[number as u8; PAGE_BYTES]),
                    _ => memory.extend_from_slice(&[0; PAGE_BYTES]),
                }
            }
            write(&disk, &memory);
            let thawed = thaw(&disk, image).unwrap();
            prop_assert!(all(&thawed.hand().unwrap().memory) == memory);
        }
    }
}
