//! Images that a guest has made, and the pages of its memory that are behind them.
//!
//! Invariant: pixels are ours, blue, green, red, opacity whatever the format, and change only by a transfer; the sums of bytes and of
//! backing entries are those of what is in the table, and below their limits.

use std::collections::HashMap;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::format::Format;
use super::limits::{BYTES_MAX, ENTRIES_TOTAL_MAX, RESOURCES_MAX, SIDE_MAX};
use super::protocol::{GuestRect, Refusal};
use crate::machine::memory::Memory;
use crate::screen::PIXEL_BYTES;

struct Entry {
    /// Bytes before it.
    start: u64,
    address: u64,
    len: u64,
}

/// Guest memory that is, piece after piece, an image.
struct Backing {
    entries: Vec<Entry>,
    bytes: u64,
}

impl Backing {
    fn new(memory: &Memory, pieces: &[(u64, u32)]) -> Result<Self, Refusal> {
        let mut entries = Vec::with_capacity(pieces.len());
        let mut bytes = 0;
        for (address, len) in pieces {
            if *len == 0 {
                continue;
            }
            if !memory.check_range(GuestAddress(*address), *len as usize) {
                return Err(Refusal::Parameter);
            }
            entries.push(Entry {
                start: bytes,
                address: *address,
                len: u64::from(*len),
            });
            // At most 16,384 pieces of 4 GiB.
            bytes += u64::from(*len);
        }
        Ok(Self { entries, bytes })
    }

    /// Fills `out` from `offset` on. The guest may write meanwhile: what is read is then any mixture, which is its own loss.
    fn read(&self, memory: &Memory, mut offset: u64, mut out: &mut [u8]) -> Result<(), Refusal> {
        let after = self.entries.partition_point(|entry| entry.start <= offset);
        let mut entries = self.entries.iter().skip(after.saturating_sub(1));
        while !out.is_empty() {
            let entry = entries.next().ok_or(Refusal::Parameter)?;
            let within = offset - entry.start;
            if within >= entry.len {
                return Err(Refusal::Parameter);
            }
            let len = (entry.len - within).min(out.len() as u64) as usize;
            let (here, rest) = out.split_at_mut(len);
            memory
                .read_slice(here, GuestAddress(entry.address + within))
                .map_err(|_| Refusal::Parameter)?;
            offset += len as u64;
            out = rest;
        }
        Ok(())
    }
}

/// An image.
pub(super) struct Resource {
    format: Format,
    pub width: u32,
    pub height: u32,
    pixels: Vec<u8>,
    backing: Option<Backing>,
}

impl Resource {
    fn stride(&self) -> usize {
        self.width as usize * PIXEL_BYTES
    }

    /// All pixels.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// Its format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Address and bytes of each piece of memory behind it, if there is any.
    pub fn pieces(&self) -> Option<Vec<(u64, u32)>> {
        let backing = self.backing.as_ref()?;
        // Each was given as 32 bits.
        let pieces = backing.entries.iter();
        Some(
            pieces
                .map(|entry| (entry.address, entry.len as u32))
                .collect(),
        )
    }

    /// What its pixels would be after a transfer of all of it; they stay as they are.
    pub fn copied(&self, memory: &Memory) -> Result<Vec<u8>, Refusal> {
        let mut pixels = vec![0; self.pixels.len()];
        let backing = self.backing.as_ref().ok_or(Refusal::Unspecified)?;
        backing.read(memory, 0, &mut pixels)?;
        self.format.to_bgra(&mut pixels);
        Ok(pixels)
    }

    /// Pixels of row `y` from `x` on.
    pub fn row(&self, x: u32, y: u32) -> Option<&[u8]> {
        let row = self.pixels.chunks_exact(self.stride()).nth(y as usize)?;
        row.get(x as usize * PIXEL_BYTES..)
    }

