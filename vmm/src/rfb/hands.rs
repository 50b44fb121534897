//! A viewer's hands: what it presses and where it points, as the guest's keyboard and tablet tell it.
//!
//! Invariant: what a viewer has pressed is released when it goes.

use std::collections::BTreeSet;

use super::keys;
use crate::clipboard::Clipboard;
use crate::screen::Size;
use crate::virtio::input::InputSender;
use crate::virtio::input::events::{
    ABS_X, ABS_Y, AXIS_MAX, BUTTONS, EV_ABS, EV_KEY, EV_REL, Event, REL_HWHEEL, REL_WHEEL,
};

/// The guest's keyboard and tablet, and its clipboard.
#[derive(Clone, Default)]
pub struct Inputs {
    /// Keys.
    pub keyboard: InputSender,
    /// Places and buttons.
    pub tablet: InputSender,
    /// What is copied and pasted.
    pub clipboard: Clipboard,
}

/// Which bit of a pointer's state is which of [`BUTTONS`]: left, middle and right, and those that go back and forward.
const BUTTON_BITS: [(u8, usize); 5] = [(0, 0), (1, 2), (2, 1), (7, 3), (8, 4)];
/// Notches of the wheel, and of its sideways movement, are presses of these.
const WHEEL_BITS: [(u8, u16, i32); 4] = [
    (3, REL_WHEEL, 1),
    (4, REL_WHEEL, -1),
    (5, REL_HWHEEL, -1),
    (6, REL_HWHEEL, 1),
];

/// See the module.
pub(super) struct Hands {
    inputs: Inputs,
    pressed: BTreeSet<u16>,
    buttons: u16,
}

impl Hands {
    pub(super) fn new(inputs: Inputs) -> Self {
        Self {
            inputs,
            pressed: BTreeSet::new(),
            buttons: 0,
        }
    }

    /// A key by its symbol.
    pub(super) fn symbol(&mut self, down: bool, symbol: u32) {
        self.key(down, keys::of_symbol(symbol));
    }

    /// A key by its place, or by its symbol if the place is not known.
    pub(super) fn scancode(&mut self, down: bool, symbol: u32, code: u32) {
        let key = keys::of_scancode(code).or_else(|| keys::of_symbol(symbol));
        self.key(down, key);
    }

    fn key(&mut self, down: bool, key: Option<u16>) {
        let Some(code) = key else {
            return;
        };
        // Viewers repeat presses; the guest repeats by itself.
        let is_news = if down {
            self.pressed.insert(code)
        } else {
            self.pressed.remove(&code)
        };
        if is_news {
            self.inputs
                .keyboard
                .send(&[event(EV_KEY, code, down.into())]);
        }
    }

    /// The pointer, on a screen of that size.
    pub(super) fn point(&mut self, buttons: u16, x: u16, y: u16, size: Size) {
        let place = |at: u16, side: u16| {
            let last = u32::from(side - 1).max(1);
            u32::from(at).min(last) * AXIS_MAX / last
        };
        let mut events = vec![
            event(EV_ABS, ABS_X, place(x, size.width)),
            event(EV_ABS, ABS_Y, place(y, size.height)),
        ];
        let before = std::mem::replace(&mut self.buttons, buttons);
        let is_set = |buttons: u16, bit: u8| buttons >> bit & 1 == 1;
        for (bit, index) in BUTTON_BITS {
            if is_set(buttons ^ before, bit) {
                events.push(event(EV_KEY, BUTTONS[index], is_set(buttons, bit).into()));
            }
        }
        for (bit, wheel, notches) in WHEEL_BITS {
            if is_set(buttons & !before, bit) {
                events.push(event(EV_REL, wheel, notches as u32));
            }
        }
        self.inputs.tablet.send(&events);
    }
}

impl Drop for Hands {
    fn drop(&mut self) {
        let keys = self.pressed.iter().map(|code| event(EV_KEY, *code, 0));
        let keys: Vec<Event> = keys.collect();
        let buttons = BUTTON_BITS
            .iter()
            .filter(|(bit, _)| self.buttons >> bit & 1 == 1);
        let buttons = buttons.map(|(_, index)| event(EV_KEY, BUTTONS[*index], 0));
        let buttons: Vec<Event> = buttons.collect();
        if !keys.is_empty() {
            self.inputs.keyboard.send(&keys);
        }
        if !buttons.is_empty() {
            self.inputs.tablet.send(&buttons);
        }
    }
}

fn event(kind: u16, code: u16, value: u32) -> Event {
    Event { kind, code, value }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(sender: &InputSender) -> Vec<(u16, u16, u32)> {
        let events = sender.take();
        let events = events.iter().filter(|event| event.kind != 0);
        events
            .map(|event| (event.kind, event.code, event.value))
            .collect()
    }

    fn hands() -> (Hands, Inputs) {
        let inputs = Inputs::default();
        (Hands::new(inputs.clone()), inputs)
    }

    #[test]
    fn keys_are_told_once_and_released_at_the_end() {
        let (mut hands, inputs) = hands();
        hands.symbol(true, 'A' as u32);
        hands.symbol(true, 'A' as u32);
        hands.symbol(false, 'a' as u32);
        hands.symbol(false, 'a' as u32);
        hands.symbol(true, 0x20ac);
        assert_eq!(told(&inputs.keyboard), [(1, 30, 1), (1, 30, 0)]);
        hands.scancode(true, 0, 0x1d);
        hands.scancode(true, 'x' as u32, 0);
        assert_eq!(told(&inputs.keyboard), [(1, 29, 1), (1, 45, 1)]);
        hands.point(1, 0, 0, Size::default());
        told(&inputs.tablet);
        drop(hands);
        assert_eq!(told(&inputs.keyboard), [(1, 29, 0), (1, 45, 0)]);
        assert_eq!(told(&inputs.tablet), [(1, 0x110, 0)]);
    }

    #[test]
    fn the_pointer_is_where_it_is_on_the_screen() {
        let (mut hands, inputs) = hands();
        let size = Size::new(1001, 501).expect("a size");
        hands.point(0, 1000, 250, size);
        let places = [(3, 0, AXIS_MAX), (3, 1, AXIS_MAX / 2)];
        assert_eq!(told(&inputs.tablet), places);
        hands.point(0b1000_0111, 5000, 0, size);
        let buttons = [
            (3, 0, AXIS_MAX),
            (3, 1, 0),
            (1, 0x110, 1),
            (1, 0x112, 1),
            (1, 0x111, 1),
            (1, 0x113, 1),
        ];
        assert_eq!(told(&inputs.tablet), buttons);
        hands.point(0b0000_1010, 0, 0, size);
        let released = [(1, 0x110, 0), (1, 0x111, 0), (1, 0x113, 0), (2, 8, 1)];
        assert_eq!(told(&inputs.tablet)[2..], released);
        hands.point(0b0001_0010, 0, 0, size);
        assert_eq!(told(&inputs.tablet)[2..], [(2, 8, u32::MAX)], "down");
        hands.point(0b0010_0010, 0, 0, size);
        assert_eq!(told(&inputs.tablet)[2..], [(2, 6, u32::MAX)], "left");
        hands.point(0b1_0000_0010, 0, 0, size);
        assert_eq!(told(&inputs.tablet)[2..], [(1, 0x114, 1)], "forward");
        hands.point(2, 0, 0, size);
        told(&inputs.tablet);
        hands.point(0, 0, 0, Size::shown(1, 1).expect("a size"));
        assert_eq!(told(&inputs.tablet)[2..], [(1, 0x112, 0)]);
    }
}
