//! The guest: does what its command line says, word by word, and tells how each ended.
//!
//! | word | what is done |
//! |---|---|
//! | `pci` | the bus is scanned, and every function's capabilities |
//! | `rng`, `block`, `console`, `net`, `balloon`, `keyboard`, `gpu`, `vsock` | the device is driven, by polling and by interrupt |
//! | `off`, `reset`, `fall` | power off by ACPI, reset by the keyboard controller, a triple fault |
//! | `hold` | wait for the host to end the machine |

#![no_std]
#![no_main]

mod balloon;
mod block;
mod clock;
mod console;
mod gpu;
mod keyboard;
mod memory;
mod net;
mod pci;
mod power;
mod queue;
mod report;
mod rng;
mod runtime;
mod start;
mod virtio;
mod vsock;

use report::{Check, Wrong, say};

/// Where boot parameters have the command line's address (Linux's boot protocol).
const COMMAND_LINE_AT: usize = 0x228;
const COMMAND_LINE_BYTES_MAX: usize = 2048;

fn command_line(parameters: *const u8) -> &'static str {
    // SAFETY: the loader has put boot parameters there, and a string that ends with a zero where they say.
    let bytes = unsafe {
        let at: u32 = parameters.add(COMMAND_LINE_AT).cast::<u32>().read_unaligned();
        let text = at as usize as *const u8;
        let mut len = 0;
        while len < COMMAND_LINE_BYTES_MAX && *text.add(len) != 0 {
            len += 1;
        }
        core::slice::from_raw_parts(text, len)
    };
    core::str::from_utf8(bytes).unwrap_or("")
}

/// Runs a check. What is wrong is told, and is the guest's last word.
fn check(name: &str, run: fn(&mut Check) -> Result<(), Wrong>) {
    memory::forget();
    let mut check = Check::new(name);
    match run(&mut check) {
        Ok(()) => say!("CHECK {name} ok"),
        Err(Wrong { what, value }) => {
            say!("CHECK {name} FAILED after {}: {what} ({value:#x})", check.step());
            power::off();
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn guest_main(parameters: *const u8) -> ! {
    start::open_gates();
    for word in command_line(parameters).split(' ') {
        match word {
            "pci" => check(word, pci::scan),
            "rng" => check(word, rng::check),
            "block" => check(word, block::check),
            "console" => check(word, console::check),
            "net" => check(word, net::check),
            "balloon" => check(word, balloon::check),
            "keyboard" => check(word, keyboard::check),
            "gpu" => check(word, gpu::check),
            "vsock" => check(word, vsock::check),
            "off" => power::off(),
            "reset" => power::reset(),
            "fall" => power::fall(),
            "hold" => loop {
                core::hint::spin_loop();
            },
            "" => {}
            _ => say!("GUEST knows no {word}"),
        }
    }
    say!("GUEST has come to its end");
    power::off()
}