    /// Takes `rect` from the guest's memory; its first pixel is at `offset` there, rows are as long as the image's.
    fn transfer(&mut self, memory: &Memory, rect: GuestRect, offset: u64) -> Result<(), Refusal> {
        if !rect.is_inside(self.width, self.height) {
            return Err(Refusal::Parameter);
        }
        let backing = self.backing.as_ref().ok_or(Refusal::Unspecified)?;
        if rect.width == 0 || rect.height == 0 {
            return Ok(());
        }
        let stride = self.width as usize * PIXEL_BYTES;
        let (rows, len) = if rect.width == self.width {
            // Whole rows lie behind each other on both sides.
            (1, stride * rect.height as usize)
        } else {
            (rect.height as usize, rect.width as usize * PIXEL_BYTES)
        };
        let span = (stride * (rows - 1) + len) as u64;
        let end = offset.checked_add(span).ok_or(Refusal::Parameter)?;
        if end > backing.bytes {
            return Err(Refusal::Parameter);
        }
        for row in 0..rows {
            let to = stride * (rect.y as usize + row) + rect.x as usize * PIXEL_BYTES;
            let pixels = &mut self.pixels[to..to + len];
            backing.read(memory, offset + (stride * row) as u64, pixels)?;
            self.format.to_bgra(pixels);
        }
        Ok(())
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Resources {
    by_id: HashMap<u32, Resource>,
    bytes: usize,
    entries: usize,
}

impl Resources {
    /// Makes a black image. Number 0 stands for none.
    pub fn create(
        &mut self,
        id: u32,
        format: Format,
        width: u32,
        height: u32,
    ) -> Result<(), Refusal> {
        if id == 0 || self.by_id.contains_key(&id) {
            return Err(Refusal::ResourceId);
        }
        let sides = 1..=SIDE_MAX;
        if !sides.contains(&width) || !sides.contains(&height) {
            return Err(Refusal::Parameter);
        }
        let bytes = width as usize * height as usize * PIXEL_BYTES;
        if self.by_id.len() >= RESOURCES_MAX || bytes > BYTES_MAX - self.bytes {
            return Err(Refusal::OutOfMemory);
        }
        self.bytes += bytes;
        let resource = Resource {
            format,
            width,
            height,
            pixels: vec![0; bytes],
            backing: None,
        };
        self.by_id.insert(id, resource);
        Ok(())
    }

    /// Forgets an image.
    pub fn remove(&mut self, id: u32) -> Result<(), Refusal> {
        let resource = self.by_id.remove(&id).ok_or(Refusal::ResourceId)?;
        self.bytes -= resource.pixels.len();
        self.entries -= resource.backing.map_or(0, |backing| backing.entries.len());
        Ok(())
    }

    /// An image.
    pub fn find(&self, id: u32) -> Result<&Resource, Refusal> {
        self.by_id.get(&id).ok_or(Refusal::ResourceId)
    }

    fn find_mut(&mut self, id: u32) -> Result<&mut Resource, Refusal> {
        self.by_id.get_mut(&id).ok_or(Refusal::ResourceId)
    }

    /// Puts guest memory behind an image; there is none yet.
    pub fn attach(
        &mut self,
        memory: &Memory,
        id: u32,
        pieces: &[(u64, u32)],
    ) -> Result<(), Refusal> {
        let room = ENTRIES_TOTAL_MAX - self.entries;
        let resource = self.find_mut(id)?;
        if resource.backing.is_some() {
            return Err(Refusal::Unspecified);
        }
        if pieces.len() > room {
            return Err(Refusal::OutOfMemory);
        }
        let backing = Backing::new(memory, pieces)?;
        let entries = backing.entries.len();
        resource.backing = Some(backing);
        self.entries += entries;
        Ok(())
    }

    /// Takes it away.
    pub fn detach(&mut self, id: u32) -> Result<(), Refusal> {
        let resource = self.find_mut(id)?;
        let backing = resource.backing.take().ok_or(Refusal::Unspecified)?;
        self.entries -= backing.entries.len();
        Ok(())
    }

    /// All images with their numbers.
    pub fn all(&self) -> impl Iterator<Item = (u32, &Resource)> {
        self.by_id.iter().map(|(id, resource)| (*id, resource))
    }

    /// Gives an image all its pixels.
    pub fn set_pixels(&mut self, id: u32, pixels: Vec<u8>) -> Result<(), Refusal> {
        let resource = self.find_mut(id)?;
        if pixels.len() != resource.pixels.len() {
            return Err(Refusal::Parameter);
        }
        resource.pixels = pixels;
        Ok(())
    }

    /// See [`Resource::transfer`].
    pub fn transfer(
        &mut self,
        memory: &Memory,
        id: u32,
        rect: GuestRect,
        offset: u64,
    ) -> Result<(), Refusal> {
        self.find_mut(id)?.transfer(memory, rect, offset)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::machine::memory;

    fn rect(x: u32, y: u32, width: u32, height: u32) -> GuestRect {
        GuestRect {
            x,
            y,
            width,
            height,
        }
    }

    #[test]
    fn what_is_made_and_forgotten_leaves_no_trace() {
        let memory = memory::create(64).expect("memory");
        let mut all = Resources::default();
        for round in 0..2 {
            for id in 1..=RESOURCES_MAX as u32 {
                assert_eq!(all.create(id, Format::Bgrx, 8, 8), Ok(()), "{round}");
            }
            let more = all.create(1 << 20, Format::Bgrx, 8, 8);
            assert_eq!(more, Err(Refusal::OutOfMemory));
            assert_eq!(all.attach(&memory, 1, &[(0, 4096); 3]), Ok(()));
            for id in 1..=RESOURCES_MAX as u32 {
                assert_eq!(all.remove(id), Ok(()));
            }
            assert_eq!((all.bytes, all.entries), (0, 0));
        }
        assert_eq!(all.remove(1), Err(Refusal::ResourceId));
    }

    #[test]
    fn limits_hold_in_sum() {
        let memory = memory::create(64).expect("memory");
        let mut all = Resources::default();
        assert_eq!(all.create(1, Format::Bgra, 8192, 8192), Ok(()));
        let more = all.create(2, Format::Bgra, 1, 1);
        assert_eq!(more, Err(Refusal::OutOfMemory));
        assert_eq!(all.remove(1), Ok(()));
        for (width, height) in [(0, 1), (1, 0), (8193, 1), (1, u32::MAX)] {
            let none = all.create(2, Format::Bgra, width, height);
            assert_eq!(none, Err(Refusal::Parameter));
        }
        assert_eq!(all.create(0, Format::Bgra, 1, 1), Err(Refusal::ResourceId));
        let pieces = vec![(0, 4096); ENTRIES_TOTAL_MAX / 4];
        for id in 1..=5 {
            assert_eq!(all.create(id, Format::Bgra, 1, 1), Ok(()));
            let attached = all.attach(&memory, id, &pieces);
            let fits = if id < 5 {
                Ok(())
            } else {
                Err(Refusal::OutOfMemory)
            };
            assert_eq!(attached, fits);
        }
    }

    #[test]
    fn memory_that_is_not_there_is_refused_when_it_is_attached() {
        let memory = memory::create(64).expect("memory");
        let mut all = Resources::default();
        all.create(1, Format::Bgra, 4, 4).expect("made");
        let end = 64 << 20;
        for piece in [(end, 1), (end - 1, 2), (u64::MAX, 2), (0, u32::MAX)] {
            assert_eq!(all.attach(&memory, 1, &[piece]), Err(Refusal::Parameter));
        }
        let none = all.transfer(&memory, 1, rect(0, 0, 1, 1), 0);
        assert_eq!(none, Err(Refusal::Unspecified), "nothing behind it");
        assert_eq!(all.attach(&memory, 1, &[(end - 1, 1), (0, 62)]), Ok(()));
        assert_eq!(all.attach(&memory, 1, &[(0, 1)]), Err(Refusal::Unspecified));
        let whole = all.transfer(&memory, 1, rect(0, 0, 4, 4), 0);
        assert_eq!(whole, Err(Refusal::Parameter), "a byte is missing");
        assert_eq!(all.transfer(&memory, 1, rect(0, 0, 4, 3), 0), Ok(()));
        let far = all.transfer(&memory, 1, rect(0, 0, 1, 1), u64::MAX - 1);
        assert_eq!(far, Err(Refusal::Parameter));
        assert_eq!(all.transfer(&memory, 1, rect(4, 4, 0, 0), 0), Ok(()));
        let wide = all.transfer(&memory, 1, rect(1, 0, u32::MAX, 1), 0);
        assert_eq!(wide, Err(Refusal::Parameter));
        assert_eq!(all.detach(1), Ok(()));
        assert_eq!(all.detach(1), Err(Refusal::Unspecified));
    }

    proptest! {
        /// However the memory is cut into pieces, a transfer takes the right bytes.
        #[test]
        fn pieces_are_one_image(
            cuts in prop::collection::vec(1u32..200, 1..30),
            x in 0u32..16, y in 0u32..16, width in 1u32..16, height in 1u32..16,
        ) {
            let memory = memory::create(64).expect("memory");
            let source: Vec<u8> = (0..16 * 16 * 4u32).map(|at| (at * 7 % 251) as u8).collect();
            let (mut pieces, mut at, mut cuts) = (Vec::new(), 0, cuts.into_iter().cycle());
            while at < source.len() {
                let len = (cuts.next().expect("cycles") as usize).min(source.len() - at);
                // Scattered, the later the lower, farther apart than they are long.
                let address = (1 << 20) - at as u64 * 256;
                memory.write_slice(&source[at..at + len], GuestAddress(address)).expect("memory");
                pieces.push((address, len as u32));
                at += len;
            }
            let mut all = Resources::default();
            all.create(1, Format::Bgra, 16, 16).expect("made");
            all.attach(&memory, 1, &pieces).expect("attached");
            let (width, height) = (width.min(16 - x), height.min(16 - y));
            let offset = u64::from((y * 16 + x) * 4);
            all.transfer(&memory, 1, rect(x, y, width, height), offset).expect("inside");
            let resource = all.find(1).expect("there");
            for (row, source) in (0..).zip(source.chunks(64)) {
                for (column, source) in (0..).zip(source.chunks(4)) {
                    let is_in = (x..x + width).contains(&column) && (y..y + height).contains(&row);
                    let expected = if is_in { source } else { &[0; 4] };
                    prop_assert_eq!(&resource.row(column, row).expect("a row")[..4], expected);
                }
            }
        }
    }
}
