//! Kernel versions in the order in which people read them: runs of digits compare as numbers, the rest as text.

use std::cmp::Ordering;

/// Compares two version strings: `6.1.0-9` comes before `6.1.0-10`, and `6.1-rc1` before `6.1`.
pub(super) fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let (text_a, rest_a) = split(a, |c| !c.is_ascii_digit());
        let (text_b, rest_b) = split(b, |c| !c.is_ascii_digit());
        match rank(text_a)
            .cmp(&rank(text_b))
            .then_with(|| text_a.cmp(text_b))
        {
            Ordering::Equal => {}
            unequal => return unequal,
        }
        let (digits_a, after_a) = split(rest_a, u8::is_ascii_digit);
        let (digits_b, after_b) = split(rest_b, u8::is_ascii_digit);
        // Numbers of any length: without leading zeros the longer one is larger.
        let (number_a, number_b) = (without_zeros(digits_a), without_zeros(digits_b));
        match number_a
            .len()
            .cmp(&number_b.len())
            .then_with(|| number_a.cmp(number_b))
        {
            Ordering::Equal if after_a.is_empty() && after_b.is_empty() => return Ordering::Equal,
            Ordering::Equal => (a, b) = (after_a, after_b),
            unequal => return unequal,
        }
    }
}

/// Release candidates come before the end of the string, everything else after it.
fn rank(text: &[u8]) -> u8 {
    match text {
        b"-rc" | b"~rc" => 0,
        b"" => 1,
        _ => 2,
    }
}

fn split(bytes: &[u8], mut belongs: impl FnMut(&u8) -> bool) -> (&[u8], &[u8]) {
    bytes.split_at(
        bytes
            .iter()
            .position(|c| !belongs(c))
            .unwrap_or(bytes.len()),
    )
}

fn without_zeros(digits: &[u8]) -> &[u8] {
    split(digits, |&c| c == b'0').1
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn versions_sort_as_people_expect() {
        let sorted = [
            "5.10.0-30",
            "6.1-rc1",
            "6.1",
            "6.1.0-9",
            "6.1.0-10",
            "6.1.0-10-cloud",
            "6.12.3",
            "6.12.10",
            "10.0",
        ];
        for (i, a) in sorted.iter().enumerate() {
            for (j, b) in sorted.iter().enumerate() {
                assert_eq!(compare(a, b), i.cmp(&j), "{a} {b}");
            }
        }
    }
}
