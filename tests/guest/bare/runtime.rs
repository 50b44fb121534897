//! What compiled code takes for granted: copying, and what happens on a panic.

use core::arch::asm;
use core::panic::PanicInfo;

use crate::power;
use crate::report::say;

#[panic_handler]
fn panicked(info: &PanicInfo<'_>) -> ! {
    say!("GUEST {info}");
    power::off()
}

/// Precompiled code of the core library refers to it; nothing here unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// As above.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    power::off()
}

// SAFETY of all below: callers give what C's functions of these names want. They are written in assembly, because the compiler makes a
// loop of copies into a call of themselves.

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: see above.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") len => _, options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: see above; the target does not begin inside of the source.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: see above; from the end, so that nothing is overwritten before it is read. `len` is not 0 here.
    unsafe {
        asm!(
            "std", "rep movsb", "cld",
            inout("rdi") to.add(len - 1) => _, inout("rsi") from.add(len - 1) => _, inout("rcx") len => _,
            options(nostack)
        );
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: see above.
    unsafe {
        asm!("rep stosb", inout("rdi") to => _, in("al") byte as u8, inout("rcx") len => _, options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(one: *const u8, other: *const u8, len: usize) -> i32 {
    for at in 0..len {
        // SAFETY: see above. Volatile, or this becomes a call of itself.
        let (a, b) = unsafe { (one.add(at).read_volatile(), other.add(at).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(one: *const u8, other: *const u8, len: usize) -> i32 {
    // SAFETY: see above.
    unsafe { memcmp(one, other, len) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut len = 0;
    // SAFETY: see above.
    while unsafe { text.add(len).read_volatile() } != 0 {
        len += 1;
    }
    len
}
