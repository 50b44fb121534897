//! Which key of the guest's keyboard a viewer means, as evdev numbers them (Linux, include/uapi/linux/input-event-codes.h).
//!
//! A viewer that tells scan codes means the key at that place, and any layout works. Others tell the symbol that their own layout made;
//! it is looked up on a US keyboard, where symbols with Shift share the key of those without: viewers tell Shift by itself. A symbol that a
//! US keyboard does not have is no key.

/// Letters by their key, `a` first.
const LETTERS: [u16; 26] = [
    30, 48, 46, 32, 18, 33, 34, 35, 23, 36, 37, 38, 50, 49, 24, 25, 16, 19, 31, 20, 22, 47, 17, 45,
    21, 44,
];

/// Symbols of printable characters that are no letters, with their key.
const CHARACTERS: [(u8, u16); 43] = [
    (b' ', 57),
    (b'1', 2),
    (b'!', 2),
    (b'2', 3),
    (b'@', 3),
    (b'3', 4),
    (b'#', 4),
    (b'4', 5),
    (b'$', 5),
    (b'5', 6),
    (b'%', 6),
    (b'6', 7),
    (b'^', 7),
    (b'7', 8),
    (b'&', 8),
    (b'8', 9),
    (b'*', 9),
    (b'9', 10),
    (b'(', 10),
    (b'0', 11),
    (b')', 11),
    (b'-', 12),
    (b'_', 12),
    (b'=', 13),
    (b'+', 13),
    (b'[', 26),
    (b'{', 26),
    (b']', 27),
    (b'}', 27),
    (b';', 39),
    (b':', 39),
    (b'\'', 40),
    (b'"', 40),
    (b'`', 41),
    (b'~', 41),
    (b'\\', 43),
    (b'|', 43),
    (b',', 51),
    (b'<', 51),
    (b'.', 52),
    (b'>', 52),
    (b'/', 53),
    (b'?', 53),
];

/// Symbols of X11 without a character (keysymdef.h), with their key.
const FUNCTIONS: [(u32, u16); 76] = [
    (0xff08, 14),  // BackSpace
    (0xff09, 15),  // Tab
    (0xfe20, 15),  // ISO_Left_Tab: Tab with Shift
    (0xff0d, 28),  // Return
    (0xff13, 119), // Pause
    (0xff14, 70),  // Scroll_Lock
    (0xff15, 99),  // Sys_Req
    (0xff1b, 1),   // Escape
    (0xffff, 111), // Delete
    (0xff50, 102), // Home
    (0xff51, 105), // Left
    (0xff52, 103), // Up
    (0xff53, 106), // Right
    (0xff54, 108), // Down
    (0xff55, 104), // Page_Up
    (0xff56, 109), // Page_Down
    (0xff57, 107), // End
    (0xff61, 99),  // Print
    (0xff63, 110), // Insert
    (0xff67, 127), // Menu
    (0xff6b, 119), // Break
    (0xff7f, 69),  // Num_Lock
    (0xff8d, 96),  // KP_Enter
    (0xff95, 71),  // KP_Home
    (0xff96, 75),  // KP_Left
    (0xff97, 72),  // KP_Up
    (0xff98, 77),  // KP_Right
    (0xff99, 80),  // KP_Down
    (0xff9a, 73),  // KP_Page_Up
    (0xff9b, 81),  // KP_Page_Down
    (0xff9c, 79),  // KP_End
    (0xff9d, 76),  // KP_Begin
    (0xff9e, 82),  // KP_Insert
    (0xff9f, 83),  // KP_Delete
    (0xffaa, 55),  // KP_Multiply
    (0xffab, 78),  // KP_Add
    (0xffac, 121), // KP_Separator
    (0xffad, 74),  // KP_Subtract
    (0xffae, 83),  // KP_Decimal
    (0xffaf, 98),  // KP_Divide
    (0xffb0, 82),  // KP_0
    (0xffb1, 79),
    (0xffb2, 80),
    (0xffb3, 81),
    (0xffb4, 75),
    (0xffb5, 76),
    (0xffb6, 77),
    (0xffb7, 71),
    (0xffb8, 72),
    (0xffb9, 73),  // KP_9
    (0xffbd, 117), // KP_Equal
    (0xffbe, 59),  // F1
    (0xffbf, 60),
    (0xffc0, 61),
    (0xffc1, 62),
    (0xffc2, 63),
    (0xffc3, 64),
    (0xffc4, 65),
    (0xffc5, 66),
    (0xffc6, 67),
    (0xffc7, 68),
    (0xffc8, 87),  // F11
    (0xffc9, 88),  // F12
    (0xffe1, 42),  // Shift_L
    (0xffe2, 54),  // Shift_R
    (0xffe3, 29),  // Control_L
    (0xffe4, 97),  // Control_R
    (0xffe5, 58),  // Caps_Lock
    (0xffe7, 125), // Meta_L
    (0xffe8, 126), // Meta_R
    (0xffe9, 56),  // Alt_L
    (0xffea, 100), // Alt_R
    (0xffeb, 125), // Super_L
    (0xffec, 126), // Super_R
    (0xfe03, 100), // ISO_Level3_Shift: AltGr
    (0xff7e, 100), // Mode_switch
];

