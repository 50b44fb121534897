//! What the guest says, over the serial port, and how checks tell what is wrong.

use core::fmt;

use crate::power;

/// The first serial port's data register.
const SERIAL: u16 = 0x3f8;

/// The serial port.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            power::out_byte(SERIAL, byte);
        }
        Ok(())
    }
}

/// Prints a line.
macro_rules! say {
    ($($what:tt)*) => {{
        use core::fmt::Write;
        // The port takes everything.
        let _ = writeln!($crate::report::Serial, $($what)*);
    }};
}
pub(crate) use say;

/// What is wrong, and the number by which it is seen.
pub struct Wrong {
    pub what: &'static str,
    pub value: u64,
}

/// Wrong, if it is not so.
pub fn ensure(is_so: bool, what: &'static str, value: u64) -> Result<(), Wrong> {
    if is_so { Ok(()) } else { Err(Wrong { what, value }) }
}

/// How far a check is.
pub struct Check<'a> {
    name: &'a str,
    step: &'static str,
}

impl<'a> Check<'a> {
    pub fn new(name: &'a str) -> Self {
        Self { name, step: "nothing" }
    }

    /// A step is done.
    pub fn done(&mut self, step: &'static str) {
        say!("NOTE {} {step}", self.name);
        self.step = step;
    }

    /// The last step that was done.
    pub fn step(&self) -> &'static str {
        self.step
    }
}
