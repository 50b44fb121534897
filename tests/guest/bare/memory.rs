//! Memory for queues and buffers. Addresses are the same for guest and devices: everything is mapped one to one.

use core::sync::atomic::{AtomicUsize, Ordering};

const ARENA_BYTES: usize = 4 << 20;
pub const PAGE: usize = 4096;

#[repr(C, align(4096))]
struct Arena(core::cell::UnsafeCell<[u8; ARENA_BYTES]>);

// SAFETY: there is one processor, and pieces do not overlap.
unsafe impl Sync for Arena {}

static ARENA: Arena = Arena(core::cell::UnsafeCell::new([0; ARENA_BYTES]));
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Everything that was taken is free again. Devices that use it have been reset.
pub fn forget() {
    TAKEN.store(0, Ordering::Relaxed);
}

/// A piece of memory of zeros that devices may read and write.
#[derive(Clone, Copy)]
pub struct Piece {
    at: usize,
    len: usize,
}

impl Piece {
    /// So many bytes from the start of a page.
    pub fn take(len: usize) -> Self {
        let offset = TAKEN.load(Ordering::Relaxed);
        let next = offset + len.next_multiple_of(PAGE);
        assert!(next <= ARENA_BYTES, "the arena is too small");
        TAKEN.store(next, Ordering::Relaxed);
        let piece = Self { at: ARENA.0.get() as usize + offset, len };
        piece.fill(0);
        piece
    }

    pub fn address(self) -> u64 {
        self.at as u64
    }

    pub fn len(self) -> usize {
        self.len
    }

    fn place<T>(self, at: usize) -> *mut T {
        assert!(at + size_of::<T>() <= self.len && (self.at + at).is_multiple_of(align_of::<T>()));
        (self.at + at) as *mut T
    }

    /// What is there now; a device may have written it.
    pub fn read<T: Copy>(self, at: usize) -> T {
        // SAFETY: inside of the piece, aligned; only integers are read.
        unsafe { self.place::<T>(at).read_volatile() }
    }

    pub fn write<T: Copy>(self, at: usize, value: T) {
        // SAFETY: inside of the piece and aligned.
        unsafe { self.place::<T>(at).write_volatile(value) };
    }

    pub fn fill(self, byte: u8) {
        for at in 0..self.len {
            self.write(at, byte);
        }
    }

    pub fn put(self, at: usize, bytes: &[u8]) {
        for (place, byte) in (at..).zip(bytes) {
            self.write(place, *byte);
        }
    }

    /// Whether these bytes are there.
    pub fn holds(self, at: usize, bytes: &[u8]) -> bool {
        (at..).zip(bytes).all(|(place, byte)| self.read::<u8>(place) == *byte)
    }

    /// The first place from `at` on, of `len`, that has another byte than `of` says.
    pub fn differs(self, at: usize, len: usize, of: impl Fn(usize) -> u8) -> Option<usize> {
        (0..len).find(|place| self.read::<u8>(at + place) != of(*place))
    }
}
