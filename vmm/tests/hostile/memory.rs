//! How much of the host's memory devices take.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use vmm::virtio::hostile::Kind;

/// Counts what is taken.
struct Counting;

static TAKEN: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn take(bytes: usize) {
    let taken = TAKEN.fetch_add(bytes, Ordering::Relaxed) + bytes;
    MOST.fetch_max(taken, Ordering::Relaxed);
}

// SAFETY: everything is the system's allocator's; only sizes are counted beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        TAKEN.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tests of one process take turns, so that what is counted is one's own.
static TURN: Mutex<()> = Mutex::new(());

/// The most that was taken beyond what was there before.
pub fn most(work: impl FnOnce()) -> usize {
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let before = TAKEN.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    work();
    MOST.load(Ordering::Relaxed).saturating_sub(before)
}

/// What a device may take while a guest has it work on one chain at a time, bytes: what its module states, and 4 MiB for lists of
/// 65,535 descriptors.
pub fn bound(kind: Kind) -> usize {
    const LISTS: usize = 8 << 20;
    let own = match kind {
        // A request's data twice, for each of two queues: read from the guest, or the disk's.
        Kind::Block | Kind::LimitedBlock => 4 * (8 << 20),
        // A chain of a port, and what its client has not taken; texts of a clipboard, on their way to and from the guest.
        Kind::Console => 4 << 20,
        // Pictures, which are had as the guest draws them.
        Kind::Gpu => 257 << 20,
        // Buffers of all connections.
        Kind::Vsock => 17 << 20,
        Kind::Net | Kind::Rng | Kind::Balloon | Kind::Keyboard => 1 << 20,
    };
    LISTS + own
}
