//! ACPI power management registers (ACPI 6.5, section 4.8): the power button, soft-off and a timer.
//!
//! ```text
//! 0 PM1_STS (2)   2 PM1_EN (2)   4 PM1_CNT (2)   8 PM_TMR (4)
//! ```

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::machine::bus::{Registers, lock};
use crate::machine::event::{Event, Events};

/// Bytes of the registers.
pub const PM_BYTES: u64 = 12;
/// Offsets of the registers that ACPI's tables name.
pub const PM1_CONTROL: u16 = 4;
/// See [`PM1_CONTROL`].
pub const PM_TIMER: u16 = 8;
/// The sleep type of soft-off in PM1_CNT, named in the DSDT.
pub const SLEEP_TYPE_OFF: u16 = 5;

const STATUS: u64 = 0;
const ENABLE: u64 = 2;
const CONTROL: u64 = PM1_CONTROL as u64;
const TIMER: u64 = PM_TIMER as u64;

const POWER_BUTTON: u16 = 1 << 8;
/// In PM1_CNT: events raise the ACPI interrupt. There is no other mode, so it is always set.
const ACPI_MODE: u16 = 1;
const SLEEP_ENABLE: u16 = 1 << 13;
const SLEEP_TYPE_SHIFT: u16 = 10;

/// Ticks of the timer a second.
const TIMER_HZ: u128 = 3_579_545;

/// Raises and lowers the ACPI interrupt.
pub trait Line: Send {
    /// Sets its level.
    fn set(&mut self, raised: bool);
}

struct State {
    status: u16,
    enable: u16,
    line: Box<dyn Line>,
}

impl State {
    fn show(&mut self) {
        self.line.set(self.status & self.enable != 0);
    }
}

/// What a snapshot keeps of the registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerState {
    status: u16,
    enable: u16,
    /// How long the timer has run.
    ran: Duration,
}

/// The registers.
pub struct Power {
    state: Arc<Mutex<State>>,
    began: Instant,
    /// How long the timer had run before that, in machines before this one.
    ran: Duration,
    events: Events,
}

/// The button on the front.
#[derive(Clone)]
pub struct PowerButton(Arc<Mutex<State>>);

impl PowerButton {
    /// Presses it: a guest that listens shuts down.
    pub fn press(&self) {
        let mut state = lock(&self.0);
        state.status |= POWER_BUTTON;
        state.show();
    }
}

impl Power {
    /// Registers of a machine that starts now.
    pub fn new(line: Box<dyn Line>, events: Events) -> (Self, PowerButton) {
        let state = Arc::new(Mutex::new(State {
            status: 0,
            enable: 0,
            line,
        }));
        let button = PowerButton(Arc::clone(&state));
        let began = Instant::now();
        (
            Self {
                state,
                began,
                ran: Duration::ZERO,
                events,
            },
            button,
        )
    }

    fn ran(&self) -> Duration {
        self.ran.saturating_add(self.began.elapsed())
    }

    fn timer(&self) -> u32 {
        (self.ran().as_nanos() * TIMER_HZ / 1_000_000_000) as u32
    }

    /// Their state.
    pub fn save(&self) -> PowerState {
        let state = lock(&self.state);
        PowerState {
            status: state.status,
            enable: state.enable,
            ran: self.ran(),
        }
    }

    /// Takes up a state, of a machine that has slept so long.
    pub fn restore(&mut self, saved: &PowerState, asleep: Duration) {
        (self.ran, self.began) = (saved.ran.saturating_add(asleep), Instant::now());
        let mut state = lock(&self.state);
        (state.status, state.enable) = (saved.status, saved.enable);
        state.show();
    }
}

impl Registers for Power {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let mut all = [0; PM_BYTES as usize];
        let state = lock(&self.state);
        all[..2].copy_from_slice(&state.status.to_le_bytes());
        all[2..4].copy_from_slice(&state.enable.to_le_bytes());
        all[4..6].copy_from_slice(&ACPI_MODE.to_le_bytes());
        all[TIMER as usize..].copy_from_slice(&self.timer().to_le_bytes());
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = all.get(at).copied().unwrap_or(0);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let &[low, high] = data else { return };
        let value = u16::from_le_bytes([low, high]);
        let mut state = lock(&self.state);
        match offset {
            // Ones clear.
            STATUS => state.status &= !value,
            ENABLE => state.enable = value,
            CONTROL => {
                let kind = value >> SLEEP_TYPE_SHIFT & 0b111;
                if value & SLEEP_ENABLE != 0 && kind == SLEEP_TYPE_OFF {
                    self.events.put(Event::PowerOff);
                }
            }
            _ => {}
        }
        state.show();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    struct Lamp(Arc<AtomicBool>);

    impl Line for Lamp {
        fn set(&mut self, raised: bool) {
            self.0.store(raised, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_button_raises_the_interrupt_until_the_guest_has_seen_it() {
        let lamp = Arc::new(AtomicBool::new(false));
        let (events, _taken) = Events::new();
        let (mut power, button) = Power::new(Box::new(Lamp(Arc::clone(&lamp))), events);
        let lit = || lamp.load(Ordering::Relaxed);
        button.press();
        assert!(!lit(), "not enabled");
        power.write(ENABLE, &POWER_BUTTON.to_le_bytes());
        assert!(lit());
        let mut status = [0; 2];
        power.read(STATUS, &mut status);
        assert_eq!(u16::from_le_bytes(status), POWER_BUTTON);
        power.write(STATUS, &POWER_BUTTON.to_le_bytes());
        assert!(!lit());
    }

    #[test]
    fn a_button_that_nobody_has_seen_is_still_pressed_in_the_next_machine() {
        let (events, _taken) = Events::new();
        let (mut power, button) = Power::new(Box::new(Lamp(Arc::default())), events.clone());
        power.write(ENABLE, &POWER_BUTTON.to_le_bytes());
        button.press();
        let saved = power.save();
        let lamp = Arc::new(AtomicBool::new(false));
        let (mut other, _) = Power::new(Box::new(Lamp(Arc::clone(&lamp))), events);
        let hour = Duration::from_secs(3600);
        other.restore(&saved, hour);
        assert!(lamp.load(Ordering::Relaxed));
        let again = other.save();
        assert_eq!((again.status, again.enable), (saved.status, saved.enable));
        assert!(again.ran >= saved.ran + hour, "the timer went on meanwhile");
    }

    #[test]
    fn soft_off_is_told_and_other_sleeps_are_not() {
        let (events, taken) = Events::new();
        let lamp = Lamp(Arc::default());
        let (mut power, _) = Power::new(Box::new(lamp), events);
        let sleep = |kind: u16| (SLEEP_ENABLE | kind << SLEEP_TYPE_SHIFT).to_le_bytes();
        power.write(CONTROL, &sleep(1));
        power.write(CONTROL, &(SLEEP_TYPE_OFF << SLEEP_TYPE_SHIFT).to_le_bytes());
        assert!(taken.try_recv().is_err());
        power.write(CONTROL, &sleep(SLEEP_TYPE_OFF));
        assert!(matches!(taken.try_recv(), Ok(Event::PowerOff)));
    }

    #[test]
    fn registers_read_at_any_width_without_going_beyond() {
        let (events, _taken) = Events::new();
        let (mut power, _) = Power::new(Box::new(Lamp(Arc::default())), events);
        let mut all = [0xaa; 8];
        power.read(8, &mut all);
        assert_eq!(all[4..], [0; 4]);
        let mut control = [0; 1];
        power.read(CONTROL, &mut control);
        assert_eq!(control, [ACPI_MODE as u8]);
    }
}