/// Scan codes that are not evdev's number of the key; extended ones (after 0xe0) have bit 7. Keys for power and sleep are left out: a
/// viewer does not press a desktop's buttons.
const SCANCODES: [(u32, u16); 50] = [
    (0x54, 99),  // Sys_Req
    (0x59, 117), // KP_Equal
    (0x5c, 121), // KP_Separator
    (0x5d, 183), // F13
    (0x5e, 184),
    (0x5f, 185),
    (0x70, 93),  // Katakana or Hiragana
    (0x73, 89),  // Ro
    (0x76, 85),  // Zenkaku or Hankaku
    (0x77, 91),  // Hiragana
    (0x78, 90),  // Katakana
    (0x79, 92),  // Henkan
    (0x7b, 94),  // Muhenkan
    (0x7d, 124), // Yen
    (0x7e, 121), // KP_Separator
    (0x90, 165), // Previous song
    (0x99, 163), // Next song
    (0x9c, 96),  // KP_Enter
    (0x9d, 97),  // Right Control
    (0xa0, 113), // Mute
    (0xa1, 140), // Calculator
    (0xa2, 164), // Play or pause
    (0xa4, 166), // Stop
    (0xae, 114), // Volume down
    (0xb0, 115), // Volume up
    (0xb2, 172), // Home page
    (0xb5, 98),  // KP_Divide
    (0xb7, 99),  // Print
    (0xb8, 100), // Right Alt
    (0xc6, 119), // Pause
    (0xc7, 102), // Home
    (0xc8, 103), // Up
    (0xc9, 104), // Page up
    (0xcb, 105), // Left
    (0xcd, 106), // Right
    (0xcf, 107), // End
    (0xd0, 108), // Down
    (0xd1, 109), // Page down
    (0xd2, 110), // Insert
    (0xd3, 111), // Delete
    (0xdb, 125), // Left Meta
    (0xdc, 126), // Right Meta
    (0xdd, 127), // Menu
    (0xe5, 217), // Search
    (0xe6, 156), // Bookmarks
    (0xe7, 173), // Refresh
    (0xe9, 159), // Forward
    (0xea, 158), // Back
    (0xec, 155), // Mail
    (0xed, 226), // Media
];

/// The key of a symbol.
pub(super) fn of_symbol(symbol: u32) -> Option<u16> {
    // Characters beyond Latin-1 have their number behind this bit; some viewers tell all of them so.
    const UNICODE: u32 = 0x0100_0000;
    let symbol = if (UNICODE..UNICODE + 0x100).contains(&symbol) {
        symbol - UNICODE
    } else {
        symbol
    };
    if let Ok(character) = u8::try_from(symbol) {
        if character.is_ascii_alphabetic() {
            let letter = character.to_ascii_lowercase() - b'a';
            return LETTERS.get(usize::from(letter)).copied();
        }
        return find(&CHARACTERS, character);
    }
    find(&FUNCTIONS, symbol)
}

/// The key at a place.
pub(super) fn of_scancode(code: u32) -> Option<u16> {
    let same = (1..=0x53).contains(&code) || (0x56..=0x58).contains(&code);
    match u16::try_from(code) {
        Ok(code) if same => Some(code),
        _ => find(&SCANCODES, code),
    }
}

fn find<K: PartialEq + Copy>(table: &[(K, u16)], wanted: K) -> Option<u16> {
    let found = table.iter().find(|(key, _)| *key == wanted);
    found.map(|(_, code)| *code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::input::events::KEY_LAST;

    #[test]
    fn every_printable_character_has_a_key_and_shift_shares_it() {
        for character in 0x20..0x7f {
            assert!(of_symbol(character).is_some(), "{character:#x}");
        }
        for (plain, shifted) in [('a', 'A'), ('z', 'Z'), ('1', '!'), ('/', '?'), ('\'', '"')] {
            assert_eq!(of_symbol(plain as u32), of_symbol(shifted as u32));
        }
        assert_eq!(of_symbol('q' as u32), Some(16));
        assert_eq!(of_symbol('m' as u32), Some(50));
        assert_eq!(of_symbol(0xffc5), Some(66), "F8");
        assert_eq!(of_symbol(0x0100_0061), Some(30), "a by its character");
        for none in [0, 0xe9, 0x20ac, 0x0100_20ac, u32::MAX] {
            assert_eq!(of_symbol(none), None, "{none:#x}");
        }
    }

    #[test]
    fn scan_codes_and_symbols_of_a_us_keyboard_agree() {
        for (symbol, code) in [
            ('a' as u32, 0x1e),
            ('0' as u32, 0x0b),
            (0xff0d, 0x1c),
            (0xff8d, 0x9c),
            (0xff51, 0xcb),
            (0xffc9, 0x58),
            (0xffea, 0xb8),
            (0xff13, 0xc6),
            (0xff97, 0x48),
        ] {
            assert_eq!(of_symbol(symbol), of_scancode(code), "{code:#x}");
        }
        for none in [0, 0x55, 0xde, 0xdf, 0x100, u32::MAX] {
            assert_eq!(of_scancode(none), None, "{none:#x}");
        }
    }

    #[test]
    fn all_keys_are_on_the_keyboard() {
        let symbols = CHARACTERS.iter().map(|(_, key)| *key);
        let functions = FUNCTIONS.iter().map(|(_, key)| *key);
        let scancodes = SCANCODES.iter().map(|(_, key)| *key);
        let mut all = symbols.chain(functions).chain(scancodes).chain(LETTERS);
        assert!(all.all(|key| (1..=KEY_LAST).contains(&key)));
    }
}
