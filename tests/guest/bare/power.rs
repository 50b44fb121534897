//! Ports, and the ends of a machine.

use core::arch::asm;

/// ACPI's PM1 control register: soft-off is sleep type 5.
const PM1_CONTROL: u16 = 0x604;
const SOFT_OFF: u16 = 1 << 13 | 5 << 10;
/// The keyboard controller's command port, and the command that resets.
const I8042: u16 = 0x64;
const I8042_RESET: u8 = 0xfe;

pub fn out_byte(port: u16, value: u8) {
    // SAFETY: ports are the machine's devices; none of them writes to memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

fn out_word(port: u16, value: u16) {
    // SAFETY: as above.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) };
}

pub fn in_long(port: u16) -> u32 {
    let value: u32;
    // SAFETY: as above.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) };
    value
}

fn stop() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// Powers off.
pub fn off() -> ! {
    out_word(PM1_CONTROL, SOFT_OFF);
    stop()
}

/// Resets.
pub fn reset() -> ! {
    out_byte(I8042, I8042_RESET);
    stop()
}

/// Has the processor find no gate for an exception, nor for that one, which resets a PC.
pub fn fall() -> ! {
    crate::start::close_gates();
    // SAFETY: the instruction that is defined to be undefined.
    unsafe { asm!("ud2", options(noreturn)) }
}
