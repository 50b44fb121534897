//! The keyboard controller, of which only the reset line is there.

use crate::machine::bus::Registers;
use crate::machine::event::{Event, Events};

/// Offset of the keyboard controller's command port.
const I8042_COMMAND: u64 = 4;
/// The command that pulses the reset line.
const I8042_RESET: u8 = 0xfe;

/// A keyboard controller without keyboard: its status says that it takes commands, and it knows one.
pub struct I8042(pub Events);

impl Registers for I8042 {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == I8042_COMMAND && data == [I8042_RESET] {
            self.0.put(Event::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_resets() {
        let (events, taken) = Events::new();
        let mut keyboard = I8042(events);
        keyboard.write(0, &[I8042_RESET]);
        keyboard.write(I8042_COMMAND, &[0xaa]);
        assert!(taken.try_recv().is_err());
        keyboard.write(I8042_COMMAND, &[I8042_RESET]);
        assert!(matches!(taken.try_recv(), Ok(Event::Reset)));
    }
}
