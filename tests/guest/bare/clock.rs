//! Waiting, never for ever.

use crate::power::in_long;
use crate::report::Wrong;

/// ACPI's timer.
const PM_TIMER: u16 = 0x608;
const TICKS_A_SECOND: u32 = 3_579_545;
/// How long anything may take; on the busiest machine it takes less.
const PATIENCE_S: u32 = 30;
/// Looks between two looks at the clock, which takes much longer than what is looked at.
const LOOKS: u32 = 10_000;

/// Waits until `look` finds something; `what` is missing if it does not.
pub fn wait<T>(what: &'static str, mut look: impl FnMut() -> Option<T>) -> Result<T, Wrong> {
    let begun = in_long(PM_TIMER);
    loop {
        for _ in 0..LOOKS {
            if let Some(found) = look() {
                return Ok(found);
            }
            core::hint::spin_loop();
        }
        let ticks = in_long(PM_TIMER).wrapping_sub(begun);
        if ticks > PATIENCE_S * TICKS_A_SECOND {
            return Err(Wrong { what, value: ticks.into() });
        }
    }
}
